//! The state of a machine that takes part in a view.

use std::sync::Arc;

use crate::identifiers::{GroupId, MachineId, Order, View};
use crate::minbft::group::{Group, PeerStream};
use crate::minbft::messages::Message;
use crate::minbft::primary::Primary;
use crate::minbft::start_messages::LiveProof;
use crate::minbft::stream::Stream;
use crate::minbft::view_messages::{Endorsement, ViewAcknowledgement, ViewChange};
use crate::minbft::view_verification::endorses;

/// Everything that belongs to one view.
#[derive(Debug)]
pub(crate) struct LiveView {
    /// How the view began: who is admitted.
    pub(crate) proof: Arc<LiveProof>,
    pub(crate) view: View,
    pub(crate) primary: MachineId,
    /// The counter epoch of the primary.
    pub(crate) primary_epoch: u64,
    pub(crate) stream: Stream,
    /// By group number; empty on a machine without replicas.
    pub(crate) groups: Vec<Group>,
    /// Groups to look at before the step ends.
    pub(crate) touched: Vec<GroupId>,
    /// The primary's part, if we lead.
    pub(crate) leading: Option<Primary>,
    /// All batches up to this value are in our log, and were told to the primary up to `told`.
    pub(crate) committed: u64,
    pub(crate) told: u64,
    /// When to look for bodies that are missing, monotonic.
    pub(crate) ask_us: u64,
    /// A PREPARE's time is ahead of our clock until then, monotonic.
    pub(crate) hold_us: u64,
    /// When to look whether anything is stuck, monotonic.
    pub(crate) tick_us: u64,
    /// What had been done at the last tick.
    pub(crate) mark: (u64, Order, u64),
    /// How many ticks in a row nothing was done although something is outstanding.
    pub(crate) stalled: u32,
    /// Ticks since the view began.
    pub(crate) ticks: u64,
    /// A peer has more than we do.
    pub(crate) is_behind: bool,
    /// What shows the others that our counters are without hole, until our COMMITs follow, and its last value.
    pub(crate) joining: (u64, Vec<Message>),
    /// When to sign a checkpoint although none is due, because nothing is decided any more; monotonic.
    pub(crate) idle_us: u64,
}

impl LiveView {
    /// A machine has joined late: its VIEW-CHANGE shows that its counters are without hole up to there.
    pub(crate) fn follow_change(&mut self, change: &ViewChange) {
        let admitted = self
            .proof
            .outcome
            .admission(change.machine)
            .map(|admission| admission.epoch);
        if admitted.is_none() || admitted != change.epoch() {
            return;
        }
        for (group, warrant) in self.groups.iter_mut().zip(&change.warrants) {
            if let Some(peer) = group.peers.get_mut(&change.machine) {
                peer.skip_to(warrant.value);
            }
        }
        self.touch_all();
    }

    /// A machine has endorsed an outcome of this view, right after its VIEW-CHANGE, and has not left the view since. Under a
    /// faulty primary that may have been another outcome than the one that is live, which it has not acknowledged then.
    pub(crate) fn follow_endorsement(&mut self, endorsement: &Endorsement) {
        let (machine, warrant) = (endorsement.machine, endorsement.warrant);
        let admission = self.proof.outcome.admission(machine);
        let is_counted = endorsement.view == self.view && admission.is_some_and(|known| known.epoch == warrant.epoch);
        let peer = self.groups.first_mut().and_then(|group| group.peers.get_mut(&machine));
        let is_next = |peer: &&mut PeerStream| warrant.value == peer.value.saturating_add(1) && !peer.has_committed();
        if let Some(peer) = peer.filter(is_next).filter(|_| is_counted) {
            peer.skip_to(warrant.value);
        }
        self.touch(GroupId(0));
    }

    /// A machine has acknowledged how the view begins: its COMMITs follow.
    pub(crate) fn follow_acknowledgement(&mut self, acknowledgement: &ViewAcknowledgement) {
        let machine = acknowledgement.machine;
        if !endorses(&self.proof.outcome, machine, &acknowledgement.endorsed) {
            return;
        }
        if let Some(peer) = self.groups.first_mut().and_then(|group| group.peers.get_mut(&machine)) {
            peer.skip_to(acknowledgement.acknowledged.value);
        }
        self.touch(GroupId(0));
    }

    /// Notes that a group must be looked at.
    pub(crate) fn touch(&mut self, group: GroupId) {
        if let Some(state) = self.groups.get_mut(usize::from(group.0)).filter(|state| !state.touched) {
            state.touched = true;
            self.touched.push(group);
        }
    }

    pub(crate) fn touch_all(&mut self) {
        for index in 0..self.groups.len() {
            self.touch(GroupId(u16::try_from(index).unwrap_or(u16::MAX)));
        }
    }

    pub(crate) fn deadline(&self) -> u64 {
        let resend = self.leading.as_ref().map_or(u64::MAX, |leading| leading.resend_us);
        self.ask_us
            .min(self.hold_us)
            .min(self.tick_us)
            .min(self.idle_us)
            .min(resend)
    }

    pub(crate) fn decided_by_group(&self) -> Vec<(GroupId, Order)> {
        let number = |index: usize| GroupId(u16::try_from(index).unwrap_or(u16::MAX));
        self.groups
            .iter()
            .enumerate()
            .map(|(index, group)| (number(index), group.decided))
            .collect()
    }

    /// Whether something that was begun is not done.
    pub(crate) fn is_outstanding(&self) -> bool {
        let has_gap = |group: &Group| group.peers.values().any(|peer| peer.has_gap());
        self.is_behind || !self.stream.slots.is_empty() || self.stream.has_gap() || self.groups.iter().any(has_gap)
    }

    pub(crate) fn check_invariants(&self) {
        self.stream.check_invariants();
        self.groups.iter().for_each(Group::check_invariants);
        assert!(self.touched.is_empty(), "a step looks at every group that it touches");
        if let Some(leading) = &self.leading {
            leading.check_invariants();
        }
    }
}
