//! Advisory locks: scenarios, and random histories against the rules written down naively.

use sql::operation::{AdvisoryKey, SessionId};

use super::*;

fn session(number: u64) -> SessionId {
    SessionId {
        client: 1,
        session: number,
    }
}

/// The first transaction of a session.
fn of_session(number: u64) -> TransactionId {
    TransactionId {
        client: 1,
        session: number,
        number: 1,
    }
}

fn request(key: i64, shared: bool, of_transaction: bool) -> AdvisoryRequest {
    AdvisoryRequest {
        key: AdvisoryKey::One(key),
        shared,
        transaction: of_transaction.then_some(1),
    }
}

/// A table with the orders of what is fed to it.
struct Fed {
    table: LockTable,
    order: u64,
}

impl Fed {
    fn new() -> Self {
        Self {
            table: LockTable::new(LockLimits::default()),
            order: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn ask(&mut self, number: u64, request: AdvisoryRequest, waits: bool) -> Result<Advised, LockRefusal> {
        let order = self.next();
        self.table.advisory_lock(order, session(number), request, waits)
    }

    fn lock(&mut self, number: u64, key: i64) -> Result<Advised, LockRefusal> {
        self.ask(number, request(key, false, false), true)
    }

    fn begin(&mut self, number: u64, footprint: &Footprint) -> Result<(), LockRefusal> {
        let order = self.next();
        self.table
            .begin(order, of_session(number), footprint, READ_COMMITTED, 0)
    }

    fn extend(&mut self, number: u64, footprint: &Footprint) -> Result<(), LockRefusal> {
        let order = self.next();
        self.table.extend(order, of_session(number), footprint).1
    }

    fn end(&mut self, number: u64) {
        let order = self.next();
        self.table.end(order, of_session(number));
    }

    fn unlock(&mut self, number: u64, key: i64) -> bool {
        self.table
            .advisory_unlock(session(number), AdvisoryKey::One(key), false)
    }

    fn waits(&self, number: u64) -> bool {
        let mut all = self.table.advisory_of_client(1);
        all.any(|(id, since, _)| id == number && since.is_some())
    }
}

#[test]
fn a_lock_is_taken_as_often_as_it_is_given_back() {
    let mut fed = Fed::new();
    assert_eq!(fed.lock(1, 7), Ok(Advised::Granted));
    assert_eq!(fed.lock(1, 7), Ok(Advised::Granted));
    assert_eq!(fed.ask(2, request(7, false, false), false), Ok(Advised::Taken));
    assert_eq!(fed.ask(2, request(7, true, false), false), Ok(Advised::Taken));
    // The keys of the other form are others.
    let two = AdvisoryRequest {
        key: AdvisoryKey::Two(0, 7),
        ..request(7, false, false)
    };
    assert_eq!(fed.ask(2, two, false), Ok(Advised::Granted));
    assert_eq!(fed.lock(2, 7), Ok(Advised::Waits));
    assert!(fed.unlock(1, 7));
    assert!(fed.waits(2), "taken twice, given back once");
    assert!(fed.unlock(1, 7));
    assert!(!fed.waits(2));
    assert!(!fed.unlock(1, 7), "not held any more");
    assert_eq!(fed.ask(1, request(7, true, false), false), Ok(Advised::Taken));
    fed.table.end_session(session(2));
    assert!(!fed.table.has_advisory(session(2)));
    assert_eq!(fed.ask(1, request(7, true, false), false), Ok(Advised::Granted));
}

#[test]
fn locks_of_a_transaction_end_with_it_and_exclude_those_of_other_sessions() {
    let mut fed = Fed::new();
    assert_eq!(
        fed.ask(1, request(7, false, true), true),
        Err(LockRefusal::NoTransaction)
    );
    fed.begin(1, &Footprint::empty()).unwrap();
    assert_eq!(fed.ask(1, request(7, false, true), true), Ok(Advised::Granted));
    assert_eq!(
        fed.lock(1, 7),
        Ok(Advised::Granted),
        "the session's own lock is no other's"
    );
    assert_eq!(fed.lock(2, 7), Ok(Advised::Waits));
    fed.end(1);
    assert!(fed.waits(2), "the session holds it still");
    assert!(fed.unlock(1, 7));
    assert!(!fed.waits(2));
    // What a transaction waits for is not waited for when it has ended.
    fed.begin(1, &Footprint::empty()).unwrap();
    assert_eq!(fed.ask(1, request(7, false, true), true), Ok(Advised::Waits));
    fed.end(1);
    assert!(fed.unlock(2, 7));
    assert!(!fed.table.has_advisory(session(1)));
}

#[test]
fn ddl_does_not_wait_for_locks_of_sessions() {
    let mut fed = Fed::new();
    assert_eq!(fed.lock(1, 7), Ok(Advised::Granted));
    fed.begin(2, &Footprint::everything()).unwrap();
    assert!(fed.table.held(of_session(2)).is_some());
    // Nor the other way round.
    assert_eq!(fed.lock(1, 8), Ok(Advised::Granted));
}

#[test]
fn deadlocks_of_locks_of_sessions_are_found() {
    let mut fed = Fed::new();
    assert_eq!(fed.lock(1, 7), Ok(Advised::Granted));
    assert_eq!(fed.lock(2, 8), Ok(Advised::Granted));
    assert_eq!(fed.lock(1, 8), Ok(Advised::Waits));
    assert_eq!(fed.lock(2, 7), Err(LockRefusal::Deadlock));
    assert!(fed.unlock(2, 8));
    assert!(!fed.waits(1));
}

#[test]
fn deadlocks_over_locks_of_both_kinds_are_found_whoever_closes_them() {
    let prepared = || {
        let mut fed = Fed::new();
        fed.begin(1, &exclusive(&[1])).unwrap();
        assert_eq!(fed.lock(2, 7), Ok(Advised::Granted));
        fed
    };
    // By the wish for an advisory lock, while another's operation waits.
    let mut fed = prepared();
    let order = fed.next();
    fed.table.one_shot_of(session(2), order, &exclusive(&[1]), 0).unwrap();
    assert_eq!(fed.lock(1, 7), Err(LockRefusal::Deadlock));
    // By a one-shot.
    let mut fed = prepared();
    assert_eq!(fed.lock(1, 7), Ok(Advised::Waits));
    let order = fed.next();
    let refused = fed.table.one_shot_of(session(2), order, &exclusive(&[1]), 0);
    assert_eq!(refused, Err(LockRefusal::Deadlock));
    // By a Begin.
    assert_eq!(fed.begin(2, &exclusive(&[1])), Err(LockRefusal::Deadlock));
    // By an Extend.
    fed.begin(2, &exclusive(&[2])).unwrap();
    assert_eq!(fed.extend(2, &exclusive(&[1])), Err(LockRefusal::Deadlock));
    // Others wait as ever.
    let order = fed.next();
    fed.table.one_shot_of(session(3), order, &exclusive(&[1]), 0).unwrap();
}

#[test]
fn a_client_cannot_make_voters_keep_much() {
    let mut fed = Fed::new();
    for key in 0..crate::lock_table::advisory::LOCKS_OF_CLIENT_MAX as i64 {
        assert_eq!(fed.lock(1, key), Ok(Advised::Granted));
    }
    assert_eq!(fed.lock(2, -1), Err(LockRefusal::TooManyAdvisory));
    let other = SessionId { client: 2, session: 1 };
    let order = fed.next();
    let granted = fed.table.advisory_lock(order, other, request(-1, false, false), true);
    assert_eq!(granted, Ok(Advised::Granted));
    fed.table.advisory_unlock_all(session(1));
    assert_eq!(fed.lock(2, -2), Ok(Advised::Granted));
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Lock(u64, AdvisoryRequest, bool),
    Unlock(u64, i64, bool),
    UnlockAll(u64),
    GiveUp(u64),
    Begin(u64),
    End(u64),
    Leave(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let (who, key) = (1..5_u64, 0..3_i64);
    let lock = (who.clone(), key.clone(), any::<bool>(), any::<bool>(), 0..4_u8);
    prop_oneof![
        8 => lock.prop_map(|(who, key, shared, of_transaction, waits)| {
            Step::Lock(who, request(key, shared, of_transaction), waits > 0)
        }),
        4 => (who.clone(), key, any::<bool>()).prop_map(|(who, key, shared)| Step::Unlock(who, key, shared)),
        1 => who.clone().prop_map(Step::UnlockAll),
        1 => who.clone().prop_map(Step::GiveUp),
        2 => who.clone().prop_map(Step::Begin),
        2 => who.clone().prop_map(Step::End),
        1 => who.prop_map(Step::Leave),
    ]
}

/// The rules as a list of what is held, and a list of what is waited for, in the order of asking.
#[derive(Default)]
struct Naive {
    held: Vec<(u64, AdvisoryRequest)>,
    waiting: Vec<(u64, AdvisoryRequest)>,
    open: BTreeSet<u64>,
}

impl Naive {
    fn blockers(&self, who: u64, wanted: AdvisoryRequest, before: &[(u64, AdvisoryRequest)]) -> BTreeSet<u64> {
        let of_key = |all: &[(u64, AdvisoryRequest)]| -> Vec<(u64, AdvisoryRequest)> {
            all.iter()
                .filter(|(_, other)| other.key == wanted.key)
                .copied()
                .collect()
        };
        let held = of_key(&self.held);
        let own: Vec<_> = held.iter().filter(|(other, _)| *other == who).collect();
        if own.iter().any(|(_, own)| own.shared == wanted.shared) {
            return BTreeSet::new();
        }
        let before = if own.is_empty() { of_key(before) } else { Vec::new() };
        let others = held.iter().chain(&before).filter(|(other, _)| *other != who);
        others
            .filter(|(_, other)| !(other.shared && wanted.shared))
            .map(|(other, _)| *other)
            .collect()
    }

    fn reaches(&self, from: &BTreeSet<u64>, goal: u64, depth: usize) -> bool {
        depth < 6
            && from.iter().any(|who| {
                let at = self.waiting.iter().position(|(waiting, _)| waiting == who);
                *who == goal
                    || at.is_some_and(|at| {
                        let next = self.blockers(*who, self.waiting[at].1, &self.waiting[..at]);
                        self.reaches(&next, goal, depth + 1)
                    })
            })
    }

    fn serve(&mut self) {
        let mut at = 0;
        while let Some((who, wanted)) = self.waiting.get(at).copied() {
            if self.blockers(who, wanted, &self.waiting[..at]).is_empty() {
                self.waiting.remove(at);
                self.held.push((who, wanted));
                at = 0;
            } else {
                at += 1;
            }
        }
    }

    fn give_up(&mut self, who: u64) {
        self.waiting.retain(|(other, _)| *other != who);
        self.serve();
    }

    fn lock(&mut self, who: u64, wanted: AdvisoryRequest, waits: bool) -> Result<Advised, LockRefusal> {
        self.give_up(who);
        if wanted.transaction.is_some() && !self.open.contains(&who) {
            return Err(LockRefusal::NoTransaction);
        }
        let blockers = self.blockers(who, wanted, &self.waiting);
        if blockers.is_empty() {
            self.held.push((who, wanted));
            return Ok(Advised::Granted);
        }
        if !waits {
            return Ok(Advised::Taken);
        }
        if self.reaches(&blockers, who, 0) {
            return Err(LockRefusal::Deadlock);
        }
        self.waiting.push((who, wanted));
        Ok(Advised::Waits)
    }

    fn unlock(&mut self, who: u64, key: i64, shared: bool) -> bool {
        let given = request(key, shared, false);
        let at = self.held.iter().position(|held| *held == (who, given));
        if let Some(at) = at {
            self.held.remove(at);
        }
        self.serve();
        at.is_some()
    }

    fn drop_held(&mut self, is_dropped: impl Fn(u64, AdvisoryRequest) -> bool) {
        self.held.retain(|(who, held)| !is_dropped(*who, *held));
        self.serve();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// The table does what the naive rules say, is sound after every step, nobody waits for ever, and a snapshot of it is it.
    #[test]
    fn advisory_locks_are_those_of_the_naive_model(history in proptest::collection::vec(any_step(), 1..80)) {
        let (mut fed, mut naive) = (Fed::new(), Naive::default());
        for step in history {
            match step {
                Step::Lock(who, wanted, waits) => {
                    prop_assert_eq!(fed.ask(who, wanted, waits), naive.lock(who, wanted, waits));
                }
                Step::Unlock(who, key, shared) => {
                    let given = fed.table.advisory_unlock(session(who), AdvisoryKey::One(key), shared);
                    prop_assert_eq!(given, naive.unlock(who, key, shared));
                }
                Step::UnlockAll(who) => {
                    fed.table.advisory_unlock_all(session(who));
                    naive.give_up(who);
                    naive.drop_held(|other, held| other == who && held.transaction.is_none());
                }
                Step::GiveUp(who) => {
                    let since = fed.table.advisory_of_client(1).find(|(id, _, _)| *id == who).and_then(|(_, since, _)| since);
                    prop_assert_eq!(since.is_some_and(|since| fed.table.advisory_give_up(session(who), since)), since.is_some());
                    naive.give_up(who);
                }
                Step::Begin(who) => {
                    if naive.open.insert(who) {
                        fed.begin(who, &Footprint::empty()).unwrap();
                    }
                }
                Step::End(who) => {
                    fed.end(who);
                    naive.open.remove(&who);
                    if naive.waiting.iter().any(|(other, wanted)| *other == who && wanted.transaction.is_some()) {
                        naive.give_up(who);
                    }
                    naive.drop_held(|other, held| other == who && held.transaction.is_some());
                }
                Step::Leave(who) => {
                    fed.table.end_session(session(who));
                    naive.give_up(who);
                    naive.drop_held(|other, _| other == who);
                }
            }
            prop_assert!(fed.table.logical.advisory().is_sound());
            let waiting: BTreeSet<_> = naive.waiting.iter().map(|(who, _)| *who).collect();
            let known: BTreeSet<_> = naive.held.iter().map(|(who, _)| *who).chain(waiting.clone()).collect();
            prop_assert_eq!((1..5).filter(|who| fed.waits(*who)).collect::<BTreeSet<_>>(), waiting);
            prop_assert_eq!((1..5).filter(|who| fed.table.has_advisory(session(*who))).collect::<BTreeSet<_>>(), known);
            let stored = borsh::to_vec(&fed.table.snapshot()).unwrap();
            let snapshot: LogicalSnapshot = borsh::from_slice(&stored).unwrap();
            fed.table = LockTable::restore(LockLimits::default(), &snapshot);
            prop_assert_eq!(fed.table.snapshot(), snapshot);
        }
    }
}
