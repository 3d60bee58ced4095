//! Orders that this voter has committed although it answered otherwise than f+1 voters have certified
//! (`docs/decisions/0053-a-contradiction-waits-for-the-effect.md`).
//!
//! Answers may hang on the order in which rows lie, which is each server's own, where effects do not. So the voter commits, says
//! nothing more to any client, and looks at what the transaction has changed: if f others have changed the same, it goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the effect of an order may be in doubt. Effects are compared within a second or two where others answer.
const DOUBT_MAX: Duration = Duration::from_secs(20);

/// Why a voter goes out of service after all.
pub(crate) const NOT_EQUAL: &str =
    "it answered otherwise than f+1 voters have certified, and what it changed was not found equal";

#[derive(Debug, Default)]
struct Inner {
    /// Since when each order is in doubt.
    open: Mutex<BTreeMap<u64, Doubt>>,
    count: AtomicUsize,
    comparing: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    rejected: bool,
}

/// The orders in doubt, shared by those who commit, who answer, and who compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubts {
    inner: Arc<Inner>,
}

impl Doubts {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Doubt>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, action: impl FnOnce(&mut BTreeMap<u64, Doubt>) -> T) -> T {
        let mut open = self.open();
        let result = action(&mut open);
        self.inner.count.store(open.len(), Ordering::SeqCst);
        result
    }

    /// Whether what the server changes is being read.
    pub(crate) fn set_comparing(&self, comparing: bool) {
        self.inner.comparing.store(comparing, Ordering::SeqCst);
    }

    /// Puts an order in doubt before it is committed; false when effects are not compared, so that it must not be committed.
    pub(crate) fn begin(&self, order: u64) -> bool {
        let comparing = self.inner.comparing.load(Ordering::SeqCst);
        if comparing {
            let (since, rejected) = (Instant::now(), false);
            self.change(|open| open.insert(order, Doubt { since, rejected }));
        }
        comparing
    }

    /// If the order is in doubt: it has changed what comparing effects does not see, or no f+1 databases have changed the same.
    pub(crate) fn reject(&self, order: u64) {
        self.change(|open| {
            if let Some(doubt) = open.get_mut(&order) {
                doubt.rejected = true;
            }
        });
    }

    /// f others have changed the same at this order; true if it was in doubt.
    pub(crate) fn settle(&self, order: u64) -> bool {
        let settles = |open: &mut BTreeMap<u64, Doubt>| match open.get(&order) {
            Some(doubt) if !doubt.rejected => open.remove(&order).is_some(),
            _ => false,
        };
        self.change(settles)
    }

    /// The order was not committed after all.
    pub(crate) fn withdraw(&self, order: u64) {
        self.change(|open| open.remove(&order));
    }

    /// Whether nothing is in doubt: what the voter says is what f+1 voters may say.
    pub(crate) fn is_free(&self) -> bool {
        self.inner.count.load(Ordering::SeqCst) == 0
    }

    /// An order from which the voter cannot go on: it is rejected, or in doubt for too long.
    pub(crate) fn rejected(&self, now: Instant) -> Option<u64> {
        if self.is_free() {
            return None;
        }
        let is_over = |doubt: &Doubt| doubt.rejected || now.duration_since(doubt.since) > DOUBT_MAX;
        self.open()
            .iter()
            .find(|(_, doubt)| is_over(doubt))
            .map(|(order, _)| *order)
    }

    /// The database is out of service, or another one.
    pub(crate) fn forget(&self) {
        self.change(BTreeMap::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_in_doubt_where_effects_are_not_compared() {
        let doubts = Doubts::default();
        assert!(!doubts.begin(7));
        assert!(doubts.is_free());
    }

    #[test]
    fn a_doubt_ends_when_the_effect_is_found_equal() {
        let doubts = Doubts::default();
        doubts.set_comparing(true);
        assert!(doubts.begin(7) && doubts.begin(9));
        assert!(doubts.settle(7) && !doubts.settle(7));
        assert!(!doubts.is_free());
        assert!(doubts.settle(9) && doubts.is_free());
    }

    #[test]
    fn what_is_not_compared_in_time_or_cannot_be_is_rejected() {
        let doubts = Doubts::default();
        doubts.set_comparing(true);
        doubts.begin(7);
        let now = Instant::now();
        assert_eq!(doubts.rejected(now), None);
        let late = now + DOUBT_MAX + Duration::from_secs(1);
        assert_eq!(doubts.rejected(late), Some(7));
        doubts.reject(7);
        assert!(!doubts.settle(7), "equal rows say nothing of the catalog");
        assert_eq!(doubts.rejected(now), Some(7));
        doubts.forget();
        assert!(doubts.is_free());
    }
}
