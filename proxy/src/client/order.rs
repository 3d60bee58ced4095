//! Ordered requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ed25519_dalek::Signer;
use ordering::identifiers::{MachineId, Order};
use ordering::message::{OPERATION_BYTES_MAX, Request, ResultKey};
use sql::operation::{Operation, Work};
use tokio::time::{Instant, timeout_at};

use super::calls::{Call, Waiting};
use super::collect::{Agreed, Collect, Rows, Standing};
use super::{Cancel, Client, Failure, ROWS_PATIENCE, Voted};
use crate::port::{Destination, MachineSet, ToNode};

/// The first retransmission comes after this; each further one after twice the time.
const RETRANSMIT_FIRST: Duration = Duration::from_millis(700);
/// Retransmissions are at most this far apart.
const RETRANSMIT_MAX: Duration = Duration::from_secs(8);
/// How long the voter that was picked may be later with the whole result than a majority with its digest.
const WHOLE_PATIENCE: Duration = Duration::from_millis(20);
/// How long a voter may take to answer a recall before another is asked.
const RECALL_PATIENCE: Duration = Duration::from_millis(250);

impl Client {
    /// Has an operation ordered and run, and gives the result that f+1 voters agree on. With `cancel`, gives up when
    /// the application wants that: only for what has no effect.
    pub(crate) async fn order(
        &self,
        operation: &Operation,
        rows: Rows,
        cancel: Option<&Cancel>,
    ) -> Result<Voted, Failure> {
        self.order_within(operation, rows, cancel, self.statement_timeout).await
    }

    /// The same with a time limit of its own.
    pub(crate) async fn order_within(
        &self,
        operation: &Operation,
        rows: Rows,
        cancel: Option<&Cancel>,
        limit: Duration,
    ) -> Result<Voted, Failure> {
        let deadline = Instant::now() + limit;
        let home = operation.footprint.home().home_number();
        let encoded = borsh::to_vec(operation).unwrap_or_default();
        if encoded.len() > OPERATION_BYTES_MAX || encoded.is_empty() {
            return Err(Failure::TooLarge);
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
        let key = ResultKey::Request(request.number);
        let waiting = self
            .calls
            .open(key, Collect::new(self.voter_set, self.faults + 1, true, rows));
        let within = matches!(
            operation.work,
            Work::Extend { .. }
                | Work::Read {
                    transaction: Some(_),
                    ..
                }
        );
        let wait = self.await_order(&waiting, &request, key, within);
        tokio::select! {
            voted = timeout_at(deadline, wait) => voted.map_err(|_| Failure::NoProgress)?,
            () = wait_for(cancel) => Err(Failure::Cancelled),
        }
    }

    /// `within`: it is a statement of an open transaction, and has no effect without its COMMIT.
    async fn await_order(
        &self,
        waiting: &Waiting<'_>,
        request: &Request,
        key: ResultKey,
        within: bool,
    ) -> Result<Voted, Failure> {
        let mut pause = RETRANSMIT_FIRST;
        self.send(Destination::All, ToNode::Request(request.clone())).await?;
        let mut retransmit_at = Instant::now() + pause;
        let mut order_until = None;
        loop {
            let standing = waiting.call.collect().standing();
            if let Some((agreed, supporters, order)) = standing.agreed {
                self.acknowledged.fetch_max(order.0, Ordering::Relaxed);
                let first = self.picked_whole(order, supporters);
                let result = self.whole(&waiting.call, key, &agreed, supporters, first).await?;
                return Ok(Voted {
                    order,
                    result,
                    prompt: supporters,
                    unavailable: standing.unavailable,
                });
            }
            if let Some(failure) = self.hopeless(&standing) {
                return Err(failure);
            }
            if within && self.has_lost_transaction(&standing) {
                return Err(Failure::transaction_lost());
            }
            if standing.order_open && order_until.is_none() {
                order_until = Some(Instant::now() + ROWS_PATIENCE);
            }
            let wake_at = order_until.map_or(retransmit_at, |until| until.min(retransmit_at));
            if timeout_at(wake_at, waiting.call.changed.notified()).await.is_err() {
                if order_until.is_some_and(|until| until <= Instant::now()) {
                    waiting.call.collect().accept_any_order();
                    continue;
                }
                metrics::counter!("cloudbft_retransmissions_total").increment(1);
                self.send(Destination::All, ToNode::Request(request.clone())).await?;
                pause = (pause * 2).min(RETRANSMIT_MAX);
                retransmit_at = Instant::now() + pause;
            }
        }
    }

    /// The voter that sends the result at this order whole, unasked.
    fn picked_whole(&self, order: Order, supporters: MachineSet) -> Option<MachineId> {
        let count = u64::try_from(self.voters.len()).unwrap_or(1).max(1);
        let picked = self.voters.get(usize::try_from(order.0 % count).unwrap_or(0)).copied();
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
    ) -> Result<sql::operation::ExchangeResult, Failure> {
        if let Agreed::Refused(refused) = agreed {
            return Err(Failure::Refused(refused.clone().into()));
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
                        return Ok(result);
                    }
                    tracing::warn!(machine = from.0, "a voter's result is not the one that it voted for");
                    metrics::counter!("cloudbft_invalid_messages_total", "reason" => "result_digest").increment(1);
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
