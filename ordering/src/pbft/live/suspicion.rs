//! Requests that wait: what the primary seems to lack is forwarded to it, and a primary that does not order it is missed.

use crate::ledger::ANSWER_BYTES_MAX;
use crate::pbft::core::Core;
use crate::pbft::live::Live;
use crate::pbft::wire::message::{FORWARD_MAX, Message};

/// A request that waits so many timeouts is starved, whatever else is decided.
const STARVED_TIMEOUTS: u64 = 8;

/// A request is forwarded again after so many timeouts: what was forwarded may have got lost.
const FORWARD_AGAIN_TIMEOUTS: u64 = 2;

impl Live {
    /// When the oldest request has waited too long: nothing was decided for a timeout, or it alone is passed over.
    pub(crate) fn expiry_us(&self, core: &Core) -> Option<u64> {
        let (since_us, _) = core.waiting.oldest()?;
        let patience_us = core.patience_us();
        let stuck_us = since_us.max(core.patience.progress_us).saturating_add(patience_us);
        Some(stuck_us.min(since_us.saturating_add(patience_us.saturating_mul(STARVED_TIMEOUTS))))
    }

    /// When to forward the oldest request that the primary seems not to have.
    pub(crate) fn forward_us(&self, core: &Core) -> Option<u64> {
        let (since_us, _) = core.waiting.unforwarded()?;
        Some(since_us.saturating_add(core.patience_us() / 2))
    }

    /// Whether a request has waited too long.
    pub(crate) fn is_starved(&self, core: &mut Core) -> bool {
        while self.expiry_us(core).is_some_and(|expiry_us| expiry_us <= core.now_us()) {
            match core.waiting.oldest() {
                Some((_, digest)) if !core.is_awaited(&digest) => core.waiting.remove(&digest),
                _ => return true,
            }
        }
        false
    }

    /// Forwards what the primary seems to lack.
    pub(crate) fn forward(&self, core: &mut Core) {
        let mut requests = Vec::new();
        let mut bytes = 0;
        let again_us = core.now_us() + FORWARD_AGAIN_TIMEOUTS * core.patience_us();
        while self
            .forward_us(core)
            .is_some_and(|forward_us| forward_us <= core.now_us())
        {
            let Some((_, digest)) = core.waiting.unforwarded() else {
                break;
            };
            core.waiting.forwarded(&digest, again_us);
            if let Some(request) = core.ledger.bodies.pending(&digest) {
                bytes += request.operation.len();
                requests.push(request.clone());
            }
            if requests.len() == FORWARD_MAX || bytes >= ANSWER_BYTES_MAX {
                core.send_to_primary(Message::Forward(std::mem::take(&mut requests)));
                bytes = 0;
            }
        }
        if !requests.is_empty() {
            core.send_to_primary(Message::Forward(requests));
        }
    }
}
