use super::*;

const M1: MachineId = MachineId(1);
const M2: MachineId = MachineId(2);
const M3: MachineId = MachineId(3);
const NOW: Duration = Duration::ZERO;
const A: Digest = [1; 32];
const B: Digest = [2; 32];
const C: Digest = [3; 32];

/// The voter of m1; f = 1.
fn comparison() -> Comparison {
    Comparison::new(1, [M2, M3].into_iter())
}

fn says(order: u64, digest: Digest) -> EffectDigests {
    let order = Order(order);
    EffectDigests {
        asks: false,
        entries: vec![EffectDigest { order, digest }],
    }
}

fn changed(comparison: &mut Comparison, order: u64, digest: Digest) -> Vec<Finding> {
    comparison.changed(order, Some(digest), Shown::default(), NOW)
}

/// Two fences: from the second one on it is known what was read.
fn covered_from(comparison: &mut Comparison, executed: u64, ceiling: u64) {
    assert_eq!(comparison.fence(executed, ceiling, NOW), []);
    assert_eq!(comparison.fence(executed, ceiling, NOW), []);
}

fn diverged(order: u64) -> Finding {
    let shown = Shown::default();
    Finding::Diverged { order, shown }
}

fn mismatch(from: MachineId, order: u64) -> Finding {
    Finding::Mismatch { from, order }
}

#[test]
fn f_plus_one_equal_digests_are_the_truth() {
    assert_eq!(verdict(1, &[]), Verdict::Open);
    assert_eq!(verdict(1, &[A]), Verdict::Open);
    assert_eq!(verdict(1, &[A, B]), Verdict::Open);
    assert_eq!(verdict(1, &[A, B, A]), Verdict::Truth(A));
    assert_eq!(verdict(1, &[A, B, C]), Verdict::None);
    assert_eq!(verdict(2, &[A, A, B]), Verdict::Open);
    assert_eq!(verdict(2, &[A, A, B, B]), Verdict::Open);
    assert_eq!(verdict(2, &[A, A, B, B, C]), Verdict::None);
    assert_eq!(verdict(2, &[A, B, C, [4; 32]]), Verdict::None);
    assert_eq!(verdict(2, &[B, A, A, B, A]), Verdict::Truth(A));
}

#[test]
fn who_differs_from_f_plus_one_has_diverged_whoever_speaks_first() {
    let mut first = comparison();
    assert_eq!(changed(&mut first, 7, A), []);
    assert_eq!(first.told(M2, &says(7, B), NOW), [mismatch(M2, 7)]);
    assert_eq!(first.told(M3, &says(7, B), NOW), [diverged(7), mismatch(M3, 7)]);
    assert_eq!(first.outgoing(NOW), [], "its digests mean nothing any more");

    let mut last = comparison();
    assert_eq!(last.told(M2, &says(7, B), NOW), []);
    assert_eq!(last.told(M3, &says(7, B), NOW), []);
    assert_eq!(changed(&mut last, 7, A)[0], diverged(7));
}

#[test]
fn one_equal_voter_is_enough_and_one_liar_is_not() {
    let mut comparison = comparison();
    assert_eq!(changed(&mut comparison, 7, A), []);
    assert_eq!(comparison.told(M3, &says(7, C), NOW), [mismatch(M3, 7)]);
    assert_eq!(comparison.told(M2, &says(7, A), NOW), [Finding::Agreed { order: 7 }]);
    // Whatever the liar says later, also in another's place.
    for digest in [B, C, A] {
        let findings = comparison.told(M3, &says(7, digest), NOW);
        assert!(
            findings.iter().all(|finding| *finding == mismatch(M3, 7)),
            "{findings:?}"
        );
        assert_eq!(comparison.told(M1, &says(7, digest), NOW), []);
        assert_eq!(comparison.told(MachineId(9), &says(7, digest), NOW), []);
    }
    assert_eq!(comparison.open(), 0);
}

#[test]
fn without_f_plus_one_it_is_told() {
    let mut comparison = comparison();
    changed(&mut comparison, 7, A);
    comparison.told(M2, &says(7, B), NOW);
    let shown = Shown::default();
    let disputed = Finding::Disputed { order: 7, shown };
    assert_eq!(comparison.told(M3, &says(7, C), NOW), [disputed, mismatch(M3, 7)]);
    assert_eq!(changed(&mut comparison, 8, A), [], "it goes on");
}

#[test]
fn an_order_that_changed_nothing_here_and_something_elsewhere_differs() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 4, 5);
    // Orders that may have been read before are not spoken of.
    comparison.told(M2, &says(5, A), NOW);
    comparison.told(M3, &says(5, A), NOW);
    comparison.told(M2, &says(7, A), NOW);
    comparison.told(M3, &says(7, A), NOW);
    assert_eq!(comparison.fence(6, 9, NOW), []);
    assert_eq!(comparison.fence(7, 9, NOW)[0], diverged(7));
}

#[test]
fn an_order_that_changed_nothing_anywhere_else_puts_out_who_changed_something() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 4, 5);
    comparison.fence(9, 9, NOW);
    changed(&mut comparison, 8, A);
    let sent = comparison.outgoing(NOW);
    assert_eq!(sent, [(None, says(8, A))]);
    // The voter of m2 has read nothing of it, and hears of it.
    let mut other = Comparison::new(1, [M1, M3].into_iter());
    covered_from(&mut other, 4, 5);
    other.fence(9, 9, NOW);
    assert_eq!(other.told(M1, &sent[0].1, NOW), [mismatch(M1, 8)]);
    assert_eq!(other.outgoing(NOW), [(None, says(8, NOTHING))]);
    comparison.told(M2, &says(8, NOTHING), NOW);
    assert_eq!(comparison.told(M3, &says(8, NOTHING), NOW)[0], diverged(8));
}

/// Order 6 was committed before the reading began, and after the first fence was put together.
#[test]
fn what_was_under_way_when_the_reading_began_is_not_taken_for_nothing() {
    let mut comparison = comparison();
    comparison.told(M2, &says(6, A), NOW);
    comparison.told(M3, &says(6, A), NOW);
    assert_eq!(comparison.fence(5, 5, NOW), []);
    assert_eq!(comparison.fence(6, 6, NOW), []);
    assert_eq!(comparison.fence(8, 8, NOW), []);
}

#[test]
fn what_was_read_before_a_restart_is_not_taken_for_nothing() {
    let mut comparison = comparison();
    // An earlier life has read up to 130; the voter resumes from its floor, 100.
    covered_from(&mut comparison, 100, 130);
    for order in 101..=131 {
        comparison.told(M2, &says(order, A), NOW);
        assert_eq!(comparison.told(M3, &says(order, A), NOW), []);
    }
    assert_eq!(comparison.fence(130, 140, NOW), []);
    assert_eq!(changed(&mut comparison, 131, A), [Finding::Agreed { order: 131 }]);
}

#[test]
fn a_repaired_server_begins_anew() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 1, 1);
    changed(&mut comparison, 7, A);
    comparison.told(M2, &says(7, B), NOW);
    assert_eq!(comparison.told(M3, &says(7, B), NOW)[0], diverged(7));
    comparison.begin_anew();
    covered_from(&mut comparison, 9, 9);
    assert_eq!(comparison.fence(20, 20, NOW), []);
    assert_eq!(comparison.told(M3, &says(8, B), NOW), []);
    assert_eq!(changed(&mut comparison, 12, A), []);
    assert_eq!(comparison.told(M2, &says(12, A), NOW), [Finding::Agreed { order: 12 }]);
}

#[test]
fn what_a_server_changed_before_it_diverged_is_forgotten_when_its_voter_serves_again() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 1, 1);
    changed(&mut comparison, 7, A);
    changed(&mut comparison, 8, A);
    comparison.told(M2, &says(7, B), NOW);
    assert_eq!(comparison.told(M3, &says(7, B), NOW)[0], diverged(7));
    comparison.resume();
    comparison.told(M2, &says(8, B), NOW);
    assert_eq!(comparison.told(M3, &says(8, B), NOW), []);
}

#[test]
fn a_voter_that_is_late_asks_and_is_answered() {
    let (mut early, mut late) = (comparison(), Comparison::new(1, [M1, M3].into_iter()));
    changed(&mut early, 7, A);
    assert_eq!(early.outgoing(NOW).len(), 1, "lost");
    early.told(M3, &says(7, A), NOW);
    changed(&mut late, 7, A);
    assert_eq!(late.outgoing(NOW), [(None, says(7, A))]);
    assert_eq!(late.outgoing(NOW), []);
    let asked = late.outgoing(ASK_AFTER);
    assert!(asked[0].1.asks);
    assert_eq!(early.told(M2, &asked[0].1, NOW), []);
    let answered = early.outgoing(NOW);
    assert_eq!(answered, [(Some(M2), says(7, A))]);
    assert_eq!(late.told(M1, &answered[0].1, NOW), [Finding::Agreed { order: 7 }]);
    // It asks some times, and not for ever.
    changed(&mut late, 8, A);
    late.outgoing(NOW);
    let asked = (0..1000).filter(|second| !late.outgoing(Duration::from_secs(*second)).is_empty());
    assert_eq!(asked.count(), ASKED_MAX as usize);
}

#[test]
fn memory_is_bounded_whatever_is_told_and_however_long_nobody_answers() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 0, 0);
    let mut skipped = 0;
    for order in 0..2 * WINDOW as u64 {
        let entries = (0..4).map(|lie| EffectDigest {
            order: Order(order.wrapping_mul(lie * 7_919)),
            digest: C,
        });
        let lies = EffectDigests {
            asks: true,
            entries: entries.collect(),
        };
        let mut findings = changed(&mut comparison, order + 1, A);
        findings.extend(comparison.told(M3, &lies, NOW));
        assert!(
            !findings
                .iter()
                .any(|finding| matches!(finding, Finding::Diverged { .. }))
        );
        skipped += findings.iter().filter(|finding| **finding == Finding::Skipped).count();
    }
    assert_eq!((comparison.own.len(), skipped), (WINDOW, WINDOW));
    assert_eq!(comparison.open(), WINDOW);
    assert!(comparison.shown.len() <= SHOWN_MAX);
    assert!(comparison.others[&M3].len() <= WINDOW);
    assert!(comparison.answers[&M3].len() <= WINDOW);
    let messages = comparison.outgoing(ASK_AFTER);
    assert!(
        messages
            .iter()
            .all(|(_, message)| message.entries.len() <= EFFECT_DIGESTS_MAX)
    );
    // What comes late is compared all the same.
    let newest = 2 * WINDOW as u64;
    assert_eq!(
        comparison.told(M2, &says(newest, A), NOW),
        [Finding::Agreed { order: newest }]
    );
}

#[test]
fn what_cannot_be_told_is_neither_compared_nor_nothing() {
    let mut comparison = comparison();
    covered_from(&mut comparison, 0, 0);
    comparison.changed(7, None, Shown::default(), NOW);
    comparison.told(M2, &says(7, A), NOW);
    assert_eq!(comparison.told(M3, &says(7, A), NOW), []);
    assert_eq!(comparison.fence(9, 9, NOW), []);
    assert_eq!(comparison.outgoing(NOW), []);
}
