//! The node's side of the store of bodies: takes them from proxies, and gives them to the machines that lack them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use ordering::identifiers::{ClientId, MachineId, Order};
use ordering::message::{BodyName, ClientMessage, StoreReceipt, StoredBody, body_digest};
use tokio::sync::{Semaphore, mpsc};
use voter::BodyStore;

use crate::link::{Frame, Links, Peer};

/// Bodies that are read for one machine at once, at most; it asks again for the others.
const READS_MAX: usize = 4;

/// Takes what concerns bodies off the links.
pub(super) struct BodyDesk {
    store: BodyStore,
    /// Bounded by the store's limit of what waits, and by `reads`.
    answers: mpsc::UnboundedSender<(Peer, Frame)>,
    reads: BTreeMap<Peer, Arc<Semaphore>>,
}

impl BodyDesk {
    pub(super) fn new(
        store: BodyStore,
        answers: mpsc::UnboundedSender<(Peer, Frame)>,
        peers: impl Iterator<Item = Peer>,
    ) -> Self {
        let reads = peers
            .filter(|peer| matches!(peer, Peer::Machine(_)))
            .map(|peer| (peer, Arc::new(Semaphore::new(READS_MAX))))
            .collect();
        Self { store, answers, reads }
    }

    /// A database's progress.
    pub(super) fn flushed(&self, machine: MachineId, order: Order) {
        self.store.flushed(machine, order.0);
    }

    /// Takes a frame that concerns bodies; gives any other back. Waits while too much of a client waits for the disk.
    pub(super) async fn take(&self, from: Peer, frame: Frame) -> Option<Frame> {
        match (from, frame) {
            (Peer::Client(client), Frame::Client(ClientMessage::Store(stored))) => self.keep(client, stored).await,
            (Peer::Machine(_), Frame::FetchBody(name)) => self.give(from, name),
            (Peer::Machine(_), Frame::Body(name, body)) => self.store.fetched(name, body),
            (_, other) => return Some(other),
        }
        None
    }

    async fn keep(&self, client: ClientId, stored: StoredBody) {
        let StoredBody { session, number, body } = stored;
        let name = BodyName {
            client,
            session,
            number,
            digest: body_digest(&body),
        };
        let answers = self.answers.clone();
        let done = move |kept| {
            let receipt = Frame::Receipt(StoreReceipt { name, kept });
            // Nobody listens once the node ends.
            let _ = answers.send((Peer::Client(client), receipt));
        };
        self.store.store(name, body, done).await;
    }

    fn give(&self, to: Peer, name: BodyName) {
        let Some(permit) = self
            .reads
            .get(&to)
            .and_then(|reads| Arc::clone(reads).try_acquire_owned().ok())
        else {
            return;
        };
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            let body: Option<Bytes> = store.read(name).await;
            if let Some(body) = body {
                let _ = answers.send((to, Frame::Body(name, body)));
            }
            drop(permit);
        });
    }
}

/// Sends receipts and bodies while the links live.
pub(super) async fn send_answers(links: Weak<Links>, mut answers: mpsc::UnboundedReceiver<(Peer, Frame)>) {
    while let Some((to, frame)) = answers.recv().await {
        let Some(links) = links.upgrade() else { return };
        links.send_frame(to, &frame);
    }
}
