//! Before a transaction makes objects, all servers are brought to number them alike
//! (`docs/decisions/0047-servers-number-objects-alike.md`).

use std::sync::Arc;
use std::time::Instant;

use sql::footprint::Footprint;
use sql::operation::Exchange;

use super::Session;
use super::routing::{Kind, Routed, holds_everything, is_large};
use super::transaction::{Begun, Deferred};
use crate::client::{Cancel, Failure, Question, Rows, Statement, VotedResult};
use crate::measures::Stage;
use crate::shared::Shared;

impl Routed<'_> {
    /// Whether the servers are to number objects alike before it runs.
    pub(super) fn numbers_objects(&self) -> bool {
        self.analysis.numbers_objects && self.kind != Kind::Apart && holds_everything(&self.analysis.footprint)
    }
}

impl Session {
    /// The exchange of a Begin or an Extend that is there for its locks or its snapshot alone.
    pub(super) fn nothing(&self) -> Deferred {
        self.deferred(&Exchange::Simple { text: String::new() })
    }

    /// Before a statement of the open transaction that makes objects. What fails here fails the statement.
    pub(super) async fn number_alike(&mut self) -> Result<(), Failure> {
        let is_read_only = self
            .transaction
            .as_ref()
            .is_none_or(|transaction| transaction.read_only);
        if is_read_only || self.begun().is_none_or(|begun| begun.numbers_alike) {
            return Ok(());
        }
        match self.lock_and_number_alike().await {
            Ok(()) => Ok(()),
            Err(Failure::Cancelled) => {
                self.cancel_within().await;
                Err(Failure::Cancelled)
            }
            Err(failure) => {
                self.doom();
                Err(lost_if_unavailable(failure))
            }
        }
    }

    async fn lock_and_number_alike(&mut self) -> Result<(), Failure> {
        let everything = Footprint::everything();
        if self.begun().is_some_and(|begun| !begun.held.covers(&everything)) {
            // The locks first: whatever takes numbers without them has ended then.
            let nothing = self.nothing().encoded;
            self.extend_with(nothing, everything, Rows::Unordered).await?;
        }
        let (shared, cancel) = (Arc::clone(&self.shared), Arc::clone(&self.cancel));
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        list_numbers(&shared, &cancel, begun).await
    }

    /// Runs a statement that makes objects in a transaction of its own, which has its locks, and nothing else so far.
    pub(super) async fn run_numbered(&self, begun: &mut Begun, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let ran = self.list_numbers_and_run(begun, routed).await;
        ran.map_err(lost_if_unavailable)
    }

    async fn list_numbers_and_run(&self, begun: &mut Begun, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        list_numbers(&self.shared, &self.cancel, begun).await?;
        let listed = self.listable(begun.id, &routed.encoded).await?;
        let question = Question {
            context: begun.context.encoded.clone(),
            exchange: listed.clone(),
            rows: routed.rows(),
        };
        let start = Instant::now();
        let client = &self.shared.client;
        let voted = client
            .ask_within(&mut begun.live, question, Statement::Write, Some(&self.cancel))
            .await;
        self.shared.metrics.stage(Stage::Direct, start.elapsed());
        let voted = voted?;
        begun.all_short &= routed.analysis.short && !is_large(&routed.encoded);
        begun.wrote_directly(listed, &voted.result);
        Ok(voted.result)
    }
}

/// Asks the voters how far their servers are, and lists from which number on all of them go on. The transaction holds everything.
async fn list_numbers(shared: &Shared, cancel: &Cancel, begun: &mut Begun) -> Result<(), Failure> {
    let start = Instant::now();
    let asked = shared.client.next_object_number(&mut begun.live, Some(cancel)).await;
    shared.metrics.stage(Stage::Direct, start.elapsed());
    let Some(next) = asked? else {
        tracing::warn!(
            "too few voters say how far their servers have numbered objects: new ones may be numbered differently"
        );
        begun.numbers_alike = true;
        return Ok(());
    };
    let exchange = Exchange::ObjectNumbers { next }.encode();
    let question = Question {
        context: begun.context.encoded.clone(),
        exchange: exchange.clone(),
        rows: Rows::Unordered,
    };
    let start = Instant::now();
    let client = &shared.client;
    let voted = client
        .ask_within(&mut begun.live, question, Statement::Write, Some(cancel))
        .await;
    shared.metrics.stage(Stage::Direct, start.elapsed());
    begun.all_short = false;
    begun.numbers_alike = true;
    begun.wrote_directly(exchange, &voted?.result);
    Ok(())
}

/// A transaction that too few voters have has had no effect.
fn lost_if_unavailable(failure: Failure) -> Failure {
    match failure {
        Failure::Unavailable => Failure::transaction_lost(),
        failure => failure,
    }
}
