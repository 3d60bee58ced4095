//! Temporary objects of sessions that have ended: dropped by the proxy when a session ends, and, for those that an earlier
//! start of this proxy has left, when it starts (`docs/decisions/0044-temporary-objects-live-in-a-schema-of-the-session.md`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation, Operation, SessionContext, TransactionId, TransactionWrite, Work};

use crate::catalog::Catalog;
use crate::client::{Client, Failure, Lockstep, Rows};
use crate::shared::Shared;
use crate::wire::first_error;

/// The statement that drops all temporary objects of a session.
pub(crate) const DISCARD: &str = "DISCARD TEMP";

/// How often it is tried.
const ATTEMPTS_MAX: u32 = 60;
/// The pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Drops what sessions of earlier starts of this proxy have left.
pub(crate) async fn sweep(shared: &Shared, catalog: &Arc<Catalog>) {
    let own = u64::from(shared.config.incarnation);
    let state = catalog.current();
    let left = state.analyzer.schema().temporary_of(shared.client.id().0);
    let left: Vec<_> = left.filter(|session| session >> 32 < own).collect();
    for session in left {
        tracing::info!(
            session,
            "dropping the temporary objects of a session that an earlier start of the proxy left"
        );
        discard(shared, catalog, session).await;
    }
}

/// Drops the temporary objects of a session that has ended, if it has any.
pub(crate) async fn discard(shared: &Shared, catalog: &Arc<Catalog>, session: u64) {
    let client = shared.client.id().0;
    for attempt in 1..=ATTEMPTS_MAX {
        if shared.client.is_cut_off() {
            return;
        }
        // An older catalog does not know what the session has made last.
        if let Some(seen) = catalog.stale_version()
            && let Err(error) = catalog.refresh_after(&shared.client, seen).await
        {
            tracing::debug!(%error, session, attempt, "the catalog cannot be read yet");
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let has_some = catalog.current().analyzer.schema().has_temporary(client, session);
        if !has_some {
            return;
        }
        let context = SessionContext {
            client,
            session,
            ..catalog.context().clone()
        };
        // A transaction of a session of its own: those of earlier starts are taken for abandoned.
        let transaction = TransactionId {
            client,
            session: shared.next_session(),
            number: 1,
        };
        match try_discard(&shared.client, context, transaction).await {
            Ok(()) => return catalog.changed(&shared.client),
            Err(failure) => tracing::debug!(?failure, session, attempt, "temporary objects are not dropped yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    tracing::warn!(
        session,
        "temporary objects of a session that has ended could not be dropped"
    );
}

/// Begins, asks for words, and commits.
async fn try_discard(client: &Client, context: SessionContext, transaction: TransactionId) -> Result<(), Failure> {
    let encoded: Bytes = borsh::to_vec(&context).unwrap_or_default().into();
    let operation = |work: Work| Operation {
        context: context.clone(),
        footprint: Footprint::everything(),
        nonce: rand::random(),
        work,
    };
    let exchange = Exchange::Simple { text: DISCARD.into() }.encode();
    let mut live = client.live(transaction, encoded, Lockstep::All);
    let begin = operation(Work::Begin {
        transaction,
        isolation: Isolation::ReadCommitted,
        read_only: false,
        live: live.machines().bits(),
        exchanges: vec![exchange.clone()],
    });
    let outcome = async {
        let voted = client.order_live(&begin, Rows::Unordered, None, &mut live).await?;
        live.listed(&exchange);
        live.answered(&voted.result);
        if let Some(error) = first_error(&voted.result.messages) {
            return Err(Failure::Refused(error));
        }
        let words = client.words(&mut live, transaction, voted.order, None).await?;
        let writes = vec![TransactionWrite::Ordered(voted.order.0)];
        let commit = operation(Work::Commit {
            transaction,
            writes,
            words,
        });
        let voted = client.order(&commit, Rows::Unordered, None).await?;
        first_error(&voted.result.messages).map_or(Ok(()), |error| Err(Failure::Refused(error)))
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        // After a Commit, an Abort does nothing.
        let abort = operation(Work::Abort { transaction });
        let _ = client.order(&abort, Rows::Unordered, None).await;
    }
    outcome
}
