//! The newest changes of the catalog, for proxies that know an older state of it. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use sql::schema::CatalogChange;

/// Changes that are kept, at most ...
const CHANGES_MAX: usize = 10_000;
/// ... and their bytes.
const CHANGES_BYTES_MAX: usize = 16 << 20;

/// The changes, each with the order that was the last one fed when it took effect.
///
/// A change, its order and what follows from both are functions of the ordered history, so correct voters answer alike. Where the log
/// begins is not: a voter that was started later has less of it.
#[derive(Debug)]
pub struct CatalogLog {
    /// All changes from this order on are here.
    begin: u64,
    /// Oldest first.
    changes: VecDeque<(u64, Arc<CatalogChange>)>,
    bytes: usize,
}

impl CatalogLog {
    /// A log that begins with what follows the newest order that the database had when this life of the voter began.
    pub fn new(newest_survived: u64) -> Self {
        Self {
            begin: newest_survived.saturating_add(1),
            changes: VecDeque::new(),
            bytes: 0,
        }
    }

    /// A change took effect when `fed` was the last order fed.
    pub fn push(&mut self, fed: u64, change: CatalogChange) {
        self.bytes = self.bytes.saturating_add(change.bytes());
        self.changes.push_back((fed, Arc::new(change)));
        while self.changes.len() > CHANGES_MAX || self.bytes > CHANGES_BYTES_MAX {
            let Some((order, oldest)) = self.changes.pop_front() else {
                break;
            };
            self.begin = order.saturating_add(1);
            self.bytes = self.bytes.saturating_sub(oldest.bytes());
        }
    }

    /// What has changed, oldest first, since what a read saw that was ordered at `read`; `None` when that is not known any more. An
    /// operation that is fed sees what took effect before it, so not what took effect when it was the last one.
    pub fn since(&self, read: u64) -> Option<Vec<Arc<CatalogChange>>> {
        if read < self.begin {
            return None;
        }
        let newer = self.changes.iter().filter(|(fed, _)| *fed >= read);
        Some(newer.map(|(_, change)| Arc::clone(change)).collect())
    }
}

/// Several changes as one.
pub fn merged(changes: &[Arc<CatalogChange>]) -> CatalogChange {
    let mut all = CatalogChange::default();
    changes.iter().for_each(|change| all.then(change));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, bytes: usize) -> CatalogChange {
        let padding = "x".repeat(bytes);
        let mut change = CatalogChange::default();
        let row = format!(r#"{{"object":"sequence","schema":"public","name":"{name}","padding":"{padding}"}}"#);
        change.set_relation(&row).unwrap();
        change
    }

    fn names(change: &CatalogChange) -> Vec<String> {
        let name = |row: String| row.split('"').nth(11).unwrap_or_default().to_owned();
        change.rows().map(|(_, row)| name(row)).collect()
    }

    #[test]
    fn a_read_is_told_what_took_effect_after_it() {
        let mut log = CatalogLog::new(10);
        log.push(12, change("a", 1));
        log.push(15, change("b", 1));
        log.push(15, change("c", 1));
        assert!(log.since(10).is_none());
        for (read, expected) in [(11, "abc"), (12, "abc"), (13, "bc"), (15, "bc"), (16, ""), (99, "")] {
            let changes = log.since(read).unwrap();
            assert_eq!(names(&merged(&changes)).concat(), expected, "{read}");
        }
    }

    #[test]
    fn what_is_no_longer_kept_is_not_guessed() {
        let mut log = CatalogLog::new(0);
        for order in 1..=20 {
            log.push(order, change(&format!("t{order}"), 1 << 20));
        }
        let begin = (1..=20).find(|read| log.since(*read).is_some()).unwrap();
        assert!((5..8).contains(&begin), "{begin}");
        assert_eq!(names(&merged(&log.since(begin).unwrap())).len(), 21 - begin as usize);
        log.push(21, change("large", 17 << 20));
        assert!(log.since(21).is_none());
        assert!(log.since(22).unwrap().is_empty());
    }
}
