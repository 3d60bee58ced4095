//! What an adversary says in a view change of PBFT.

use std::collections::BTreeMap;
use std::sync::Arc;

use ordering::identifiers::{Order, View};
use ordering::ledger::StableCheckpoint;
use ordering::pbft::{Certificate, Commit, Message, NewView, ViewChange};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Pbft;
use super::abuse::sign;
use super::hoarding::Hoard;
use crate::adversary::{Behaviour, Script, Tools};
use crate::protocol::Tampered;

/// Certificates that are remembered.
const CERTIFICATES_MAX: usize = 4096;

/// What an adversary has heard that it may quote.
#[derive(Debug, Default)]
pub struct Memory {
    /// The last COMMIT that it sent.
    pub(super) last: Option<Commit>,
    /// What it proposes to some only, as a hoarder.
    pub(super) hoard: Option<Hoard>,
    /// The last view and number for which a hoarder has proposed anything.
    pub(super) proposed: (View, u64),
    /// By number and view.
    certificates: BTreeMap<(u64, View), Arc<Certificate>>,
    stables: BTreeMap<Order, StableCheckpoint>,
}

impl Memory {
    /// Remembers what others have said.
    pub(super) fn hear(&mut self, message: &Message) {
        match message {
            Message::ViewChange(view_change) => self.keep(view_change),
            Message::NewView(new_view) => new_view
                .view_changes
                .iter()
                .for_each(|view_change| self.keep(view_change)),
            Message::Stable(stable) => drop(self.stables.insert(stable.point.order, stable.clone())),
            _ => {}
        }
    }

    /// A certificate that was heard, or that the machine itself has had when it left a view.
    pub(super) fn certificate(&self, number: u64, view: View) -> Option<&Arc<Certificate>> {
        self.certificates.get(&(number, view))
    }

    pub(super) fn keep(&mut self, view_change: &ViewChange) {
        if let Some(stable) = &view_change.stable {
            self.stables.insert(stable.point.order, stable.clone());
        }
        for certificate in &view_change.prepared {
            if self.certificates.len() < CERTIFICATES_MAX {
                let key = (certificate.batch.number, certificate.view);
                self.certificates.insert(key, Arc::clone(certificate));
            }
        }
    }
}

/// Leaves a view: tells lies about what was prepared, and may go on to commit in the old one.
pub(super) fn leave(
    script: &mut Script<Pbft>,
    view_change: &Arc<ViewChange>,
    tools: &mut Tools<'_>,
) -> Tampered<Message> {
    script.memory.keep(view_change);
    let original = || Message::ViewChange(Arc::clone(view_change));
    let mut sent = Vec::new();
    if script.does(Behaviour::LyingViewChanges, tools.rng) {
        let audience = tools.some();
        if tools.rng.random_ratio(1, 8) {
            tools.tell("view change for some only");
            sent.push((audience, original()));
        } else {
            let lie = lying_view_change(view_change, &script.memory, tools);
            sent.extend([(audience, Message::ViewChange(lie)), (!audience, original())]);
        }
    }
    let late = script.memory.last.filter(|late| late.view < view_change.view);
    if let Some(late) = late.filter(|_| script.does(Behaviour::CommittingLate, tools.rng)) {
        tools.tell("commits after leaving");
        if sent.is_empty() {
            sent.push((u64::MAX, original()));
        }
        sent.push((u64::MAX, Message::Commit(late)));
    }
    if sent.is_empty() {
        return Tampered::Untouched;
    }
    Tampered::Instead(sent)
}

/// One lie that fits; the same content, signed again, where none does.
fn lying_view_change(view_change: &ViewChange, memory: &Memory, tools: &mut Tools<'_>) -> Arc<ViewChange> {
    let mut kinds: Vec<u32> = (0..6).collect();
    kinds.shuffle(tools.rng);
    for kind in kinds {
        let mut lie = view_change.clone();
        let name = match kind {
            0 if !lie.prepared.is_empty() => {
                lie.prepared.clear();
                "view change without certificates"
            }
            1 if lie.prepared.pop().is_some() => "view change without its last certificate",
            2 if lie.stable.take().is_some() => {
                lie.prepared.clear();
                "view change without a checkpoint"
            }
            3 => match older_certificates(&mut lie, memory) {
                true => "view change with an older certificate",
                false => continue,
            },
            4 => match older_checkpoint(&mut lie, memory) {
                true => "view change with an older checkpoint",
                false => continue,
            },
            5 => match others_certificates(&mut lie, memory) {
                true => "view change with what others have prepared",
                false => continue,
            },
            _ => continue,
        };
        tools.tell(name);
        lie.signature = sign(&lie.digest(), tools);
        return Arc::new(lie);
    }
    Arc::new(view_change.clone())
}

/// The certificates of the lowest view in place of those of the highest.
fn older_certificates(lie: &mut ViewChange, memory: &Memory) -> bool {
    let mut is_changed = false;
    for certificate in &mut lie.prepared {
        let (number, view) = (certificate.batch.number, certificate.view);
        let older = memory.certificates.range((number, View(0))..(number, view)).next();
        if let Some((_, older)) = older {
            *certificate = Arc::clone(older);
            is_changed = true;
        }
    }
    is_changed
}

fn older_checkpoint(lie: &mut ViewChange, memory: &Memory) -> bool {
    let Some(stable) = &lie.stable else { return false };
    let Some((_, older)) = memory.stables.range(..stable.point.order).next_back() else {
        return false;
    };
    lie.stable = Some(older.clone());
    true
}

/// Certificates above the own ones that only others have shown.
fn others_certificates(lie: &mut ViewChange, memory: &Memory) -> bool {
    let own = lie.prepared.last().map(|certificate| certificate.batch.number);
    let from = own
        .or(lie.stable.as_ref().map(|stable| stable.point.value))
        .unwrap_or(0);
    let above = memory.certificates.range((from + 1, View(0))..);
    let mut added: Vec<_> = above.map(|(_, certificate)| Arc::clone(certificate)).collect();
    added.retain(|certificate| certificate.view < lie.view);
    added.dedup_by_key(|certificate| certificate.batch.number);
    let is_changed = !added.is_empty();
    lie.prepared.extend(added);
    is_changed
}

/// Another choice among the view changes, or with a lie of its own.
pub(super) fn lying_new_view(new_view: &NewView, memory: &Memory, tools: &mut Tools<'_>) -> Message {
    let mut new_view = new_view.clone();
    let victim = tools.rng.random_range(0..new_view.view_changes.len());
    let own = new_view
        .view_changes
        .iter()
        .position(|change| change.machine == tools.machine);
    match own.filter(|_| tools.rng.random_bool(0.5)) {
        Some(own) => {
            tools.tell("new view with another view change of its own");
            let told = tools.told.len();
            new_view.view_changes[own] = lying_view_change(&new_view.view_changes[own], memory, tools);
            tools.told.truncate(told);
        }
        None => {
            new_view.view_changes.remove(victim);
            tools.tell(if new_view.view_changes.len() > 2 * usize::from(tools.faults) {
                "new view from other view changes"
            } else {
                "new view from too few view changes"
            });
        }
    }
    new_view.signature = sign(&new_view.digest(), tools);
    Message::NewView(Arc::new(new_view))
}
