//! How an exchange reaches the voters (`docs/design.md#statements`): ordered, or directly.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sql::analysis::ExchangeAnalysis;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Isolation, Operation, TransactionId, Work};
use sql::statement::{Effect, StatementClass};

use super::Session;
use super::opening::Opening;
use super::settings::READS;
use super::transaction::{Deferred, exclusive};
use crate::client::{Failure, Question, Quorum, Rows, Statement, Voted, VotedResult};
use crate::measures::Stage;
use crate::wire::scan;

/// Transactions of one session that are open, or whose Abort nobody has acknowledged yet.
pub(super) const UNENDED_MAX: usize = 8;
/// Refused by voters: a statement that must run in a transaction was ordered by itself.
const NEEDS_TRANSACTION: &str = "BF006";
/// Refused by voters: a one-shot that waited for its locks was taken back.
const CANCELED: &str = "57014";
/// An exchange of a transaction that is larger, in bytes, is kept by the voters' machines outside the order.
pub(super) const INLINE_EXCHANGE_BYTES_MAX: usize = 256 << 10;

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
    /// Whether it is a part of a COPY that is under way.
    pub(super) copies: bool,
    /// Whether it runs several statements, each on a snapshot of its own unless the whole is ordered.
    pub(super) several: bool,
    pub(super) analysis: &'analysis ExchangeAnalysis,
    pub(super) kind: Kind,
}

impl Routed<'_> {
    /// What the order of its rows means. A portal that goes on may be of a statement with ORDER BY.
    pub(super) fn rows(&self) -> Rows {
        match self.analysis.orders_rows || self.kind == Kind::Stateful {
            true => Rows::Ordered,
            false => Rows::Unordered,
        }
    }
}

impl Session {
    pub(super) async fn route(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        if self.is_begun() {
            return self.within(routed).await;
        }
        if routed.kind == Kind::Apart {
            return self.autocommit_write(routed).await;
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
            Effect::LockingRead | Effect::Write | Effect::Ddl | Effect::Maintenance => {
                self.autocommit_write(routed).await
            }
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

    pub(super) async fn order(&self, operation: &Operation, rows: Rows, cancellable: bool) -> Result<Voted, Failure> {
        let start = Instant::now();
        let cancel = cancellable.then_some(&*self.cancel);
        let voted = self.shared.client.order(operation, rows, cancel).await;
        self.shared.metrics.stage(Stage::Order, start.elapsed());
        voted
    }

    /// Has a statement of the open transaction ordered.
    async fn order_within(&mut self, operation: &Operation, rows: Rows) -> Result<Voted, Failure> {
        let start = Instant::now();
        let (shared, cancel) = (Arc::clone(&self.shared), Arc::clone(&self.cancel));
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        let voted = shared
            .client
            .order_live(operation, rows, Some(&cancel), &mut begun.live)
            .await;
        shared.metrics.stage(Stage::Order, start.elapsed());
        voted
    }

    async fn ask(&self, question: Question, quorum: Quorum) -> Result<Voted, Failure> {
        let start = Instant::now();
        let voted = self.shared.client.ask(question, quorum, Some(&self.cancel)).await;
        self.shared.metrics.stage(Stage::Direct, start.elapsed());
        voted
    }

    /// Asks the live voters of the open transaction.
    async fn ask_within(
        &mut self,
        routed: &Routed<'_>,
        exchange: Bytes,
        statement: Statement,
    ) -> Result<Voted, Failure> {
        let start = Instant::now();
        let (shared, cancel) = (Arc::clone(&self.shared), Arc::clone(&self.cancel));
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        let question = Question {
            context: begun.context.encoded.clone(),
            exchange,
            rows: routed.rows(),
        };
        let voted = shared
            .client
            .ask_within(&mut begun.live, question, statement, Some(&cancel))
            .await;
        shared.metrics.stage(Stage::Direct, start.elapsed());
        voted
    }

    /// An autocommit statement that writes: ordered once if it is short, else a transaction of its own, which commits only
    /// what f+1 voters give their words for.
    async fn autocommit_write(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let maintenance = routed.analysis.effect == Effect::Maintenance;
        if maintenance || (routed.analysis.short && !is_large(&routed.encoded)) {
            match self.one_shot(routed).await {
                // The voters know a newer catalog, by which it is not short.
                Err(Failure::Refused(error)) if error.sqlstate == NEEDS_TRANSACTION => {}
                outcome => return outcome,
            }
        }
        self.certified(routed).await
    }

    async fn one_shot(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let operation = Operation {
            context: self.context().decoded.clone(),
            footprint: routed.analysis.footprint.clone(),
            nonce: rand::random(),
            work: Work::OneShot {
                exchange: routed.encoded.clone(),
            },
        };
        match self.order(&operation, routed.rows(), true).await {
            Ok(voted) => {
                self.committed_at = Some(voted.order.0);
                Ok(voted.result)
            }
            Err(Failure::NoProgress) => Err(Failure::OutcomeUnknown),
            Err(Failure::Refused(error)) if error.sqlstate == CANCELED => Err(Failure::Cancelled),
            Err(failure) => Err(failure),
        }
    }

    /// Runs an exchange in a transaction of its own; its result is the application's once that is committed.
    async fn certified(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let numbers_objects = routed.numbers_objects();
        let first = match numbers_objects {
            true => self.nothing(),
            false => Deferred {
                encoded: routed.encoded.clone(),
                short: routed.analysis.short,
            },
        };
        let opening = Opening {
            context: self.context(),
            isolation: Isolation::ReadCommitted,
            read_only: false,
            footprint: routed.analysis.footprint.clone(),
            exchanges: vec![first],
            rows: routed.rows(),
            at_commit: false,
        };
        let (mut begun, mut result) = self.open(opening).await?;
        if numbers_objects {
            match self.run_numbered(&mut begun, routed).await {
                Ok(ran) => result = ran,
                Err(failure) => {
                    self.abort_later(begun);
                    return Err(failure);
                }
            }
        }
        begun.wrote = routed.analysis.effect > Effect::LockingRead;
        if scan(&result.messages).failed || result.status == b'E' {
            self.abort_later(begun);
        } else {
            let writes = begun.wrote;
            let notices = self.finish(begun, routed.analysis.effect == Effect::Ddl).await?;
            if let Some(before) = &mut result.before {
                before.committed = writes;
            }
            if !notices.is_empty() {
                result.messages = [result.messages, notices].concat().into();
            }
        }
        result.status = b'I';
        Ok(result)
    }

    async fn autocommit_read(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let context = self.context();
        let quorum = self.read_quorum();
        // A voter that is late, or has not executed the last write, would have all of it run again.
        let risks_more = quorum == Quorum::All && copies_out(routed.analysis);
        let lock_rows = self.catalog.current().analyzer.schema().rules().lock_rows;
        let narrow = !routed.several && routed.analysis.footprint.is_serial(lock_rows);
        if !routed.analysis.needs_clock && narrow && !risks_more {
            let question = Question {
                context: context.encoded.clone(),
                exchange: routed.encoded.clone(),
                rows: routed.rows(),
            };
            match self.ask(question, quorum).await {
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

    /// What a transaction lists for an encoded exchange: a large one's digest, once the voters' machines keep it.
    pub(super) async fn listable(&self, transaction: TransactionId, encoded: &Bytes) -> Result<Bytes, Failure> {
        if !is_large(encoded) {
            return Ok(encoded.clone());
        }
        let start = Instant::now();
        let stored = tokio::select! {
            stored = self.shared.client.store(transaction, encoded.clone()) => stored?,
            () = self.cancel.wait() => return Err(Failure::Cancelled),
        };
        self.shared.metrics.stage(Stage::Direct, start.elapsed());
        Ok(stored.encode())
    }

    /// A statement of a transaction that is open on the voters.
    pub(super) async fn within(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        if routed.numbers_objects() {
            self.number_alike().await?;
        }
        let analysis = routed.analysis;
        let Some(transaction) = &self.transaction else {
            return Err(Failure::Unavailable);
        };
        let Some(begun) = &transaction.begun else {
            return Err(Failure::Unavailable);
        };
        let locks_reads = transaction.locks_reads();
        let footprint = lock_footprint(analysis, locks_reads);
        let plain = analysis.effect <= Effect::Read && routed.kind == Kind::Plain;
        // With answers at COMMIT one voter alone answers what the transaction holds: its reads too are listed, for f more voters to certify.
        let plain_read = plain && !begun.at_commit;
        let covered = footprint.is_empty() || begun.held.covers(&footprint) || (begun.snapshot && plain_read);
        let bound = analysis.needs_transaction || analysis.needs_clock || begun.held.overlaps(&footprint);
        let result = match (plain_read, covered) {
            (true, true) => self.read_within(routed).await,
            // No lock protects it: as outside the transaction, unless it may depend on what that wrote.
            (_, false) if plain && transaction.reads_outside() && !bound => return self.autocommit_read(routed).await,
            (true, false) if !locks_reads => self.ordered_read_within(routed).await,
            (_, true) if is_large(&routed.encoded) || begun.has_room(routed.encoded.len()) => {
                self.write_directly(routed).await
            }
            _ => self.extend(routed, footprint).await,
        };
        let result = match result {
            Err(Failure::Unavailable) => Err(Failure::transaction_lost()),
            result => result,
        };
        match &result {
            Ok(_) => {}
            Err(Failure::Cancelled) if !routed.copies => self.cancel_within().await,
            Err(_) if plain_read && (covered || !locks_reads) => {}
            // Whether it ran is not known, or the voters have given the whole transaction up.
            Err(_) => self.doom(),
        }
        result
    }

    /// The statement that is on its way is not listed; the transaction has failed, and can go back to a savepoint.
    pub(super) async fn cancel_within(&mut self) {
        let client = Arc::clone(&self.shared.client);
        if let Some(begun) = self.begun() {
            // Some servers may have numbered what it made, and others not.
            begun.numbers_alike = false;
            client.cancel(&mut begun.live).await;
        }
    }

    pub(super) async fn read_within(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        match self.ask_within(routed, routed.encoded.clone(), Statement::Read).await {
            Err(Failure::Undecided | Failure::Unavailable) => self.ordered_read_within(routed).await,
            voted => voted.map(|voted| voted.result),
        }
    }

    async fn ordered_read_within(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        let operation = Operation {
            context: begun.context.decoded.clone(),
            footprint: routed.analysis.footprint.clone(),
            nonce: rand::random(),
            work: Work::Read {
                transaction: Some(begun.id),
                writes_before: begun.live.count(),
                exchange: routed.encoded.clone(),
            },
        };
        let voted = self.order_within(&operation, routed.rows()).await?;
        Ok(voted.result)
    }

    async fn write_directly(&mut self, routed: &Routed<'_>) -> Result<VotedResult, Failure> {
        let id = self.begun().ok_or(Failure::Unavailable)?.id;
        let listed = self.listable(id, &routed.encoded).await?;
        let voted = self.ask_within(routed, listed.clone(), Statement::Write).await?;
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        begun.all_short &= routed.analysis.short && !is_large(&routed.encoded);
        begun.wrote |= writes(routed);
        begun.wrote_directly(listed, &voted.result);
        Ok(voted.result)
    }

    async fn extend(&mut self, routed: &Routed<'_>, footprint: Footprint) -> Result<VotedResult, Failure> {
        let id = self.begun().ok_or(Failure::Unavailable)?.id;
        let listed = self.listable(id, &routed.encoded).await?;
        let result = self.extend_with(listed, footprint, routed.rows()).await?;
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        begun.all_short &= routed.analysis.short && !is_large(&routed.encoded);
        begun.wrote |= writes(routed);
        Ok(result)
    }

    /// Has the open transaction take more, and run what it lists for that.
    pub(super) async fn extend_with(
        &mut self,
        listed: Bytes,
        footprint: Footprint,
        rows: Rows,
    ) -> Result<VotedResult, Failure> {
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        let operation = Operation {
            context: begun.context.decoded.clone(),
            footprint,
            nonce: rand::random(),
            work: Work::Extend {
                transaction: begun.id,
                writes_before: begun.live.count(),
                exchange: listed.clone(),
            },
        };
        let voted = self.order_within(&operation, rows).await?;
        let begun = self.begun().ok_or(Failure::Unavailable)?;
        begun.extended(&voted, &listed, &operation.footprint);
        Ok(voted.result)
    }
}

/// Whether an encoded exchange of a transaction is kept outside the order.
pub(super) fn is_large(encoded: &Bytes) -> bool {
    encoded.len() > INLINE_EXCHANGE_BYTES_MAX
}

/// Whether something that COMMIT lists may have changed data.
pub(super) fn writes(routed: &Routed<'_>) -> bool {
    routed.analysis.effect > Effect::LockingRead || routed.kind == Kind::Stateful
}

/// Whether nobody else runs meanwhile.
pub(super) fn holds_everything(footprint: &Footprint) -> bool {
    footprint.entries().first() == Some(&(Resource::Everything, Mode::Exclusive))
}

/// Whether an exchange is COPY TO STDOUT: an ordered read costs little beside what it gives.
fn copies_out(analysis: &ExchangeAnalysis) -> bool {
    let mut statements = analysis.texts.iter().flat_map(|text| &text.statements);
    statements.any(|statement| statement.class == StatementClass::CopyTo)
}

/// What an exchange locks: exclusively also what it only reads, when reads lock.
pub(super) fn lock_footprint(analysis: &ExchangeAnalysis, locks_reads: bool) -> Footprint {
    if locks_reads && analysis.effect == Effect::Read {
        return exclusive(&analysis.footprint);
    }
    analysis.footprint.clone()
}
