//! The files of a store: a directory for each transaction, and in it a file for each body, named by its digest.
//!
//! One thread writes. A body is written to a temporary name, made durable, and renamed; its receipt follows when the
//! directory is durable too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender};

use bytes::Bytes;
use ordering::identifiers::Digest;
use ordering::message::{BodyName, Kept};
use sql::operation::TransactionId;
use tokio::sync::OwnedSemaphorePermit;

use super::index::Found;
use super::{Done, Inner, transaction_of};

/// Bodies that become durable together, at most.
const BATCH_MAX: usize = 32;

/// The file that names the order of a transaction's Commit.
const COMMITTED: &str = "committed";

/// How the name of a file ends that is not whole.
const TEMPORARY: &str = ".new";

/// What the thread is asked to do.
pub(super) enum Command {
    /// Write a body.
    Write {
        name: BodyName,
        body: Bytes,
        /// What it takes of the client's share of what waits.
        permit: Option<OwnedSemaphorePermit>,
        done: Done,
    },
    /// Note the order of a Commit: bounds how long the bodies are kept after a restart, so that losing the note costs room only.
    Committed(TransactionId, u64),
    /// Delete a transaction's bodies.
    Remove(TransactionId),
}

/// The way to the thread, and to the files.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    commands: Sender<Command>,
}

impl Files {
    pub(super) fn new(directory: PathBuf, commands: Sender<Command>) -> Self {
        Self { directory, commands }
    }

    pub(super) fn send(&self, command: Command) {
        if let Err(unsent) = self.commands.send(command)
            && let Command::Write { done, .. } = unsent.0
        {
            done(Kept::NoRoom);
        }
    }

    pub(super) fn path(&self, name: &BodyName) -> PathBuf {
        body_path(&self.directory, name)
    }
}

fn transaction_path(directory: &Path, id: TransactionId) -> PathBuf {
    directory.join(format!("{}.{:x}.{:x}", id.client, id.session, id.number))
}

fn body_path(directory: &Path, name: &BodyName) -> PathBuf {
    let file = blake3::Hash::from_bytes(name.digest).to_hex();
    transaction_path(directory, transaction_of(name)).join(file.as_str())
}

fn parse_transaction(name: &str) -> Option<TransactionId> {
    let mut parts = name.split('.');
    let id = TransactionId {
        client: parts.next()?.parse().ok()?,
        session: u64::from_str_radix(parts.next()?, 16).ok()?,
        number: u64::from_str_radix(parts.next()?, 16).ok()?,
    };
    parts.next().is_none().then_some(id)
}

fn parse_digest(name: &str) -> Option<Digest> {
    blake3::Hash::from_hex(name).ok().map(|hash| *hash.as_bytes())
}

/// Makes the directory, and reads what is in it. Files that are not whole are deleted.
pub(super) fn scan(directory: &Path) -> io::Result<BTreeMap<TransactionId, Found>> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(parse_transaction) else {
            continue;
        };
        let found = scan_transaction(&entry.path())?;
        if found.bodies.is_empty() {
            fs::remove_dir_all(entry.path())?;
        } else {
            all.insert(id, found);
        }
    }
    Ok(all)
}

fn scan_transaction(directory: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(name) = file.to_str() else { continue };
        if name == COMMITTED {
            found.committed = fs::read_to_string(entry.path())?.trim().parse().ok();
        } else if name.ends_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        } else if let Some(digest) = parse_digest(name) {
            let length = u32::try_from(entry.metadata()?.len()).unwrap_or(u32::MAX);
            found.bodies.push((digest, length));
        }
    }
    Ok(found)
}

/// A body that is written and not yet durable by its name.
struct Written {
    name: BodyName,
    done: Done,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Carries out commands until the store is dropped.
pub(super) fn run(directory: &Path, commands: &Receiver<Command>, store: &Weak<Inner>) {
    while let Ok(first) = commands.recv() {
        let rest = std::iter::from_fn(|| commands.try_recv().ok()).take(BATCH_MAX - 1);
        let mut written = Vec::new();
        for command in std::iter::once(first).chain(rest) {
            match command {
                Command::Write {
                    name,
                    body,
                    permit,
                    done,
                } => match write_body(directory, &name, &body) {
                    Ok(()) => written.push(Written {
                        name,
                        done,
                        _permit: permit,
                    }),
                    Err(error) => refuse(store, &name, &error, done),
                },
                Command::Committed(id, order) => {
                    if let Err(error) = write_new(&transaction_path(directory, id).join(COMMITTED), |file| {
                        file.write_all(order.to_string().as_bytes())
                    }) {
                        tracing::warn!(%error, ?id, "the end of a transaction with bodies could not be noted");
                    }
                }
                Command::Remove(id) => {
                    settle(directory, std::mem::take(&mut written), store);
                    match fs::remove_dir_all(transaction_path(directory, id)) {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => tracing::error!(%error, ?id, "a transaction's bodies could not be deleted"),
                    }
                }
            }
        }
        settle(directory, written, store);
    }
}

/// Makes the names of what was written durable, and says so.
fn settle(directory: &Path, written: Vec<Written>, store: &Weak<Inner>) {
    let transactions: BTreeSet<_> = written
        .iter()
        .map(|written| transaction_path(directory, transaction_of(&written.name)))
        .collect();
    let synced = transactions
        .iter()
        .map(PathBuf::as_path)
        .chain(transactions.first().map(|_| directory))
        .try_for_each(|path| File::open(path)?.sync_all());
    for body in written {
        match &synced {
            Ok(()) => finish(store, &body.name, Kept::Durable, body.done),
            Err(error) => refuse(store, &body.name, error, body.done),
        }
    }
}

fn refuse(store: &Weak<Inner>, name: &BodyName, error: &io::Error, done: Done) {
    tracing::error!(%error, transaction = ?transaction_of(name), "a body could not be written");
    finish(store, name, Kept::NoRoom, done);
}

fn finish(store: &Weak<Inner>, name: &BodyName, kept: Kept, done: Done) {
    if let Some(store) = store.upgrade() {
        store.written(name, kept);
    }
    done(kept);
}

fn write_body(directory: &Path, name: &BodyName, body: &[u8]) -> io::Result<()> {
    let transaction = transaction_path(directory, transaction_of(name));
    match DirBuilder::new().mode(0o700).create(&transaction) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    write_new(&body_path(directory, name), |file| {
        file.write_all(body)?;
        file.sync_data()
    })
}

/// Writes a file under a temporary name, then renames it.
fn write_new(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    match write(&mut file) {
        Ok(()) => fs::rename(&temporary, path),
        Err(error) => {
            // Half a body on a full disk helps nobody.
            fs::remove_file(&temporary)?;
            Err(error)
        }
    }
}
