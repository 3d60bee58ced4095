//! What the simulator must know of a protocol beside what a shell must ([`Hosted`]): how its messages can be abused. One adapter for each protocol; everything else is the same for all.

use std::fmt::Debug;

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;
use ordering::configuration::{Configuration, Faults};
use ordering::directory::Directory;
use ordering::hosting::Hosted;
use ordering::identifiers::{Digest, MachineId, Order};
use ordering::ledger::{HistoryPoint, LogAnswer, LogIndex, LogRecord};
use ordering::minbft::Admission;
use ordering::verified::{Rejection, Verified};

use crate::adversary::{Addressed, Script, Tools};
use crate::counter::Counter;
use crate::lies::Lie;

mod minbft;
mod pbft;

pub use minbft::MinBft;
pub use pbft::Pbft;

/// How far a machine's decided history goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEnd {
    /// The last order.
    pub order: Order,
    /// The hash over everything up to it.
    pub hash: Digest,
}

impl From<HistoryPoint> for HistoryEnd {
    fn from(point: HistoryPoint) -> Self {
        HistoryEnd {
            order: point.order,
            hash: point.history,
        }
    }
}

/// A batch that a primary sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The view.
    pub view: u64,
    /// Which batch of it: the same when it is sent again.
    pub place: u64,
    /// The requests, in their order.
    pub digests: Vec<Digest>,
}

/// The adapter of one protocol.
pub trait Protocol: Sized + 'static {
    /// As it is written on the command line.
    const NAME: &'static str;
    /// Whether a primary that is down, silent or wrong is replaced: then liveness is demanded under such ones too.
    const REPLACES_PRIMARY: bool;
    /// Whether a machine that was restarted takes part again while the others run.
    const REJOINS: bool;
    /// Whether a start of the whole cluster waits for every replica: then a liar can hold it up, and liveness is
    /// demanded only as long as no such start is needed (rule AllLogsAtStart).
    const STARTS_WITH_ALL: bool;
    /// Every lie that an adversary can tell in this protocol.
    const LIES: &'static [Lie];

    /// The protocol's messages between machines.
    type Message: Clone + Debug + BorshSerialize + BorshDeserialize + Send + Sync;
    /// The protocol's log records.
    type Record: Clone + BorshSerialize + BorshDeserialize + LogRecord + Send;
    /// The reader that collects an answer from the log.
    type Reader: Send;
    /// What an adversary keeps from one message to the next.
    type Memory: Default;
    /// The production state machine.
    type Machine: Hosted<Message = Self::Message, Record = Self::Record, LogReader = Self::Reader>;

    /// How many machines there are, m0 included.
    fn machines(faults: Faults) -> u8 {
        Self::Machine::PROTOCOL.machines(faults)
    }

    /// The protocol's defaults for a machine.
    fn configuration(machine: MachineId, faults: Faults, groups: u16) -> Configuration;

    /// A machine that starts from its log.
    fn start(
        configuration: Configuration,
        key: SigningKey,
        counter: &mut Counter,
        log: impl Iterator<Item = Self::Record>,
    ) -> Self::Machine {
        let mut recovery = <Self::Machine as Hosted>::Recovery::default();
        log.for_each(|record| Self::Machine::recover(&mut recovery, record));
        let slots = 0..=u32::from(configuration.groups);
        let admission = Admission {
            epoch: counter.epoch(),
            positions: slots.map(|slot| counter.position(slot)).collect(),
        };
        Self::Machine::start(configuration, key, admission, recovery)
    }

    /// The protocol's own verification.
    fn verify(
        from: MachineId,
        message: Self::Message,
        directory: &Directory,
    ) -> Result<Verified<Self::Message>, Rejection> {
        Self::Machine::verify(from, message, directory)
    }

    /// Reads the log as the shell does: `log` yields the size in bytes and the content of each record.
    fn read_log(mut reader: Self::Reader, log: &[(usize, Self::Record)]) -> LogAnswer<Self::Message> {
        let (mut index, mut offset) = (LogIndex::with_marks_every(1), 0);
        let mut offsets = Vec::with_capacity(log.len());
        for (bytes, record) in log {
            index.add(offset, record);
            offsets.push(offset);
            offset += *bytes as u64;
        }
        let begin = index.offset(Self::Machine::wanted_from(&reader));
        for ((_, record), _) in log.iter().zip(offsets).filter(|(_, offset)| *offset >= begin) {
            if Self::Machine::is_full(&reader) {
                break;
            }
            Self::Machine::read(&mut reader, record.clone());
        }
        Self::Machine::answer(reader)
    }

    /// How far the decided history of a machine goes.
    fn history(machine: &Self::Machine) -> HistoryEnd;

    /// The kind of a message, for event logs and for adversaries that choose by kind.
    fn kind(message: &Self::Message) -> &'static str;

    /// The batch that a primary proposes with this message.
    fn proposal(message: &Self::Message) -> Option<Proposal>;

    /// The same message with other content and the old signature; none when nothing in it is signed.
    ///
    /// Verification must reject what this returns: the simulator checks that.
    fn forge(message: &Self::Message, tools: &mut Tools<'_>) -> Option<Self::Message>;

    /// Any message at all, with the machine's signatures and warrants where they belong; made of what was heard where
    /// nothing could be made of nothing.
    fn arbitrary(heard: &[Self::Message], tools: &mut Tools<'_>) -> Self::Message;

    /// An adversary hears a message.
    fn remember(memory: &mut Self::Memory, message: &Self::Message);

    /// What an adversary that has the machine's key and counter sends instead of this message, and to whom.
    fn tamper(script: &mut Script<Self>, message: &Self::Message, tools: &mut Tools<'_>) -> Tampered<Self::Message>;
}

/// What an adversary makes of a message.
#[derive(Debug)]
pub enum Tampered<M> {
    /// It is sent as it is.
    Untouched,
    /// These are sent instead, each to the machines whose bit is set.
    Instead(Addressed<M>),
}
