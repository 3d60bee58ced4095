//! Validity: only what a client has signed is decided, whole; and what has its effect was decided by the group in charge.

use std::collections::{BTreeSet, VecDeque};

use ordering::identifiers::{Digest, Order};

use super::{Checker, Observation};
use crate::violation::Violation;

/// The digest of an order at which nothing runs.
const NOTHING: Digest = [0; 32];

/// Signed requests that are remembered in a long run.
const RECENT_MAX: usize = 400_000;

/// What clients have signed.
#[derive(Default)]
pub(super) struct Validity {
    signed: BTreeSet<Digest>,
    /// The same, in the order in which they were signed.
    recent: VecDeque<Digest>,
}

impl Checker for Validity {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        match observation {
            Observation::Signed { digest, .. } => {
                if self.signed.insert(*digest) {
                    self.recent.push_back(*digest);
                }
                Ok(())
            }
            Observation::Delivered { machine, entry, .. } => {
                let body = entry.request.as_ref().map(|request| request.digest());
                let is_valid = match body {
                    None => entry.digest == NOTHING,
                    Some(digest) => digest == entry.digest && self.signed.contains(&digest),
                };
                if is_valid {
                    return Ok(());
                }
                let has_body = body.is_some();
                let description = format!(
                    "m{machine} delivers at order {} what no client has signed (body: {has_body})",
                    entry.order
                );
                Err(Violation::safety("validity", description))
            }
            _ => Ok(()),
        }
    }

    fn forget_below(&mut self, _order: Order) {
        while self.recent.len() > RECENT_MAX {
            if let Some(digest) = self.recent.pop_front() {
                self.signed.remove(&digest);
            }
        }
    }
}
