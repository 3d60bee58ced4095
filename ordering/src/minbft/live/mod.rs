//! A machine that takes part in a view.
//!
//! | what | file |
//! |---|---|
//! | the primary gives orders to requests | `primary.rs` |
//! | PREPAREs are followed in counter order, bodies are matched (rule NoHoles) | `stream.rs`, `prepares.rs` |
//! | own COMMITs leave when they are durable; those of others are followed in counter order; f+1 decide | `group.rs`, `commits.rs` |
//! | what is decided in all groups extends the history, which is signed now and then | `history.rs` |
//! | what is lost, a PREPARE or a COMMIT, is asked for and sent again | `repair.rs` |

mod commits;
mod group;
mod history;
mod prepares;
pub(crate) mod primary;
mod repair;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::MisbehaviourKind;
use crate::configuration::{is_replica, replica_slot};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::Request;
use crate::minbft::core::Core;
use crate::minbft::wire::admission::Admission;
use crate::minbft::wire::change::ViewChange;
use crate::minbft::wire::message::Message;
use crate::minbft::wire::outcome::LiveProof;
use crate::minbft::wire::outcome::endorses;
use crate::minbft::wire::outcome::{Endorsement, ViewAcknowledgement};
use crate::timers::Timer;
use group::{Group, PeerStream};
use primary::Primary;
use stream::Stream;

/// Everything that belongs to one view.
#[derive(Debug)]
pub(crate) struct Live {
    /// How the view began: who is admitted.
    pub(crate) proof: Arc<LiveProof>,
    pub(crate) view: View,
    pub(crate) primary: MachineId,
    /// The counter epoch of the primary.
    primary_epoch: u64,
    pub(crate) stream: Stream,
    /// By group number; empty on a machine without replicas.
    pub(crate) groups: Vec<Group>,
    /// Groups to look at before the step ends.
    touched: Vec<GroupId>,
    /// The primary's part, if we lead.
    pub(crate) leading: Option<Primary>,
    /// The primary has broken the rules, and its warrant proves it: it is to be accused, and replaced.
    is_accused: bool,
    /// All batches up to this value are in our log, and were told to the primary up to `told`.
    committed: u64,
    told: u64,
    /// The progress at the last tick.
    mark: (u64, Order, u64),
    /// How many ticks in a row nothing was done although something is outstanding.
    stalled: u32,
    /// Ticks since the view began.
    ticks: u64,
    /// A peer has more than we do.
    is_behind: bool,
    /// A counter value, and the messages that prove to a machine that our counters have no hole up to that value. A machine
    /// whose STATUS says that it has followed us less far is sent them: it cannot count our COMMITs before.
    pub(crate) joining: (u64, Vec<Message>),
}

impl Live {
    /// A view that begins like this, at a machine whose history the outcome is part of.
    pub(crate) fn new(core: &mut Core, proof: &Arc<LiveProof>, primary: MachineId, admission: &Admission) -> Self {
        let outcome = &proof.outcome;
        let value = admission.positions.first().copied().unwrap_or(0);
        let point = core.ledger.history.point;
        let (stream, groups) = if core.is_sequencer() {
            let stream = Stream::new(value, outcome.end(), outcome.time_us(), outcome.assignment());
            (stream, Vec::new())
        } else {
            let groups = (0..core.ledger.configuration.groups).map(|group| new_group(core, proof, GroupId(group)));
            (
                Stream::new(point.value, point.order.next(), point.time_us, point.assignment),
                groups.collect(),
            )
        };
        let tick_us = core.now_us() + core.ledger.configuration.retransmission_us;
        core.ledger.timers.set(Timer::Tick, tick_us);
        Live {
            view: outcome.view,
            proof: Arc::clone(proof),
            primary,
            primary_epoch: admission.epoch,
            committed: stream.value,
            told: stream.value,
            stream,
            groups,
            touched: Vec::new(),
            leading: None,
            is_accused: false,
            mark: (0, Order(0), 0),
            stalled: 0,
            ticks: 0,
            is_behind: false,
            joining: (0, Vec::new()),
        }
    }

    /// A machine has joined late: its VIEW-CHANGE shows that its counters are without hole up to there.
    pub(crate) fn follow_change(&mut self, change: &ViewChange) {
        let admission = self.proof.outcome.admission(change.machine);
        let admitted = admission.map(|admission| admission.epoch);
        if admitted.is_none() || admitted != change.epoch() {
            return;
        }
        for (group, warrant) in self.groups.iter_mut().zip(&change.warrants) {
            if let Some(peer) = group.peers.get_mut(&change.machine) {
                peer.skip_to(warrant.value);
            }
        }
        self.touch_all();
    }

    /// A machine has endorsed an outcome of this view, right after its VIEW-CHANGE, and has not left the view since. Under a
    /// faulty primary that may have been another outcome than the one that is live, which it has not acknowledged then.
    pub(crate) fn follow_endorsement(&mut self, endorsement: &Endorsement) {
        let (machine, warrant) = (endorsement.machine, endorsement.warrant);
        let admission = self.proof.outcome.admission(machine);
        let is_counted = endorsement.view == self.view && admission.is_some_and(|known| known.epoch == warrant.epoch);
        let peer = self.groups.first_mut().and_then(|group| group.peers.get_mut(&machine));
        let is_next = |peer: &&mut PeerStream| warrant.value == peer.value.saturating_add(1) && !peer.has_committed();
        if let Some(peer) = peer.filter(is_next).filter(|_| is_counted) {
            peer.skip_to(warrant.value);
        }
        self.touch(GroupId(0));
    }

    /// A machine has acknowledged how the view begins: its COMMITs follow.
    pub(crate) fn follow_acknowledgement(&mut self, acknowledgement: &ViewAcknowledgement) {
        let machine = acknowledgement.machine;
        if !endorses(&self.proof.outcome, machine, &acknowledgement.endorsed) {
            return;
        }
        if let Some(peer) = self.groups.first_mut().and_then(|group| group.peers.get_mut(&machine)) {
            peer.skip_to(acknowledgement.acknowledged.value);
        }
        self.touch(GroupId(0));
    }

    /// Notes that a group must be looked at.
    fn touch(&mut self, group: GroupId) {
        if let Some(state) = self.groups.get_mut(usize::from(group.0)).filter(|state| !state.touched) {
            state.touched = true;
            self.touched.push(group);
        }
    }

    pub(crate) fn touch_all(&mut self) {
        for index in 0..self.groups.len() {
            self.touch(GroupId(u16::try_from(index).unwrap_or(u16::MAX)));
        }
    }

    fn group_mut(&mut self, group: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(usize::from(group.0))
    }

    /// Does whatever can be done now, once PREPAREs were followed.
    pub(crate) fn pump(&mut self, core: &mut Core) {
        self.look_at_groups(core);
        self.extend_history(core);
        // A checkpoint may have shown how far others have followed somebody, or a change been decided that others waited for.
        self.look_at_groups(core);
        self.extend_history(core);
        while !self.touched.is_empty() {
            self.look_at_groups(core);
            self.extend_history(core);
        }
        self.tell_progress(core);
        self.order_batches(core);
    }

    /// The primary has broken the rules, and its warrant proves it: nothing more of it is followed.
    fn accuse_primary(&mut self) {
        self.is_accused |= !self.stream.stopped;
        self.stream.stopped = true;
    }

    /// Reports what the primary was accused of. The view that is wanted then.
    pub(crate) fn take_accusation(&mut self, core: &mut Core) -> Option<View> {
        if !std::mem::take(&mut self.is_accused) {
            return None;
        }
        core.ledger.report(self.primary, MisbehaviourKind::WrongPrepare);
        Some(View(self.view.0 + 1))
    }

    /// A body, wherever this view has it.
    pub(crate) fn body(&self, core: &Core, digest: &Digest) -> Option<&Arc<Request>> {
        let issued = self.leading.as_ref().and_then(|leading| leading.body(digest));
        issued.or_else(|| self.stream.body(core.ledger.bodies.location(digest)?))
    }

    /// The view is left: keeps what the next one may take over.
    pub(crate) fn leave(self, core: &mut Core) {
        let stable = core.ledger.checkpoints.point().order;
        let past = &mut core.past;
        past.delivered = self.groups.iter().map(|group| group.decided).collect();
        past.live = Some(Arc::clone(&self.proof));
        past.mention(self.view);
        past.prepares = self.stream.kept_above(stable).cloned().collect();
        past.held.clear();
        for (order, operation) in core.ledger.history.tail_above(stable) {
            if let Some(request) = &operation.request {
                past.held.insert(operation.digest, (order, Arc::clone(request)));
            }
        }
        let now_us = core.ledger.now.monotonic_us;
        let (bodies, clients) = (&mut core.ledger.bodies, &core.ledger.clients);
        bodies.forget_missing();
        for (_, operation) in self.stream.slots.iter().flat_map(|slot| slot.operations()) {
            let Some(request) = operation.request else { continue };
            // It waits to be ordered again, unless the next view takes it over (rule OnceOnly).
            bodies.forget_location(&operation.digest, operation.order);
            if clients.lacks(&request) {
                let bytes_max = core.ledger.configuration.client_bytes_max;
                bodies.arrive(operation.digest, &request, now_us, bytes_max);
            }
            past.held.insert(operation.digest, (operation.order, request));
        }
        core.ledger.timers.stop_all(&Timer::LIVE);
    }

    pub(crate) fn decided_by_group(&self) -> Vec<(GroupId, Order)> {
        let numbered = (0..).map(GroupId).zip(&self.groups);
        numbered.map(|(number, group)| (number, group.decided)).collect()
    }

    pub(crate) fn check_invariants(&self, core: &Core) {
        self.stream.check_invariants();
        self.groups.iter().for_each(Group::check_invariants);
        assert!(self.touched.is_empty(), "a step looks at every group that it touches");
        if let Some(leading) = &self.leading {
            leading.check_invariants();
        }
        if !core.is_sequencer() {
            let first = self.stream.slots.front().map(|slot| slot.prepare.first);
            assert_eq!(
                first.unwrap_or(self.stream.next),
                core.ledger.history.point.order.next(),
                "the stream continues the history"
            );
            let first = self.stream.slots.front().map(|slot| slot.assignment);
            assert_eq!(
                first.unwrap_or(self.stream.assignment),
                core.ledger.history.point.assignment,
                "what PREPAREs say of groups is what their bodies change"
            );
        }
    }
}

fn new_group(core: &Core, proof: &LiveProof, group: GroupId) -> Group {
    let slot = replica_slot(group);
    let peers: BTreeMap<MachineId, PeerStream> = proof
        .outcome
        .admitted
        .iter()
        .filter(|(machine, _)| *machine != core.own() && is_replica(*machine))
        .map(|(machine, admission)| (*machine, peer_stream(admission, slot)))
        .collect();
    let decided = core.past.delivered(group).max(core.ledger.history.point.order);
    Group::new(decided, peers, peer_stream(&core.counter.position, slot))
}

fn peer_stream(admission: &Admission, slot: u32) -> PeerStream {
    let slot = usize::try_from(slot).ok();
    let position = slot.and_then(|slot| admission.positions.get(slot));
    PeerStream::new(admission.epoch, position.copied().unwrap_or(0))
}
