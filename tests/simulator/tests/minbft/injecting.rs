//! What liars say: single messages in the name of a machine, and a primary that gives requests to wrong groups.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ed25519_dalek::Signer;
use ordering::configuration::replica_slot;
use ordering::identifiers::{GroupId, MachineId, View};
use ordering::ledger::PrepareEntry;
use ordering::minbft::{Admission, Commit, Endorsement, Hello, Message, Prepare, ViewAcknowledgement};
use simulator::cluster::Watch;
use simulator::counter::{Counter, Trust};
use simulator::protocol::MinBft;

use crate::Cluster;

/// `to` gets these COMMITs of `from`, certified by its counter in another epoch, from its first value on.
pub(crate) fn inject_commits(
    cluster: &mut Cluster,
    from: MachineId,
    to: MachineId,
    commits: &[Arc<Commit>],
    epoch: u64,
) {
    let mut counter = Counter::new(from.0, epoch, Trust::True);
    for commit in commits {
        let mut commit = commit.as_ref().clone();
        let digest = Commit::digest(commit.view, commit.group, &commit.batches);
        commit.warrant = counter.create(commit.warrant.slot, &digest);
        cluster.inject(from, to, Message::Commit(Arc::new(commit)));
    }
}

/// `to` hears a HELLO of `from` with a counter of this epoch.
pub(crate) fn inject_hello(cluster: &mut Cluster, from: MachineId, to: MachineId, epoch: u64, view: Option<View>) {
    let groups = cluster.directory().groups;
    let mut hello = Hello {
        machine: from,
        admission: Admission {
            epoch,
            positions: vec![0; usize::from(groups) + 1],
        },
        view,
        stable: None,
        signature: [0; 64],
    };
    hello.signature = cluster.keys()[usize::from(from.0)].sign(&hello.digest()).to_bytes();
    cluster.inject(from, to, Message::Hello(Arc::new(hello)));
}

/// `to` hears that `from` acknowledges a view that never was.
pub(crate) fn inject_acknowledgement(cluster: &mut Cluster, from: MachineId, to: MachineId, view: View) {
    let (slot, outcome) = (replica_slot(GroupId(0)), [7; 32]);
    let counter = cluster.counter(from);
    let certify = |digest: [u8; 32]| counter.borrow_mut().create(slot, &digest);
    let acknowledgement = ViewAcknowledgement {
        machine: from,
        view,
        outcome,
        endorsed: certify(Endorsement::digest(view, &outcome)),
        acknowledged: certify(ViewAcknowledgement::digest(view, &outcome)),
    };
    cluster.inject(from, to, Message::AcknowledgeView(Arc::new(acknowledgement)));
}

/// What a primary does that gives requests to groups that are not in charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misplacing {
    /// Each request is ordered for a wrong group.
    Wrong,
    /// Each request is ordered in one batch for the group in charge, and for another.
    Both,
}

/// This primary, which has ordered nothing yet, does that from now on.
pub(crate) fn misplace(cluster: &mut Cluster, primary: MachineId, misplacing: Misplacing) {
    let epoch = cluster.counter(primary).borrow().epoch();
    let mut counter = Counter::new(primary.0, epoch, Trust::True);
    let groups = cluster.directory().groups;
    let mut said = BTreeMap::new();
    cluster.corrupt(primary, move |_, _, message| {
        let Message::Prepare(prepare) = message else {
            return vec![message.clone()];
        };
        let lie = said.entry(prepare.warrant.value).or_insert_with(|| {
            let mut lie = prepare.as_ref().clone();
            let other = |entry: &PrepareEntry| PrepareEntry {
                group: GroupId((entry.group.0 + 1) % groups),
                digest: entry.digest,
            };
            let misplaced: Vec<_> = lie.entries.iter().map(other).collect();
            match misplacing {
                Misplacing::Wrong => lie.entries = misplaced,
                Misplacing::Both => lie.entries.extend(misplaced),
            }
            let digest = Prepare::digest(lie.view, lie.first, lie.time_us, &lie.entries);
            lie.warrant = counter.create(lie.warrant.slot, &digest);
            assert_eq!(lie.warrant.value, prepare.warrant.value);
            Arc::new(lie)
        });
        vec![Message::Prepare(Arc::clone(lie))]
    });
}

/// What correct machines have sent: the largest message in bytes, and how many NEW-VIEWs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) largest: Rc<Cell<usize>>,
    pub(crate) new_views: Rc<Cell<u64>>,
}

impl Watch<MinBft> for Sent {
    fn sends(&mut self, _machine: MachineId, message: &Message) {
        let bytes = borsh::object_length(message).expect("messages encode");
        self.largest.set(self.largest.get().max(bytes));
        let is_new_view = matches!(message, Message::NewView(_));
        self.new_views.set(self.new_views.get() + u64::from(is_new_view));
    }
}
