//! Direct statements: asked of the voters without agreement.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::{MachineId, Order};
use ordering::message::{ClientMessage, Direct, DirectKind, DirectTransaction, ResultKey};
use sql::operation::{TransactionId, Word, same_answers, word_digest};
use tokio::time::{Instant, timeout_at};

use super::calls::{Call, Waiting};
use super::collect::{Agreed, Collect, Rows};
use super::large::Whole;
use super::live::Live;
use super::{Cancel, Client, Failure, OTHERS_PATIENCE, Preference, ROWS_PATIENCE, SILENCE_PATIENCE, Voted};
use crate::measures::invalid;
use crate::port::{Destination, MachineSet, ToNode};

/// How much later than f+1 voters the others may be, before a linearizable read is ordered instead.
const ALL_PATIENCE: Duration = Duration::from_millis(4);
/// How long the voters may take with an autocommit read before it is ordered instead.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);

/// A direct statement outside transactions.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The encoded `SessionContext`.
    pub(crate) context: Bytes,
    /// The encoded `Exchange`.
    pub(crate) exchange: Bytes,
    /// What the order of its rows means.
    pub(crate) rows: Rows,
}

/// Whose answer to a read outside transactions counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quorum {
    /// All voters say the same, or it is [`Failure::Undecided`]: a read that no lock protects.
    All,
    /// f+1 voters that have executed this order say the same, or it is [`Failure::Undecided`].
    Session(Order),
}

/// A direct statement of an open transaction: f+1 of its live voters say the same, or the others are asked too, which makes
/// them live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// A read under locks or on a snapshot: as few voters as possible are asked.
    Read,
    /// A statement that COMMIT lists: all live voters must get it.
    Write,
}

/// Which voters are asked, and how many must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Outside(Quorum),
    Inside(DirectKind),
}

impl Client {
    /// Asks voters directly, outside transactions. With `cancel`, gives up when the application wants that.
    pub(crate) async fn ask(
        &self,
        question: Question,
        quorum: Quorum,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        if quorum == Quorum::All && self.health.live().len() < self.voters.len() {
            return Err(Failure::Undecided);
        }
        let needed = match quorum {
            Quorum::All => self.voters.len(),
            Quorum::Session(_) => self.faults + 1,
        };
        let collect = Collect::new(self.voter_set, needed, false, question.rows).of_unlocked_read();
        let (waiting, asking) = self.direct(question, Asked::Outside(quorum), None, collect);
        let key = ResultKey::Direct(asking.number);
        let mut read = self.given_up_unless_answered(key);
        let voted = self.within_time(&waiting.call, asking.run(&waiting), cancel).await;
        read.answered |= voted.is_ok();
        self.resolved(key, &waiting.call, voted, cancel).await
    }

    /// Asks the live voters of an open transaction directly. With `cancel`, gives up when the application wants that: what the
    /// voters run has to be cancelled then.
    pub(crate) async fn ask_within(
        &self,
        live: &mut Live,
        question: Question,
        statement: Statement,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        let kind = match statement {
            Statement::Read => DirectKind::Read,
            Statement::Write => DirectKind::Write,
        };
        let collect = Collect::new(self.voter_set, live.needed(), false, question.rows);
        let (waiting, asking) = self.direct(question, Asked::Inside(kind), Some(&mut *live), collect);
        let key = ResultKey::Direct(asking.number);
        let voted = self.within_time(&waiting.call, asking.run(&waiting), cancel).await;
        let voted = self.resolved(key, &waiting.call, voted, cancel).await?;
        live.note(&voted);
        Ok(voted)
    }

    /// The words of f+1 voters that ran all that an open transaction has listed, and gave the same answers.
    pub(crate) async fn words(
        &self,
        live: &mut Live,
        transaction: TransactionId,
        began: Order,
        cancel: Option<&Cancel>,
    ) -> Result<Vec<Word>, Failure> {
        let question = Question {
            context: live.context(),
            exchange: Bytes::new(),
            rows: Rows::Unordered,
        };
        self.join_enough(live).await?;
        let list = live.chain();
        let uncertified = live.uncertified(self.faults + 1);
        let collect = Collect::new(self.voter_set, self.faults + 1, false, question.rows);
        let (waiting, asking) = self.direct(question, Asked::Inside(DirectKind::Word), Some(live), collect);
        let signed = |answers: &[u8; 32]| word_digest(transaction, began.0, &list, answers);
        let asking = asking.run_to_words(&waiting, signed);
        let words = self.within_time(&waiting.call, asking, cancel).await?;
        let answers = words.first().map(|word| word.answers);
        match uncertified.is_none_or(|seen| answers.is_some_and(|answers| same_answers(&answers, &seen))) {
            true => Ok(words),
            false => Err(Failure::not_certified()),
        }
    }

    pub(super) fn direct<'all, 'live>(
        &'all self,
        question: Question,
        asked: Asked,
        live: Option<&'live mut Live>,
        collect: Collect,
    ) -> (Waiting<'all>, Asking<'all, 'live>) {
        let number = self.next_direct.fetch_add(1, Ordering::Relaxed);
        let key = ResultKey::Direct(number);
        let place = match (asked, &live) {
            (Asked::Inside(kind), Some(live)) => Some(live.next(kind)),
            _ => None,
        };
        let asking = Asking {
            client: self,
            question,
            kind: asked,
            place,
            live,
            number,
            asked: MachineSet::EMPTY,
            first: None,
        };
        (self.calls.open(key, collect), asking)
    }

    async fn within_time<T>(
        &self,
        call: &Call,
        asking: impl Future<Output = Result<T, Failure>>,
        cancel: Option<&Cancel>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.statement_timeout;
        tokio::select! {
            answer = asking => answer,
            () = self.no_progress(call, deadline, self.statement_timeout) => Err(Failure::NoProgress),
            () = super::order::wait_for(cancel) => Err(Failure::Cancelled),
        }
    }

    /// The words that these voters signed rightly; the other voters' words are discarded.
    fn rightly_signed(&self, call: &Call, supporters: MachineSet, answers: [u8; 32], signed: &[u8; 32]) -> Vec<Word> {
        let signatures = call.collect().signatures(supporters);
        let mut words = Vec::with_capacity(signatures.len());
        for (machine, signature) in signatures {
            let key = self.voter_keys.get(&machine);
            let right = key.is_none_or(|key| {
                key.verify_strict(signed, &ed25519_dalek::Signature::from_bytes(&signature))
                    .is_ok()
            });
            if right {
                words.push(Word {
                    machine: machine.0,
                    answers,
                    signature,
                });
            } else {
                tracing::warn!(machine = machine.0, "a voter's word is not signed by it");
                invalid(machine, "word_signature");
                call.collect().discard(machine);
            }
        }
        words
    }
}

/// What was agreed on, by which voters, and which voters were no help.
struct Settled {
    agreed: Agreed,
    supporters: MachineSet,
    unhelpful: MachineSet,
}

/// One direct statement on its way.
pub(super) struct Asking<'client, 'live> {
    client: &'client Client,
    question: Question,
    kind: Asked,
    place: Option<DirectTransaction>,
    live: Option<&'live mut Live>,
    number: u64,
    asked: MachineSet,
    /// The voter that sends the whole result unasked.
    first: Option<MachineId>,
}

impl Asking<'_, '_> {
    async fn run(mut self, waiting: &Waiting<'_>) -> Result<Voted<Whole>, Failure> {
        let settled = self.settle(waiting).await?;
        let result = self.whole(waiting, &settled).await?;
        Ok(Voted {
            order: Order(0),
            result,
            prompt: settled.supporters,
            unavailable: settled.unhelpful,
        })
    }

    async fn whole(&self, waiting: &Waiting<'_>, settled: &Settled) -> Result<Whole, Failure> {
        let key = ResultKey::Direct(self.number);
        self.client
            .whole(&waiting.call, key, &settled.agreed, settled.supporters, self.first)
            .await
    }

    async fn run_to_words(
        mut self,
        waiting: &Waiting<'_>,
        signed: impl Fn(&[u8; 32]) -> [u8; 32],
    ) -> Result<Vec<Word>, Failure> {
        loop {
            let settled = self.settle(waiting).await?;
            let Agreed::Word(answers) = settled.agreed else {
                let error = match self.whole(waiting, &settled).await? {
                    Whole::Result(result) => crate::wire::first_error(&result.messages),
                    Whole::Chunks(_) => None,
                };
                return Err(error.map_or(Failure::Unavailable, Failure::Refused));
            };
            let words = self
                .client
                .rightly_signed(&waiting.call, settled.supporters, answers, &signed(&answers));
            if words.len() > self.client.faults {
                return Ok(words);
            }
        }
    }

    /// Waits until enough voters agree.
    async fn settle(&mut self, waiting: &Waiting<'_>) -> Result<Settled, Failure> {
        let start = Instant::now();
        if self.asked.is_empty() {
            self.ask_first(waiting).await?;
        }
        let mut patience = start + self.patience();
        let mut late = MachineSet::EMPTY;
        let mut order_awaited = false;
        loop {
            let standing = waiting.call.collect().standing();
            if let Some((agreed, supporters, _)) = standing.agreed {
                let differing = match standing.conflict && self.is_inside() {
                    true => standing.answered.without(supporters),
                    false => MachineSet::EMPTY,
                };
                return Ok(Settled {
                    agreed,
                    supporters,
                    unhelpful: standing.unavailable.union(late).union(differing),
                });
            }
            if let Some(failure) = self.client.hopeless(&standing) {
                return Err(self.give_up(failure));
            }
            if self.is_inside() && self.client.has_lost_transaction(&standing) {
                return Err(Failure::transaction_lost());
            }
            let all_asked = self.client.voter_set.without(self.asked).is_empty();
            match self.kind {
                Asked::Outside(Quorum::All) if standing.conflict || !standing.unavailable.is_empty() => {
                    return Err(Failure::Undecided);
                }
                Asked::Outside(Quorum::All) if standing.answered.len() > self.client.faults => {
                    patience = patience.min(Instant::now() + ALL_PATIENCE + start.elapsed() / 2);
                }
                Asked::Inside(_) | Asked::Outside(Quorum::Session(_)) if standing.order_open && !order_awaited => {
                    order_awaited = true;
                    patience = patience.min(Instant::now() + ROWS_PATIENCE);
                    self.ask_others().await?;
                }
                Asked::Inside(_) if all_asked => {}
                Asked::Inside(_) if standing.needs_others() || self.asked.without(standing.answered).is_empty() => {
                    self.ask_others().await?;
                    patience = Instant::now() + self.client.statement_timeout;
                }
                Asked::Inside(_) if !standing.answered.is_empty() => {
                    let missing = self.asked.without(standing.answered);
                    let all_run = missing.without(standing.running).is_empty();
                    let more = if all_run { start.elapsed() / 2 } else { Duration::ZERO };
                    patience = patience.min(Instant::now() + OTHERS_PATIENCE + more);
                }
                Asked::Inside(_) if self.asked.without(standing.running).is_empty() => {
                    patience = patience.max(Instant::now() + SILENCE_PATIENCE);
                }
                Asked::Outside(_)
                    if !standing.running.is_empty()
                        && standing.running.union(standing.answered).len() > self.client.faults =>
                {
                    patience = patience.max(Instant::now() + ORDER_PATIENCE);
                }
                _ => {}
            }
            if timeout_at(patience, waiting.call.changed.notified()).await.is_err() {
                if order_awaited {
                    waiting.call.collect().accept_any_order();
                    continue;
                }
                match self.kind {
                    Asked::Outside(_) => return Err(Failure::Undecided),
                    Asked::Inside(_) => {
                        late = self.asked.without(waiting.call.collect().standing().answered);
                        self.ask_others().await?;
                    }
                }
                patience = Instant::now() + self.client.statement_timeout;
            }
        }
    }

    fn is_inside(&self) -> bool {
        matches!(self.kind, Asked::Inside(_))
    }

    fn patience(&self) -> Duration {
        match self.kind {
            Asked::Outside(_) => ORDER_PATIENCE,
            Asked::Inside(_) => SILENCE_PATIENCE,
        }
    }

    /// The failure as this quorum means it: an unlocked read is ordered instead.
    fn give_up(&self, failure: Failure) -> Failure {
        match self.kind {
            Asked::Outside(_) => Failure::Undecided,
            Asked::Inside(_) => failure,
        }
    }

    /// Asks the first voters; the first of them sends the whole result.
    async fn ask_first(&mut self, waiting: &Waiting<'_>) -> Result<(), Failure> {
        let (health, all) = (&self.client.health, self.client.voter_set);
        let picked = match (self.kind, &self.live) {
            (Asked::Inside(DirectKind::Read), Some(live)) => {
                health.pick(self.client.faults + 1, live.preference(), live.machines())
            }
            (_, Some(live)) => health.pick(all.len(), live.preference(), live.machines()),
            (_, None) => health.pick(all.len(), Preference::default(), all),
        };
        self.first = picked.first().copied();
        waiting
            .call
            .collect()
            .welcome_whole(self.first.map_or(MachineSet::EMPTY, MachineSet::one));
        self.send(&picked, true).await
    }

    async fn ask_others(&mut self) -> Result<(), Failure> {
        if let Some(live) = self.live.as_deref_mut() {
            self.client.join(live).await?;
        }
        let others: Vec<_> = self.client.voter_set.without(self.asked).iter().collect();
        self.send(&others, false).await
    }

    pub(super) async fn send(&mut self, machines: &[MachineId], whole_from_first: bool) -> Result<(), Failure> {
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
            transaction: self.place.clone(),
            not_before: match self.kind {
                Asked::Outside(Quorum::Session(order)) => order,
                _ => Order(0),
            },
            exchange: self.question.exchange.clone(),
        }
    }
}
