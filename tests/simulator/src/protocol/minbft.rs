//! MinBFT: 2f+2 machines with trusted counters.

use ordering::configuration::{Configuration, Faults};
use ordering::identifiers::MachineId;
use ordering::minbft::{LogReader, Machine, Message, Record};

use super::{HistoryEnd, Proposal, Protocol, Tampered};
use crate::adversary::{Script, Tools};
use crate::lies::Fate::{Either, Passes, Refused};
use crate::lies::Lie;

mod abuse;
mod arbitrary;
mod changes;
mod forgery;
mod late;
mod restarts;
mod starts;

use late::Memory;

/// What adversaries tell.
const LIES: &[Lie] = &[
    ("twins", Passes),
    ("forgets", Passes),
    ("says nothing", Passes),
    ("says again", Passes),
    ("says anything", Passes),
    ("floods", Passes),
    ("forges", Passes),
    ("tells voters something else", Passes),
    ("equivocates", Passes),
    ("confirms both", Passes),
    ("orders twice", Passes),
    ("orders for wrong groups", Passes),
    ("breaks the order", Passes),
    ("commits something else", Passes),
    ("commits after leaving", Passes),
    ("commits far ahead", Passes),
    ("commits with a restarted counter", Passes),
    ("checkpoint that never was", Passes),
    ("has followed what it has not", Passes),
    ("wants another view", Passes),
    ("wants a view without need", Passes),
    ("view change hides a warrant", Refused),
    ("view change shows an older checkpoint", Passes),
    ("view change shows an older view", Either),
    ("view change hides what was acknowledged", Refused),
    ("view change shows what it has not acknowledged", Either),
    ("view change without a reason", Passes),
    ("view change begins at an earlier view", Passes),
    ("view change begins at other positions", Passes),
    ("view change commits what it never sent", Passes),
    ("view change without what a restarted counter committed", Passes),
    ("view changes to two views", Passes),
    ("new view from other view changes", Passes),
    ("new view from too few view changes", Passes),
    ("new view without those who return", Passes),
    ("new view with an old hello", Passes),
    ("new view with other counter values", Passes),
    ("endorses something else", Passes),
    ("endorses for some only", Passes),
    ("acknowledges before others have endorsed", Passes),
    ("acknowledges what it did not endorse", Refused),
    ("acknowledges for some only", Passes),
    ("returns without need", Passes),
    ("hello of an epoch to come", Passes),
    ("hello of an earlier epoch", Passes),
    ("hello with lower values", Passes),
    ("hello with higher values", Passes),
    ("hello without checkpoint", Passes),
    ("hello without a view", Passes),
    ("hello of a view that never was", Passes),
    ("report without batches", Passes),
    ("report without bodies", Passes),
    ("report without a view", Passes),
    ("report of half the batches", Passes),
    ("report of bodies that it has not", Passes),
    ("report of an older view", Either),
    ("collect without a hello", Passes),
    ("collect with another hello of its own", Passes),
    ("start without a report", Refused),
    ("acknowledges another start", Passes),
    ("tells an old view", Passes),
];

/// The adapter.
pub struct MinBft;

impl Protocol for MinBft {
    const NAME: &'static str = "minbft";
    const REPLACES_PRIMARY: bool = true;
    const REJOINS: bool = true;
    const STARTS_WITH_ALL: bool = true;
    const LIES: &'static [Lie] = LIES;

    type Message = Message;
    type Record = Record;
    type Reader = LogReader;
    type Memory = Memory;
    type Machine = Machine;

    fn configuration(machine: MachineId, faults: Faults, groups: u16) -> Configuration {
        Configuration::new(machine, faults, groups)
    }

    fn history(machine: &Machine) -> HistoryEnd {
        machine.history_point().into()
    }

    fn kind(message: &Message) -> &'static str {
        match message {
            Message::Prepare(_) => "PREPARE",
            Message::Commit(_) => "COMMIT",
            Message::Progress(_) => "PROGRESS",
            Message::Standing(_) => "STATUS",
            Message::Checkpoint(_) => "CHECKPOINT",
            Message::Stable(_) => "STABLE",
            Message::FetchRequests(_) => "FETCH-REQUESTS",
            Message::GiveRequests(_) => "GIVE-REQUESTS",
            Message::FetchHistory(_) => "FETCH-HISTORY",
            Message::GiveHistory(_) => "GIVE-HISTORY",
            Message::GiveCheckpoint(_) => "GIVE-CHECKPOINT",
            Message::Hello(_) => "HELLO",
            Message::Collect(_) => "COLLECT",
            Message::Report(_) => "REPORT",
            Message::Start(_) => "START",
            Message::Acknowledge(_) => "ACKNOWLEDGE",
            Message::Live(_) => "LIVE",
            Message::RequestViewChange(_) => "REQ-VIEW-CHANGE",
            Message::ViewChange(_) => "VIEW-CHANGE",
            Message::NewView(_) => "NEW-VIEW",
            Message::Endorse(_) => "ENDORSE",
            Message::AcknowledgeView(_) => "ACKNOWLEDGE-VIEW",
        }
    }

    fn proposal(message: &Message) -> Option<Proposal> {
        let Message::Prepare(prepare) = message else {
            return None;
        };
        Some(Proposal {
            view: prepare.view.0,
            place: prepare.warrant.value,
            digests: prepare.entries.iter().map(|entry| entry.digest).collect(),
        })
    }

    fn forge(message: &Message, tools: &mut Tools<'_>) -> Option<Message> {
        forgery::forge(message, tools)
    }

    fn arbitrary(heard: &[Message], tools: &mut Tools<'_>) -> Message {
        arbitrary::message(heard, tools)
    }

    fn remember(memory: &mut Memory, message: &Message) {
        memory.hear(message);
    }

    fn tamper(script: &mut Script<Self>, message: &Message, tools: &mut Tools<'_>) -> Tampered<Message> {
        abuse::tamper(script, message, tools)
    }
}
