//! The way into a view: the state with which it begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::configuration::{is_replica, replica_slot};
use crate::identifiers::{GroupId, MachineId, Order};
use crate::minbft::group::{Group, PeerStream};
use crate::minbft::history::{by_group, to_history};
use crate::minbft::live::LiveView;
use crate::minbft::primary::Primary;
use crate::minbft::reader::ViewBase;
use crate::minbft::start_messages::{Admission, LiveProof, Outcome};
use crate::minbft::stream::Stream;
use crate::minbft::{Machine, Output};

impl Machine {
    /// Takes part in a view that begins with this outcome. The way into every view.
    pub(crate) fn enter_view(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let outcome = &proof.outcome;
        let is_joined = self.start.joined_view() == Some(outcome.view);
        let primary = self.configuration.primary(outcome.view);
        let Some(admission) = outcome.admission(primary).filter(|_| is_joined && self.live.is_none()) else {
            return;
        };
        let value = admission.positions.first().copied().unwrap_or(0);
        self.views.push(ViewBase {
            view: outcome.view,
            base: outcome.base.order,
        });
        let before = self.history.point;
        self.take_over(outcome, value, out);
        let last_us = outcome
            .entries
            .last()
            .map_or(outcome.base.time_us, |entry| entry.time_us);
        let next = Order(outcome.base.order.0 + outcome.entries.len() as u64 + 1);
        let mut live = self.new_view(proof, primary, Stream::new(value, next, last_us));
        live.primary_epoch = admission.epoch;
        if primary == self.configuration.machine {
            let quorum = self.configuration.quorum();
            let mut leading = Primary::new(value, next, last_us, self.configuration.replica_machines(), quorum);
            for (digest, request) in self.bodies.pending_in_order() {
                leading.queue(*digest, request.clone(), &self.configuration);
            }
            live.leading = Some(leading);
        }
        self.live = Some(Box::new(live));
        self.start.forget();
        self.catch_up = None;
        if self.history.point != before {
            self.history_extended(&before, out);
        }
    }

    /// What the outcome takes over is decided.
    fn take_over(&mut self, outcome: &Outcome, value: u64, out: &mut Vec<Output>) {
        if !self.configuration.has_replicas() {
            return;
        }
        let operations = self.taken_over(outcome);
        for (_, operation) in &operations {
            self.bodies.take(&operation.digest);
            self.bodies.locate(operation.digest, operation.order);
            if let Some(request) = &operation.request {
                self.clients.record(request.client, request.number, request.floor);
            }
        }
        out.extend(by_group(operations.iter().cloned()).into_iter().map(Output::Deliver));
        let history = operations
            .into_iter()
            .map(|(group, operation)| to_history(group, operation));
        for gone in self
            .history
            .append(history, outcome.view, value, self.configuration.tail_bytes_max)
        {
            self.bodies.forget_location(&gone.digest, gone.order);
        }
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
        let groups = (0..groups)
            .map(|group| Group::new(decided, peers(replica_slot(GroupId(group)))))
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
