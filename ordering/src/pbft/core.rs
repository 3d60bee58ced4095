//! The state that every phase of a machine works on.

use std::sync::Arc;

use crate::agreement::To;
use crate::configuration::Configuration;
use crate::identifiers::{Digest, MachineId, Order, View};
use crate::ledger::{Dialect, Ledger};
use crate::message::Request;
use crate::pbft::change::outcome::Outcome;
use crate::pbft::log::reader::LogReader;
use crate::pbft::log::record::{Record, Then};
use crate::pbft::pace::Pace;
use crate::pbft::waiting::Waiting;
use crate::pbft::window::Window;
use crate::pbft::wire::change::RequestViewChange;
use crate::pbft::wire::message::{Message, Standing};
use crate::pbft::wire::ordered::Batch;
use crate::timers::Timer;

/// The view in every [`HistoryPoint`](crate::ledger::HistoryPoint): a batch may be decided in different views on different
/// machines.
pub(crate) const HISTORY_VIEW: View = View(0);

/// The patience is doubled at most so often.
const BACKOFF_MAX: u32 = 7;

/// PBFT's messages and log records, for the shared ledger.
#[derive(Debug)]
pub(crate) enum Pbft {}

impl Dialect for Pbft {
    type Message = Message;
    type Record = Record;
    type Reader = LogReader;
    type Then = Then;
}

/// What the log says of the view: the machine's phase says the same. It is repeated when the log is cut.
#[derive(Debug, Default)]
pub(crate) struct LoggedView {
    /// The view that the machine takes part in, or wants.
    pub(crate) view: View,
    /// Whether it takes part: the view has begun here.
    pub(crate) is_active: bool,
    /// The batches with which the last view that it took part in began.
    pub(crate) outcome: Vec<Arc<Batch>>,
    /// Why it has left the view before.
    pub(crate) requests: Vec<RequestViewChange>,
}

/// How long this machine waits for a decision: twice as long with each view that is left, until something new is decided.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Numbers from here on were not proposed in an earlier view.
    pub(crate) fresh: u64,
    /// When something was decided last, or the view began; monotonic.
    pub(crate) progress_us: u64,
    /// How often it has been doubled.
    backoff: u32,
}

impl Patience {
    pub(crate) fn new(fresh: u64) -> Self {
        Patience {
            fresh,
            progress_us: 0,
            backoff: 0,
        }
    }

    pub(crate) fn double(&mut self) {
        self.backoff = (self.backoff + 1).min(BACKOFF_MAX);
    }

    pub(crate) fn us(&self, configuration: &Configuration) -> u64 {
        configuration.request_us << self.backoff
    }
}

/// The state that every phase works on.
pub(crate) struct Core {
    /// The ledger that machines of all protocols keep; the `value` of its history's point is the number of the last batch.
    pub(crate) ledger: Ledger<Pbft>,
    /// The batches above the stable checkpoint.
    pub(crate) window: Window,
    /// Requests that are known and not decided.
    pub(crate) waiting: Waiting,
    pub(crate) patience: Patience,
    pub(crate) logged: LoggedView,
    pub(crate) pace: Pace,
}

impl Core {
    pub(crate) fn own(&self) -> MachineId {
        self.ledger.configuration.machine
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.ledger.now.monotonic_us
    }

    pub(crate) fn quorum(&self) -> usize {
        self.ledger.configuration.quorum() as usize
    }

    pub(crate) fn is_due(&self, timer: Timer) -> bool {
        self.ledger.timers.is_due(timer, self.now_us())
    }

    /// The view that the machine is in, or goes to.
    pub(crate) fn view(&self) -> View {
        self.logged.view
    }

    /// Who leads that view.
    pub(crate) fn primary(&self) -> MachineId {
        self.ledger.configuration.primary(self.view())
    }

    /// How long a request may wait in this view, and how long a view may take to begin.
    pub(crate) fn patience_us(&self) -> u64 {
        self.patience.us(&self.ledger.configuration)
    }

    /// Everything up to this number is decided.
    pub(crate) fn progressed(&mut self, number: u64) {
        self.patience.progress_us = self.now_us();
        if number >= self.patience.fresh {
            self.patience.backoff = 0;
        }
    }

    /// Our word that another view is wanted.
    pub(crate) fn request_view_change(&self, view: View) -> RequestViewChange {
        let machine = self.own();
        RequestViewChange {
            machine,
            view,
            signature: self.ledger.sign(&RequestViewChange::signed(machine, view)),
        }
    }

    /// Writes down that the machine leaves its view for this one; once that is durable, it may be said.
    pub(crate) fn log_leaving(&mut self, view: View, requests: Vec<RequestViewChange>) {
        self.logged.view = view;
        self.logged.is_active = false;
        self.logged.requests.clone_from(&requests);
        self.ledger
            .persist(Record::ViewChange { view, requests }, Then::ViewChange(view));
    }

    /// Writes down how a view begins that the machine takes part in; whoever leads it waits until that is durable.
    pub(crate) fn log_entered(&mut self, view: View, outcome: &Outcome) {
        self.logged.view = view;
        self.logged.is_active = true;
        self.logged.outcome.clone_from(&outcome.batches);
        let record = Record::Entered {
            view,
            stable: outcome.stable.clone(),
            batches: outcome.batches.clone(),
        };
        if self.primary() == self.own() {
            self.ledger.persist(record, Then::Lead(view));
        } else {
            self.ledger.write(record);
        }
    }

    /// Gives up the batches of earlier views that the new one does not begin with: they were not decided. Their
    /// requests wait to be ordered again.
    pub(crate) fn leave_batches(&mut self, stay: &[Arc<Batch>]) {
        let left = self.window.remove_others(stay);
        let (now_us, ledger) = (self.ledger.now.monotonic_us, &mut self.ledger);
        ledger.bodies.forget_places(u64::MAX);
        for (_, operation) in left.iter().flat_map(|slot| slot.operations()) {
            ledger.bodies.forget_location(&operation.digest, operation.order);
            let Some(request) = operation.request.filter(|request| ledger.clients.lacks(request)) else {
                continue;
            };
            let bytes_max = ledger.configuration.client_bytes_max;
            ledger.bodies.arrive(operation.digest, &request, now_us, bytes_max);
            self.waiting.add(operation.digest, now_us);
        }
    }

    /// Sends a message to whoever leads the view.
    pub(crate) fn send_to_primary(&mut self, message: Message) {
        let primary = self.primary();
        self.ledger.send(To::Machine(primary), message);
    }

    /// A request is decided.
    pub(crate) fn finish(&mut self, digest: &Digest, request: &Arc<Request>) {
        self.ledger.clients.add(request);
        self.ledger.bodies.finish(request.client, request.number, request.floor);
        self.waiting.remove(digest);
    }

    /// A tick: notes how far the machine is. `is_outstanding`: whether something that its view has begun is not done.
    pub(crate) fn note_pace(&mut self, is_outstanding: bool) {
        let is_outstanding = is_outstanding || self.pace.is_behind || self.ledger.checkpoints.ahead.is_some();
        let mark = (
            self.logged.view,
            self.logged.is_active,
            self.ledger.history.point.value,
            self.window.next.number,
            self.window.committing,
        );
        self.pace.tick(mark, is_outstanding);
    }

    /// Says how far the machine is.
    pub(crate) fn send_standing(&mut self) {
        let standing = Standing {
            view: self.logged.view,
            is_active: self.logged.is_active,
            is_stalled: self.pace.is_stalled(),
            decided: self.ledger.history.point.value,
            stable: self.ledger.checkpoints.point().order,
        };
        self.ledger.send(To::Others, Message::Standing(standing));
    }

    pub(crate) fn check_invariants(&self) {
        self.ledger.check_invariants();
        self.waiting.check_invariants();
        let (stable, point) = (self.ledger.checkpoints.point(), self.ledger.history.point);
        assert!(stable.order <= point.order);
        assert!(stable.order <= self.window.low_point().order);
        self.window.check_invariants(point.value);
    }

    /// The last order that the machine has accepted.
    pub(crate) fn accepted(&self) -> Order {
        Order(self.window.next.order.0.saturating_sub(1))
    }
}
