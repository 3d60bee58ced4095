use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sql::footprint::{Footprint, Mode, PartitionKey, PartitionValue, Resource};
use sql::operation::TransactionId;

use super::*;

mod rows;

const READ_COMMITTED: BeginKind = BeginKind { snapshot: false };

const SNAPSHOT: BeginKind = BeginKind { snapshot: true };

fn partition(value: i64) -> Resource {
    Resource::Partition(PartitionKey {
        family: "warehouse".into(),
        value: PartitionValue::Integer(value),
    })
}

fn name(table: u8) -> String {
    format!("public.t{table}")
}

fn table_named(table: u8) -> Resource {
    Resource::Table(name(table))
}

fn row(table: u8, bucket: u16) -> Resource {
    let table = name(table);
    Resource::Row { table, bucket }
}

fn key(table: u8) -> Resource {
    let (table, key) = (name(table), "email".into());
    Resource::Key { table, key }
}

fn value(table: u8, bucket: u16) -> Resource {
    let (table, key) = (name(table), "email".into());
    Resource::Value { table, key, bucket }
}

fn writes(resource: Resource) -> Footprint {
    Footprint::of(resource, Mode::Exclusive)
}

fn reads(resource: Resource) -> Footprint {
    Footprint::of(resource, Mode::Shared)
}

fn begin(table: &mut LockTable, order: u64, footprint: &Footprint, kind: BeginKind) {
    table.begin(order, transaction(order), footprint, kind, 0).unwrap();
}

fn exclusive(values: &[i64]) -> Footprint {
    let mut footprint = Footprint::empty();
    for value in values {
        footprint.add(partition(*value), Mode::Exclusive);
    }
    footprint
}

fn shared(value: i64) -> Footprint {
    Footprint::of(partition(value), Mode::Shared)
}

fn transaction(number: u64) -> TransactionId {
    TransactionId {
        client: 1,
        session: 1,
        number,
    }
}

fn grants(table: &mut LockTable) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| table.next_grant())
        .map(|grant| (grant.order, grant.granted))
        .collect()
}

#[test]
fn a_one_shot_waits_for_a_transaction_and_is_granted_by_its_end() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(2, &exclusive(&[1]), 0).unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1), (3, 3)]);
    table.end(4, transaction(1));
    assert_eq!(grants(&mut table), vec![(2, 4)]);
}

#[test]
fn what_conflicts_with_something_that_waits_does_not_overtake_it() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(2, &exclusive(&[1, 2]), 0).unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    table.one_shot(4, &Footprint::everything(), 0).unwrap();
    table.one_shot(5, &exclusive(&[7]), 0).unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1)]);
    table.end(6, transaction(1));
    assert_eq!(grants(&mut table), vec![(2, 6), (3, 6), (4, 6), (5, 6)]);
}

#[test]
fn the_end_of_a_transaction_waits_for_its_ordered_reads() {
    let mut table = LockTable::new(LockLimits::default());
    let within = |number| Node::Within {
        transaction: transaction(number),
        snapshot: false,
    };
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert!(table.run(1, within(1), &exclusive(&[1])));
    assert!(table.run(2, Node::OneShot, &exclusive(&[2])));
    let read = Node::Read {
        transaction: Some(transaction(1)),
    };
    assert!(!table.run(3, read, &shared(2)), "the one-shot is not through");
    let end = Node::End {
        transaction: transaction(1),
    };
    assert!(table.finished(1).is_empty());
    assert!(!table.run(4, end, &exclusive(&[1])), "the read needs the transaction");
    assert_eq!(table.finished(2), vec![3]);
    assert_eq!(table.finished(3), vec![4]);
}

#[test]
fn an_extend_overtakes_what_waits_and_a_cycle_is_refused() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(3, &exclusive(&[1, 3]), 0).unwrap();
    table.extend(4, transaction(1), &exclusive(&[3])).1.unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2), (4, 4)]);
    table.extend(5, transaction(1), &exclusive(&[2])).1.unwrap();
    assert_eq!(
        table.extend(7, transaction(2), &exclusive(&[1])).1,
        Err(LockRefusal::Deadlock)
    );
    assert_eq!(grants(&mut table), vec![], "a refusal changes no lock");
    table.end(7, transaction(2));
    assert_eq!(grants(&mut table), vec![(5, 7)]);
    table.end(8, transaction(1));
    assert_eq!(grants(&mut table), vec![(3, 8)]);
}

#[test]
fn an_extend_takes_the_place_of_an_earlier_one_that_waits() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(table.extend(3, transaction(1), &exclusive(&[2])), (None, Ok(())));
    table.one_shot(4, &exclusive(&[2, 5]), 0).unwrap();
    assert_eq!(table.extend(5, transaction(1), &exclusive(&[3])), (Some(3), Ok(())));
    assert_eq!(grants(&mut table), vec![(1, 1), (2, 2), (5, 5)]);
    table.end(6, transaction(2));
    assert_eq!(grants(&mut table), vec![(4, 6)], "the first Extend waits no more");
}

fn written_since(table: &mut LockTable) -> Vec<u64> {
    let grants = std::iter::from_fn(|| table.next_grant());
    grants
        .filter(|grant| grant.written_since)
        .map(|grant| grant.order)
        .collect()
}

#[test]
fn a_transaction_with_a_snapshot_learns_what_was_written_since() {
    let mut table = LockTable::new(LockLimits::default());
    table.one_shot(1, &exclusive(&[1]), 0).unwrap();
    table
        .begin(2, transaction(1), &Footprint::empty(), SNAPSHOT, 0)
        .unwrap();
    table
        .begin(3, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(4, &exclusive(&[3]), 0).unwrap();
    table.end(5, transaction(2));
    table.extend(6, transaction(1), &exclusive(&[1])).1.unwrap();
    assert_eq!(
        written_since(&mut table),
        Vec::<u64>::new(),
        "written before the snapshot"
    );
    table.extend(7, transaction(1), &shared(2)).1.unwrap();
    assert_eq!(written_since(&mut table), vec![7]);
    let mut table = LockTable::restore(LockLimits::default(), &table.snapshot());
    table.extend(8, transaction(1), &shared(3)).1.unwrap();
    assert_eq!(written_since(&mut table), vec![8], "a restart forgets nothing");
    table.extend(9, transaction(1), &exclusive(&[4])).1.unwrap();
    assert_eq!(written_since(&mut table), Vec::<u64>::new());
    table.end(10, transaction(1));
    assert!(
        table.snapshot().written.is_empty(),
        "nothing is kept without a snapshot"
    );
}

#[test]
fn two_readers_that_both_want_to_write_deadlock() {
    let mut table = LockTable::new(LockLimits::default());
    table.begin(1, transaction(1), &shared(1), READ_COMMITTED, 0).unwrap();
    table.begin(2, transaction(2), &shared(1), READ_COMMITTED, 0).unwrap();
    table.extend(3, transaction(1), &exclusive(&[1])).1.unwrap();
    assert_eq!(
        table.extend(4, transaction(2), &exclusive(&[1])).1,
        Err(LockRefusal::Deadlock)
    );
}

#[test]
fn an_abort_cancels_a_begin_and_an_extend_that_wait() {
    let mut table = LockTable::new(LockLimits::default());
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    table
        .begin(2, transaction(2), &exclusive(&[1, 2]), READ_COMMITTED, 0)
        .unwrap();
    table.one_shot(3, &exclusive(&[2]), 0).unwrap();
    grants(&mut table);
    assert_eq!(table.end(4, transaction(2)).cancelled, Some(2));
    assert_eq!(grants(&mut table), vec![(3, 4)]);
    table
        .begin(5, transaction(3), &exclusive(&[3]), READ_COMMITTED, 0)
        .unwrap();
    table.extend(6, transaction(3), &exclusive(&[1])).1.unwrap();
    let ended = table.end(7, transaction(3));
    assert_eq!((ended.cancelled, ended.held), (Some(6), Some(exclusive(&[3]))));
}

#[test]
fn a_one_shot_that_waits_is_taken_back_and_lets_others_run() {
    let mut table = LockTable::new(LockLimits::default());
    table.begin(1, transaction(1), &shared(1), READ_COMMITTED, 0).unwrap();
    table.one_shot(2, &exclusive(&[1, 2]), 0).unwrap();
    table.one_shot(3, &shared(1), 0).unwrap();
    table
        .begin(4, transaction(2), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(grants(&mut table), vec![(1, 1)]);
    let mut restored = LockTable::restore(LockLimits::default(), &table.snapshot());
    assert!(!table.cancel(5, 4), "a Begin is ended by its Abort");
    assert!(table.cancel(6, 2));
    assert!(restored.cancel(6, 2));
    assert_eq!(restored.snapshot(), table.snapshot());
    assert_eq!(grants(&mut table), vec![(3, 6)], "what only waited for it runs");
    assert!(!table.cancel(7, 2));
    assert!(!table.cancel(8, 3), "what was granted runs");
    assert_eq!(table.waiting(), 1);
}

#[test]
fn a_read_waits_for_what_was_granted_and_what_follows_waits_for_its_snapshot() {
    let mut table = LockTable::new(LockLimits::default());
    assert!(table.run(1, Node::OneShot, &exclusive(&[1])));
    assert!(!table.run(2, Node::Read { transaction: None }, &shared(1)));
    assert!(!table.run(3, Node::OneShot, &exclusive(&[1])));
    assert!(table.run(4, Node::OneShot, &exclusive(&[2])));
    assert_eq!(table.finished(1), vec![2]);
    assert_eq!(table.snapshot_open(2), vec![3]);
    assert!(table.finished(2).is_empty());
}

#[test]
fn a_snapshot_of_a_transaction_is_taken_between_all_others() {
    let mut table = LockTable::new(LockLimits::default());
    let within = Node::Within {
        transaction: transaction(1),
        snapshot: true,
    };
    assert!(table.run(1, Node::OneShot, &exclusive(&[1])));
    assert!(!table.run(2, within, &exclusive(&[2])));
    assert!(!table.run(3, Node::OneShot, &exclusive(&[5])));
    assert_eq!(table.finished(1), vec![2]);
    assert_eq!(table.snapshot_open(2), vec![3]);
}

#[test]
fn the_limits_refuse() {
    let limits = LockLimits {
        transactions_max: 1,
        waiting_max: 1,
        waiting_bytes_max: 10,
    };
    let mut table = LockTable::new(limits);
    table
        .begin(1, transaction(1), &exclusive(&[1]), READ_COMMITTED, 0)
        .unwrap();
    assert_eq!(
        table.begin(2, transaction(2), &exclusive(&[2]), READ_COMMITTED, 0),
        Err(LockRefusal::TooManyOpen(1))
    );
    assert_eq!(
        table.begin(3, transaction(1), &exclusive(&[2]), READ_COMMITTED, 0),
        Err(LockRefusal::TransactionExists)
    );
    assert_eq!(table.one_shot(4, &exclusive(&[1]), 11), Err(LockRefusal::TooMany));
    table.one_shot(5, &exclusive(&[1]), 10).unwrap();
    assert_eq!(table.one_shot(6, &exclusive(&[1]), 0), Err(LockRefusal::TooMany));
}

/// One ordered operation of a random history.
#[derive(Clone, Debug)]
enum Step {
    OneShot(Footprint),
    Read(Footprint),
    Begin(u64, Footprint),
    Extend(u64, Footprint),
    End(u64),
}

fn any_footprint() -> impl Strategy<Value = Footprint> {
    let resource = prop_oneof![
        6 => (0..5_i64).prop_map(partition),
        5 => (0..2_u8, 0..3_u16).prop_map(|(table, bucket)| row(table, bucket)),
        2 => (0..2_u8, 0..2_u16).prop_map(|(table, bucket)| value(table, bucket)),
        1 => (0..2_u8).prop_map(key),
        1 => (0..2_u8).prop_map(table_named),
    ];
    let some = proptest::collection::vec((resource, any::<bool>()), 0..4).prop_map(|entries| {
        let mut footprint = Footprint::empty();
        for (resource, writes) in entries {
            footprint.add(resource, if writes { Mode::Exclusive } else { Mode::Shared });
        }
        footprint
    });
    prop_oneof![
        12 => some,
        1 => Just(Footprint::everything()),
        1 => Just(Footprint::of(Resource::Everything, Mode::Shared)),
    ]
}

fn any_history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any_footprint().prop_map(Step::OneShot),
        1 => any_footprint().prop_map(Step::Read),
        3 => (0..6_u64, any_footprint()).prop_map(|(id, footprint)| Step::Begin(id, footprint)),
        3 => (0..6_u64, any_footprint()).prop_map(|(id, footprint)| Step::Extend(id, footprint)),
        3 => (0..6_u64).prop_map(Step::End),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Whether two footprints exclude each other, from the definition of the tree: what one holds whole, and reads, the other writes in a
/// part of; or what one holds whole, and writes in a part of, the other touches.
fn exclude(one: &Footprint, other: &Footprint) -> bool {
    let excludes = |one: &Footprint, other: &Footprint| {
        one.entries().iter().any(|(whole, _)| {
            let parts = |footprint: &Footprint| -> Vec<Mode> {
                let entries = footprint.entries().iter();
                let parts = entries.filter(|(resource, _)| whole.contains(resource));
                parts.map(|(_, mode)| *mode).collect()
            };
            let (own, others) = (parts(one), parts(other));
            let touches = *whole == Resource::Everything || !others.is_empty();
            others.contains(&Mode::Exclusive) || (own.contains(&Mode::Exclusive) && touches)
        })
    };
    excludes(one, other) || excludes(other, one)
}

/// The rules of `docs/design.md#locks` written down naively: every event tries everything again.
#[derive(Default)]
struct Model {
    held: BTreeMap<u64, Footprint>,
    extends: BTreeMap<u64, (u64, Footprint)>,
    waiting: BTreeMap<u64, (Option<u64>, Footprint)>,
}

impl Model {
    fn blockers(&self, id: u64, wanted: &Footprint) -> BTreeSet<u64> {
        let mut union = self.held.get(&id).cloned().unwrap_or_default();
        union.extend(wanted);
        let others = self
            .held
            .iter()
            .filter(|(other, held)| **other != id && exclude(&union, held));
        others.map(|(other, _)| *other).collect()
    }

    fn reaches(&self, from: &BTreeSet<u64>, goal: u64, depth: usize) -> bool {
        depth < 10
            && from.iter().any(|id| {
                let wanted = self.extends.values().find(|(waiting, _)| waiting == id);
                *id == goal
                    || wanted.is_some_and(|(_, wanted)| self.reaches(&self.blockers(*id, wanted), goal, depth + 1))
            })
    }

    fn try_all(&mut self, granted: u64) -> Vec<(u64, u64)> {
        let mut grants = Vec::new();
        for (order, (id, wanted)) in self.extends.clone() {
            if self.blockers(id, &wanted).is_empty() {
                self.extends.remove(&order);
                self.held.get_mut(&id).unwrap().extend(&wanted);
                grants.push((order, granted));
            }
        }
        for (order, (id, wanted)) in self.waiting.clone() {
            let by_holder = self.held.values().any(|held| exclude(&wanted, held));
            let by_extend = self.extends.values().any(|(_, other)| exclude(&wanted, other));
            let by_earlier = self
                .waiting
                .range(..order)
                .any(|(_, (_, other))| exclude(&wanted, other));
            if !(by_holder || by_extend || by_earlier) {
                self.waiting.remove(&order);
                if let Some(id) = id {
                    self.held.insert(id, wanted);
                }
                grants.push((order, granted));
            }
        }
        grants
    }

    fn end(&mut self, id: u64) {
        self.held.remove(&id);
        self.extends.retain(|_, (other, _)| *other != id);
        self.waiting.retain(|_, (other, _)| *other != Some(id));
    }

    /// Feeds one step; the grants that it causes.
    fn feed(&mut self, order: u64, step: &Step) -> Vec<(u64, u64)> {
        match step {
            Step::OneShot(footprint) => {
                self.waiting.insert(order, (None, footprint.clone()));
            }
            Step::Read(_) => {}
            Step::Begin(id, footprint) => {
                let begun = self.waiting.values().any(|(other, _)| *other == Some(*id));
                if !self.held.contains_key(id) && !begun {
                    self.waiting.insert(order, (Some(*id), footprint.clone()));
                }
            }
            Step::Extend(id, footprint) => {
                if self.held.contains_key(id) {
                    self.extends.retain(|_, (other, _)| other != id);
                    if self.reaches(&self.blockers(*id, footprint), *id, 0) {
                        self.end(*id);
                    } else {
                        self.extends.insert(order, (*id, footprint.clone()));
                    }
                }
            }
            Step::End(id) => self.end(*id),
        }
        self.try_all(order)
    }
}

/// What runs in a simulated Postgres.
struct Running {
    table: LockTable,
    /// Started work that has not finished: footprint, and whether it changes committed state.
    running: BTreeMap<u64, (Footprint, Node)>,
    blocked: BTreeMap<u64, (Footprint, Node)>,
    started: Vec<u64>,
    work: BTreeMap<u64, (Footprint, Node)>,
    granted: Vec<(u64, u64)>,
    positions: BTreeMap<String, Position>,
    footprints: BTreeMap<u64, (Option<u64>, Footprint)>,
}

impl Running {
    fn new() -> Self {
        Self {
            table: LockTable::new(LockLimits::default()),
            running: BTreeMap::new(),
            blocked: BTreeMap::new(),
            started: Vec::new(),
            work: BTreeMap::new(),
            granted: Vec::new(),
            positions: BTreeMap::new(),
            footprints: BTreeMap::new(),
        }
    }

    fn run(&mut self, order: u64, node: Node, footprint: Footprint) {
        self.work.insert(order, (footprint.clone(), node));
        if self.table.run(order, node, &footprint) {
            self.start(order, (footprint, node));
        } else {
            self.blocked.insert(order, (footprint, node));
        }
    }

    fn start(&mut self, order: u64, work: (Footprint, Node)) {
        let changes = |node: Node| matches!(node, Node::OneShot | Node::End { .. });
        for (other, (footprint, node)) in &self.running {
            let relevant = changes(work.1) || changes(*node);
            let within = |node: Node| matches!(node, Node::Within { .. });
            // A read inside a transaction, and the transaction's own statements, only read committed state.
            let read_and_begin =
                matches!((work.1, *node), (Node::Read { .. }, a) | (a, Node::Read { .. }) if within(a));
            assert!(
                !relevant || read_and_begin || !exclude(&work.0, footprint),
                "{order} {work:?} runs beside {other} {footprint} {node:?}"
            );
        }
        self.started.push(order);
        self.running.insert(order, work);
    }

    fn position(&mut self, footprint: &Footprint, position: Position) {
        if footprint.entries().iter().any(|(_, mode)| *mode == Mode::Exclusive) {
            let last = self.positions.insert(footprint.home().to_string(), position);
            assert!(
                last.is_none_or(|last| last < position),
                "{footprint}: {last:?} then {position:?}"
            );
        }
    }

    fn drain(&mut self) {
        while let Some(grant) = self.table.next_grant() {
            self.granted.push((grant.order, grant.granted));
            let (id, footprint) = self.footprints.get(&grant.order).cloned().unwrap();
            match id {
                None => {
                    self.position(&footprint, grant.position());
                    self.run(grant.order, Node::OneShot, footprint);
                }
                Some(id) => {
                    let snapshot = grant.order % 5 == 0;
                    let node = Node::Within {
                        transaction: transaction(id),
                        snapshot,
                    };
                    let held = self.table.held(transaction(id)).cloned().unwrap();
                    self.run(grant.order, node, held);
                }
            }
        }
    }

    fn end(&mut self, order: u64, id: u64) {
        let ended = self.table.end(order, transaction(id));
        if let Some(held) = ended.held {
            let position = Position {
                granted: order,
                order: 0,
            };
            self.position(&held, position);
            let node = Node::End {
                transaction: transaction(id),
            };
            self.run(order, node, held);
        }
    }

    fn feed(&mut self, order: u64, step: &Step) {
        match step {
            Step::OneShot(footprint) => {
                self.footprints.insert(order, (None, footprint.clone()));
                self.table.one_shot(order, footprint, 1).unwrap();
            }
            Step::Read(footprint) => self.run(order, Node::Read { transaction: None }, footprint.clone()),
            Step::Begin(id, footprint) => {
                self.footprints.insert(order, (Some(*id), footprint.clone()));
                let _ = self.table.begin(order, transaction(*id), footprint, READ_COMMITTED, 1);
            }
            Step::Extend(id, footprint) => {
                self.footprints.insert(order, (Some(*id), footprint.clone()));
                if self.table.extend(order, transaction(*id), footprint).1 == Err(LockRefusal::Deadlock) {
                    self.end(order, *id);
                }
            }
            Step::End(id) => self.end(order, *id),
        }
        self.drain();
    }

    fn finish_one(&mut self, choice: usize) {
        let Some(order) = self.running.keys().nth(choice % self.running.len().max(1)).copied() else {
            return;
        };
        let (_, node) = self.running.remove(&order).unwrap();
        let mut ready = match node {
            Node::Read { .. } => self.table.snapshot_open(order),
            _ => Vec::new(),
        };
        ready.extend(self.table.finished(order));
        for order in ready {
            let work = self.blocked.remove(&order).unwrap();
            self.start(order, work);
        }
    }

    /// Runs a history; `schedule` says which running work finishes when.
    fn play(history: &[Step], schedule: &[usize]) -> Self {
        let mut running = Self::new();
        let mut schedule = schedule.iter().cycle();
        for (order, step) in (1..).zip(history) {
            running.feed(order, step);
            let choice = *schedule.next().unwrap();
            for _ in 0..choice % 3 {
                running.finish_one(choice);
            }
        }
        let end = history.len() as u64;
        for id in 0..6 {
            running.feed(end + 1 + id, &Step::End(id));
        }
        while !running.running.is_empty() {
            running.finish_one(*schedule.next().unwrap());
        }
        running
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// (a) and the rules themselves: grants are those of the naive model.
    #[test]
    fn grants_are_those_of_the_naive_model(history in any_history()) {
        let mut model = Model::default();
        let mut running = Running::new();
        for (order, step) in (1..).zip(&history) {
            let before = running.granted.len();
            running.feed(order, step);
            prop_assert_eq!(&running.granted[before..], &model.feed(order, step)[..]);
        }
    }

    /// (a) to (d): whatever finishes when, the same is granted and conflicting work starts in the same order; it never
    /// overlaps (asserted when it starts), positions grow (asserted when granted), and everything is done in the end.
    #[test]
    fn the_speed_of_postgres_decides_nothing(
        history in any_history(),
        one in proptest::collection::vec(any::<usize>(), 1..40),
        other in proptest::collection::vec(any::<usize>(), 1..40),
    ) {
        let (one, other) = (Running::play(&history, &one), Running::play(&history, &other));
        prop_assert_eq!(&one.granted, &other.granted);
        prop_assert!(one.blocked.is_empty() && one.table.unfinished_nodes() == 0);
        prop_assert_eq!(one.table.waiting(), 0);
        let at: BTreeMap<_, _> = other.started.iter().enumerate().map(|(at, order)| (*order, at)).collect();
        for (index, first) in one.started.iter().enumerate() {
            for second in &one.started[index + 1..] {
                let ((footprint, node), (later, later_node)) = (&one.work[first], &one.work[second]);
                let both = matches!(node, Node::OneShot | Node::End { .. }) && matches!(later_node, Node::OneShot | Node::End { .. });
                if both && exclude(footprint, later) {
                    prop_assert!(at[first] < at[second]);
                }
            }
        }
    }

    /// The snapshot of a table is the table.
    #[test]
    fn a_restored_table_goes_on_alike(history in any_history(), cut in 0..60_usize) {
        let mut whole = Running::new();
        let mut restored: Option<Running> = None;
        for (order, step) in (1..).zip(&history) {
            if order as usize == cut {
                let mut copy = Running::new();
                copy.table = LockTable::restore(LockLimits::default(), &whole.table.snapshot());
                copy.footprints = whole.footprints.clone();
                restored = Some(copy);
            }
            let before = whole.granted.len();
            whole.feed(order, step);
            if let Some(copy) = &mut restored {
                let copied = copy.granted.len();
                copy.feed(order, step);
                prop_assert_eq!(&whole.granted[before..], &copy.granted[copied..]);
            }
        }
        if let Some(copy) = restored {
            prop_assert_eq!(whole.table.snapshot(), copy.table.snapshot());
        }
    }
}
