//! Certifying late, and what was certified.
//!
//! The adversary's production code was shown warrants that certify nothing, with the right values; here the counter
//! certifies for such a value whatever the adversary wants to send. A true counter does so once for each value, so to
//! equivocate is to send one thing to some and nothing that verifies to the others. Whatever quotes such a warrant
//! later (a VIEW-CHANGE, the proof of a live view) must quote what was really certified.

use std::collections::BTreeMap;
use std::sync::Arc;

use ordering::configuration::{PRIMARY_SLOT, replica_slot};
use ordering::identifiers::{Digest, GroupId, MachineId, Order, View};
use ordering::ledger::StableCheckpoint;
use ordering::minbft::{
    CertifiedOutcome, Commit, Endorsement, FollowedStatement, Hello, LiveProof, Message, NewView, Prepare, Proof,
    RunItem, RunStart, ViewAcknowledgement, ViewChange,
};
use trusted_counter::{Certificate, UniqueWarrant};

use super::{MinBft, restarts};
use crate::adversary::{Addressed, Behaviour, Script, Tools};
use crate::protocol::Tampered;

/// Statements and hellos that are remembered.
const REMEMBERED_MAX: usize = 64;

/// PREPAREs that are remembered.
const PREPARES_MAX: usize = 4096;

/// Epoch, slot and value of a counter.
type Place = (u64, u32, u64);

/// What an adversary has certified, and what it has heard that it may quote.
#[derive(Debug, Default)]
pub struct Memory {
    /// What replica counters have certified late.
    pub(super) spent: BTreeMap<Place, RunItem>,
    /// PREPAREs, by view and value; the own ones as they were certified.
    pub(super) prepares: BTreeMap<(View, u64), Arc<Prepare>>,
    pub(super) lives: BTreeMap<View, Arc<LiveProof>>,
    pub(super) stables: BTreeMap<Order, StableCheckpoint>,
    pub(super) followed: Vec<FollowedStatement>,
    pub(super) endorsements: BTreeMap<(View, MachineId), Endorsement>,
    pub(super) new_views: BTreeMap<View, Arc<NewView>>,
    /// The own VIEW-CHANGEs as they were certified.
    pub(super) changes: BTreeMap<View, Arc<ViewChange>>,
    pub(super) hellos: Vec<Arc<Hello>>,
    /// Whether a replica's counter was run far ahead: once is enough for a run.
    pub(super) has_run_ahead: bool,
    /// The last value at which a restarted counter has committed since we left a view, by our epoch and slot.
    pub(super) unshown: BTreeMap<(u64, u32), u64>,
    /// The true value of what was promised to the production code, where that is another one.
    moved: BTreeMap<Place, u64>,
}

impl Memory {
    /// Remembers what others have said.
    pub(super) fn hear(&mut self, message: &Message) {
        match message {
            Message::Prepare(prepare) => self.keep_prepare(prepare),
            Message::Live(proof) => drop(self.lives.insert(proof.outcome.view, Arc::clone(proof))),
            Message::Stable(stable) => drop(self.stables.insert(stable.point.order, stable.clone())),
            Message::Checkpoint(checkpoint) => {
                let statement = checkpoint.followed_statement();
                self.followed
                    .extend(statement.filter(|_| self.followed.len() < REMEMBERED_MAX));
            }
            Message::Endorse(endorsement) => {
                let key = (endorsement.view, endorsement.machine);
                self.endorsements.insert(key, endorsement.as_ref().clone());
            }
            Message::NewView(new_view) => drop(self.new_views.insert(new_view.view, Arc::clone(new_view))),
            Message::ViewChange(change) => {
                self.lives.insert(change.live.outcome.view, Arc::clone(&change.live));
                if let Some(stable) = &change.stable {
                    self.stables.insert(stable.point.order, stable.clone());
                }
            }
            Message::Hello(hello) if self.hellos.len() < REMEMBERED_MAX => self.hellos.push(Arc::clone(hello)),
            _ => {}
        }
    }

    /// Remembers what a warrant of ours was spent for.
    pub(super) fn keep(&mut self, item: &RunItem) {
        let warrant = item.warrant();
        let place = (warrant.epoch, warrant.slot, warrant.value);
        self.spent.insert(place, item.clone());
    }

    /// What was promised at one value is certified at another.
    pub(super) fn moved(&mut self, epoch: u64, slot: u32, promised: u64, real: u64) {
        self.moved.insert((epoch, slot, promised), real);
    }

    pub(super) fn keep_prepare(&mut self, prepare: &Arc<Prepare>) {
        if self.prepares.len() < PREPARES_MAX {
            let place = (prepare.view, prepare.warrant.value);
            self.prepares.insert(place, Arc::clone(prepare));
        }
    }
}

/// Whether a warrant was only shown to the own production code.
pub(super) fn is_pretended(warrant: &UniqueWarrant) -> bool {
    warrant.certificate == Certificate::Keyed([0; 32])
}

/// Certifies what `make` wants to send at this warrant's place; the same again when the production code repeats itself.
pub(super) fn late(
    script: &mut Script<MinBft>,
    warrant: &UniqueWarrant,
    tools: &mut Tools<'_>,
    make: impl FnOnce(&mut Script<MinBft>, &mut Tools<'_>) -> Addressed<Message>,
) -> Tampered<Message> {
    if !script.certifies_late() || !is_pretended(warrant) {
        return Tampered::Untouched;
    }
    let place = (warrant.slot, warrant.value);
    if let Some(certified) = script.certified.get(&place) {
        return Tampered::Instead(certified.clone());
    }
    let wanted = make(script, tools);
    let certified: Addressed<Message> = wanted
        .into_iter()
        .filter_map(|(audience, message)| Some((audience, certify(message, place, script, tools)?)))
        .collect();
    script.certified.insert(place, certified.clone());
    Tampered::Instead(certified)
}

/// The message with a true warrant at this place, unless the place is taken.
fn certify(
    message: Message,
    (slot, value): (u32, u64),
    script: &mut Script<MinBft>,
    tools: &mut Tools<'_>,
) -> Option<Message> {
    let is_restarting = script.has(Behaviour::RestartingCounters);
    let memory = &mut script.memory;
    let is_certified = match &message {
        Message::Endorse(endorsement) => !is_pretended(&endorsement.warrant),
        Message::AcknowledgeView(acknowledgement) => !is_pretended(&acknowledgement.acknowledged),
        _ => false,
    };
    if is_certified {
        return Some(message);
    }
    let mut spend = |digest: &Digest| tools.counter.create_at(slot, value, digest);
    let spent = match message {
        Message::Prepare(mut prepare) if prepare.warrant.slot == PRIMARY_SLOT => {
            Arc::make_mut(&mut prepare).warrant = spend(&prepare.own_digest())?;
            memory.keep_prepare(&prepare);
            return Some(Message::Prepare(prepare));
        }
        Message::Commit(commit) if is_restarting => return restarts::commit(Commit::clone(&commit), memory, tools),
        Message::Commit(mut commit) => {
            let digest = Commit::digest(commit.view, commit.group, &commit.batches);
            Arc::make_mut(&mut commit).warrant = spend(&digest)?;
            RunItem::Commit(commit)
        }
        Message::Endorse(endorsement) => {
            let Endorsement { view, outcome, .. } = *endorsement;
            let warrant = spend(&Endorsement::digest(view, &outcome))?;
            RunItem::Endorsed { view, outcome, warrant }
        }
        Message::AcknowledgeView(acknowledgement) => {
            let ViewAcknowledgement { view, outcome, .. } = *acknowledgement;
            let warrant = spend(&ViewAcknowledgement::digest(view, &outcome))?;
            RunItem::Acknowledged { view, outcome, warrant }
        }
        other => return Some(other),
    };
    memory.keep(&spent);
    told(&spent, memory, tools.machine)
}

/// The message that says what a warrant was spent for.
fn told(spent: &RunItem, memory: &Memory, machine: MachineId) -> Option<Message> {
    Some(match spent {
        RunItem::Commit(commit) => Message::Commit(Arc::clone(commit)),
        RunItem::Endorsed { view, outcome, warrant } => Message::Endorse(Arc::new(Endorsement {
            machine,
            view: *view,
            outcome: *outcome,
            warrant: *warrant,
        })),
        RunItem::Acknowledged { view, outcome, warrant } => {
            let endorsed = memory.spent.get(&(warrant.epoch, warrant.slot, warrant.value - 1))?;
            Message::AcknowledgeView(Arc::new(ViewAcknowledgement {
                machine,
                view: *view,
                outcome: *outcome,
                endorsed: *endorsed.warrant(),
                acknowledged: *warrant,
            }))
        }
        RunItem::Left { .. } => return None,
    })
}

fn own_warrant(warrant: &UniqueWarrant, memory: &Memory) -> UniqueWarrant {
    let promised = (warrant.epoch, warrant.slot, warrant.value);
    let value = memory.moved.get(&promised).copied().unwrap_or(warrant.value);
    let spent = memory.spent.get(&(warrant.epoch, warrant.slot, value));
    spent.map_or(*warrant, |spent| *spent.warrant())
}

/// What a warrant of ours was really spent for. What our production code certified and then did not send is certified
/// now, as it is.
fn real_item(item: &RunItem, slot: u32, memory: &mut Memory, tools: &mut Tools<'_>) -> RunItem {
    let warrant = item.warrant();
    let place = (warrant.epoch, slot, warrant.value);
    if !is_pretended(warrant) {
        return item.clone();
    }
    if let Some(spent) = memory.spent.get(&place) {
        return spent.clone();
    }
    let digest = match item {
        RunItem::Commit(commit) => Commit::digest(commit.view, commit.group, &commit.batches),
        RunItem::Left { view, content, .. } => ViewChange::digest(tools.machine, *view, content),
        RunItem::Endorsed { view, outcome, .. } => Endorsement::digest(*view, outcome),
        RunItem::Acknowledged { view, outcome, .. } => ViewAcknowledgement::digest(*view, outcome),
    };
    let Some(real) = tools.counter.create_at(slot, warrant.value, &digest) else {
        return item.clone();
    };
    let mut item = item.clone();
    match &mut item {
        RunItem::Commit(commit) => Arc::make_mut(commit).warrant = real,
        RunItem::Left { warrant, .. } | RunItem::Endorsed { warrant, .. } | RunItem::Acknowledged { warrant, .. } => {
            *warrant = real;
        }
    }
    memory.keep(&item);
    item
}

pub(super) fn real_live(proof: &Arc<LiveProof>, memory: &Memory) -> Arc<LiveProof> {
    let mut proof = Arc::clone(proof);
    let is_ours = |known: &ViewAcknowledgement| is_pretended(&known.endorsed) || is_pretended(&known.acknowledged);
    let is_ours = proof.decided_by.acknowledgements().iter().any(is_ours);
    if let Proof::Change(acknowledgements) = &mut Arc::make_mut(&mut proof).decided_by
        && is_ours
    {
        for known in acknowledgements {
            known.endorsed = own_warrant(&known.endorsed, memory);
            known.acknowledged = own_warrant(&known.acknowledged, memory);
        }
    }
    proof
}

fn real_certified(certified: &Arc<CertifiedOutcome>, memory: &Memory) -> Arc<CertifiedOutcome> {
    let mut certified = CertifiedOutcome::clone(certified);
    for (_, warrant) in &mut certified.endorsements {
        if is_pretended(warrant) {
            *warrant = own_warrant(warrant, memory);
        }
    }
    Arc::new(certified)
}

pub(super) fn real_prepare(prepare: &Arc<Prepare>, memory: &Memory) -> Arc<Prepare> {
    let known = memory.prepares.get(&(prepare.view, prepare.warrant.value));
    let known = known.filter(|_| is_pretended(&prepare.warrant));
    Arc::clone(known.unwrap_or(prepare))
}

/// The VIEW-CHANGE as it must be for what was really certified; its own warrants are still pretended.
pub(super) fn real_change(change: &ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> ViewChange {
    let mut change = change.clone();
    for (run, slot) in change.runs.iter_mut().zip(1..) {
        for item in run.iter_mut() {
            *item = real_item(item, slot, memory, tools);
        }
    }
    for prepare in &mut change.prepares {
        *prepare = real_prepare(prepare, memory);
    }
    change.live = real_live(&change.live, memory);
    change.certified = change
        .certified
        .as_ref()
        .map(|certified| real_certified(certified, memory));
    if let RunStart::Earlier(proof) = &mut change.start {
        *proof = real_live(proof, memory);
    }
    change
}

/// Certifies a VIEW-CHANGE at the places that its warrants have, in all slots, if that is still to be done; false: one
/// of them is taken.
pub(super) fn certify_change(change: &mut ViewChange, memory: &mut Memory, tools: &mut Tools<'_>) -> bool {
    if !change.warrants.iter().any(is_pretended) {
        return true;
    }
    let (view, content) = (change.view, change.content());
    let digest = ViewChange::digest(change.machine, view, &content);
    for (warrant, group) in change.warrants.iter_mut().zip(0..) {
        let slot = replica_slot(GroupId(group));
        let Some(real) = tools.counter.create_at(slot, warrant.value, &digest) else {
            return false;
        };
        *warrant = real;
        let left = RunItem::Left {
            view,
            content,
            warrant: real,
        };
        memory.keep(&left);
    }
    memory.changes.insert(view, Arc::new(change.clone()));
    true
}
