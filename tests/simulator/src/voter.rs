//! The voter on a machine, as far as agreement is concerned: counts COMMIT-DBs, executes order after order, keeps
//! in its database what was flushed, and fetches what it lacks.

use std::collections::BTreeMap;
use std::sync::Arc;

use ordering::assignment::Assignment;
use ordering::configuration::group_of;
use ordering::identifiers::{Digest, GroupId, MachineId, Order, administrator};
use ordering::ledger::client_table::ClientTable;
use ordering::message::{CommitDb, CommitDbEntry, ReplyCommitDb, Request};

/// Orders ahead of the next one of which votes are kept; later ones are fetched.
const WINDOW_ORDERS: u64 = 4096;

/// The digest of an order at which nothing runs.
const NOTHING: Digest = [0; 32];

/// What one machine said of an order.
type Vote = (GroupId, u64, Digest);

#[derive(Default)]
struct Pending {
    votes: BTreeMap<(MachineId, GroupId), (u64, Digest)>,
    /// Once it is decided, later votes change nothing.
    decided: Option<Vote>,
    bodies: BTreeMap<Digest, Arc<Request>>,
}

impl Pending {
    fn decide(&mut self, quorum: usize) {
        if self.decided.is_none() {
            self.decided = self.quorum_for(quorum);
        }
    }

    fn quorum_for(&self, quorum: usize) -> Option<Vote> {
        let votes = |group: &GroupId, vote: &(u64, Digest)| {
            let same = self
                .votes
                .iter()
                .filter(|((_, other), cast)| other == group && *cast == vote);
            same.count()
        };
        self.votes
            .iter()
            .find(|((_, group), vote)| votes(group, vote) >= quorum)
            .map(|((_, group), (time_us, digest))| (*group, *time_us, *digest))
    }
}

/// An order that the voter has executed.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The order.
    pub order: Order,
    /// The group that decided it.
    pub group: GroupId,
    /// The time that was decided.
    pub time_us: u64,
    /// The digest.
    pub digest: Digest,
    /// The request; none: nothing runs.
    pub request: Option<Arc<Request>>,
    /// Whether it had its effect, rather than being refused or a repetition.
    pub has_effect: bool,
    /// Whether it was refused because its home belongs to another group.
    pub is_refused: bool,
}

/// What the voter wants from the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything decided from this order on.
    From(Order),
    /// The body of an order that f+1 replicas have decided.
    Body(Order, Digest),
}

/// The content of a database.
pub struct Database {
    /// The last order that it holds.
    pub order: Order,
    clients: ClientTable,
    assignment: Assignment,
}

/// The group that decides a request; `groups`: how many are in charge at first, and how many there are.
pub(crate) fn deciding(assignment: &Assignment, (at_first, groups): (u16, u16), request: &Request) -> GroupId {
    if request.client == administrator() {
        return GroupId(0);
    }
    group_of(request.home, assignment.in_charge(at_first, groups))
}

/// One voter.
pub struct Voter {
    quorum: usize,
    /// How many groups are in charge at first, and how many there are.
    groups: (u16, u16),
    pending: BTreeMap<Order, Pending>,
    /// The last order that was executed, and the last that the database would keep now.
    executed: Order,
    flushed: Order,
    clients: ClientTable,
    /// Which groups are in charge of the next order.
    assignment: Assignment,
    /// (client table and assignment after it) at the flushed order.
    flushed_clients: ClientTable,
    flushed_assignment: Assignment,
    /// Where the logs of replicas begin that could not give what it lacks.
    logs_begin: BTreeMap<MachineId, Order>,
    /// The order at the last tick, to see whether anything moves.
    mark: Order,
    ticks: u64,
}

impl Voter {
    /// A voter with an empty database; `groups`: how many are in charge at first, and how many there are.
    pub fn new(quorum: usize, groups: (u16, u16)) -> Self {
        Voter {
            quorum,
            groups,
            pending: BTreeMap::new(),
            executed: Order(0),
            flushed: Order(0),
            clients: ClientTable::default(),
            assignment: Assignment::FIRST,
            flushed_clients: ClientTable::default(),
            flushed_assignment: Assignment::FIRST,
            logs_begin: BTreeMap::new(),
            mark: Order(0),
            ticks: 0,
        }
    }

    /// The last order that was executed.
    pub fn executed(&self) -> Order {
        self.executed
    }

    /// The machine has crashed: the database is what it was when it was last flushed.
    pub fn crash(&mut self) {
        self.pending.clear();
        self.logs_begin.clear();
        self.executed = self.flushed;
        self.clients = self.flushed_clients.clone();
        self.assignment = self.flushed_assignment;
    }

    /// The database flushes what was executed.
    pub fn flush(&mut self) {
        self.flushed = self.executed;
        self.flushed_clients = self.clients.clone();
        self.flushed_assignment = self.assignment;
    }

    /// A replica has cut off what the voter lacks. When f+1 have: the first order that one of them still has. (Those that
    /// went on from a certified checkpoint begin later than those that cut.)
    pub fn log_begins(&mut self, from: MachineId, first: Order) -> Option<Order> {
        self.logs_begin.insert(from, first);
        let next = self.executed.next();
        let begin = self.logs_begin.values().filter(|first| **first > next);
        let is_gone = begin.clone().count() >= self.quorum;
        begin.min().copied().filter(|_| is_gone)
    }

    /// What its database would keep now.
    pub fn database(&self) -> Database {
        Database {
            order: self.flushed,
            clients: self.flushed_clients.clone(),
            assignment: self.flushed_assignment,
        }
    }

    /// The database is repaired from another one.
    pub fn repair(&mut self, database: Database) {
        self.flushed = database.order;
        self.flushed_clients = database.clients;
        self.flushed_assignment = database.assignment;
        self.crash();
    }

    /// REPLY-COMMIT-DB.
    pub fn reply(&self) -> ReplyCommitDb {
        ReplyCommitDb {
            executed: self.executed,
            flushed: self.flushed,
        }
    }

    /// What it waits for, for whoever looks into a violation.
    pub fn describe(&self) -> String {
        let next = self.pending.get(&self.executed.next());
        let next = next.map(|next| (next.votes.len(), next.decided, next.bodies.len()));
        let logs = &self.logs_begin;
        format!(
            "voter at {}, next {next:?}, {} pending, logs begin {logs:?}",
            self.executed,
            self.pending.len()
        )
    }

    /// Counts a machine's COMMIT-DB.
    pub fn count(&mut self, from: MachineId, message: &CommitDb) {
        for entry in &message.entries {
            if entry.order > self.executed && entry.order.0 <= self.executed.0 + WINDOW_ORDERS {
                self.count_entry(from, message.group, entry);
            }
        }
    }

    fn count_entry(&mut self, from: MachineId, group: GroupId, entry: &CommitDbEntry) {
        let pending = self.pending.entry(entry.order).or_default();
        pending
            .votes
            .entry((from, group))
            .or_insert((entry.time_us, entry.digest));
        pending.decide(self.quorum);
        if let Some(request) = entry.request.as_ref().filter(|body| body.digest() == entry.digest) {
            pending.bodies.insert(entry.digest, request.clone());
        }
    }

    /// Executes the next order, if it is decided and its body is here.
    pub fn execute(&mut self) -> Option<Executed> {
        let order = self.executed.next();
        let pending = self.pending.get(&order)?;
        let (group, time_us, digest) = pending.decided?;
        let request = match digest {
            NOTHING => None,
            _ => Some(pending.bodies.get(&digest)?.clone()),
        };
        self.pending.remove(&order);
        self.executed = order;
        let is_new = request
            .as_ref()
            .is_some_and(|request| self.clients.record(request.client, request.number, request.floor));
        let is_home = request
            .as_ref()
            .is_some_and(|request| deciding(&self.assignment, self.groups, request) == group);
        if let Some(request) = &request {
            self.assignment = self.assignment.after(order, request);
        }
        Some(Executed {
            order,
            group,
            time_us,
            digest,
            request,
            has_effect: is_new && is_home,
            is_refused: is_new && !is_home,
        })
    }

    /// What it asks for when nothing has moved since the last tick.
    pub fn tick(&mut self) -> Option<Wanted> {
        self.ticks += 1;
        let is_stuck = self.mark == self.executed;
        self.mark = self.executed;
        if !is_stuck || (self.pending.is_empty() && !self.ticks.is_multiple_of(8)) {
            return None;
        }
        let next = self.executed.next();
        let decided = self.pending.get(&next).and_then(|pending| pending.decided);
        Some(match decided {
            Some((_, _, digest)) if self.ticks.is_multiple_of(2) => Wanted::Body(next, digest),
            _ => Wanted::From(next),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(order: u64, digest: u8) -> CommitDb {
        CommitDb {
            group: GroupId(0),
            entries: vec![CommitDbEntry {
                order: Order(order),
                time_us: order,
                digest: [digest; 32],
                request: None,
            }],
        }
    }

    #[test]
    fn a_voter_needs_a_quorum_for_the_next_order_and_keeps_what_was_flushed() {
        let mut voter = Voter::new(2, (1, 1));
        voter.count(MachineId(1), &message(2, 0));
        voter.count(MachineId(2), &message(2, 0));
        assert!(voter.execute().is_none(), "order 1 comes first");
        voter.count(MachineId(1), &message(1, 0));
        voter.count(MachineId(1), &message(1, 0));
        voter.count(MachineId(3), &message(1, 7));
        assert!(
            voter.execute().is_none(),
            "one machine said it twice, another one something else"
        );
        voter.count(MachineId(2), &message(1, 0));
        assert_eq!(voter.execute().map(|executed| executed.order), Some(Order(1)));
        voter.flush();
        assert_eq!(voter.execute().map(|executed| executed.order), Some(Order(2)));
        voter.crash();
        assert_eq!(voter.executed(), Order(1));
    }
}
