//! Results that are kept for proxies that ask again.

use std::collections::{BTreeMap, VecDeque};

use ordering::identifiers::ClientId;
use ordering::message::ResultKey;

use crate::outcome::{Outcome, Report};

/// What a kept result costs beside its bytes.
const ENTRY_BYTES: u64 = 256;

/// Results of one kind, the oldest of which go first.
#[derive(Debug, Default)]
struct Kept {
    by_key: BTreeMap<ResultKey, Report>,
    oldest_first: VecDeque<ResultKey>,
    bytes: u64,
}

/// What is kept for one client.
#[derive(Debug, Default)]
struct ClientResults {
    /// Until the client has them.
    requests: Kept,
    /// Of direct statements: wanted again at once or never, so only the last ones.
    directs: Kept,
    /// In files: until the client releases them, or others need the room.
    large: Kept,
}

/// Kept results, bounded by bytes for each client, so that none can push out another's. The last one is kept in any case.
#[derive(Debug)]
pub struct ResultStore {
    bytes_max: u64,
    large_bytes_max: u64,
    clients: BTreeMap<ClientId, ClientResults>,
}

/// The part of a client's bytes that results of direct statements may take.
const DIRECTS_PART: u64 = 8;

impl ResultStore {
    /// A store for these many bytes per client in memory, and in files.
    pub fn new(bytes_max: u64, large_bytes_max: u64) -> Self {
        Self {
            bytes_max,
            large_bytes_max,
            clients: BTreeMap::new(),
        }
    }

    /// Keeps a result.
    pub fn keep(&mut self, client: ClientId, report: Report) {
        let results = self.clients.entry(client).or_default();
        match (&report.outcome, report.key) {
            (Outcome::Large(_), _) => results.large.keep(report, self.large_bytes_max),
            (_, ResultKey::Request(_)) => results.requests.keep(report, self.bytes_max),
            (_, ResultKey::Direct(_)) => results.directs.keep(report, self.bytes_max / DIRECTS_PART),
        }
    }

    /// A kept result.
    pub fn find(&self, client: ClientId, key: ResultKey) -> Option<&Report> {
        let results = self.clients.get(&client)?;
        let kept = match key {
            ResultKey::Request(_) => &results.requests,
            ResultKey::Direct(_) => &results.directs,
        };
        kept.by_key.get(&key).or_else(|| results.large.by_key.get(&key))
    }

    /// The client has read a large result, or does not want it.
    pub fn release(&mut self, client: ClientId, key: ResultKey) {
        if let Some(results) = self.clients.get_mut(&client) {
            results.large.remove(key);
        }
    }

    /// Forgets results of requests below a client's floor.
    pub fn forget_below(&mut self, client: ClientId, floor: u64) {
        let Some(results) = self.clients.get_mut(&client) else {
            return;
        };
        let kept = &mut results.requests;
        let old = kept.by_key.range(..ResultKey::Request(floor)).map(|(key, _)| *key);
        for key in old.collect::<Vec<_>>() {
            kept.remove(key);
        }
    }
}

impl Kept {
    fn keep(&mut self, report: Report, bytes_max: u64) {
        self.bytes += size(&report);
        self.oldest_first.push_back(report.key);
        if let Some(replaced) = self.by_key.insert(report.key, report) {
            self.bytes = self.bytes.saturating_sub(size(&replaced));
        }
        while self.bytes > bytes_max && self.by_key.len() > 1 {
            let Some(key) = self.oldest_first.pop_front() else {
                break;
            };
            self.remove(key);
        }
        if self.oldest_first.len() > 2 * self.by_key.len() + 16 {
            let kept = &self.by_key;
            self.oldest_first.retain(|key| kept.contains_key(key));
        }
    }

    fn remove(&mut self, key: ResultKey) {
        if let Some(report) = self.by_key.remove(&key) {
            self.bytes = self.bytes.saturating_sub(size(&report));
        }
    }
}

fn size(report: &Report) -> u64 {
    let bytes = match &report.outcome {
        Outcome::Done { whole, .. } => whole.len() as u64,
        Outcome::Large(large) => large.stored.length(),
        Outcome::Refused { .. }
        | Outcome::Executed
        | Outcome::Word { .. }
        | Outcome::ObjectNumber { .. }
        | Outcome::Unavailable => 0,
    };
    bytes + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use ordering::identifiers::Order;
    use spool::{ChunkWriter, SpoolDirectory};

    use super::*;
    use crate::outcome::LargeResult;

    fn message(number: u64, bytes: usize) -> Report {
        Report {
            key: ResultKey::Request(number),
            order: Order(number),
            outcome: Outcome::Done {
                sequence: [0; 32],
                multiset: [0; 32],
                whole: Bytes::from(vec![0; bytes]),
            },
        }
    }

    #[test]
    fn the_oldest_results_of_the_same_client_go() {
        let mut store = ResultStore::new(10_000, 10_000);
        let (one, other) = (ClientId(1), ClientId(2));
        store.keep(other, message(1, 5000));
        for number in 1..=10 {
            store.keep(one, message(number, 5000));
        }
        assert!(store.find(one, ResultKey::Request(1)).is_none());
        assert!(store.find(one, ResultKey::Request(10)).is_some());
        assert!(store.find(other, ResultKey::Request(1)).is_some());
    }

    #[test]
    fn the_last_result_is_kept_however_large() {
        let mut store = ResultStore::new(10_000, 10_000);
        for number in 1..=3 {
            store.keep(ClientId(1), message(number, 50_000));
        }
        assert!(store.find(ClientId(1), ResultKey::Request(2)).is_none());
        assert!(store.find(ClientId(1), ResultKey::Request(3)).is_some());
    }

    #[test]
    fn what_the_client_has_is_forgotten() {
        let mut store = ResultStore::new(10_000, 10_000);
        store.keep(ClientId(1), message(1, 10));
        store.keep(ClientId(1), message(2, 10));
        store.forget_below(ClientId(1), 2);
        assert!(store.find(ClientId(1), ResultKey::Request(1)).is_none());
        assert!(store.find(ClientId(1), ResultKey::Request(2)).is_some());
    }

    fn large(directory: &SpoolDirectory, key: ResultKey, bytes: usize) -> Report {
        let mut chunk = vec![b'D'];
        chunk.extend_from_slice(&(bytes as u32 - 1).to_be_bytes());
        chunk.resize(bytes, 0);
        let mut writer = ChunkWriter::new(directory).unwrap();
        writer.append(&chunk).unwrap();
        let stored = writer.finish().unwrap();
        Report {
            outcome: Outcome::Large(Arc::new(LargeResult { stored, status: b'I' })),
            key,
            order: Order(0),
        }
    }

    #[test]
    fn files_are_kept_until_they_are_released_or_their_room_is_needed() {
        let place = tempfile::tempdir().unwrap();
        let directory = SpoolDirectory::new(place.path(), 1 << 20);
        let mut store = ResultStore::new(10_000, 10_000);
        let client = ClientId(1);
        store.keep(client, large(&directory, ResultKey::Request(1), 5000));
        store.forget_below(client, 10);
        assert!(
            store.find(client, ResultKey::Request(1)).is_some(),
            "it may be on its way to the application"
        );
        store.keep(client, large(&directory, ResultKey::Direct(1), 4000));
        assert_eq!(directory.bytes_used(), 9000);
        store.release(client, ResultKey::Direct(1));
        assert_eq!(directory.bytes_used(), 5000);
        store.keep(client, large(&directory, ResultKey::Direct(2), 6000));
        assert_eq!(directory.bytes_used(), 6000);
        assert!(store.find(client, ResultKey::Request(1)).is_none());
    }
}
