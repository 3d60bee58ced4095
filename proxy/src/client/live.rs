//! The voters that run an open transaction's statements as they come, and what makes another voter one of them.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use ordering::identifiers::Digest;
use ordering::message::{CHAIN_START, ClientMessage, Direct, DirectKind, DirectTransaction, chain};
use sql::operation::TransactionId;

use super::gathering::AtWork;
use super::{Client, Failure, Preference, Voted, VotedResult};
use crate::port::{Destination, MachineSet, ToNode};

/// How far a transaction has come: what is listed, counted and chained.
#[derive(Clone, Copy, Debug)]
struct Place {
    count: u32,
    chain: Digest,
}

/// How many voters run a transaction's statements as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lockstep {
    /// One, whose answers the application sees: f+1 voters certify them at COMMIT (`cloudbft.answers = at_commit`).
    One,
    /// f+1, in turns: every answer is f+1 voters' before the application sees it.
    Enough,
    /// All.
    All,
}

/// The live voters of one open transaction.
///
/// Invariant: `machines` only grows; every machine in it was named live by Begin, or was sent all of `direct_writes`.
#[derive(Debug)]
pub(crate) struct Live {
    transaction: TransactionId,
    /// The encoded context of Begin.
    context: Bytes,
    /// Those that Begin named live: one of them sends the whole result of a Begin or an Extend, in turns.
    named: MachineSet,
    machines: MachineSet,
    preference: Preference,
    place: Place,
    /// The direct writes that are listed, each with its place: what a voter that joins is sent.
    direct_writes: Vec<(Place, Bytes)>,
    /// Equal answers that a statement needs.
    needed: usize,
    /// The chain over the digests of what the listed exchanges answered, as the application saw it.
    answers: Digest,
    /// The request that ordered the statement which is on its way; 0 when there is none.
    request: u64,
    _at_work: Option<AtWork>,
}

impl Live {
    /// A transaction that has listed nothing yet.
    pub(super) fn new(transaction: TransactionId, context: Bytes, machines: MachineSet, needed: usize) -> Self {
        Self {
            transaction,
            context,
            named: machines,
            machines,
            preference: Preference::default(),
            place: Place {
                count: 0,
                chain: CHAIN_START,
            },
            direct_writes: Vec::new(),
            needed,
            answers: CHAIN_START,
            request: 0,
            _at_work: None,
        }
    }

    /// The encoded context.
    pub(super) fn context(&self) -> Bytes {
        self.context.clone()
    }

    /// The live voters.
    pub(crate) fn machines(&self) -> MachineSet {
        self.machines
    }

    /// Those that Begin named live.
    pub(super) fn named(&self) -> MachineSet {
        self.named
    }

    /// Which of them to ask first.
    pub(super) fn preference(&self) -> Preference {
        self.preference
    }

    /// An ordered exchange of the transaction ran: Begin's or an Extend's.
    pub(crate) fn listed(&mut self, exchange: &[u8]) {
        self.request = 0;
        self.place = Place {
            count: self.place.count.saturating_add(1),
            chain: chain(&self.place.chain, exchange),
        };
    }

    /// A direct write ran.
    pub(crate) fn wrote_directly(&mut self, exchange: Bytes) {
        let before = self.place;
        self.listed(&exchange);
        self.direct_writes.push((before, exchange));
    }

    /// What a listed exchange answered.
    pub(crate) fn answered(&mut self, result: &VotedResult) {
        // A malformed result has no digest, and is never agreed on.
        let multiset = result.multiset().unwrap_or(CHAIN_START);
        self.answers = chain(&self.answers, &multiset);
    }

    /// The chain that words must have over the answers, if the application saw answers that nobody has certified.
    pub(super) fn uncertified(&self, enough: usize) -> Option<Digest> {
        (self.needed < enough).then_some(self.answers)
    }

    /// Equal answers that a statement needs.
    pub(super) fn needed(&self) -> usize {
        self.needed
    }

    /// Exchanges that are listed.
    pub(crate) fn count(&self) -> u32 {
        self.place.count
    }

    /// The chain over them.
    pub(super) fn chain(&self) -> Digest {
        self.place.chain
    }

    /// Notes who answered a statement, and who could not.
    pub(super) fn note(&mut self, voted: &Voted) {
        self.request = 0;
        self.preference.prompt = voted.prompt;
        self.preference.stale = self.preference.stale.union(voted.unavailable);
    }

    /// The request that orders the next statement.
    pub(super) fn ordered_by(&mut self, request: u64) {
        self.request = request;
    }

    /// The place of the next direct message.
    pub(super) fn next(&self, kind: DirectKind) -> DirectTransaction {
        self.at(self.place, kind)
    }

    fn at(&self, place: Place, kind: DirectKind) -> DirectTransaction {
        DirectTransaction {
            session: self.transaction.session,
            number: self.transaction.number,
            writes_before: place.count,
            chain: place.chain,
            kind,
        }
    }
}

impl Client {
    /// A transaction's live voters.
    pub(crate) fn live(&self, transaction: TransactionId, context: Bytes, lockstep: Lockstep) -> Live {
        let enough = self.faults + 1;
        let (count, needed) = match lockstep {
            Lockstep::One => (1, 1),
            Lockstep::Enough => (enough, enough),
            Lockstep::All => (self.voters.len(), enough),
        };
        Live {
            _at_work: Some(self.gathering.begin()),
            ..Live::new(transaction, context, self.health.pick_live(count), needed)
        }
    }

    /// Sends the other voters all that they lack of the transaction, so that they are live from now on; gives them. What is
    /// sent next may go to them too.
    pub(super) async fn join(&self, live: &mut Live) -> Result<MachineSet, Failure> {
        let others = self.voter_set.without(live.machines);
        self.join_machines(live, others).await?;
        Ok(others)
    }

    /// The same until f+1 are live.
    pub(super) async fn join_enough(&self, live: &mut Live) -> Result<(), Failure> {
        let missing = (self.faults + 1).saturating_sub(live.machines.len());
        let others = self.voter_set.without(live.machines);
        let picked = self.health.pick(missing, live.preference, others);
        self.join_machines(live, picked.into_iter().collect()).await
    }

    async fn join_machines(&self, live: &mut Live, others: MachineSet) -> Result<(), Failure> {
        if others.is_empty() {
            return Ok(());
        }
        metrics::counter!("cloudbft_joins_total").increment(1);
        for (place, exchange) in &live.direct_writes {
            let place = live.at(*place, DirectKind::Replay);
            self.tell(live, place, exchange.clone(), others).await?;
        }
        live.machines = live.machines.union(others);
        Ok(())
    }

    /// Has voters run the ordered statement that is on its way as soon as its locks are granted.
    pub(super) async fn join_ordered(&self, live: &Live, machines: MachineSet) -> Result<(), Failure> {
        self.tell(live, live.next(DirectKind::Join), Bytes::new(), machines)
            .await
    }

    /// Has all voters stop the statement that is on its way: it is not listed.
    pub(crate) async fn cancel(&self, live: &mut Live) {
        let request = std::mem::take(&mut live.request);
        let place = live.next(DirectKind::Cancel { request });
        // Fails when the proxy ends, and with it every transaction.
        if let Err(failure) = self.tell(live, place, Bytes::new(), self.voter_set).await {
            tracing::debug!(?failure, "a cancellation could not be sent");
        }
    }

    /// Sends a direct message whose answer nobody waits for.
    async fn tell(
        &self,
        live: &Live,
        place: DirectTransaction,
        exchange: Bytes,
        machines: MachineSet,
    ) -> Result<(), Failure> {
        let direct = Direct {
            number: self.next_direct.fetch_add(1, Ordering::Relaxed),
            whole: false,
            context: live.context.clone(),
            transaction: Some(place),
            not_before: ordering::identifiers::Order(0),
            exchange,
        };
        let message = ToNode::Client(ClientMessage::Direct(direct));
        self.send(Destination::Machines(machines), message).await
    }
}

#[cfg(test)]
mod tests {
    use ordering::identifiers::MachineId;

    use super::*;

    #[test]
    fn each_direct_write_keeps_the_place_that_it_had() {
        let id = TransactionId {
            client: 0,
            session: 1,
            number: 1,
        };
        let mut live = Live::new(id, Bytes::new(), MachineSet::one(MachineId(1)), 1);
        live.listed(b"begin");
        live.wrote_directly(Bytes::from_static(b"one"));
        live.listed(b"extend");
        live.wrote_directly(Bytes::from_static(b"two"));
        let exchanges = [&b"begin"[..], b"one", b"extend", b"two"];
        let mut link = CHAIN_START;
        let chains = exchanges.map(|exchange| {
            link = chain(&link, exchange);
            link
        });
        let places: Vec<_> = live
            .direct_writes
            .iter()
            .map(|(place, _)| (place.count, place.chain))
            .collect();
        assert_eq!(places, [(1, chains[0]), (3, chains[2])]);
        assert_eq!((live.count(), live.chain()), (4, chains[3]));
    }
}
