//! What a shell needs of a protocol beside [`Agreement`]: how a machine is made from its log, how messages are
//! verified, and how answers are read from the log. With it one shell hosts the machines of any protocol.

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;

use crate::agreement::Agreement;
use crate::configuration::{Configuration, Protocol};
use crate::directory::Directory;
use crate::identifiers::{MachineId, Order};
use crate::ledger::{LogAnswer, LogRecord};
use crate::minbft::{self, Admission};
use crate::pbft;
use crate::verified::{Rejection, Verified};

/// A machine of some protocol, as a shell hosts it.
pub trait Hosted:
    Agreement<
        Message: BorshSerialize + BorshDeserialize + Send + Sync + 'static,
        Record: BorshSerialize + BorshDeserialize + LogRecord + Send + 'static,
        LogReader: Send + 'static,
    > + Send
    + 'static
{
    /// Which protocol this is.
    const PROTOCOL: Protocol;

    /// Collects what a restart needs from the log.
    type Recovery: Default;

    /// Takes the next record of the log, oldest first.
    fn recover(recovery: &mut Self::Recovery, record: Self::Record);

    /// Whether what was taken suffices although the log does not begin with its very first record.
    fn has_foundation(recovery: &Self::Recovery) -> bool;

    /// A machine that has just started. `counter`: its trusted counter now; protocols without one ignore it.
    fn start(configuration: Configuration, key: SigningKey, counter: Admission, recovery: Self::Recovery) -> Self;

    /// Verifies a message that came over the link from machine `from`.
    ///
    /// # Errors
    /// When something in it is wrong: the sender's fault.
    fn verify(
        from: MachineId,
        message: Self::Message,
        directory: &Directory,
    ) -> Result<Verified<Self::Message>, Rejection>;

    /// The first order that a reader of the log wants.
    fn wanted_from(reader: &Self::LogReader) -> Order;

    /// Whether a reader needs nothing more.
    fn is_full(reader: &Self::LogReader) -> bool;

    /// Gives a reader the next record of the log.
    fn read(reader: &mut Self::LogReader, record: Self::Record);

    /// What a reader has found.
    fn answer(reader: Self::LogReader) -> LogAnswer<Self::Message>;
}

macro_rules! hosted {
    ($module:ident, $protocol:expr, |$configuration:ident, $key:ident, $counter:ident, $recovery:ident| $start:expr) => {
        impl Hosted for $module::Machine {
            const PROTOCOL: Protocol = $protocol;

            type Recovery = $module::Recovery;

            fn recover(recovery: &mut Self::Recovery, record: Self::Record) {
                recovery.push(record);
            }

            fn has_foundation(recovery: &Self::Recovery) -> bool {
                recovery.has_foundation()
            }

            fn start(
                $configuration: Configuration,
                $key: SigningKey,
                $counter: Admission,
                $recovery: Self::Recovery,
            ) -> Self {
                $start
            }

            fn verify(
                from: MachineId,
                message: Self::Message,
                directory: &Directory,
            ) -> Result<Verified<Self::Message>, Rejection> {
                $module::verify_message(from, message, directory)
            }

            fn wanted_from(reader: &Self::LogReader) -> Order {
                reader.from()
            }

            fn is_full(reader: &Self::LogReader) -> bool {
                reader.is_full()
            }

            fn read(reader: &mut Self::LogReader, record: Self::Record) {
                reader.push(record);
            }

            fn answer(reader: Self::LogReader) -> LogAnswer<Self::Message> {
                reader.finish()
            }
        }
    };
}

hosted!(minbft, Protocol::MinBft, |configuration, key, counter, recovery| {
    minbft::Machine::new(configuration, key, counter, recovery)
});

hosted!(pbft, Protocol::Pbft, |configuration, key, _counter, recovery| {
    pbft::Machine::new(configuration, key, recovery)
});
