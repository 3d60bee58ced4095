//! A machine behind the interface that every protocol has.

use crate::agreement::{self, Agreement, Now, Status};
use crate::configuration::{Faults, Protocol};
use crate::identifiers::Order;
use crate::ledger::HistoryPoint;
use crate::minbft::core::Role;
use crate::minbft::log::reader::LogReader;
use crate::minbft::log::record::Record;
use crate::minbft::machine::Machine;
use crate::minbft::phase::Phase;
use crate::minbft::wire::message::Message;
use crate::minbft::{Input, Output};

impl Agreement for Machine {
    type Message = Message;
    type Record = Record;
    type LogReader = LogReader;

    fn replicas(faults: Faults) -> u8 {
        Protocol::MinBft.replicas(faults)
    }

    fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, outputs: &mut Vec<Output>) {
        self.core.ledger.begin_step(now, outputs);
        let was_stopped = self.core.ledger.stopped;
        for input in inputs {
            self.take(input);
        }
        if !was_stopped {
            if self.deadline().is_some_and(|deadline| deadline <= now.monotonic_us) {
                self.on_timers();
            }
            self.pump();
        }
        self.core.ledger.end_step(outputs);
    }

    fn deadline(&self) -> Option<u64> {
        if self.core.ledger.stopped {
            return None;
        }
        let live = self.views.phase.live();
        let suspicion = live.and_then(|live| self.views.suspicion.deadline(&self.core, live));
        suspicion.into_iter().chain(self.core.ledger.deadline()).min()
    }

    fn status(&self) -> Status {
        let (ledger, live) = (&self.core.ledger, self.views.phase.live());
        let phase = match &self.views.phase {
            _ if ledger.stopped => agreement::Phase::Stopped,
            Phase::Waiting => agreement::Phase::Waiting,
            Phase::Starting(_) => agreement::Phase::Starting,
            Phase::Changing(_) => agreement::Phase::Changing,
            Phase::Live(_) => agreement::Phase::Live,
        };
        let view = self.core.view.or(self.core.past.mentioned).unwrap_or_default();
        let leading = live.and_then(|live| live.leading.as_ref());
        let prepared = match (live, leading) {
            (_, Some(leading)) => Order(leading.next.0.saturating_sub(1)),
            (Some(live), None) => Order(live.stream.next.0.saturating_sub(1)),
            (None, None) => ledger.history.point.order,
        };
        let in_flight = live.map_or(0, |live| live.stream.slots.len());
        let stable = ledger.checkpoints.point().order;
        let assignment = match self.core.role {
            // Of what it orders it hears with the next checkpoint that it is decided.
            Role::Sequencer => ledger.checkpoints.point().assignment,
            Role::Replica => ledger.history.point.assignment,
        };
        Status {
            phase,
            view,
            primary: ledger.configuration.primary(view),
            prepared,
            decided: match self.core.role {
                Role::Sequencer => stable,
                Role::Replica => ledger.history.point.order,
            },
            stable,
            batches_in_flight: leading.map_or(in_flight, |leading| leading.in_flight()),
            requests_queued: leading.map_or(0, |leading| leading.queued()),
            bodies: ledger.bodies.pending_count(),
            bodies_bytes: ledger.bodies.pending_bytes() + live.map_or(0, |live| live.stream.bytes),
            bodies_missing: ledger.bodies.missing_count(),
            log_first: ledger.log_first,
            flushed: ledger.flushed_by_all(),
            groups: live.map(|live| live.decided_by_group()).unwrap_or_default(),
            assignment,
            groups_in_charge: ledger.configuration.in_charge(&assignment),
        }
    }

    fn check_invariants(&self) {
        let core = &self.core;
        core.ledger.check_invariants();
        core.counter.check_invariants();
        core.runs.check_invariants();
        match core.role {
            Role::Sequencer => assert_eq!(core.ledger.history.point, HistoryPoint::GENESIS),
            Role::Replica => assert!(core.ledger.checkpoints.point().order <= core.ledger.history.point.order),
        }
        assert!(core.views.is_sorted_by(|left, right| left.view < right.view));
        assert_eq!(core.view, self.views.phase.view());
        if let Some(live) = self.views.phase.live() {
            live.check_invariants(core);
        }
    }
}
