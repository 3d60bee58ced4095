//! The crate `minbft`: f = 1, its three replicas, driven as ours is.

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use minbft::{Config, MinBft, Output, PeerMessage, RequestPayload};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shared_ids::{ClientId, ReplicaId, RequestId};

use crate::authenticator::{Authenticator, CLIENTS, CounterUsig, PAYLOAD_BYTES, Warrant};
use crate::ours::ORDERS_PER_CHECKPOINT;

const REPLICAS: u8 = 3;
/// Nothing times out here.
const LONG: Duration = Duration::from_secs(3600);

/// An operation; a copy shares the bytes, as ours do.
#[derive(Clone, Debug)]
struct Operation {
    number: u64,
    bytes: Bytes,
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.number, SerializedBytes(&self.bytes)).serialize(serializer)
    }
}

/// All bytes at once: as fast as it gets.
struct SerializedBytes<'a>(&'a [u8]);

impl Serialize for SerializedBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for Operation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (number, bytes) = <(u64, Vec<u8>)>::deserialize(deserializer)?;
        let bytes = Bytes::from(bytes);
        Ok(Operation { number, bytes })
    }
}

impl RequestPayload for Operation {
    fn id(&self) -> RequestId {
        RequestId::from_u64(self.number)
    }

    /// Clients' signatures are verified beforehand, as for ours.
    fn verify(&self, _: ClientId) -> anyhow::Result<()> {
        Ok(())
    }
}

type Message = PeerMessage<(), Operation, Warrant>;

/// All replicas, and what is on the way between them.
pub(crate) struct Cluster {
    replicas: Vec<MinBft<Operation, CounterUsig>>,
    messages: VecDeque<(u8, u8, Message)>,
    orders: u64,
    delivered: u64,
}

impl Cluster {
    /// A cluster that is ready, and this many requests for it.
    pub(crate) fn new(authenticator: Authenticator, batch: usize, orders: u64) -> Self {
        let mut cluster = Cluster {
            replicas: Vec::new(),
            messages: VecDeque::new(),
            orders,
            delivered: 0,
        };
        let mut started = Vec::new();
        for id in 0..REPLICAS {
            let config = Config {
                n: NonZeroU64::new(u64::from(REPLICAS)).expect("not zero"),
                t: 1,
                id: ReplicaId::from_u64(u64::from(id)),
                batch_timeout: LONG,
                max_batch_size: NonZeroUsize::new(batch),
                initial_timeout_duration: LONG,
                checkpoint_period: NonZeroU64::new((ORDERS_PER_CHECKPOINT / batch as u64).max(1)).expect("not zero"),
            };
            let (replica, output) = MinBft::new(CounterUsig::new(authenticator, id), config).expect("a replica");
            cluster.replicas.push(replica);
            started.push(output);
        }
        (0..)
            .zip(started)
            .for_each(|(id, output)| cluster.carry_out(id, output));
        cluster.settle();
        cluster
    }

    /// Orders all requests, so many of them on the way at once.
    pub(crate) fn run(&mut self, at_once: usize) {
        let bytes = Bytes::from_static(&[7; PAYLOAD_BYTES]);
        let mut number = 0;
        while number < self.orders {
            let end = self.orders.min(number + at_once as u64);
            for id in [1, 2, 0] {
                for number in number..end {
                    let operation = Operation {
                        number: number / CLIENTS,
                        bytes: bytes.clone(),
                    };
                    let replica = &mut self.replicas[usize::from(id)];
                    let output = replica.handle_client_message(ClientId::from_u64(number % CLIENTS), operation);
                    self.carry_out(id, output);
                }
            }
            self.settle();
            number = end;
        }
        assert_eq!(self.delivered, self.orders, "everything is ordered");
    }

    fn carry_out(&mut self, from: u8, output: Output<Operation, CounterUsig>) {
        assert!(output.errors.is_empty(), "{:?}", output.errors);
        if from == 1 {
            self.delivered += output.responses.len() as u64;
        }
        for message in output.broadcasts {
            let others = (0..REPLICAS).filter(|to| *to != from);
            self.messages.extend(others.map(|to| (from, to, message.clone())));
        }
    }

    fn settle(&mut self) {
        while let Some((from, to, message)) = self.messages.pop_front() {
            let replica = &mut self.replicas[usize::from(to)];
            // Each receiver verifies for itself, in there.
            let output = replica.handle_peer_message(ReplicaId::from_u64(u64::from(from)), message);
            self.carry_out(to, output);
        }
    }
}
