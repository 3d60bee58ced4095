//! A machine that was restarted goes on from its log: everything that it has ever said is in it.
//!
//! Only the primary does not go on: what it proposed may not be in its log. It resigns, and the next one leads.

use std::sync::Arc;

use crate::identifiers::{Digest, View};
use crate::pbft::change::outcome::Outcome;
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::phase::{Begin, Phase};
use crate::pbft::views::Views;
use crate::pbft::window::{End, Stage};
use crate::pbft::wire::ordered::Batch;

impl Views {
    /// The first step.
    pub(crate) fn begin(&mut self, core: &mut Core, begin: Begin) {
        let view = core.view();
        core.patience.progress_us = core.now_us();
        let low = core.window.low.clone();
        if let Some(low) = low.filter(|low| low.point.order > core.ledger.history.point.order) {
            core.on_stable(low);
        }
        match begin {
            Begin::Fresh => {
                // View 0 begins by itself, with nothing.
                let outcome = Outcome {
                    stable: None,
                    batches: Vec::new(),
                };
                self.enter_view(core, view, outcome, None);
            }
            Begin::Leave => {
                self.phase = Phase::Changing(view);
                self.on_left(core, view);
            }
            Begin::Resume if core.primary() == core.own() => {
                let next = View(view.0 + 1);
                self.leave_view(core, next, vec![core.request_view_change(next)]);
            }
            Begin::Resume => {
                let outcome = core.logged.outcome.clone();
                self.phase = Phase::Live(Box::new(resume(core, view, &outcome)));
                self.accuse(core);
            }
        }
    }
}

/// The view that the machine was in, and which began with these batches.
fn resume(core: &mut Core, view: View, outcome: &[Arc<Batch>]) -> Live {
    let mut live = Live::new(view, None);
    live.count_own_votes(core);
    let undelivered = core.window.undelivered();
    let entries = undelivered.flat_map(|slot| slot.batch.entries.iter());
    let waiting: Vec<Digest> = entries.map(|entry| entry.digest).collect();
    for digest in waiting {
        core.waiting.add(digest, core.now_us());
    }
    let low = core.window.low_point();
    core.window.next = End::after(&low);
    let mut end = End::after(&low);
    for batch in outcome.iter().filter(|batch| batch.number > low.value) {
        let assignment = end.assignment;
        end = End::of(batch, assignment);
        let slot = core.window.slots.get(&batch.number);
        if slot.is_some_and(|slot| slot.stage != Stage::Waiting) {
            core.window.next = end;
        } else {
            live.install_again(core, batch, assignment);
        }
    }
    core.patience.fresh = core.window.next.number;
    core.window.skip_accepted();
    live
}
