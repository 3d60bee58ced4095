use ordering::identifiers::{ClientId, Order};
use ordering::message::Notification;
use proptest::prelude::*;

use super::*;

fn said(granted: u64, order: u64, payloads: &[&str]) -> Notifications {
    Notifications {
        granted: Order(granted),
        order: Order(order),
        client: ClientId(0),
        session: 1,
        notifications: payloads
            .iter()
            .map(|payload| Notification {
                channel: "c".into(),
                payload: (*payload).into(),
            })
            .collect(),
        dropped: 0,
    }
}

/// One voter says something; the orders of what is told, and the first payload of each.
fn say(merge: &mut Merge, voter: u8, word: Notifications, now: Instant) -> Vec<(u64, String)> {
    told(merge.say(MachineId(voter), word, now))
}

fn told(told: Vec<Arc<Notifications>>) -> Vec<(u64, String)> {
    let first = |one: &Arc<Notifications>| one.notifications.first().map(|first| first.payload.clone());
    told.iter()
        .map(|one| (one.order.0, first(one).unwrap_or_default()))
        .collect()
}

#[test]
fn a_transaction_is_told_once_when_two_of_three_voters_say_the_same() {
    let (mut merge, now) = (Merge::new(1), Instant::now());
    assert_eq!(say(&mut merge, 1, said(5, 5, &["lie"]), now), []);
    assert_eq!(say(&mut merge, 2, said(5, 5, &["truth"]), now), []);
    assert!(merge.awaits(5));
    assert_eq!(
        say(&mut merge, 1, said(5, 5, &["truth"]), now),
        [],
        "a voter has one word"
    );
    assert_eq!(say(&mut merge, 3, said(5, 5, &["truth"]), now), [(5, "truth".into())]);
    assert!(!merge.awaits(5));
    // A voter that was restarted runs it again.
    for voter in 1..=3 {
        assert_eq!(say(&mut merge, voter, said(5, 5, &["truth"]), now), []);
    }
}

#[test]
fn what_committed_before_is_told_before() {
    let (mut merge, now) = (Merge::new(1), Instant::now());
    // Order 3 waited for the locks of the transaction that ended at 9: it committed after it.
    let (first, second) = (said(9, 9, &["first"]), said(9, 3, &["second"]));
    assert_eq!(say(&mut merge, 1, first.clone(), now), []);
    assert_eq!(say(&mut merge, 1, second.clone(), now), []);
    assert_eq!(
        say(&mut merge, 2, second, now),
        [],
        "voter 1 has told of something before it, and voter 2 is one"
    );
    assert_eq!(
        say(&mut merge, 3, first, now),
        [(9, "first".into()), (3, "second".into())],
        "both have f+1 voters now"
    );
}

#[test]
fn what_a_liar_alone_says_holds_nothing_up() {
    let (mut merge, now) = (Merge::new(1), Instant::now());
    for order in 1..100 {
        assert_eq!(say(&mut merge, 1, said(order, order, &["lie"]), now), []);
    }
    assert_eq!(say(&mut merge, 1, said(200, 200, &["x"]), now), []);
    assert_eq!(say(&mut merge, 2, said(200, 200, &["x"]), now), []);
    assert_eq!(say(&mut merge, 3, said(200, 200, &["x"]), now), [(200, "x".into())]);
    // It is forgotten in the end.
    assert!(told(merge.tick(now + CONFIRMATION_PATIENCE)).is_empty());
    assert_eq!(merge.take_dropped().unconfirmed, 99);
    assert!(!merge.awaits(5));
}

#[test]
fn a_liar_cannot_make_the_proxy_keep_much() {
    let (mut merge, now) = (Merge::new(1), Instant::now());
    let large = "x".repeat(7999);
    for order in 1..5_000 {
        say(&mut merge, 1, said(order, order, &[&large]), now);
    }
    assert!(merge.bytes[&MachineId(1)] <= WAITING_BYTES_MAX);
    assert!(merge.take_dropped().without_room > 4_000);
    let mut small = Merge::new(1);
    for order in 1..=WAITING_MAX as u64 + 10 {
        say(&mut small, 1, said(order, order, &[]), now);
    }
    assert_eq!(small.streams[&MachineId(1)].len(), WAITING_MAX);
}

#[test]
fn what_is_told_is_remembered_in_bounds_and_what_is_older_never_told() {
    let (mut merge, now) = (Merge::new(0), Instant::now());
    for order in 1..=TOLD_MAX as u64 + 10 {
        assert_eq!(say(&mut merge, 1, said(order, order, &["x"]), now).len(), 1);
    }
    assert_eq!(merge.told.len(), TOLD_MAX);
    for order in 1..=20 {
        assert_eq!(say(&mut merge, 1, said(order, order, &["x"]), now), []);
    }
}

#[test]
fn what_was_meant_for_an_earlier_life_of_the_proxy_is_not_told() {
    let (mut merge, now) = (Merge::new(0), Instant::now());
    merge.begin_at(10);
    assert_eq!(say(&mut merge, 1, said(9, 9, &["old"]), now), []);
    assert_eq!(say(&mut merge, 1, said(10, 3, &["old"]), now), []);
    assert_eq!(say(&mut merge, 1, said(11, 4, &["new"]), now), [(4, "new".into())]);
    merge.begin_at(100);
    assert_eq!(say(&mut merge, 1, said(12, 12, &["next"]), now), [(12, "next".into())]);
}

#[test]
fn another_order_within_a_transaction_counts_only_after_a_while() {
    let (mut merge, now) = (Merge::new(1), Instant::now());
    assert_eq!(say(&mut merge, 1, said(1, 1, &["a", "b"]), now), []);
    assert_eq!(say(&mut merge, 2, said(1, 1, &["b", "a"]), now), []);
    assert!(told(merge.tick(now + SEQUENCE_PATIENCE / 2)).is_empty());
    assert_eq!(told(merge.tick(now + SEQUENCE_PATIENCE)).len(), 1);
    // Or when all voters have spoken.
    say(&mut merge, 1, said(2, 2, &["a", "b", "c"]), now);
    say(&mut merge, 2, said(2, 2, &["b", "a", "c"]), now);
    assert_eq!(say(&mut merge, 3, said(2, 2, &["c", "a", "b"]), now).len(), 1);
    // How often each comes counts.
    say(&mut merge, 1, said(3, 3, &["a", "a", "b"]), now);
    say(&mut merge, 2, said(3, 3, &["a", "b", "b"]), now);
    assert!(told(merge.tick(now + 2 * SEQUENCE_PATIENCE)).is_empty());
}

proptest! {
    /// Three voters, of which one lies, tell of the same transactions; neighbours may have committed in another order. Words arrive in
    /// any way. Everything is told once, and what has one order on all correct voters is told in it.
    #[test]
    fn everything_is_told_once_and_in_order(
        swaps in prop::collection::vec(any::<bool>(), 20),
        arrivals in prop::collection::vec(0_usize..3, 200),
        lies in prop::collection::vec(0_u64..40, 20),
    ) {
        let orders: Vec<u64> = (1..=20).collect();
        let mut swapped = orders.clone();
        // Only 2k-1 and 2k have nothing to do with each other.
        for (at, swap) in swaps.iter().enumerate().step_by(2) {
            if *swap && at + 1 < swapped.len() {
                swapped.swap(at, at + 1);
            }
        }
        let words = |orders: &[u64], payload: &str| -> VecDeque<Notifications> {
            orders.iter().map(|order| said(*order, *order, &[payload])).collect()
        };
        let mut streams = [words(&orders, "t"), words(&swapped, "t"), words(&lies, "lie")];
        let (mut merge, now) = (Merge::new(1), Instant::now());
        let mut result = Vec::new();
        let rest = (0..3).flat_map(|voter| std::iter::repeat_n(voter, 20));
        for voter in arrivals.into_iter().chain(rest) {
            if let Some(word) = streams[voter].pop_front() {
                result.extend(say(&mut merge, voter as u8, word, now));
            }
        }
        prop_assert!(result.iter().all(|(_, payload)| payload == "t"));
        let mut told: Vec<u64> = result.iter().map(|(order, _)| *order).collect();
        let pairs: Vec<u64> = told.iter().map(|order| order.div_ceil(2)).collect();
        prop_assert!(pairs.is_sorted(), "{told:?}");
        told.sort_unstable();
        prop_assert_eq!(told, orders);
    }
}
