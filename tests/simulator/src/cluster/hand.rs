//! What a scenario does to a cluster by hand, and what it has seen of it. A cluster of drawn faults has none of this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use ordering::agreement::{Input, MisbehaviourKind};
use ordering::configuration::group_of;
use ordering::identifiers::{Digest, GroupId, MachineId, Order};
use ordering::message::{CommitDb, Request};
use ordering::verified::{Rejection, Verified};

use super::send::encode;
use super::{Cluster, Event, Packet};
use crate::client::RESEND_US;
use crate::protocol::Protocol;

/// Whether the link from one machine to another carries a message.
pub type Filter<P> = fn(MachineId, MachineId, &<P as Protocol>::Message) -> bool;

/// What a lying machine sends to a machine instead of a message; the key is its own.
pub type Lies<P> = Box<dyn FnMut(&SigningKey, MachineId, &<P as Protocol>::Message) -> Vec<<P as Protocol>::Message>>;

/// Looks at what correct machines write and say.
pub trait Watch<P: Protocol> {
    /// A machine writes a record to its log.
    fn writes(&mut self, _machine: MachineId, _sequence: u64, _record: &P::Record) {}

    /// Its log is durable up to this record.
    fn synced(&mut self, _machine: MachineId, _sequence: u64) {}

    /// A machine starts from this log.
    fn starts(&mut self, _machine: MachineId, _log: &[P::Record]) {}

    /// A machine sends a message.
    fn sends(&mut self, _machine: MachineId, _message: &P::Message) {}
}

/// What a machine has delivered at an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The group that decided it.
    pub group: GroupId,
    /// The time that was decided for it.
    pub time_us: u64,
    /// The request's digest; zero: nothing runs.
    pub digest: Digest,
}

/// A request of a scenario.
pub(crate) struct Submitted {
    pub(crate) verified: Verified<Arc<Request>>,
    /// When it is sent again; none: its client has given it up.
    pub(crate) next_us: Option<u64>,
}

/// What a scenario does by hand, and has seen.
pub struct Hand<P: Protocol> {
    /// Which messages the links carry.
    pub filter: Filter<P>,
    /// Machines that clients do not reach.
    pub deaf: BTreeSet<MachineId>,
    /// What any correct machine has ever delivered.
    pub decided: BTreeMap<Order, Decided>,
    /// The digests of that.
    pub done: BTreeSet<Digest>,
    /// Whom correct machines have accused, and of what.
    pub reports: Vec<(MachineId, MisbehaviourKind)>,
    /// Whose messages were refused, and why.
    pub rejected: Vec<(MachineId, Rejection)>,
    /// Messages between machines, per receiver.
    pub sent: u64,
    /// Looks at what correct machines write and say.
    pub watch: Option<Box<dyn Watch<P>>>,
    /// What each machine has delivered in this life.
    pub(crate) delivered: BTreeMap<MachineId, BTreeSet<Order>>,
    pub(crate) liars: BTreeMap<MachineId, Lies<P>>,
    /// Machines in whose name the scenario has said something: to accuse them is right.
    pub(crate) framed: BTreeSet<MachineId>,
    pub(crate) submitted: Vec<Submitted>,
    /// The scenario changes the number of groups.
    pub(crate) has_scaled: bool,
    /// Answers to the question that the scenario asks.
    pub(crate) answers: Option<Vec<CommitDb>>,
}

impl<P: Protocol> Hand<P> {
    pub(crate) fn new() -> Self {
        Hand {
            filter: |_, _, _| true,
            deaf: BTreeSet::new(),
            decided: BTreeMap::new(),
            done: BTreeSet::new(),
            reports: Vec::new(),
            rejected: Vec::new(),
            sent: 0,
            watch: None,
            delivered: BTreeMap::new(),
            liars: BTreeMap::new(),
            framed: BTreeSet::new(),
            submitted: Vec::new(),
            has_scaled: false,
            answers: None,
        }
    }

    pub(super) fn delivers(&mut self, machine: MachineId, message: &CommitDb, groups: u16) {
        let delivered = self.delivered.entry(machine).or_default();
        for entry in &message.entries {
            let decided = Decided {
                group: message.group,
                time_us: entry.time_us,
                digest: entry.digest,
            };
            let known = *self.decided.entry(entry.order).or_insert(decided);
            assert_eq!(known, decided, "agreement: m{machine} differs at order {}", entry.order);
            self.done.insert(entry.digest);
            if let Some(request) = &entry.request {
                // Where that is changed, the checkers know which group is in charge.
                let is_in_charge = self.has_scaled || group_of(request.home, groups) == message.group;
                assert!(is_in_charge, "the group is in charge");
            }
            let is_first = delivered.insert(entry.order);
            assert!(is_first, "m{machine} delivers order {} twice", entry.order);
        }
    }
}

impl<P: Protocol> Cluster<P> {
    /// Whether a correct machine may be accused: a scenario has lied in its name.
    pub(super) fn is_framed(&self, machine: MachineId) -> bool {
        self.hand.as_ref().is_some_and(|hand| hand.framed.contains(&machine))
    }

    /// Sends a message as the scenario wants it; tells how many bytes, over all receivers.
    pub(super) fn send_by_hand(&mut self, index: usize, targets: &[MachineId], message: &P::Message) -> usize {
        let from = self.instances[index].machine;
        let mut lies = self.hand.as_mut().and_then(|hand| hand.liars.remove(&from));
        if lies.is_none() {
            self.note_proposal(index, message);
            if let Some(watch) = self.hand.as_mut().and_then(|hand| hand.watch.as_mut()) {
                watch.sends(from, message);
            }
        }
        let mut sent_bytes = 0;
        for target in targets {
            match lies.as_mut() {
                None => sent_bytes += self.transmit_by_hand(index, *target, message),
                Some(lies) => {
                    let key = self.keys[usize::from(from.0)].clone();
                    for lie in lies(&key, *target, message) {
                        self.transmit_by_hand(index, *target, &lie);
                    }
                }
            }
        }
        if let (Some(lies), Some(hand)) = (lies, self.hand.as_mut()) {
            hand.liars.insert(from, lies);
        }
        sent_bytes
    }

    /// Hands a message to the network, if the link carries it.
    pub(crate) fn transmit_by_hand(&mut self, index: usize, target: MachineId, message: &P::Message) -> usize {
        let from = self.instances[index].machine;
        let Some(hand) = self.hand.as_mut() else { return 0 };
        hand.sent += 1;
        if !(hand.filter)(from, target, message) {
            return 0;
        }
        let (bytes, is_forged) = (encode(message), false);
        let length = bytes.len();
        self.transmit(index, target, Packet::Agreement { bytes, is_forged });
        length
    }

    /// The requests of a scenario are sent to the machines that clients reach until they are decided.
    pub(crate) fn resend_by_hand(&mut self) {
        let now_us = self.now_us;
        let Some(hand) = self.hand.as_mut() else { return };
        let deaf: u64 = hand.deaf.iter().map(|machine| 1 << machine.0).sum();
        let mut due = Vec::new();
        for submitted in &mut hand.submitted {
            if hand.done.contains(submitted.verified.digest()) {
                submitted.next_us = None;
            }
            if submitted.next_us.is_some_and(|next_us| next_us <= now_us) {
                submitted.next_us = Some(now_us + RESEND_US);
                due.push(submitted.verified.clone());
            }
        }
        for verified in due {
            self.send_request(!deaf, &verified);
        }
    }

    /// A machine gets a request at once.
    pub(crate) fn give_request(&mut self, verified: &Verified<Arc<Request>>, machine: MachineId) {
        for to in self.indices(machine) {
            let packet = Packet::Request(verified.clone());
            let event = Event::Arrive {
                from: machine,
                to,
                packet,
            };
            self.schedule(self.now_us + 1, event);
        }
    }

    /// Feeds a machine, and returns what it answers to voters.
    pub(crate) fn ask(&mut self, machine: MachineId, input: Input<P::Message>) -> Vec<CommitDb> {
        if let Some(hand) = self.hand.as_mut() {
            hand.answers = Some(Vec::new());
        }
        for index in self.indices(machine) {
            self.step(index, input.clone());
        }
        let answers = self.hand.as_mut().and_then(|hand| hand.answers.take());
        answers.unwrap_or_default()
    }
}
