//! The view of a machine: which one it is in or wants, and what it keeps for later ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::identifiers::{Digest, MachineId, View};
use crate::pbft::lead::Leader;
use crate::pbft::messages::{Batch, Commit, NewView, PrePrepare, Prepare, RequestViewChange, ViewChange};
use crate::pbft::outcome::End;

/// Messages of one machine for a view that has not begun here, that are kept at most.
const EARLY_MAX: usize = 256;

/// A message for a view that has not begun here.
#[derive(Clone, Debug)]
pub(crate) enum Early {
    PrePrepare(Arc<PrePrepare>, Digest),
    Prepare(Prepare),
    Commit(Commit),
}

impl Early {
    pub(crate) fn view(&self) -> View {
        match self {
            Early::PrePrepare(proposal, _) => proposal.view,
            Early::Prepare(prepare) => prepare.view,
            Early::Commit(commit) => commit.view,
        }
    }
}

/// Which view this machine is in.
#[derive(Debug)]
pub(crate) struct ViewState {
    /// The view that it takes part in, or wants.
    pub(crate) view: View,
    /// Whether it takes part: the view has begun here. Else its VIEW-CHANGE is out (or being written).
    pub(crate) is_active: bool,
    /// The next batch to accept.
    pub(crate) next: End,
    /// Numbers from here on were not proposed in an earlier view.
    pub(crate) fresh: u64,
    /// When something was decided last, or the view began; monotonic.
    pub(crate) progress_us: u64,
    /// The primary's part, if we lead.
    pub(crate) leading: Option<Leader>,
    /// We want the next view; said again until there is no reason, or the view is left.
    pub(crate) is_wanting: bool,
    /// The primary has signed what proves that it is faulty: nothing more of it is accepted.
    pub(crate) is_accused: bool,
    /// Which view each machine wants, and when it said so last; monotonic.
    pub(crate) requests: BTreeMap<MachineId, (RequestViewChange, u64)>,
    /// Why we have left the last view.
    pub(crate) justification: Vec<RequestViewChange>,
    /// The batches with which this view began.
    pub(crate) outcome: Vec<Arc<Batch>>,
    /// The last VIEW-CHANGE of each machine, for this view or a higher one.
    pub(crate) view_changes: BTreeMap<MachineId, Arc<ViewChange>>,
    /// How this view began, to be sent to those who missed it.
    pub(crate) new_view: Option<Arc<NewView>>,
    /// How often the patience has been doubled.
    pub(crate) backoff: u32,
    early: BTreeMap<MachineId, VecDeque<Early>>,
}

impl ViewState {
    pub(crate) fn new(view: View, is_active: bool, next: End) -> Self {
        ViewState {
            view,
            is_active,
            next,
            fresh: next.number,
            progress_us: 0,
            leading: None,
            is_wanting: false,
            is_accused: false,
            requests: BTreeMap::new(),
            justification: Vec::new(),
            outcome: Vec::new(),
            view_changes: BTreeMap::new(),
            new_view: None,
            backoff: 0,
            early: BTreeMap::new(),
        }
    }

    /// Keeps a message for a view that has not begun here. Of each machine a bounded number; what is dropped will be
    /// asked for.
    pub(crate) fn keep_early(&mut self, from: MachineId, message: Early) {
        let kept = self.early.entry(from).or_default();
        if kept.len() == EARLY_MAX {
            let view = message.view();
            kept.retain(|kept| kept.view() >= view);
        }
        if kept.len() < EARLY_MAX {
            kept.push_back(message);
        }
    }

    /// The messages that were kept for the view that has begun.
    pub(crate) fn take_early(&mut self) -> Vec<(MachineId, Early)> {
        let view = self.view;
        let mut now = Vec::new();
        for (machine, kept) in &mut self.early {
            kept.retain(|message| {
                if message.view() == view {
                    now.push((*machine, message.clone()));
                }
                message.view() > view
            });
        }
        now
    }

    /// How many machines want this view or a higher one.
    pub(crate) fn wanting(&self, view: View) -> usize {
        self.view_changes
            .values()
            .filter(|view_change| view_change.view >= view)
            .count()
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.early.values().all(|kept| kept.len() <= EARLY_MAX));
        assert!(self.is_active || self.leading.is_none());
        assert!(
            self.view_changes
                .values()
                .all(|view_change| view_change.view > self.view || !self.is_active && view_change.view == self.view)
        );
    }
}
