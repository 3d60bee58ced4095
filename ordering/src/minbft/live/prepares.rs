//! PREPAREs are followed strictly in counter order (rule NoHoles), and bodies are matched with them.

use std::sync::Arc;

use crate::agreement::MisbehaviourKind;
use crate::assignment::Assignment;
use crate::configuration::{Mutant, WATERMARK_BYTES, WATERMARK_ORDERS};
use crate::identifiers::{Digest, GroupId};
use crate::ledger::bodies::Place;
use crate::message::Request;
use crate::minbft::core::Core;
use crate::minbft::live::Live;
use crate::minbft::wire::ordered::Prepare;
use crate::timers::Timer;

impl Live {
    /// A PREPARE of this view, at a replica.
    pub(crate) fn on_prepare(&mut self, core: &mut Core, prepare: &Arc<Prepare>, digest: Digest) {
        if prepare.warrant.epoch != self.primary_epoch {
            core.ledger.report(self.primary, MisbehaviourKind::WrongEpoch);
            return;
        }
        self.stream.offer(prepare, digest);
        if prepare.warrant.value <= self.committed {
            // The primary sends again what is in our log: it has not heard of our progress.
            self.told = self.told.min(prepare.warrant.value.saturating_sub(1));
        }
    }

    /// Follows the PREPAREs whose turn it is, within the watermarks.
    pub(crate) fn follow_prepares(&mut self, core: &mut Core) {
        while let Some(prepare) = self.stream.due().cloned() {
            if !self.stream.continues(&prepare) {
                self.accuse_primary();
                return;
            }
            let stable = core.ledger.checkpoints.point();
            self.stream.trim(stable.order);
            let undecided = core.ledger.history.point.bytes - stable.bytes + self.stream.bytes as u64;
            let is_far = prepare.last().0 > stable.order.0 + WATERMARK_ORDERS || undecided > WATERMARK_BYTES as u64;
            if is_far || self.stream.shown_bytes > core.ledger.configuration.evidence_bytes_max() {
                return;
            }
            if is_ahead_of_clock(self, core, &prepare) {
                return;
            }
            self.follow_prepare(core);
        }
        // Nothing waits for our clock.
        core.ledger.timers.stop(Timer::Clock);
    }

    /// Follows the PREPARE whose turn it is: finds its bodies, counts the COMMITs that came before it.
    fn follow_prepare(&mut self, core: &mut Core) {
        let Some(slot) = self.stream.follow() else {
            self.stream.stopped = true;
            return core.ledger.stop_broken();
        };
        let prepare = Arc::clone(&slot.prepare);
        let behind_us = core.ledger.now.wall_us.saturating_sub(prepare.time_us);
        slot.late = behind_us > core.ledger.configuration.clock_behind_max_us;
        let value = slot.value;
        let groups: Vec<GroupId> = slot.shares.iter().map(|share| share.group).collect();
        for group in groups {
            if let Some(state) = self.group_mut(group) {
                state.to_commit.push_back(value);
                state.to_deliver.push_back(value);
            }
            self.touch(group);
        }
        for (index, entry) in prepare.entries.iter().enumerate() {
            let place = Place { value, index };
            let waiting = core.ledger.bodies.take(&entry.digest);
            match waiting.or_else(|| find_body(self, core, &entry.digest)) {
                Some(request) => self.fill(core, place, entry.digest, request),
                None => {
                    let ask_us = core.now_us() + core.ledger.configuration.body_patience_us;
                    core.ledger.timers.set_earlier(Timer::Bodies, ask_us);
                    core.ledger.bodies.miss(entry.digest, place, ask_us);
                }
            }
        }
        for (group, machine, digest) in self.stream.early.remove(&value).unwrap_or_default() {
            self.count_commit(core, value, group, machine, &digest);
        }
    }

    /// Puts a body in its place in the PREPARE stream.
    pub(crate) fn fill(&mut self, core: &mut Core, place: Place, digest: Digest, request: Arc<Request>) {
        let configuration = &core.ledger.configuration;
        let named = self.stream.name_at(place.value, place.index);
        let is_other = |(name, of_order): (GroupId, Assignment)| {
            let is_of_now = configuration.is(Mutant::AssignmentOfNow);
            let assignment = if is_of_now { self.stream.assignment } else { of_order };
            name != configuration.name_of(&assignment, &request)
        };
        if named.is_some_and(is_other) {
            // Only with the body this shows. The share is never committed here, and the request waits for the next
            // primary.
            let (now_us, bytes_max) = (core.now_us(), configuration.client_bytes_max);
            core.ledger.bodies.arrive(digest, &request, now_us, bytes_max);
            self.accuse_primary();
            return;
        }
        if let Some((order, group)) = self.stream.fill(place.value, place.index, request) {
            core.ledger.bodies.locate(digest, order);
            self.touch(group);
        }
    }
}

/// A body that is here already: it is ordered a second time, or was when this view began.
fn find_body(live: &Live, core: &Core, digest: &Digest) -> Option<Arc<Request>> {
    let ledger = &core.ledger;
    let found = ledger.bodies.pending(digest).or_else(|| live.body(core, digest));
    found.or_else(|| core.body(digest)).cloned()
}

/// Whether a PREPARE must wait until our clock has come near enough to its time.
fn is_ahead_of_clock(live: &Live, core: &mut Core, prepare: &Prepare) -> bool {
    let ahead_us = prepare.time_us.saturating_sub(core.ledger.now.wall_us);
    let ahead_max_us = core.ledger.configuration.clock_ahead_max_us;
    if ahead_us <= ahead_max_us {
        core.ledger.timers.stop(Timer::Clock);
        return false;
    }
    if !core.ledger.timers.is_set(Timer::Clock) {
        core.ledger.report(live.primary, MisbehaviourKind::ClockSkew);
    }
    let near_us = core.now_us().saturating_add(ahead_us - ahead_max_us);
    core.ledger.timers.set(Timer::Clock, near_us);
    true
}
