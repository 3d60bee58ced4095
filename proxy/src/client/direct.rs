//! Direct statements: asked of the voters without agreement.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::{MachineId, Order};
use ordering::message::{ClientMessage, Direct, DirectTransaction, ResultKey};
use tokio::time::{Instant, timeout_at};

use super::calls::Waiting;
use super::collect::{Collect, Rows};
use super::{Cancel, Client, Failure, Preference, ROWS_PATIENCE, Voted};
use crate::port::{Destination, MachineSet, ToNode};

/// How much later than f+1 voters the others may be, before a linearizable read is ordered instead.
const ALL_PATIENCE: Duration = Duration::from_millis(4);
/// How long f+1 voters may take before the others are asked too, and the late ones are avoided for the rest of the
/// transaction: a voter that lags behind would cost this time at every read.
const OTHERS_PATIENCE: Duration = Duration::from_millis(25);
/// How long the voters may take with an autocommit read before it is ordered instead.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);

/// A direct statement.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The encoded `SessionContext`.
    pub(crate) context: Bytes,
    /// The transaction that it belongs to.
    pub(crate) transaction: Option<DirectTransaction>,
    /// The encoded `Exchange`.
    pub(crate) exchange: Bytes,
    /// What the order of its rows means.
    pub(crate) rows: Rows,
}

/// Whose answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quorum {
    /// All voters say the same, or it is [`Failure::Undecided`]: a read that no lock protects.
    All,
    /// f+1 voters that have executed this order say the same, or it is [`Failure::Undecided`].
    Session(Order),
    /// f+1 voters say the same; ask only as many: a read under locks or on a snapshot.
    Locked(Preference),
    /// f+1 voters say the same; all must get it: a write.
    Everyone,
}

impl Client {
    /// Asks voters directly. With `cancel`, gives up when the application wants that: only for reads.
    pub(crate) async fn ask(
        &self,
        question: Question,
        quorum: Quorum,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        if quorum == Quorum::All && self.health.live().len() < self.voters.len() {
            return Err(Failure::Undecided);
        }
        let number = self.next_direct.fetch_add(1, Ordering::Relaxed);
        let key = ResultKey::Direct(number);
        let needed = if quorum == Quorum::All {
            self.voters.len()
        } else {
            self.faults + 1
        };
        let collect = Collect::new(self.voter_set, needed, false, question.rows);
        let waiting = self.calls.open(
            key,
            match quorum {
                Quorum::All | Quorum::Session(_) => collect.of_unlocked_read(),
                Quorum::Locked(_) | Quorum::Everyone => collect,
            },
        );
        let mut asking = Asking {
            client: self,
            question,
            quorum,
            number,
            asked: MachineSet::EMPTY,
        };
        let wait = asking.run(&waiting, key);
        let deadline = Instant::now() + self.statement_timeout;
        tokio::select! {
            voted = timeout_at(deadline, wait) => voted.map_err(|_| Failure::NoProgress)?,
            () = super::order::wait_for(cancel) => Err(Failure::Cancelled),
        }
    }
}

/// One direct statement on its way.
struct Asking<'client> {
    client: &'client Client,
    question: Question,
    quorum: Quorum,
    number: u64,
    asked: MachineSet,
}

impl Asking<'_> {
    async fn run(&mut self, waiting: &Waiting<'_>, key: ResultKey) -> Result<Voted, Failure> {
        let picked = self.first_voters();
        waiting
            .call
            .collect()
            .welcome_whole(picked.first().copied().map_or(MachineSet::EMPTY, MachineSet::one));
        let start = Instant::now();
        self.send(&picked, true).await?;
        let mut patience = start + self.patience();
        let mut late = MachineSet::EMPTY;
        let mut order_awaited = false;
        loop {
            let standing = waiting.call.collect().standing();
            if let Some((agreed, supporters, _)) = standing.agreed {
                let first = picked.first().copied();
                let result = self
                    .client
                    .whole(&waiting.call, key, &agreed, supporters, first)
                    .await?;
                return Ok(Voted {
                    order: Order(0),
                    result,
                    prompt: supporters,
                    unavailable: standing.unavailable.union(late),
                });
            }
            if let Some(failure) = self.client.hopeless(&standing) {
                return Err(self.give_up(failure));
            }
            if self.question.transaction.is_some() && self.client.has_lost_transaction(&standing) {
                return Err(self.give_up(Failure::transaction_lost()));
            }
            match self.quorum {
                Quorum::All if standing.conflict || !standing.unavailable.is_empty() => return Err(Failure::Undecided),
                Quorum::All if standing.answered.len() > self.client.faults => {
                    patience = patience.min(Instant::now() + ALL_PATIENCE + start.elapsed() / 2);
                }
                Quorum::Locked(_) | Quorum::Session(_) if standing.order_open && !order_awaited => {
                    order_awaited = true;
                    patience = patience.min(Instant::now() + ROWS_PATIENCE);
                    self.ask_others().await?;
                }
                Quorum::Locked(_) if self.asked.without(standing.answered).is_empty() => self.ask_others().await?,
                _ => {}
            }
            if timeout_at(patience, waiting.call.changed.notified()).await.is_err() {
                if order_awaited {
                    waiting.call.collect().accept_any_order();
                    continue;
                }
                match self.quorum {
                    Quorum::All | Quorum::Session(_) => return Err(Failure::Undecided),
                    Quorum::Locked(_) => {
                        late = self.asked.without(waiting.call.collect().standing().answered);
                        self.ask_others().await?;
                    }
                    Quorum::Everyone => {}
                }
                patience = Instant::now() + self.client.statement_timeout;
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.quorum {
            Quorum::All | Quorum::Session(_) => ORDER_PATIENCE,
            Quorum::Locked(_) => OTHERS_PATIENCE,
            Quorum::Everyone => self.client.statement_timeout,
        }
    }

    /// The failure as this quorum means it: an unlocked read is ordered instead.
    fn give_up(&self, failure: Failure) -> Failure {
        match self.quorum {
            Quorum::All | Quorum::Session(_) => Failure::Undecided,
            Quorum::Locked(_) | Quorum::Everyone => failure,
        }
    }

    /// Whom to ask at first; the first of them sends the whole result.
    fn first_voters(&self) -> Vec<MachineId> {
        let health = &self.client.health;
        match self.quorum {
            Quorum::All | Quorum::Everyone | Quorum::Session(_) => {
                health.pick(self.client.voters.len(), Preference::default())
            }
            Quorum::Locked(preference) => health.pick(self.client.faults + 1, preference),
        }
    }

    async fn ask_others(&mut self) -> Result<(), Failure> {
        let others: Vec<_> = self.client.voter_set.without(self.asked).iter().collect();
        self.send(&others, false).await
    }

    async fn send(&mut self, machines: &[MachineId], whole_from_first: bool) -> Result<(), Failure> {
        let (whole, digests) = match machines.split_first() {
            Some((first, rest)) if whole_from_first => (MachineSet::one(*first), rest.iter().copied().collect()),
            _ => (MachineSet::EMPTY, machines.iter().copied().collect::<MachineSet>()),
        };
        for (machines, whole) in [(whole, true), (digests, false)] {
            if machines.is_empty() {
                continue;
            }
            self.asked = self.asked.union(machines);
            self.client.health.asked(machines);
            let message = ToNode::Client(ClientMessage::Direct(self.direct(whole)));
            self.client.send(Destination::Machines(machines), message).await?;
        }
        Ok(())
    }

    fn direct(&self, whole: bool) -> Direct {
        Direct {
            number: self.number,
            whole,
            context: self.question.context.clone(),
            transaction: self.question.transaction.clone(),
            not_before: match self.quorum {
                Quorum::Session(order) => order,
                _ => Order(0),
            },
            exchange: self.question.exchange.clone(),
        }
    }
}
