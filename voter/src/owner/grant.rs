//! Granted operations: checked against the catalog of their order, then run when Postgres has finished what they follow.
//!
//! Grants are taken in their order, and none after work that may change the catalog before that work has finished; so
//! every voter checks an operation against the same catalog.

use std::sync::Arc;

use bytes::Bytes;
use sql::footprint::Footprint;
use sql::names::Made;
use sql::operation::{Operation, TransactionId, Work};
use sql::rules::MultiPartition;
use sql::statement::Effect;

use super::{Asker, BEHIND_ORDERS_MAX, Owner, Start};
use crate::executor::{Event, OneShot, OrderedRead};
use crate::lock_table::{Grant, Node};
use crate::outcome::Outcome;
use crate::postgres::backend::{Clock, Job, Record};
use crate::slot::{Command, SlotHandle};
use crate::work::{
    Place, Refused, changes_catalog, check, check_listed, decode, recorded_home, seed, sequences, temporary_end,
};

impl Owner<'_> {
    /// Runs, or refuses, what the lock table has granted.
    pub(super) async fn granted(&mut self, grant: Grant) {
        self.waiting.remove(&grant.order);
        if grant.order <= self.resumed_from {
            return;
        }
        let Some(fed) = self.fed.get(&grant.order) else { return };
        let (asker, time_us, operation) = (fed.asker, fed.time_us, Arc::clone(&fed.operation));
        match &operation.work {
            Work::OneShot { exchange } => self.grant_one_shot(asker, grant, time_us, &operation, exchange).await,
            Work::Read {
                transaction: Some(id),
                writes_before,
                exchange,
            } => {
                self.grant_read_within(asker, *id, &operation, exchange, *writes_before)
                    .await
            }
            Work::Read { exchange, .. } => self.grant_read(asker, time_us, &operation, exchange).await,
            Work::Begin {
                transaction, exchanges, ..
            } => self.grant_begin(asker, grant, *transaction, exchanges).await,
            Work::Extend {
                transaction,
                writes_before,
                exchange,
            } => {
                self.grant_extend(asker, grant, *transaction, exchange, *writes_before)
                    .await
            }
            Work::Commit { .. }
            | Work::Abort { .. }
            | Work::Abandon { .. }
            | Work::Nothing
            | Work::Cancel { .. }
            | Work::Catalog { .. }
            | Work::Listen { .. }
            | Work::Advisory(_) => {}
        }
    }

    fn check(
        &self,
        bytes: &[u8],
        operation: &Operation,
        place: Place,
        held: &Footprint,
        clock: Clock,
    ) -> Result<Job, Refused> {
        let exchange = decode(bytes)?;
        let analysis = check(
            &self.catalog.analyzer,
            &exchange,
            &operation.context,
            place,
            held,
            &Made::default(),
        )?;
        Ok(Job {
            exchange,
            analysis,
            clock,
            temporary: None,
        })
    }

    async fn grant_one_shot(
        &mut self,
        asker: Asker,
        grant: Grant,
        time_us: u64,
        operation: &Operation,
        exchange: &[u8],
    ) {
        let footprint = &operation.footprint;
        let applied = recorded_home(footprint).map(|home| (home, grant.position()));
        if applied
            .as_ref()
            .is_some_and(|(home, position)| self.survived.includes(home, *position))
        {
            let outcome = applied.map_or(Outcome::Unavailable, |(home, position)| {
                self.survived.outcome(&home, position)
            });
            return self.settle(asker, outcome).await;
        }
        let clock = Clock {
            time_us,
            seed: seed(&operation.nonce, grant.order, 0),
        };
        let job = match self.check(exchange, operation, Place::OneShot, footprint, clock) {
            Ok(job) => job,
            Err(refused) => return self.refuse(asker, refused).await,
        };
        let changes = self.changes_catalog(&job);
        if changes {
            self.stalled_by = Some(grant.order);
        }
        let has_temporary = job.analysis.has_temporary;
        let audience = self.audience(grant.granted, grant.order);
        let work = OneShot {
            asker,
            context: self.catalog.with_temporary(operation.context.clone()),
            record: Record {
                applied,
                sequences: sequences(footprint),
                asks_catalog: false,
                temporary: has_temporary
                    .then(|| temporary_end(&operation.context, footprint))
                    .flatten(),
                listens: audience.channels(job.analysis.notifies || job.analysis.foreign_code),
            },
            audience,
            job,
            catalog: self.catalog.clone(),
            changes_catalog: changes,
        };
        self.run(grant.order, Node::OneShot, footprint, Start::OneShot(Box::new(work)));
    }

    /// Under the global lock (`multi_partition = "global"`) every operation on several partitions holds everything, so only
    /// plain DDL counts.
    fn changes_catalog(&self, job: &Job) -> bool {
        match self.config.rules.multi_partition {
            MultiPartition::Footprint => changes_catalog(&job.analysis),
            MultiPartition::Global => job.analysis.effect == Effect::Ddl,
        }
    }

    pub(super) fn run(&mut self, order: u64, node: Node, footprint: &Footprint, start: Start) {
        if self.locks.run(order, node, footprint) {
            self.start_work(start);
        } else {
            self.blocked.insert(order, start);
        }
    }

    fn check_read(&self, exchange: &[u8], operation: &Operation, place: Place, clock: Clock) -> Result<Job, Refused> {
        let job = self.check(exchange, operation, place, &operation.footprint, clock)?;
        if job.analysis.effect > Effect::Read {
            return Err(Refused::new("25006", "an ordered read must not write"));
        }
        if !operation.footprint.covers(&job.analysis.footprint) {
            return Err(Refused::too_small(&job.analysis.footprint, &operation.footprint));
        }
        Ok(job)
    }

    async fn grant_read(&mut self, asker: Asker, time_us: u64, operation: &Operation, exchange: &[u8]) {
        let clock = Clock {
            time_us,
            seed: seed(&operation.nonce, asker.order, 0),
        };
        let job = match self.check_read(exchange, operation, Place::Read, clock) {
            Ok(job) => job,
            Err(refused) => return self.refuse(asker, refused).await,
        };
        if self.survived.is_past(asker.order) {
            return self.settle(asker, Outcome::Unavailable).await;
        }
        let work = OrderedRead {
            asker,
            context: self.catalog.with_temporary(operation.context.clone()),
            job,
            catalog: self.catalog.clone(),
        };
        let node = Node::Read { transaction: None };
        self.run(asker.order, node, &operation.footprint, Start::Read(Box::new(work)));
    }

    async fn grant_read_within(
        &mut self,
        asker: Asker,
        id: TransactionId,
        operation: &Operation,
        exchange: &Bytes,
        writes_before: u32,
    ) {
        let Some(open) = self.transactions.get(&id) else {
            let outcome = match self.locks.held(id) {
                Some(_) => Outcome::Unavailable,
                None => Refused::new("25P01", "the transaction is not open").into(),
            };
            return self.settle(asker, outcome).await;
        };
        let clock = Clock {
            time_us: open.ordered.time_us,
            seed: seed(&open.ordered.nonce, open.ordered.began, writes_before),
        };
        if let Err(refused) = self.check_read(exchange, operation, Place::Unlisted, clock) {
            return self.refuse(asker, refused).await;
        }
        let Some(slot) = open.slot.clone() else {
            return self.settle(asker, Outcome::Unavailable).await;
        };
        let node = Node::Read { transaction: Some(id) };
        let start = Start::Slot(slot, Box::new(Command::Read(asker, exchange.clone(), writes_before)));
        self.run(asker.order, node, &operation.footprint, start);
    }

    async fn grant_begin(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchanges: &[Bytes]) {
        let (Some(open), Some(held)) = (self.transactions.get(&id), self.locks.held(id).cloned()) else {
            // One order abandoned what held the locks, and then this transaction too.
            return self.refuse(asker, Refused::ended_before()).await;
        };
        let ordered = open.ordered.clone();
        let refused = check_listed(&self.catalog.analyzer, exchanges, &ordered, &held).err();
        let snapshot = ordered.reads_snapshot();
        let behind = self.behind_by() > BEHIND_ORDERS_MAX;
        let live = ordered.is_live(self.config.machine);
        let start = crate::slot::Start {
            transaction: ordered,
            catalog: self.catalog.clone(),
            held: held.clone(),
            live: live && !behind && refused.is_none(),
        };
        let slot = crate::slot::start(
            Arc::clone(&self.shared),
            start,
            Arc::clone(&self.executed),
            &mut self.tasks,
        );
        if let Some(open) = self.transactions.get_mut(&id) {
            open.slot = Some(slot.clone());
        }
        let node = Node::Within {
            transaction: id,
            snapshot,
        };
        let command = match refused {
            Some(refused) => Command::Refused(asker, refused, held.clone()),
            None => {
                if live && behind {
                    asker.answer(&self.outside.reporter, Outcome::Unavailable).await;
                }
                Command::Begin(asker)
            }
        };
        self.run(grant.order, node, &held, Start::Slot(slot, Box::new(command)));
        self.retry_early().await;
    }

    async fn grant_extend(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchange: &Bytes, before: u32) {
        let open = self.transactions.get(&id);
        let (Some(open), Some(held)) = (open, self.locks.held(id).cloned()) else {
            return self.refuse(asker, Refused::ended_before()).await;
        };
        let Some(slot) = open.slot.clone() else {
            return self.finished(asker.order);
        };
        let checked = match grant.written_since {
            true => Err(Refused::written_since()),
            false => check_listed(
                &self.catalog.analyzer,
                std::slice::from_ref(exchange),
                &open.ordered,
                &held,
            ),
        };
        let node = Node::Within {
            transaction: id,
            snapshot: false,
        };
        let command = match checked {
            Ok(()) => Command::Extend(asker, exchange.clone(), before, held.clone()),
            Err(refused) => Command::Refused(asker, refused, held.clone()),
        };
        self.run(grant.order, node, &held, Start::Slot(slot, Box::new(command)));
    }

    pub(super) fn start_all(&mut self, ready: Vec<u64>) {
        for order in ready {
            if let Some(start) = self.blocked.remove(&order) {
                self.start_work(start);
            }
        }
    }

    pub(super) fn start_work(&mut self, start: Start) {
        let shared = Arc::clone(&self.shared);
        match start {
            Start::OneShot(work) => {
                self.tasks.spawn(crate::executor::run_one_shot(shared, *work));
            }
            Start::Read(work) => {
                self.tasks.spawn(crate::executor::run_read(shared, *work));
            }
            Start::Answer(asker, outcome) => {
                self.tasks.spawn(async move {
                    asker.answer(&shared.reporter, outcome).await;
                    shared.tell(Event::Finished(asker.order, None));
                });
            }
            Start::Slot(slot, command) => self.send_to(&slot, *command),
            Start::Slots(ends) => {
                for (slot, command) in ends {
                    self.send_to(&slot, command);
                }
            }
        }
    }

    /// A task that has ended runs nothing more; what it does not run must not hold up what follows.
    pub(super) fn send_to(&self, slot: &SlotHandle, command: Command) {
        let order = match slot.send(command) {
            None => return,
            Some(Command::Abort(finish, _)) => finish.reached(),
            Some(unsent) => unsent.order(),
        };
        if let Some(order) = order {
            self.shared.tell(Event::Finished(order, None));
        }
    }
}
