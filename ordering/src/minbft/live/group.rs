//! One group at one machine: the own replica's COMMITs, and the streams of its peers' COMMITs (rules NoHoles and
//! NoLateCommit).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::configuration::COMMIT_WINDOW;
use crate::identifiers::{MachineId, Order};
use crate::minbft::wire::ordered::Commit;

/// Own COMMITs that are kept to be sent again.
pub(crate) const COMMITS_KEPT: usize = 1024;

/// A peer replica's COMMITs, followed strictly in the order of its counter.
///
/// No COMMIT after a view change (rule NoLateCommit): within a view nothing but COMMITs uses up the replica's warrants,
/// so one that was spent on leaving the view is a gap that never closes.
#[derive(Debug)]
pub(crate) struct PeerStream {
    /// The counter epoch that this view admitted.
    pub(crate) epoch: u64,
    /// The last value that was followed. Invariant: every value up to it was, since the view began.
    pub(crate) value: u64,
    /// The last batch that it has committed: batches ascend.
    pub(crate) last_batch: u64,
    /// Everything up to this value covers batches up to the last checkpoint that this machine signed.
    settled: u64,
    /// (counter value, last batch) of the COMMITs after that.
    unsettled: VecDeque<(u64, u64)>,
    /// COMMITs ahead of a gap, by counter value.
    window: BTreeMap<u64, Arc<Commit>>,
    /// The replica broke the rules: nothing more of it is followed in this view.
    pub(crate) stopped: bool,
}

impl PeerStream {
    pub(crate) fn new(epoch: u64, value: u64) -> Self {
        PeerStream {
            epoch,
            value,
            last_batch: 0,
            settled: value,
            unsettled: VecDeque::new(),
            window: BTreeMap::new(),
            stopped: false,
        }
    }

    /// Keeps a COMMIT until its turn comes.
    pub(crate) fn offer(&mut self, commit: &Arc<Commit>, window: u64) {
        let value = commit.warrant.value;
        if value > self.value && value <= self.value.saturating_add(window) && !self.stopped {
            self.window.entry(value).or_insert_with(|| Arc::clone(commit));
        }
    }

    /// The COMMIT whose turn it is, if all of its batches are at most `batch_max`.
    pub(crate) fn follow(&mut self, batch_max: u64, is_hole_allowed: bool) -> Option<Arc<Commit>> {
        let entry = self.window.first_entry()?;
        let is_near = entry.get().batches.last().is_some_and(|(batch, _)| *batch <= batch_max);
        let is_next = is_hole_allowed || *entry.key() == self.value + 1;
        if !is_next || !is_near || self.stopped {
            return None;
        }
        self.value = *entry.key();
        let commit = entry.remove();
        let last = commit.batches.last().map_or(0, |(batch, _)| *batch);
        self.unsettled.push_back((self.value, last));
        Some(commit)
    }

    /// An own COMMIT was sent.
    fn sent(&mut self, commit: &Commit) {
        self.value = commit.warrant.value;
        let last = commit.batches.last().map_or(0, |(batch, _)| *batch);
        self.unsettled.push_back((self.value, last));
    }

    /// The replica has shown what its warrants up to this value were for, or others have followed them.
    pub(crate) fn skip_to(&mut self, value: u64) {
        if value > self.value {
            self.value = value;
            self.settled = value;
            self.unsettled.clear();
            self.window = self.window.split_off(&(value + 1));
        }
    }

    /// Whether anything that it has committed in this view was followed.
    pub(crate) fn has_committed(&self) -> bool {
        self.last_batch > 0 || !self.unsettled.is_empty()
    }

    /// The value up to which all COMMITs cover batches up to this one.
    pub(crate) fn settle(&mut self, batch: u64) -> u64 {
        while let Some((value, _)) = self.unsettled.pop_front_if(|(_, last)| *last <= batch) {
            self.settled = value;
        }
        self.settled
    }

    /// Stops following this replica.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.window.clear();
    }

    pub(crate) fn has_gap(&self) -> bool {
        !self.window.is_empty()
    }

    fn check_invariants(&self) {
        assert!(self.window.len() as u64 <= COMMIT_WINDOW);
        assert!(
            self.window
                .first_key_value()
                .is_none_or(|(value, _)| *value > self.value)
        );
    }
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    /// Batches with a share that this replica has not begun to commit, ascending.
    pub(crate) to_commit: VecDeque<u64>,
    /// A COMMIT is with the counter; further batches wait for the next one.
    pub(crate) certifying: bool,
    /// Batches with a share that is not delivered, ascending.
    pub(crate) to_deliver: VecDeque<u64>,
    /// The last order that was decided.
    pub(crate) decided: Order,
    /// Streams of the other replicas.
    pub(crate) peers: BTreeMap<MachineId, PeerStream>,
    /// The own replica's stream, as the others see it: what it has sent.
    pub(crate) own_stream: PeerStream,
    /// The last own COMMITs that were sent.
    own: VecDeque<Arc<Commit>>,
    /// Stands in the list of groups to look at.
    pub(crate) touched: bool,
}

impl Group {
    pub(crate) fn new(decided: Order, peers: BTreeMap<MachineId, PeerStream>, own_stream: PeerStream) -> Self {
        Group {
            to_commit: VecDeque::new(),
            certifying: false,
            to_deliver: VecDeque::new(),
            decided,
            peers,
            own_stream,
            own: VecDeque::new(),
            touched: false,
        }
    }

    /// Keeps an own COMMIT that was sent.
    pub(crate) fn keep(&mut self, commit: Arc<Commit>) {
        self.own_stream.sent(&commit);
        if self.own.len() == COMMITS_KEPT {
            self.own.pop_front();
        }
        self.own.push_back(commit);
    }

    /// Own COMMITs after this counter value.
    pub(crate) fn kept_after(&self, value: u64) -> impl Iterator<Item = &Arc<Commit>> {
        self.own.iter().filter(move |commit| commit.warrant.value > value)
    }

    /// Jumps: every batch up to this value is decided and logged.
    pub(crate) fn jump(&mut self, value: u64) {
        self.to_commit.retain(|batch| *batch > value);
        self.to_deliver.retain(|batch| *batch > value);
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.to_commit.iter().is_sorted() && self.to_deliver.iter().is_sorted());
        self.peers.values().for_each(PeerStream::check_invariants);
    }
}
