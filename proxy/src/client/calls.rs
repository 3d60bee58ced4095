//! The calls that wait for answers, by number: the dispatcher finds them here, many times per transaction.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::counter;
use ordering::identifiers::MachineId;
use ordering::message::{ResultKey, ResultMessage};
use tokio::sync::Notify;

use super::collect::Collect;

/// Shards of the table: a power of two.
const SHARDS: usize = 16;
/// Calls per shard that are kept when they are done, so that a voter that differs is noticed also when it is late.
const SETTLED_MAX: usize = 32;

/// A call that waits.
#[derive(Debug)]
pub(super) struct Call {
    collect: Mutex<Collect>,
    pub(super) changed: Notify,
    /// Nobody waits any more.
    settled: AtomicBool,
}

impl Call {
    pub(super) fn collect(&self) -> MutexGuard<'_, Collect> {
        self.collect.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All calls that wait. Bounded by the sessions: each has at most one direct call, and requests have their window.
#[derive(Debug, Default)]
pub(super) struct Calls {
    shards: [Mutex<Shard>; SHARDS],
}

/// Calls by number.
#[derive(Debug, Default)]
struct Shard {
    calls: HashMap<ResultKey, Arc<Call>>,
    /// Those of them that nobody waits for, the oldest first.
    settled: VecDeque<ResultKey>,
}

impl Shard {
    /// Keeps a call for a while, for late answers.
    fn settle(&mut self, key: ResultKey) {
        self.settled.push_back(key);
        if self.settled.len() > SETTLED_MAX
            && let Some(oldest) = self.settled.pop_front()
        {
            self.calls.remove(&oldest);
        }
    }
}

/// A call in the table; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Waiting<'calls> {
    pub(super) call: Arc<Call>,
    key: ResultKey,
    calls: &'calls Calls,
}

impl Waiting<'_> {
    /// What is waited for.
    pub(super) fn key(&self) -> ResultKey {
        self.key
    }
}

impl Calls {
    fn shard(&self, key: ResultKey) -> Option<MutexGuard<'_, Shard>> {
        let (ResultKey::Request(number) | ResultKey::Direct(number)) = key;
        let index = usize::try_from(number % SHARDS as u64).unwrap_or(0);
        self.shards
            .get(index)
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn open(&self, key: ResultKey, collect: Collect) -> Waiting<'_> {
        let call = Arc::new(Call {
            collect: Mutex::new(collect),
            changed: Notify::new(),
            settled: AtomicBool::new(false),
        });
        if let Some(mut shard) = self.shard(key) {
            shard.calls.insert(key, Arc::clone(&call));
        }
        Waiting { call, key, calls: self }
    }

    /// Hands an answer to the call that waits for it; whether somebody waits.
    pub(super) fn deliver(&self, from: MachineId, result: ResultMessage) -> bool {
        let call = self
            .shard(result.key)
            .and_then(|shard| shard.calls.get(&result.key).cloned());
        let Some(call) = call else {
            return false;
        };
        let mut collect = call.collect();
        let changed = collect.add(from, result);
        let differing = collect.take_differing();
        drop(collect);
        if changed {
            call.changed.notify_one();
        }
        for voter in differing.iter() {
            tracing::debug!(voter = voter.0, "a voter's answer is not the one that was agreed on");
            counter!("cloudbft_divergences_total", "voter" => format!("m{}", voter.0), "kind" => "result").increment(1);
        }
        !call.settled.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.call.settled.store(true, Ordering::Relaxed);
        if let Some(mut shard) = self.calls.shard(self.key) {
            if self.call.collect().settle() {
                shard.settle(self.key);
            } else {
                shard.calls.remove(&self.key);
            }
        }
    }
}
