//! Questions of the scenarios to a cluster.

use crate::cluster::{Cluster, Decided};
use ordering::agreement::{Agreement, Phase};
use ordering::identifiers::{Digest, MachineId, Order};
use ordering::ledger::client_table::ClientTable;
use ordering::message::Request;
use ordering::minbft::{Input, Record};
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};

impl Cluster {
    pub(crate) fn is_live(&self) -> bool {
        self.machines()
            .all(|id| !self.is_up(id) || self.machine(id).status().phase == Phase::Live)
    }

    /// Whether every machine that is up has decided everything that was submitted.
    pub(crate) fn is_done(&self) -> bool {
        let is_all = self
            .submitted
            .iter()
            .all(|submitted| self.done.contains(submitted.verified.digest()));
        let last = self
            .decided
            .last_key_value()
            .map(|(order, _)| *order)
            .unwrap_or_default();
        let reached = |id: MachineId| !self.is_up(id) || self.machine(id).status().decided >= last;
        is_all && self.replicas().all(reached)
    }

    /// All machines, for the message of a failed test.
    pub(crate) fn describe(&self) -> String {
        let up = self.machines().filter(|id| self.is_up(*id));
        up.map(|id| format!("m{id}: {:?}\n", self.machine(id).status()))
            .collect()
    }

    pub(crate) fn is_decided(&self, digest: &Digest) -> bool {
        self.decided.values().any(|decided| decided.digest == *digest)
    }

    /// [`Cluster::check_safety`], and no gaps: for when nothing is in flight.
    pub(crate) fn check(&self) {
        self.check_safety();
        let orders = self.decided.keys().copied();
        assert!(orders.eq((1..=self.decided.len() as u64).map(Order)), "no gaps");
    }

    /// No message refused, times that rise, nothing invented, nothing that runs twice, one history on all machines that have got
    /// equally far. (That one order is never decided twice differently is checked at each delivery.)
    pub(crate) fn check_safety(&self) {
        assert_eq!(self.rejected, [], "correct machines send what others accept");
        let mut clients = ClientTable::default();
        let submitted: BTreeMap<Digest, &Request> = self
            .submitted
            .iter()
            .map(|entry| (*entry.verified.digest(), &**entry.verified.message()))
            .collect();
        let mut ran = BTreeSet::new();
        let mut last_us = 0;
        for decided in self.decided.values() {
            assert!(decided.time_us > last_us, "times rise");
            last_us = decided.time_us;
            if decided.digest == [0; 32] {
                continue;
            }
            let request = submitted
                .get(&decided.digest)
                .expect("validity: only what clients have signed");
            if clients.record(request.client, request.number, request.floor) {
                assert!(ran.insert(decided.digest), "exactly once");
            }
        }
        let mut points = BTreeMap::new();
        for id in self.replicas().filter(|id| self.is_up(*id)) {
            let point = self.machine(id).history_point();
            let known = points.entry(point.order).or_insert(point.history);
            assert_eq!(*known, point.history, "one history");
        }
    }

    /// Orders that were decided for the same digest more than once.
    pub(crate) fn duplicates(&self) -> usize {
        let digests: Vec<_> = self
            .decided
            .values()
            .map(|decided| decided.digest)
            .filter(|digest| *digest != [0; 32])
            .collect();
        digests.len() - digests.iter().collect::<BTreeSet<_>>().len()
    }

    /// The orders that a voter gets when it fetches everything from this machine.
    pub(crate) fn fetch_everything(&mut self, id: MachineId) -> BTreeMap<Order, Decided> {
        let mut got = BTreeMap::new();
        let last = self.machine(id).history_point().order;
        for _ in 0..10_000 {
            let next = got
                .last_key_value()
                .map_or(Order(1), |(order, _): (&Order, &Decided)| order.next());
            if next > last {
                break;
            }
            for message in self.step(
                id,
                Input::FetchCommitDb {
                    from: MachineId(1),
                    order: next,
                },
            ) {
                for entry in message.entries {
                    let is_whole = entry.request.is_some() || entry.digest == [0; 32];
                    assert!(is_whole, "fetched operations are whole");
                    got.insert(
                        entry.order,
                        Decided {
                            group: message.group,
                            time_us: entry.time_us,
                            digest: entry.digest,
                        },
                    );
                }
            }
            self.run(5_000);
        }
        got
    }

    /// All logs hold, and serve, the same history.
    pub(crate) fn check_logs(&mut self) {
        for id in self.replicas().filter(|id| self.is_up(*id)).collect::<Vec<_>>() {
            let last = self.machine(id).history_point().order;
            let expected: BTreeMap<_, _> = self
                .decided
                .range(..=last)
                .map(|(order, entry)| (*order, *entry))
                .collect();
            let served = self.fetch_everything(id);
            let differs: Vec<_> = expected
                .iter()
                .filter(|(order, decided)| served.get(order) != Some(decided))
                .map(|(order, _)| (*order, served.get(order)))
                .collect();
            assert!(differs.is_empty(), "m{id} serves what was decided, but at {differs:?}");
            assert!(
                served.range(..=last).count() == expected.len(),
                "m{id} serves nothing else"
            );
        }
    }

    /// The leader of the highest view that a machine is live in.
    pub(crate) fn leader(&self) -> MachineId {
        let up = self.machines().filter(|id| self.is_up(*id));
        let statuses = up.map(|id| self.machine(id).status());
        let live = statuses.filter(|status| status.phase == Phase::Live);
        live.max_by_key(|status| status.view)
            .map(|status| status.primary)
            .unwrap_or_default()
    }

    pub(crate) fn random_replica(&mut self) -> MachineId {
        MachineId(self.rng.random_range(1..self.nodes.len() as u8))
    }

    pub(crate) fn random(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    pub(crate) fn log_of(&self, id: MachineId) -> Vec<Record> {
        self.nodes[usize::from(id.0)]
            .disk
            .log
            .iter()
            .map(|bytes| borsh::from_slice(bytes).unwrap())
            .collect()
    }
}
