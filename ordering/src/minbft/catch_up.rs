//! Catching up: a machine that lacks decided history fetches it in pieces, each chain of pieces proven by the
//! checkpoint at its end. So nobody can feed it anything but the history.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::WATERMARK_ORDERS;
use crate::identifiers::{GroupId, MachineId, Order};
use crate::minbft::fetching::CatchUp;
use crate::minbft::history::{by_group, extend_over, to_commit_db};
use crate::minbft::messages::{CertifiedCheckpoint, History, HistoryPoint, Message, StableCheckpoint};
use crate::minbft::record::Record;
use crate::minbft::{Machine, Output};

impl Machine {
    /// Fetches the history up to a proven checkpoint, unless that is under way.
    pub(crate) fn fetch_history(&mut self, target: Order, out: &mut Vec<Output>) {
        let is_under_way = self
            .catch_up
            .as_ref()
            .is_some_and(|catch_up| catch_up.from.order == self.history.point.order);
        if is_under_way || self.history.point.order >= target {
            return;
        }
        let peer = self.next_peer(self.configuration.machine);
        self.catch_up = Some(CatchUp::new(self.history.point, target, peer));
        self.ask_for_history(out);
    }

    /// The replica machine after this one, other than our own.
    pub(crate) fn next_peer(&self, machine: MachineId) -> MachineId {
        let replicas = self.configuration.replicas();
        let next = MachineId(machine.0 % replicas + 1);
        if next == self.configuration.machine {
            MachineId(next.0 % replicas + 1)
        } else {
            next
        }
    }

    fn ask_for_history(&mut self, out: &mut Vec<Output>) {
        let patience_us = self.configuration.retransmission_us.saturating_mul(4);
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        if !catch_up.may_ask(self.now.monotonic_us, patience_us) {
            return;
        }
        let (peer, next) = (catch_up.peer, catch_up.next());
        self.send(To::Machine(peer), Message::FetchHistory(next), out);
    }

    /// The peer did not answer, or not usefully: another one, from the last proof on.
    fn ask_another(&mut self, out: &mut Vec<Output>) {
        let Some(peer) = self.catch_up.as_ref().map(|catch_up| self.next_peer(catch_up.peer)) else {
            return;
        };
        let others = self.configuration.replicas() - 1;
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        match catch_up.turn_to(peer, others) {
            Some(checkpoint) => self.jump(&checkpoint, out),
            None => self.ask_for_history(out),
        }
    }

    /// The peer's log does not go back so far.
    pub(crate) fn on_give_checkpoint(
        &mut self,
        from: MachineId,
        checkpoint: &Arc<CertifiedCheckpoint>,
        out: &mut Vec<Output>,
    ) {
        let own = self.history.point.order;
        let order = checkpoint.stable.point.order;
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        if catch_up.peer != from || order <= own {
            return;
        }
        catch_up.offer(checkpoint);
        self.ask_another(out);
    }

    /// Goes on from a certified checkpoint, without the operations before it.
    fn jump(&mut self, checkpoint: &Arc<CertifiedCheckpoint>, out: &mut Vec<Output>) {
        self.catch_up = None;
        let point = checkpoint.stable.point;
        let is_old = point.order <= self.history.point.order;
        if is_old || self.live.as_ref().is_some_and(|live| live.view < point.view) {
            // The others are in a later view: we shall join that first.
            return;
        }
        self.clients = checkpoint.clients.clone();
        self.skip_to(checkpoint);
        self.retained.push(&point);
        self.cut_log(point.order.next(), out);
        self.advance_change(out);
        self.advance_start(out);
    }

    pub(crate) fn catch_up_timer(&mut self, out: &mut Vec<Output>) {
        let now_us = self.now.monotonic_us;
        if self.catch_up.as_ref().is_none_or(|catch_up| catch_up.ask_us > now_us) {
            return;
        }
        self.ask_again(out);
    }

    /// A question is due: it was put off, or the peer has not answered.
    fn ask_again(&mut self, out: &mut Vec<Output>) {
        if self.catch_up.as_ref().is_some_and(CatchUp::was_put_off) {
            self.ask_for_history(out);
        } else {
            self.ask_another(out);
        }
    }

    pub(crate) fn on_give_history(&mut self, from: MachineId, history: &Arc<History>, out: &mut Vec<Output>) {
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        if catch_up.peer != from || history.first != catch_up.next() || history.entries.is_empty() {
            return;
        }
        if catch_up.from != self.history.point {
            // We got on by ourselves meanwhile.
            self.catch_up = None;
            return;
        }
        catch_up.pieces.push(Arc::clone(history));
        match &history.proof {
            Some(proof) => self.check_pieces(proof.clone(), from, out),
            None if catch_up.next().0 - catch_up.from.order.0 > 2 * WATERMARK_ORDERS => self.ask_another(out),
            None => self.ask_for_history(out),
        }
    }

    /// Takes over the pieces if their chain ends as the proof says.
    fn check_pieces(&mut self, proof: StableCheckpoint, from: MachineId, out: &mut Vec<Output>) {
        let Some(catch_up) = self.catch_up.as_mut() else { return };
        let end = extend_over(catch_up.from, &catch_up.pieces);
        let proven = HistoryPoint {
            view: end.view,
            value: end.value,
            ..proof.point
        };
        if end != proven {
            self.report(from, MisbehaviourKind::WrongContent, out);
            self.ask_another(out);
            return;
        }
        if self.live.as_ref().is_some_and(|live| live.view < proof.point.view) {
            // The others are in a later view: we shall join that first.
            self.catch_up = None;
            return;
        }
        let (pieces, target) = (std::mem::take(&mut catch_up.pieces), catch_up.target);
        self.adopt(&pieces, proof, out);
        if self.history.point.order >= target {
            self.catch_up = None;
        } else if let Some(catch_up) = self.catch_up.as_mut() {
            catch_up.from = self.history.point;
            self.ask_for_history(out);
        }
        self.advance_change(out);
        self.advance_start(out);
    }

    /// Continues our history by proven pieces.
    fn adopt(&mut self, pieces: &[Arc<History>], proof: StableCheckpoint, out: &mut Vec<Output>) {
        for piece in pieces {
            for request in piece.entries.iter().filter_map(|entry| entry.request.as_ref()) {
                self.clients.record(request.client, request.number, request.floor);
            }
            let numbered = piece.entries.iter().enumerate();
            let operations =
                numbered.map(|(index, entry)| (entry.group, to_commit_db(Order(piece.first.0 + index as u64), entry)));
            if let Some(live) = &self.live {
                let decided = |group: GroupId| {
                    live.groups
                        .get(usize::from(group.0))
                        .map_or(Order(0), |state| state.decided)
                };
                let operations = operations.filter(|(group, operation)| operation.order > decided(*group));
                out.extend(by_group(operations).into_iter().map(Output::Deliver));
            }
            self.fetched.add(piece.first, piece.entries.len());
            self.journal.write(
                Record::History {
                    first: piece.first,
                    entries: piece.entries.clone(),
                },
                out,
            );
        }
        if self.clients.digest() != proof.clients {
            // A correct machine has another table after the same history: more than f are faulty, or we are.
            self.stopped = true;
            self.report(self.configuration.machine, MisbehaviourKind::Contradiction, out);
            return;
        }
        let clients = self.clients.clone();
        let checkpoint = Arc::new(CertifiedCheckpoint { stable: proof, clients });
        self.skip_to(&checkpoint);
        self.reached(checkpoint, out);
    }

    /// Puts the end of our history at a certified checkpoint.
    fn skip_to(&mut self, checkpoint: &Arc<CertifiedCheckpoint>) {
        let point = checkpoint.stable.point;
        for gone in self.history.jump(point) {
            self.bodies.forget_location(&gone.digest, gone.order);
        }
        self.checkpoints.set_certified(Arc::clone(checkpoint));
        self.checkpoints.signed = self.checkpoints.signed.max(point.order);
        self.jump_view(&point);
    }

    /// Brings the view to a proven point: its batches up to there need nothing more.
    fn jump_view(&mut self, point: &HistoryPoint) {
        let Some(live) = self.live.as_mut().filter(|live| live.view == point.view) else {
            return;
        };
        for slot in live.stream.slots.iter().take_while(|slot| slot.value <= point.value) {
            for (_, operation) in slot.operations() {
                self.bodies.forget_location(&operation.digest, operation.order);
            }
        }
        live.stream.jump(point.value, point.order.next(), point.time_us);
        live.committed = live.committed.max(point.value);
        for group in &mut live.groups {
            group.jump(point.value);
            group.decided = group.decided.max(point.order);
        }
        live.is_behind = false;
        live.touch_all();
        self.bodies.forget_places(point.value);
    }
}
