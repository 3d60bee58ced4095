//! Random histories: against the rules written down naively, at any speed of Postgres, and restored in the middle.

use super::*;

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
                        // What waited for the Extend that this one took the place of goes before what its transaction held.
                        let mut grants = self.try_all(order);
                        self.end(*id);
                        grants.extend(self.try_all(order));
                        return grants;
                    }
                    self.extends.insert(order, (*id, footprint.clone()));
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
