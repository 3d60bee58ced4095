//! The resources that were written while a transaction reads a snapshot.

use sql::footprint::{Footprint, Resource};
use sql::operation::TransactionId;

use super::super::mode::{LockMode, locks_of};
use super::Logical;

/// While a snapshot is open, more rows and unique values that were written since are kept by their tables.
const WRITTEN_MAX: usize = 8192;

impl Logical {
    /// Locks that were held for writing end at a position. Sequences are not read from a snapshot.
    pub(super) fn note_written<'locks>(
        &mut self,
        at: (u64, u64),
        locks: impl Iterator<Item = (&'locks Resource, LockMode)>,
    ) {
        if self.snapshots == 0 {
            return;
        }
        for (resource, mode) in locks {
            let exclusive = match mode {
                LockMode::Exclusive => true,
                LockMode::IntentExclusive => false,
                LockMode::IntentShared | LockMode::Shared => continue,
            };
            if !matches!(resource, Resource::Sequence(_)) {
                self.written.insert((resource.clone(), exclusive), at);
            }
        }
        if self.written.len() > WRITTEN_MAX && self.written_parts() > WRITTEN_MAX {
            self.coarsen_written();
        }
    }

    /// How many entries are of rows, unique values and keys: they come last.
    fn written_parts(&self) -> usize {
        let (table, key) = (String::new(), String::new());
        self.written.range((Resource::Key { table, key }, false)..).count()
    }

    /// Keeps what is known of rows and unique values as if their tables had been written whole: a snapshot may last.
    fn coarsen_written(&mut self) {
        let all = std::mem::take(&mut self.written);
        for ((resource, exclusive), at) in all {
            let key = match resource.table() {
                Some(table) if exclusive => (Resource::Table(table.clone()), true),
                Some(_) | None => (resource, exclusive),
            };
            let last = self.written.entry(key).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// Whether something in the footprint was written since the transaction's snapshot.
    pub(super) fn written_since(&self, transaction: TransactionId, footprint: &Footprint) -> bool {
        let Some(since) = self.transactions.get(&transaction).and_then(|open| open.snapshot_at) else {
            return false;
        };
        locks_of(footprint).into_iter().any(|(resource, mode)| {
            [(true, LockMode::Exclusive), (false, LockMode::IntentExclusive)]
                .into_iter()
                .any(|(exclusive, written)| {
                    let last = self.written.get(&(resource.clone(), exclusive));
                    mode.conflicts(written) && last.is_some_and(|last| *last > since)
                })
        })
    }
}
