//! Questions of a scenario to its cluster, and what must hold whatever it has done.

use std::collections::{BTreeMap, BTreeSet};

use ordering::agreement::{Agreement, Input, Phase, Status};
use ordering::identifiers::{Digest, MachineId, Order};
use ordering::ledger::client_table::ClientTable;

use super::Scenario;
use crate::cluster::Decided;
use crate::protocol::Protocol;

/// Questions without an answer after which a machine is asked no more.
const FRUITLESS_MAX: u32 = 100;

impl<P: Protocol> Scenario<P> {
    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = MachineId> + use<P> {
        self.cluster.machines()
    }

    /// The machines that hold replicas.
    pub fn replicas(&self) -> impl Iterator<Item = MachineId> + use<P> {
        let configuration = &self.cluster.instances[0].configuration;
        configuration.replica_machines().collect::<Vec<_>>().into_iter()
    }

    /// A machine that is up.
    pub fn machine(&self, machine: MachineId) -> &P::Machine {
        let running = self.cluster.instances[usize::from(machine.0)].running.as_ref();
        running.expect("the machine is up")
    }

    /// What a machine that is up says of itself.
    pub fn status(&self, machine: MachineId) -> Status {
        self.machine(machine).status()
    }

    /// Whether a machine runs.
    pub fn is_up(&self, machine: MachineId) -> bool {
        self.cluster.instances[usize::from(machine.0)].running.is_some()
    }

    /// Whether a machine lies.
    pub fn is_liar(&self, machine: MachineId) -> bool {
        self.liars.contains_key(&machine)
    }

    /// Replicas that are up and do what they should.
    pub fn correct(&self) -> Vec<MachineId> {
        let up = self.replicas().filter(|machine| self.is_up(*machine));
        up.filter(|machine| !self.is_liar(*machine)).collect()
    }

    /// Whether every correct machine that is up takes part.
    pub fn is_live(&self) -> bool {
        let correct = self.machines().filter(|machine| !self.is_liar(*machine));
        let mut up = correct.filter(|machine| self.is_up(*machine));
        up.all(|machine| self.status(machine).phase == Phase::Live)
    }

    /// Whether every correct replica that is up has decided everything that was submitted.
    pub fn is_done(&self) -> bool {
        let mut submitted = self.submitted.iter().map(|submitted| submitted.verified.digest());
        let last = self.decided.last_key_value().map(|(order, _)| *order);
        let reached = |machine: MachineId| self.status(machine).decided >= last.unwrap_or_default();
        submitted.all(|digest| self.done.contains(digest)) && self.correct().into_iter().all(reached)
    }

    /// Whether a correct machine has decided a request.
    pub fn is_decided(&self, digest: &Digest) -> bool {
        self.done.contains(digest)
    }

    /// How many orders a machine has delivered in this life.
    pub fn delivered(&self, machine: MachineId) -> usize {
        self.delivered.get(&machine).map_or(0, BTreeSet::len)
    }

    /// The durable log of a machine.
    pub fn log_of(&self, machine: MachineId) -> Vec<P::Record> {
        let log = self.cluster.instances[usize::from(machine.0)].log();
        log.into_iter().map(|(_, record)| record).collect()
    }

    /// The leader of the highest view that a machine is live in.
    pub fn leader(&self) -> MachineId {
        let up = self.machines().filter(|machine| self.is_up(*machine));
        let live = up
            .map(|machine| self.status(machine))
            .filter(|status| status.phase == Phase::Live);
        let highest = live.max_by_key(|status| status.view);
        highest.map(|status| status.primary).unwrap_or_default()
    }

    /// All machines, for the message of a failed test.
    pub fn describe(&self) -> String {
        format!("{}reports {:?}\n", self.cluster.describe(), self.reports)
    }

    /// Orders that were decided for the same digest more than once.
    pub fn duplicates(&self) -> usize {
        let digests = self.decided.values().map(|decided| decided.digest);
        let digests: Vec<_> = digests.filter(|digest| *digest != [0; 32]).collect();
        digests.len() - digests.iter().collect::<BTreeSet<_>>().len()
    }

    /// [`Scenario::check_safety`], and no gaps: for when nothing is in flight.
    #[track_caller]
    pub fn check(&self) {
        self.check_safety();
        let orders = self.decided.keys().copied();
        assert!(orders.eq((1..=self.decided.len() as u64).map(Order)), "no gaps");
    }

    /// What the checkers of the cluster do not see: times that rise, nothing that runs twice, one history on all machines that
    /// have got equally far, and no message refused but of liars.
    #[track_caller]
    pub fn check_safety(&self) {
        let is_wrong = |machine: &MachineId| !self.is_liar(*machine) && !self.framed.contains(machine);
        let refused: Vec<_> = self.rejected.iter().filter(|(from, _)| is_wrong(from)).collect();
        assert!(
            refused.is_empty(),
            "correct machines send what others accept: {refused:?}"
        );
        let submitted = self.submitted.iter();
        let submitted = submitted.map(|entry| (*entry.verified.digest(), entry.verified.message()));
        let submitted: BTreeMap<Digest, _> = submitted.collect();
        let (mut clients, mut ran, mut last_us) = (ClientTable::default(), BTreeSet::new(), 0);
        for decided in self.decided.values() {
            assert!(decided.time_us > last_us, "times rise");
            last_us = decided.time_us;
            if decided.digest == [0; 32] {
                continue;
            }
            let request = submitted.get(&decided.digest);
            let request = request.expect("validity: only what clients have signed");
            if clients.record(request.client, request.number, request.floor) {
                assert!(ran.insert(decided.digest), "exactly once");
            }
        }
        let mut histories = BTreeMap::new();
        for machine in self.correct() {
            let end = P::history(self.machine(machine));
            assert_eq!(*histories.entry(end.order).or_insert(end), end, "one history");
        }
    }

    /// Nobody correct is accused.
    #[track_caller]
    pub fn check_accusations(&self, what: &str) {
        for (machine, kind) in &self.reports {
            let is_right = self.is_liar(*machine) || self.framed.contains(machine);
            assert!(is_right, "{what}: m{machine} is accused wrongly: {kind:?}");
        }
    }

    /// The orders that a voter gets when it fetches everything from this machine.
    #[track_caller]
    fn fetch_everything(&mut self, machine: MachineId) -> BTreeMap<Order, Decided> {
        let mut got: BTreeMap<Order, Decided> = BTreeMap::new();
        let last = P::history(self.machine(machine)).order;
        let (mut order, mut fruitless) = (Order(1), 0);
        while order <= last && fruitless < FRUITLESS_MAX {
            let from = MachineId(1);
            for message in self.ask(machine, Input::FetchCommitDb { from, order }) {
                for entry in message.entries {
                    let is_whole = entry.request.is_some() || entry.digest == [0; 32];
                    assert!(is_whole, "fetched operations are whole");
                    let decided = Decided {
                        group: message.group,
                        time_us: entry.time_us,
                        digest: entry.digest,
                    };
                    got.insert(entry.order, decided);
                }
            }
            self.run(5_000);
            let next = got.last_key_value().map_or(Order(1), |(order, _)| order.next());
            fruitless = if next > order { 0 } else { fruitless + 1 };
            order = next;
        }
        got
    }

    /// All logs hold, and serve, the same history.
    #[track_caller]
    pub fn check_logs(&mut self) {
        for machine in self.correct() {
            let last = P::history(self.machine(machine)).order;
            let served = self.fetch_everything(machine);
            let served: Vec<_> = served.range(..=last).collect();
            let expected: Vec<_> = self.decided.range(..=last).collect();
            assert!(served == expected, "m{machine} serves what was decided");
        }
    }
}
