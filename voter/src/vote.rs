//! Counts COMMIT-DBs (`docs/protocol.md#a-request`): an order is decided when f+1 machines sent the same time and
//! digest for one group, or when the replica of the voter's own machine says so, which has seen a quorum of certified
//! COMMITs itself. Pure.
//!
//! Orders leave without gaps. A bounded window of later orders waits; what lies beyond is dropped and fetched again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ordering::identifiers::{Digest, GroupId, MachineId, Order};
use ordering::message::{CommitDbEntry, Request};

/// How many orders after the next one are counted.
pub const WINDOW_ORDERS: u64 = 65_536;

/// How many bytes of bodies that are not yet decided one machine may make the voter keep.
pub const UNDECIDED_BODY_BYTES_MAX: usize = 64 << 20;

/// The digest of an order that recovery filled with nothing.
pub const NO_OPERATION: Digest = [0; 32];

/// An order with what the replicas decided for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The order.
    pub order: Order,
    /// The primary's time in microseconds.
    pub time_us: u64,
    /// The group that decided.
    pub group: GroupId,
    /// The request; `None` for a no-op.
    pub request: Option<Arc<Request>>,
}

/// What became of one COMMIT-DB entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It counts.
    Match,
    /// The order was decided before; nothing new.
    Late,
    /// It contradicts what was decided, or what the same machine said before.
    Mismatch,
    /// Its body does not have its digest, or the sender or the group does not exist.
    Invalid,
    /// It lies beyond the window.
    Beyond,
}

impl Counted {
    /// The label in `cloudbft_votes_total`.
    pub fn label(self) -> &'static str {
        match self {
            Counted::Match => "match",
            Counted::Late => "late",
            Counted::Mismatch => "mismatch",
            Counted::Invalid => "error",
            Counted::Beyond => "beyond",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vote {
    machine: MachineId,
    group: GroupId,
    time_us: u64,
    digest: Digest,
}

#[derive(Debug)]
struct Body {
    machine: MachineId,
    digest: Digest,
    request: Arc<Request>,
}

#[derive(Debug, Default)]
struct Pending {
    /// Invariant: at most one for each (machine, group).
    votes: Vec<Vote>,
    /// Invariant: at most one for each machine, and once decided only the decided one.
    bodies: Vec<Body>,
    decided: Option<Vote>,
}

/// Counts votes and hands out decided orders one after the other.
#[derive(Debug)]
pub struct VoteCounter {
    faults: usize,
    groups: u16,
    replicas: Range<u8>,
    /// The voter's own machine.
    own: Option<MachineId>,
    next: u64,
    highest_seen: u64,
    pending: BTreeMap<u64, Pending>,
    undecided_body_bytes: BTreeMap<MachineId, usize>,
}

impl VoteCounter {
    /// A counter that starts at `next`, for `faults` = f, a number of groups, and replicas on m1..m(2f+1).
    pub fn new(faults: usize, groups: u16, next: Order) -> Self {
        Self {
            faults,
            groups: groups.max(1),
            replicas: 1..u8::try_from(2 * faults + 2).unwrap_or(u8::MAX),
            own: None,
            next: next.0,
            highest_seen: 0,
            pending: BTreeMap::new(),
            undecided_body_bytes: BTreeMap::new(),
        }
    }

    /// Counts the votes of these machines: those that hold replicas.
    #[must_use]
    pub fn of_replicas(mut self, replicas: Range<u8>) -> Self {
        self.replicas = replicas;
        self
    }

    /// Believes the replica of this machine, the voter's own: either both are correct or neither is.
    #[must_use]
    pub fn beside_replica(mut self, own: MachineId) -> Self {
        self.own = Some(own);
        self
    }

    /// The next order that will be handed out.
    pub fn next_order(&self) -> Order {
        Order(self.next)
    }

    /// Whether [`VoteCounter::take_next`] would hand something out.
    pub fn has_next(&self) -> bool {
        let decided = |pending: &Pending| {
            pending
                .decided
                .map(|vote| vote.digest == NO_OPERATION || !pending.bodies.is_empty())
        };
        self.pending.get(&self.next).and_then(decided).unwrap_or(false)
    }

    /// The highest order that is known to be decided.
    pub fn highest_decided(&self) -> Order {
        Order(self.highest_seen)
    }

    /// Counts one entry of a COMMIT-DB from a machine.
    pub fn count(&mut self, from: MachineId, group: GroupId, entry: CommitDbEntry) -> Counted {
        if !self.replicas.contains(&from.0) || group.0 >= self.groups {
            return Counted::Invalid;
        }
        if entry.order.0 < self.next {
            return Counted::Late;
        }
        if entry.order.0 - self.next >= WINDOW_ORDERS {
            return Counted::Beyond;
        }
        let vote = Vote {
            machine: from,
            group,
            time_us: entry.time_us,
            digest: entry.digest,
        };
        let counted = self.count_vote(entry.order.0, vote);
        match entry.request {
            Some(request) if counted != Counted::Mismatch => {
                if self.keep_body(entry.order.0, from, entry.digest, request) {
                    counted
                } else {
                    Counted::Invalid
                }
            }
            _ => counted,
        }
    }

    fn count_vote(&mut self, order: u64, vote: Vote) -> Counted {
        let needed = self.faults + 1;
        let pending = self.pending.entry(order).or_default();
        if let Some(decided) = pending.decided {
            let same = (decided.group, decided.time_us, decided.digest) == (vote.group, vote.time_us, vote.digest);
            return if same { Counted::Late } else { Counted::Mismatch };
        }
        let earlier = pending
            .votes
            .iter()
            .find(|other| (other.machine, other.group) == (vote.machine, vote.group));
        if let Some(earlier) = earlier {
            return if *earlier == vote {
                Counted::Late
            } else {
                Counted::Mismatch
            };
        }
        pending.votes.push(vote);
        let same =
            |other: &&Vote| (other.group, other.time_us, other.digest) == (vote.group, vote.time_us, vote.digest);
        if self.own == Some(vote.machine) || pending.votes.iter().filter(same).count() >= needed {
            self.decide(order, vote);
        }
        Counted::Match
    }

    fn decide(&mut self, order: u64, vote: Vote) {
        let Some(pending) = self.pending.get_mut(&order) else {
            return;
        };
        pending.decided = Some(vote);
        pending.votes = Vec::new();
        let mut kept = false;
        let budget = &mut self.undecided_body_bytes;
        pending.bodies.retain(|body| {
            let bytes = budget.entry(body.machine).or_default();
            *bytes = bytes.saturating_sub(body.request.operation.len());
            let keep = !kept && body.digest == vote.digest;
            kept |= keep;
            keep
        });
        self.highest_seen = self.highest_seen.max(order);
    }

    /// Keeps a body; false when it does not have the digest it claims.
    fn keep_body(&mut self, order: u64, from: MachineId, digest: Digest, request: Arc<Request>) -> bool {
        let Some(pending) = self.pending.get_mut(&order) else {
            return true;
        };
        let wanted = match pending.decided {
            Some(decided) => decided.digest == digest && pending.bodies.is_empty(),
            None => pending
                .bodies
                .iter()
                .all(|body| body.machine != from && body.digest != digest),
        };
        if !wanted {
            return true;
        }
        if request.digest() != digest {
            return false;
        }
        if pending.decided.is_none() {
            let bytes = self.undecided_body_bytes.entry(from).or_default();
            if *bytes + request.operation.len() > UNDECIDED_BODY_BYTES_MAX {
                return true;
            }
            *bytes += request.operation.len();
        }
        pending.bodies.push(Body {
            machine: from,
            digest,
            request,
        });
        true
    }

    /// Hands out the next order if it is decided and its body is here.
    pub fn take_next(&mut self) -> Option<Decided> {
        let pending = self.pending.get(&self.next)?;
        let decided = pending.decided?;
        if decided.digest != NO_OPERATION && pending.bodies.is_empty() {
            return None;
        }
        let pending = self.pending.remove(&self.next)?;
        let order = Order(self.next);
        self.next += 1;
        Some(Decided {
            order,
            time_us: decided.time_us,
            group: decided.group,
            request: pending.bodies.into_iter().next().map(|body| body.request),
        })
    }

    /// Decided orders, among the next `count`, whose bodies are missing.
    pub fn missing_bodies(&self, count: u64) -> Vec<(Order, Digest)> {
        let near = self.pending.range(self.next..self.next.saturating_add(count));
        near.filter(|(_, pending)| pending.bodies.is_empty())
            .filter_map(|(order, pending)| pending.decided.map(|decided| (Order(*order), decided.digest)))
            .filter(|(_, digest)| *digest != NO_OPERATION)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ordering::identifiers::ClientId;

    fn request(number: u64) -> Request {
        Request {
            client: ClientId(1),
            number,
            floor: 0,
            home: 0,
            operation: Bytes::from_static(b"operation"),
            signature: [0; 64],
        }
    }

    fn entry(order: u64, request: &Request, body: bool) -> CommitDbEntry {
        CommitDbEntry {
            order: Order(order),
            time_us: order * 10,
            digest: request.digest(),
            request: body.then(|| Arc::new(request.clone())),
        }
    }

    #[test]
    fn two_machines_decide_when_one_may_lie() {
        let mut votes = VoteCounter::new(1, 1, Order(1));
        assert_eq!(
            votes.count(MachineId(1), GroupId(0), entry(1, &request(1), true)),
            Counted::Match
        );
        assert!(votes.take_next().is_none());
        assert_eq!(
            votes.count(MachineId(1), GroupId(0), entry(1, &request(1), true)),
            Counted::Late
        );
        assert!(votes.take_next().is_none(), "one machine counts once");
        assert_eq!(
            votes.count(MachineId(3), GroupId(0), entry(1, &request(1), false)),
            Counted::Match
        );
        assert_eq!(
            votes.take_next().and_then(|decided| decided.request),
            Some(Arc::new(request(1)))
        );
    }

    #[test]
    fn the_replica_beside_the_voter_decides_alone_and_no_other_does() {
        let mut votes = VoteCounter::new(1, 1, Order(1)).beside_replica(MachineId(2));
        votes.count(MachineId(1), GroupId(0), entry(1, &request(1), true));
        assert!(votes.take_next().is_none());
        votes.count(MachineId(2), GroupId(0), entry(1, &request(2), true));
        let decided = votes.take_next().and_then(|decided| decided.request);
        assert_eq!(decided, Some(Arc::new(request(2))));
        votes.count(MachineId(2), GroupId(0), entry(2, &request(2), true));
        let contradiction = votes.count(MachineId(3), GroupId(0), entry(2, &request(1), true));
        assert_eq!(contradiction, Counted::Mismatch);
    }

    #[test]
    fn different_times_or_groups_do_not_add_up() {
        let mut votes = VoteCounter::new(1, 2, Order(1));
        votes.count(MachineId(1), GroupId(0), entry(1, &request(1), true));
        let mut later = entry(1, &request(1), true);
        later.time_us += 1;
        votes.count(MachineId(2), GroupId(0), later);
        votes.count(MachineId(3), GroupId(1), entry(1, &request(1), true));
        assert!(votes.take_next().is_none());
    }

    #[test]
    fn orders_leave_without_gaps_and_missing_bodies_are_named() {
        let mut votes = VoteCounter::new(1, 1, Order(1));
        for machine in [1, 2] {
            votes.count(MachineId(machine), GroupId(0), entry(2, &request(2), true));
            votes.count(MachineId(machine), GroupId(0), entry(1, &request(1), false));
        }
        assert!(votes.take_next().is_none());
        assert_eq!(votes.missing_bodies(16), vec![(Order(1), request(1).digest())]);
        votes.count(MachineId(3), GroupId(0), entry(1, &request(1), true));
        assert_eq!(votes.take_next().map(|decided| decided.order), Some(Order(1)));
        assert_eq!(votes.take_next().map(|decided| decided.order), Some(Order(2)));
    }

    #[test]
    fn a_body_with_another_digest_is_rejected() {
        let mut votes = VoteCounter::new(1, 1, Order(1));
        let mut forged = entry(1, &request(1), false);
        forged.request = Some(Arc::new(request(2)));
        assert_eq!(votes.count(MachineId(1), GroupId(0), forged), Counted::Invalid);
        votes.count(MachineId(2), GroupId(0), entry(1, &request(1), true));
        assert_eq!(
            votes.take_next().and_then(|decided| decided.request),
            Some(Arc::new(request(1)))
        );
    }

    #[test]
    fn an_order_beyond_the_window_is_dropped() {
        let mut votes = VoteCounter::new(1, 1, Order(1));
        let beyond = entry(1 + WINDOW_ORDERS, &request(1), true);
        assert_eq!(votes.count(MachineId(1), GroupId(0), beyond), Counted::Beyond);
        assert!(votes.pending.is_empty());
    }

    #[test]
    fn undecided_bodies_of_one_machine_are_bounded() {
        let mut votes = VoteCounter::new(1, 1, Order(1));
        let mut large = request(1);
        large.operation = Bytes::from(vec![0; 16 << 20]);
        for order in 1..=8 {
            votes.count(MachineId(3), GroupId(0), entry(order, &large, true));
        }
        let kept: usize = votes.pending.values().map(|pending| pending.bodies.len()).sum();
        assert_eq!(kept, 4);
    }
}
