//! Decided orders: fed to the lock table, granted, and ended, as `voter/src/owner/{feed,grant,abandon}.rs` do it.

use std::collections::BTreeSet;
use std::sync::Arc;

use borsh::BorshDeserialize;
use bytes::Bytes;
use ordering::identifiers::MachineId;
use sql::footprint::Footprint;
use sql::names::Made;
use sql::operation::{Operation, TransactionId, TransactionWrite, Word, Work};
use voter::client_window::Admission;
use voter::ending::{Due, End, OrderedCommit, count_abandoned};
use voter::lock_table::{BeginKind, Grant, LockRefusal, Node};
use voter::transactions::{Begin, OrderedTransaction};
use voter::vote::Decided;
use voter::work::{Place, Refused, check, check_listed, decode, recorded_home, seed};

use super::super::database::Backend;
use super::super::scenarios::Fault;
use super::super::slot::{Command, Commit, Slot, tables};
use super::super::world::{FAULTS, MACHINES, node_client};
use super::{Answer, Asker, BYTES_MAX, Fed, OneShot, Start, Voter};

impl Voter<'_> {
    /// Feeds one decided order.
    pub(super) fn feed(&mut self, decided: Decided) {
        let order = decided.order.0;
        self.life.last_fed = order;
        self.life.unfinished.insert(order);
        self.life.floors.fed(order);
        let Some(request) = decided.request else {
            return self.finished(order);
        };
        let asker = Asker {
            client: request.client,
            number: request.number,
            order,
        };
        let admission = self.life.windows.admit(request.client, request.number, request.floor);
        if admission != Admission::New {
            return self.finished(order);
        }
        let Ok(operation) = Operation::try_from_slice(&request.operation) else {
            return self.refuse(asker, Refused::new("08P01", "malformed operation"));
        };
        let home = operation.footprint.home().home_number();
        if home != request.home {
            let refused = Refused::new("08P01", "the operation's home is not the one it was routed by");
            return self.refuse(asker, refused);
        }
        let operation = Arc::new(operation);
        let node = MACHINES
            .into_iter()
            .find(|machine| node_client(*machine) == request.client);
        if let Some(node) = node {
            return self.feed_node(order, node, &operation);
        }
        let fed = Fed {
            asker,
            operation: Arc::clone(&operation),
        };
        self.life.fed.insert(order, fed);
        self.feed_operation(asker, &operation, decided.time_us, request.operation.len());
    }

    fn feed_node(&mut self, order: u64, node: MachineId, operation: &Operation) {
        if let Work::Abandon { transactions } = &operation.work {
            let life = &mut self.life;
            let is_open = |id| life.locks.is_open(id);
            let over = count_abandoned(&mut life.abandoned, node, transactions, FAULTS, is_open);
            return self.abandon(order, over);
        }
        self.finished(order);
    }

    /// Ends transactions at the order of what abandoned them.
    fn abandon(&mut self, order: u64, transactions: BTreeSet<TransactionId>) {
        let (mut held, mut slots) = (Footprint::empty(), Vec::new());
        for id in &transactions {
            if let Some((held_by_it, began)) = self.leave(order, *id) {
                held.extend(&held_by_it);
                slots.push(began);
            }
        }
        if slots.is_empty() {
            return self.finished(order);
        }
        self.life.ends.insert(order, slots.len());
        let aborts = slots
            .iter()
            .map(|began| (*began, Command::Abort { order, asker: None }));
        let start = Start::Slots(aborts.collect());
        for began in &slots {
            self.with_slot(*began, |slot, around| slot.end(End::Abort, around));
        }
        let transactions: Vec<_> = transactions.into_iter().collect();
        let may_run = self.life.locks.run_ends(order, &transactions, &held);
        self.run(order, may_run, start);
    }

    fn feed_operation(&mut self, asker: Asker, operation: &Operation, time_us: u64, bytes: usize) {
        let order = asker.order;
        let footprint = &operation.footprint;
        if operation
            .work
            .transaction()
            .is_some_and(|id| id.client != asker.client.0)
        {
            return self.refuse(
                asker,
                Refused::new("42501", "the transaction belongs to another client"),
            );
        }
        match &operation.work {
            Work::OneShot { .. } => {
                if let Err(refusal) = self.life.locks.one_shot(order, footprint, bytes) {
                    self.refuse(asker, refusal);
                }
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
                self.feed_begin(asker, begin, footprint, bytes);
            }
            Work::Extend {
                transaction, exchange, ..
            } => self.feed_extend(asker, *transaction, footprint, exchange.clone()),
            Work::Commit {
                transaction,
                writes,
                words,
            } => self.feed_commit(asker, *transaction, writes, words),
            Work::Abort { transaction } => self.end_by_client(asker, *transaction),
            Work::Read { .. }
            | Work::Abandon { .. }
            | Work::Nothing
            | Work::Cancel { .. }
            | Work::Catalog { .. }
            | Work::Listen { .. }
            | Work::Advisory(_) => {
                self.refuse(asker, Refused::new("42501", "only nodes order such an operation"));
            }
        }
    }

    fn feed_begin(&mut self, asker: Asker, begin: Begin, footprint: &Footprint, bytes: usize) {
        let (order, id) = (begin.order, begin.id);
        let ordered = OrderedTransaction::new(begin);
        let kind = BeginKind {
            snapshot: ordered.reads_snapshot(),
        };
        if let Err(refusal) = self.life.locks.begin(order, id, footprint, kind, bytes) {
            return self.refuse(asker, refusal);
        }
        self.life.floors.begun(order);
        self.life.transactions.insert(id, (ordered, false));
    }

    fn feed_extend(&mut self, asker: Asker, id: TransactionId, footprint: &Footprint, exchange: Bytes) {
        if let Some((open, _)) = self.life.transactions.get_mut(&id)
            && let Err(refused) = open.extend(asker.order, exchange, BYTES_MAX)
        {
            return self.refuse(asker, refused);
        }
        let (replaced, waits) = self.life.locks.extend(asker.order, id, footprint);
        if let Some(replaced) = replaced
            .and_then(|order| self.life.fed.get(&order))
            .map(|fed| fed.asker)
        {
            self.refuse(
                replaced,
                Refused::new("57014", "canceling statement due to user request"),
            );
        }
        if let Err(refusal) = waits {
            self.refuse(asker, refusal);
        }
    }

    fn feed_commit(&mut self, asker: Asker, id: TransactionId, writes: &[TransactionWrite], words: &[Word]) {
        let listed = match self.life.transactions.get(&id) {
            Some((open, _)) => open.committed(writes, BYTES_MAX as u64),
            None => Ok(Vec::new()),
        };
        match listed {
            Ok(listed) => self.end_by_commit(asker, id, listed, words),
            Err(refused) => {
                self.say(asker.client, asker.key(), Answer::refused(&refused));
                match self.leave(asker.order, id) {
                    Some((held, began)) => self.end_slot(asker, began, id, &held, End::Abort, None),
                    None => self.finished(asker.order),
                }
            }
        }
    }

    /// Takes an open transaction out of all tables at an order, and releases its locks; what it held, and its slot.
    fn leave(&mut self, order: u64, id: TransactionId) -> Option<(Footprint, u64)> {
        let ended = self.life.locks.end(order, id);
        self.life.abandoned.remove(&id);
        let waited = ended.cancelled.filter(|cancelled| *cancelled != order);
        let waited = waited.and_then(|cancelled| self.life.fed.get(&cancelled));
        if let Some(asker) = waited.map(|fed| fed.asker) {
            self.refuse(asker, Refused::ended_before());
        }
        let (open, has_slot) = self.life.transactions.remove(&id)?;
        self.life.floors.ending(open.began, order);
        Some((ended.held?, has_slot.then_some(open.began)?))
    }

    fn end_by_commit(&mut self, asker: Asker, id: TransactionId, listed: Vec<Bytes>, words: &[Word]) {
        let over = self.is_over(id);
        let began = self.life.transactions.get(&id).map_or(0, |(open, _)| open.began);
        let Some((held, slot)) = self.leave(asker.order, id) else {
            return match over {
                true => self.settle(asker, Answer::Unavailable),
                false => self.refuse(asker, LockRefusal::NoTransaction),
            };
        };
        let ordered = OrderedCommit {
            order: asker.order,
            transaction: id,
            began,
            listed,
            words,
            held: &held,
        };
        let faults = match self.fault {
            Some(Fault::OneWordCertifies) => 0,
            _ => FAULTS,
        };
        let due = ordered.due(&self.life.survived, self.world.electorate(faults));
        let mut end = due.end();
        if let (Some(Fault::WordsUnchecked), End::Commit { certified, .. }) = (self.fault, &mut end) {
            *certified = !words.is_empty();
        }
        let commit = match due {
            Due::Over(outcome) => {
                self.say(asker.client, asker.key(), outcome.into());
                None
            }
            Due::Run {
                listed,
                certified,
                applied,
            } => Some(Command::Commit(Box::new(Commit {
                asker,
                listed,
                certified,
                applied,
                held: held.clone(),
            }))),
        };
        self.end_slot(asker, slot, id, &held, end, commit);
    }

    fn end_by_client(&mut self, asker: Asker, id: TransactionId) {
        let over = self.is_over(id);
        match self.leave(asker.order, id) {
            Some((held, slot)) => {
                let abort = Command::Abort {
                    order: asker.order,
                    asker: Some(asker),
                };
                self.end_slot(asker, slot, id, &held, End::Abort, Some(abort));
            }
            None if over => self.settle(asker, Answer::Unavailable),
            None => self.settle(asker, Answer::RolledBack),
        }
    }

    /// Whether an open transaction began before this life of the voter.
    fn is_over(&self, id: TransactionId) -> bool {
        self.life.locks.held(id).is_some() && !self.life.transactions.contains_key(&id)
    }

    /// Ends a slot at an order; without a command, with an abort that nobody is answered.
    fn end_slot(
        &mut self,
        asker: Asker,
        began: u64,
        id: TransactionId,
        held: &Footprint,
        end: End,
        command: Option<Command>,
    ) {
        let order = asker.order;
        self.with_slot(began, |slot, around| slot.end(end, around));
        let command = command.unwrap_or(Command::Abort { order, asker: None });
        let may_run = self.life.locks.run(order, Node::End { transaction: id }, held);
        self.run(order, may_run, Start::Slots(vec![(began, command)]));
    }

    /// Runs, or refuses, what the lock table has granted.
    pub(super) fn granted(&mut self, grant: Grant) {
        if grant.order <= self.life.resumed_from {
            return;
        }
        let Some(fed) = self.life.fed.get(&grant.order) else {
            return;
        };
        let (asker, operation) = (fed.asker, Arc::clone(&fed.operation));
        match &operation.work {
            Work::OneShot { exchange } => self.grant_one_shot(asker, grant, &operation, exchange),
            Work::Begin {
                transaction, exchanges, ..
            } => self.grant_begin(asker, grant, *transaction, exchanges),
            Work::Extend {
                transaction,
                writes_before,
                exchange,
            } => self.grant_extend(asker, grant, *transaction, exchange, *writes_before),
            _ => {}
        }
    }

    fn grant_one_shot(&mut self, asker: Asker, grant: Grant, operation: &Operation, exchange: &Bytes) {
        let footprint = &operation.footprint;
        let applied = recorded_home(footprint).map(|home| (home, grant.position()));
        let over = applied
            .as_ref()
            .filter(|(home, position)| self.life.survived.includes(home, *position));
        if let Some((home, position)) = over {
            let outcome = self.life.survived.outcome(home, *position);
            return self.settle(asker, outcome.into());
        }
        let checked = decode(exchange).and_then(|exchange| {
            let context = &operation.context;
            check(
                &self.world.analyzer,
                &exchange,
                context,
                Place::OneShot,
                footprint,
                &Made::default(),
            )
        });
        if let Err(refused) = checked {
            return self.refuse(asker, refused);
        }
        let one_shot = OneShot {
            asker,
            exchange: exchange.clone(),
            clock: seed(&operation.nonce, grant.order, 0),
            applied,
        };
        let may_run = self.life.locks.run(grant.order, Node::OneShot, footprint);
        self.run(grant.order, may_run, Start::OneShot(Box::new(one_shot)));
    }

    pub(super) fn run_one_shot(&mut self, order: u64) {
        let Some(one_shot) = self.life.one_shots.remove(&order) else {
            return;
        };
        let mut backend = Backend::default();
        let tables = tables(self.world, &one_shot.exchange);
        backend.run(&self.database, one_shot.exchange, tables, one_shot.clock);
        self.database.commit(order, backend, one_shot.applied);
        self.settle(one_shot.asker, Answer::Committed);
    }

    fn grant_begin(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchanges: &[Bytes]) {
        let (open, held) = (self.life.transactions.get_mut(&id), self.life.locks.held(id).cloned());
        let (Some((open, has_slot)), Some(held)) = (open, held) else {
            if self.fault != Some(Fault::BeginsNeverEnd) {
                self.refuse(asker, Refused::ended_before());
            }
            return;
        };
        let ordered = open.clone();
        *has_slot = true;
        let refused = check_listed(&self.world.analyzer, exchanges, &ordered, &held).err();
        let live = ordered.is_live(self.machine) && refused.is_none();
        let snapshot = ordered.reads_snapshot();
        let slot = Slot::new(ordered, held.clone(), live);
        self.life.slots.insert(grant.order, slot);
        let node = Node::Within {
            transaction: id,
            snapshot,
        };
        let command = match refused {
            Some(refused) => Command::Refused(asker, refused, held.clone()),
            None => Command::Begin(asker),
        };
        let may_run = self.life.locks.run(grant.order, node, &held);
        self.run(grant.order, may_run, Start::Slots(vec![(grant.order, command)]));
        self.retry_early();
    }

    fn grant_extend(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchange: &Bytes, before: u32) {
        let open = self.life.transactions.get(&id);
        let (Some((open, has_slot)), Some(held)) = (open, self.life.locks.held(id).cloned()) else {
            return self.refuse(asker, Refused::ended_before());
        };
        if !has_slot {
            return self.finished(asker.order);
        }
        let began = open.began;
        let checked = match grant.written_since {
            true => Err(Refused::written_since()),
            false => check_listed(&self.world.analyzer, std::slice::from_ref(exchange), open, &held),
        };
        let command = match checked {
            Ok(()) => Command::Extend(asker, exchange.clone(), before, held.clone()),
            Err(refused) => Command::Refused(asker, refused, held.clone()),
        };
        let node = Node::Within {
            transaction: id,
            snapshot: false,
        };
        let may_run = self.life.locks.run(grant.order, node, &held);
        self.run(grant.order, may_run, Start::Slots(vec![(began, command)]));
    }
}
