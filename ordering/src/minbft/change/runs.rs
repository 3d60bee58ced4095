//! Everything that this machine's replica counters have certified since positions that others can prove: what its
//! next VIEW-CHANGE must show (rules NoHoles and NoLateCommit).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::identifiers::{GroupId, MachineId, Order, View};
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::change::{RunItem, RunStart};
use crate::minbft::wire::checkpoint::FollowedStatement;
use crate::minbft::wire::checkpoint::followed_positions;
use crate::minbft::wire::outcome::LiveProof;

/// Own COMMITs since the proven positions, of all groups, at which the machine commits nothing more until others
/// say that they have followed it further.
pub(crate) const RUN_COMMITS_MAX: usize = 32_768;

/// The runs of all groups.
#[derive(Debug, Default)]
pub(crate) struct OwnRuns {
    start: Option<Start>,
    /// Per group: the value before the first item of its run.
    from: Vec<u64>,
    /// Per group; the values have no gap.
    runs: Vec<VecDeque<RunItem>>,
    length: usize,
    /// About how many bytes they have in a message.
    bytes: usize,
    /// The highest view for which our counter has made a VIEW-CHANGE.
    left_for: Option<View>,
}

fn encoded_bytes(item: &RunItem) -> usize {
    match item {
        RunItem::Commit(commit) => 128 + 40 * commit.batches.len(),
        _ => 160,
    }
}

/// The proof of where the runs begin: how a view began, or how far counters were followed.
#[derive(Debug)]
enum Start {
    Admitted(Arc<LiveProof>),
    Followed(Vec<FollowedStatement>),
}

impl OwnRuns {
    /// A view has admitted our counter: what came before is settled. False when it has not, or at positions that
    /// our counter has not reached.
    pub(crate) fn admit(&mut self, proof: &Arc<LiveProof>, own: MachineId, counter: &Admission) -> bool {
        let Some(admission) = proof
            .outcome
            .admission(own)
            .filter(|known| known.epoch == counter.epoch)
        else {
            return false;
        };
        let positions = admission.positions.get(1..).unwrap_or_default();
        let is_there = counter.positions.get(1..) == Some(positions);
        if self.start.is_none() {
            // We do not know what our counter certified before this view. If it is further than the view admits, a VIEW-CHANGE
            // could not show everything, so we must not act as if we were admitted.
            if !is_there {
                return false;
            }
            self.runs = positions.iter().map(|_| VecDeque::new()).collect();
            self.bytes = 0;
            self.from = positions.to_vec();
        } else if !(is_there || proof.outcome.changed.contains(&own)) || !self.reaches(positions) {
            // We join this view late: the positions that it admits are ours from an earlier view. Our runs begin there or
            // later already, so they stay as they are.
            return true;
        }
        self.begin(Start::Admitted(Arc::clone(proof)), positions);
        true
    }

    /// Whether the positions lie within the runs.
    fn reaches(&self, positions: &[u64]) -> bool {
        let within = |((run, from), position): ((&VecDeque<RunItem>, &u64), &u64)| {
            (*from..=from + run.len() as u64).contains(position)
        };
        self.from.len() == positions.len() && self.runs.iter().zip(&self.from).zip(positions).all(within)
    }

    fn begin(&mut self, start: Start, positions: &[u64]) {
        for ((run, from), position) in self.runs.iter_mut().zip(&mut self.from).zip(positions) {
            let settled = usize::try_from(position - *from).unwrap_or(usize::MAX).min(run.len());
            self.bytes -= run.drain(..settled).map(|item| encoded_bytes(&item)).sum::<usize>();
            self.length -= settled;
            *from = *position;
        }
        self.start = Some(start);
    }

    /// f+1 machines may have followed us further; `order`: our stable checkpoint's.
    pub(crate) fn settle(
        &mut self,
        statements: Vec<FollowedStatement>,
        own: MachineId,
        epoch: u64,
        quorum: usize,
        order: Order,
    ) {
        if self.start.is_none() || statements.iter().any(|statement| statement.followed.order > order) {
            return;
        }
        let refs: Vec<_> = statements.iter().collect();
        let Some(positions) = followed_positions(&refs, own, epoch, quorum) else {
            return;
        };
        let positions = positions.get(1..).unwrap_or_default();
        if self.from != positions && self.reaches(positions) {
            self.begin(Start::Followed(statements), positions);
        }
    }

    /// Our counter has certified this.
    pub(crate) fn push(&mut self, group: GroupId, item: RunItem) {
        if let RunItem::Left { view, .. } = &item {
            self.left_for = self.left_for.max(Some(*view));
        }
        if let Some(run) = self.runs.get_mut(usize::from(group.0)).filter(|_| self.start.is_some()) {
            self.bytes += encoded_bytes(&item);
            run.push_back(item);
            self.length += 1;
        }
    }

    /// The highest view for which our counter has made a VIEW-CHANGE: a second one, or one for a lower view, would be
    /// refused by all.
    pub(crate) fn left_for(&self) -> Option<View> {
        self.left_for
    }

    /// Whether there is room for further COMMITs.
    pub(crate) fn has_room(&self, bytes_max: usize) -> bool {
        self.length < RUN_COMMITS_MAX && self.bytes < bytes_max
    }

    /// Whether our counter counts in a view that we know of: only then we may ask for another.
    pub(crate) fn is_admitted(&self) -> bool {
        self.start.is_some()
    }

    /// The runs that a VIEW-CHANGE shows when this is the last view that the machine took part in.
    pub(crate) fn show(&self, live: &Arc<LiveProof>) -> Option<(RunStart, Vec<Vec<RunItem>>)> {
        let start = match self.start.as_ref()? {
            Start::Admitted(proof) if proof.outcome.view == live.outcome.view => RunStart::Live,
            Start::Admitted(proof) => RunStart::Earlier(Arc::clone(proof)),
            Start::Followed(statements) => RunStart::Followed(statements.clone()),
        };
        let runs = self.runs.iter().map(|run| run.iter().cloned().collect());
        Some((start, runs.collect()))
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.length, self.runs.iter().map(|run| run.len()).sum::<usize>());
        for (run, from) in self.runs.iter().zip(&self.from) {
            let values = run.iter().map(|item| item.warrant().value);
            assert!(values.eq((from + 1..).take(run.len())), "no hole");
        }
    }
}
