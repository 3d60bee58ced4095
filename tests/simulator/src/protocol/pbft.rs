//! PBFT: 3f+1 machines without trusted counters.

use ordering::configuration::{Configuration, Faults};
use ordering::identifiers::MachineId;
use ordering::pbft::{LogReader, Machine, Message, Record};

use super::{HistoryEnd, Proposal, Protocol, Tampered};
use crate::adversary::{Script, Tools};
use crate::lies::Fate::{Passes, Refused};
use crate::lies::Lie;

mod abuse;
mod arbitrary;
mod changes;
mod forgery;
mod hoarding;

use changes::Memory;

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
    ("votes for something else", Passes),
    ("commits before it is prepared", Passes),
    ("commits after leaving", Passes),
    ("checkpoint that never was", Passes),
    ("wants another view", Passes),
    ("wants a view without need", Passes),
    ("view change without certificates", Passes),
    ("view change without its last certificate", Passes),
    ("view change without a checkpoint", Passes),
    ("view change with an older certificate", Passes),
    ("view change with an older checkpoint", Passes),
    ("view change with what others have prepared", Passes),
    ("view change for some only", Passes),
    ("new view from other view changes", Passes),
    ("new view from too few view changes", Refused),
    ("new view with another view change of its own", Passes),
    ("proposes to just enough", Passes),
    ("resigns with a certificate of its own", Passes),
    ("wants a view to show what it has kept", Passes),
    ("view change without what it keeps", Passes),
    ("view change with what it has kept", Passes),
];

/// The adapter.
pub struct Pbft;

impl Protocol for Pbft {
    const NAME: &'static str = "pbft";
    const REPLACES_PRIMARY: bool = true;
    const REJOINS: bool = true;
    const STARTS_WITH_ALL: bool = false;
    const LIES: &'static [Lie] = LIES;

    type Message = Message;
    type Record = Record;
    type Reader = LogReader;
    type Memory = Memory;
    type Machine = Machine;

    fn configuration(machine: MachineId, faults: Faults, groups: u16) -> Configuration {
        Configuration::pbft(machine, faults, groups)
    }

    fn history(machine: &Machine) -> HistoryEnd {
        machine.history_point().into()
    }

    fn kind(message: &Message) -> &'static str {
        match message {
            Message::PrePrepare(_) => "PRE-PREPARE",
            Message::Prepare(_) => "PREPARE",
            Message::Commit(_) => "COMMIT",
            Message::Standing(_) => "STATUS",
            Message::Checkpoint(_) => "CHECKPOINT",
            Message::Stable(_) => "STABLE",
            Message::FetchRequests(_) => "FETCH-REQUESTS",
            Message::GiveRequests(_) => "GIVE-REQUESTS",
            Message::Forward(_) => "FORWARD",
            Message::FetchHistory(_) => "FETCH-HISTORY",
            Message::GiveHistory(_) => "GIVE-HISTORY",
            Message::GiveCheckpoint(_) => "GIVE-CHECKPOINT",
            Message::RequestViewChange(_) => "REQ-VIEW-CHANGE",
            Message::ViewChange(_) => "VIEW-CHANGE",
            Message::NewView(_) => "NEW-VIEW",
        }
    }

    fn proposal(message: &Message) -> Option<Proposal> {
        let Message::PrePrepare(proposed) = message else {
            return None;
        };
        Some(Proposal {
            view: proposed.view.0,
            place: proposed.batch.number,
            digests: proposed.batch.entries.iter().map(|entry| entry.digest).collect(),
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
