//! Connections that have not logged in yet: bounded, without shutting out newcomers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections that may be logging in at once. For one more, the oldest connection of the source that has the most of
/// them makes room: who opens many shuts out only itself.
pub(crate) const STRANGERS_MAX: usize = 256;

/// The connections that have not logged in yet.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    count: usize,
    /// By source; within, by number: the oldest first.
    sources: HashMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
}

/// A connection's entry; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    source: IpAddr,
    number: u64,
    evicted: Arc<Notify>,
}

impl Strangers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection from this address in.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Stranger {
        let source = source(address);
        let mut table = self.lock();
        if table.count >= STRANGERS_MAX {
            table.evict();
        }
        let number = table.next;
        table.next += 1;
        table.count += 1;
        let evicted = Arc::new(Notify::new());
        let entry = table.sources.entry(source).or_default();
        entry.insert(number, Arc::clone(&evicted));
        Stranger {
            strangers: Arc::clone(self),
            source,
            number,
            evicted,
        }
    }
}

impl Table {
    fn evict(&mut self) {
        let largest = self.sources.iter().max_by_key(|(_, entries)| entries.len());
        let oldest = largest.and_then(|(source, entries)| Some((*source, *entries.keys().next()?)));
        if let Some((source, number)) = oldest
            && let Some(evicted) = self.remove(source, number)
        {
            evicted.notify_one();
        }
    }

    fn remove(&mut self, source: IpAddr, number: u64) -> Option<Arc<Notify>> {
        let entries = self.sources.get_mut(&source)?;
        let removed = entries.remove(&number)?;
        if entries.is_empty() {
            self.sources.remove(&source);
        }
        self.count -= 1;
        Some(removed)
    }
}

impl Stranger {
    /// Completes when the connection has to make room.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.lock().remove(self.source, self.number);
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits, which one host may have for itself.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(stranger: &Stranger) -> bool {
        let table = stranger.strangers.lock();
        let entries = table.sources.get(&stranger.source);
        !entries.is_some_and(|entries| entries.contains_key(&stranger.number))
    }

    #[tokio::test]
    async fn who_opens_many_shuts_out_only_itself() {
        let strangers = Arc::new(Strangers::default());
        let honest = strangers.admit("10.0.0.1".parse().unwrap());
        let mut flood: Vec<_> = (0..STRANGERS_MAX as u64)
            .map(|number| strangers.admit(format!("2001:db8::{number:x}").parse().unwrap()))
            .collect();
        assert!(!is_evicted(&honest));
        assert!(is_evicted(&flood[0]), "the oldest of the largest source");
        flood[0].evicted().await;
        assert_eq!(flood.iter().filter(|stranger| is_evicted(stranger)).count(), 1);
        let late = strangers.admit("10.0.0.2".parse().unwrap());
        assert!(!is_evicted(&late) && !is_evicted(&honest) && is_evicted(&flood[1]));
        flood.clear();
        drop((honest, late));
        let table = strangers.lock();
        assert_eq!((table.count, table.sources.len()), (0, 0));
    }
}
