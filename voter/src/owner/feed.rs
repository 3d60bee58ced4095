//! Decided orders into the lock table.

use std::sync::Arc;

use borsh::BorshDeserialize;
use ordering::identifiers::administrator;
use ordering::message::Request;
use sql::footprint::Footprint;
use sql::operation::{Operation, TransactionId, TransactionWrite, Word, Work};

use super::{Asker, Fed, OpenTransaction, Owner, Start};
use crate::audience::Audience;
use crate::client_window::Admission;
use crate::ending::{Due, Electorate, End, OrderedCommit};
use crate::lock_table::{BeginKind, Grant, LockRefusal, Node, Position};
use crate::outcome::Outcome;
use crate::postgres::backend::Record;
use crate::slot::ending::{completed, rolled_back};
use crate::slot::{Command, Commit, Finish, SlotHandle};
use crate::transactions::{Begin, OrderedTransaction};
use crate::vote::Decided;
use crate::work::{Refused, check_context, is_everything, sequences};

/// What ended a transaction.
pub(super) enum Asked {
    /// Its client's Commit of a list.
    Commit(Asker, Vec<bytes::Bytes>, Vec<Word>),
    /// Its client's Abort.
    Abort(Asker),
    /// Nobody: the voters refuse its Commit, alike.
    Voters,
}

impl Owner<'_> {
    /// Feeds one decided order.
    pub(super) async fn feed(&mut self, decided: Decided) {
        let order = decided.order.0;
        self.last_fed = order;
        self.unfinished.insert(order);
        self.floors.fed(order);
        let Some(request) = decided.request else {
            return self.finished(order);
        };
        if request.client == administrator() {
            // Which groups decide from here on is the replicas' affair: each of them checks that before it commits.
            metrics::counter!("cloudbft_voter_operations_total", "class" => "assignment").increment(1);
            return self.finished(order);
        }
        let asker = self.asker(order, &request);
        let node = self.config.node_clients.get(&request.client).copied();
        let known = self.config.client_roles.contains_key(&request.client) || node.is_some();
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
        // That the group that decided is in charge of this home, the replicas of the group have checked.
        if home != request.home {
            return self
                .refuse(
                    asker,
                    Refused::new("08P01", "the operation's home is not the one it was routed by"),
                )
                .await;
        }
        if let Some(node) = node {
            return self.feed_node(order, node, &operation).await;
        }
        self.heard(request.client);
        self.started(request.client, request.number);
        // These run nothing, under no context.
        let ends = matches!(operation.work, Work::Abort { .. } | Work::Cancel { .. });
        if let Err(refused) = check_context(&self.config, request.client, &operation.context)
            && !ends
        {
            return self.refuse(asker, refused).await;
        }
        let asker = Asker {
            whole: self.sends_whole(order, &operation.work).unwrap_or(asker.whole),
            ..asker
        };
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

    /// Whether this voter sends the whole result of a statement of a transaction: one of the live voters does, in turns.
    fn sends_whole(&self, order: u64, work: &Work) -> Option<bool> {
        let live = match work {
            Work::Begin { live, .. } => *live,
            Work::Extend { transaction, .. } => self.transactions.get(transaction)?.ordered.live,
            _ => return None,
        };
        let voters = self.config.voter_keys.keys().map(|machine| machine.0);
        let live: Vec<u8> = voters
            .filter(|machine| live.checked_shr(u32::from(*machine)).is_some_and(|mask| mask & 1 == 1))
            .collect();
        let picked = usize::try_from(order).unwrap_or(0).checked_rem(live.len())?;
        Some(live.get(picked) == Some(&self.config.machine.0))
    }

    async fn feed_operation(&mut self, asker: Asker, operation: &Operation, time_us: u64) {
        let order = asker.order;
        let footprint = &operation.footprint;
        let bytes = self.fed.get(&order).map_or(0, |fed| fed.bytes);
        metrics::counter!("cloudbft_voter_operations_total", "class" => class(&operation.work)).increment(1);
        if operation
            .work
            .transaction()
            .is_some_and(|id| id.client != asker.client.0)
        {
            return self
                .refuse(
                    asker,
                    Refused::new("42501", "the transaction belongs to another client"),
                )
                .await;
        }
        match &operation.work {
            Work::OneShot { .. } => {
                let fed = self.locks.one_shot_of(operation.context.id(), order, footprint, bytes);
                if fed.is_ok() {
                    self.waiting.insert(order, (asker.client, asker.number));
                }
                self.refuse_unless(asker, fed).await;
            }
            Work::Cancel { request } => self.feed_cancel(asker, *request).await,
            Work::Catalog { since } => self.answer_catalog(asker, *since).await,
            Work::Listen { channels } => self.feed_listen(asker, channels).await,
            Work::Advisory(advisory) => self.feed_advisory(asker, operation.context.id(), advisory).await,
            Work::Read { .. } => {
                let grant = Grant {
                    order,
                    granted: order,
                    written_since: false,
                };
                self.granted(grant).await
            }
            Work::Begin {
                transaction,
                isolation,
                read_only,
                live,
                exchanges,
            } => {
                let begin = Begin {
                    id: *transaction,
                    client: asker.client,
                    order,
                    time_us,
                    isolation: *isolation,
                    read_only: *read_only,
                    live: *live,
                    context: operation.context.clone(),
                    nonce: operation.nonce,
                    exchanges: exchanges.clone(),
                };
                self.feed_begin(asker, begin, footprint, bytes).await;
            }
            Work::Extend {
                transaction, exchange, ..
            } => self.feed_extend(asker, *transaction, footprint, exchange.clone()).await,
            Work::Commit {
                transaction,
                writes,
                words,
            } => self.feed_commit(asker, *transaction, writes, words).await,
            Work::Abort { transaction } => self.end_transaction(order, *transaction, Asked::Abort(asker)).await,
            Work::Abandon { .. } | Work::Nothing => {
                let refused = Refused::new("42501", "only nodes order such an operation");
                self.refuse(asker, refused).await;
            }
        }
    }

    /// Takes back a one-shot that waits for its locks: at this order it is known everywhere not to run.
    async fn feed_cancel(&mut self, asker: Asker, request: u64) {
        let wanted = (asker.client, request);
        let found = self.waiting.iter().find(|(_, asked)| **asked == wanted);
        if let Some(order) = found.map(|(order, _)| *order)
            && self.locks.cancel(asker.order, order)
        {
            self.waiting.remove(&order);
            // Without its operation it was over before this life began.
            if let Some(cancelled) = self.fed.get(&order).map(|fed| fed.asker) {
                let refused = Refused::new("57014", "canceling statement due to user request");
                self.refuse(cancelled, refused).await;
            }
        }
        self.settle(asker, rolled_back()).await;
    }

    /// Whatever is granted from this order on, this client's sessions are told what it notifies on these channels.
    async fn feed_listen(&mut self, asker: Asker, channels: &[String]) {
        match Arc::make_mut(&mut self.listeners).listen(asker.client, channels) {
            Ok(()) => self.settle(asker, completed("LISTEN")).await,
            Err(refused) => self.refuse(asker, refused).await,
        }
    }

    /// What a transaction that is granted now is to tell of what it notifies.
    pub(super) fn audience(&self, granted: u64, order: u64) -> Audience {
        Audience::new(Position { granted, order }, &self.listeners)
    }

    async fn refuse_unless(&mut self, asker: Asker, fed: Result<(), LockRefusal>) {
        if let Err(refusal) = fed {
            self.refuse(asker, refusal).await;
        }
    }

    async fn feed_begin(&mut self, asker: Asker, begin: Begin, footprint: &Footprint, bytes: usize) {
        let (order, id) = (begin.order, begin.id);
        let ordered = OrderedTransaction::new(begin);
        let kind = BeginKind {
            snapshot: ordered.reads_snapshot(),
        };
        if let Err(refusal) = self.locks.begin(order, id, footprint, kind, bytes) {
            return self.refuse(asker, refusal).await;
        }
        self.floors.begun(order);
        self.transactions.insert(id, OpenTransaction::new(ordered));
    }

    /// An Extend. Whatever becomes of it, the transaction holds its locks to its ordered end.
    async fn feed_extend(&mut self, asker: Asker, id: TransactionId, footprint: &Footprint, exchange: bytes::Bytes) {
        if let Some(open) = self.transactions.get_mut(&id)
            && let Err(refused) =
                open.ordered
                    .extend(asker.order, exchange, self.config.limits.transaction_ordered_bytes_max)
        {
            return self.refuse(asker, refused).await;
        }
        let (replaced, waits) = self.locks.extend(asker.order, id, footprint);
        if let Some(replaced) = replaced.and_then(|order| self.fed.get(&order)).map(|fed| fed.asker) {
            let refused = Refused::new("57014", "canceling statement due to user request");
            self.refuse(replaced, refused).await;
        }
        self.refuse_unless(asker, waits).await;
    }

    async fn feed_commit(&mut self, asker: Asker, id: TransactionId, writes: &[TransactionWrite], words: &[Word]) {
        let bytes_max = self.config.limits.transaction_bytes_max;
        let listed = match self.transactions.get(&id) {
            Some(open) => open.ordered.committed(writes, bytes_max),
            None => Ok(Vec::new()),
        };
        match listed {
            Ok(listed) => {
                let asked = Asked::Commit(asker, listed, words.to_vec());
                self.end_transaction(asker.order, id, asked).await
            }
            Err(refused) => {
                asker.answer(&self.outside.reporter, refused.into()).await;
                self.end_transaction(asker.order, id, Asked::Voters).await;
            }
        }
    }

    /// Takes an open transaction out of all tables at an order, and releases its locks; what it held, and its task, if it has
    /// run here.
    pub(super) async fn leave(&mut self, order: u64, id: TransactionId) -> Option<(Footprint, SlotHandle)> {
        let ended = self.locks.end(order, id);
        self.abandoned.remove(&id);
        let waited = ended.cancelled.filter(|cancelled| *cancelled != order);
        if let Some(asker) = waited
            .and_then(|cancelled| self.fed.get(&cancelled))
            .map(|fed| fed.asker)
        {
            self.refuse(asker, Refused::ended_before()).await;
        }
        let open = self.transactions.remove(&id)?;
        self.floors.ending(open.ordered.began, order);
        Some((ended.held?, open.slot?))
    }

    /// Ends a transaction at an order: releases its locks, and commits or rolls back in Postgres as the work of that order.
    pub(super) async fn end_transaction(&mut self, order: u64, id: TransactionId, asked: Asked) {
        let open = self.locks.held(id).is_some();
        let over = open && !self.transactions.contains_key(&id);
        let began = self.transactions.get(&id).map_or(0, |open| open.ordered.began);
        match asked {
            Asked::Commit(..) if open => self.config.bodies.committed(id, order),
            _ => self.config.bodies.aborted(id),
        }
        let Some((held, slot)) = self.leave(order, id).await else {
            return self.ended_without_work(order, asked, over).await;
        };
        let (command, end) = match asked {
            Asked::Commit(asker, listed, words) => {
                let ordered = OrderedCommit {
                    order,
                    transaction: id,
                    began,
                    listed,
                    words: &words,
                    held: &held,
                };
                let electorate = Electorate {
                    keys: &self.config.voter_keys,
                    faults: self.config.faults,
                };
                let due = ordered.due(&self.survived, electorate);
                let end = due.end();
                (self.commit_command(asker, due, &held).await, end)
            }
            Asked::Abort(asker) => (Command::Abort(Finish::of(order), Some(asker)), End::Abort),
            Asked::Voters => (Command::Abort(Finish::of(order), None), End::Abort),
        };
        slot.end(end);
        self.run_end(order, id, &held, slot, command);
    }

    async fn commit_command(&self, asker: Asker, due: Due, held: &Footprint) -> Command {
        match due {
            Due::Over(outcome) => {
                asker.answer(&self.outside.reporter, outcome).await;
                Command::Abort(Finish::of(asker.order), None)
            }
            Due::Run {
                listed,
                certified,
                applied,
            } => Command::Commit(Box::new(Commit {
                asker,
                listed,
                certified,
                record: Record {
                    applied,
                    sequences: sequences(held),
                    asks_catalog: false,
                    // The transaction's task fills these in: it knows what ran.
                    temporary: None,
                    listens: None,
                },
                audience: self.audience(asker.order, asker.order),
                held: held.clone(),
            })),
        }
    }

    fn run_end(&mut self, order: u64, id: TransactionId, held: &Footprint, slot: SlotHandle, command: Command) {
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

    /// The transaction never ran here: unknown, refused, cancelled, or over before this life of the voter began.
    async fn ended_without_work(&mut self, order: u64, asked: Asked, over: bool) {
        match asked {
            Asked::Commit(asker, ..) | Asked::Abort(asker) if over => self.settle(asker, Outcome::Unavailable).await,
            Asked::Commit(asker, ..) => self.refuse(asker, LockRefusal::NoTransaction).await,
            Asked::Abort(asker) => self.settle(asker, rolled_back()).await,
            Asked::Voters => self.finished(order),
        }
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
        Work::Cancel { .. } => "cancel",
        Work::Catalog { .. } => "catalog",
        Work::Listen { .. } => "listen",
        Work::Advisory(_) => "advisory",
    }
}
