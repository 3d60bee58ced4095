//! One running copy of a machine: usually the only one, under an adversary perhaps one of twins.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ordering::agreement::Input;
use ordering::configuration::Configuration;
use ordering::identifiers::MachineId;

use crate::adversary::{Script, Seen};
use crate::clock::Clock;
use crate::counter::{Counter, SharedCounter, Trust};
use crate::disk::Disk;
use crate::protocol::Protocol;

/// The most requests that an adversary remembers.
const SEEN_MAX: usize = 1000;

pub(crate) struct Instance<P: Protocol> {
    pub(crate) machine: MachineId,
    /// Which twin; the only one is 0.
    pub(crate) side: u8,
    pub(crate) running: Option<P::Machine>,
    pub(crate) configuration: Configuration,
    pub(crate) disk: Disk,
    pub(crate) counter: SharedCounter,
    pub(crate) clock: Clock,
    /// Counts starts: what was meant for an earlier life does not reach this one.
    pub(crate) life: u64,
    pub(crate) is_syncing: bool,
    /// How much slower the disk is than it should be.
    pub(crate) slowness: u64,
    /// The virtual time of the earliest timer that is scheduled.
    pub(crate) timer_us: Option<u64>,
    /// What the adversary does with it; none: it is correct.
    pub(crate) script: Option<Script<P>>,
    pub(crate) seen: Vec<Seen>,
    /// Values that the counter was spent on something else at, by slot.
    pub(crate) spent: BTreeMap<u32, u64>,
    /// Inputs that it has not looked at.
    pub(crate) waiting: Vec<Input<P::Message>>,
}

impl<P: Protocol> Instance<P> {
    pub(crate) fn new(configuration: Configuration, clock: Clock) -> Self {
        let machine = configuration.machine;
        Instance {
            machine,
            side: 0,
            running: None,
            configuration,
            disk: Disk::default(),
            counter: Rc::new(RefCell::new(Counter::new(machine.0, 0, Trust::True))),
            clock,
            life: 0,
            is_syncing: false,
            slowness: 1,
            timer_us: None,
            script: None,
            seen: Vec::new(),
            spent: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// A second copy with the same keys and what the first one has on disk.
    pub(crate) fn twin(&self) -> Self {
        let mut twin = Instance::new(self.configuration.clone(), self.clock);
        twin.side = 1;
        twin.disk = self.disk.clone();
        twin.counter = Rc::clone(&self.counter);
        twin
    }

    /// The counter certifies, in every slot, something that the machine did not ask for.
    pub(crate) fn spend_counter(&mut self) {
        let mut counter = self.counter.borrow_mut();
        for slot in 0..=u32::from(self.configuration.groups) {
            self.spent.insert(slot, counter.create(slot, &[0; 32]).value);
        }
    }

    /// Whether an input shows the machine that its counter was spent on something else.
    pub(crate) fn shows_spent_counter(&self, input: &Input<P::Message>) -> bool {
        let Input::Certified { warrant, .. } = input else {
            return false;
        };
        let spent = self.spent.get(&warrant.slot);
        spent.is_some_and(|spent| warrant.value > *spent)
    }

    pub(crate) fn see(&mut self, seen: Seen) {
        if self.script.is_some() && self.seen.len() < SEEN_MAX {
            self.seen.push(seen);
        }
    }

    /// The durable log, decoded, with the size of each record.
    pub(crate) fn log(&self) -> Vec<(usize, P::Record)> {
        let decode = |record: &[u8]| {
            let decoded = borsh::from_slice(record).expect("a whole record decodes");
            (record.len(), decoded)
        };
        self.disk.records().map(decode).collect()
    }
}
