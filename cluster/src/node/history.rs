//! The log as the agreement's memory: read at the start, and to answer those who lag.

use std::path::PathBuf;
use std::sync::Arc;

use ordering::configuration::Configuration;
use ordering::hosting::Hosted;
use ordering::identifiers::{MachineId, Order};
use ordering::ledger::{LogAnswer, LogIndex, LogRecord};
use ordering::minbft::Admission;
use trusted_counter::TrustedCounter;
use voter::VoterInput;

use super::NodeError;
use super::voter_queue::VoterQueue;
use crate::identity::Identity;
use crate::link::{Frame, Links, Peer};
use crate::log::{Log, Reader};

/// A log position, shifted so far, stands for an offset in the sparse index: it makes a mark every 64 records.
const INDEX_SHIFT: u32 = 10;

/// Tells the index of a record at this position.
pub(super) fn note<R: LogRecord>(index: &mut LogIndex, position: u64, record: &R) {
    index.add(position << INDEX_SHIFT, record);
}

/// The position to read from for everything from an order on.
pub(super) fn position_of(index: &LogIndex, order: Order) -> u64 {
    index.offset(order) >> INDEX_SHIFT
}

/// Cuts off what the agreement does not need: everything below `first` is not read again, and everything up to the
/// position `durable` is durable.
pub(super) fn cut(log: &Log, index: &mut LogIndex, first: Order, durable: u64) {
    if let Some(offset) = index.cut(first, (durable + 1) << INDEX_SHIFT) {
        log.cut_below(offset >> INDEX_SHIFT);
    }
}

/// A machine as its log has it.
pub(super) struct Restored<H> {
    pub(super) machine: H,
    pub(super) index: LogIndex,
}

/// Reads the whole log.
///
/// # Errors
/// When a record cannot be read or understood.
pub(super) fn restore<H: Hosted>(
    log: &Log,
    configuration: Configuration,
    identity: &Identity,
    counter: &mut dyn TrustedCounter,
) -> Result<Restored<H>, NodeError> {
    let mut recovery = H::Recovery::default();
    let mut index = LogIndex::default();
    let mut reader = log.read(1)?;
    let (mut records, mut last) = (0_u64, 0);
    let mut first = None;
    while let Some(stored) = reader
        .next_record()
        .map_err(|error| NodeError::Replay(error.to_string()))?
    {
        let record: H::Record = borsh::from_slice(&stored.payload)
            .map_err(|error| NodeError::Replay(format!("record {}: {error}", stored.position)))?;
        first.get_or_insert(stored.position);
        note(&mut index, stored.position, &record);
        H::recover(&mut recovery, record);
        (records, last) = (records + 1, stored.position);
    }
    if records > 0 && last + 1 != log.next() {
        return Err(NodeError::Replay(format!(
            "records end at {last}, not at {}",
            log.next() - 1
        )));
    }
    if let Some(first) = first.filter(|first| *first > 1 && !H::has_foundation(&recovery)) {
        return Err(NodeError::Replay(format!(
            "the records before {first} are missing, and nothing later says again what they said"
        )));
    }
    tracing::info!(records, "log replayed");
    let positions: Result<_, _> = (0..=u32::from(configuration.groups))
        .map(|slot| counter.position(slot))
        .collect();
    let admission = Admission {
        epoch: counter.epoch(),
        positions: positions.map_err(NodeError::Counter)?,
    };
    let machine = H::start(configuration, identity.signing_key().clone(), admission, recovery);
    Ok(Restored { machine, index })
}

/// An answer that is collected from the log beside the owner task.
pub(super) struct Reading<H: Hosted> {
    pub(super) directory: PathBuf,
    pub(super) position: u64,
    pub(super) reader: H::LogReader,
    pub(super) me: MachineId,
    pub(super) links: Arc<Links>,
    pub(super) voter: Option<Arc<VoterQueue>>,
}

impl<H: Hosted> Reading<H> {
    /// Reads and answers; blocks.
    pub(super) fn run(mut self) {
        if let Err(error) = self.read() {
            tracing::error!(%error, "the log cannot be read for an answer");
            return;
        }
        match H::answer(self.reader) {
            LogAnswer::Voter { to, messages } if to == self.me => {
                let inputs = messages
                    .into_iter()
                    .map(|message| VoterInput::CommitDb { from: self.me, message });
                if let Some(voter) = self.voter {
                    // What does not fit is fetched again.
                    inputs.for_each(|input| voter.offer_own(input));
                }
            }
            LogAnswer::Voter { to, messages } => {
                let frames = messages.into_iter().map(Frame::CommitDb);
                frames.for_each(|frame| self.links.send_frame(Peer::Machine(to), &frame));
            }
            LogAnswer::Peer { to, message } => {
                let bytes = borsh::to_vec(&message).unwrap_or_default();
                self.links
                    .send_frame(Peer::Machine(to), &Frame::Agreement(bytes.into()));
            }
        }
    }

    fn read(&mut self) -> Result<(), NodeError> {
        let mut stored = Reader::open(&self.directory, self.position)?;
        while !H::is_full(&self.reader) {
            let next = stored
                .next_record()
                .map_err(|error| NodeError::Replay(error.to_string()))?;
            let Some(record) = next else { break };
            let record = borsh::from_slice(&record.payload).map_err(|error| NodeError::Replay(error.to_string()))?;
            H::read(&mut self.reader, record);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
