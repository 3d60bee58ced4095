//! A machine that takes part in a view.
//!
//! | what | file |
//! |---|---|
//! | the primary gives numbers and orders to requests | `primary.rs` |
//! | PRE-PREPAREs are accepted in the order of their numbers, with their bodies; PREPAREs leave when that is durable | `prepares.rs` |
//! | 2f+1 PREPAREs make a certificate, COMMITs leave when it is durable; 2f+1 decide | `commits.rs`, `votes.rs` |
//! | requests that wait too long are forwarded, and missed | `suspicion.rs` |
//! | what is lost, a PRE-PREPARE or a vote, is sent again | `repair.rs` |

mod commits;
mod prepares;
pub(crate) mod primary;
pub(crate) mod repair;
mod suspicion;
mod votes;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agreement::MisbehaviourKind;
use crate::identifiers::{Digest, MachineId, View};
use crate::ledger::bodies::Place;
use crate::message::Request;
use crate::pbft::bodies::Filled;
use crate::pbft::core::Core;
use crate::pbft::wire::change::NewView;
use crate::pbft::wire::ordered::{Ordered, PrePrepare};
use primary::Primary;
use votes::Votes;

/// Everything that belongs to one view.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) view: View,
    /// How the view began, to be sent to those who missed it; none: we were there before a restart, or it is view 0.
    pub(crate) new_view: Option<Arc<NewView>>,
    /// The primary's part, if we lead.
    pub(crate) leading: Option<Primary>,
    /// PRE-PREPAREs ahead of a gap, or that have to wait.
    proposals: BTreeMap<u64, (Arc<PrePrepare>, Digest)>,
    /// Who has voted for what; also for batches whose PRE-PREPARE has not come.
    votes: BTreeMap<u64, Votes>,
    /// The primary has signed what proves that it is faulty: nothing more of it is accepted.
    is_accused: bool,
    /// What it is to be accused of.
    accusation: Option<MisbehaviourKind>,
}

impl Live {
    /// A view that begins.
    pub(crate) fn new(view: View, new_view: Option<Arc<NewView>>) -> Self {
        Live {
            view,
            new_view,
            leading: None,
            proposals: BTreeMap::new(),
            votes: BTreeMap::new(),
            is_accused: false,
            accusation: None,
        }
    }

    /// A message about a batch of this view.
    pub(crate) fn on_ordered(&mut self, core: &mut Core, from: MachineId, message: Ordered) {
        if !core.window.is_within(message.number()) {
            return;
        }
        match message {
            Ordered::PrePrepare(proposal, digest) => self.on_pre_prepare(core, &proposal, digest),
            Ordered::Prepare(prepare) => self.on_prepare(core, from, &prepare),
            Ordered::Commit(commit) => self.count_commit(core, from, commit),
        }
    }

    /// Does whatever can be done now, once proposals were accepted.
    pub(crate) fn pump(&mut self, core: &mut Core) {
        self.prepare_next(core);
        self.deliver_next(core);
        self.propose(core);
        self.forget_below(core);
    }

    /// Everything up to the stable checkpoint is done with.
    fn forget_below(&mut self, core: &Core) {
        let first = core.window.low_point().value + 1;
        self.votes = self.votes.split_off(&first);
        self.proposals = self.proposals.split_off(&first);
    }

    /// A body has come that a batch needs.
    pub(crate) fn fill(&mut self, core: &mut Core, place: Place, digest: Digest, request: Arc<Request>) {
        match core.fill(place, digest, request) {
            Filled::Placed => self.accept(core, place.value),
            Filled::WrongGroup => self.accuse(MisbehaviourKind::WrongPrepare),
            Filled::Known => {}
        }
    }

    /// The primary has broken the rules, and its signature proves it: it must be replaced.
    fn accuse(&mut self, kind: MisbehaviourKind) {
        if !self.is_accused {
            self.is_accused = true;
            self.accusation = Some(kind);
        }
    }

    pub(crate) fn is_accused(&self) -> bool {
        self.is_accused
    }

    /// Reports what the primary was accused of; whether there was anything.
    pub(crate) fn take_accusation(&mut self, core: &mut Core) -> bool {
        let kind = self.accusation.take();
        if let Some(kind) = kind {
            let primary = core.ledger.configuration.primary(self.view);
            core.ledger.report(primary, kind);
        }
        kind.is_some()
    }

    pub(crate) fn check_invariants(&self, core: &Core) {
        assert!(self.votes.keys().all(|number| core.window.is_within(*number)));
        assert!(self.proposals.keys().all(|number| core.window.is_within(*number)));
        assert!(self.accusation.is_none(), "a step reports whom it accuses");
        self.leading.iter().for_each(Primary::check_invariants);
    }
}
