//! Decided orders into the lock table.

use std::sync::Arc;

use borsh::BorshDeserialize;
use ordering::identifiers::ClientId;
use ordering::message::{Outcome, Request};
use sql::footprint::Footprint;
use sql::operation::{Isolation, Operation, SessionContext, TransactionId, TransactionWrite, Work};

use super::{Asker, Fed, OpenTransaction, Owner, Start};
use crate::client_window::Admission;
use crate::lock_table::{Grant, LockRefusal, Node};
use crate::postgres::backend::Record;
use crate::slot::ending::rolled_back;
use crate::slot::{Command, SlotHandle};
use crate::transactions::OrderedTransaction;
use crate::vote::Decided;
use crate::work::{Refused, check_context, is_everything, recorded_home, sequences};

/// The client under which replicas order the Abort of a transaction whose client has gone: f+1 of them must have said so.
pub const REPLICAS_CLIENT: ClientId = ClientId(u32::MAX);

impl Owner<'_> {
    /// Feeds one decided order.
    pub(super) async fn feed(&mut self, decided: Decided) {
        let order = decided.order.0;
        self.last_fed = order;
        self.unfinished.insert(order);
        self.floors.fed(order);
        let group = decided.group;
        let Some(request) = decided.request else {
            return self.finished(order);
        };
        let asker = self.asker(order, &request);
        let known = self.config.client_roles.contains_key(&request.client) || request.client == REPLICAS_CLIENT;
        if !known || self.windows.admit(request.client, request.number, request.floor) != Admission::New {
            metrics::counter!("cloudbft_voter_operations_total", "class" => "duplicate").increment(1);
            return self.finished(order);
        }
        self.outside.reporter.with_store(|store| {
            store.forget_below(request.client, request.floor);
        });
        let operation = match Operation::try_from_slice(&request.operation) {
            Ok(operation) => Arc::new(operation),
            Err(_) => return self.refuse(asker, Refused::new("08P01", "malformed operation")).await,
        };
        let home = operation.footprint.home().home_number();
        if home != request.home || self.votes.group_of(home) != group {
            return self
                .refuse(
                    asker,
                    Refused::new("08P01", "the operation's home is not the one it was routed by"),
                )
                .await;
        }
        let ends = matches!(operation.work, Work::Abort { .. });
        if let Err(refused) = check_context(&self.config, request.client, &operation.context)
            && !ends
        {
            return self.refuse(asker, refused).await;
        }
        let fed = Fed {
            asker,
            time_us: decided.time_us,
            operation: Arc::clone(&operation),
            bytes: request.operation.len(),
        };
        self.fed.insert(order, fed);
        self.feed_operation(asker, &operation, decided.time_us).await;
    }

    fn asker(&self, order: u64, request: &Request) -> Asker {
        let machines = 2 * self.config.faults as u64 + 1;
        Asker {
            client: request.client,
            number: request.number,
            order,
            whole: order % machines + 1 == u64::from(self.config.machine.0),
        }
    }

    async fn feed_operation(&mut self, asker: Asker, operation: &Operation, time_us: u64) {
        let order = asker.order;
        let footprint = &operation.footprint;
        let bytes = self.fed.get(&order).map_or(0, |fed| fed.bytes);
        metrics::counter!("cloudbft_voter_operations_total", "class" => class(&operation.work)).increment(1);
        let foreign = transaction_of(&operation.work).is_some_and(|id| id.client != asker.client.0);
        if foreign && !(asker.client == REPLICAS_CLIENT && matches!(operation.work, Work::Abort { .. })) {
            return self
                .refuse(
                    asker,
                    Refused::new("42501", "the transaction belongs to another client"),
                )
                .await;
        }
        match &operation.work {
            Work::OneShot { .. } => {
                let fed = self.locks.one_shot(order, footprint, bytes);
                self.refuse_unless(asker, fed).await;
            }
            Work::Read { .. } => self.granted(Grant { order, granted: order }).await,
            Work::Begin {
                transaction,
                isolation,
                read_only,
                exchanges,
                ..
            } => {
                let context = &operation.context;
                let ordered = (order, time_us, *isolation, *read_only, exchanges.clone());
                self.feed_begin(
                    asker,
                    *transaction,
                    (context, operation.nonce),
                    footprint,
                    ordered,
                    bytes,
                )
                .await;
            }
            Work::Extend {
                transaction, exchange, ..
            } => self.feed_extend(asker, *transaction, footprint, exchange.clone()).await,
            Work::Commit {
                transaction, writes, ..
            } => self.feed_end(asker, *transaction, Some(writes)).await,
            Work::Abort { transaction } => self.feed_end(asker, *transaction, None).await,
            Work::Abandon { .. } | Work::Nothing => self.finished(order),
        }
    }

    async fn refuse_unless(&mut self, asker: Asker, fed: Result<(), LockRefusal>) {
        if let Err(refusal) = fed {
            self.refuse(asker, refusal).await;
        }
    }

    async fn feed_begin(
        &mut self,
        asker: Asker,
        id: TransactionId,
        (context, nonce): (&SessionContext, [u8; 16]),
        footprint: &Footprint,
        (order, time_us, isolation, read_only, exchanges): (u64, u64, Isolation, bool, Vec<bytes::Bytes>),
        bytes: usize,
    ) {
        if let Err(refusal) = self.locks.begin(order, id, footprint, bytes) {
            return self.refuse(asker, refusal).await;
        }
        self.floors.begun(order);
        let ordered = OrderedTransaction::new(
            asker.client,
            (order, time_us),
            isolation,
            read_only,
            context.clone(),
            nonce,
            exchanges,
        );
        self.transactions.insert(id, OpenTransaction { ordered, slot: None });
    }

    async fn feed_extend(&mut self, asker: Asker, id: TransactionId, footprint: &Footprint, exchange: bytes::Bytes) {
        if let Some(open) = self.transactions.get_mut(&id)
            && let Err(refused) = open
                .ordered
                .extend(asker.order, exchange, self.config.limits.transaction_bytes_max)
        {
            return self.abort_refused(asker, id, asker.order, refused).await;
        }
        match self.locks.extend(asker.order, id, footprint) {
            Ok(()) => {}
            Err(LockRefusal::Deadlock) => {
                self.abort_refused(asker, id, asker.order, LockRefusal::Deadlock.into())
                    .await
            }
            Err(refusal) => self.refuse(asker, refusal).await,
        }
    }

    /// Refuses an operation of a transaction, which ends with it: at `at`, on all voters alike. The operation's order stands
    /// for the rollback in Postgres.
    pub(super) async fn abort_refused(&mut self, asker: Asker, id: TransactionId, at: u64, refused: Refused) {
        asker.answer(&self.outside.reporter, refused.into()).await;
        self.end_transaction(at, asker.order, id, None).await;
    }

    /// A Commit (with its list) or an Abort.
    async fn feed_end(&mut self, asker: Asker, id: TransactionId, writes: Option<&Vec<TransactionWrite>>) {
        let order = asker.order;
        let Some(writes) = writes else {
            return self.end_transaction(order, order, id, Some((asker, None))).await;
        };
        let listed = match self.transactions.get(&id) {
            Some(open) => open.ordered.listed(writes),
            None => Ok(Vec::new()),
        };
        match listed {
            Ok(listed) => {
                self.end_transaction(order, order, id, Some((asker, Some(listed))))
                    .await
            }
            Err(refused) => self.abort_refused(asker, id, order, refused).await,
        }
    }

    /// Ends a transaction at `at`: releases its locks, and commits or rolls back in Postgres as the work of order `order`.
    /// `asked`: who asked for it, and for a Commit the writes that it lists.
    pub(super) async fn end_transaction(
        &mut self,
        at: u64,
        order: u64,
        id: TransactionId,
        asked: Option<(Asker, Option<Vec<bytes::Bytes>>)>,
    ) {
        let ended = self.locks.end(at, id);
        let waited = ended.cancelled.filter(|cancelled| *cancelled != order);
        if let Some(asker) = waited
            .and_then(|cancelled| self.fed.get(&cancelled))
            .map(|fed| fed.asker)
        {
            self.refuse(
                asker,
                Refused::new("25P02", "the transaction ended before this could run"),
            )
            .await;
        }
        let open = self.transactions.remove(&id);
        if let Some(open) = &open {
            self.floors.ending(open.ordered.began, order);
        }
        let settled = ended.held.is_some() && open.is_none();
        let (Some(held), Some(OpenTransaction { slot: Some(slot), .. })) = (ended.held, open) else {
            return self.ended_without_work(order, asked, settled).await;
        };
        let command = match asked {
            Some((asker, Some(listed))) => match self.commit_command(asker, listed, &held, waited.is_some()) {
                Some(command) => command,
                None => return self.already_committed(asker, slot, id, &held).await,
            },
            Some((asker, None)) => Command::Abort(order, Some(asker)),
            None => Command::Abort(order, None),
        };
        self.run_end(order, id, &held, slot, command);
    }

    fn run_end(&mut self, order: u64, id: TransactionId, held: &Footprint, slot: SlotHandle, command: Command) {
        slot.end();
        if is_everything(held) && matches!(command, Command::Commit(..)) {
            self.stalled_by = Some(order);
        }
        let start = Start::Slot(slot, Box::new(command));
        if self.locks.run(order, Node::End { transaction: id }, held) {
            self.start_work(start);
        } else {
            self.blocked.insert(order, start);
        }
    }

    /// The Commit as the transaction's task runs it; `None` when it survived a crash and must not run again.
    fn commit_command(
        &self,
        asker: Asker,
        listed: Vec<bytes::Bytes>,
        held: &Footprint,
        cancelled: bool,
    ) -> Option<Command> {
        if cancelled {
            // An Extend still waited: the client broke the protocol, and nothing of the transaction happens.
            return Some(Command::Abort(asker.order, Some(asker)));
        }
        let position = Grant {
            order: 0,
            granted: asker.order,
        }
        .position();
        let applied = recorded_home(held).map(|home| (home, position));
        if applied
            .as_ref()
            .is_some_and(|(home, position)| self.survived(home, *position))
        {
            return None;
        }
        let record = Record {
            applied,
            sequences: sequences(held),
        };
        Some(Command::Commit(asker, listed, record, held.clone()))
    }

    async fn already_committed(&mut self, asker: Asker, slot: SlotHandle, id: TransactionId, held: &Footprint) {
        asker.answer(&self.outside.reporter, Outcome::Unavailable).await;
        self.run_end(asker.order, id, held, slot, Command::Abort(asker.order, None));
    }

    /// The transaction never ran here: unknown, refused, cancelled, or over before this life of the voter began.
    async fn ended_without_work(
        &mut self,
        order: u64,
        asked: Option<(Asker, Option<Vec<bytes::Bytes>>)>,
        settled: bool,
    ) {
        match asked {
            Some((asker, _)) if settled => self.settle(asker, Outcome::Unavailable).await,
            Some((asker, Some(_))) => self.refuse(asker, LockRefusal::NoTransaction).await,
            Some((asker, None)) => self.settle(asker, rolled_back()).await,
            None => self.finished(order),
        }
    }
}

fn transaction_of(work: &Work) -> Option<TransactionId> {
    match work {
        Work::OneShot { .. } | Work::Abandon { .. } | Work::Nothing => None,
        Work::Read { transaction, .. } => *transaction,
        Work::Begin { transaction, .. }
        | Work::Extend { transaction, .. }
        | Work::Commit { transaction, .. }
        | Work::Abort { transaction } => Some(*transaction),
    }
}

fn class(work: &Work) -> &'static str {
    match work {
        Work::OneShot { .. } => "one_shot",
        Work::Read { .. } => "read",
        Work::Begin { .. } => "begin",
        Work::Extend { .. } => "extend",
        Work::Commit { .. } => "commit",
        Work::Abort { .. } => "abort",
        Work::Abandon { .. } => "abandon",
        Work::Nothing => "nothing",
    }
}
