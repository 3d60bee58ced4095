//! What everybody knows: keys, clients, the catalog, and the exchanges that are run.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use ordering::identifiers::{ClientId, Digest, MachineId};
use ordering::message::Request;
use sql::analysis::Analyzer;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Exchange, Operation, SessionContext, TransactionId, Word, Work, word_digest};
use sql::rules::PartitionRules;
use sql::schema::Schema;
use voter::ending::Electorate;

/// f.
pub(crate) const FAULTS: usize = 1;

/// The machines with voters.
pub(crate) const MACHINES: [MachineId; 3] = [MachineId(1), MachineId(2), MachineId(3)];

/// The client that keeps to the rules.
pub(crate) const HONEST: ClientId = ClientId(10);

/// The client that does not.
pub(crate) const LIAR: ClientId = ClientId(11);

/// A client of one one-shot.
pub(crate) const SHOPPER: ClientId = ClientId(12);

/// The client of a machine's own orders.
pub(crate) fn node_client(machine: MachineId) -> ClientId {
    ClientId(100 + u32::from(machine.0))
}

/// A table of the small world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// One.
    First,
    /// The other.
    Second,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::First => "first",
            Table::Second => "second",
        }
    }

    /// A footprint that writes it.
    pub(crate) fn footprint(self) -> Footprint {
        Footprint::of(Resource::Table(format!("public.{}", self.name())), Mode::Exclusive)
    }

    /// An exchange that is short.
    pub(crate) fn short(self, value: u8) -> Bytes {
        simple(format!("UPDATE {} SET v = {value} WHERE k = 1", self.name()))
    }

    /// An exchange whose form bounds nothing.
    pub(crate) fn long(self, value: u8) -> Bytes {
        simple(format!("UPDATE {} SET v = v + {value}", self.name()))
    }

    /// An exchange of which nobody sees the end.
    pub(crate) fn endless(self) -> Bytes {
        simple(format!("UPDATE {} SET v = v * 2", self.name()))
    }
}

/// Whether an exchange never ends.
pub(crate) fn is_endless(exchange: &Bytes) -> bool {
    [Table::First, Table::Second]
        .iter()
        .any(|table| table.endless() == *exchange)
}

/// Whether an exchange is short: the checker's own view, from how the exchanges are made.
pub(crate) fn is_short(exchange: &Bytes) -> bool {
    matches!(Exchange::decode(exchange), Ok(Exchange::Simple { text }) if text.ends_with("WHERE k = 1"))
}

fn simple(text: String) -> Bytes {
    Exchange::Simple { text }.encode()
}

/// The transaction of a client; each opens one.
pub(crate) fn transaction(client: ClientId) -> TransactionId {
    TransactionId {
        client: client.0,
        session: 1,
        number: 1,
    }
}

/// Fixed facts.
pub(crate) struct World {
    /// The catalog, which nothing changes.
    pub analyzer: Analyzer,
    /// The keys of the voters, by which words are verified.
    pub keys: BTreeMap<MachineId, VerifyingKey>,
    /// The words that were signed, by their signers and what they say: a voter that is made anew signs the same again.
    signed: Mutex<HashMap<(MachineId, Digest), [u8; 64]>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let rows = include_str!("catalog.jsonl").lines();
        let schema = Schema::parse(rows, &PartitionRules::default()).expect("the fixture is a catalog");
        let keys = MACHINES.map(|machine| (machine, key(machine).verifying_key()));
        Self {
            analyzer: Analyzer::new(Arc::new(schema)),
            keys: BTreeMap::from(keys),
            signed: Mutex::default(),
        }
    }

    /// The word of a voter, true or not.
    pub(crate) fn word(
        &self,
        machine: MachineId,
        id: TransactionId,
        began: u64,
        list: &Digest,
        answers: Digest,
    ) -> Word {
        let digest = word_digest(id, began, list, &answers);
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let signature = signed
            .entry((machine, digest))
            .or_insert_with(|| key(machine).sign(&digest).to_bytes());
        Word {
            machine: machine.0,
            answers,
            signature: *signature,
        }
    }

    /// The voters whose words count.
    pub(crate) fn electorate(&self, faults: usize) -> Electorate<'_> {
        Electorate {
            keys: &self.keys,
            faults,
        }
    }
}

fn key(machine: MachineId) -> SigningKey {
    SigningKey::from_bytes(&[machine.0; 32])
}

/// A request of a client: its `number`-th, which is never used again.
pub(crate) fn request(client: ClientId, number: u64, footprint: Footprint, work: Work) -> Request {
    let operation = Operation {
        context: SessionContext::default(),
        nonce: [u8::try_from(client.0).unwrap_or(0); 16],
        work,
        footprint,
    };
    Request {
        client,
        number,
        floor: 0,
        home: operation.footprint.home().home_number(),
        operation: Bytes::from(borsh::to_vec(&operation).expect("operations encode")),
        signature: [0; 64],
    }
}

#[cfg(test)]
mod tests {
    use voter::work::{Place, check};

    use super::*;

    #[test]
    fn statements_are_short_or_long_and_touch_their_table() {
        let world = World::new();
        let analysis = |bytes: Bytes, place| {
            let exchange = Exchange::decode(&bytes).unwrap();
            let held = Table::First.footprint();
            check(
                &world.analyzer,
                &exchange,
                &SessionContext::default(),
                place,
                &held,
                &sql::names::Made::default(),
            )
            .unwrap()
        };
        let short = Table::First.short(1);
        assert!(analysis(short.clone(), Place::OneShot).short && is_short(&short));
        for long in [Table::First.long(1), Table::First.endless()] {
            let analysis = analysis(long.clone(), Place::Listed);
            assert!(!analysis.short && !is_short(&long));
            assert_eq!(analysis.footprint, Table::First.footprint());
        }
    }
}
