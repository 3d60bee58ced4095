//! The configurations that are explored, and what their adversaries may send: everything of it is on its way from the
//! beginning, so it may arrive at any time, or never.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use ordering::agreement::To;
use ordering::configuration::{Configuration, Faults, PRIMARY_SLOT, group_of, replica_slot};
use ordering::directory::{Directory, MachineEntry};
use ordering::identifiers::{ClientId, GroupId, MachineId, Order, View};
use ordering::ledger::PrepareEntry;
use ordering::message::Request;
use ordering::verified::Verified;
use ordering::{minbft, pbft};
use simulator::clock::START_WALL_US;
use simulator::counter::{self, Counter, Trust};
use simulator::protocol::{MinBft, Pbft, Protocol};

use crate::histories::{Histories, Interest};
use crate::{Cluster, InFlight, State};

const FAULTS: Faults = Faults(1);

/// A small configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// How many groups there are.
    pub groups: u16,
    /// How many requests, in turn for each group; each is a batch of its own.
    pub requests: u64,
    /// How often the timers of each machine may fire.
    pub timeouts: u8,
    /// How many machines the adversary has: m0, then m1. One equivocates as primary; two are too many.
    pub liars: u8,
}

/// Kinds that decide something.
fn decides(kind: &'static str) -> bool {
    matches!(
        kind,
        "PREPARE"
            | "COMMIT"
            | "LIVE"
            | "ENDORSE"
            | "ACKNOWLEDGE-VIEW"
            | "PRE-PREPARE"
            | "REQ-VIEW-CHANGE"
            | "VIEW-CHANGE"
            | "NEW-VIEW"
    )
}

impl Scenario {
    /// MinBFT. Its counters are true, unless there are liars: theirs certify everything.
    pub fn minbft(self) -> Cluster<MinBft> {
        let histories = self.histories::<MinBft>(decides);
        let mut lies = Vec::new();
        for (to, batch) in self.audiences().map(|(to, choice)| (to, self.minbft_batch(choice))) {
            for machine in 0..self.liars {
                let lie = match machine {
                    0 => minbft::Message::Prepare(Arc::clone(&batch)),
                    _ => commit_of(machine, &batch),
                };
                lies.push((machine, to, lie));
            }
        }
        self.cluster(histories, lies)
    }

    /// PBFT.
    pub fn pbft(self) -> Cluster<Pbft> {
        let histories = self.histories::<Pbft>(decides);
        let mut lies = Vec::new();
        for (to, batch) in self.audiences().map(|(to, choice)| (to, self.pbft_batch(choice))) {
            for machine in 0..self.liars {
                let of_machine = pbft_lies(machine, &batch).into_iter();
                lies.extend(of_machine.map(|lie| (machine, to, lie)));
            }
        }
        self.cluster(histories, lies)
    }

    /// Which batch is meant for whom: one liar says everything to everybody; two know whom they tell which.
    fn audiences(self) -> impl Iterator<Item = (To, u64)> {
        let to = move |machine| match self.liars {
            2 => To::Machine(MachineId(machine)),
            _ => To::Others,
        };
        [(to(2), 0), (to(3), 1)].into_iter()
    }

    fn histories<P: Protocol>(self, interest: Interest) -> Histories<P> {
        let machines = P::machines(FAULTS);
        let keys: Vec<SigningKey> = (0..machines).map(key).collect();
        let configuration = |machine| {
            let mut configuration: Configuration = P::configuration(MachineId(machine), FAULTS, self.groups);
            configuration.batch_entries_max = 1;
            configuration
        };
        let directory = directory(&keys, self.groups);
        let requests = (0..self.requests)
            .map(|number| self.request(number, &directory))
            .collect();
        let configurations = (0..machines).map(configuration).collect();
        Histories::new(directory, keys, configurations, requests, interest)
    }

    fn cluster<P: Protocol>(self, histories: Histories<P>, lies: Vec<(u8, To, P::Message)>) -> Cluster<P> {
        let machines = P::machines(FAULTS);
        let is_liar = |machine: u8| machine < self.liars;
        let first = |machine| (!is_liar(machine)).then(|| histories.first(machine));
        let first: Vec<_> = (0..machines).map(first).collect();
        let own = first
            .iter()
            .flatten()
            .flat_map(|history| histories.get(*history).sent.clone());
        let lies = lies
            .into_iter()
            .flat_map(|(from, to, message)| histories.intern(from, to, message));
        let sent: Vec<(u8, [u8; 16])> = own.chain(lies).filter(|(to, _)| !is_liar(*to)).collect();
        let mut network: Vec<InFlight> = sent.into_iter().map(|(to, message)| InFlight { to, message }).collect();
        network.sort_unstable();
        network.dedup();
        // m0 of MinBFT holds no replica: it decides nothing.
        let mut histories_of: Vec<_> = first;
        if machines == 2 * FAULTS.0 + 2 && P::NAME == "minbft" {
            histories_of[0] = None;
        }
        Cluster {
            begin: State {
                timeouts: (0..machines)
                    .map(|machine| if is_liar(machine) { 0 } else { self.timeouts })
                    .collect(),
                histories: histories_of,
                network,
            },
            decided_expected: if self.liars > 0 { 1 } else { self.requests },
            histories,
        }
    }

    fn request(self, number: u64, directory: &Directory) -> Verified<Arc<Request>> {
        let mut request = Request {
            client: ClientId(0),
            number,
            floor: 0,
            home: number % u64::from(self.groups),
            operation: Bytes::from_static(b"operation"),
            signature: [0; 64],
        };
        request.signature = client_key().sign(&request.digest()).to_bytes();
        directory.verify_request(request).expect("the client signs rightly")
    }

    /// The same first order for one request or the other.
    fn entry(self, choice: u64, directory: &Directory) -> PrepareEntry {
        let request = self.request(choice % self.requests, directory);
        PrepareEntry {
            group: group_of(request.message().home, self.groups),
            digest: *request.digest(),
        }
    }

    fn minbft_batch(self, choice: u64) -> Arc<minbft::Prepare> {
        let keys: Vec<SigningKey> = (0..MinBft::machines(FAULTS)).map(key).collect();
        let entries = vec![self.entry(choice, &directory(&keys, self.groups))];
        let (view, first, time_us) = (View(0), Order(1), START_WALL_US + 1 + choice);
        let digest = minbft::Prepare::digest(view, first, time_us, &entries);
        let warrant = Counter::new(0, 1, Trust::Broken).create(PRIMARY_SLOT, &digest);
        Arc::new(minbft::Prepare {
            view,
            first,
            time_us,
            entries,
            warrant,
        })
    }

    fn pbft_batch(self, choice: u64) -> pbft::Batch {
        let keys: Vec<SigningKey> = (0..Pbft::machines(FAULTS)).map(key).collect();
        pbft::Batch {
            number: 1,
            first: Order(1),
            time_us: START_WALL_US + 1 + choice,
            entries: vec![self.entry(choice, &directory(&keys, self.groups))],
        }
    }
}

/// A proposal of m0, and the votes of any liar, for this batch.
fn pbft_lies(machine: u8, batch: &pbft::Batch) -> Vec<pbft::Message> {
    let (view, digest, number) = (View(0), batch.digest(), batch.number);
    let sign = |signed: &[u8; 32]| key(machine).sign(signed).to_bytes();
    let mut lies = vec![
        pbft::Message::Prepare(pbft::Prepare {
            view,
            number,
            digest,
            signature: sign(&pbft::Prepare::signed(view, number, &digest)),
        }),
        pbft::Message::Commit(pbft::Commit { view, number, digest }),
    ];
    if machine == 0 {
        lies.push(pbft::Message::PrePrepare(Arc::new(pbft::PrePrepare {
            view,
            batch: Arc::new(batch.clone()),
            signature: sign(&pbft::PrePrepare::signed(view, number, &digest)),
        })));
    }
    lies
}

/// What an accomplice's broken counter certifies for this batch.
fn commit_of(machine: u8, batch: &minbft::Prepare) -> minbft::Message {
    let batches = vec![(batch.warrant.value, batch.own_digest())];
    let group = batch.entries.first().map_or(GroupId(0), |entry| entry.group);
    let digest = minbft::Commit::digest(batch.view, group, &batches);
    let warrant = Counter::new(machine, 1, Trust::Broken).create(replica_slot(group), &digest);
    minbft::Message::Commit(Arc::new(minbft::Commit {
        view: batch.view,
        group,
        batches,
        warrant,
    }))
}

fn key(machine: u8) -> SigningKey {
    SigningKey::from_bytes(&[machine + 1; 32])
}

fn client_key() -> SigningKey {
    SigningKey::from_bytes(&[200; 32])
}

fn directory(keys: &[SigningKey], groups: u16) -> Directory {
    let machines = u8::try_from(keys.len()).expect("few machines");
    let entries = (0..machines).zip(keys).map(|(machine, key)| {
        let entry = MachineEntry {
            key: key.verifying_key(),
            counter: counter::identity(machine),
        };
        (MachineId(machine), entry)
    });
    Directory {
        faults: FAULTS,
        groups,
        machines: entries.collect(),
        clients: BTreeMap::from([(ClientId(0), client_key().verifying_key())]),
        verifier: counter::verifier(machines),
    }
}
