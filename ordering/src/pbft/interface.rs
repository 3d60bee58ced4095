//! A machine behind the interface that every protocol has.

use crate::agreement::{self, Agreement, Now, Status};
use crate::configuration::{Faults, Protocol};
use crate::identifiers::GroupId;
use crate::pbft::log::reader::LogReader;
use crate::pbft::log::record::Record;
use crate::pbft::machine::Machine;
use crate::pbft::wire::message::Message;
use crate::pbft::{Input, Output};

impl Agreement for Machine {
    type Message = Message;
    type Record = Record;
    type LogReader = LogReader;

    fn replicas(faults: Faults) -> u8 {
        Protocol::Pbft.replicas(faults)
    }

    fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, outputs: &mut Vec<Output>) {
        self.core.ledger.begin_step(now, outputs);
        self.begin();
        let was_stopped = self.core.ledger.stopped;
        for input in inputs {
            self.take(input);
        }
        if !was_stopped {
            if self.due_us().is_some_and(|due_us| due_us <= now.monotonic_us) {
                self.on_timers();
            }
            if !self.core.ledger.stopped {
                self.pump();
            }
        }
        self.core.ledger.end_step(outputs);
    }

    fn deadline(&self) -> Option<u64> {
        if self.core.ledger.stopped {
            return None;
        }
        // A decision may shorten the patience after the timers were looked at.
        Some(self.due_us()?.max(self.core.now_us() + 1))
    }

    fn status(&self) -> Status {
        let (core, ledger, live) = (&self.core, &self.core.ledger, self.views.phase.live());
        let phase = match core.logged.is_active {
            _ if ledger.stopped => agreement::Phase::Stopped,
            true => agreement::Phase::Live,
            false => agreement::Phase::Starting,
        };
        let decided = ledger.history.point.order;
        let groups = (0..ledger.configuration.groups).map(|group| (GroupId(group), decided));
        Status {
            phase,
            view: core.view(),
            primary: core.primary(),
            prepared: core.accepted(),
            decided,
            stable: ledger.checkpoints.point().order,
            batches_in_flight: core.window.undelivered().count(),
            requests_queued: live
                .filter(|live| live.leading.is_some())
                .map_or(0, |_| ledger.bodies.pending_count()),
            bodies: ledger.bodies.pending_count(),
            bodies_bytes: ledger.bodies.pending_bytes() + core.window.bytes(),
            bodies_missing: ledger.bodies.missing_count(),
            log_first: ledger.log_first,
            flushed: ledger.flushed_by_all(),
            groups: groups.collect(),
            assignment: ledger.history.point.assignment,
            groups_in_charge: ledger.configuration.in_charge(&ledger.history.point.assignment),
        }
    }

    fn check_invariants(&self) {
        self.core.check_invariants();
        self.views.check_invariants(&self.core);
    }
}
