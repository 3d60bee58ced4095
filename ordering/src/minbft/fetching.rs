//! A fetch of decided history that is under way: both protocols catch up by the same dialogue.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::identifiers::{MachineId, Order};
use crate::minbft::messages::{CertifiedCheckpoint, History, HistoryPoint};

/// The least time between two reads of the log for one machine, in microseconds: whoever asks keeps to it.
pub(crate) const READ_INTERVAL_US: u64 = 2_000;

/// Reads that a machine may be ahead of that: messages do not arrive as evenly as they are sent.
pub(crate) const READS_AHEAD: u64 = 8;

/// Rounds over all peers, after which those that have said nothing are not waited for.
const SILENT_ROUNDS: u32 = 8;

/// A fetch that is under way.
#[derive(Debug)]
pub(crate) struct CatchUp {
    /// Where our history ended when it began, or at the last proof.
    pub(crate) from: HistoryPoint,
    /// Where it should end.
    pub(crate) target: Order,
    /// Who is asked.
    pub(crate) peer: MachineId,
    /// Pieces since the last proof.
    pub(crate) pieces: Vec<Arc<History>>,
    /// The highest checkpoint that peers have offered instead of operations, which they have no longer; who has; and how
    /// often one was asked since the first offer.
    offered: Option<Arc<CertifiedCheckpoint>>,
    offered_by: BTreeSet<MachineId>,
    asked: u32,
    /// When the last question was sent, monotonic.
    asked_us: Option<u64>,
    /// When to ask (again), monotonic.
    pub(crate) ask_us: u64,
    /// The next question is only put off, and goes to the same peer.
    is_paced: bool,
}

impl CatchUp {
    pub(crate) fn new(from: HistoryPoint, target: Order, peer: MachineId) -> Self {
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
    pub(crate) fn next(&self) -> Order {
        self.pieces.last().map_or(self.from.order.next(), |piece| piece.end())
    }

    /// Whether a question may be sent now; else it is put off.
    pub(crate) fn may_ask(&mut self, now_us: u64, patience_us: u64) -> bool {
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
    pub(crate) fn was_put_off(&self) -> bool {
        self.is_paced
    }

    /// The log of the peer that was asked does not go back so far.
    pub(crate) fn offer(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        self.offered_by.insert(self.peer);
        let known = self.offered.as_ref().map(|known| known.stable.point.order);
        if known.is_none_or(|known| known < checkpoint.stable.point.order) {
            self.offered = Some(Arc::clone(checkpoint));
        }
    }

    /// Asks another peer, from the last proof on. The checkpoint to go on from, when all `others` say that they have the
    /// operations no longer, or those that do not say so stay silent for long: one that says so alone may lie, and what is
    /// skipped here cannot be given to voters.
    pub(crate) fn turn_to(&mut self, peer: MachineId, others: u8) -> Option<Arc<CertifiedCheckpoint>> {
        self.peer = peer;
        self.pieces.clear();
        self.asked = self.asked.saturating_add(u32::from(self.offered.is_some()));
        let is_agreed = self.offered_by.len() >= usize::from(others);
        let is_over = self.asked >= u32::from(others) * SILENT_ROUNDS;
        self.offered.take_if(|_| is_agreed || is_over)
    }
}
