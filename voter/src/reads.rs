//! Reads that run, so that those which nobody waits for any more can be stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ordering::identifiers::ClientId;
use ordering::message::ResultKey;
use tokio::sync::Notify;

/// Reads that were given up before they began, which are remembered, at most: the oldest are forgotten, and run.
const GIVEN_UP_MAX: usize = 1024;

type Key = (ClientId, ResultKey);

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<Key, Arc<Notify>>,
    given_up: BTreeSet<Key>,
    oldest_first: VecDeque<Key>,
}

/// The reads of one voter. Bounded by what runs at once.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    state: Mutex<State>,
}

/// A read that runs; dropping it takes it out.
#[derive(Debug)]
pub(crate) struct Running {
    reads: Arc<Reads>,
    key: Key,
    stop: Arc<Notify>,
}

impl Reads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits for a read any more.
    pub(crate) fn give_up(&self, client: ClientId, key: ResultKey) {
        let key = (client, key);
        let mut state = self.state();
        if let Some(stop) = state.running.get(&key) {
            stop.notify_one();
            return;
        }
        if state.given_up.insert(key) {
            state.oldest_first.push_back(key);
        }
        if state.oldest_first.len() > GIVEN_UP_MAX
            && let Some(oldest) = state.oldest_first.pop_front()
        {
            state.given_up.remove(&oldest);
        }
    }

    /// Nobody waits any more for the reads of these clients and numbers.
    pub(crate) fn give_up_all(&self, dead: impl Fn(ClientId, u64) -> bool) {
        let state = self.state();
        for ((client, key), stop) in &state.running {
            let (ResultKey::Request(number) | ResultKey::Direct(number)) = *key;
            if dead(*client, number) {
                stop.notify_one();
            }
        }
    }

    /// A read is about to run; `None` if it has been given up already.
    pub(crate) fn begin(self: &Arc<Self>, client: ClientId, key: ResultKey) -> Option<Running> {
        let key = (client, key);
        let mut state = self.state();
        if state.given_up.contains(&key) {
            return None;
        }
        let stop = Arc::new(Notify::new());
        state.running.insert(key, Arc::clone(&stop));
        Some(Running {
            reads: Arc::clone(self),
            key,
            stop,
        })
    }
}

impl Running {
    /// Waits until it is given up.
    pub(crate) async fn given_up(&self) {
        self.stop.notified().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reads.state().running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_is_given_up_while_it_runs_or_before_it_begins() {
        let reads = Arc::new(Reads::default());
        let (client, key) = (ClientId(1), ResultKey::Direct(7));
        let running = reads.begin(client, key).unwrap();
        reads.give_up(client, key);
        running.given_up().await;
        drop(running);
        reads.give_up(client, key);
        assert!(reads.begin(client, key).is_none());
        assert!(reads.begin(ClientId(2), key).is_some(), "another client's");
    }

    #[tokio::test]
    async fn the_reads_of_a_dead_client_are_given_up() {
        let reads = Arc::new(Reads::default());
        let dead = reads.begin(ClientId(1), ResultKey::Direct(7)).unwrap();
        let later = reads.begin(ClientId(1), ResultKey::Request(8)).unwrap();
        reads.give_up_all(|client, number| client == ClientId(1) && number < 8);
        dead.given_up().await;
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), later.given_up());
        assert!(waits.await.is_err());
    }

    #[test]
    fn what_never_begins_is_forgotten() {
        let reads = Arc::new(Reads::default());
        for number in 0..=GIVEN_UP_MAX as u64 {
            reads.give_up(ClientId(1), ResultKey::Direct(number));
        }
        assert!(reads.begin(ClientId(1), ResultKey::Direct(0)).is_some());
        assert!(reads.begin(ClientId(1), ResultKey::Direct(1)).is_none());
    }
}
