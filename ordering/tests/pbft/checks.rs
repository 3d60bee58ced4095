//! What must hold of a cluster, whatever happens to it.

use std::collections::{BTreeMap, BTreeSet};

use ordering::agreement::{Agreement, Phase};
use ordering::configuration::group_of;
use ordering::identifiers::{Digest, GroupId, MachineId, Order, View};
use ordering::ledger::client_table::ClientTable;
use ordering::message::{CommitDb, Request};
use ordering::pbft::{Input, Message, Record};

use crate::cluster::Cluster;

/// What any correct machine has ever delivered at an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) group: GroupId,
    pub(crate) time_us: u64,
    pub(crate) digest: Digest,
}

/// What a machine says, and must not forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vote {
    Prepare(View, u64, Digest),
    Commit(View, u64, Digest),
    ViewChange(View),
    NewView(View),
}

impl Vote {
    /// What a machine may say once this record is durable.
    pub(crate) fn of_record(record: &Record) -> Option<Vote> {
        match record {
            Record::Accepted { view, batch, .. } | Record::AcceptedAgain { view, batch } => {
                Some(Vote::Prepare(*view, batch.number, batch.digest()))
            }
            Record::Prepared {
                view, number, digest, ..
            } => Some(Vote::Commit(*view, *number, *digest)),
            Record::ViewChange { view, .. } => Some(Vote::ViewChange(*view)),
            Record::Entered { view, .. } => Some(Vote::NewView(*view)),
            _ => None,
        }
    }

    fn of_message(message: &Message) -> Option<Vote> {
        match message {
            Message::Prepare(vote) => Some(Vote::Prepare(vote.view, vote.number, vote.digest)),
            Message::Commit(vote) => Some(Vote::Commit(vote.view, vote.number, vote.digest)),
            Message::ViewChange(view_change) => Some(Vote::ViewChange(view_change.view)),
            Message::NewView(new_view) => Some(Vote::NewView(new_view.view)),
            _ => None,
        }
    }
}

impl Cluster {
    /// Durable before it is spoken: at each message of a correct machine.
    pub(crate) fn check_durable(&self, id: MachineId, message: &Message) {
        let vote = Vote::of_message(message);
        // Others only pass on what its primary has said.
        let is_own = |vote: &Vote| match vote {
            Vote::NewView(view) => view.0 % self.nodes.len() as u64 == u64::from(id.0),
            _ => true,
        };
        if let Some(vote) = vote.filter(is_own) {
            assert!(self.node(id).votes.contains(&vote), "m{id} may forget {vote:?}");
        }
    }

    /// Agreement, and that nobody delivers twice: at each delivery.
    pub(crate) fn delivered(&mut self, id: MachineId, message: &CommitDb) {
        if self.adversaries.contains_key(&id) {
            return;
        }
        for entry in &message.entries {
            let decided = Decided {
                group: message.group,
                time_us: entry.time_us,
                digest: entry.digest,
            };
            let known = self.decided.entry(entry.order).or_insert(decided);
            assert_eq!(*known, decided, "agreement: m{id} differs at order {}", entry.order);
            self.done.insert(entry.digest);
            let request = entry.request.as_ref().expect("whole operations go to the local voter");
            assert_eq!(request.digest(), entry.digest);
            assert_eq!(group_of(request.home, self.groups), message.group);
            let delivered = &mut self.nodes[usize::from(id.0)].delivered;
            let before = delivered.insert(entry.order, entry.digest);
            assert!(before.is_none(), "m{id} delivers order {} twice", entry.order);
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.correct()
            .into_iter()
            .all(|id| self.machine(id).status().phase == Phase::Live)
    }

    /// Whether every correct machine that is up has decided everything that was submitted.
    pub(crate) fn is_done(&self) -> bool {
        let mut submitted = self.submitted.iter().map(|submitted| submitted.verified.digest());
        let last = self.decided.last_key_value().map(|(order, _)| *order);
        submitted.all(|digest| self.done.contains(digest))
            && self
                .correct()
                .into_iter()
                .all(|id| self.machine(id).status().decided >= last.unwrap_or_default())
    }

    /// All machines, for the message of a failed test.
    pub(crate) fn describe(&self) -> String {
        let up = self.machines().filter(|id| self.is_up(*id));
        let lines = up.map(|id| format!("m{id}: {:?}\n", self.machine(id).status()));
        lines.collect::<String>() + &format!("reports {:?}\n", self.reports)
    }

    pub(crate) fn is_decided(&self, digest: &Digest) -> bool {
        self.done.contains(digest)
    }

    /// [`Cluster::check_safety`], and no gaps: for when nothing is in flight.
    pub(crate) fn check(&self) {
        self.check_safety();
        let orders = self.decided.keys().copied();
        assert!(orders.eq((1..=self.decided.len() as u64).map(Order)), "no gaps");
    }

    /// Times that rise, nothing invented, nothing that runs twice, one history on all machines that have got equally
    /// far. (That one order is never decided twice differently is checked at each delivery.)
    pub(crate) fn check_safety(&self) {
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
            let request = submitted
                .get(&decided.digest)
                .expect("validity: only what clients have signed");
            if clients.record(request.client, request.number, request.floor) {
                assert!(ran.insert(decided.digest), "exactly once");
            }
        }
        let mut points = BTreeMap::new();
        for id in self.correct() {
            let point = self.machine(id).history_point();
            assert_eq!(*points.entry(point.order).or_insert(point), point, "one history");
        }
    }

    /// Orders that were decided for the same digest more than once.
    pub(crate) fn duplicates(&self) -> usize {
        let digests: Vec<_> = self.decided.values().map(|decided| decided.digest).collect();
        digests.len() - digests.iter().collect::<BTreeSet<_>>().len()
    }

    /// Nobody correct is accused, and no message of a correct machine is refused.
    pub(crate) fn check_accusations(&self, what: &str) {
        let accused = self
            .reports
            .iter()
            .map(|(machine, kind)| (machine, format!("{kind:?}")));
        let refused = self.rejected.iter().map(|(machine, why)| (machine, why.to_string()));
        for (machine, why) in accused.chain(refused) {
            assert!(
                self.adversaries.contains_key(machine),
                "{what}: m{machine} is accused wrongly: {why}"
            );
        }
    }

    /// The orders that a voter gets when it fetches everything from this machine.
    fn fetch_everything(&mut self, id: MachineId) -> BTreeMap<Order, Decided> {
        let mut got = BTreeMap::new();
        let last = self.machine(id).history_point().order;
        for _ in 0..10_000 {
            let next = got
                .last_key_value()
                .map_or(Order(1), |(order, _): (&Order, &Decided)| order.next());
            if next > last {
                break;
            }
            let (from, order) = (MachineId(1), next);
            for message in self.step(id, Input::FetchCommitDb { from, order }) {
                for entry in message.entries {
                    assert!(entry.request.is_some(), "fetched operations are whole");
                    let decided = Decided {
                        group: message.group,
                        time_us: entry.time_us,
                        digest: entry.digest,
                    };
                    got.insert(entry.order, decided);
                }
            }
            self.run(5_000);
        }
        got
    }

    /// All logs hold, and serve, the same history.
    pub(crate) fn check_logs(&mut self) {
        for id in self.correct() {
            let last = self.machine(id).history_point().order;
            let expected: BTreeMap<_, _> = self
                .decided
                .range(..=last)
                .map(|(order, entry)| (*order, *entry))
                .collect();
            assert_eq!(self.fetch_everything(id), expected, "m{id} serves what was decided");
        }
    }
}
