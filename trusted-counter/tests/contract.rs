//! One contract, passed by every implementation of the trusted counter.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trusted_counter::{
    Certificate, CounterClient, CounterError, CounterIdentity, CounterKind, SLOTS_MAX, SoftwareCounter, TrustedCounter,
    VerificationError, WarrantVerifier, serve,
};

const DIGEST: [u8; 32] = [7; 32];
const OTHER: [u8; 32] = [8; 32];

/// What every counter must do; `reopen` restarts it over the same files.
fn contract<C: TrustedCounter>(mut reopen: impl FnMut() -> C, verifier: &dyn WarrantVerifier) {
    let mut counter = reopen();
    let identity = counter.identity();
    values_rise_by_one_from_one(&mut counter);
    slots_count_apart(&mut counter);
    warrants_bind_everything(&mut counter, verifier);
    assert!(matches!(
        counter.create_uw(SLOTS_MAX, &DIGEST),
        Err(CounterError::SlotOutOfRange(_))
    ));
    assert!(matches!(
        counter.position(SLOTS_MAX),
        Err(CounterError::SlotOutOfRange(_))
    ));
    let epoch = counter.epoch();
    drop(counter);

    let mut counter = reopen();
    assert_eq!(counter.identity(), identity, "a restart keeps the identity");
    assert!(counter.epoch() > epoch, "a restart begins a new epoch");
    let warrant = counter.create_uw(0, &OTHER).unwrap();
    assert_eq!((warrant.epoch, warrant.value), (counter.epoch(), 1));
    assert_eq!(verifier.verify_uw(&identity, &warrant, &OTHER), Ok(()));
}

fn values_rise_by_one_from_one(counter: &mut impl TrustedCounter) {
    assert_eq!(counter.position(0).unwrap(), 0);
    for value in 1..=5 {
        let warrant = counter.create_uw(0, &DIGEST).unwrap();
        assert_eq!(
            (warrant.value, warrant.slot, warrant.epoch),
            (value, 0, counter.epoch())
        );
        assert_eq!(counter.position(0).unwrap(), value);
    }
}

fn slots_count_apart(counter: &mut impl TrustedCounter) {
    assert_eq!(counter.create_uw(1, &DIGEST).unwrap().value, 1);
    assert_eq!(counter.create_uw(0, &DIGEST).unwrap().value, 6);
    assert_eq!(counter.create_uw(1, &DIGEST).unwrap().value, 2);
}

fn warrants_bind_everything(counter: &mut impl TrustedCounter, verifier: &dyn WarrantVerifier) {
    let identity = counter.identity();
    let good = counter.create_uw(3, &DIGEST).unwrap();
    assert_eq!(verifier.verify_uw(&identity, &good, &DIGEST), Ok(()));
    let wrong = Err(VerificationError::WrongCertificate);
    assert_eq!(verifier.verify_uw(&identity, &good, &OTHER), wrong);
    let mut forged = good;
    forged.value += 1;
    assert_eq!(verifier.verify_uw(&identity, &forged, &DIGEST), wrong);
    let mut forged = good;
    forged.slot += 1;
    assert_eq!(verifier.verify_uw(&identity, &forged, &DIGEST), wrong);
    let mut forged = good;
    forged.epoch += 1;
    assert_eq!(verifier.verify_uw(&identity, &forged, &DIGEST), wrong);
    let mut forged = good;
    match &mut forged.certificate {
        Certificate::Ed25519(bytes) => bytes[0] ^= 1,
        Certificate::Keyed(bytes) => bytes[0] ^= 1,
    }
    assert_eq!(verifier.verify_uw(&identity, &forged, &DIGEST), wrong);
    let mut forged = good;
    forged.certificate = match good.certificate {
        Certificate::Ed25519(_) => Certificate::Keyed([0; 32]),
        Certificate::Keyed(_) => Certificate::Ed25519([0; 64]),
    };
    assert_eq!(
        verifier.verify_uw(&identity, &forged, &DIGEST),
        Err(VerificationError::WrongKind)
    );
    let stranger = CounterIdentity([9; 32]);
    assert_eq!(
        verifier.verify_uw(&stranger, &good, &DIGEST),
        Err(VerificationError::UnknownCounter)
    );
}

fn kinds() -> [CounterKind; 2] {
    [CounterKind::Ed25519, CounterKind::Keyed([5; 32])]
}

/// A verifier for the counter in this directory (opening one to get it spends an epoch, which hurts nobody).
fn verifier_of(directory: &Path, kind: &CounterKind) -> Arc<dyn WarrantVerifier> {
    let counter = SoftwareCounter::open(directory, kind.clone()).unwrap();
    counter.verifier([counter.identity()])
}

#[test]
fn in_process() {
    for kind in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let verifier = verifier_of(directory.path(), &kind);
        contract(
            || SoftwareCounter::open(directory.path(), kind.clone()).unwrap(),
            verifier.as_ref(),
        );
    }
}

/// A counter process (here a thread) over the files in a directory; ends when dropped.
struct Process {
    shutdown: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    fn start(directory: &Path, kind: CounterKind) -> Self {
        let counter = SoftwareCounter::open(directory, kind).unwrap();
        let verifier = counter.verifier([counter.identity()]);
        let path = directory.join("socket");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        let shutdown = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&shutdown);
        let thread = std::thread::spawn(move || serve(&listener, counter, &verifier, &flag).unwrap());
        Process {
            shutdown,
            thread: Some(thread),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.shutdown.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn behind_a_socket() {
    for kind in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let verifier = verifier_of(directory.path(), &kind);
        let mut process = None;
        let reopen = || {
            process = None;
            process = Some(Process::start(directory.path(), kind.clone()));
            CounterClient::connect(&directory.path().join("socket")).unwrap()
        };
        contract(reopen, verifier.as_ref());
    }
}

/// A node that was killed may have had something certified that is nowhere written: the next one must not go on from there.
#[test]
fn a_new_user_of_a_counter_process_gets_an_epoch_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let [kind, _] = kinds();
    let _process = Process::start(directory.path(), kind);
    let path = directory.path().join("socket");
    let mut first = CounterClient::connect(&path).unwrap();
    first.begin_epoch().unwrap();
    assert_eq!(first.create_uw(0, &[1; 32]).unwrap().value, 1);
    let mut second = CounterClient::connect(&path).unwrap();
    second.begin_epoch().unwrap();
    assert!(second.epoch() > first.epoch());
    assert_eq!(second.position(0).unwrap(), 0);
    assert!(first.create_uw(0, &[2; 32]).is_err(), "its epoch is over");
    let warrant = second.create_uw(0, &[3; 32]).unwrap();
    assert_eq!(warrant.epoch, second.epoch());
}

/// Verifies over the socket too, as a node with keyed warrants must.
#[test]
fn verification_behind_a_socket() {
    for kind in kinds() {
        let directory = tempfile::tempdir().unwrap();
        let _process = Process::start(directory.path(), kind);
        let path = directory.path().join("socket");
        let verifier = CounterClient::connect(&path).unwrap();
        warrants_bind_everything(&mut CounterClient::connect(&path).unwrap(), &verifier);
    }
}

#[test]
fn a_client_that_breaks_the_protocol_hurts_only_itself() {
    use std::io::{Read, Write};
    let directory = tempfile::tempdir().unwrap();
    let _process = Process::start(directory.path(), CounterKind::Ed25519);
    let path = directory.path().join("socket");
    let mut good = CounterClient::connect(&path).unwrap();
    for garbage in [vec![0xff; 64], vec![1, 0, 0, 0, 99], vec![0, 0, 0, 0]] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&garbage).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "no answer to garbage");
    }
    assert_eq!(good.create_uw(0, &DIGEST).unwrap().value, 1);
}

#[test]
fn two_processes_cannot_hold_one_counter() {
    let directory = tempfile::tempdir().unwrap();
    let first = SoftwareCounter::open(directory.path(), CounterKind::Ed25519).unwrap();
    let second = SoftwareCounter::open(directory.path(), CounterKind::Ed25519);
    assert!(matches!(second, Err(CounterError::InUse(_))));
    drop(first);
    assert!(SoftwareCounter::open(directory.path(), CounterKind::Ed25519).is_ok());
}

#[test]
fn secrets_are_private_and_damage_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let identity = SoftwareCounter::provision(directory.path(), &CounterKind::Ed25519).unwrap();
    let counter = SoftwareCounter::open(directory.path(), CounterKind::Ed25519).unwrap();
    assert_eq!(counter.identity(), identity);
    drop(counter);
    let key = directory.path().join("counter.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        SoftwareCounter::open(directory.path(), CounterKind::Ed25519),
        Err(CounterError::Damaged { .. })
    ));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    // A damaged epoch must never be read as a lower one.
    let epoch = directory.path().join("counter.epoch");
    let mut bytes = std::fs::read(&epoch).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&epoch, bytes).unwrap();
    assert!(matches!(
        SoftwareCounter::open(directory.path(), CounterKind::Ed25519),
        Err(CounterError::Damaged { .. })
    ));
}
