//! Sending, and what adversaries make of it.

use std::sync::Arc;

use ordering::agreement::To;
use ordering::identifiers::{MachineId, Order, View};
use rand::RngExt;

use super::{Cluster, Event, Observation, Packet};
use crate::adversary::{Behaviour, Tools};
use crate::protocol::{Proposal, Protocol, Tampered};
use crate::voter::Wanted;

/// How many copies a flooding adversary sends.
const FLOOD: usize = 8;

impl<P: Protocol> Cluster<P> {
    /// Sends a message; tells how many bytes, over all receivers.
    pub(super) fn send(&mut self, index: usize, to: To, message: P::Message) -> usize {
        let from = self.instances[index].machine;
        let targets: Vec<MachineId> = match to {
            To::Machine(machine) => vec![machine],
            To::Others => self.machines().filter(|machine| *machine != from).collect(),
            To::Replicas => self
                .machines()
                .filter(|machine| *machine != from && machine.0 != 0)
                .collect(),
        };
        if self.instances[index].script.is_some() {
            self.send_by_script(index, &targets, message);
            return 0;
        }
        if self.hand.is_some() {
            return self.send_by_hand(index, &targets, &message);
        }
        self.note_proposal(index, &message);
        let bytes = encode(&message);
        for target in &targets {
            let packet = Packet::Agreement {
                bytes: Arc::clone(&bytes),
                is_forged: false,
            };
            self.transmit(index, *target, packet);
        }
        bytes.len() * targets.len()
    }

    fn send_by_script(&mut self, index: usize, targets: &[MachineId], message: P::Message) {
        let mut told = Vec::new();
        let tampered = self.with_tools(index, &mut told, |script, tools| P::tamper(script, &message, tools));
        let messages = match tampered {
            Tampered::Untouched => vec![(u64::MAX, message)],
            Tampered::Instead(messages) => {
                self.count_lies(index, &told, &messages);
                let (machine, kind) = (self.instances[index].machine, P::kind(&message));
                self.trace(|| format!("m{machine} tampers with {kind}: {} instead", messages.len()));
                messages
            }
        };
        for (audience, message) in messages {
            for target in targets.iter().filter(|target| audience & (1 << target.0) != 0) {
                self.send_one_by_script(index, *target, &message);
            }
        }
    }

    /// Counts what is told, and whether all of it verifies.
    fn count_lies(&mut self, index: usize, told: &[&'static str], messages: &[(u64, P::Message)]) {
        if told.is_empty() {
            return;
        }
        let machine = self.instances[index].machine;
        let mut passes =
            |(_, message): &(u64, P::Message)| matches!(self.verify(machine, &encode(message)), Some(Ok(_)));
        let has_passed = !messages.is_empty() && messages.iter().all(&mut passes);
        for lie in told {
            self.counts.lies.count(lie, has_passed);
        }
    }

    /// Suppresses, repeats or alters a message, as the script says.
    fn send_one_by_script(&mut self, index: usize, target: MachineId, message: &P::Message) {
        let kind = P::kind(message);
        let Some(mut script) = self.instances[index].script.take() else {
            return;
        };
        let rng = &mut self.rng;
        let is_withheld =
            script.has(Behaviour::Silent) || (script.has(Behaviour::Selective) && script.withholds(target, kind, rng));
        let replays = script.does(Behaviour::Replaying, rng) && !script.heard.is_empty();
        let replayed = replays.then(|| script.heard[rng.random_range(0..script.heard.len())].clone());
        let copies = if script.does(Behaviour::Flooding, rng) {
            FLOOD
        } else {
            0
        };
        let is_arbitrary = script.does(Behaviour::Arbitrary, rng);
        let forges = script.does(Behaviour::Forging, rng);
        self.instances[index].script = Some(script);
        let done = [
            (is_withheld, "says nothing"),
            (replayed.is_some(), "says again"),
            (copies > 0, "floods"),
            (is_arbitrary, "says anything"),
            (forges, "forges"),
        ];
        for (_, lie) in done.iter().filter(|(is_done, _)| *is_done) {
            self.counts.lies.count(lie, true);
        }
        if !is_withheld {
            self.transmit_message(index, target, message, false);
        }
        if is_arbitrary {
            let arbitrary = self.with_tools(index, &mut Vec::new(), |script, tools| {
                P::arbitrary(&script.heard, tools)
            });
            self.counts.arbitrary += 1;
            self.transmit_message(index, target, &arbitrary, false);
        }
        if let Some(message) = replayed {
            self.transmit_message(index, target, &message, false);
        }
        for copy in 0..copies + usize::from(forges) {
            if copy % 2 == 1 {
                self.transmit_message(index, target, message, false);
            } else if let Some(forged) = self.with_tools(index, &mut Vec::new(), |_, tools| P::forge(message, tools)) {
                self.transmit_message(index, target, &forged, true);
            }
        }
        if copies > 0 {
            let order = Order(self.rng.random_range(0..self.last_decided.0 + 100));
            self.transmit(index, target, Packet::Wanted(Wanted::From(order)));
        }
    }

    fn transmit_message(&mut self, index: usize, target: MachineId, message: &P::Message, is_forged: bool) {
        let bytes = encode(message);
        self.counts.forged += u64::from(is_forged);
        if !is_forged {
            self.note_proposal(index, message);
        }
        self.transmit(index, target, Packet::Agreement { bytes, is_forged });
    }

    /// Shows the checkers what a machine proposes; not what it only passes on.
    pub(super) fn note_proposal(&mut self, index: usize, message: &P::Message) {
        let instance = &self.instances[index];
        let (machine, is_byzantine) = (instance.machine, instance.script.is_some());
        let is_own = |proposal: &Proposal| instance.configuration.primary(View(proposal.view)) == machine;
        if let Some(proposal) = P::proposal(message).filter(is_own) {
            let proposal = &proposal;
            self.observe(&Observation::Proposed {
                machine,
                is_byzantine,
                proposal,
            });
        }
    }

    fn with_tools<T>(
        &mut self,
        index: usize,
        told: &mut Vec<&'static str>,
        act: impl FnOnce(&mut crate::adversary::Script<P>, &mut Tools<'_>) -> T,
    ) -> T {
        let machines = P::machines(ordering::configuration::Faults(self.options.faults));
        let instance = &mut self.instances[index];
        let mut script = instance.script.take().expect("only adversaries have tools");
        let mut counter = instance.counter.borrow_mut();
        let mut tools = Tools {
            machine: instance.machine,
            faults: self.options.faults,
            groups: self.options.groups_in_all(),
            changes_groups: self.options.scalings > 0,
            machines,
            key: &self.keys[usize::from(instance.machine.0)],
            counter: &mut counter,
            seen: &instance.seen,
            conspiracy: &mut self.conspiracy,
            told,
            rng: &mut self.rng,
        };
        let result = act(&mut script, &mut tools);
        drop(counter);
        instance.script = Some(script);
        result
    }

    /// Hands a packet of an instance to the network.
    pub(super) fn transmit(&mut self, index: usize, to: MachineId, packet: Packet) {
        let (from, side) = (self.instances[index].machine, self.instances[index].side);
        self.counts.sent += 1;
        for target in self.indices(to) {
            if !self.is_connected(from, side, to, self.instances[target].side) {
                continue;
            }
            for delay_us in self.network.delays(from, to, &mut self.rng) {
                let packet = packet.clone();
                let event = Event::Arrive {
                    from,
                    to: target,
                    packet,
                };
                self.schedule(self.now_us + delay_us, event);
            }
        }
    }

    /// A twin reaches only the machines of its side, and only they reach it.
    fn is_connected(&self, from: MachineId, from_side: u8, to: MachineId, to_side: u8) -> bool {
        let side_of = |machine: MachineId| u8::from(self.sides & (1 << machine.0) != 0);
        let is_reached =
            |twin: MachineId, side: u8, other: MachineId| self.indices(twin).len() == 1 || side_of(other) == side;
        is_reached(from, from_side, to) && is_reached(to, to_side, from)
    }
}

pub(super) fn encode<M: borsh::BorshSerialize>(message: &M) -> Arc<Vec<u8>> {
    Arc::new(borsh::to_vec(message).expect("messages encode"))
}
