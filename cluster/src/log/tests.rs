use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::mpsc;

use bytes::Bytes;

use super::*;

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("payload of record {number}"))
}

/// Appends records one by one, each durable before the next.
fn write_durably(directory: &Path, segment_bytes: u64, count: u64) {
    let (sender, events) = mpsc::channel();
    let log = Log::open(directory, segment_bytes, move |event| sender.send(event).unwrap()).unwrap();
    for _ in 0..count {
        let position = log.append(payload(log.next()));
        while events.recv().unwrap() != LogEvent::Durable(position) {}
    }
}

fn open(directory: &Path) -> Result<Log, LogError> {
    Log::open(directory, SEGMENT_BYTES, |_| {})
}

fn read_all(log: &Log, from: u64) -> Vec<u64> {
    let mut reader = log.read(from).unwrap();
    let mut positions = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        assert_eq!(record.payload, payload(record.position));
        positions.push(record.position);
    }
    positions
}

fn last_segment(directory: &Path) -> PathBuf {
    segment::list(directory).unwrap().last().unwrap().path.clone()
}

fn flip_byte(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0xff;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_appended_is_read_from_any_position() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 200, 20);
    let log = open(directory.path()).unwrap();
    assert!(segment::list(directory.path()).unwrap().len() > 3);
    for from in 1..=21 {
        assert_eq!(read_all(&log, from), (from..=20).collect::<Vec<_>>());
    }
    assert_eq!(log.next(), 21);
}

#[test]
fn a_torn_tail_is_cut_off_at_every_length() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), SEGMENT_BYTES, 3);
    let path = last_segment(directory.path());
    let whole = fs::read(&path).unwrap();
    let record_bytes = whole.len() / 3;
    for torn in 1..record_bytes {
        fs::write(&path, &whole[..whole.len() - torn]).unwrap();
        let log = open(directory.path()).unwrap();
        assert_eq!((read_all(&log, 1), log.next()), (vec![1, 2], 3));
    }
}

#[test]
fn appending_goes_on_after_a_torn_tail() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), SEGMENT_BYTES, 3);
    let mut file = OpenOptions::new()
        .write(true)
        .open(last_segment(directory.path()))
        .unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(&[0; 77]).unwrap();
    write_durably(directory.path(), SEGMENT_BYTES, 2);
    assert_eq!(read_all(&open(directory.path()).unwrap(), 1), vec![1, 2, 3, 4, 5]);
}

#[test]
fn damage_to_a_durable_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), SEGMENT_BYTES, 3);
    let path = last_segment(directory.path());
    let record_bytes = fs::metadata(&path).unwrap().len() / 3;
    flip_byte(&path, record_bytes + 40);
    assert!(matches!(
        open(directory.path()),
        Err(LogError::Corrupt { position: 2, .. })
    ));
}

#[test]
fn damage_in_an_earlier_segment_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 100, 9);
    flip_byte(&segment::list(directory.path()).unwrap()[1].path, 30);
    assert!(matches!(open(directory.path()), Err(LogError::Corrupt { .. })));
}

#[test]
fn damage_within_one_batch_that_was_never_durable_is_a_torn_tail() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    (1..=3).for_each(|position| record::encode(&mut bytes, position, 0, &payload(position)));
    let path = segment::path(directory.path(), 1);
    fs::write(&path, &bytes).unwrap();
    flip_byte(&path, bytes.len() as u64 / 3 + 40);
    assert_eq!(open(directory.path()).unwrap().next(), 2);
}

#[test]
fn many_appends_share_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, events) = mpsc::channel();
    let log = Log::open(directory.path(), SEGMENT_BYTES, move |event| {
        sender.send(event).unwrap()
    })
    .unwrap();
    (0..1000).for_each(|_| {
        log.append(payload(log.next()));
    });
    drop(log);
    let events: Vec<_> = events.iter().collect();
    assert_eq!(events.last(), Some(&LogEvent::Durable(1000)));
    assert!(events.len() < 1000, "{} syncs", events.len());
}

#[test]
fn cutting_removes_whole_segments_only() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 200, 20);
    let log = open(directory.path()).unwrap();
    let before = log.bytes();
    log.cut_below(11);
    drop(log);
    let log = open(directory.path()).unwrap();
    let left = read_all(&log, 1);
    assert!(left[0] > 1 && left[0] <= 11, "{left:?}");
    assert_eq!(*left.last().unwrap(), 20);
    assert!(log.bytes() < before);
    assert_eq!(log.next(), 21);
}

#[test]
fn two_processes_cannot_share_a_log() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path()).unwrap();
    assert!(matches!(open(directory.path()), Err(LogError::Locked { .. })));
}

#[test]
fn reading_ends_where_segments_vanish_and_can_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 200, 20);
    let log = open(directory.path()).unwrap();
    let mut reader = log.read(1).unwrap();
    assert_eq!(reader.next_record().unwrap().unwrap().position, 1);
    // The writer removes segments below what is needed; the one that is open stays readable.
    let vanished = segment::list(directory.path()).unwrap();
    vanished[..3]
        .iter()
        .for_each(|segment| fs::remove_file(&segment.path).unwrap());
    let read: Vec<_> = std::iter::from_fn(|| reader.next_record().unwrap())
        .map(|record| record.position)
        .collect();
    assert_eq!(read, (2..vanished[1].first).collect::<Vec<_>>(), "no gap");
    assert_eq!(read_all(&log, 1), (vanished[3].first..=20).collect::<Vec<_>>());
}

#[test]
fn a_log_that_lost_a_segment_in_its_middle_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 200, 20);
    fs::remove_file(&segment::list(directory.path()).unwrap()[2].path).unwrap();
    assert!(matches!(open(directory.path()), Err(LogError::Corrupt { .. })));
}

#[test]
fn a_log_that_was_cut_is_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    write_durably(directory.path(), 200, 20);
    open(directory.path()).unwrap().cut_below(15);
    write_durably(directory.path(), 200, 5);
    let left = read_all(&open(directory.path()).unwrap(), 1);
    assert!(left[0] > 1 && left[0] <= 15, "{left:?}");
    assert_eq!(left, (left[0]..=25).collect::<Vec<_>>());
}

#[test]
fn a_log_knows_whether_it_is_new_or_has_lost_everything() {
    let directory = tempfile::tempdir().unwrap();
    provision(directory.path()).unwrap();
    assert!(!open(directory.path()).unwrap().is_lost(), "nothing was ever written");
    assert!(!open(directory.path()).unwrap().is_lost(), "nor was it now");
    write_durably(directory.path(), SEGMENT_BYTES, 1);
    assert!(!open(directory.path()).unwrap().is_lost());
    fs::remove_file(last_segment(directory.path())).unwrap();
    assert!(open(directory.path()).unwrap().is_lost(), "its segments are gone");
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(open(directory.path()).unwrap().is_lost(), "its directory is gone");
}

#[test]
fn only_its_owner_may_read_a_log() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let modes = || {
        let files = fs::read_dir(&directory).unwrap();
        files.map(|file| mode(&file.unwrap().path())).collect::<Vec<_>>()
    };
    provision(&directory).unwrap();
    assert_eq!((mode(&directory), modes()), (0o700, vec![0o600]));
    write_durably(&directory, 200, 20);
    assert_eq!(mode(&directory), 0o700);
    assert!(modes().len() > 3 && modes().iter().all(|mode| *mode == 0o600));
    // As an earlier build left it.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    for segment in segment::list(&directory).unwrap() {
        fs::set_permissions(&segment.path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    drop(open(&directory).unwrap());
    assert_eq!(mode(&directory), 0o700);
    assert!(modes().iter().all(|mode| *mode == 0o600));
}
