//! COMMIT: a batch is prepared when 2f+1 have accepted it, and decided when 2f+1 have that in their logs.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::Mutant;
use crate::identifiers::{Digest, MachineId};
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::log::record::{Record, Then};
use crate::pbft::window::Stage;
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::{Certificate, Commit, Prepare};

impl Live {
    /// Writes the certificates of batches that are prepared: strictly in the order of their numbers, so that whoever
    /// has sent COMMIT for one has certificates for all before it (`change/outcome.rs` relies on it).
    pub(crate) fn prepare_next(&mut self, core: &mut Core) {
        let is_careless = core.ledger.configuration.is(Mutant::PbftCommitUnprepared);
        let quorum = if is_careless { 1 } else { core.quorum() };
        loop {
            let number = core.window.committing + 1;
            let Some(slot) = core.window.slots.get_mut(&number) else {
                return;
            };
            let Some(votes) = self.votes.get(&number).filter(|_| slot.stage == Stage::Accepted) else {
                return;
            };
            let signatures: Vec<_> = votes.prepares(&slot.digest).take(quorum).collect();
            if signatures.len() < quorum {
                return;
            }
            slot.stage = Stage::Preparing;
            let (view, digest) = (self.view, slot.digest);
            let certificate = Certificate {
                view,
                batch: Arc::clone(&slot.batch),
                signatures: signatures.clone(),
            };
            core.window.certificates.insert(number, Arc::new(certificate));
            core.window.committing = number;
            let record = Record::Prepared {
                view,
                number,
                digest,
                signatures,
            };
            core.ledger.persist(record, Then::Commit { view, number, digest });
        }
    }

    /// The certificate is durable: now the COMMIT may be sent, and counts.
    pub(crate) fn on_prepared(&mut self, core: &mut Core, number: u64, digest: Digest) {
        let Some(slot) = core.window.slot_mut(number, &digest) else {
            return;
        };
        slot.stage = Stage::Prepared;
        let view = self.view;
        let commit = Commit { view, number, digest };
        self.count_commit(core, core.own(), commit);
        core.ledger.send(To::Others, Message::Commit(commit));
    }

    pub(crate) fn count_commit(&mut self, core: &mut Core, from: MachineId, commit: Commit) {
        let votes = self.votes.entry(commit.number).or_default();
        if !votes.commit(from, commit.digest) {
            core.ledger.report(from, MisbehaviourKind::Contradiction);
        }
    }

    /// Delivers what is decided, in the order of numbers: 2f+1 COMMITs, and our own log has the certificate.
    pub(crate) fn deliver_next(&mut self, core: &mut Core) {
        loop {
            let number = core.ledger.history.point.value + 1;
            let slot = core.window.slots.get(&number);
            let Some(slot) = slot.filter(|slot| slot.stage == Stage::Prepared) else {
                return;
            };
            let votes = self.votes.get(&number);
            if votes.map_or(0, |votes| votes.commits(&slot.digest)) < core.quorum() {
                return;
            }
            core.deliver(number);
        }
    }

    /// After a restart: the votes that the log proves.
    pub(crate) fn count_own_votes(&mut self, core: &Core) {
        let view = self.view;
        for (number, slot) in &core.window.slots {
            if slot.stage == Stage::Waiting {
                continue;
            }
            let signature = core.ledger.sign(&Prepare::signed(view, *number, &slot.digest));
            let votes = self.votes.entry(*number).or_default();
            votes.prepare(core.own(), slot.digest, signature);
            if slot.stage == Stage::Prepared {
                votes.commit(core.own(), slot.digest);
            }
        }
    }
}
