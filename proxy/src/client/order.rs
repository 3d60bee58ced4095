//! Ordered requests.

use std::sync::atomic::Ordering as Atomic;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::Signer;
use ordering::identifiers::{MachineId, Order};
use ordering::message::{OPERATION_BYTES_MAX, Request, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{ExchangeResult, Operation, SessionContext, Work};
use tokio::time::{Instant, timeout_at};

use super::calls::{Call, Waiting};
use super::collect::{Agreed, Collect, Rows, Standing};
use super::large::{Chunks, Whole};
use super::live::Live;
use super::{Cancel, Client, Failure, OTHERS_PATIENCE, ROWS_PATIENCE, SILENCE_PATIENCE, Voted};
use crate::measures::invalid;
use crate::port::{Destination, MachineSet, ToNode};

/// The first retransmission comes after this; each further one after twice the time.
const RETRANSMIT_FIRST: Duration = Duration::from_millis(700);
/// Retransmissions are at most this far apart.
const RETRANSMIT_MAX: Duration = Duration::from_secs(8);
/// How long the voter that was picked may be later with the whole result than a majority with its digest.
const WHOLE_PATIENCE: Duration = Duration::from_millis(20);
/// How long a one-shot that has come to its time limit may take to be taken back.
const TAKE_BACK_PATIENCE: Duration = Duration::from_secs(5);
/// How often that is tried.
const TAKE_BACK_INTERVAL: Duration = Duration::from_secs(1);
/// Voters that run a statement are looked after as often as this, once its time is over.
const RUNNING_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a voter may take to answer a recall before another is asked.
const RECALL_PATIENCE: Duration = Duration::from_millis(250);

/// What an operation's answers mean beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// It commits by itself.
    OneShot,
    /// It commits a transaction.
    Commit,
    /// A statement of an open transaction: it has no effect without that transaction's COMMIT.
    Within,
    /// Anything else without effect.
    Harmless,
}

impl Nature {
    fn of(work: &Work) -> Self {
        match work {
            Work::OneShot { .. } => Nature::OneShot,
            Work::Commit { .. } => Nature::Commit,
            Work::Extend { .. }
            | Work::Read {
                transaction: Some(_), ..
            } => Nature::Within,
            _ => Nature::Harmless,
        }
    }

    /// Whether it may be committed though nobody can say so.
    fn commits(self) -> bool {
        matches!(self, Nature::OneShot | Nature::Commit)
    }
}

/// A request on its way.
struct Ordering<'call> {
    waiting: &'call Waiting<'call>,
    request: Request,
    key: ResultKey,
    nature: Nature,
    /// Whether the voters that Begin named live take turns with the whole result, rather than all.
    live_in_turns: bool,
}

impl Client {
    /// Has an operation ordered and run, and gives the result that f+1 voters agree on. With `cancel`, gives up when
    /// the application wants that; a one-shot is not given up but taken back, if it still waits for its locks.
    pub(crate) async fn order(
        &self,
        operation: &Operation,
        rows: Rows,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        self.order_within(operation, rows, cancel, None, self.statement_timeout)
            .await
    }

    /// The same for a statement that only the live voters of an open transaction run; the others are joined when those do not
    /// agree.
    pub(crate) async fn order_live(
        &self,
        operation: &Operation,
        rows: Rows,
        cancel: Option<&Cancel>,
        live: &mut Live,
    ) -> Result<Voted, Failure> {
        let voted = self
            .order_within(operation, rows, cancel, Some(&mut *live), self.statement_timeout)
            .await?;
        live.note(&voted);
        Ok(voted)
    }

    /// The same with a time limit of its own.
    pub(crate) async fn order_within(
        &self,
        operation: &Operation,
        rows: Rows,
        cancel: Option<&Cancel>,
        mut live: Option<&mut Live>,
        limit: Duration,
    ) -> Result<Voted, Failure> {
        let deadline = Instant::now() + limit;
        let home = operation.footprint.home().home_number();
        let encoded = borsh::to_vec(operation).unwrap_or_default();
        if encoded.len() > OPERATION_BYTES_MAX || encoded.is_empty() {
            return Err(Failure::TooLarge);
        }
        if matches!(operation.work, Work::Begin { .. }) {
            self.gathering.wait().await;
        } else {
            self.gathering.leave();
        }
        let number = tokio::select! {
            number = timeout_at(deadline, self.numbers.take()) => number.map_err(|_| Failure::NoProgress)?,
            () = wait_for(cancel) => return Err(Failure::Cancelled),
        };
        let mut request = Request {
            client: self.id,
            number: number.number,
            floor: number.floor,
            home,
            operation: encoded.into(),
            signature: [0; 64],
        };
        request.signature = self.signing_key.sign(&request.digest()).to_bytes();
        if let Some(live) = &mut live {
            live.ordered_by(request.number);
        }
        let key = ResultKey::Request(request.number);
        let needed = live.as_ref().map_or(self.faults + 1, |live| live.needed());
        let waiting = self.calls.open(key, Collect::new(self.voter_set, needed, true, rows));
        let ordering = Ordering {
            waiting: &waiting,
            request,
            key,
            nature: Nature::of(&operation.work),
            live_in_turns: matches!(operation.work, Work::Begin { .. } | Work::Extend { .. }),
        };
        let mut read =
            matches!(operation.work, Work::Read { transaction: None, .. }).then(|| self.given_up_unless_answered(key));
        let wait = self.await_order(&ordering, live);
        let number = ordering.request.number;
        let voted = match ordering.nature {
            // A one-shot may be committed: only its own answer tells what became of it.
            Nature::OneShot => tokio::select! {
                voted = wait => voted,
                () = self.no_outcome(&waiting.call, number, deadline, limit) => Err(Failure::NoProgress),
                () = self.take_back(number, cancel) => Err(Failure::Cancelled),
            },
            _ => tokio::select! {
                voted = wait => voted,
                () = self.no_progress(&waiting.call, deadline, limit) => Err(Failure::NoProgress),
                () = wait_for(cancel) => Err(Failure::Cancelled),
            },
        };
        if let Some(read) = &mut read {
            read.answered |= voted.is_ok();
        }
        self.resolved(key, &waiting.call, voted, cancel).await
    }

    /// The same as [`Client::no_progress`] for a one-shot, which is taken back before it is given up.
    async fn no_outcome(&self, call: &Call, request: u64, deadline: Instant, limit: Duration) {
        self.no_progress(call, deadline, limit).await;
        let patience = Instant::now() + TAKE_BACK_PATIENCE;
        let _ = timeout_at(patience, self.take_back(request, Some(&Cancel::requested()))).await;
    }

    /// When the application wants it, has a one-shot taken back that still waits for its locks, as often as it takes. Never
    /// completes: if it is taken back, its own answer says so.
    async fn take_back(&self, request: u64, cancel: Option<&Cancel>) {
        wait_for(cancel).await;
        loop {
            let footprint = Footprint::empty();
            let operation = Operation {
                context: SessionContext::default(),
                footprint,
                nonce: rand::random(),
                work: Work::Cancel { request },
            };
            let ordered = Box::pin(self.order_within(&operation, Rows::Ordered, None, None, TAKE_BACK_PATIENCE)).await;
            if let Err(failure) = ordered {
                tracing::debug!(?failure, "a statement could not be taken back");
            }
            tokio::time::sleep(TAKE_BACK_INTERVAL).await;
        }
    }

    /// Completes when the time limit is over. As long as enough voters say that they run it, it is not.
    pub(super) async fn no_progress(&self, call: &Call, mut deadline: Instant, limit: Duration) {
        loop {
            tokio::time::sleep_until(deadline).await;
            if !call.collect().is_running() {
                return;
            }
            deadline = Instant::now() + limit.min(RUNNING_CHECK_INTERVAL);
        }
    }

    /// Makes the result ready, if there is one; else nobody needs what voters have kept of it.
    pub(super) async fn resolved(
        &self,
        key: ResultKey,
        call: &Call,
        voted: Result<Voted<Whole>, Failure>,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        match voted {
            Ok(Voted {
                order,
                result,
                prompt,
                unavailable,
            }) => {
                let result = self.resolve(result, cancel).await?;
                Ok(Voted {
                    order,
                    result,
                    prompt,
                    unavailable,
                })
            }
            Err(failure) => {
                let kept = call.collect().larges(self.voter_set);
                kept.iter()
                    .for_each(|(machine, _)| self.release_unwanted(*machine, key));
                Err(failure)
            }
        }
    }

    async fn await_order(&self, ordering: &Ordering<'_>, mut live: Option<&mut Live>) -> Result<Voted<Whole>, Failure> {
        let started = Instant::now();
        let Ordering {
            waiting, request, key, ..
        } = ordering;
        let mut pause = RETRANSMIT_FIRST;
        self.send(Destination::All, ToNode::Request(request.clone())).await?;
        let mut retransmit_at = Instant::now() + pause;
        let mut order_until = None;
        let mut lost_until = None;
        let mut others_at = Instant::now() + SILENCE_PATIENCE;
        let mut joined = MachineSet::EMPTY;
        let mut late = MachineSet::EMPTY;
        loop {
            let standing = waiting.call.collect().standing();
            if let Some((agreed, supporters, order)) = &standing.agreed {
                self.acknowledged.fetch_max(order.0, Atomic::Relaxed);
                let named = live.as_deref().filter(|_| ordering.live_in_turns).map(Live::named);
                let first = self.picked_whole(*order, *supporters, named.unwrap_or(self.voter_set));
                let running = live.as_deref().map_or(self.voter_set, Live::machines);
                let first = first.filter(|machine| running.contains(*machine));
                let result = self.whole(&waiting.call, *key, agreed, *supporters, first).await?;
                let differing = match standing.conflict {
                    true => standing.answered.without(*supporters),
                    false => MachineSet::EMPTY,
                };
                return Ok(Voted {
                    order: *order,
                    result,
                    prompt: *supporters,
                    unavailable: standing.unavailable.union(late).union(differing),
                });
            }
            if let Some(voted) = self.committed_before(ordering) {
                return Ok(voted);
            }
            if ordering.nature == Nature::OneShot && self.is_executed(ordering, &standing) {
                // A result that f+1 voters still have is better.
                let until = *lost_until.get_or_insert(Instant::now() + ROWS_PATIENCE);
                let more = self.health.live().without(standing.answered);
                if more.is_empty() || until <= Instant::now() {
                    return Err(self.result_lost(ordering).await);
                }
            } else if let Some(failure) = self.hopeless(&standing) {
                return Err(match failure {
                    Failure::NoMajority(detail) if ordering.nature == Nature::OneShot => {
                        Failure::NoMajority(format!("{detail} It is ordered, and may be committed."))
                    }
                    _ if ordering.nature.commits() => Failure::OutcomeUnknown,
                    failure => failure,
                });
            }
            if ordering.nature == Nature::Within && self.has_lost_transaction(&standing) {
                return Err(Failure::transaction_lost());
            }
            if standing.order_open && order_until.is_none() {
                order_until = Some(Instant::now() + ROWS_PATIENCE);
            }
            if let Some(live) = live.as_deref_mut()
                && self.voter_set != live.machines()
            {
                let missing = live.machines().without(standing.answered);
                let all_run = missing.without(standing.running).is_empty();
                if !standing.answered.is_empty() {
                    let more = if all_run { started.elapsed() / 2 } else { Duration::ZERO };
                    others_at = others_at.min(Instant::now() + OTHERS_PATIENCE + more);
                } else if all_run {
                    others_at = others_at.max(Instant::now() + SILENCE_PATIENCE);
                }
                if standing.needs_others() || standing.order_open || others_at <= Instant::now() {
                    late = live.machines().without(standing.answered);
                    self.health.asked(late);
                    joined = self.join(live).await?;
                    self.join_ordered(live, joined).await?;
                }
            }
            let mut wake_at = retransmit_at;
            if live.as_deref().is_some_and(|live| live.machines() != self.voter_set) {
                wake_at = wake_at.min(others_at);
            }
            let wake_at = [order_until, lost_until]
                .into_iter()
                .flatten()
                .fold(wake_at, Instant::min);
            if timeout_at(wake_at, waiting.call.changed.notified()).await.is_err() {
                if order_until.is_some_and(|until| until <= Instant::now()) {
                    waiting.call.collect().accept_any_order();
                    continue;
                }
                if retransmit_at > Instant::now() {
                    continue;
                }
                metrics::counter!("cloudbft_retransmissions_total").increment(1);
                self.send(Destination::All, ToNode::Request(request.clone())).await?;
                if let Some(live) = live.as_deref()
                    && !joined.is_empty()
                {
                    self.join_ordered(live, joined).await?;
                }
                pause = (pause * 2).min(RETRANSMIT_MAX);
                retransmit_at = Instant::now() + pause;
            }
        }
    }

    /// A Commit of which f+1 voters say that it is done, some of them without its result: what COMMIT answers is known.
    fn committed_before(&self, ordering: &Ordering<'_>) -> Option<Voted<Whole>> {
        if ordering.nature != Nature::Commit {
            return None;
        }
        let result = ExchangeResult {
            messages: Bytes::from_static(b"C\0\0\0\x0bCOMMIT\0"),
            status: b'I',
        };
        let plain = result.digests().ok()?.sequence;
        let executed = ordering.waiting.call.collect().executed_with(&plain);
        (executed.len() > self.faults).then_some(Voted {
            order: Order(0),
            result: Whole::Result(result),
            prompt: executed,
            unavailable: MachineSet::EMPTY,
        })
    }

    /// Whether f+1 voters have executed a one-shot of which some have no result any more.
    fn is_executed(&self, ordering: &Ordering<'_>, standing: &Standing) -> bool {
        let collect = ordering.waiting.call.collect();
        let with_result = collect.largest_result().map_or(0, |(_, members)| members.len());
        !standing.executed.is_empty() && standing.executed.len() + with_result > self.faults
    }

    /// What to say of a one-shot whose result fewer than f+1 voters have: that it is committed, if f+1 say so.
    async fn result_lost(&self, ordering: &Ordering<'_>) -> Failure {
        let call = &ordering.waiting.call;
        if call.collect().standing().executed.len() > self.faults {
            return Failure::ResultLost;
        }
        // The result of the voters that have one tells whether it succeeded or was an error.
        let Some((agreed, members)) = call.collect().largest_result() else {
            return Failure::OutcomeUnknown;
        };
        let whole = self.whole(call, ordering.key, &agreed, members, None);
        match tokio::time::timeout(ROWS_PATIENCE, whole).await {
            Ok(Ok(Whole::Result(result))) if !crate::wire::scan(&result.messages).failed => Failure::ResultLost,
            _ => Failure::OutcomeUnknown,
        }
    }

    /// The voter that sends the result at this order whole, unasked.
    fn picked_whole(&self, order: Order, supporters: MachineSet, senders: MachineSet) -> Option<MachineId> {
        let count = u64::try_from(senders.len()).unwrap_or(1).max(1);
        let picked = senders.iter().nth(usize::try_from(order.0 % count).unwrap_or(0));
        let live = self.health.live();
        // One that has not answered yet may still come.
        picked.filter(|machine| supporters.contains(*machine) || live.contains(*machine))
    }

    /// Whether a voter has lost the open transaction while others are away, so that no majority is left for its statements:
    /// waiting for those that are away would hold its locks for nothing, since they have lost it too.
    pub(super) fn has_lost_transaction(&self, standing: &Standing) -> bool {
        let coming = self.health.live().without(standing.answered).len();
        !standing.unavailable.is_empty() && standing.largest + coming <= self.faults
    }

    /// Whether no majority can be reached any more.
    pub(super) fn hopeless(&self, standing: &Standing) -> Option<Failure> {
        let silent = self.voters.len() - standing.answered.len();
        if standing.largest + silent > self.faults {
            return None;
        }
        if standing.conflict {
            let detail = format!(
                "{} of {} database nodes answered, at most {} of them alike; {} cannot say.",
                standing.answered.len(),
                self.voters.len(),
                standing.largest,
                standing.unavailable.len(),
            );
            return Some(Failure::NoMajority(detail));
        }
        Some(Failure::Unavailable)
    }

    /// The whole result that has the digest that was agreed on: as sent by `picked`, or asked of the supporters one by one.
    pub(super) async fn whole(
        &self,
        call: &Call,
        key: ResultKey,
        agreed: &Agreed,
        supporters: MachineSet,
        picked: Option<MachineId>,
    ) -> Result<Whole, Failure> {
        if let Agreed::Refused(refused) = agreed {
            return Err(Failure::Refused(refused.clone().into()));
        }
        let sources = call.collect().larges(supporters);
        if !sources.is_empty() {
            let (agreed, count) = (agreed.clone(), supporters.len());
            return Ok(Whole::Chunks(Chunks {
                key,
                each_agreed: matches!(agreed, Agreed::Sequence(_)) && count > self.faults,
                agreed,
                sources,
            }));
        }
        let all = supporters.union(picked.map_or(MachineSet::EMPTY, MachineSet::one));
        call.collect().welcome_whole(all);
        let answered = call.collect().standing().answered;
        let mut patience = WHOLE_PATIENCE;
        // It came without the result: no use waiting for it.
        if picked.is_none_or(|picked| answered.contains(picked)) {
            patience = Duration::ZERO;
        }
        let mut candidates = supporters.iter().collect::<Vec<_>>();
        // The picked one is asked last: it should have sent its result unasked.
        candidates.sort_by_key(|candidate| Some(*candidate) == picked);
        let mut candidates = candidates.into_iter().cycle();
        loop {
            let give_up = Instant::now() + patience;
            loop {
                let whole = call.collect().take_whole(all);
                if let Some((from, whole)) = whole {
                    if let Some(result) = Self::verify_whole(agreed, &whole) {
                        let others = call.collect().wholes(supporters);
                        return Ok(Whole::Result(self.settled(agreed, result, &others)));
                    }
                    tracing::warn!(machine = from.0, "a voter's result is not the one that it voted for");
                    invalid(from, "result_digest");
                    break;
                }
                if patience.is_zero() || timeout_at(give_up, call.changed.notified()).await.is_err() {
                    break;
                }
            }
            if let Some(machine) = candidates.next() {
                self.recall(key, machine).await?;
            }
            patience = RECALL_PATIENCE;
        }
    }
}

/// Waits for the application's wish to cancel; for ever without one.
pub(super) async fn wait_for(cancel: Option<&Cancel>) {
    match cancel {
        Some(cancel) => cancel.wait().await,
        None => std::future::pending().await,
    }
}
