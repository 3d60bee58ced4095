//! Whether a machine gets on, in whatever phase.

use crate::identifiers::{MachineId, View};

/// Ticks between two STATUS messages of a machine that lacks nothing it knows of.
const IDLE_TICKS: u64 = 10;

/// Ticks without progress after which history is fetched instead of single messages.
const STALLED_TICKS: u32 = 3;

/// How far a machine is, to see whether it gets on: view, whether it has begun, decided, accepted, prepared.
pub(crate) type Mark = (View, bool, u64, u64, u64);

/// Whether this machine gets on.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Ticks since the machine was started.
    ticks: u64,
    mark: Mark,
    /// How many ticks in a row nothing was done although something is outstanding.
    stalled: u32,
    /// A peer has more than we do.
    pub(crate) is_behind: bool,
}

impl Pace {
    /// A tick: notes how far the machine is.
    pub(crate) fn tick(&mut self, mark: Mark, is_outstanding: bool) {
        self.ticks += 1;
        let is_stuck = is_outstanding && mark == self.mark;
        self.mark = mark;
        self.stalled = if is_stuck { self.stalled.saturating_add(1) } else { 0 };
    }

    /// Whether nothing was done since the last tick although something is outstanding.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled > 0
    }

    /// Whether that lasts.
    pub(crate) fn is_stalled_long(&self) -> bool {
        self.stalled >= STALLED_TICKS
    }

    /// The peer that claimed to have more may have lied. If it did not, its next STATUS claims it again.
    pub(crate) fn doubt_peers(&mut self) {
        if self.is_stalled_long() && self.stalled.is_multiple_of(STALLED_TICKS) {
            self.is_behind = false;
        }
    }

    /// Whether it is this machine's turn to say how far it is, although it lacks nothing: not all say so in one tick.
    pub(crate) fn is_turn_of(&self, machine: MachineId) -> bool {
        self.ticks % IDLE_TICKS == u64::from(machine.0) % IDLE_TICKS
    }

    /// Whether this is a tick for what need not be done in each.
    pub(crate) fn is_idle_tick(&self) -> bool {
        self.ticks.is_multiple_of(IDLE_TICKS)
    }
}
