//! What is collected from voters, one answer after the other.

use ordering::message::ResultKey;

use super::*;

const A: Digest = [1; 32];
const B: Digest = [2; 32];

fn voters() -> MachineSet {
    [1, 2, 3].map(MachineId).into_iter().collect()
}

fn done(order: u64, sequence: Digest, multiset: Digest) -> ResultMessage {
    ResultMessage {
        key: ResultKey::Request(1),
        order: Order(order),
        outcome: Outcome::Done {
            sequence,
            multiset,
            whole: None,
        },
    }
}

#[test]
fn one_liar_decides_nothing_however_often_it_speaks() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Unordered);
    for digest in [A, B, A, A] {
        collect.add(MachineId(1), done(5, digest, digest));
    }
    assert_eq!(collect.standing().agreed, None);
    assert_eq!(collect.standing().largest, 1);
    collect.add(MachineId(0), done(5, A, A));
    assert_eq!(collect.standing().agreed, None, "m0 holds no voter");
}

#[test]
fn equal_answers_at_different_orders_do_not_agree() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Unordered);
    collect.add(MachineId(1), done(5, A, A));
    collect.add(MachineId(2), done(6, A, A));
    assert_eq!(collect.standing().agreed, None);
    assert!(collect.add(MachineId(3), done(6, A, A)));
    let (agreed, supporters, order) = collect.standing().agreed.unwrap();
    assert_eq!((agreed, supporters.len(), order), (Agreed::Sequence(A), 2, Order(6)));
}

#[test]
fn one_liar_cannot_alter_the_order_of_rows_that_was_asked_for() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Ordered);
    collect.add(MachineId(1), done(5, B, A));
    collect.add(MachineId(2), done(5, A, A));
    let standing = collect.standing();
    assert_eq!((standing.agreed, standing.order_open), (None, true));
    collect.add(MachineId(3), done(5, A, A));
    let (agreed, supporters, _) = collect.standing().agreed.unwrap();
    assert_eq!(
        (agreed, supporters.contains(MachineId(1))),
        (Agreed::Sequence(A), false)
    );
}

#[test]
fn where_all_must_agree_on_the_rows_most_decide_their_order() {
    let mut collect = Collect::new(voters(), 3, false, Rows::Ordered);
    collect.add(MachineId(1), done(0, B, A));
    collect.add(MachineId(2), done(0, A, A));
    collect.add(MachineId(3), done(0, A, A));
    assert_eq!(collect.standing().agreed.unwrap().0, Agreed::Sequence(A));
}

#[test]
fn servers_that_differ_among_equal_rows_agree_at_last() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Ordered);
    collect.add(MachineId(1), done(5, B, A));
    collect.add(MachineId(2), done(5, A, A));
    collect.accept_any_order();
    assert_eq!(collect.standing().agreed.unwrap().0, Agreed::Multiset(A));
}

#[test]
fn rows_in_another_order_agree_as_a_multiset() {
    let mut collect = Collect::new(voters(), 2, false, Rows::Unordered);
    collect.add(MachineId(1), done(1, A, [9; 32]));
    collect.add(MachineId(2), done(2, B, [9; 32]));
    assert!(!collect.standing().conflict);
    assert!(matches!(collect.standing().agreed, Some((Agreed::Multiset(_), _, _))));
}

#[test]
fn who_differs_from_what_was_agreed_on_is_named_once_also_when_late() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Unordered);
    collect.add(MachineId(1), done(5, B, B));
    assert_eq!(collect.take_differing(), MachineSet::EMPTY, "nothing is agreed on");
    collect.add(MachineId(2), done(5, A, A));
    collect.add(MachineId(3), done(5, A, A));
    assert_eq!(collect.take_differing(), MachineSet::one(MachineId(1)));
    assert_eq!(collect.take_differing(), MachineSet::EMPTY);

    let mut collect = Collect::new(voters(), 2, true, Rows::Unordered);
    collect.add(MachineId(1), done(5, A, A));
    collect.add(MachineId(2), done(5, A, A));
    assert!(collect.settle(), "the third may still come");
    collect.add(MachineId(3), done(5, B, B));
    assert_eq!(collect.take_differing(), MachineSet::one(MachineId(3)));
}

#[test]
fn a_large_whole_is_kept_only_from_whom_it_was_asked() {
    let mut collect = Collect::new(voters(), 2, false, Rows::Unordered);
    collect.welcome_whole(MachineSet::one(MachineId(2)));
    for machine in [1, 2] {
        let mut message = done(1, A, A);
        if let Outcome::Done { whole, .. } = &mut message.outcome {
            *whole = Some(Bytes::from(vec![0; SMALL_RESULT_BYTES + 1]));
        }
        collect.add(MachineId(machine), message);
    }
    assert_eq!(
        collect.take_whole(voters()).map(|(machine, _)| machine),
        Some(MachineId(2))
    );
    assert_eq!(collect.take_whole(voters()), None);
}

fn says(order: u64, outcome: Outcome) -> ResultMessage {
    ResultMessage {
        outcome,
        ..done(order, A, A)
    }
}

#[test]
fn what_is_executed_counts_with_the_results_of_the_same_order_only() {
    let mut collect = Collect::new(voters(), 2, true, Rows::Unordered);
    collect.add(MachineId(1), says(5, Outcome::Executed));
    collect.add(MachineId(2), done(6, A, A));
    assert_eq!(collect.executed_with(&A).len(), 1);
    collect.add(MachineId(3), done(5, A, A));
    assert_eq!(collect.executed_with(&A).len(), 2);
    assert_eq!(collect.executed_with(&B).len(), 1);
    assert_eq!(collect.standing().agreed, None, "no result is f+1 voters'");
}

#[test]
fn words_agree_by_their_answers_until_one_is_discarded() {
    let word = |answers| Outcome::Word {
        answers,
        signature: [7; 64],
    };
    let mut collect = Collect::new(voters(), 2, false, Rows::Unordered);
    collect.add(MachineId(1), says(0, word(A)));
    collect.add(MachineId(2), says(0, word(B)));
    assert!(collect.standing().needs_others());
    collect.add(MachineId(3), says(0, word(A)));
    let (agreed, supporters, _) = collect.standing().agreed.unwrap();
    assert_eq!((agreed, supporters.len()), (Agreed::Word(A), 2));
    collect.discard(MachineId(3));
    assert_eq!(collect.standing().agreed, None);
}

#[test]
fn object_numbers_are_each_voters_own_and_no_vote() {
    let number = |number| Outcome::ObjectNumber { number };
    let mut collect = Collect::new(voters(), 2, false, Rows::Unordered);
    for (machine, outcome) in [
        (1, number(7)),
        (2, number(7)),
        (2, number(8)),
        (3, Outcome::Unavailable),
    ] {
        assert!(collect.add(MachineId(machine), says(0, outcome)), "somebody looks");
    }
    assert_eq!(collect.object_numbers(), [(MachineId(1), 7), (MachineId(2), 7)]);
    let standing = collect.standing();
    assert_eq!(
        (standing.agreed, standing.conflict, standing.answered.len()),
        (None, false, 3)
    );
}

#[test]
fn a_voter_that_could_not_say_may_say_later() {
    let mut collect = Collect::new(voters(), 2, false, Rows::Unordered);
    let unavailable = ResultMessage {
        outcome: Outcome::Unavailable,
        ..done(1, A, A)
    };
    assert!(collect.add(MachineId(1), unavailable));
    assert_eq!(collect.standing().unavailable.len(), 1);
    collect.add(MachineId(1), done(1, A, A));
    collect.add(MachineId(2), done(1, A, A));
    assert!(collect.standing().agreed.is_some());
}
