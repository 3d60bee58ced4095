//! Bodies: large parts of transactions that the voters' machines keep outside the order.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::MachineId;
use ordering::message::{BODY_BYTES_MAX, BodyName, ClientMessage, Kept, StoreReceipt, StoredBody, body_digest};
use sql::operation::{Exchange, TransactionId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{Client, Failure};
use crate::error::ApplicationError;
use crate::port::{Destination, MachineSet, ToNode};

/// A body is sent again to the machines that have not answered after this, and then after twice the time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(8);

/// Which machines have said what of one body.
#[derive(Clone, Copy, Debug, Default)]
struct Receipts {
    durable: MachineSet,
    refused: MachineSet,
    /// One of those that refused says that the transaction is too large.
    too_large: bool,
}

/// The bodies that are on their way. Equal pieces of one transaction are one body: all who wait for it share an entry.
#[derive(Debug, Default)]
pub(super) struct Stores {
    underway: Mutex<HashMap<BodyName, watch::Sender<Receipts>>>,
}

impl Stores {
    fn lock(&self) -> MutexGuard<'_, HashMap<BodyName, watch::Sender<Receipts>>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, name: BodyName) -> Waiting<'_> {
        let receipts = self.lock().entry(name).or_default().subscribe();
        Waiting {
            stores: self,
            name,
            receipts: Some(receipts),
        }
    }

    /// Takes what a machine says.
    pub(super) fn deliver(&self, machine: MachineId, receipt: StoreReceipt) {
        if let Some(underway) = self.lock().get(&receipt.name) {
            underway.send_modify(|receipts| match receipt.kept {
                Kept::Durable => receipts.durable.insert(machine),
                Kept::TooLarge | Kept::NoRoom => {
                    receipts.refused.insert(machine);
                    receipts.too_large |= receipt.kept == Kept::TooLarge;
                }
            });
        }
    }
}

/// Somebody waits for receipts.
struct Waiting<'stores> {
    stores: &'stores Stores,
    name: BodyName,
    /// Always there until it is dropped.
    receipts: Option<watch::Receiver<Receipts>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut underway = self.stores.lock();
        self.receipts = None;
        if underway
            .get(&self.name)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            underway.remove(&self.name);
        }
    }
}

impl Client {
    /// Has the voters' machines keep an encoded exchange of a transaction; gives what is listed in its place, when f+1 have it
    /// on their disks. One of them is correct, and gives it to the others.
    pub(crate) async fn store(&self, transaction: TransactionId, body: Bytes) -> Result<Exchange, Failure> {
        let Some(length) = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_BYTES_MAX) else {
            return Err(Failure::TooLarge);
        };
        let name = BodyName {
            client: self.id,
            session: transaction.session,
            number: transaction.number,
            digest: body_digest(&body),
        };
        let mut waiting = self.stores.open(name);
        let deadline = Instant::now() + self.statement_timeout;
        let mut pause = AGAIN_FIRST;
        let mut missing = self.voter_set;
        loop {
            let stored = StoredBody {
                session: name.session,
                number: name.number,
                body: body.clone(),
            };
            let message = ToNode::Client(ClientMessage::Store(stored));
            self.send(Destination::Machines(missing), message).await?;
            let until = deadline.min(Instant::now() + pause);
            if let Some(receipts) = self.receipts(&mut waiting, until).await {
                if receipts.durable.len() > self.faults {
                    let digest = name.digest;
                    return Ok(Exchange::Stored { digest, length });
                }
                return Err(refused(receipts));
            }
            if deadline <= Instant::now() {
                return Err(Failure::NoProgress);
            }
            let receipts = waiting.receipts.as_ref().map(|receipts| *receipts.borrow());
            let receipts = receipts.unwrap_or_default();
            missing = self.voter_set.without(receipts.durable).without(receipts.refused);
            metrics::counter!("cloudbft_retransmissions_total").increment(1);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// The receipts, once they decide; `None` when they have not in time.
    async fn receipts(&self, waiting: &mut Waiting<'_>, until: Instant) -> Option<Receipts> {
        let receipts = waiting.receipts.as_mut()?;
        loop {
            let now = *receipts.borrow_and_update();
            let possible = self.voters.len() - now.refused.len();
            if now.durable.len() > self.faults || possible <= self.faults {
                return Some(now);
            }
            timeout_at(until, receipts.changed()).await.ok()?.ok()?;
        }
    }
}

fn refused(receipts: Receipts) -> Failure {
    let error = if receipts.too_large {
        ApplicationError::new("54000", "the transaction writes too much")
            .hint("Use several transactions, or raise transaction_bytes_max in the cluster file.")
    } else {
        ApplicationError::new("53100", "the database nodes have no room for the transaction's data")
            .detail("COPY data and long statements are kept on disk until all databases have them.")
            .hint("Look for database nodes that lag or are down, or raise bodies_bytes_max in the cluster file.")
    };
    Failure::Refused(error)
}
