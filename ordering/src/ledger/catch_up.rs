//! Catching up: a machine that lacks decided history fetches it in pieces, each chain of pieces proven by the
//! checkpoint at its end. So nobody can feed it anything but the history.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::WATERMARK_ORDERS;
use crate::identifiers::{MachineId, Order};
use crate::ledger::checkpoint_message::{CertifiedCheckpoint, StableCheckpoint};
use crate::ledger::history::extend_over;
use crate::ledger::piece::History;
use crate::ledger::point::HistoryPoint;
use crate::ledger::{Dialect, Ledger, Said};

/// The least time between two reads of the log for one machine, in microseconds. The machine that asks keeps to it.
pub(crate) const READ_INTERVAL_US: u64 = 2_000;

/// Reads that a machine may be ahead of that: messages do not arrive as evenly as they are sent.
pub(crate) const READS_AHEAD: u64 = 8;

/// Rounds over all peers, after which those that have said nothing are not waited for.
const SILENT_ROUNDS: u32 = 8;

/// A fetch that is under way.
#[derive(Debug)]
pub(crate) struct CatchUp {
    /// The end of this machine's history when the catch-up began, or at the last proof.
    from: HistoryPoint,
    /// The order up to which the history is fetched.
    target: Order,
    /// The machine that is asked for the history.
    peer: MachineId,
    /// Pieces since the last proof.
    pieces: Vec<Arc<History>>,
    /// The highest checkpoint that peers have offered instead of operations, which they have no longer; who has; and how
    /// often one was asked since the first offer.
    offered: Option<Arc<CertifiedCheckpoint>>,
    offered_by: BTreeSet<MachineId>,
    asked: u32,
    /// When the last question was sent, monotonic.
    asked_us: Option<u64>,
    /// When to ask (again), monotonic.
    ask_us: u64,
    /// The next question is only put off, and goes to the same peer.
    is_paced: bool,
}

impl CatchUp {
    fn new(from: HistoryPoint, target: Order, peer: MachineId) -> Self {
        CatchUp {
            from,
            target,
            peer,
            pieces: Vec::new(),
            offered: None,
            offered_by: BTreeSet::new(),
            asked: 0,
            asked_us: None,
            ask_us: 0,
            is_paced: false,
        }
    }

    /// The first order that is missing.
    fn next(&self) -> Order {
        self.pieces.last().map_or(self.from.order.next(), |piece| piece.end())
    }

    /// Whether a question may be sent now; else it is put off.
    fn may_ask(&mut self, now_us: u64, patience_us: u64) -> bool {
        let earliest_us = self
            .asked_us
            .map_or(0, |asked_us| asked_us.saturating_add(READ_INTERVAL_US));
        self.is_paced = now_us < earliest_us;
        if self.is_paced {
            self.ask_us = earliest_us;
        } else {
            self.asked_us = Some(now_us);
            self.ask_us = now_us.saturating_add(patience_us);
        }
        !self.is_paced
    }

    /// Whether the question that is due was only put off: else the peer has not answered.
    fn was_put_off(&self) -> bool {
        self.is_paced
    }

    /// The log of the peer that was asked does not go back so far.
    fn offer(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        self.offered_by.insert(self.peer);
        let known = self.offered.as_ref().map(|known| known.stable.point.order);
        if known.is_none_or(|known| known < checkpoint.stable.point.order) {
            self.offered = Some(Arc::clone(checkpoint));
        }
    }

    /// Asks another peer, from the last proof on. The checkpoint to go on from, when all `others` say that they have the
    /// operations no longer, or those that do not say so stay silent for long: one that says so alone may lie, and what is
    /// skipped here cannot be given to voters.
    fn turn_to(&mut self, peer: MachineId, others: u8) -> Option<Arc<CertifiedCheckpoint>> {
        self.peer = peer;
        self.pieces.clear();
        self.asked = self.asked.saturating_add(u32::from(self.offered.is_some()));
        let is_agreed = self.offered_by.len() >= usize::from(others);
        let is_over = self.asked >= u32::from(others) * SILENT_ROUNDS;
        self.offered.take_if(|_| is_agreed || is_over)
    }
}

/// The result of a fetch, which the protocol takes over.
#[derive(Debug)]
pub(crate) enum Found {
    /// Pieces of the history, and what proves them. [`Ledger::adopted`] ends taking them over.
    Pieces(Vec<Arc<History>>, StableCheckpoint),
    /// Nobody has the operations any more: the history goes on from here.
    Checkpoint(Arc<CertifiedCheckpoint>),
}

impl Found {
    /// The place in the history that it leads to.
    pub(crate) fn point(&self) -> HistoryPoint {
        match self {
            Found::Pieces(_, stable) => stable.point,
            Found::Checkpoint(checkpoint) => checkpoint.stable.point,
        }
    }
}

impl<P: Dialect> Ledger<P> {
    /// Fetches the history up to a proven checkpoint, unless that is under way.
    pub(crate) fn fetch_history(&mut self, target: Order) {
        let from = self.history.point;
        let known = self.catch_up.as_ref();
        let is_under_way = known.is_some_and(|catch_up| catch_up.from.order == from.order);
        if is_under_way || from.order >= target {
            return;
        }
        let peer = self.configuration.next_replica(self.configuration.machine);
        self.catch_up = Some(CatchUp::new(from, target, peer));
        self.ask_for_history();
    }

    fn ask_for_history(&mut self) {
        let patience_us = self.configuration.retransmission_us.saturating_mul(4);
        let now_us = self.now.monotonic_us;
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        if catch_up.may_ask(now_us, patience_us) {
            let (peer, next) = (catch_up.peer, catch_up.next());
            self.send(To::Machine(peer), Said::FetchHistory(next));
        }
    }

    /// The peer did not answer, or not usefully: another one, from the last proof on.
    fn ask_another(&mut self) -> Option<Found> {
        let catch_up = self.catch_up.as_mut()?;
        let peer = self.configuration.next_replica(catch_up.peer);
        let others = self.configuration.replicas() - 1;
        if let Some(checkpoint) = catch_up.turn_to(peer, others) {
            self.catch_up = None;
            let is_news = checkpoint.stable.point.order > self.history.point.order;
            return is_news.then_some(Found::Checkpoint(checkpoint));
        }
        self.ask_for_history();
        None
    }

    /// The log of the peer that was asked does not go back so far.
    pub(crate) fn on_give_checkpoint(
        &mut self,
        from: MachineId,
        checkpoint: &Arc<CertifiedCheckpoint>,
    ) -> Option<Found> {
        let own = self.history.point.order;
        let asked = self.catch_up.as_mut().filter(|catch_up| catch_up.peer == from);
        let catch_up = asked.filter(|_| checkpoint.stable.point.order > own)?;
        catch_up.offer(checkpoint);
        self.ask_another()
    }

    /// When the next question is due.
    pub(crate) fn catch_up_due(&self) -> Option<u64> {
        self.catch_up.as_ref().map(|catch_up| catch_up.ask_us)
    }

    /// Ends a fetch whose next question is due, if we got there by ourselves.
    pub(crate) fn end_fetch_if_there(&mut self) {
        let (now_us, own) = (self.now.monotonic_us, self.history.point.order);
        self.catch_up
            .take_if(|catch_up| catch_up.ask_us <= now_us && own >= catch_up.target);
    }

    /// A question is due: it was put off, or the peer has not answered.
    pub(crate) fn catch_up_timer(&mut self) -> Option<Found> {
        let now_us = self.now.monotonic_us;
        let due = self.catch_up.as_ref().filter(|catch_up| catch_up.ask_us <= now_us)?;
        if due.was_put_off() {
            self.ask_for_history();
            return None;
        }
        self.ask_another()
    }

    /// A piece of the history has come.
    pub(crate) fn on_give_history(&mut self, from: MachineId, history: &Arc<History>) -> Option<Found> {
        let catch_up = self.catch_up.as_mut()?;
        if catch_up.peer != from || history.first != catch_up.next() || history.entries.is_empty() {
            return None;
        }
        if catch_up.from != self.history.point {
            // We got on by ourselves meanwhile.
            self.catch_up = None;
            return None;
        }
        catch_up.pieces.push(Arc::clone(history));
        let Some(proof) = &history.proof else {
            if catch_up.next().0 - catch_up.from.order.0 > 2 * WATERMARK_ORDERS {
                return self.ask_another();
            }
            self.ask_for_history();
            return None;
        };
        let end = extend_over(catch_up.from, &catch_up.pieces);
        let proven = HistoryPoint {
            view: end.view,
            value: end.value,
            ..proof.point
        };
        if end != proven {
            self.report(from, MisbehaviourKind::WrongContent);
            return self.ask_another();
        }
        Some(Found::Pieces(std::mem::take(&mut catch_up.pieces), proof.clone()))
    }

    /// The pieces were taken over: asks for more, unless the target is reached.
    pub(crate) fn adopted(&mut self) {
        let end = self.history.point;
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        if end.order >= catch_up.target {
            self.catch_up = None;
        } else {
            catch_up.from = end;
            self.ask_for_history();
        }
    }

    /// Puts the end of our history at a certified checkpoint.
    pub(crate) fn skip_to(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        let point = checkpoint.stable.point;
        self.history.jump(&mut self.bodies, point);
        self.checkpoints.set_certified(Arc::clone(checkpoint));
        self.checkpoints.signed = self.checkpoints.signed.max(point.order);
    }
}
