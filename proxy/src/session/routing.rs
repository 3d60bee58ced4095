//! How an exchange reaches the voters (DESIGN.md section 3): ordered, or directly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::Order;
use sql::analysis::ExchangeAnalysis;
use sql::footprint::{Footprint, Resource};
use sql::operation::{ExchangeResult, Isolation, Operation, TransactionId, Work};
use sql::statement::Effect;

use super::Session;
use super::context::Context;
use super::settings::READS;
use super::transaction::{Begun, exclusive};
use crate::client::{Failure, Question, Quorum, Rows, Voted};
use crate::measures::Stage;

/// How long an Abort is tried.
const ABORT_LIMIT: Duration = Duration::from_secs(600);

/// What an exchange needs beside its footprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// It needs or leaves state on the backend beside data: portals, cursors, savepoints, local settings.
    Stateful,
    /// It changes no data and yet is not taken as a read (a setting is tried): ordered by itself, unless the voters'
    /// transaction is open.
    Apart,
}

impl Kind {
    pub(super) fn stateful(stateful: bool) -> Self {
        if stateful { Kind::Stateful } else { Kind::Plain }
    }
}

/// An exchange on its way.
pub(super) struct Routed<'analysis> {
    pub(super) encoded: Bytes,
    pub(super) analysis: &'analysis ExchangeAnalysis,
    pub(super) kind: Kind,
}

impl Routed<'_> {
    /// What the order of its rows means. A portal that goes on may be of a statement with ORDER BY.
    fn rows(&self) -> Rows {
        match self.analysis.orders_rows || self.kind == Kind::Stateful {
            true => Rows::Ordered,
            false => Rows::Unordered,
        }
    }
}

impl Session {
    pub(super) async fn route(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        if self.is_begun() {
            return self.within(routed).await;
        }
        if routed.kind == Kind::Apart {
            return self.one_shot(routed).await;
        }
        let writes = routed.analysis.effect > Effect::Read;
        if writes && self.transaction.is_none() && self.settings.get("default_transaction_read_only") == Some("on") {
            // The database shall refuse it as it would.
            self.begin_implicitly();
        }
        if self.transaction.is_some() && !self.runs_outside(routed) {
            return self.begin(routed).await;
        }
        match routed.analysis.effect {
            Effect::Nothing | Effect::Session | Effect::Read => self.autocommit_read(routed).await,
            Effect::LockingRead | Effect::Write | Effect::Ddl | Effect::Maintenance => self.one_shot(routed).await,
        }
    }

    /// Whether an exchange of a transaction that holds nothing yet can run as an autocommit read.
    fn runs_outside(&self, routed: &Routed<'_>) -> bool {
        let analysis = routed.analysis;
        let Some(transaction) = &self.transaction else {
            return true;
        };
        if routed.kind == Kind::Stateful || analysis.needs_transaction || analysis.needs_clock {
            return false;
        }
        match analysis.effect {
            Effect::Nothing | Effect::Session => true,
            Effect::Read => transaction.reads_outside(),
            _ => false,
        }
    }

    async fn order(&self, operation: &Operation, rows: Rows, cancellable: bool) -> Result<Voted, Failure> {
        let start = Instant::now();
        let cancel = cancellable.then_some(&*self.cancel);
        let voted = self.shared.client.order(operation, rows, cancel).await;
        self.shared.metrics.stage(Stage::Order, start.elapsed());
        voted
    }

    async fn ask(&self, question: Question, quorum: Quorum, cancellable: bool) -> Result<Voted, Failure> {
        let start = Instant::now();
        let voted = self
            .shared
            .client
            .ask(question, quorum, cancellable.then_some(&*self.cancel))
            .await;
        self.shared.metrics.stage(Stage::Direct, start.elapsed());
        voted
    }

    async fn one_shot(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        let operation = Operation {
            context: self.context().decoded.clone(),
            footprint: routed.analysis.footprint.clone(),
            nonce: rand::random(),
            work: Work::OneShot {
                exchange: routed.encoded.clone(),
            },
        };
        match self.order(&operation, routed.rows(), false).await {
            Ok(voted) => Ok(voted.result),
            Err(Failure::NoProgress) => Err(Failure::OutcomeUnknown),
            Err(failure) => Err(failure),
        }
    }

    async fn autocommit_read(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        let context = self.context();
        if !routed.analysis.needs_clock && is_narrow(&routed.analysis.footprint) {
            let question = Question {
                context: context.encoded.clone(),
                transaction: None,
                exchange: routed.encoded.clone(),
                rows: routed.rows(),
            };
            match self.ask(question, self.read_quorum(), true).await {
                Err(Failure::Undecided) => {}
                voted => return voted.map(|voted| voted.result),
            }
        }
        let work = Work::Read {
            transaction: None,
            writes_before: 0,
            exchange: routed.encoded.clone(),
        };
        let footprint = routed.analysis.footprint.clone();
        let operation = Operation {
            context: context.decoded.clone(),
            footprint,
            nonce: rand::random(),
            work,
        };
        self.order(&operation, routed.rows(), true)
            .await
            .map(|voted| voted.result)
    }

    fn read_quorum(&self) -> Quorum {
        match self.settings.get(READS) {
            Some("session") => Quorum::Session(self.shared.client.acknowledged()),
            _ => Quorum::All,
        }
    }

    /// Opens the transaction on the voters, with this exchange as its first.
    async fn begin(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        let id = TransactionId {
            client: self.shared.client.id().0,
            session: self.id,
            number: self.next_transaction,
        };
        self.next_transaction += 1;
        let Some(transaction) = &self.transaction else {
            return Err(Failure::Unavailable);
        };
        let context = Context::new(self.id, &self.role, &self.database, &transaction.settings_before);
        let isolation = transaction.voters_isolation();
        let snapshot = isolation == Isolation::RepeatableRead;
        // A plain read on a snapshot locks nothing.
        let footprint = match snapshot && routed.analysis.effect <= Effect::Read {
            true => Footprint::empty(),
            false => lock_footprint(routed.analysis, transaction.locks_reads()),
        };
        let mut exchanges = transaction.deferred.clone();
        exchanges.push(routed.encoded.clone());
        let work = Work::Begin {
            transaction: id,
            isolation,
            read_only: transaction.read_only,
            live: u64::MAX,
            exchanges,
        };
        let operation = Operation {
            context: context.decoded.clone(),
            footprint: footprint.clone(),
            nonce: rand::random(),
            work,
        };
        let voted = self.order(&operation, routed.rows(), true).await;
        let Work::Begin { exchanges, .. } = operation.work else {
            return Err(Failure::Unavailable);
        };
        let held = footprint;
        match voted {
            Ok(voted) => {
                let mut begun = Begun::new(id, context, held, snapshot, voted.order, &exchanges);
                begun.note(&voted);
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = Some(begun);
                    transaction.deferred.clear();
                }
                Ok(voted.result)
            }
            // The voters have undone it, alike.
            Err(failure @ Failure::Refused(_)) => Err(failure),
            Err(failure) => {
                let begun = Begun::new(id, context, held, snapshot, Order(0), &exchanges);
                self.abort_later(begun);
                self.doom();
                Err(failure)
            }
        }
    }

    /// A statement of a transaction that is open on the voters.
    async fn within(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        let effect = routed.analysis.effect;
        let Some(transaction) = &self.transaction else {
            return Err(Failure::Unavailable);
        };
        let Some(begun) = &transaction.begun else {
            return Err(Failure::Unavailable);
        };
        let locks_reads = transaction.locks_reads();
        let footprint = lock_footprint(routed.analysis, locks_reads);
        let only_reads = effect <= Effect::Read;
        let covered = footprint.is_empty() || begun.held.covers(&footprint) || (begun.snapshot && only_reads);
        if only_reads && routed.kind == Kind::Plain && (covered || !locks_reads) {
            let quorum = Quorum::Locked(begun.preference);
            return self.read_within(routed, covered.then_some(quorum)).await;
        }
        let result = if covered && begun.has_room(routed.encoded.len()) {
            self.write_directly(routed).await
        } else {
            self.extend(routed, footprint).await
        };
        if result.is_err() {
            // Whether it ran is not known, or the voters have given the whole transaction up.
            self.doom();
        }
        result
    }

    async fn read_within(&mut self, routed: &Routed<'_>, locked: Option<Quorum>) -> Result<ExchangeResult, Failure> {
        let Some(begun) = self.begun() else {
            return Err(Failure::Unavailable);
        };
        let (context, id, count) = (Arc::clone(&begun.context), begun.id, begun.writes_before());
        let question = Question {
            context: context.encoded.clone(),
            transaction: Some(begun.place(false)),
            exchange: routed.encoded.clone(),
            rows: routed.rows(),
        };
        match self.ask(question, locked.unwrap_or(Quorum::All), true).await {
            Ok(voted) => return Ok(self.note_voters(voted)),
            Err(Failure::Undecided | Failure::Unavailable) => {}
            Err(failure) => return Err(failure),
        }
        let work = Work::Read {
            transaction: Some(id),
            writes_before: count,
            exchange: routed.encoded.clone(),
        };
        let footprint = routed.analysis.footprint.clone();
        let operation = Operation {
            context: context.decoded.clone(),
            footprint,
            nonce: rand::random(),
            work,
        };
        let voted = self.order(&operation, routed.rows(), true).await?;
        Ok(self.note_voters(voted))
    }

    async fn write_directly(&mut self, routed: &Routed<'_>) -> Result<ExchangeResult, Failure> {
        let Some(begun) = self.begun() else {
            return Err(Failure::Unavailable);
        };
        let question = Question {
            context: begun.context.encoded.clone(),
            transaction: Some(begun.place(true)),
            exchange: routed.encoded.clone(),
            rows: routed.rows(),
        };
        begun.wrote_directly(routed.encoded.clone());
        let voted = self.ask(question, Quorum::Everyone, false).await?;
        Ok(self.note_voters(voted))
    }

    async fn extend(&mut self, routed: &Routed<'_>, footprint: Footprint) -> Result<ExchangeResult, Failure> {
        let Some(begun) = self.begun() else {
            return Err(Failure::Unavailable);
        };
        let work = Work::Extend {
            transaction: begun.id,
            writes_before: begun.writes_before(),
            exchange: routed.encoded.clone(),
        };
        let operation = Operation {
            context: begun.context.decoded.clone(),
            footprint,
            nonce: rand::random(),
            work,
        };
        let voted = self.order(&operation, routed.rows(), true).await?;
        if let Some(begun) = self.begun() {
            begun.extended(voted.order, &routed.encoded, &operation.footprint);
        }
        Ok(self.note_voters(voted))
    }

    pub(super) fn begun(&mut self) -> Option<&mut Begun> {
        self.transaction.as_mut()?.begun.as_mut()
    }

    /// Whether a transaction is open on the voters.
    pub(super) fn is_begun(&self) -> bool {
        self.transaction
            .as_ref()
            .is_some_and(|transaction| transaction.begun.is_some())
    }

    fn note_voters(&mut self, voted: Voted) -> ExchangeResult {
        if let Some(begun) = self.begun() {
            begun.note(&voted);
        }
        voted.result
    }

    /// The transaction is lost as a whole: the voters are told, and only ROLLBACK is left to the application.
    pub(super) fn doom(&mut self) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        transaction.failed = true;
        transaction.doomed = true;
        if let Some(begun) = transaction.begun.take() {
            self.abort_later(begun);
        }
    }

    /// Has a transaction aborted, without waiting for it.
    pub(super) fn abort_later(&self, begun: Begun) {
        let context = begun.context.decoded.clone();
        let (transaction, _, footprint) = begun.into_writes();
        let operation = Operation {
            context,
            footprint,
            nonce: rand::random(),
            work: Work::Abort { transaction },
        };
        let client = Arc::clone(&self.shared.client);
        tokio::spawn(async move {
            if let Err(failure) = client
                .order_within(&operation, Rows::Unordered, None, ABORT_LIMIT)
                .await
            {
                tracing::debug!(?failure, "an abort got no answer");
            }
        });
    }
}

/// Whether all voters' equal answers prove a state: at most one resource is read.
fn is_narrow(footprint: &Footprint) -> bool {
    match footprint.entries() {
        [] => true,
        [(resource, _)] => *resource != Resource::Everything,
        _ => false,
    }
}

/// What an exchange locks: exclusively also what it only reads, when reads lock.
fn lock_footprint(analysis: &ExchangeAnalysis, locks_reads: bool) -> Footprint {
    if locks_reads && analysis.effect == Effect::Read {
        return exclusive(&analysis.footprint);
    }
    analysis.footprint.clone()
}
