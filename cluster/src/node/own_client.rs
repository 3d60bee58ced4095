//! The machine's own client: what its voter wants ordered is numbered, signed, and sent until it is ordered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::identifiers::{ClientId, Digest, MachineId, node_client};
use ordering::message::{CommitDb, Request};

/// The first retransmission comes after this; each further one after twice the time.
const RETRANSMIT_FIRST: Duration = Duration::from_millis(700);
/// Retransmissions are at most this far apart.
const RETRANSMIT_MAX: Duration = Duration::from_secs(8);

/// The digest of the request that this machine waits to see decided. The owner task clears it.
#[derive(Clone, Default)]
pub(super) struct Undecided(Arc<Mutex<Option<Digest>>>);

impl Undecided {
    fn lock(&self) -> MutexGuard<'_, Option<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a decision.
    pub(super) fn decided(&self, message: &CommitDb) {
        let mut wanted = self.lock();
        if wanted.is_some_and(|wanted| message.entries.iter().any(|entry| entry.digest == wanted)) {
            *wanted = None;
        }
    }
}

struct Outgoing {
    request: Request,
    send_at: Instant,
    pause: Duration,
}

/// The client of one machine. One request is outstanding at most: a new one takes the place of the one before, which may
/// still be ordered, but is not sent any more.
///
/// A request is sent until this machine sees it decided, however long the cluster stands still: replicas ignore one that
/// they have decided, so a decision that passed this machine by (it fetched its history from the others) costs no more than
/// a small message every [`RETRANSMIT_MAX`].
pub(super) struct OwnClient {
    id: ClientId,
    key: SigningKey,
    /// Invariant: higher than every number that this client has ever used.
    next: u64,
    outgoing: Option<Outgoing>,
    undecided: Undecided,
}

impl OwnClient {
    /// The client of a machine. `incarnation` is higher than at any earlier start.
    pub(super) fn new(machine: MachineId, key: SigningKey, incarnation: u32, undecided: Undecided) -> Self {
        Self {
            id: node_client(machine),
            key,
            next: u64::from(incarnation) << 32 | 1,
            outgoing: None,
            undecided,
        }
    }

    /// Makes the request that has an operation ordered; it takes the place of the one before, and is due at once.
    pub(super) fn order(&mut self, operation: Bytes, home: u64, now: Instant) {
        let mut request = Request {
            client: self.id,
            number: self.next,
            floor: self.next,
            home,
            operation,
            signature: [0; 64],
        };
        self.next += 1;
        let digest = request.digest();
        request.signature = self.key.sign(&digest).to_bytes();
        *self.undecided.lock() = Some(digest);
        self.outgoing = Some(Outgoing {
            request,
            send_at: now,
            pause: RETRANSMIT_FIRST,
        });
    }

    /// When [`OwnClient::due`] is to be called; none: when something new is ordered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outgoing.as_ref().map(|outgoing| outgoing.send_at)
    }

    /// The request that is to be sent now: once after [`OwnClient::order`], and again until it is decided.
    pub(super) fn due(&mut self, now: Instant) -> Option<Request> {
        if self.undecided.lock().is_none() {
            self.outgoing = None;
        }
        let outgoing = self.outgoing.as_mut().filter(|outgoing| outgoing.send_at <= now)?;
        outgoing.send_at = now + outgoing.pause;
        outgoing.pause = (outgoing.pause * 2).min(RETRANSMIT_MAX);
        Some(outgoing.request.clone())
    }
}

#[cfg(test)]
mod tests {
    use ordering::identifiers::{GroupId, Order};
    use ordering::message::CommitDbEntry;

    use super::*;

    fn client(undecided: &Undecided) -> OwnClient {
        let key = SigningKey::from_bytes(&[7; 32]);
        OwnClient::new(MachineId(2), key, 5, undecided.clone())
    }

    fn decision(request: &Request) -> CommitDb {
        let entry = CommitDbEntry {
            order: Order(1),
            time_us: 1,
            digest: request.digest(),
            request: None,
        };
        CommitDb {
            group: GroupId(0),
            entries: vec![entry],
        }
    }

    /// The numbers of the requests that are sent within a time, and after how many milliseconds.
    fn sent(client: &mut OwnClient, start: Instant, within: Duration) -> Vec<(u64, u128)> {
        let mut sent = Vec::new();
        while let Some(at) = client.deadline().filter(|at| *at <= start + within) {
            if let Some(request) = client.due(at) {
                sent.push((request.number, at.duration_since(start).as_millis()));
            }
        }
        sent
    }

    #[test]
    fn a_request_is_sent_until_it_is_decided() {
        let (undecided, start) = (Undecided::default(), Instant::now());
        let mut client = client(&undecided);
        client.order(Bytes::from_static(b"nothing"), 9, start);
        let request = client.due(start).unwrap();
        assert_eq!(request.client, node_client(MachineId(2)));
        assert_eq!(request.floor, request.number);
        assert_eq!(client.due(start), None);
        let repeated = sent(&mut client, start, Duration::from_secs(40));
        let times: Vec<_> = repeated.iter().map(|(_, after)| *after).collect();
        assert!(repeated.iter().all(|(number, _)| *number == request.number));
        assert_eq!(times, [700, 2_100, 4_900, 10_500, 18_500, 26_500, 34_500]);
        undecided.decided(&decision(&request));
        assert_eq!(sent(&mut client, start, Duration::from_secs(3600)), []);
        assert_eq!(client.deadline(), None);
    }

    #[test]
    fn a_new_request_takes_the_place_of_the_one_before() {
        let (undecided, start) = (Undecided::default(), Instant::now());
        let mut client = client(&undecided);
        client.order(Bytes::from_static(b"one"), 9, start);
        let first = client.due(start).unwrap();
        client.order(Bytes::from_static(b"two"), 9, start);
        let second = client.due(start).unwrap();
        assert!(second.number > first.number && second.floor > first.number);
        // The first one is decided late: the second one is still wanted.
        undecided.decided(&decision(&first));
        let repeated = sent(&mut client, start, Duration::from_secs(1));
        assert_eq!(repeated, [(second.number, 700)]);
    }
}
