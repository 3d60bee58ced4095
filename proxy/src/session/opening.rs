//! How a transaction is opened on the voters: a Begin, which takes along what the session has put off.

use std::sync::Arc;
use std::time::Instant;

use sql::footprint::Footprint;
use sql::operation::{Isolation, Operation, TransactionId, Work};
use sql::statement::Effect;

use super::Session;
use super::context::Context;
use super::routing::{Kind, Routed, holds_everything, is_large, lock_footprint, writes};
use super::transaction::{Begun, Deferred};
use crate::client::{Failure, Lockstep, Rows, VotedResult};
use crate::measures::Stage;

/// Refused by voters: too many transactions are open. Such a Begin holds nothing.
const TOO_MANY_OPEN: &str = "53400";

/// A transaction that is to be opened on the voters.
pub(super) struct Opening {
    pub(super) context: Arc<Context>,
    pub(super) isolation: Isolation,
    pub(super) read_only: bool,
    pub(super) footprint: Footprint,
    pub(super) exchanges: Vec<Deferred>,
    pub(super) rows: Rows,
    /// Whether one voter's answers do until COMMIT.
    pub(super) at_commit: bool,
}

impl Session {
    /// Opens a transaction on the voters; what it holds, and its last exchange's result.
    pub(super) async fn open(&mut self, opening: Opening) -> Result<(Begun, VotedResult), Failure> {
        let id = TransactionId {
            client: self.shared.client.id().0,
            session: self.id,
            number: self.next_transaction,
        };
        self.next_transaction += 1;
        let limit = self.shared.config.statement_timeout;
        let room = tokio::select! {
            room = tokio::time::timeout(limit, Arc::clone(&self.unended).acquire_owned()) => room,
            () = self.cancel.wait() => return Err(Failure::Cancelled),
        };
        let Ok(Ok(room)) = room else {
            return Err(Failure::NoProgress);
        };
        let snapshot = opening.isolation == Isolation::RepeatableRead;
        let all = snapshot || opening.read_only || holds_everything(&opening.footprint);
        let client = Arc::clone(&self.shared.client);
        let lockstep = match opening.at_commit {
            _ if all => Lockstep::All,
            true => Lockstep::One,
            false => Lockstep::Enough,
        };
        let live = client.live(id, opening.context.encoded.clone(), lockstep);
        let machines = live.machines();
        let mut begun = Begun::new(id, opening.context, opening.footprint.clone(), snapshot, live, room);
        begun.at_commit = lockstep == Lockstep::One;
        let mut exchanges = Vec::with_capacity(opening.exchanges.len());
        for deferred in &opening.exchanges {
            let large = is_large(&deferred.encoded);
            begun.all_short &= deferred.short && !large;
            match self.listable(id, &deferred.encoded).await {
                Ok(listed) => exchanges.push(listed),
                Err(failure) => {
                    // The machines may keep bodies for it, which go with an Abort.
                    self.abort_later(begun);
                    return Err(failure);
                }
            }
        }
        let stored = opening.exchanges.iter().any(|deferred| is_large(&deferred.encoded));
        let operation = Operation {
            context: begun.context.decoded.clone(),
            footprint: opening.footprint,
            nonce: rand::random(),
            work: Work::Begin {
                transaction: id,
                isolation: opening.isolation,
                read_only: opening.read_only,
                live: machines.bits(),
                exchanges: exchanges.clone(),
            },
        };
        let start = Instant::now();
        let voted = client
            .order_live(&operation, opening.rows, Some(&self.cancel), &mut begun.live)
            .await;
        self.shared.metrics.stage(Stage::Order, start.elapsed());
        match voted {
            Ok(voted) => {
                begun.began(voted.order, &exchanges);
                begun.live.answered(&voted.result);
                Ok((begun, voted.result))
            }
            Err(failure) => {
                let holds = match &failure {
                    Failure::Refused(error) => error.sqlstate != TOO_MANY_OPEN,
                    Failure::TooLarge => false,
                    _ => true,
                } || stored;
                // Also a refused Begin holds its locks to an ordered end.
                if holds {
                    self.abort_later(begun);
                }
                Err(failure)
            }
        }
    }

    /// Opens the session's transaction on the voters, with what it has put off and then `first`. `by_one`: whether one voter's answer
    /// to that does, if the session has asked for such answers.
    async fn open_own(
        &mut self,
        first: Deferred,
        footprint: Footprint,
        rows: Rows,
        by_one: bool,
    ) -> Result<VotedResult, Failure> {
        let Some(transaction) = &self.transaction else {
            return Err(Failure::Unavailable);
        };
        let context = Context::new(
            self.shared.client.id(),
            self.id,
            &self.role,
            &self.database,
            &transaction.settings_before,
        );
        let mut exchanges = transaction.deferred.clone();
        // The answers to what a Begin takes along are not sent, so that the proxy could not tell whether words are right.
        let at_commit = by_one && transaction.answers_at_commit() && exchanges.is_empty();
        exchanges.push(first);
        let opening = Opening {
            context,
            isolation: transaction.voters_isolation(),
            read_only: transaction.read_only,
            footprint,
            exchanges,
            rows,
            at_commit,
        };
        match self.open(opening).await {
            Ok((begun, result)) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = Some(begun);
                    transaction.deferred.clear();
                }
                Ok(result)
            }
            // Nothing has happened yet: a savepoint before it can still be gone back to.
            Err(failure @ (Failure::Refused(_) | Failure::Cancelled)) => Err(failure),
            Err(failure) => {
                self.doom();
                Err(failure)
            }
        }
    }

    /// Opens the session's transaction on the voters, with this exchange as its first.
    pub(super) async fn begin(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let Some(transaction) = &self.transaction else {
            return Err(Failure::Unavailable);
        };
        let plain_read = routed.analysis.effect <= Effect::Read && routed.kind == Kind::Plain;
        // A plain read on a snapshot locks nothing. What locks nothing is not listed: the Begin only takes the snapshot.
        let unlisted = plain_read && transaction.voters_isolation() == Isolation::RepeatableRead;
        // What makes objects follows when all servers number them alike.
        let follows = routed.numbers_objects() && !transaction.read_only;
        let (footprint, first) = match unlisted {
            true => (Footprint::empty(), self.nothing()),
            false if follows => (routed.analysis.footprint.clone(), self.nothing()),
            false => {
                let first = Deferred {
                    encoded: routed.encoded.clone(),
                    short: routed.analysis.short,
                };
                (lock_footprint(routed.analysis, transaction.locks_reads()), first)
            }
        };
        let result = self.open_own(first, footprint, routed.rows(), true).await?;
        if let Some(begun) = self.begun() {
            begun.wrote = !unlisted && !follows && writes(routed);
        }
        match unlisted {
            true => self.read_within(routed).await,
            false if follows => self.within(routed).await,
            false => Ok(result),
        }
    }

    /// Opens the session's transaction on the voters, if it is not open, for advisory locks that end with it. Its end is ordered as
    /// that of one that has written: when the application is told of it, they are free.
    pub(super) async fn begin_for_locks(&mut self) -> Result<TransactionId, Failure> {
        if !self.is_begun() {
            let nothing = self.nothing();
            self.open_own(nothing, Footprint::empty(), Rows::Unordered, false)
                .await?;
        }
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        begun.wrote = true;
        begun.advisory = true;
        Ok(begun.id)
    }
}
