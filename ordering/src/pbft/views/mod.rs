//! Which view a machine is in, and how it comes from one to another: every change of its phase is here.
//!
//! 1. A replica whose requests wait too long, or that has proof against the primary, sends REQ-VIEW-CHANGE, again and
//!    again while the reason lasts (`wish.rs`). It still takes part in its view: it must not leave alone.
//! 2. Once f+1 want it, a correct one among them, a replica writes down that it leaves, and sends VIEW-CHANGE: these
//!    f+1, its stable checkpoint, and its certificates above it (`changing.rs`). Whoever gets that leaves too. It is sent
//!    again until the view begins. (A primary that was restarted resigns: its word alone suffices.)
//! 3. The primary of the new view gathers 2f+1, computes how the view begins from all of them (`change/outcome.rs`), writes
//!    that down, and sends them as NEW-VIEW. Everybody computes the same, and votes anew on the batches (`enter.rs`).
//! 4. Once 2f+1 want a view, it must begin in time, else the one after it is tried; each time with twice the patience,
//!    until something new is decided.
//!
//! | from, to | why | where |
//! |---|---|---|
//! | Waiting to Live | the log is empty, or the machine goes on in its view | `starting.rs` |
//! | Waiting to Changing | it wanted its view already, or led the one before | `starting.rs` |
//! | Live, Changing to Changing | f+1 want a higher view, or its primary resigns | `changing.rs` |
//! | Live, Changing to Live | a view begins by its NEW-VIEW | `enter.rs` |

mod changing;
mod early;
mod enter;
mod starting;
mod wish;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::{MachineId, View};
use crate::ledger::serving::Expense;
use crate::pbft::core::Core;
use crate::pbft::phase::{Begin, Phase};
use crate::pbft::wire::change::ViewChange;
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::Ordered;
use crate::timers::Timer;
use early::Early;
use wish::Wishes;

/// The phase of a machine, and what it keeps to come to another.
#[derive(Debug)]
pub(crate) struct Views {
    pub(crate) phase: Phase,
    pub(crate) wishes: Wishes,
    /// The last VIEW-CHANGE of each machine, for the view that we go to or a higher one.
    view_changes: BTreeMap<MachineId, Arc<ViewChange>>,
    early: Early,
}

impl Views {
    pub(crate) fn new(begin: Begin) -> Self {
        Views {
            phase: Phase::Waiting(begin),
            wishes: Wishes::default(),
            view_changes: BTreeMap::new(),
            early: Early::default(),
        }
    }

    /// A message about a batch of some view: one of a view that has not begun here is kept for then.
    pub(crate) fn on_ordered(&mut self, core: &mut Core, from: MachineId, message: Ordered) {
        let view = message.view();
        if let Some(live) = self.phase.live_in(view) {
            live.on_ordered(core, from, message);
            self.accuse(core);
        } else if view >= core.view() {
            self.early.keep(from, message);
        }
    }

    /// The primary has broken the rules, and its signature proves it: it must be replaced.
    pub(crate) fn accuse(&mut self, core: &mut Core) {
        if let Phase::Live(live) = &mut self.phase
            && live.take_accusation(core)
        {
            self.want(core);
        }
    }

    /// Sends how our view began to a machine that is behind.
    pub(crate) fn help_into_view(&self, core: &mut Core, machine: MachineId) {
        let live = self.phase.live();
        // Whoever leads tells nobody before that is in its log.
        let live = live.filter(|live| live.leading.as_ref().is_none_or(|leading| leading.is_ready));
        let Some(new_view) = live.and_then(|live| live.new_view.clone()) else {
            return;
        };
        let interval_us = core.ledger.configuration.retransmission_us / 4;
        if core.ledger.may_answer(machine, Expense::View, interval_us) {
            core.ledger.send(To::Machine(machine), Message::NewView(new_view));
        }
    }

    /// The view has changed to this one: what was wanted of the one before does not matter.
    fn forget_wishes(&mut self, core: &mut Core, view: View) {
        core.ledger.timers.stop(Timer::NextView);
        self.wishes.forget(view);
    }

    pub(crate) fn check_invariants(&self, core: &Core) {
        self.early.check_invariants();
        match &self.phase {
            Phase::Waiting(_) => {}
            Phase::Changing(view) => {
                assert_eq!((core.logged.view, core.logged.is_active), (*view, false));
                assert!(self.view_changes.values().all(|change| change.view >= *view));
            }
            Phase::Live(live) => {
                assert_eq!((core.logged.view, core.logged.is_active), (live.view, true));
                assert!(self.view_changes.values().all(|change| change.view > live.view));
                assert!(!core.ledger.timers.is_set(Timer::NextView));
                live.check_invariants(core);
            }
        }
    }
}
