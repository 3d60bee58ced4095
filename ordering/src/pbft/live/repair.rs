//! Lost messages: what of a view is outstanding, and what is sent again.

use std::sync::Arc;

use crate::agreement::To;
use crate::identifiers::MachineId;
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::window::Stage;
use crate::pbft::wire::message::Message;
use crate::pbft::wire::ordered::{Commit, Prepare};

/// Batches whose messages are sent again at once.
const RESEND_MAX: usize = 32;

impl Live {
    /// Whether something that was begun is not done.
    pub(crate) fn is_outstanding(&mut self, core: &Core) -> bool {
        self.forget_below(core);
        let is_voted = |number: &u64| *number > core.ledger.history.point.value;
        !self.proposals.is_empty() || core.window.undelivered().next().is_some() || self.votes.keys().any(is_voted)
    }

    /// The primary: sends what it has proposed again when it does not get on.
    pub(crate) fn propose_again(&self, core: &mut Core) {
        if self.leading.is_none() {
            return;
        }
        let proposals = core.window.undelivered().filter_map(|slot| slot.pre_prepare.clone());
        let proposals: Vec<_> = proposals.take(RESEND_MAX).collect();
        for proposal in proposals {
            core.ledger.send(To::Others, Message::PrePrepare(proposal));
        }
    }

    /// Sends a machine our proposals and votes of this view for the numbers after the last one that it has decided.
    pub(crate) fn send_votes_again(&self, core: &mut Core, to: MachineId, decided: u64) {
        let (view, own, ledger) = (self.view, core.own(), &mut core.ledger);
        let begin = decided.saturating_add(1);
        for (number, slot) in core.window.slots.range(begin..).take(RESEND_MAX) {
            let (number, digest) = (*number, slot.digest);
            if let Some(proposal) = &slot.pre_prepare {
                ledger.send(To::Machine(to), Message::PrePrepare(Arc::clone(proposal)));
            }
            let votes = self.votes.get(&number);
            if let Some(signature) = votes.and_then(|votes| votes.prepare_of(own, &digest)) {
                let prepare = Prepare {
                    view,
                    number,
                    digest,
                    signature,
                };
                ledger.send(To::Machine(to), Message::Prepare(prepare));
            }
            if slot.stage == Stage::Prepared {
                ledger.send(To::Machine(to), Message::Commit(Commit { view, number, digest }));
            }
        }
    }
}
