//! Requests of several transactions leave together: a batch of them costs the agreement hardly more than one.
//!
//! A Begin, which holds no locks yet, waits for company: for the next request of whatever kind. As with PostgreSQL's
//! `commit_delay` and `commit_siblings`, it waits only while enough other transactions are at work that one will soon have a
//! request of its own, and only for a small part of what a transaction takes. Nothing else waits: it may hold locks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// So many other transactions must be at work.
const SIBLINGS_MIN: usize = 4;
/// A transaction that was begun longer ago is not at work: its application thinks.
const AT_WORK_MAX: Duration = Duration::from_millis(500);
/// A Begin waits for this part of what transactions take.
const PART: u32 = 16;
/// A Begin waits no longer.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// Shorter waits are not worth a timer.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// The weight of all earlier transactions against one more in the mean.
const MEMORY: u32 = 15;

#[derive(Debug, Default)]
struct State {
    /// Open transactions by when they were begun, with a number that tells those of one instant apart.
    open: BTreeMap<(Instant, u64), ()>,
    next: u64,
    /// The mean duration of transactions.
    mean: Duration,
    /// When those that wait leave at the latest.
    leave_at: Option<Instant>,
}

impl State {
    fn wait(&mut self, now: Instant) -> Option<Instant> {
        if let Some(at) = self.leave_at.filter(|at| *at > now) {
            return Some(at);
        }
        self.leave_at = None;
        let recent = now.checked_sub(AT_WORK_MAX)?;
        let at_work = self.open.range((recent, 0)..).count();
        let wait = (self.mean / PART).min(WAIT_MAX);
        if at_work <= SIBLINGS_MIN || wait < WAIT_MIN {
            return None;
        }
        self.leave_at = Some(now + wait);
        self.leave_at
    }

    fn close(&mut self, key: (Instant, u64), now: Instant) {
        self.open.remove(&key);
        let took = now.duration_since(key.0).min(AT_WORK_MAX);
        self.mean = (self.mean * MEMORY + took) / (MEMORY + 1);
    }
}

/// The transactions at work, and the Begins that wait for company.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    state: Mutex<State>,
    leaving: Notify,
}

/// A transaction that is open as long as this lives.
#[derive(Debug)]
pub(super) struct AtWork {
    gathering: Arc<Gathering>,
    key: (Instant, u64),
}

impl Gathering {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction is begun.
    pub(super) fn begin(self: &Arc<Self>) -> AtWork {
        let mut state = self.lock();
        state.next += 1;
        let key = (Instant::now(), state.next);
        state.open.insert(key, ());
        drop(state);
        let gathering = Arc::clone(self);
        AtWork { gathering, key }
    }

    /// Waits for company, if it is likely to come.
    pub(super) async fn wait(&self) {
        let leaving = self.leaving.notified();
        let leave_at = self.lock().wait(Instant::now());
        if let Some(at) = leave_at {
            // At its time all leave.
            let _ = timeout_at(at, leaving).await;
        }
    }

    /// A request leaves, and with it all that wait.
    pub(super) fn leave(&self) {
        self.lock().leave_at = None;
        self.leaving.notify_waiters();
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.gathering.lock().close(self.key, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    /// `count` transactions that were begun at `start`, when a transaction takes 64 ms.
    fn at_work(start: Instant, count: u64) -> State {
        State {
            open: (0..count).map(|number| ((start, number), ())).collect(),
            mean: Duration::from_millis(64),
            ..State::default()
        }
    }

    /// Later than the clock's own beginning by more than transactions are looked back for.
    fn start() -> Instant {
        after(Instant::now(), 10_000)
    }

    #[test]
    fn requests_of_busy_transactions_leave_together() {
        let start = start();
        let mut state = at_work(start, 5);
        let now = after(start, 10);
        assert_eq!(state.wait(now), Some(after(now, 4)));
        assert_eq!(state.wait(after(now, 3)), Some(after(now, 4)));
        assert_eq!(
            state.wait(after(now, 4)),
            Some(after(now, 8)),
            "the next ones together again"
        );
    }

    #[tokio::test]
    async fn whoever_leaves_takes_along_all_that_wait() {
        let gathering = Arc::new(Gathering::default());
        gathering.lock().mean = AT_WORK_MAX;
        let mut shortest = WAIT_MAX;
        // The machine may be busy with something else now and then.
        for _ in 0..20 {
            let _at_work: Vec<_> = (0..6).map(|_| gathering.begin()).collect();
            let began = Instant::now();
            tokio::join!(gathering.wait(), gathering.wait(), async { gathering.leave() });
            shortest = shortest.min(began.elapsed());
            gathering.lock().mean = AT_WORK_MAX;
        }
        assert!(shortest < WAIT_MAX);
        let _at_work: Vec<_> = (0..6).map(|_| gathering.begin()).collect();
        let began = Instant::now();
        gathering.wait().await;
        assert!(began.elapsed() >= WAIT_MAX);
    }

    #[test]
    fn nobody_waits_for_few_or_for_idle_transactions() {
        let start = start();
        assert_eq!(at_work(start, 4).wait(after(start, 10)), None);
        assert_eq!(at_work(start, 50).wait(after(start, 501)), None);
    }

    #[test]
    fn nobody_waits_where_transactions_are_short() {
        let start = start();
        let mut state = at_work(start, 50);
        for number in 0..40 {
            state.close((start, number), after(start, 2));
        }
        assert!(state.mean < Duration::from_millis(8), "{:?}", state.mean);
        assert_eq!(state.wait(after(start, 3)), None);
    }

    #[test]
    fn long_transactions_do_not_make_others_wait_long() {
        let start = start();
        let mut state = at_work(start, 50);
        (0..40).for_each(|number| state.close((start, number), after(start, 60_000)));
        let now = after(start, 400);
        assert_eq!(state.wait(now), Some(now + WAIT_MAX));
    }
}
