//! Results that are kept for proxies that ask again. Pure.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ordering::identifiers::ClientId;
use ordering::message::{Outcome, ResultKey, ResultMessage, SMALL_RESULT_BYTES};

/// What a kept result costs beside its bytes.
const ENTRY_BYTES: usize = 256;

/// Results of one kind, the oldest of which go first.
#[derive(Debug, Default)]
struct Kept {
    by_key: BTreeMap<ResultKey, ResultMessage>,
    oldest_first: VecDeque<ResultKey>,
    bytes: usize,
}

/// What is kept for one client.
#[derive(Debug, Default)]
struct ClientResults {
    /// Until the client has them.
    requests: Kept,
    /// Of direct statements: wanted again at once or never, so only the last ones.
    directs: Kept,
}

/// Kept results, bounded by bytes for each client, so that none can push out another's. The last one is kept in any case.
#[derive(Debug)]
pub struct ResultStore {
    bytes_max: usize,
    clients: BTreeMap<ClientId, ClientResults>,
}

/// The part of a client's bytes that results of direct statements may take.
const DIRECTS_PART: usize = 8;

impl ResultStore {
    /// A store for these many bytes per client.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            clients: BTreeMap::new(),
        }
    }

    /// Keeps a result (whole, if there is a whole).
    pub fn keep(&mut self, client: ClientId, message: ResultMessage) {
        let results = self.clients.entry(client).or_default();
        match message.key {
            ResultKey::Request(_) => results.requests.keep(message, self.bytes_max),
            ResultKey::Direct(_) => results.directs.keep(message, self.bytes_max / DIRECTS_PART),
        }
    }

    /// A kept result.
    pub fn find(&self, client: ClientId, key: ResultKey) -> Option<&ResultMessage> {
        let results = self.clients.get(&client)?;
        let kept = match key {
            ResultKey::Request(_) => &results.requests,
            ResultKey::Direct(_) => &results.directs,
        };
        kept.by_key.get(&key)
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
    fn keep(&mut self, message: ResultMessage, bytes_max: usize) {
        self.bytes += size(&message);
        self.oldest_first.push_back(message.key);
        if let Some(replaced) = self.by_key.insert(message.key, message) {
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
        if let Some(message) = self.by_key.remove(&key) {
            self.bytes = self.bytes.saturating_sub(size(&message));
        }
    }
}

fn size(message: &ResultMessage) -> usize {
    let whole = match &message.outcome {
        Outcome::Done { whole, .. } => whole.as_ref().map_or(0, Bytes::len),
        Outcome::Refused { .. } | Outcome::Executed | Outcome::Word { .. } | Outcome::Unavailable => 0,
    };
    whole + ENTRY_BYTES
}

/// The message without its whole result, unless that is small.
pub fn without_whole(mut message: ResultMessage) -> ResultMessage {
    if let Outcome::Done { whole, .. } = &mut message.outcome {
        whole.take_if(|whole| whole.len() > SMALL_RESULT_BYTES);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use ordering::identifiers::Order;

    fn message(number: u64, bytes: usize) -> ResultMessage {
        ResultMessage {
            key: ResultKey::Request(number),
            order: Order(number),
            outcome: Outcome::Done {
                sequence: [0; 32],
                multiset: [0; 32],
                whole: Some(Bytes::from(vec![0; bytes])),
            },
        }
    }

    #[test]
    fn the_oldest_results_of_the_same_client_go() {
        let mut store = ResultStore::new(10_000);
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
        let mut store = ResultStore::new(10_000);
        for number in 1..=3 {
            store.keep(ClientId(1), message(number, 50_000));
        }
        assert!(store.find(ClientId(1), ResultKey::Request(2)).is_none());
        assert!(store.find(ClientId(1), ResultKey::Request(3)).is_some());
    }

    #[test]
    fn what_the_client_has_is_forgotten() {
        let mut store = ResultStore::new(10_000);
        store.keep(ClientId(1), message(1, 10));
        store.keep(ClientId(1), message(2, 10));
        store.forget_below(ClientId(1), 2);
        assert!(store.find(ClientId(1), ResultKey::Request(1)).is_none());
        assert!(store.find(ClientId(1), ResultKey::Request(2)).is_some());
    }
}
