//! COMMITs: the own ones leave when they are durable, those of others are followed in counter order, f+1 decide.

use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, Output, To};
use crate::configuration::{COMMIT_BATCHES_MAX, COMMIT_WINDOW, Mutant, PREPARE_WINDOW, replica_slot};
use crate::identifiers::{Digest, GroupId, MachineId};
use crate::message::{CommitDb, CommitDbEntry};
use crate::minbft::core::{Core, Then};
use crate::minbft::counter::Certifying;
use crate::minbft::live::Live;
use crate::minbft::live::stream::{Slot, Stage};
use crate::minbft::log::record::Record;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::ordered::Commit;

impl Live {
    /// Looks at every group that something has happened to.
    pub(super) fn look_at_groups(&mut self, core: &mut Core) {
        while let Some(group) = self.touched.pop() {
            if let Some(state) = self.group_mut(group) {
                state.touched = false;
            }
            self.follow_commits(core, group);
            self.commit(core, group);
            self.deliver(core, group);
        }
    }

    /// A COMMIT of this view.
    pub(crate) fn on_commit(&mut self, core: &mut Core, from: MachineId, commit: &Arc<Commit>) {
        let group = self.groups.get_mut(usize::from(commit.group.0));
        let Some(peer) = group.and_then(|group| group.peers.get_mut(&from)) else {
            return;
        };
        let configuration = &core.ledger.configuration;
        if commit.warrant.epoch != peer.epoch && !configuration.is(Mutant::AnyEpoch) {
            // A counter that was restarted counts again only when its epoch is admitted (rule AdmittedEpochs).
            core.ledger.report(from, MisbehaviourKind::WrongEpoch);
            return;
        }
        let window = if configuration.is(Mutant::EndlessWindow) {
            u64::MAX
        } else {
            COMMIT_WINDOW
        };
        peer.offer(commit, window);
        self.touch(commit.group);
    }

    /// Follows the COMMITs of a group's peers, each strictly in counter order (rules NoHoles and NoLateCommit).
    fn follow_commits(&mut self, core: &mut Core, group: GroupId) {
        let holes = core.ledger.configuration.is(Mutant::FollowAcrossHoles);
        let batch_max = self.stream.value + PREPARE_WINDOW;
        for machine in core.ledger.configuration.replica_machines() {
            while let Some(peer) = self.group_mut(group).and_then(|state| state.peers.get_mut(&machine)) {
                let Some(commit) = peer.follow(batch_max, holes) else {
                    break;
                };
                let first = commit.batches.first().map_or(0, |(value, _)| *value);
                if first <= peer.last_batch || !commit.batches.is_sorted_by(|left, right| left.0 < right.0) {
                    peer.stop();
                    core.ledger.report(machine, MisbehaviourKind::WrongCommit);
                    break;
                }
                peer.last_batch = commit.batches.last().map_or(0, |(value, _)| *value);
                for (value, digest) in &commit.batches {
                    self.count_commit(core, *value, group, machine, digest);
                }
            }
        }
    }

    pub(super) fn count_commit(
        &mut self,
        core: &mut Core,
        value: u64,
        group: GroupId,
        machine: MachineId,
        digest: &Digest,
    ) {
        if self.stream.vote(value, group, machine, digest) {
            self.touch(group);
            return;
        }
        let state = self.group_mut(group);
        if let Some(peer) = state.and_then(|state| state.peers.get_mut(&machine)) {
            peer.stop();
        }
        core.ledger.report(machine, MisbehaviourKind::Contradiction);
    }

    /// Begins the own replica's next COMMIT: everything that is ready, one COMMIT at a time at the counter.
    fn commit(&mut self, core: &mut Core, group: GroupId) {
        let (view, quorum) = (self.view, core.ledger.configuration.quorum());
        let Some(state) = self.groups.get_mut(usize::from(group.0)) else {
            return core.ledger.stop_broken();
        };
        if state.certifying || !core.runs.has_room(core.ledger.configuration.evidence_bytes_max()) {
            return;
        }
        let is_divided = !core.ledger.configuration.is(Mutant::CommitBehindChange);
        let divide = if is_divided { self.stream.divide() } else { u64::MAX };
        let (mut batches, mut share) = (Vec::new(), Vec::new());
        while let Some(slot) = state.to_commit.front().and_then(|value| self.stream.slot_mut(*value)) {
            if batches.len() == COMMIT_BATCHES_MAX || slot.value > divide || !is_ready(slot, group, quorum) {
                break;
            }
            state.to_commit.pop_front();
            batches.push((slot.value, slot.digest));
            share.extend(slot.share_operations(group));
            if let Some(part) = slot.share_mut(group) {
                part.stage = Stage::Committing;
            }
        }
        if batches.is_empty() {
            return;
        }
        state.certifying = true;
        let digest = Commit::digest(view, group, &batches);
        let purpose = Certifying::Commit {
            view,
            group,
            batches,
            share,
        };
        core.certify(replica_slot(group), digest, purpose);
    }

    /// The own COMMIT is certified: it goes to the log, with the PREPAREs that it covers.
    pub(crate) fn on_commit_certified(&mut self, core: &mut Core, commit: Arc<Commit>, share: Vec<CommitDbEntry>) {
        let group = commit.group;
        if let Some(state) = self.group_mut(group) {
            state.certifying = false;
        }
        self.touch(group);
        let last = commit.batches.last().map_or(0, |(value, _)| *value);
        for slot in self.stream.slots.iter_mut().take_while(|slot| slot.value <= last) {
            if !slot.logged {
                slot.logged = true;
                core.ledger.write(Record::Prepare(Arc::clone(&slot.prepare)));
            }
        }
        let record = Record::Commit {
            commit: Arc::clone(&commit),
            share,
        };
        core.ledger.persist(record, Then::Commit(commit));
    }

    /// The own COMMIT is durable: now it may be sent, and counts.
    pub(crate) fn on_commit_logged(&mut self, core: &mut Core, commit: Arc<Commit>) {
        core.ledger.send(To::Replicas, Message::Commit(Arc::clone(&commit)));
        let (group, machine) = (commit.group, core.own());
        for (value, digest) in &commit.batches {
            // A batch that is gone was adopted from a peer's history meanwhile.
            if let Some(slot) = self.stream.slot_mut(*value) {
                slot.unlogged -= 1;
                if let Some(part) = slot.share_mut(group) {
                    part.stage = Stage::Logged;
                }
            }
            self.stream.vote(*value, group, machine, digest);
        }
        self.touch(group);
        let is_logged = |slot: &Slot| slot.unlogged == 0;
        while self.stream.slot(self.committed + 1).is_some_and(is_logged) {
            self.committed += 1;
        }
        if let Some(state) = self.group_mut(group) {
            state.keep(commit);
        }
    }

    /// Delivers what is decided: f+1 COMMITs, our own log has it, everything of the group before it is delivered.
    fn deliver(&mut self, core: &mut Core, group: GroupId) {
        let quorum = core.ledger.configuration.quorum();
        let Some(state) = self.groups.get_mut(usize::from(group.0)) else {
            return core.ledger.stop_broken();
        };
        let mut entries = Vec::new();
        while let Some(slot) = state.to_deliver.front().and_then(|value| self.stream.slot_mut(*value)) {
            let Some(part) = slot.share_mut(group) else { break };
            if part.stage != Stage::Logged || part.votes() < quorum {
                break;
            }
            part.delivered = true;
            slot.undelivered -= 1;
            entries.extend(slot.share_operations(group));
            state.to_deliver.pop_front();
        }
        if let Some(last) = entries.last() {
            state.decided = last.order;
            core.ledger.out.push(Output::Deliver(CommitDb { group, entries }));
        }
    }
}

/// Whether a replica may commit its share of a batch: the bodies are here, and its time was in bounds, or f+1
/// others found so.
fn is_ready(slot: &Slot, group: GroupId, quorum: u32) -> bool {
    slot.share(group)
        .is_some_and(|part| part.missing == 0 && (!slot.late || part.votes() >= quorum))
}
