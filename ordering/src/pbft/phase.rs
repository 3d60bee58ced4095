//! The phases of a machine, each with all of its state.

use crate::identifiers::View;
use crate::pbft::live::Live;

/// The phase of a machine. (A machine that has stopped stays in its phase: it serves voters from the state that it has.)
#[derive(Debug)]
pub(crate) enum Phase {
    /// The log was read. The first step goes on from it, and leaves this phase.
    Waiting(Begin),
    /// The machine has left a view, and goes to this one: its VIEW-CHANGE is out, or being written.
    Changing(View),
    /// The machine takes part in a view.
    Live(Box<Live>),
}

impl Phase {
    pub(crate) fn live(&self) -> Option<&Live> {
        match self {
            Phase::Live(live) => Some(live),
            _ => None,
        }
    }

    /// The view that it takes part in, if it is this one.
    pub(crate) fn live_in(&mut self, view: View) -> Option<&mut Live> {
        match self {
            Phase::Live(live) if live.view == view => Some(live),
            _ => None,
        }
    }
}

/// The way in which a machine goes on from its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The log is empty: view 0.
    Fresh,
    /// The machine goes on in its view.
    Resume,
    /// The machine says again that it wants its view.
    Leave,
}
