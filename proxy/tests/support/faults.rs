//! What is wrong with the voters, on request; and what the proxy has sent to them, for tests to look at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ordering::identifiers::MachineId;
use ordering::message::{Direct, DirectKind, Kept};
use proxy::MachineSet;
use spool::SpoolDirectory;
use sql::operation::{Exchange, Work};

/// What is wrong with the voters.
#[derive(Clone)]
pub struct Faults {
    pub(super) state: Arc<Mutex<State>>,
    /// Where real voters keep large results.
    pub spool: SpoolDirectory,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            spool: SpoolDirectory::new(std::env::temp_dir(), 12 << 30),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    /// Voters that give results of their own invention.
    pub(super) liars: MachineSet,
    /// Voters that vote right and send something else.
    pub(super) forgers: MachineSet,
    /// Voters that say nothing.
    pub(super) mute: MachineSet,
    /// Voters that do not answer what commits.
    pub(super) mute_at_commit: MachineSet,
    /// Voters that have lost every open transaction.
    pub(super) lost: MachineSet,
    /// Voters that have no result of what commits: they were restarted after it.
    pub(super) restarted: MachineSet,
    /// The SQLSTATE with which the next Begin is refused.
    pub(super) refuse_begin: Option<&'static str>,
    /// The tag of the next COMMIT's answer, in the place of its own.
    pub(super) commit_tag: Option<&'static [u8]>,
    /// The machines whose words a Commit held, for each Commit.
    pub(super) words: Vec<Vec<u8>>,
    /// The live voters of each Begin.
    pub(super) live: Vec<u64>,
    /// Machines that keep no bodies, and why.
    pub(super) without_bodies: HashMap<MachineId, Kept>,
    /// The kinds of messages seen, in order.
    pub(super) seen: Vec<&'static str>,
    pub(super) catalog_readings: Vec<&'static str>,
}

impl Faults {
    pub fn liar(&self, machine: u8) {
        self.state.lock().unwrap().liars.insert(MachineId(machine));
    }

    pub fn forger(&self, machine: u8) {
        self.state.lock().unwrap().forgers.insert(MachineId(machine));
    }

    pub fn mute(&self, machine: u8) {
        self.state.lock().unwrap().mute.insert(MachineId(machine));
    }

    pub fn mute_at_commit(&self, machine: u8) {
        self.state.lock().unwrap().mute_at_commit.insert(MachineId(machine));
    }

    pub fn lose(&self, machine: u8) {
        self.state.lock().unwrap().lost.insert(MachineId(machine));
    }

    pub fn restart(&self, machine: u8) {
        self.state.lock().unwrap().restarted.insert(MachineId(machine));
    }

    pub fn refuse_begin(&self, sqlstate: &'static str) {
        self.state.lock().unwrap().refuse_begin = Some(sqlstate);
    }

    pub fn answer_commit_with(&self, tag: &'static [u8]) {
        self.state.lock().unwrap().commit_tag = Some(tag);
    }

    /// These machines keep no bodies, for this reason.
    pub fn refuse_bodies(&self, machines: &[u8], kept: Kept) {
        let machines = machines.iter().map(|machine| (MachineId(*machine), kept));
        self.state.lock().unwrap().without_bodies = machines.collect();
    }

    pub fn kept(&self, machine: MachineId) -> Kept {
        let state = self.state.lock().unwrap();
        state.without_bodies.get(&machine).copied().unwrap_or(Kept::Durable)
    }

    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        (state.liars, state.forgers, state.mute) = Default::default();
        (state.lost, state.restarted, state.mute_at_commit) = Default::default();
    }

    /// The machines whose words the Commits held since the last call.
    pub fn take_words(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state.lock().unwrap().words)
    }

    /// The live voters of the Begins since the last call, as bit masks.
    pub fn take_live(&self) -> Vec<u64> {
        std::mem::take(&mut self.state.lock().unwrap().live)
    }

    pub fn is_forger(&self, machine: MachineId) -> bool {
        self.state.lock().unwrap().forgers.contains(machine)
    }

    pub fn is_mute(&self, machine: MachineId) -> bool {
        self.state.lock().unwrap().mute.contains(machine)
    }

    pub fn see(&self, kind: &'static str) {
        self.state.lock().unwrap().seen.push(kind);
    }

    /// Notes an operation; apart, if the proxy reads the catalog by it.
    pub fn see_ordered(&self, work: &Work) {
        let mut state = self.state.lock().unwrap();
        match catalog_reading(work) {
            Some(kind) => state.catalog_readings.push(kind),
            None => state.seen.push(self::kind(work)),
        }
    }

    /// How the proxy has read the catalog since the last call.
    pub fn take_catalog_readings(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().catalog_readings)
    }

    /// The kinds of messages since the last call.
    pub fn take_seen(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// How the proxy itself reads the catalog, if this is that: it comes beside whatever a test does after DDL.
pub fn catalog_reading(work: &Work) -> Option<&'static str> {
    let text = sql::schema::CATALOG_QUERY.into();
    match work {
        Work::Catalog { .. } => Some("changes"),
        Work::Read { exchange, .. } if *exchange == Exchange::Simple { text }.encode() => Some("whole"),
        _ => None,
    }
}

/// What a direct message is, in a word.
pub fn direct_kind(direct: &Direct) -> &'static str {
    match direct.transaction.as_ref().map(|place| place.kind) {
        None => "read",
        Some(DirectKind::Read | DirectKind::Write) => "direct",
        Some(DirectKind::Join) => "join",
        Some(DirectKind::Replay) => "replay",
        Some(DirectKind::Cancel { request: 0 }) => "cancel direct",
        Some(DirectKind::Cancel { .. }) => "cancel ordered",
        Some(DirectKind::Word) => "word",
        Some(DirectKind::ObjectNumber) => "object number",
    }
}

/// What an operation is, in a word.
pub fn kind(work: &Work) -> &'static str {
    match work {
        Work::OneShot { .. } => "one-shot",
        Work::Read { .. } => "ordered read",
        Work::Begin { .. } => "begin",
        Work::Extend { .. } => "extend",
        Work::Commit { .. } => "commit",
        Work::Abort { .. } => "abort",
        Work::Abandon { .. } => "abandon",
        Work::Nothing => "nothing",
        Work::Cancel { .. } => "cancel",
        Work::Catalog { .. } => "catalog",
        Work::Listen { .. } => "listen",
        Work::Advisory(_) => "advisory",
    }
}
