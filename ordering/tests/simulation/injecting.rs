//! Messages of liars to the machines.

use crate::cluster::{Cluster, SHARED_KEY};
use ed25519_dalek::Signer;
use ordering::configuration::replica_slot;
use ordering::identifiers::{GroupId, MachineId, View};
use ordering::ledger::PrepareEntry;
use ordering::minbft::{
    Admission, Commit, Endorsement, Hello, Input, Message, Prepare, ViewAcknowledgement, verify_message,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use trusted_counter::{SoftwareCounter, TrustedCounter};

impl Cluster {
    /// Uses up a value of a machine's counter.
    pub(crate) fn spend_warrant(&mut self, id: MachineId, slot: u32) {
        self.nodes[usize::from(id.0)].counter.create_uw(slot, &[1; 32]).unwrap();
    }

    /// Gives `to` a COMMIT that `from`'s counter has certified in another epoch.
    pub(crate) fn inject_commit(&mut self, from: MachineId, to: MachineId, commit: &Commit, epoch: u64) {
        let identity = self.nodes[usize::from(from.0)].counter.identity();
        let mut counter = SoftwareCounter::volatile_keyed(identity, SHARED_KEY, epoch);
        let digest = Commit::digest(commit.view, commit.group, &commit.batches);
        let mut commit = commit.clone();
        while commit.warrant.epoch != epoch || commit.warrant.value < self.injected + 1 {
            commit.warrant = counter.create_uw(commit.warrant.slot, &digest).unwrap();
        }
        self.injected += 1;
        let message = verify_message(from, Message::Commit(Arc::new(commit)), &self.directory).unwrap();
        self.step(to, Input::Message { from, message });
    }

    /// `to` hears a HELLO of `from` with a counter of this epoch.
    pub(crate) fn inject_hello(&mut self, from: MachineId, to: MachineId, epoch: u64, view: Option<View>) {
        let mut hello = Hello {
            machine: from,
            admission: Admission {
                epoch,
                positions: vec![0; usize::from(self.groups) + 1],
            },
            view,
            stable: None,
            signature: [0; 64],
        };
        hello.signature = self.keys[usize::from(from.0)].sign(&hello.digest()).to_bytes();
        self.inject(from, to, Message::Hello(Arc::new(hello)));
    }

    /// `to` hears that `from` acknowledges a view that never was.
    pub(crate) fn inject_acknowledgement(&mut self, from: MachineId, to: MachineId, view: View) {
        let (slot, outcome) = (replica_slot(GroupId(0)), [7; 32]);
        let counter = &mut self.nodes[usize::from(from.0)].counter;
        let endorsed = counter.create_uw(slot, &Endorsement::digest(view, &outcome)).unwrap();
        let acknowledged = counter
            .create_uw(slot, &ViewAcknowledgement::digest(view, &outcome))
            .unwrap();
        let acknowledgement = ViewAcknowledgement {
            machine: from,
            view,
            outcome,
            endorsed,
            acknowledged,
        };
        self.inject(from, to, Message::AcknowledgeView(Arc::new(acknowledgement)));
    }

    pub(crate) fn inject(&mut self, from: MachineId, to: MachineId, message: Message) {
        let message = verify_message(from, message, &self.directory).unwrap();
        self.step(to, Input::Message { from, message });
    }

    /// The primary orders the first request for both groups in one batch: for the one in charge, and for the other.
    pub(crate) fn order_twice(&mut self, primary: MachineId) {
        self.misplace_requests(primary);
        self.orders_twice = true;
    }

    /// This primary, which has ordered nothing yet, gives every request to a wrong group from now on.
    pub(crate) fn misplace_requests(&mut self, primary: MachineId) {
        let node = &self.nodes[usize::from(primary.0)];
        let counter = SoftwareCounter::volatile_keyed(node.counter.identity(), SHARED_KEY, node.disk.epoch);
        self.misplacing = Some((primary, counter, BTreeMap::new()));
    }

    /// The message that is sent instead of a PREPARE.
    pub(crate) fn misplaced(&mut self, from: MachineId, message: &Message) -> Option<Message> {
        let Message::Prepare(prepare) = message else {
            return None;
        };
        let (groups, twice) = (self.groups, self.orders_twice);
        let (_, counter, said) = self.misplacing.as_mut().filter(|(liar, ..)| *liar == from)?;
        let lie = said.entry(prepare.warrant.value).or_insert_with(|| {
            let mut lie = prepare.as_ref().clone();
            let other = |entry: &PrepareEntry| PrepareEntry {
                group: GroupId((entry.group.0 + 1) % groups),
                digest: entry.digest,
            };
            let misplaced: Vec<_> = lie.entries.iter().map(other).collect();
            if twice {
                lie.entries.extend(misplaced);
            } else {
                lie.entries = misplaced;
            }
            let digest = Prepare::digest(lie.view, lie.first, lie.time_us, &lie.entries);
            lie.warrant = counter.create_uw(lie.warrant.slot, &digest).unwrap();
            assert_eq!(lie.warrant.value, prepare.warrant.value);
            lie
        });
        Some(Message::Prepare(Arc::new(lie.clone())))
    }
}
