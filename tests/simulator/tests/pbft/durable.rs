//! Durable before it is spoken: what a machine says stands in its log, at each message of a correct machine.

use std::collections::{BTreeMap, BTreeSet};

use ordering::identifiers::{Digest, MachineId, View};
use ordering::pbft::{Message, Record};
use simulator::cluster::Watch;
use simulator::protocol::Pbft;

/// What a machine says, and must not forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Vote {
    Prepare(View, u64, Digest),
    Commit(View, u64, Digest),
    ViewChange(View),
    NewView(View),
}

impl Vote {
    /// What a machine may say once this record is durable.
    fn of_record(record: &Record) -> Option<Vote> {
        match record {
            Record::Accepted { view, batch, .. } | Record::AcceptedAgain { view, batch } => {
                Some(Vote::Prepare(*view, batch.number, batch.digest()))
            }
            Record::Prepared {
                view, number, digest, ..
            } => Some(Vote::Commit(*view, *number, *digest)),
            Record::ViewChange { view, .. } => Some(Vote::ViewChange(*view)),
            Record::Entered { view, .. } => Some(Vote::NewView(*view)),
            _ => None,
        }
    }

    fn of_message(message: &Message) -> Option<Vote> {
        match message {
            Message::Prepare(vote) => Some(Vote::Prepare(vote.view, vote.number, vote.digest)),
            Message::Commit(vote) => Some(Vote::Commit(vote.view, vote.number, vote.digest)),
            Message::ViewChange(view_change) => Some(Vote::ViewChange(view_change.view)),
            Message::NewView(new_view) => Some(Vote::NewView(new_view.view)),
            _ => None,
        }
    }
}

/// The votes of all machines.
pub(crate) struct Votes {
    machines: u8,
    /// What the durable log of each machine holds.
    durable: BTreeMap<MachineId, BTreeSet<Vote>>,
    /// What it has written besides, by the record's number.
    written: BTreeMap<MachineId, BTreeMap<u64, Vote>>,
}

impl Votes {
    pub(crate) fn new(machines: u8) -> Self {
        Votes {
            machines,
            durable: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }
}

impl Watch<Pbft> for Votes {
    fn writes(&mut self, machine: MachineId, sequence: u64, record: &Record) {
        let vote = Vote::of_record(record).map(|vote| (sequence, vote));
        self.written.entry(machine).or_default().extend(vote);
    }

    fn synced(&mut self, machine: MachineId, sequence: u64) {
        let written = self.written.entry(machine).or_default();
        let rest = written.split_off(&(sequence + 1));
        let synced = std::mem::replace(written, rest);
        self.durable.entry(machine).or_default().extend(synced.into_values());
    }

    fn starts(&mut self, machine: MachineId, log: &[Record]) {
        self.written.remove(&machine);
        self.durable
            .insert(machine, log.iter().filter_map(Vote::of_record).collect());
    }

    fn sends(&mut self, machine: MachineId, message: &Message) {
        let vote = Vote::of_message(message);
        // Others only pass on what its primary has said.
        let is_own = |vote: &Vote| match vote {
            Vote::NewView(view) => view.0 % u64::from(self.machines) == u64::from(machine.0),
            _ => true,
        };
        if let Some(vote) = vote.filter(is_own) {
            let is_durable = self.durable.get(&machine).is_some_and(|votes| votes.contains(&vote));
            assert!(is_durable, "m{machine} may forget {vote:?}");
        }
    }
}
