//! What is decided in all groups extends the history, which is signed now and then, with how far counters were followed.

use std::sync::Arc;

use crate::agreement::{Output, To};
use crate::configuration::is_replica;
use crate::identifiers::Order;
use crate::ledger::checkpoints::Checkpoints;
use crate::ledger::history::{by_group, to_history};
use crate::ledger::{History, HistoryPoint};
use crate::minbft::core::Core;
use crate::minbft::live::Live;
use crate::minbft::live::group::Group;
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::checkpoint::Followed;
use crate::minbft::wire::checkpoint::followed_positions;
use crate::minbft::wire::message::Message;
use crate::timers::Timer;

impl Live {
    /// Extends the history by the batches that are decided in all of their groups.
    pub(super) fn extend_history(&mut self, core: &mut Core) {
        while let Some(slot) = self.stream.pop_delivered() {
            if slot.is_change() {
                self.touch_all();
            }
            let before = core.ledger.history.point;
            let operations = slot.operations();
            let operations: Vec<_> = operations
                .map(|(group, operation)| to_history(group, operation))
                .collect();
            for request in operations.iter().filter_map(|operation| operation.request.as_ref()) {
                core.ledger.clients.add(request);
            }
            core.append(operations.into_iter(), slot.prepare.view, slot.value);
            self.history_extended(core, &before);
        }
    }

    /// The history has grown from `before`.
    pub(crate) fn history_extended(&mut self, core: &mut Core, before: &HistoryPoint) {
        let idle_us = core.now_us() + core.ledger.configuration.retransmission_us;
        core.ledger.timers.set(Timer::Idle, idle_us);
        if Checkpoints::is_due(before, &core.ledger.history.point) {
            self.sign_checkpoint(core);
        }
        let ahead = core.ledger.checkpoints.ahead.clone();
        if let Some(ahead) = ahead.filter(|ahead| ahead.point.order <= core.ledger.history.point.order) {
            core.on_stable(ahead);
        }
    }

    /// Signs the end of our history and tells everybody.
    pub(crate) fn sign_checkpoint(&mut self, core: &mut Core) {
        let followed = own_followed(self, core);
        let checkpoint = Arc::new(core.ledger.signed_checkpoint(followed));
        core.ledger
            .send(To::Others, Message::Checkpoint(Arc::clone(&checkpoint)));
        core.on_checkpoint(&checkpoint);
        self.settle_counters(core);
    }

    /// What others have followed needs neither be shown in a view change, nor be followed here.
    pub(crate) fn settle_counters(&mut self, core: &mut Core) {
        let (own, quorum, epoch) = (core.own(), core.quorum(), core.counter.position.epoch);
        let stable = core.ledger.checkpoints.point().order;
        let statements = core.followed.up_to(stable, self.view);
        if statements.len() >= quorum {
            core.runs.settle(statements, own, epoch, quorum, stable);
        }
        let statements = core.followed.up_to(core.ledger.history.point.order, self.view);
        let of_view = statements
            .iter()
            .filter(|statement| statement.followed.view == self.view);
        let of_view: Vec<_> = of_view.collect();
        for (machine, admission) in &self.proof.outcome.admitted {
            let Some(positions) = followed_positions(&of_view, *machine, admission.epoch, quorum) else {
                continue;
            };
            for (group, position) in self.groups.iter_mut().zip(positions.iter().skip(1)) {
                if let Some(peer) = group.peers.get_mut(machine) {
                    peer.skip_to(*position);
                }
            }
        }
        self.touch_all();
    }

    /// Delivers what was fetched, but for what was delivered already.
    pub(crate) fn deliver_fetched(&self, core: &mut Core, piece: &History) {
        let decided = |group: usize| self.groups.get(group).map_or(Order(0), |state| state.decided);
        let news = piece
            .operations()
            .filter(|(group, operation)| operation.order > decided(usize::from(group.0)));
        core.ledger.out.extend(by_group(news).into_iter().map(Output::Deliver));
    }

    /// Our history was put at a proven point: the batches up to there need nothing more.
    pub(crate) fn jump(&mut self, core: &mut Core, point: &HistoryPoint) {
        if self.view != point.view {
            return;
        }
        let passed = self.stream.slots.iter().take_while(|slot| slot.value <= point.value);
        for (_, operation) in passed.flat_map(|slot| slot.operations()) {
            core.ledger.bodies.forget_location(&operation.digest, operation.order);
        }
        self.stream.jump(point);
        self.committed = self.committed.max(point.value);
        for group in &mut self.groups {
            group.jump(point.value);
            group.decided = group.decided.max(point.order);
        }
        self.is_behind = false;
        self.touch_all();
        core.ledger.bodies.forget_places(point.value);
    }
}

/// How far we have followed the counters of the others, and sent by our own.
fn own_followed(live: &mut Live, core: &Core) -> Option<Followed> {
    let point = core.ledger.history.point;
    if live.view != point.view {
        return None;
    }
    let groups = &mut live.groups;
    let replicas = live.proof.outcome.admitted.iter();
    let replicas = replicas.filter(|(machine, _)| is_replica(*machine));
    let positions = replicas.map(|(machine, admission)| {
        let settle = |group: &mut Group| match group.peers.get_mut(machine) {
            Some(peer) => peer.settle(point.value),
            None => group.own_stream.settle(point.value),
        };
        let values = std::iter::once(0).chain(groups.iter_mut().map(settle));
        let admission = Admission {
            epoch: admission.epoch,
            positions: values.collect(),
        };
        (*machine, admission)
    });
    Some(Followed {
        machine: core.own(),
        view: live.view,
        order: point.order,
        positions: positions.collect(),
    })
}
