//! The calls that wait for answers, by number: the dispatcher finds them here, many times per transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ordering::identifiers::MachineId;
use ordering::message::{ResultKey, ResultMessage};
use tokio::sync::Notify;

use super::collect::Collect;

/// Shards of the table: a power of two.
const SHARDS: usize = 16;

/// A call that waits.
#[derive(Debug)]
pub(super) struct Call {
    collect: Mutex<Collect>,
    pub(super) changed: Notify,
}

impl Call {
    pub(super) fn collect(&self) -> MutexGuard<'_, Collect> {
        self.collect.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All calls that wait. Bounded by the sessions: each has at most one direct call, and requests have their window.
#[derive(Debug, Default)]
pub(super) struct Calls {
    shards: [Mutex<HashMap<ResultKey, Arc<Call>>>; SHARDS],
}

/// A call in the table; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Waiting<'calls> {
    pub(super) call: Arc<Call>,
    key: ResultKey,
    calls: &'calls Calls,
}

impl Calls {
    fn shard(&self, key: ResultKey) -> Option<MutexGuard<'_, HashMap<ResultKey, Arc<Call>>>> {
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
        });
        if let Some(mut shard) = self.shard(key) {
            shard.insert(key, Arc::clone(&call));
        }
        Waiting { call, key, calls: self }
    }

    /// Hands an answer to the call that waits for it, if any does.
    pub(super) fn deliver(&self, from: MachineId, result: ResultMessage) -> bool {
        let call = self.shard(result.key).and_then(|shard| shard.get(&result.key).cloned());
        let Some(call) = call else {
            return false;
        };
        if call.collect().add(from, result) {
            call.changed.notify_one();
        }
        true
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(mut shard) = self.calls.shard(self.key) {
            shard.remove(&self.key);
        }
    }
}
