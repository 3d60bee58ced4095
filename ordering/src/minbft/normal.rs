//! The normal case: PREPARE, COMMIT, decision.

use std::sync::Arc;

use trusted_counter::UniqueWarrant;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::{
    COMMIT_BATCHES_MAX, COMMIT_WINDOW, Mutant, PREPARE_WINDOW, PRIMARY_SLOT, WATERMARK_BYTES, WATERMARK_ORDERS,
    replica_slot,
};
use crate::identifiers::{Digest, GroupId, MachineId};
use crate::message::{CommitDb, CommitDbEntry, Request};
use crate::minbft::bodies::Place;
use crate::minbft::history::to_history;
use crate::minbft::journal::{Certifying, Persisting};
use crate::minbft::messages::{Commit, Message, Prepare, Progress};
use crate::minbft::record::Record;
use crate::minbft::stream::{Slot, Stage};
use crate::minbft::view_messages::RunItem;
use crate::minbft::{Machine, Output};

impl Machine {
    /// Does whatever can be done now; every step ends with it.
    pub(crate) fn pump(&mut self, out: &mut Vec<Output>) {
        self.follow_prepares(out);
        self.look_at_groups(out);
        self.extend_history(out);
        // A checkpoint may have shown how far others have followed somebody.
        self.look_at_groups(out);
        self.extend_history(out);
        self.tell_progress(out);
        self.order_batches(out);
        self.watch();
    }

    /// Looks at every group that something has happened to.
    fn look_at_groups(&mut self, out: &mut Vec<Output>) {
        while let Some(group) = self.live.as_mut().and_then(|live| live.touched.pop()) {
            let live = self.live.as_mut();
            if let Some(state) = live.and_then(|live| live.groups.get_mut(usize::from(group.0))) {
                state.touched = false;
            }
            self.follow_commits(group, out);
            self.commit(group, out);
            self.deliver(group, out);
        }
    }

    pub(crate) fn on_certified(&mut self, ticket: u64, warrant: &UniqueWarrant, out: &mut Vec<Output>) {
        let may_skip = self.configuration.is(Mutant::SkipWarrants);
        match self.journal.certified(ticket, warrant, may_skip) {
            None => self.stop(out),
            Some(Certifying::Prepare {
                view,
                first,
                time_us,
                entries,
                requests,
            }) => {
                let prepare = Arc::new(Prepare {
                    view,
                    first,
                    time_us,
                    entries,
                    warrant: *warrant,
                });
                self.issue(&prepare, requests, out);
            }
            Some(Certifying::Commit {
                view,
                group,
                batches,
                share,
            }) => {
                let commit = Arc::new(Commit {
                    view,
                    group,
                    batches,
                    warrant: *warrant,
                });
                self.on_commit_certified(commit, share, out);
            }
            Some(Certifying::ViewChange { view, group, content }) => {
                self.on_change_certified(view, group, content, *warrant, out);
            }
            Some(Certifying::Endorse { view, outcome }) => self.on_endorse_certified(view, outcome, *warrant, out),
            Some(Certifying::AcknowledgeView { view, outcome }) => {
                self.on_acknowledge_certified(view, outcome, *warrant, out);
            }
        }
        self.advance_change(out);
    }

    /// The primary: sends a batch that was certified.
    fn issue(&mut self, prepare: &Arc<Prepare>, requests: Vec<Arc<Request>>, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut().filter(|live| live.view == prepare.view) else {
            return;
        };
        if let Some(leading) = live.leading.as_mut() {
            leading.issue(prepare, requests, self.configuration.tail_bytes_max);
            leading.resend_us = self.now.monotonic_us + self.configuration.retransmission_us;
        }
        self.send(To::Replicas, Message::Prepare(Arc::clone(prepare)), out);
        if self.configuration.has_replicas() {
            let digest = prepare.own_digest();
            self.on_prepare(self.configuration.machine, prepare, digest, out);
        }
    }

    /// The own COMMIT is certified: it goes to the log, unless the view was left; then it is only shown there.
    fn on_commit_certified(&mut self, commit: Arc<Commit>, share: Vec<CommitDbEntry>, out: &mut Vec<Output>) {
        let group = commit.group;
        self.runs.push(group, RunItem::Commit(Arc::clone(&commit)));
        let Some(live) = self.live.as_mut().filter(|live| live.view == commit.view) else {
            return;
        };
        if let Some(state) = live.groups.get_mut(usize::from(group.0)) {
            state.certifying = false;
        }
        live.touch(group);
        let last = commit.batches.last().map_or(0, |(value, _)| *value);
        for slot in live.stream.slots.iter_mut().take_while(|slot| slot.value <= last) {
            if !slot.logged {
                slot.logged = true;
                self.journal.write(Record::Prepare(Arc::clone(&slot.prepare)), out);
            }
        }
        let record = Record::Commit {
            commit: Arc::clone(&commit),
            share,
        };
        self.journal.persist(record, Persisting::Commit(commit), out);
    }

    /// The primary: orders what waits, as far as there is room in flight.
    fn order_batches(&mut self, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut() else { return };
        let Some(leading) = live.leading.as_mut() else { return };
        while let Some(batch) = leading.next_batch(self.now.wall_us, &self.configuration) {
            let digest = Prepare::digest(live.view, batch.first, batch.time_us, &batch.entries);
            let purpose = Certifying::Prepare {
                view: live.view,
                first: batch.first,
                time_us: batch.time_us,
                entries: batch.entries,
                requests: batch.requests,
            };
            self.journal.certify(PRIMARY_SLOT, digest, purpose, out);
        }
    }

    pub(crate) fn on_progress(&mut self, from: MachineId, progress: Progress) {
        let Some(live) = self.live.as_mut().filter(|live| live.view == progress.view) else {
            return;
        };
        let Some(leading) = live.leading.as_mut() else { return };
        leading.progress(from, progress.committed);
        let is_idle = leading.in_flight() == 0;
        leading.resend_us = if is_idle {
            u64::MAX
        } else {
            self.now.monotonic_us + self.configuration.retransmission_us
        };
    }

    pub(crate) fn on_prepare(
        &mut self,
        from: MachineId,
        prepare: &Arc<Prepare>,
        digest: Digest,
        out: &mut Vec<Output>,
    ) {
        if self.live.as_ref().is_some_and(|live| live.view > prepare.view) {
            // A primary that does not know that it was replaced.
            self.tell_live(from, out);
        }
        if !self.configuration.has_replicas() {
            return;
        }
        let Some(live) = self.live.as_mut().filter(|live| live.view == prepare.view) else {
            return;
        };
        if prepare.warrant.epoch != live.primary_epoch {
            let primary = live.primary;
            self.report(primary, MisbehaviourKind::WrongEpoch, out);
            return;
        }
        live.stream.offer(prepare, digest);
        if prepare.warrant.value <= live.committed {
            // The primary sends again what is in our log: it has not heard of our progress.
            live.told = live.told.min(prepare.warrant.value.saturating_sub(1));
        }
    }

    /// Follows PREPAREs strictly in counter order (rule NoHoles), within the watermarks.
    fn follow_prepares(&mut self, out: &mut Vec<Output>) {
        loop {
            let stable = self.checkpoints.point();
            let Some(live) = self.live.as_mut() else { return };
            let Some(prepare) = live.stream.due().cloned() else {
                return;
            };
            if !live.stream.continues(&prepare) {
                self.accuse_primary(out);
                return;
            }
            live.stream.trim(stable.order);
            let undecided = self.history.point.bytes - stable.bytes + live.stream.bytes as u64;
            let is_far = prepare.last().0 > stable.order.0 + WATERMARK_ORDERS || undecided > WATERMARK_BYTES as u64;
            if is_far || live.stream.shown_bytes > self.configuration.evidence_bytes_max() {
                return;
            }
            let ahead_us = prepare.time_us.saturating_sub(self.now.wall_us);
            if ahead_us > self.configuration.clock_ahead_max_us {
                // It waits until our clock has come near enough.
                let wait_us = ahead_us - self.configuration.clock_ahead_max_us;
                if live.hold_us == u64::MAX {
                    let primary = live.primary;
                    self.report(primary, MisbehaviourKind::ClockSkew, out);
                }
                if let Some(live) = self.live.as_mut() {
                    live.hold_us = self.now.monotonic_us.saturating_add(wait_us);
                }
                return;
            }
            live.hold_us = u64::MAX;
            self.follow_prepare(out);
        }
    }

    /// Follows the PREPARE whose turn it is: finds its bodies, counts the COMMITs that came before it.
    fn follow_prepare(&mut self, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut() else { return };
        let Some(slot) = live.stream.follow() else { return };
        let prepare = Arc::clone(&slot.prepare);
        slot.late = self.now.wall_us.saturating_sub(prepare.time_us) > self.configuration.clock_behind_max_us;
        let value = slot.value;
        let groups: Vec<GroupId> = slot.shares.iter().map(|share| share.group).collect();
        for group in groups {
            if let Some(state) = live.groups.get_mut(usize::from(group.0)) {
                state.to_commit.push_back(value);
                state.to_deliver.push_back(value);
            }
            live.touch(group);
        }
        for (index, entry) in prepare.entries.iter().enumerate() {
            let place = Place { value, index };
            match self
                .bodies
                .take(&entry.digest)
                .or_else(|| self.find_body(&entry.digest).cloned())
            {
                Some(request) => self.fill(place, entry.digest, request, out),
                None => self.miss_body(entry.digest, place),
            }
        }
        let Some(live) = self.live.as_mut() else { return };
        for (group, machine, digest) in live.stream.early.remove(&value).unwrap_or_default() {
            self.count_commit(value, group, machine, &digest, out);
        }
    }

    fn miss_body(&mut self, digest: Digest, place: Place) {
        let Some(live) = self.live.as_mut() else { return };
        let ask_us = self.now.monotonic_us + self.configuration.body_patience_us;
        live.ask_us = live.ask_us.min(ask_us);
        self.bodies.miss(digest, place, ask_us);
    }

    pub(crate) fn on_commit(&mut self, from: MachineId, commit: &Arc<Commit>, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut().filter(|live| live.view == commit.view) else {
            return;
        };
        let Some(group) = live.groups.get_mut(usize::from(commit.group.0)) else {
            return;
        };
        let Some(peer) = group.peers.get_mut(&from) else { return };
        if commit.warrant.epoch != peer.epoch && !self.configuration.is(Mutant::AnyEpoch) {
            // A counter that was restarted counts again only when its epoch is admitted (rule AdmittedEpochs).
            self.report(from, MisbehaviourKind::WrongEpoch, out);
            return;
        }
        let window = if self.configuration.is(Mutant::EndlessWindow) {
            u64::MAX
        } else {
            COMMIT_WINDOW
        };
        peer.offer(commit, window);
        live.touch(commit.group);
    }

    /// Follows the COMMITs of a group's peers, each strictly in counter order (rules NoHoles and NoLateCommit).
    fn follow_commits(&mut self, group: GroupId, out: &mut Vec<Output>) {
        let machines = self.configuration.replica_machines();
        let holes = self.configuration.is(Mutant::FollowAcrossHoles);
        for machine in machines {
            loop {
                let Some(live) = self.live.as_mut() else { return };
                let batch_max = live.stream.value + PREPARE_WINDOW;
                let Some(state) = live.groups.get_mut(usize::from(group.0)) else {
                    return;
                };
                let Some(peer) = state.peers.get_mut(&machine) else {
                    break;
                };
                let Some(commit) = peer.follow(batch_max, holes) else {
                    break;
                };
                let first = commit.batches.first().map_or(0, |(value, _)| *value);
                if first <= peer.last_batch || !commit.batches.is_sorted_by(|left, right| left.0 < right.0) {
                    peer.stop();
                    self.report(machine, MisbehaviourKind::WrongCommit, out);
                    break;
                }
                peer.last_batch = commit.batches.last().map_or(0, |(value, _)| *value);
                for (value, digest) in &commit.batches {
                    self.count_commit(*value, group, machine, digest, out);
                }
            }
        }
    }

    fn count_commit(&mut self, value: u64, group: GroupId, machine: MachineId, digest: &Digest, out: &mut Vec<Output>) {
        let Some(live) = self.live.as_mut() else { return };
        if live.stream.vote(value, group, machine, digest) {
            live.touch(group);
            return;
        }
        if let Some(peer) = live
            .groups
            .get_mut(usize::from(group.0))
            .and_then(|state| state.peers.get_mut(&machine))
        {
            peer.stop();
        }
        self.report(machine, MisbehaviourKind::Contradiction, out);
    }

    /// Begins the own replica's next COMMIT: everything that is ready, one COMMIT at a time at the counter.
    fn commit(&mut self, group: GroupId, out: &mut Vec<Output>) {
        let quorum = self.configuration.quorum();
        let Some(live) = self.live.as_mut() else { return };
        let Some(state) = live.groups.get_mut(usize::from(group.0)) else {
            return;
        };
        if state.certifying || !self.runs.has_room(self.configuration.evidence_bytes_max()) {
            return;
        }
        let (mut batches, mut share) = (Vec::new(), Vec::new());
        while let Some(slot) = state.to_commit.front().and_then(|value| live.stream.slot_mut(*value)) {
            if batches.len() == COMMIT_BATCHES_MAX || !is_ready(slot, group, quorum) {
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
        let digest = Commit::digest(live.view, group, &batches);
        self.journal.certify(
            replica_slot(group),
            digest,
            Certifying::Commit {
                view: live.view,
                group,
                batches,
                share,
            },
            out,
        );
    }

    /// The own COMMIT is durable: now it may be sent, and counts.
    pub(crate) fn on_commit_logged(&mut self, commit: Arc<Commit>, out: &mut Vec<Output>) {
        let machine = self.configuration.machine;
        if self.live.as_ref().is_none_or(|live| live.view != commit.view) {
            return;
        }
        self.send(To::Replicas, Message::Commit(Arc::clone(&commit)), out);
        let Some(live) = self.live.as_mut() else { return };
        let group = commit.group;
        for (value, digest) in &commit.batches {
            // A batch that is gone was adopted from a peer's history meanwhile.
            if let Some(slot) = live.stream.slot_mut(*value) {
                slot.unlogged -= 1;
                if let Some(part) = slot.share_mut(group) {
                    part.stage = Stage::Logged;
                }
            }
            live.stream.vote(*value, group, machine, digest);
        }
        live.touch(group);
        while live
            .stream
            .slot(live.committed + 1)
            .is_some_and(|slot| slot.unlogged == 0)
        {
            live.committed += 1;
        }
        if let Some(state) = live.groups.get_mut(usize::from(group.0)) {
            state.keep(commit);
        }
    }

    /// Delivers what is decided: f+1 COMMITs, our own log has it, everything of the group before it is delivered.
    fn deliver(&mut self, group: GroupId, out: &mut Vec<Output>) {
        let quorum = self.configuration.quorum();
        let Some(live) = self.live.as_mut() else { return };
        let Some(state) = live.groups.get_mut(usize::from(group.0)) else {
            return;
        };
        let mut entries = Vec::new();
        while let Some(slot) = state.to_deliver.front().and_then(|value| live.stream.slot_mut(*value)) {
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
            out.push(Output::Deliver(CommitDb { group, entries }));
        }
    }

    /// Extends the history by the batches that are decided in all of their groups.
    fn extend_history(&mut self, out: &mut Vec<Output>) {
        while let Some(slot) = self.live.as_mut().and_then(|live| live.stream.pop_delivered()) {
            let before = self.history.point;
            let operations: Vec<_> = slot
                .operations()
                .map(|(group, operation)| to_history(group, operation))
                .collect();
            for request in operations.iter().filter_map(|operation| operation.request.as_ref()) {
                self.clients.record(request.client, request.number, request.floor);
            }
            let view = slot.prepare.view;
            let limits = (self.configuration.tail_bytes_max, self.checkpoints.point().order);
            for gone in self.history.append(operations.into_iter(), view, slot.value, limits) {
                self.bodies.forget_location(&gone.digest, gone.order);
            }
            self.history_extended(&before, out);
        }
    }

    /// Tells the primary how far our log is.
    fn tell_progress(&mut self, out: &mut Vec<Output>) {
        let machine = self.configuration.machine;
        let Some(live) = self.live.as_mut().filter(|live| live.committed > live.told) else {
            return;
        };
        live.told = live.committed;
        let progress = Progress {
            view: live.view,
            committed: live.committed,
        };
        let primary = live.primary;
        if primary == machine {
            self.on_progress(machine, progress);
        } else {
            self.send(To::Machine(primary), Message::Progress(progress), out);
        }
    }
}

/// Whether a replica may commit its share of a batch: the bodies are here, and its time was in bounds, or f+1
/// others found so.
fn is_ready(slot: &Slot, group: GroupId, quorum: u32) -> bool {
    slot.share(group)
        .is_some_and(|part| part.missing == 0 && (!slot.late || part.votes() >= quorum))
}
