//! The phases of a machine, each with all of its state.

use crate::identifiers::View;
use crate::minbft::adoption::Adoption;
use crate::minbft::change::Change;
use crate::minbft::live::Live;
use crate::minbft::start::attempt::Attempt;

/// The phase of a machine. (A machine that has stopped stays in its phase: it serves voters from the state that it has.)
#[derive(Debug, Default)]
pub(crate) enum Phase {
    /// The machine has announced itself, and waits for the cluster to start, or to be admitted again.
    #[default]
    Waiting,
    /// The machine takes part in an attempt to start.
    Starting(Box<Attempt>),
    /// The machine has left a view, and goes to a later one.
    Changing(Box<Change>),
    /// The machine takes part in a view.
    Live(Box<Live>),
}

impl Phase {
    /// The view that the machine is in, or goes to.
    pub(crate) fn view(&self) -> Option<View> {
        match self {
            Phase::Waiting | Phase::Starting(_) => None,
            Phase::Changing(change) => Some(change.view),
            Phase::Live(live) => Some(live.view),
        }
    }

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

    /// The change to this view.
    pub(crate) fn change_to(&mut self, view: View) -> Option<&mut Change> {
        match self {
            Phase::Changing(change) if change.view == view => Some(change),
            _ => None,
        }
    }

    pub(crate) fn attempt(&mut self) -> Option<&mut Attempt> {
        match self {
            Phase::Starting(attempt) => Some(attempt),
            _ => None,
        }
    }

    /// The view of the attempt to start that the machine takes part in.
    pub(crate) fn starting_view(&self) -> Option<View> {
        match self {
            Phase::Starting(attempt) => Some(attempt.view()),
            _ => None,
        }
    }

    /// The outcome that the machine takes over.
    pub(crate) fn adoption(&mut self) -> Option<&mut Adoption> {
        match self {
            Phase::Starting(attempt) => attempt.adoption_mut(),
            Phase::Changing(change) => change.adoption.as_mut(),
            Phase::Waiting | Phase::Live(_) => None,
        }
    }
}
