//! Clients: correct ones send each request again until it has ended; Byzantine ones sign whatever they like.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::assignment::AssignmentChange;
use ordering::directory::Directory;
use ordering::identifiers::{ClientId, Digest, MachineId, Order};
use ordering::message::{REQUEST_WINDOW, Request};
use ordering::verified::Verified;
use rand::{Rng, RngExt};

/// How long a client waits before it sends a request again, in microseconds.
pub const RESEND_US: u64 = 200_000;

/// A request that has not ended.
pub struct Outstanding {
    /// The request.
    pub verified: Verified<Arc<Request>>,
    /// When it is sent (again), virtual.
    pub next_us: u64,
    /// Voters that have answered, by what they say.
    answers: BTreeMap<Order, BTreeSet<MachineId>>,
}

/// A client that keeps the rules.
pub struct Client {
    id: ClientId,
    key: SigningKey,
    next: u64,
    outstanding: BTreeMap<u64, Outstanding>,
}

impl Client {
    /// A client with its key.
    pub fn new(id: ClientId, key: SigningKey) -> Self {
        Client {
            id,
            key,
            next: 0,
            outstanding: BTreeMap::new(),
        }
    }

    /// Signs a request of a scenario, which keeps it.
    pub(crate) fn sign(&self, number: u64, home: u64, operation: Bytes) -> Request {
        let mut request = Request {
            client: self.id,
            number,
            floor: number.saturating_sub(REQUEST_WINDOW / 2),
            home,
            operation,
            signature: [0; 64],
        };
        request.signature = self.key.sign(&request.digest()).to_bytes();
        request
    }

    /// Signs the next request.
    pub fn submit(
        &mut self,
        directory: &Directory,
        now_us: u64,
        bytes_max: usize,
        rng: &mut impl Rng,
    ) -> &Verified<Arc<Request>> {
        let number = self.next;
        self.next += 1;
        let floor = self.outstanding.first_key_value().map_or(number, |(first, _)| *first);
        let request = signed(&self.key, self.id, number, floor, body(bytes_max, rng), rng);
        let verified = directory
            .verify_request(request)
            .expect("a correct client signs correctly");
        let outstanding = Outstanding {
            verified,
            next_us: now_us,
            answers: BTreeMap::new(),
        };
        &self.outstanding.entry(number).or_insert(outstanding).verified
    }

    /// Requests that are due to be sent.
    pub fn due(&mut self, now_us: u64) -> Vec<Verified<Arc<Request>>> {
        let due = self
            .outstanding
            .values_mut()
            .filter(|outstanding| outstanding.next_us <= now_us);
        due.map(|outstanding| {
            outstanding.next_us = now_us + RESEND_US;
            outstanding.verified.clone()
        })
        .collect()
    }

    /// A voter answers a request; `quorum` equal answers end it.
    pub fn answered(&mut self, number: u64, digest: &Digest, machine: MachineId, order: Order, quorum: usize) {
        let Some(outstanding) = self.outstanding.get_mut(&number) else {
            return;
        };
        if outstanding.verified.digest() != digest {
            return;
        }
        let voters = outstanding.answers.entry(order).or_default();
        voters.insert(machine);
        if voters.len() >= quorum {
            self.outstanding.remove(&number);
        }
    }

    /// A voter's database was repaired up to an order: it has what it did not execute itself. (A real proxy would not
    /// get its result there, and give the request up.)
    pub fn repaired(&mut self, machine: MachineId, up_to: Order, quorum: usize) {
        self.outstanding.retain(|_, outstanding| {
            let answers = outstanding.answers.iter_mut();
            answers.filter(|(order, _)| **order <= up_to).all(|(_, voters)| {
                voters.insert(machine);
                voters.len() < quorum
            })
        });
    }

    /// Requests that have not ended.
    pub fn unended(&self) -> impl Iterator<Item = (ClientId, u64)> + '_ {
        self.outstanding.keys().map(|number| (self.id, *number))
    }
}

/// Has the number of groups changed.
pub struct Administrator {
    key: SigningKey,
    next: u64,
    /// What was asked for: the machines that get it, as bits, and when it is sent (again), virtual.
    pub(crate) asked: Vec<(u64, u64, Verified<Arc<Request>>)>,
}

impl Administrator {
    /// An administrator with their key.
    pub fn new(key: SigningKey) -> Self {
        Administrator {
            key,
            next: 1,
            asked: Vec::new(),
        }
    }

    /// Signs a change.
    pub fn ask(&mut self, change: AssignmentChange) -> Request {
        self.next += 1;
        change.request(self.next, &self.key)
    }

    /// What is due to be sent, when this version is there.
    pub fn due(&mut self, now_us: u64, version: u64) -> Vec<(u64, Verified<Arc<Request>>)> {
        let mut due = Vec::new();
        for (audience, next_us, verified) in &mut self.asked {
            if *next_us > now_us {
                continue;
            }
            let is_wanted = AssignmentChange::of(verified.message()).is_some_and(|change| change.version > version);
            *next_us = if is_wanted { now_us + RESEND_US } else { u64::MAX };
            due.push((*audience, verified.clone()));
        }
        due
    }
}

/// A client that does not.
pub struct ByzantineClient {
    id: ClientId,
    key: SigningKey,
    next: u64,
}

impl ByzantineClient {
    /// A client with its key.
    pub fn new(id: ClientId, key: SigningKey) -> Self {
        ByzantineClient { id, key, next: 0 }
    }

    /// Signs one or more requests that break the rules, each for the machines whose bit is set.
    pub fn mischief(&mut self, bytes_max: usize, rng: &mut impl Rng) -> Vec<(u64, Request)> {
        let number = self.next;
        self.next += 1;
        let everybody = u64::MAX;
        let some: u64 = rng.random();
        let mut sign = |number: u64, floor: u64| signed(&self.key, self.id, number, floor, body(bytes_max, rng), rng);
        match some % 6 {
            // Different bodies under one number.
            0 => vec![(some, sign(number, number)), (!some, sign(number, number))],
            // Both bodies to all.
            1 => vec![(everybody, sign(number, 0)), (everybody, sign(number, 0))],
            // An old number again.
            2 => vec![(everybody, sign(number / 2, 0))],
            // A number outside the window, and the highest one.
            3 => vec![
                (everybody, sign(number + REQUEST_WINDOW + 5, 0)),
                (everybody, sign(u64::MAX, 0)),
            ],
            // To some machines only.
            4 => vec![(some, sign(number, 0))],
            // Signed by nobody.
            _ => {
                let mut request = sign(number, 0);
                request.signature[7] ^= 1;
                vec![(everybody, request)]
            }
        }
    }
}

fn body(bytes_max: usize, rng: &mut impl Rng) -> Bytes {
    let mut operation = vec![0; rng.random_range(1..=bytes_max)];
    rng.fill_bytes(&mut operation);
    Bytes::from(operation)
}

fn signed(
    key: &SigningKey,
    client: ClientId,
    number: u64,
    floor: u64,
    operation: Bytes,
    rng: &mut impl Rng,
) -> Request {
    let mut request = Request {
        client,
        number,
        floor,
        home: rng.random_range(0..1000),
        operation,
        signature: [0; 64],
    };
    request.signature = key.sign(&request.digest()).to_bytes();
    request
}
