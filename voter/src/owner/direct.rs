//! Direct statements: to their transaction's task, or as reads of their own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use borsh::BorshDeserialize;
use ordering::identifiers::{ClientId, Order};
use ordering::message::{self, Direct, ResultKey, ResultMessage};
use sql::footprint::Footprint;
use sql::names::Made;
use sql::operation::{SessionContext, TransactionId};

use super::Owner;
use crate::executor::{DirectRead, run_direct_read};
use crate::outcome::{Outcome, Report};
use crate::postgres::backend::{Clock, Job};
use crate::reporter::Reporter;
use crate::work::{Place, Refused, check, check_context, decode};

/// Direct statements of one client that wait for their transaction's Begin, or for an order, at most.
const EARLY_MAX: usize = 256;

/// Bytes of all such statements of one client.
const EARLY_BYTES_MAX: usize = 32 << 20;

/// A direct statement that came before what it needs.
pub(super) struct EarlyDirect {
    client: ClientId,
    direct: Direct,
    deadline: Instant,
}

impl Owner<'_> {
    /// Takes a direct statement.
    pub(super) async fn direct(&mut self, client: ClientId, direct: Direct) {
        if !self.config.client_roles.contains_key(&client) {
            return;
        }
        if self.is_early(client, &direct) {
            return self.keep_early(client, direct).await;
        }
        self.direct_now(client, direct).await;
    }

    /// Whether a statement's Begin has not been granted, or its order not been executed. While the catalog may be changing, what this voter
    /// has acknowledged may be newer than the catalog that it knows: no read is answered from that.
    fn is_early(&self, client: ClientId, direct: &Direct) -> bool {
        match &direct.transaction {
            Some(place) => {
                let id = TransactionId {
                    client: client.0,
                    session: place.session,
                    number: place.number,
                };
                self.transactions.get(&id).is_none_or(|open| open.slot.is_none())
            }
            None => direct.not_before.0 > self.executed.load(Ordering::Relaxed) || self.stalled_by.is_some(),
        }
    }

    async fn keep_early(&mut self, client: ClientId, direct: Direct) {
        let others = self.early.iter().filter(|early| early.client == client);
        let (count, bytes) = others.fold((0, 0), |(count, bytes), early| {
            (count + 1, bytes + early.direct.exchange.len())
        });
        if count >= EARLY_MAX || bytes + direct.exchange.len() > EARLY_BYTES_MAX {
            return self.answer_direct(client, &direct, Outcome::Unavailable).await;
        }
        let deadline = Instant::now() + self.config.limits.direct_wait;
        self.early.push(EarlyDirect {
            client,
            direct,
            deadline,
        });
    }

    /// Takes up statements that waited and need not wait longer.
    pub(super) async fn retry_early(&mut self) {
        let mut at = 0;
        while let Some(early) = self.early.get(at) {
            if self.is_early(early.client, &early.direct) {
                at += 1;
                continue;
            }
            let early = self.early.remove(at);
            self.direct_now(early.client, early.direct).await;
        }
    }

    pub(super) async fn expire_early(&mut self) {
        let now = Instant::now();
        while let Some(at) = self.early.iter().position(|early| early.deadline <= now) {
            let early = self.early.remove(at);
            self.answer_direct(early.client, &early.direct, Outcome::Unavailable)
                .await;
        }
    }

    async fn direct_now(&mut self, client: ClientId, direct: Direct) {
        let Some(place) = direct.transaction.clone() else {
            return self.direct_read(client, direct).await;
        };
        let id = TransactionId {
            client: client.0,
            session: place.session,
            number: place.number,
        };
        let slot = self.transactions.get(&id).and_then(|open| open.slot.as_ref());
        let number = direct.number;
        let taken = slot.is_some_and(|slot| slot.direct(client, direct, place));
        if !taken {
            let executed = Order(self.executed.load(Ordering::Relaxed));
            send_unavailable(&self.outside.reporter, client, number, executed).await;
        }
    }

    async fn direct_read(&mut self, client: ClientId, direct: Direct) {
        // After a power cut all servers may lack the same last commits: nothing is read before they have run again.
        if !self.is_caught_up() {
            return self.answer_direct(client, &direct, Outcome::Unavailable).await;
        }
        let (context, job) = match self.check_direct_read(client, &direct) {
            Ok(checked) => checked,
            Err(refused) => return self.answer_direct(client, &direct, refused.into()).await,
        };
        let Ok(permit) = Arc::clone(&self.direct_reads).try_acquire_owned() else {
            return self.answer_direct(client, &direct, Outcome::Unavailable).await;
        };
        let work = DirectRead {
            client,
            number: direct.number,
            whole: direct.whole,
            executed: Order(self.executed.load(Ordering::Relaxed)),
            context,
            job,
            catalog: self.catalog.clone(),
        };
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            run_direct_read(shared, work).await;
            drop(permit);
        });
    }

    fn check_direct_read(&self, client: ClientId, direct: &Direct) -> Result<(SessionContext, Job), Refused> {
        let context = SessionContext::try_from_slice(&direct.context)
            .map_err(|_| Refused::new("08P01", "malformed session context"))?;
        check_context(&self.config, client, &context)?;
        let exchange = decode(&direct.exchange)?;
        let analysis = check(
            &self.catalog.analyzer,
            &exchange,
            &context,
            Place::Read,
            &Footprint::empty(),
            &Made::default(),
        )?;
        if analysis.needs_clock {
            return Err(Refused::new("25006", "a read of the clock must be ordered"));
        }
        let job = Job {
            exchange,
            analysis,
            clock: Clock {
                time_us: 0,
                seed: String::new(),
            },
            temporary: None,
        };
        Ok((self.catalog.with_temporary(context), job))
    }

    async fn answer_direct(&self, client: ClientId, direct: &Direct, outcome: Outcome) {
        let report = Report {
            key: ResultKey::Direct(direct.number),
            order: Order(self.executed.load(Ordering::Relaxed)),
            outcome,
        };
        self.outside.reporter.report(client, report, direct.whole).await;
    }
}

/// Tells a proxy that this voter cannot answer a direct statement.
pub(crate) async fn send_unavailable(reporter: &Reporter, client: ClientId, number: u64, executed: Order) {
    let message = ResultMessage {
        key: ResultKey::Direct(number),
        order: executed,
        outcome: message::Outcome::Unavailable,
    };
    reporter.send(client, message).await;
}
