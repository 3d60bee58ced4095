//! The way into a view: the state with which it begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::{is_replica, replica_slot};
use crate::identifiers::{GroupId, MachineId, Order, View};
use crate::minbft::group::{Group, PeerStream};
use crate::minbft::history::{by_group, to_history};
use crate::minbft::journal::Persisting;
use crate::minbft::live::LiveView;
use crate::minbft::messages::Message;
use crate::minbft::primary::Primary;
use crate::minbft::reader::ViewBase;
use crate::minbft::record::Record;
use crate::minbft::start_messages::{Admission, LiveProof, Outcome};
use crate::minbft::stream::Stream;
use crate::minbft::{Machine, Output};

impl Machine {
    /// Writes down that a view is live; this machine takes part in it once that is durable.
    pub(crate) fn log_live(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        self.entering = Some(Arc::clone(proof));
        let then = Persisting::Live(Arc::clone(proof));
        self.journal.persist(Record::Live(Arc::clone(proof)), then, out);
    }

    /// The last view that our log calls live, with all of those before: what a log must begin with when the record that says
    /// so is cut off, which it may be before the view is entered.
    pub(crate) fn live_in_log(&self) -> (Option<Arc<LiveProof>>, Vec<ViewBase>) {
        let mut views = self.views.clone();
        let last = self.start.last_live.as_ref().map(|live| live.outcome.view);
        let Some(entering) = self.entering.as_ref().filter(|proof| Some(proof.outcome.view) > last) else {
            return (self.start.last_live.clone(), views);
        };
        if views.last().is_none_or(|last| last.view < entering.outcome.view) {
            views.push(self.view_base(&entering.outcome));
        }
        (Some(Arc::clone(entering)), views)
    }

    fn view_base(&self, outcome: &Outcome) -> ViewBase {
        ViewBase {
            view: outcome.view,
            base: outcome.base.order.max(self.checkpoints.point().order),
            outcome: outcome.digest(),
        }
    }

    /// Takes part in a view that begins with this outcome. The way into every view.
    pub(crate) fn enter_view(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let outcome = &proof.outcome;
        let joined = self.changing.as_ref().map(|changing| changing.view);
        let is_joined = joined.or(self.start.joined_view()) == Some(outcome.view);
        let primary = self.configuration.primary(outcome.view);
        let Some(admission) = outcome.admission(primary).filter(|_| is_joined && self.live.is_none()) else {
            return;
        };
        let value = admission.positions.first().copied().unwrap_or(0);
        if self.configuration.has_replicas() && !self.continues_history(outcome, out) {
            return;
        }
        if self.views.last().is_none_or(|last| last.view < outcome.view) {
            self.views.push(self.view_base(outcome));
        }
        let before = self.history.point;
        self.take_over(outcome, value, out);
        let stream = if self.configuration.has_replicas() {
            let point = self.history.point;
            Stream::new(point.value, point.order.next(), point.time_us)
        } else {
            Stream::new(value, outcome.end(), outcome.time_us())
        };
        let mut live = self.new_view(proof, primary, stream);
        live.primary_epoch = admission.epoch;
        // A counter that was restarted, or has gone on since, cannot continue the view's PREPAREs.
        let counter = &self.journal.counter;
        let can_lead = counter.epoch == admission.epoch && counter.positions.first() == Some(&value);
        if primary == self.configuration.machine && can_lead {
            let quorum = self.configuration.quorum();
            let replicas = self.configuration.replica_machines();
            let mut leading = Primary::new(value, outcome.end(), outcome.time_us(), replicas, quorum);
            for (digest, request) in self.bodies.pending_in_order() {
                leading.queue(*digest, request.clone(), &self.configuration);
            }
            live.leading = Some(leading);
        }
        self.follow_into(proof, &mut live);
        self.live = Some(Box::new(live));
        self.runs
            .admit(proof, self.configuration.machine, &self.journal.counter);
        self.start.last_live = Some(Arc::clone(proof));
        self.start.forget();
        self.changing = None;
        self.given_up = None;
        // A candidate that chose for a higher view must not choose again for that.
        self.leading_change = self.leading_change.take().filter(|leading| leading.view > outcome.view);
        self.acknowledged = None;
        self.catch_up = None;
        self.delivered.clear();
        let (now_us, base_us) = (self.now.monotonic_us, self.configuration.request_us);
        self.suspicion.entered(now_us, base_us);
        if self.history.point.order != before.order {
            self.history_extended(&before, out);
        }
        if outcome.is_change() {
            self.settle_into(proof, primary, out);
        }
        if !self.configuration.has_replicas() {
            // Its log holds nothing but the views that it was in.
            self.cut_log(outcome.end(), out);
        }
    }

    /// Whether the outcome agrees with what is decided here; it must not be entered behind a history of later views.
    fn continues_history(&mut self, outcome: &Outcome, out: &mut Vec<Output>) -> bool {
        let point = self.history.point;
        if point.view > outcome.view {
            return false;
        }
        let numbered = outcome.entries.iter().zip(outcome.base.order.0 + 1..);
        let agrees = numbered.into_iter().all(|(entry, order)| {
            let known = self.history.digest_at(Order(order));
            known.is_none_or(|known| known == entry.digest)
        });
        if !agrees || (point.view < outcome.view && point.order.next() > outcome.end()) {
            // More than f are faulty, or we are: nothing that was decided may change.
            self.stopped = true;
            self.report(self.configuration.machine, MisbehaviourKind::Contradiction, out);
        }
        agrees
    }

    /// Peers whose counters are known to be further than the outcome says: they have acknowledged, or joined late.
    fn follow_into(&mut self, proof: &LiveProof, live: &mut LiveView) {
        let own = self.configuration.machine;
        for acknowledgement in &proof.acknowledgements {
            live.follow_acknowledgement(acknowledgement);
        }
        if let Some(changing) = &self.changing {
            for acknowledgement in changing.acknowledgements.values() {
                live.follow_acknowledgement(acknowledgement);
            }
            let change = changing.change.clone().map(Message::ViewChange);
            let acknowledged = changing.acknowledgement.clone();
            let endorsed = changing.endorsement.clone().map(Arc::new);
            let joining = match acknowledged {
                Some(acknowledgement) => vec![Message::AcknowledgeView(Arc::new(acknowledgement))],
                None => change.into_iter().chain(endorsed.map(Message::Endorse)).collect(),
            };
            let value = self.journal.counter.positions.get(1).copied().unwrap_or(0);
            live.joining = (value, joining);
        }
        let view = live.view;
        for change in self.changes.values().filter(|change| change.view == view) {
            live.follow_change(change);
        }
        if let Some(changing) = &self.changing {
            for endorsement in changing.endorsements.values() {
                live.follow_endorsement(endorsement);
            }
        }
        self.changes
            .retain(|machine, change| *machine != own && change.view > view);
        live.touch_all();
    }

    /// Tells the others, and gives the primary what waits.
    fn settle_into(&mut self, proof: &Arc<LiveProof>, primary: MachineId, out: &mut Vec<Output>) {
        if primary == self.configuration.machine {
            self.send(To::Others, Message::Live(Arc::clone(proof)), out);
        }
        if self.configuration.has_replicas() {
            self.sign_checkpoint(out);
            self.forward_pending(out);
        }
    }

    /// What the outcome takes over is decided; what of it was decided here before stays as it is.
    fn take_over(&mut self, outcome: &Outcome, value: u64, out: &mut Vec<Output>) {
        if !self.configuration.has_replicas() || self.history.point.view == outcome.view && outcome.view > View(0) {
            return;
        }
        let end = self.history.point.order;
        let mut operations = self.taken_over(outcome);
        operations.retain(|(_, operation)| operation.order > end);
        for (_, operation) in &operations {
            self.bodies.take(&operation.digest);
            self.bodies.locate(operation.digest, operation.order);
            if let Some(request) = &operation.request {
                self.clients.record(request.client, request.number, request.floor);
            }
        }
        let delivered = |group: &GroupId| self.delivered.get(usize::from(group.0)).copied().unwrap_or_default();
        let news = operations
            .iter()
            .filter(|(group, operation)| operation.order > delivered(group));
        out.extend(by_group(news.cloned()).into_iter().map(Output::Deliver));
        let history = operations
            .into_iter()
            .map(|(group, operation)| to_history(group, operation));
        let limits = (self.configuration.tail_bytes_max, self.checkpoints.point().order);
        for gone in self.history.append(history, outcome.view, value, limits) {
            self.bodies.forget_location(&gone.digest, gone.order);
        }
        // Alike on all machines, whoever had decided how much before.
        self.history.point.view = outcome.view;
        self.history.point.value = value;
    }

    fn new_view(&self, proof: &Arc<LiveProof>, primary: MachineId, stream: Stream) -> LiveView {
        let own = self.configuration.machine;
        let now_us = self.now.monotonic_us;
        let decided = self.history.point.order;
        let others: Vec<_> = proof
            .outcome
            .admitted
            .iter()
            .filter(|(machine, _)| *machine != own)
            .collect();
        let peers = |slot: u32| -> BTreeMap<MachineId, PeerStream> {
            let replicas = others.iter().filter(|(machine, _)| is_replica(*machine));
            replicas
                .map(|(machine, admission)| (*machine, peer_stream(admission, slot)))
                .collect()
        };
        let groups = if self.configuration.has_replicas() {
            self.configuration.groups
        } else {
            0
        };
        let own_stream = |slot: u32| peer_stream(&self.journal.counter, slot);
        let decided = |group: u16| {
            let delivered = self.delivered.get(usize::from(group)).copied();
            delivered.unwrap_or_default().max(decided)
        };
        let groups = (0..groups)
            .map(|group| {
                let slot = replica_slot(GroupId(group));
                Group::new(decided(group), peers(slot), own_stream(slot))
            })
            .collect();
        LiveView {
            view: proof.outcome.view,
            proof: Arc::clone(proof),
            primary,
            primary_epoch: 0,
            committed: stream.value,
            told: stream.value,
            stream,
            groups,
            touched: Vec::new(),
            leading: None,
            ask_us: u64::MAX,
            hold_us: u64::MAX,
            tick_us: now_us + self.configuration.retransmission_us,
            mark: (0, Order(0), 0),
            stalled: 0,
            ticks: 0,
            is_behind: false,
            joining: (0, Vec::new()),
            idle_us: u64::MAX,
        }
    }
}

fn peer_stream(admission: &Admission, slot: u32) -> PeerStream {
    let position = usize::try_from(slot)
        .ok()
        .and_then(|slot| admission.positions.get(slot));
    PeerStream::new(admission.epoch, position.copied().unwrap_or(0))
}
