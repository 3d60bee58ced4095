//! Granted operations: checked against the catalog of their order, then run when Postgres has finished what they follow.
//!
//! Grants are taken in their order, and none after work that may change the catalog before that work has finished; so
//! every voter checks an operation against the same catalog.

use std::sync::Arc;

use bytes::Bytes;
use ordering::message::Outcome;
use sql::footprint::Footprint;
use sql::operation::{Isolation, Operation, TransactionId, Work};
use sql::rules::MultiPartition;
use sql::statement::Effect;

use super::{Asker, BEHIND_ORDERS_MAX, Owner, Start};
use crate::executor::{OneShot, OrderedRead};
use crate::lock_table::{Grant, Node, Position};
use crate::postgres::backend::{Clock, Job, Record};
use crate::slot::Command;
use crate::work::{Place, Refused, changes_catalog, check, decode, recorded_home, seed, sequences};

impl Owner<'_> {
    /// Runs, or refuses, what the lock table has granted.
    pub(super) async fn granted(&mut self, grant: Grant) {
        if grant.order <= self.resumed_from {
            if let Some(id) = self.floors.refused_before(grant.order) {
                self.locks.end(grant.granted, id);
            }
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
            Work::Commit { .. } | Work::Abort { .. } | Work::Abandon { .. } | Work::Nothing => {}
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
        let analysis = check(&self.catalog.analyzer, &exchange, &operation.context, place, held)?;
        Ok(Job {
            exchange,
            analysis,
            clock,
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
            .is_some_and(|(home, position)| self.survived(home, *position))
        {
            return self.settle(asker, Outcome::Unavailable).await;
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
        let work = OneShot {
            asker,
            context: operation.context.clone(),
            job,
            record: Record {
                applied,
                sequences: sequences(footprint),
            },
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

    /// Whether the operation at a position survived the crash after which this life of the voter began.
    pub(super) fn survived(&self, home: &str, position: Position) -> bool {
        self.survived.get(home).is_some_and(|survived| *survived >= position)
    }

    fn run(&mut self, order: u64, node: Node, footprint: &Footprint, start: Start) {
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
        let work = OrderedRead {
            asker,
            context: operation.context.clone(),
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
        let place = Place::Transaction {
            isolation: open.ordered.isolation,
            read_only: open.ordered.read_only,
        };
        let clock = Clock {
            time_us: open.ordered.time_us,
            seed: seed(&open.ordered.nonce, open.ordered.began, writes_before),
        };
        if let Err(refused) = self.check_read(exchange, operation, place, clock) {
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
        let Some(open) = self.transactions.get(&id) else { return };
        let ordered = open.ordered.clone();
        let Some(held) = self.locks.held(id).cloned() else {
            return;
        };
        if let Err(refused) = self.check_all(exchanges, &ordered, &held) {
            self.floors.refused_at_grant(grant.order, id);
            return self.abort_refused(asker, id, grant.granted, refused).await;
        }
        let snapshot = ordered.read_only || ordered.isolation == Isolation::RepeatableRead;
        let slot = crate::slot::start(
            Arc::clone(&self.shared),
            ordered,
            self.catalog.clone(),
            held.clone(),
            Arc::clone(&self.executed),
            self.behind_by() > BEHIND_ORDERS_MAX,
            &mut self.tasks,
        );
        if let Some(open) = self.transactions.get_mut(&id) {
            open.slot = Some(slot.clone());
        }
        let node = Node::Within {
            transaction: id,
            snapshot,
        };
        self.run(
            grant.order,
            node,
            &held,
            Start::Slot(slot, Box::new(Command::Begin(asker))),
        );
        self.retry_early().await;
    }

    fn check_all(
        &self,
        exchanges: &[Bytes],
        ordered: &crate::transactions::OrderedTransaction,
        held: &Footprint,
    ) -> Result<(), Refused> {
        let place = Place::Transaction {
            isolation: ordered.isolation,
            read_only: ordered.read_only,
        };
        if exchanges.is_empty() {
            return Err(Refused::new("08P01", "a Begin without an exchange"));
        }
        for bytes in exchanges {
            let exchange = decode(bytes)?;
            check(&self.catalog.analyzer, &exchange, &ordered.context, place, held)?;
        }
        Ok(())
    }

    async fn grant_extend(&mut self, asker: Asker, grant: Grant, id: TransactionId, exchange: &Bytes, before: u32) {
        let Some(open) = self.transactions.get(&id) else {
            return self.settle(asker, Outcome::Unavailable).await;
        };
        let Some(held) = self.locks.held(id).cloned() else {
            return;
        };
        if let Err(refused) = self.check_all(std::slice::from_ref(exchange), &open.ordered, &held) {
            self.floors.refused_at_grant(grant.order, id);
            return self.abort_refused(asker, id, grant.granted, refused).await;
        }
        let Some(slot) = open.slot.clone() else {
            return self.settle(asker, Outcome::Unavailable).await;
        };
        let node = Node::Within {
            transaction: id,
            snapshot: false,
        };
        let start = Start::Slot(
            slot,
            Box::new(Command::Extend(asker, exchange.clone(), before, held.clone())),
        );
        self.run(grant.order, node, &held, start);
    }
}
