//! The store of bodies: the large parts of transactions (COPY data, long statements) that are kept outside the order.
//!
//! A client sends a body to all machines that hold voters; f+1 receipts mean that a correct one has it on its disk. What is
//! ordered names only the digest, and a voter reads the body when it runs it. A voter that lacks a body fetches it from the
//! others. A transaction that is not short commits only with the words of f+1 voters, which have run, and so have had on their
//! disks, all that it lists: a committed list is never without its bodies.
//!
//! A body goes when its transaction has ended without effect; when all voters' databases have its transaction on disk; when its
//! client needs the room and f+1 databases have it (as the replicas' logs are cut); or when nothing has come of it for long.

mod files;
mod index;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::MachineId;
use ordering::message::{BODY_BYTES_MAX, BODY_BYTES_MIN, BodyName, Kept, body_digest};
use sql::operation::TransactionId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use files::{Command, Files};
use index::{Admission, Index};

/// What waits for the disk of one client, in bytes; more holds that client's link up.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Of all transactions of one client, in bytes.
    pub client_bytes_max: u64,
    /// Of one transaction, in bytes.
    pub transaction_bytes_max: u64,
}

/// Told what became of a body.
type Done = Box<dyn FnOnce(Kept) + Send>;

/// A body that somebody here waits for.
#[derive(Debug, Default)]
struct Wanted {
    waiting: usize,
    /// The body, if it came and there was no room for it on the disk.
    loose: Option<Bytes>,
}

#[derive(Debug)]
struct Inner {
    files: Files,
    index: Mutex<Index>,
    wanted: Mutex<BTreeMap<BodyName, Wanted>>,
    /// Counts the bodies that have come.
    arrivals: watch::Sender<u64>,
    queues: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
}

/// A machine's store of bodies; cheap to clone.
#[derive(Clone, Debug)]
pub struct BodyStore {
    inner: Arc<Inner>,
}

/// The transaction that a body belongs to.
pub fn transaction_of(name: &BodyName) -> TransactionId {
    TransactionId {
        client: name.client.0,
        session: name.session,
        number: name.number,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BodyStore {
    /// Opens the store in a directory, with what is there. `voters`: the machines that hold voters, this one too.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(
        directory: PathBuf,
        limits: BodyLimits,
        voters: impl IntoIterator<Item = MachineId>,
        faults: usize,
    ) -> io::Result<Self> {
        let found = files::scan(&directory)?;
        let index = Index::new(limits, voters, faults, found, Instant::now());
        let (sender, commands) = std::sync::mpsc::channel();
        let inner = Arc::new(Inner {
            files: Files::new(directory.clone(), sender),
            index: Mutex::new(index),
            wanted: Mutex::default(),
            arrivals: watch::Sender::new(0),
            queues: Mutex::default(),
        });
        let store = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("bodies".into())
            .spawn(move || files::run(&directory, &commands, &store))?;
        Ok(Self { inner })
    }

    /// Keeps a body of a client; `done` is told when it is durable, or why it will not be. Waits while too much of the client
    /// waits for the disk.
    pub async fn store(&self, name: BodyName, body: Bytes, done: impl FnOnce(Kept) + Send + 'static) {
        if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&body.len()) {
            return done(Kept::TooLarge);
        }
        let queue = Arc::clone(
            lock(&self.inner.queues)
                .entry(name.client.0)
                .or_insert_with(|| Arc::new(Semaphore::new(WAITING_BYTES_MAX))),
        );
        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let permit = queue.acquire_many_owned(bytes).await.ok();
        self.write(name, body, permit, Box::new(done));
    }

    fn write(&self, name: BodyName, body: Bytes, permit: Option<OwnedSemaphorePermit>, done: Done) {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let (admission, evicted) = lock(&self.inner.index).admit(&name, length, Instant::now());
        self.remove(evicted);
        match admission {
            Admission::Write => self.inner.files.send(Command::Write {
                name,
                body,
                permit,
                done,
            }),
            // The first one's receipt is on its way.
            Admission::Underway => {}
            Admission::Known => done(Kept::Durable),
            Admission::Refused(kept) => {
                metrics::counter!("cloudbft_bodies_refused_total").increment(1);
                done(kept);
            }
        }
    }

    /// Takes what another machine sends, if somebody here waits for it.
    pub fn fetched(&self, name: BodyName, body: Bytes) {
        if !lock(&self.inner.wanted).contains_key(&name) || body_digest(&body) != name.digest {
            return;
        }
        let (store, loose) = (self.clone(), body.clone());
        let done = move |kept| {
            if kept != Kept::Durable {
                if let Some(wanted) = lock(&store.inner.wanted).get_mut(&name) {
                    wanted.loose = Some(loose);
                }
                store.arrived();
            }
        };
        self.write(name, body, None, Box::new(done));
    }

    /// A body, if it is on this machine's disk and whole.
    pub async fn read(&self, name: BodyName) -> Option<Bytes> {
        if !lock(&self.inner.index).has(&name) {
            return None;
        }
        let path = self.inner.files.path(&name);
        let reading = tokio::task::spawn_blocking(move || std::fs::read(path));
        let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match read {
            Ok(body) if body_digest(&body) == name.digest => Some(Bytes::from(body)),
            damaged => {
                let error = damaged.err().map(|error| error.to_string());
                let error = error.as_deref().unwrap_or("its content is not what its name says");
                // It may have been deleted a moment ago.
                tracing::warn!(transaction = ?transaction_of(&name), error, "a body cannot be read");
                lock(&self.inner.index).forget(&name);
                None
            }
        }
    }

    /// Notes that somebody waits for a body, until the answer is dropped.
    pub(crate) fn want(&self, name: BodyName) -> Want {
        lock(&self.inner.wanted).entry(name).or_default().waiting += 1;
        Want {
            store: self.clone(),
            name,
        }
    }

    /// Changes whenever a body has come.
    pub(crate) fn arrivals(&self) -> watch::Receiver<u64> {
        self.inner.arrivals.subscribe()
    }

    fn arrived(&self) {
        self.inner.arrivals.send_modify(|count| *count += 1);
    }

    /// A transaction has ended without effect.
    pub(crate) fn aborted(&self, transaction: TransactionId) {
        if lock(&self.inner.index).remove(transaction) {
            self.remove(vec![transaction]);
        }
    }

    /// A transaction's Commit stands at this order.
    pub(crate) fn committed(&self, transaction: TransactionId, order: u64) {
        if lock(&self.inner.index).committed(transaction, order) {
            self.inner.files.send(Command::Committed(transaction, order));
        }
    }

    /// A machine's database has everything up to this order on its disk.
    pub fn flushed(&self, machine: MachineId, order: u64) {
        let over = lock(&self.inner.index).flushed(machine, order);
        self.remove(over);
    }

    /// Drops what is older than `age` and belongs to no open transaction, and to none that is known to have committed.
    pub(crate) fn expire(&self, age: Duration, is_open: impl Fn(&TransactionId) -> bool) {
        let expired = lock(&self.inner.index).expire(Instant::now(), age, is_open);
        self.remove(expired);
        let (bytes, transactions) = lock(&self.inner.index).size();
        metrics::gauge!("cloudbft_bodies_bytes").set(bytes as f64);
        metrics::gauge!("cloudbft_bodies_transactions").set(transactions as f64);
    }

    /// The bytes that are kept of all transactions.
    pub fn bytes(&self) -> u64 {
        lock(&self.inner.index).size().0
    }

    fn remove(&self, transactions: Vec<TransactionId>) {
        for transaction in transactions {
            self.inner.files.send(Command::Remove(transaction));
        }
    }
}

impl Inner {
    /// A write has come to its end.
    fn written(&self, name: &BodyName, kept: Kept) {
        let mut index = lock(&self.index);
        match kept {
            Kept::Durable => index.durable(name),
            Kept::TooLarge | Kept::NoRoom => index.forget(name),
        }
        drop(index);
        self.arrivals.send_modify(|count| *count += 1);
    }
}

/// Somebody waits for a body.
#[derive(Debug)]
pub(crate) struct Want {
    store: BodyStore,
    name: BodyName,
}

impl Want {
    /// The body, if it came and there was no room for it on the disk.
    pub(crate) fn loose(&self) -> Option<Bytes> {
        lock(&self.store.inner.wanted).get(&self.name)?.loose.clone()
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let mut wanted = lock(&self.store.inner.wanted);
        if let Some(entry) = wanted.get_mut(&self.name) {
            entry.waiting -= 1;
            if entry.waiting == 0 {
                wanted.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
