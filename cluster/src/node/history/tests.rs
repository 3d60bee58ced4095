use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bytes::Bytes;
use ordering::configuration::Faults;
use ordering::identifiers::{GroupId, View};
use ordering::ledger::client_table::ClientTable;
use ordering::ledger::{CertifiedCheckpoint, HistoryEntry, HistoryPoint, StableCheckpoint};
use ordering::pbft;
use trusted_counter::SoftwareCounter;

use super::*;
use crate::log::LogEvent;

/// Small enough that 300 records fill many segments.
const SEGMENT_BYTES: u64 = 1_500;
/// Records between two marks of the index.
const RECORDS_BETWEEN_MARKS: u64 = 64;

/// The record that stands at this position, and holds this order.
fn operation(order: u64) -> pbft::Record {
    pbft::Record::History {
        first: Order(order),
        entries: vec![HistoryEntry {
            group: GroupId(0),
            time_us: order,
            digest: [order as u8; 32],
            request: None,
        }],
    }
}

/// What a log that begins with this order may begin with.
fn foundation(first: u64) -> pbft::Record {
    let point = HistoryPoint {
        order: Order(first - 1),
        ..HistoryPoint::GENESIS
    };
    let clients = ClientTable::default();
    let stable = StableCheckpoint {
        point,
        clients: clients.digest(),
        signatures: Vec::new(),
    };
    pbft::Record::Resume(Arc::new(pbft::Resume {
        checkpoint: Arc::new(CertifiedCheckpoint { stable, clients }),
        low: None,
        first: Order(first),
        view: View(3),
        is_active: true,
        outcome: Vec::new(),
        requests: Vec::new(),
    }))
}

/// A log with its index, as the owner task holds them.
struct Written {
    directory: tempfile::TempDir,
    log: Log,
    events: mpsc::Receiver<LogEvent>,
    index: LogIndex,
}

impl Written {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel();
        let notify = move |event| sender.send(event).unwrap();
        let log = Log::open(directory.path(), SEGMENT_BYTES, notify).unwrap();
        let index = LogIndex::default();
        Written {
            directory,
            log,
            events,
            index,
        }
    }

    /// Appends, and waits until it is durable: so that segments end.
    fn append(&mut self, record: &pbft::Record) -> u64 {
        let position = self.log.append(borsh::to_vec(record).map(Bytes::from).unwrap());
        note(&mut self.index, position, record);
        while self.events.recv().unwrap() != LogEvent::Durable(position) {}
        position
    }

    fn append_operations(&mut self, orders: std::ops::RangeInclusive<u64>) {
        for order in orders {
            self.append(&operation(order));
        }
    }

    /// The directory of the closed log.
    fn close(self) -> tempfile::TempDir {
        drop(self.log);
        self.directory
    }
}

fn open(directory: &Path) -> Log {
    Log::open(directory, SEGMENT_BYTES, |_| {}).unwrap()
}

fn restored(log: &Log) -> Result<Restored<pbft::Machine>, NodeError> {
    let mut counter = SoftwareCounter::volatile_ed25519([7; 32], 1);
    let configuration = Configuration::pbft(MachineId(1), Faults(1), 1);
    restore(log, configuration, &Identity::from_seed(&[8; 32]), &mut counter)
}

/// The positions that are read from this one on.
fn positions(log: &Log, from: u64) -> Vec<u64> {
    let mut reader = log.read(from).unwrap();
    std::iter::from_fn(|| reader.next_record().unwrap())
        .map(|record| record.position)
        .collect()
}

/// The segments, in the order of their first positions.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some()).collect();
    segments.sort();
    segments
}

#[test]
fn a_cut_keeps_every_record_that_is_needed_and_little_more() {
    let mut written = Written::new();
    written.append_operations(1..=300);
    let durable = written.append(&foundation(151));
    cut(&written.log, &mut written.index, Order(151), durable);
    let index = written.index.clone();
    let directory = written.close();
    let log = open(directory.path());
    let left = positions(&log, 1);
    // Order and position are the same here.
    assert!(left[0] > 1, "something went");
    assert!(left[0] <= 151, "order 151 is needed, and the log begins at {}", left[0]);
    let slack = RECORDS_BETWEEN_MARKS + SEGMENT_BYTES / 100;
    assert!(left[0] + slack >= 151, "{} is much less than 151", left[0]);
    // What is found by the index that was cut is what is found by one that is made anew.
    let again = restored(&log).unwrap().index;
    for order in [151, 200, 300] {
        for index in [&index, &again] {
            let position = position_of(index, Order(order));
            assert!(position <= order, "order {order} stands before {position}");
            assert!(
                position + RECORDS_BETWEEN_MARKS >= order || position <= left[0],
                "{position}"
            );
            assert!(positions(&log, position).contains(&order));
        }
    }
}

#[test]
fn a_log_is_not_cut_above_its_foundation_or_before_that_is_durable() {
    let mut written = Written::new();
    written.append_operations(1..=100);
    let foundation_at = written.append(&foundation(101));
    written.append_operations(101..=200);
    cut(&written.log, &mut written.index, Order(190), foundation_at - 1);
    let probe = written.append(&operation(201));
    assert_eq!(positions(&written.log, 1)[0], 1, "the foundation is not durable");
    cut(&written.log, &mut written.index, Order(190), probe);
    let directory = written.close();
    let left = positions(&open(directory.path()), 1);
    assert!(left[0] > 1 && left[0] <= foundation_at, "{left:?}");
}

#[test]
fn a_log_that_was_cut_goes_on_from_its_foundation() {
    let mut written = Written::new();
    written.append_operations(1..=200);
    let durable = written.append(&foundation(151));
    cut(&written.log, &mut written.index, Order(151), durable);
    let directory = written.close();
    let log = open(directory.path());
    assert!(positions(&log, 1)[0] > 1);
    assert_eq!(log.next(), 202);
    let status = ordering::agreement::Agreement::status(&restored(&log).unwrap().machine);
    assert_eq!((status.log_first, status.view), (Order(151), View(3)));
    assert_eq!((status.decided, status.stable), (Order(150), Order(150)));
}

#[test]
fn a_log_without_beginning_and_foundation_is_refused() {
    let mut written = Written::new();
    written.append_operations(1..=200);
    let directory = written.close();
    fs::remove_file(&segments(directory.path())[0]).unwrap();
    let refused = restored(&open(directory.path())).err().unwrap().to_string();
    assert!(refused.contains("are missing"), "{refused}");
}

#[test]
fn a_crash_between_the_removals_of_segments_does_no_harm() {
    let mut written = Written::new();
    written.append_operations(1..=200);
    written.append(&foundation(151));
    let directory = written.close();
    let all = segments(directory.path());
    let first_of = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    for next in all.windows(2).take_while(|pair| first_of(&pair[1]) <= 151) {
        fs::remove_file(&next[0]).unwrap();
        let log = open(directory.path());
        assert_eq!(positions(&log, 1)[0], first_of(&next[1]));
        let machine = restored(&log).unwrap().machine;
        assert_eq!(ordering::agreement::Agreement::status(&machine).log_first, Order(151));
    }
}
