//! What is refused whoever sends it: signed messages whose own evidence does not hold.

use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};
use ordering::identifiers::{GroupId, MachineId, Order, View};
use ordering::ledger::PrepareEntry;
use ordering::pbft::{Batch, Certificate, Message, Prepare, RequestViewChange, ViewChange, verify_message};
use ordering::verified::Rejection;

use crate::adversary::{sign_new_view, sign_proposal, sign_view_change};
use crate::cluster;

const M2: MachineId = MachineId(2);

fn batch(number: u64) -> Batch {
    Batch {
        number,
        first: Order(number),
        time_us: 1_000 + number,
        entries: vec![PrepareEntry {
            group: GroupId(0),
            digest: [3; 32],
        }],
    }
}

/// A certificate of view 0 that these machines have signed.
fn certificate(keys: &[SigningKey], signers: &[u8], number: u64) -> Certificate {
    let batch = batch(number);
    let signed = Prepare::signed(View(0), number, &batch.digest());
    let sign = |machine: &u8| {
        let key = &keys[usize::from(*machine)];
        (MachineId(*machine), key.sign(&signed).to_bytes())
    };
    Certificate {
        view: View(0),
        signatures: signers.iter().map(sign).collect(),
        batch: Arc::new(batch),
    }
}

fn request(keys: &[SigningKey], machine: u8, view: View) -> RequestViewChange {
    let signed = RequestViewChange::signed(MachineId(machine), view);
    RequestViewChange {
        machine: MachineId(machine),
        view,
        signature: keys[usize::from(machine)].sign(&signed).to_bytes(),
    }
}

/// m2's VIEW-CHANGE for view 1, which m1 and m3 want.
fn view_change(keys: &[SigningKey]) -> ViewChange {
    ViewChange {
        machine: M2,
        view: View(1),
        requests: vec![request(keys, 1, View(1)), request(keys, 3, View(2))],
        stable: None,
        prepared: vec![
            Arc::new(certificate(keys, &[0, 1, 2], 1)),
            Arc::new(certificate(keys, &[1, 2, 3], 2)),
        ],
        signature: [0; 64],
    }
}

/// What becomes of m2's VIEW-CHANGE when it is altered and signed again by m2.
fn altered(alter: impl Fn(&[SigningKey], &mut ViewChange)) -> Result<(), Rejection> {
    let cluster = cluster(1, 1, 1);
    let mut view_change = view_change(cluster.keys());
    alter(cluster.keys(), &mut view_change);
    let message = Message::ViewChange(sign_view_change(&cluster.keys()[2], view_change));
    verify_message(M2, message, cluster.directory()).map(drop)
}

#[test]
fn view_changes_must_prove_what_they_say() {
    assert_eq!(altered(|_, _| {}), Ok(()));
    let other_batch = |_: &[SigningKey], view_change: &mut ViewChange| {
        Arc::make_mut(&mut Arc::make_mut(&mut view_change.prepared[0]).batch).time_us += 1;
    };
    assert_eq!(
        altered(other_batch),
        Err(Rejection::WrongSignature),
        "nobody has signed that batch"
    );
    let other_view = |_: &[SigningKey], view_change: &mut ViewChange| {
        view_change.view = View(2);
        view_change.requests.remove(0);
        Arc::make_mut(&mut view_change.prepared[0]).view = View(1);
    };
    assert!(altered(other_view).is_err(), "nor in that view");
    let few = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.prepared[0] = Arc::new(certificate(keys, &[0, 1], 1));
    };
    assert_eq!(altered(few), Err(Rejection::Malformed), "2f signatures");
    let twice = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.prepared[0] = Arc::new(certificate(keys, &[0, 1, 1], 1));
    };
    assert_eq!(altered(twice), Err(Rejection::Malformed), "of two machines");
    let reordered = |_: &[SigningKey], view_change: &mut ViewChange| view_change.prepared.reverse();
    assert_eq!(altered(reordered), Err(Rejection::Malformed));
    let later = |_: &[SigningKey], view_change: &mut ViewChange| {
        Arc::make_mut(&mut view_change.prepared[0]).view = View(1);
    };
    assert_eq!(altered(later), Err(Rejection::Malformed), "not before the view");
}

#[test]
fn nobody_leaves_a_view_alone() {
    let alone = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.requests = vec![request(keys, 2, View(1))];
    };
    assert_eq!(altered(alone), Err(Rejection::Malformed), "f are too few");
    let for_less = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.view = View(2);
        view_change.requests = vec![request(keys, 2, View(1)), request(keys, 3, View(2))];
    };
    assert_eq!(
        altered(for_less),
        Err(Rejection::Malformed),
        "one wants a lower view only"
    );
    let forged = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.requests[0] = RequestViewChange {
            machine: MachineId(1),
            ..request(keys, 2, View(1))
        };
    };
    assert_eq!(altered(forged), Err(Rejection::WrongSignature));
    let resigned = |keys: &[SigningKey], view_change: &mut ViewChange| {
        view_change.requests = vec![request(keys, 0, View(1))];
    };
    assert_eq!(altered(resigned), Ok(()), "the primary of view 0 may resign");
}

#[test]
fn new_views_need_a_quorum_of_their_own_view() {
    let cluster = cluster(1, 1, 1);
    let signed_by = |machine: u8, view: View| {
        let mut own = view_change(cluster.keys());
        own.machine = MachineId(machine);
        own.view = view;
        own.requests = vec![request(cluster.keys(), 1, View(5)), request(cluster.keys(), 3, View(5))];
        sign_view_change(&cluster.keys()[usize::from(machine)], own)
    };
    let verdict = |machines: &[(u8, u64)]| {
        let view_changes = machines.iter().map(|(machine, view)| signed_by(*machine, View(*view)));
        let message = sign_new_view(&cluster.keys()[1], View(1), view_changes.collect());
        verify_message(M2, message, cluster.directory()).map(drop)
    };
    assert_eq!(verdict(&[(0, 1), (1, 1), (2, 1)]), Ok(()));
    assert_eq!(verdict(&[(0, 1), (1, 1), (2, 1), (3, 1)]), Ok(()));
    assert_eq!(verdict(&[(0, 1), (1, 1)]), Err(Rejection::Malformed), "2f");
    assert_eq!(
        verdict(&[(0, 1), (1, 1), (1, 1)]),
        Err(Rejection::Malformed),
        "of two machines"
    );
    assert_eq!(
        verdict(&[(0, 1), (1, 1), (2, 2)]),
        Err(Rejection::Malformed),
        "of another view"
    );
    let wrong_primary = sign_new_view(&cluster.keys()[2], View(1), vec![signed_by(0, View(1))]);
    let verdict = verify_message(M2, wrong_primary, cluster.directory()).map(drop);
    assert_eq!(verdict, Err(Rejection::WrongSignature));
}

#[test]
fn proposals_are_of_the_primary_and_well_formed() {
    let cluster = cluster(1, 1, 1);
    let verdict = |key: usize, alter: fn(&mut Batch)| {
        let mut batch = batch(1);
        alter(&mut batch);
        let message = sign_proposal(&cluster.keys()[key], View(4), batch);
        verify_message(MachineId(3), message, cluster.directory()).map(drop)
    };
    assert_eq!(verdict(0, |_| {}), Ok(()), "whoever passes it on");
    assert_eq!(verdict(1, |_| {}), Err(Rejection::WrongSignature));
    assert_eq!(verdict(0, |batch| batch.entries.clear()), Err(Rejection::Malformed));
    assert_eq!(verdict(0, |batch| batch.number = 0), Err(Rejection::Malformed));
    assert_eq!(verdict(0, |batch| batch.number = u64::MAX), Err(Rejection::Malformed));
    assert_eq!(
        verdict(0, |batch| batch.entries[0].group = GroupId(1)),
        Err(Rejection::Malformed)
    );
    assert_eq!(
        verdict(0, |batch| batch.entries[0].digest = [0; 32]),
        Err(Rejection::Malformed)
    );
    let many = |batch: &mut Batch| batch.entries = vec![batch.entries[0]; 1025];
    assert_eq!(verdict(0, many), Err(Rejection::TooLarge));
}
