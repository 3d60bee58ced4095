//! A session's open transaction, as the proxy knows it.

use std::sync::Arc;

use bytes::Bytes;
use ordering::identifiers::Order;
use sql::footprint::{Footprint, Mode};
use sql::names::Made;
use sql::operation::{Isolation, TransactionId, TransactionWrite};
use sql::statement::TransactionModes;
use tokio::sync::OwnedSemaphorePermit;

use super::context::Context;
use super::held::Holdables;
use super::settings::{ANSWERS, Settings};
use crate::client::{Live, Voted, VotedResult};
use crate::notifications::Changes;

/// Writes kept inline for COMMIT, in bytes; what exceeds this is ordered instead, so that COMMIT stays bounded.
pub(super) const INLINE_BYTES_MAX: usize = 4 << 20;
/// Savepoints at once, at most.
pub(super) const SAVEPOINTS_MAX: usize = 10_000;
/// Exchanges that wait for the Begin, at most.
pub(super) const DEFERRED_MAX: usize = 10_000;

/// A transaction block: explicit (BEGIN), or the implicit one of a multi-statement text or a pipeline.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) explicit: bool,
    pub(super) failed: bool,
    /// It was rolled back as a whole: not even ROLLBACK TO helps.
    pub(super) doomed: bool,
    pub(super) isolation: Isolation,
    pub(super) read_only: bool,
    /// `cloudbft.answers` was `at_commit` at its start.
    at_commit: bool,
    /// A statement has run: modes are fixed.
    pub(super) used: bool,
    /// It may have changed the catalog.
    pub(super) catalog_changed: bool,
    /// Which names the exchanges of this transaction have given another meaning.
    pub(super) made: Made,
    /// Exchanges that must run on the voters before its first one there.
    pub(super) deferred: Vec<Deferred>,
    pub(super) savepoints: Vec<Savepoint>,
    /// What it changes of what the session listens to, when it commits.
    pub(super) listening: Changes,
    /// The cursors that are to outlive the transaction.
    pub(super) holdables: Holdables,
    /// The session's settings at its start.
    pub(super) settings_before: Settings,
    /// Its part on the voters, once begun.
    pub(super) begun: Option<Begun>,
}

/// An exchange that runs at the Begin of its transaction, before the first statement.
#[derive(Clone, Debug)]
pub(super) struct Deferred {
    pub(super) encoded: Bytes,
    /// Whether its shape bounds it.
    pub(super) short: bool,
}

/// A savepoint.
#[derive(Debug)]
pub(super) struct Savepoint {
    pub(super) name: String,
    pub(super) settings: Settings,
    /// How many changes the transaction had made of what is listened to.
    pub(super) listening: usize,
}

/// A transaction that is open on the voters.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: TransactionId,
    /// Under which settings its statements run.
    pub(super) context: Arc<Context>,
    /// The resources locked so far.
    pub(super) held: Footprint,
    /// Whether plain reads see one snapshot, the same on all voters.
    pub(super) snapshot: bool,
    /// The voters that run its statements.
    pub(super) live: Live,
    /// The order of its Begin.
    pub(super) began: Order,
    /// Whether everything listed is short: such a transaction needs no words.
    pub(super) all_short: bool,
    /// Whether it may have something to commit: if not, it ends without.
    pub(super) wrote: bool,
    /// Whether the application sees one voter's answers: its reads are listed too, so that words cover them.
    pub(super) at_commit: bool,
    /// Whether it may hold advisory locks: who is told of its end may take them at once.
    pub(super) advisory: bool,
    /// Whether all servers number alike the objects that it makes next, as far as the proxy can bring it about.
    pub(super) numbers_alike: bool,
    writes: Vec<TransactionWrite>,
    inline_bytes: usize,
    /// One of the transactions that the session may have open or unaborted; given back when this one is known to have ended.
    room: OwnedSemaphorePermit,
}

/// A Commit's or an Abort's part of a transaction that ends.
pub(super) struct Ending {
    pub(super) id: TransactionId,
    pub(super) context: Arc<Context>,
    pub(super) held: Footprint,
    pub(super) writes: Vec<TransactionWrite>,
    /// See [`Begun`].
    pub(super) room: OwnedSemaphorePermit,
}

impl Transaction {
    pub(super) fn new(explicit: bool, modes: TransactionModes, settings: &Settings) -> Self {
        let default_isolation = settings.get("default_transaction_isolation").and_then(parse_isolation);
        let default_read_only = settings.get("default_transaction_read_only").is_some_and(is_on);
        Self {
            explicit,
            failed: false,
            doomed: false,
            isolation: modes.isolation.or(default_isolation).unwrap_or_default(),
            read_only: modes.read_only.unwrap_or(default_read_only),
            at_commit: settings.get(ANSWERS) == Some("at_commit"),
            used: false,
            catalog_changed: false,
            made: Made::default(),
            deferred: Vec::new(),
            savepoints: Vec::new(),
            listening: Changes::default(),
            holdables: Holdables::default(),
            settings_before: settings.clone(),
            begun: None,
        }
    }

    /// The isolation that the voters run it with: a READ ONLY transaction that asked for SERIALIZABLE reads the snapshot
    /// of its Begin, which is a point in the serial order, and locks nothing.
    pub(super) fn voters_isolation(&self) -> Isolation {
        if self.isolation == Isolation::Serializable && self.read_only {
            return Isolation::RepeatableRead;
        }
        self.isolation
    }

    /// Whether its answers are one voter's until COMMIT certifies them. Snapshots are read on all voters anyway.
    pub(super) fn answers_at_commit(&self) -> bool {
        self.at_commit && !self.read_only && self.isolation != Isolation::RepeatableRead
    }

    /// Whether its plain reads take locks, where they are part of what it has run.
    pub(super) fn locks_reads(&self) -> bool {
        self.voters_isolation() == Isolation::Serializable || self.answers_at_commit()
    }

    /// Whether its plain reads may run outside it, as autocommit reads, of what it neither holds nor may have written: their
    /// answers are f+1 voters' at once.
    pub(super) fn reads_outside(&self) -> bool {
        self.isolation == Isolation::ReadCommitted
    }

    /// The modes that `AND CHAIN` hands on.
    pub(super) fn modes(&self) -> TransactionModes {
        TransactionModes {
            isolation: Some(self.isolation),
            read_only: Some(self.read_only),
            ..TransactionModes::default()
        }
    }

    /// The newest savepoint of this name.
    pub(super) fn savepoint(&self, name: &str) -> Option<usize> {
        self.savepoints.iter().rposition(|savepoint| savepoint.name == name)
    }
}

impl Begun {
    /// A transaction whose Begin is about to run these exchanges.
    pub(super) fn new(
        id: TransactionId,
        context: Arc<Context>,
        held: Footprint,
        snapshot: bool,
        live: Live,
        room: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            id,
            context,
            held,
            snapshot,
            live,
            began: Order(0),
            all_short: true,
            wrote: false,
            at_commit: false,
            advisory: false,
            numbers_alike: false,
            writes: Vec::new(),
            inline_bytes: 0,
            room,
        }
    }

    /// Its Begin ran these exchanges at this order.
    pub(super) fn began(&mut self, order: Order, exchanges: &[Bytes]) {
        self.began = order;
        self.writes.push(TransactionWrite::Ordered(order.0));
        exchanges.iter().for_each(|exchange| self.live.listed(exchange));
    }

    /// A direct write ran.
    pub(super) fn wrote_directly(&mut self, exchange: Bytes, result: &VotedResult) {
        self.live.answered(result);
        self.live.wrote_directly(exchange.clone());
        self.inline_bytes = self.inline_bytes.saturating_add(exchange.len());
        self.writes.push(TransactionWrite::Direct(exchange));
    }

    /// An ordered Extend ran.
    pub(super) fn extended(&mut self, voted: &Voted, exchange: &[u8], footprint: &Footprint) {
        self.live.answered(&voted.result);
        self.live.listed(exchange);
        self.writes.push(TransactionWrite::Ordered(voted.order.0));
        self.held.extend(footprint);
    }

    /// Whether a direct write of this size leaves COMMIT bounded.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.inline_bytes.saturating_add(bytes) <= INLINE_BYTES_MAX
    }

    /// Its end.
    pub(super) fn into_ending(self) -> Ending {
        Ending {
            id: self.id,
            context: self.context,
            held: self.held,
            writes: self.writes,
            room: self.room,
        }
    }
}

/// The footprint with every lock exclusive: what SERIALIZABLE takes for reads.
pub(super) fn exclusive(footprint: &Footprint) -> Footprint {
    let mut locks = Footprint::empty();
    footprint
        .entries()
        .iter()
        .for_each(|(resource, _)| locks.add(resource.clone(), Mode::Exclusive));
    locks
}

/// An isolation level as `SHOW` prints it.
pub(super) fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "read committed",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::Serializable => "serializable",
    }
}

fn parse_isolation(name: &str) -> Option<Isolation> {
    match name.to_ascii_lowercase().as_str() {
        "read committed" | "read uncommitted" => Some(Isolation::ReadCommitted),
        "repeatable read" => Some(Isolation::RepeatableRead),
        "serializable" => Some(Isolation::Serializable),
        _ => None,
    }
}

/// Whether a Boolean setting is on.
pub(super) fn is_on(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "on" | "true" | "yes" | "1" | "t" | "y"
    )
}
