//! The commands that the owner gives to a transaction's task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest};
use ordering::message::{Direct, DirectKind, DirectTransaction};
use sql::footprint::Footprint;

use crate::audience::Audience;
use crate::postgres::backend::Record;
use crate::reporter::Asker;
use crate::work::Refused;

/// What the owner asks of a transaction's task. The owner bounds direct statements by [`super::SlotHandle::direct`]; of the
/// others at most one Extend, and what ends the transaction, is on its way, and reads up to the client's window.
pub(crate) enum Command {
    /// Begin has its locks: a live voter opens the transaction and runs Begin's exchanges.
    Begin(Asker),
    /// A direct statement.
    Direct(ClientId, Direct, DirectTransaction),
    /// An Extend that has its locks, with what the transaction holds now.
    Extend(Asker, Bytes, u32, Footprint),
    /// An Extend that is refused, alike on all voters; what the transaction holds now.
    Refused(Asker, Refused, Footprint),
    /// An ordered read in this transaction.
    Read(Asker, Bytes, u32),
    /// The end of the transaction is ordered, and follows: what is still missing is not waited for.
    Ending,
    /// Commits exactly this list.
    Commit(Box<Commit>),
    /// Rolls back; tells the owner that its order has finished. The client is answered if it asked.
    Abort(Finish, Option<Asker>),
}

/// The end of an order that ends one transaction or several.
pub(crate) struct Finish {
    order: u64,
    left: Arc<AtomicUsize>,
}

impl Finish {
    /// The end of one transaction.
    pub(crate) fn of(order: u64) -> Self {
        Self::last_of(order, &Arc::new(AtomicUsize::new(1)))
    }

    /// The end of one of the transactions that are counted in `left`.
    pub(crate) fn last_of(order: u64, left: &Arc<AtomicUsize>) -> Self {
        Self {
            order,
            left: Arc::clone(left),
        }
    }

    /// The transaction has ended; the order, if all have.
    pub(crate) fn reached(&self) -> Option<u64> {
        (self.left.fetch_sub(1, Ordering::AcqRel) == 1).then_some(self.order)
    }
}

/// A Commit.
pub(crate) struct Commit {
    /// Whom to answer.
    pub(crate) asker: Asker,
    /// The list.
    pub(crate) listed: Vec<Bytes>,
    /// What f+1 voters have answered by their words, if it carries words; or why these certify nothing.
    pub(crate) certified: Result<Option<Digest>, Refused>,
    /// What to record.
    pub(crate) record: Record,
    /// Who is told what it notifies.
    pub(crate) audience: Audience,
    /// What the transaction holds.
    pub(crate) held: Footprint,
}

impl Command {
    /// The order that is finished with it; none for a direct statement, and for what several tasks finish together.
    pub(crate) fn order(&self) -> Option<u64> {
        match self {
            Command::Direct(..) | Command::Ending | Command::Abort(..) => None,
            Command::Begin(asker)
            | Command::Extend(asker, ..)
            | Command::Refused(asker, ..)
            | Command::Read(asker, ..) => Some(asker.order),
            Command::Commit(commit) => Some(commit.asker.order),
        }
    }

    /// The listed exchange that other voters have run before, and its place.
    pub(super) fn replays(&self) -> Option<(&Bytes, &DirectTransaction)> {
        match self {
            Command::Direct(_, direct, place) if place.kind == DirectKind::Replay => Some((&direct.exchange, place)),
            _ => None,
        }
    }
}
