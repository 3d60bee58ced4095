use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ordering::identifiers::ClientId;

use super::*;

const VOTERS: [MachineId; 3] = [MachineId(1), MachineId(2), MachineId(3)];
const BODY: u64 = BODY_BYTES_MIN as u64;

fn open(directory: &Path, client_bytes_max: u64) -> BodyStore {
    let limits = BodyLimits {
        client_bytes_max,
        transaction_bytes_max: 3 * BODY,
    };
    BodyStore::open(directory.to_owned(), limits, VOTERS, 1).unwrap()
}

fn body(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BODY_BYTES_MIN])
}

fn name(client: u32, number: u64, fill: u8) -> BodyName {
    BodyName {
        client: ClientId(client),
        session: 1,
        number,
        digest: body_digest(&body(fill)),
    }
}

async fn keep(store: &BodyStore, client: u32, number: u64, fill: u8) -> Kept {
    let (sender, kept) = tokio::sync::oneshot::channel();
    let done = |kept| sender.send(kept).unwrap();
    store.store(name(client, number, fill), body(fill), done).await;
    kept.await.unwrap()
}

async fn has(store: &BodyStore, client: u32, number: u64, fill: u8) -> bool {
    store.read(name(client, number, fill)).await.is_some()
}

/// The directories and files of the store, when its thread has come to rest.
fn files(directory: &Path) -> usize {
    std::thread::sleep(Duration::from_millis(200));
    let transactions = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    transactions.map(|path| std::fs::read_dir(path).unwrap().count()).sum()
}

#[tokio::test]
async fn what_is_kept_is_private_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 100 * BODY);
    assert_eq!(keep(&store, 7, 1, 1).await, Kept::Durable);
    let path = store.inner.files.path(&name(7, 1, 1));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(path.with_extension("new"), b"half").unwrap();
    drop(store);
    let store = open(directory.path(), 100 * BODY);
    assert_eq!(store.read(name(7, 1, 1)).await, Some(body(1)));
    assert_eq!(store.bytes(), BODY);
    assert_eq!(files(directory.path()), 1, "what was half written is gone");
}

#[tokio::test]
async fn a_client_has_its_share_and_takes_nothing_from_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 4 * BODY);
    for fill in 1..=3 {
        assert_eq!(keep(&store, 7, 1, fill).await, Kept::Durable);
    }
    assert_eq!(keep(&store, 7, 1, 4).await, Kept::TooLarge, "transaction_bytes_max");
    assert_eq!(keep(&store, 7, 2, 5).await, Kept::Durable);
    assert_eq!(keep(&store, 7, 3, 6).await, Kept::NoRoom);
    assert_eq!(keep(&store, 8, 1, 6).await, Kept::Durable);
    assert_eq!(keep(&store, 7, 1, 1).await, Kept::Durable, "it is there already");
    assert_eq!(store.bytes(), 5 * BODY);
    store.aborted(transaction_of(&name(7, 1, 1)));
    assert_eq!(keep(&store, 7, 3, 6).await, Kept::Durable, "an abort makes room");
    assert_eq!(files(directory.path()), 3);
}

#[tokio::test]
async fn what_is_too_small_or_too_large_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 100 * BODY);
    for bytes in [0, BODY_BYTES_MIN - 1, BODY_BYTES_MAX + 1] {
        let (sender, kept) = tokio::sync::oneshot::channel();
        let body = Bytes::from(vec![0; bytes]);
        store
            .store(name(7, 1, 1), body, |kept| sender.send(kept).unwrap())
            .await;
        assert_eq!(kept.await.unwrap(), Kept::TooLarge);
    }
    assert_eq!(store.bytes(), 0);
}

#[tokio::test]
async fn a_committed_body_stays_until_all_databases_have_its_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 100 * BODY);
    keep(&store, 7, 1, 1).await;
    store.committed(transaction_of(&name(7, 1, 1)), 5);
    store.flushed(MachineId(1), 9);
    store.flushed(MachineId(2), 5);
    store.flushed(MachineId(3), 4);
    store.flushed(MachineId(9), 9);
    store.expire(Duration::ZERO, |_| false);
    assert!(has(&store, 7, 1, 1).await, "m3 may need it");
    assert_eq!(files(directory.path()), 2, "the order of its Commit is noted");
    drop(store);
    let store = open(directory.path(), 100 * BODY);
    store.expire(Duration::ZERO, |_| false);
    assert!(has(&store, 7, 1, 1).await, "also after a restart");
    VOTERS.iter().for_each(|machine| store.flushed(*machine, 5));
    assert!(!has(&store, 7, 1, 1).await);
    assert_eq!(files(directory.path()), 0);
}

#[tokio::test]
async fn a_client_that_needs_room_loses_what_enough_databases_have() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 2 * BODY);
    keep(&store, 7, 1, 1).await;
    keep(&store, 7, 2, 2).await;
    store.committed(transaction_of(&name(7, 1, 1)), 5);
    store.committed(transaction_of(&name(7, 2, 2)), 6);
    store.flushed(MachineId(1), 9);
    assert_eq!(keep(&store, 7, 3, 3).await, Kept::NoRoom, "only this database has them");
    store.flushed(MachineId(2), 9);
    assert_eq!(keep(&store, 7, 3, 3).await, Kept::Durable);
    assert!(
        !has(&store, 7, 1, 1).await && has(&store, 7, 2, 2).await,
        "the oldest goes"
    );
}

#[tokio::test]
async fn what_nothing_ever_named_goes_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 100 * BODY);
    keep(&store, 7, 1, 1).await;
    keep(&store, 7, 2, 2).await;
    store.expire(Duration::from_secs(60), |_| false);
    assert!(has(&store, 7, 1, 1).await && has(&store, 7, 2, 2).await);
    store.expire(Duration::ZERO, |id| id.number == 2);
    assert!(!has(&store, 7, 1, 1).await && has(&store, 7, 2, 2).await, "one is open");
}

#[tokio::test]
async fn a_damaged_file_is_no_body() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), 100 * BODY);
    keep(&store, 7, 1, 1).await;
    std::fs::write(store.inner.files.path(&name(7, 1, 1)), body(2)).unwrap();
    assert!(!has(&store, 7, 1, 1).await);
    assert_eq!(keep(&store, 7, 1, 1).await, Kept::Durable, "it can be had again");
    assert!(has(&store, 7, 1, 1).await);
}

#[tokio::test]
async fn only_what_somebody_waits_for_is_taken_from_other_machines() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), BODY);
    store.fetched(name(7, 1, 1), body(1));
    assert_eq!(store.bytes(), 0);
    let want = store.want(name(7, 1, 1));
    store.fetched(name(7, 1, 1), body(2));
    assert_eq!(store.bytes(), 0, "another body than its name says");
    let mut arrivals = store.arrivals();
    store.fetched(name(7, 1, 1), body(1));
    arrivals.changed().await.unwrap();
    assert!(has(&store, 7, 1, 1).await && want.loose().is_none());
    let other = store.want(name(7, 2, 2));
    store.fetched(name(7, 2, 2), body(2));
    assert_eq!(
        other.loose(),
        Some(body(2)),
        "there is no room for it, and it is wanted"
    );
    drop((want, other));
    assert!(lock(&store.inner.wanted).is_empty());
}
