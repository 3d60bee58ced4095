//! Requests that are known and not decided, by how long they wait.

use std::collections::{BTreeMap, BTreeSet};

use crate::identifiers::Digest;

/// Requests that are watched beyond those that are awaited, before they are cleaned.
const WAITING_SLACK: usize = 1024;

/// Requests that are known and not decided, by how long they wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    since_us: BTreeMap<Digest, Since>,
    oldest: BTreeSet<(u64, Digest)>,
    /// The same, by when they were last forwarded to the primary, or else by how long they wait.
    unforwarded: BTreeSet<(u64, Digest)>,
}

/// Since when a request waits.
#[derive(Debug)]
struct Since {
    known_us: u64,
    /// The key in `unforwarded`.
    unforwarded_us: u64,
}

impl Waiting {
    pub(crate) fn add(&mut self, digest: Digest, now_us: u64) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.since_us.entry(digest) {
            entry.insert(Since {
                known_us: now_us,
                unforwarded_us: now_us,
            });
            self.oldest.insert((now_us, digest));
            self.unforwarded.insert((now_us, digest));
        }
    }

    pub(crate) fn remove(&mut self, digest: &Digest) {
        if let Some(since) = self.since_us.remove(digest) {
            self.oldest.remove(&(since.known_us, *digest));
            self.unforwarded.remove(&(since.unforwarded_us, *digest));
        }
    }

    /// The one that has waited longest, and since when.
    pub(crate) fn oldest(&self) -> Option<(u64, Digest)> {
        self.oldest.first().copied()
    }

    /// The one that counts as unforwarded longest, and since when.
    pub(crate) fn unforwarded(&self) -> Option<(u64, Digest)> {
        self.unforwarded.first().copied()
    }

    /// A request is forwarded: it counts as unforwarded again from then on.
    pub(crate) fn forwarded(&mut self, digest: &Digest, again_us: u64) {
        if let Some(since) = self.since_us.get_mut(digest) {
            self.unforwarded.remove(&(since.unforwarded_us, *digest));
            since.unforwarded_us = again_us;
            self.unforwarded.insert((again_us, *digest));
        }
    }

    /// A view begins: everything waits anew.
    pub(crate) fn restart(&mut self, now_us: u64) {
        for since in self.since_us.values_mut() {
            (since.known_us, since.unforwarded_us) = (now_us, now_us);
        }
        self.oldest = self.since_us.keys().map(|digest| (now_us, *digest)).collect();
        self.unforwarded = self.oldest.clone();
    }

    /// Whether many more are watched than can be awaited.
    pub(crate) fn is_beyond(&self, awaited_max: usize) -> bool {
        self.since_us.len() > 2 * awaited_max + WAITING_SLACK
    }

    /// Forgets those that nobody awaits any more.
    pub(crate) fn retain(&mut self, is_awaited: impl Fn(&Digest) -> bool) {
        self.since_us.retain(|digest, _| is_awaited(digest));
        let since_us = &self.since_us;
        self.oldest.retain(|(_, digest)| since_us.contains_key(digest));
        self.unforwarded.retain(|(_, digest)| since_us.contains_key(digest));
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.since_us.len(), self.oldest.len());
        let is_known = |(since_us, digest): &(u64, Digest)| {
            let since = self.since_us.get(digest);
            since.is_some_and(|since| since.unforwarded_us == *since_us)
        };
        assert_eq!(self.since_us.len(), self.unforwarded.len());
        assert!(self.unforwarded.iter().all(is_known));
    }
}
