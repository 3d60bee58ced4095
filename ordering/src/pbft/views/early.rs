//! Messages for views that have not begun here.

use std::collections::{BTreeMap, VecDeque};

use crate::identifiers::{MachineId, View};
use crate::pbft::wire::ordered::Ordered;

/// Messages of one machine for a view that has not begun here, that are kept at most.
const EARLY_MAX: usize = 256;

/// Messages for views that have not begun here. Of each machine a bounded number; what is dropped will be asked for.
#[derive(Debug, Default)]
pub(crate) struct Early(BTreeMap<MachineId, VecDeque<Ordered>>);

impl Early {
    pub(crate) fn keep(&mut self, from: MachineId, message: Ordered) {
        let kept = self.0.entry(from).or_default();
        if kept.len() == EARLY_MAX {
            let view = message.view();
            kept.retain(|kept| kept.view() >= view);
        }
        if kept.len() < EARLY_MAX {
            kept.push_back(message);
        }
    }

    /// The messages that were kept for the view that has begun.
    pub(crate) fn take(&mut self, view: View) -> Vec<(MachineId, Ordered)> {
        let mut now = Vec::new();
        for (machine, kept) in &mut self.0 {
            let (these, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(kept)
                .into_iter()
                .filter(|message| message.view() >= view)
                .partition(|message| message.view() == view);
            now.extend(these.into_iter().map(|message| (*machine, message)));
            *kept = others;
        }
        now
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.0.values().all(|kept| kept.len() <= EARLY_MAX));
    }
}
