//! Every checker finds what it is for.

use bytes::Bytes;
use ordering::agreement::{MisbehaviourKind, Phase, Status};
use ordering::assignment::Assignment;
use ordering::configuration::{Configuration, Faults};
use ordering::identifiers::{ClientId, GroupId, MachineId, Order, View};
use ordering::message::{CommitDbEntry, Request};
use ordering::verified::Rejection;

use super::{Checkers, Observation};
use crate::protocol::{HistoryEnd, Proposal};

const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);

fn request(number: u64) -> Request {
    Request {
        client: ClientId(0),
        number,
        floor: 0,
        home: 0,
        operation: Bytes::from_static(b"operation"),
        signature: [0; 64],
    }
}

fn entry(order: u64, request: &Request) -> CommitDbEntry {
    CommitDbEntry {
        order: Order(order),
        time_us: 1000 + order,
        digest: request.digest(),
        request: Some(std::sync::Arc::new(request.clone())),
    }
}

fn delivered(machine: MachineId, entry: &CommitDbEntry) -> Observation<'_> {
    let group = GroupId(0);
    Observation::Delivered { machine, group, entry }
}

fn executed(order: u64, request: &Request) -> Observation<'_> {
    Observation::Executed {
        machine: M1,
        order: Order(order),
        group: GroupId(0),
        time_us: 1000 + order,
        request: Some(request),
        digest: request.digest(),
        has_effect: true,
    }
}

fn signed(request: &Request) -> Observation<'_> {
    let digest = request.digest();
    Observation::Signed { request, digest }
}

/// The property that the last of these observations violates, and no earlier one.
fn violated(observations: &[Observation<'_>]) -> Option<&'static str> {
    let mut checkers = Checkers::new(1, (1, 1));
    let (last, before) = observations.split_last().expect("at least one");
    for observation in before {
        checkers.observe(observation).expect("nothing is wrong yet");
    }
    checkers.observe(last).err().map(|violation| violation.property)
}

fn status(decided: u64, stable: u64) -> Status {
    Status {
        phase: Phase::Live,
        view: View(0),
        primary: MachineId(0),
        prepared: Order(decided),
        decided: Order(decided),
        stable: Order(stable),
        batches_in_flight: 0,
        requests_queued: 0,
        bodies: 0,
        bodies_bytes: 0,
        bodies_missing: 0,
        log_first: Order(1),
        flushed: Order(0),
        groups: Vec::new(),
        assignment: Assignment::FIRST,
        groups_in_charge: 1,
    }
}

#[test]
fn agreement_is_checked() {
    let (one, two) = (request(1), request(2));
    let (first, other) = (entry(1, &one), entry(1, &two));
    let later = CommitDbEntry {
        time_us: 5000,
        ..first.clone()
    };
    assert_eq!(
        violated(&[signed(&one), delivered(M1, &first), delivered(M2, &first)]),
        None
    );
    let differs = [signed(&one), signed(&two), delivered(M1, &first), delivered(M2, &other)];
    assert_eq!(violated(&differs), Some("agreement"));
    assert_eq!(
        violated(&[signed(&one), delivered(M1, &first), delivered(M2, &later)]),
        Some("agreement")
    );
}

#[test]
fn order_is_checked() {
    let (one, two) = (request(1), request(2));
    let (first, mut second) = (entry(1, &one), entry(2, &two));
    let signed = [signed(&one), signed(&two)];
    let both = [signed[0], signed[1], delivered(M1, &first), delivered(M1, &second)];
    assert_eq!(violated(&both), None);
    let skips = [both[0], both[1], both[2], both[3], executed(2, &two)];
    assert_eq!(violated(&skips), Some("order"));
    second.time_us = first.time_us;
    let no_rise = [signed[0], signed[1], delivered(M1, &first), delivered(M1, &second)];
    assert_eq!(violated(&no_rise), Some("order"));
}

#[test]
fn exactly_once_is_checked() {
    let one = request(1);
    let (first, second) = (entry(1, &one), entry(2, &one));
    let twice = [
        signed(&one),
        delivered(M1, &first),
        delivered(M1, &second),
        executed(1, &one),
        executed(2, &one),
    ];
    assert_eq!(violated(&twice), Some("exactly once"));
    assert_eq!(violated(&twice[..4]), None);
}

#[test]
fn validity_is_checked() {
    let one = request(1);
    let first = entry(1, &one);
    let bodiless = CommitDbEntry {
        request: None,
        ..first.clone()
    };
    assert_eq!(violated(&[delivered(M1, &first)]), Some("validity"));
    assert_eq!(violated(&[signed(&one), delivered(M1, &bodiless)]), Some("validity"));
}

#[test]
fn durability_is_checked() {
    let one = request(1);
    let first = entry(1, &one);
    assert_eq!(violated(&[signed(&one), executed(1, &one)]), Some("durability"));
    let end = |history: u64, executed: u64| Observation::Ended {
        machine: M2,
        history: HistoryEnd {
            order: Order(history),
            hash: [0; 32],
        },
        executed: Some(Order(executed)),
    };
    assert_eq!(violated(&[signed(&one), delivered(M1, &first), end(1, 1)]), None);
    assert_eq!(
        violated(&[signed(&one), delivered(M1, &first), end(0, 1)]),
        Some("durability")
    );
    assert_eq!(
        violated(&[signed(&one), delivered(M1, &first), end(1, 0)]),
        Some("durability")
    );
}

#[test]
fn checkpoints_and_memory_are_checked() {
    let configuration = Configuration::new(M1, Faults(1), 1);
    let (good, back, beyond) = (status(5, 3), status(5, 2), status(5, 6));
    let mut full = status(5, 3);
    full.requests_queued = configuration.requests_queued_max + 1;
    let stepped = |machine, status, hash: u8| Observation::Stepped {
        machine,
        configuration: &configuration,
        status,
        history: HistoryEnd {
            order: Order(5),
            hash: [hash; 32],
        },
        sent_bytes: 0,
    };
    assert_eq!(violated(&[stepped(M1, &good, 1), stepped(M2, &good, 1)]), None);
    assert_eq!(
        violated(&[stepped(M1, &good, 1), stepped(M1, &back, 1)]),
        Some("checkpoint")
    );
    assert_eq!(violated(&[stepped(M1, &beyond, 1)]), Some("checkpoint"));
    assert_eq!(
        violated(&[stepped(M1, &good, 1), stepped(M2, &good, 2)]),
        Some("checkpoint")
    );
    assert_eq!(violated(&[stepped(M1, &full, 1)]), Some("bounded memory"));
}

#[test]
fn proposals_are_checked() {
    let proposal = |view: u64, place: u64, marks: &[u8]| Proposal {
        view,
        place,
        digests: marks.iter().map(|mark| [*mark; 32]).collect(),
    };
    let (first, again, next_view) = (
        proposal(0, 1, &[1, 2]),
        proposal(0, 2, &[3, 1]),
        proposal(4, 2, &[3, 1]),
    );
    let twice_in_one = proposal(0, 1, &[1, 1]);
    let proposed = |machine, proposal| Observation::Proposed {
        machine,
        is_byzantine: false,
        proposal,
    };
    let lied = Observation::Proposed {
        machine: M2,
        is_byzantine: true,
        proposal: &twice_in_one,
    };
    let proposed_again = proposal(1, 1, &[1, 1]);
    assert_eq!(
        violated(&[proposed(M1, &first), proposed(M1, &first)]),
        None,
        "sent again"
    );
    assert_eq!(violated(&[proposed(M1, &first), proposed(M1, &next_view)]), None);
    assert_eq!(violated(&[proposed(M1, &first), proposed(M2, &again)]), None);
    assert_eq!(
        violated(&[proposed(M1, &first), proposed(M1, &again)]),
        Some("proposals")
    );
    assert_eq!(violated(&[proposed(M1, &twice_in_one)]), Some("proposals"));
    assert_eq!(
        violated(&[lied, proposed(M1, &proposed_again)]),
        None,
        "what a liar has left"
    );
}

#[test]
fn accusations_and_own_counters_are_checked() {
    let accused = Observation::Accused {
        by: M1,
        machine: M2,
        kind: MisbehaviourKind::WrongCommit,
    };
    let refused = Observation::Refused {
        by: M1,
        machine: M2,
        kind: "COMMIT",
        rejection: Rejection::Malformed,
    };
    let skipped = |phase| Observation::CounterSkipped { machine: M1, phase };
    assert_eq!(violated(&[accused]), Some("accusations"));
    assert_eq!(violated(&[refused]), Some("accusations"));
    assert_eq!(violated(&[skipped(Phase::Stopped)]), None);
    assert_eq!(violated(&[skipped(Phase::Live)]), Some("own counter"));
}
