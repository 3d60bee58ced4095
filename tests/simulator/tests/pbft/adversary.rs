//! Machines that lie: what a correct machine wants to send is altered, differently for each receiver, and signed with
//! the machine's own key.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Cluster;
use ed25519_dalek::{Signer, SigningKey};
use ordering::identifiers::{Digest, MachineId, View};
use ordering::pbft::{Batch, Certificate, Commit, Message, NewView, PrePrepare, Prepare, ViewChange};

/// How a machine lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Signs two PRE-PREPAREs for each number, and votes for either before those who have it.
    Equivocate,
    /// Leads nobody: sends no PRE-PREPARE and no NEW-VIEW.
    DoNotLead,
    /// Says nothing.
    Silent,
    /// Hides its certificates and its checkpoint in VIEW-CHANGE, and whoever it can in NEW-VIEW.
    Omit,
    /// Adds certificates that nobody has signed to VIEW-CHANGE and NEW-VIEW.
    Forge,
    /// Votes for what it likes: for half of the machines a digest that does not exist.
    VoteWrong,
    /// Orders for the first group only.
    OneGroup,
    /// Sends everything only to half of the machines.
    Selective,
    /// Gives requests to groups that are not in charge of them.
    WrongGroup,
}

pub(crate) const LIES: [Lie; 9] = [
    Lie::Equivocate,
    Lie::DoNotLead,
    Lie::Silent,
    Lie::Omit,
    Lie::Forge,
    Lie::VoteWrong,
    Lie::OneGroup,
    Lie::Selective,
    Lie::WrongGroup,
];

struct Adversary {
    lie: Lie,
    quorum: usize,
    /// The other batch of each proposal.
    others: BTreeMap<(View, u64), Digest>,
}

impl Adversary {
    fn new(lie: Lie, faults: u8) -> Self {
        Adversary {
            lie,
            quorum: 2 * usize::from(faults) + 1,
            others: BTreeMap::new(),
        }
    }

    /// What the machine sends instead.
    fn rewrite(&mut self, key: &SigningKey, to: MachineId, message: &Message) -> Vec<Message> {
        let is_half = to.0 % 2 == 1;
        let lie = match (self.lie, message) {
            (Lie::Silent, _) => return Vec::new(),
            (Lie::Selective, _) if is_half => return Vec::new(),
            (Lie::DoNotLead, Message::PrePrepare(_) | Message::NewView(_)) => return Vec::new(),
            (Lie::OneGroup, Message::PrePrepare(proposal)) => {
                let has_others = proposal.batch.entries.iter().any(|entry| entry.group.0 > 0);
                if has_others {
                    return Vec::new();
                }
                None
            }
            (Lie::WrongGroup, Message::PrePrepare(proposal)) => Some(wrong_group(key, proposal)),
            (Lie::Equivocate, Message::PrePrepare(proposal)) => self.propose_another(key, proposal, is_half),
            (Lie::Equivocate, Message::Prepare(prepare)) if is_half => {
                let other = self.others.get(&(prepare.view, prepare.number));
                other.map(|other| sign_prepare(key, prepare, *other))
            }
            (Lie::Equivocate, Message::Commit(commit)) if is_half => {
                let other = self.others.get(&(commit.view, commit.number));
                other.map(|digest| {
                    Message::Commit(Commit {
                        digest: *digest,
                        ..*commit
                    })
                })
            }
            (Lie::VoteWrong, Message::Prepare(prepare)) if is_half => Some(sign_prepare(key, prepare, [7; 32])),
            (Lie::VoteWrong, Message::Commit(commit)) if is_half => Some(Message::Commit(Commit {
                digest: [7; 32],
                ..*commit
            })),
            (Lie::Omit, Message::ViewChange(view_change)) => Some(Message::ViewChange(omit(key, view_change))),
            (Lie::Omit, Message::NewView(new_view)) => Some(self.omit_others(key, new_view)),
            (Lie::Forge, Message::ViewChange(view_change)) => Some(Message::ViewChange(forge(key, view_change))),
            (Lie::Forge, Message::NewView(new_view)) => {
                let view_changes = new_view.view_changes.iter();
                let forged = view_changes.map(|view_change| forge(key, view_change)).collect();
                Some(sign_new_view(key, new_view.view, forged))
            }
            _ => None,
        };
        vec![lie.unwrap_or_else(|| message.clone())]
    }

    fn propose_another(&mut self, key: &SigningKey, proposal: &PrePrepare, is_half: bool) -> Option<Message> {
        let batch = Batch {
            time_us: proposal.batch.time_us + 1,
            ..(*proposal.batch).clone()
        };
        self.others.insert((proposal.view, batch.number), batch.digest());
        is_half.then(|| sign_proposal(key, proposal.view, batch))
    }

    /// As few view changes as will do, those with the fewest certificates.
    fn omit_others(&self, key: &SigningKey, new_view: &NewView) -> Message {
        let own = MachineId(u8::try_from(new_view.view.0 % (self.quorum as u64 / 2 * 3 + 1)).unwrap());
        let mut view_changes: Vec<_> = new_view
            .view_changes
            .iter()
            .map(|view_change| {
                if view_change.machine == own {
                    omit(key, view_change)
                } else {
                    Arc::clone(view_change)
                }
            })
            .collect();
        view_changes.sort_by_key(|view_change| view_change.prepared.len());
        view_changes.truncate(self.quorum);
        view_changes.sort_by_key(|view_change| view_change.machine);
        sign_new_view(key, new_view.view, view_changes)
    }
}

/// A machine lies from now on.
pub(crate) fn corrupt(cluster: &mut Cluster, machine: MachineId, lie: Lie, faults: u8) {
    let mut adversary = Adversary::new(lie, faults);
    cluster.corrupt(machine, move |key, to, message| adversary.rewrite(key, to, message));
}

/// A proposal of the primary with this key.
pub(crate) fn sign_proposal(key: &SigningKey, view: View, batch: Batch) -> Message {
    let signed = PrePrepare::signed(view, batch.number, &batch.digest());
    Message::PrePrepare(Arc::new(PrePrepare {
        view,
        batch: Arc::new(batch),
        signature: key.sign(&signed).to_bytes(),
    }))
}

fn wrong_group(key: &SigningKey, proposal: &PrePrepare) -> Message {
    let mut batch = (*proposal.batch).clone();
    batch.entries.iter_mut().for_each(|entry| entry.group.0 ^= 1);
    sign_proposal(key, proposal.view, batch)
}

fn sign_prepare(key: &SigningKey, prepare: &Prepare, digest: Digest) -> Message {
    let signed = Prepare::signed(prepare.view, prepare.number, &digest);
    Message::Prepare(Prepare {
        digest,
        signature: key.sign(&signed).to_bytes(),
        ..prepare.clone()
    })
}

pub(crate) fn sign_view_change(key: &SigningKey, mut view_change: ViewChange) -> Arc<ViewChange> {
    view_change.signature = key.sign(&view_change.digest()).to_bytes();
    Arc::new(view_change)
}

pub(crate) fn sign_new_view(key: &SigningKey, view: View, view_changes: Vec<Arc<ViewChange>>) -> Message {
    let mut new_view = NewView {
        view,
        view_changes,
        signature: [0; 64],
    };
    new_view.signature = key.sign(&new_view.digest()).to_bytes();
    Message::NewView(Arc::new(new_view))
}

fn omit(key: &SigningKey, view_change: &ViewChange) -> Arc<ViewChange> {
    let omitted = ViewChange {
        stable: None,
        prepared: Vec::new(),
        ..view_change.clone()
    };
    sign_view_change(key, omitted)
}

/// Claims that other batches were prepared, in the view before.
fn forge(key: &SigningKey, view_change: &ViewChange) -> Arc<ViewChange> {
    let mut forged = view_change.clone();
    for certificate in &mut forged.prepared {
        let batch = Batch {
            time_us: certificate.batch.time_us + 1,
            ..(*certificate.batch).clone()
        };
        *certificate = Arc::new(Certificate {
            view: View(view_change.view.0 - 1),
            batch: Arc::new(batch),
            signatures: certificate.signatures.clone(),
        });
    }
    sign_view_change(key, forged)
}
