//! What honest and lying clients have in common: a session that orders operations and sends direct statements.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest, Order};
use ordering::message::{CHAIN_START, ClientMessage, Direct, DirectKind, DirectTransaction, ResultKey, chain};
use rand_chacha::ChaCha8Rng;
use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, TransactionId, Work};

use crate::answer::{Verdict, verdict};
use crate::menu::Names;
use crate::server::APPLICATION;
use crate::topic::Topics;
use crate::turns::Turn;
use crate::world::{World, machines};

/// One connection of an application.
pub struct Session {
    /// Where it is.
    pub world: Arc<World>,
    /// Whose it is.
    pub client: ClientId,
    /// Its number.
    pub session: u64,
    /// When it may act.
    pub turn: Turn,
    /// What it draws from.
    pub random: ChaCha8Rng,
    /// Its own names.
    pub names: Names,
    /// What it may bring up.
    pub topics: Topics,
    /// Its last transaction.
    pub transactions: u64,
}

/// A list of exchanges, and the chain over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// How many.
    pub count: u32,
    /// The chain.
    pub chain: Digest,
}

impl Default for Ran {
    fn default() -> Self {
        Self {
            count: 0,
            chain: CHAIN_START,
        }
    }
}

impl Ran {
    /// One more.
    pub fn add(&mut self, exchange: &[u8]) {
        self.count += 1;
        self.chain = chain(&self.chain, exchange);
    }
}

impl Session {
    /// Who asks.
    pub fn context(&self) -> SessionContext {
        SessionContext {
            client: self.client.0,
            session: self.session,
            role: APPLICATION.into(),
            database: self.world.database.clone(),
            settings: Vec::new(),
        }
    }

    /// A transaction of its own.
    pub fn new_transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        TransactionId {
            client: self.client.0,
            session: self.session,
            number: self.transactions,
        }
    }

    /// Says what it does, if the run is traced.
    pub fn note(&self, text: impl FnOnce() -> String) {
        self.world
            .network
            .note(|| format!("{}.{}: {}", self.client.0, self.session, text()));
    }

    /// Orders an operation; its order and the key of its result.
    pub fn order(&mut self, footprint: Footprint, work: Work) -> (u64, ResultKey) {
        let operation = Operation {
            context: self.context(),
            footprint,
            nonce: [self.session as u8; 16],
            work,
        };
        let number = self.world.network.number(self.client);
        let order = self.world.network.order(self.client, number, &operation);
        (order, ResultKey::Request(number))
    }

    /// A new number for a direct statement.
    pub fn direct_number(&self) -> u64 {
        // Counted apart from requests: these begin where those never come.
        1_000_000 + self.world.network.number(self.client)
    }

    /// Sends a direct statement to one machine.
    pub async fn send_direct(
        &self,
        machine: u8,
        number: u64,
        place: Option<(TransactionId, &Ran, DirectKind)>,
        exchange: Bytes,
    ) {
        let transaction = place.map(|(id, ran, kind)| DirectTransaction {
            session: id.session,
            number: id.number,
            writes_before: ran.count,
            chain: ran.chain,
            kind,
        });
        let direct = Direct {
            number,
            whole: true,
            context: Bytes::from(borsh::to_vec(&self.context()).unwrap()),
            transaction,
            not_before: Order(0),
            exchange,
        };
        self.world.network.direct(machine, self.client, direct).await;
    }

    /// Asks all machines again for a result.
    pub async fn recall(&self, key: ResultKey) {
        for machine in machines() {
            let message = ClientMessage::Recall(key);
            self.world.network.client_message(machine, self.client, message).await;
        }
    }

    /// Waits for what f+1 voters say alike about something, at most this long. What only digests are known of is asked for.
    pub async fn verdict(&self, key: ResultKey, within: Duration) -> Option<(u64, Verdict)> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut digest_only = false;
            let slice = left.min(Duration::from_millis(300));
            let waited = self
                .world
                .network
                .wait(self.client, key, slice, |answers| match verdict(answers) {
                    Some((_, Verdict::Digest)) => {
                        digest_only = true;
                        Some(None)
                    }
                    other => other.map(Some),
                });
            if let Some(Some(found)) = waited.await {
                return Some(found);
            }
            if left.is_zero() {
                return None;
            }
            self.recall(key).await;
            if digest_only {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    }

    /// Waits until any machine has answered, or the time is over.
    pub async fn heard_any(&self, key: ResultKey, within: Duration) {
        let any = |answers: &crate::network::Answers| (!answers.is_empty()).then_some(());
        self.world.network.wait(self.client, key, within, any).await;
    }

    /// Waits until these machines have answered, or the time is over.
    pub async fn heard_from(&self, key: ResultKey, wanted: &BTreeSet<u8>, within: Duration) {
        let all = |answers: &crate::network::Answers| {
            wanted.iter().all(|machine| answers.contains_key(machine)).then_some(())
        };
        self.world.network.wait(self.client, key, within, all).await;
    }
}
