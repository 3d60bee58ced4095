//! Crashes, starts, power cuts, corruption, and healing.

use std::cell::RefCell;
use std::rc::Rc;

use ordering::agreement::{Agreement, Phase};
use ordering::identifiers::MachineId;
use rand::RngExt;

use super::faults::Fault;
use super::{Cluster, Event, Observation};
use crate::adversary::{Behaviour, Script};
use crate::counter::{Counter, Trust};
use crate::protocol::Protocol;
use crate::voter::Voter;

impl<P: Protocol> Cluster<P> {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.trace(|| format!("fault {fault:?}"));
        match fault {
            Fault::Crash(machine) => self.crash_machine(machine),
            Fault::CutPrimary(out_us) => {
                if let Some(machine) = self.leader() {
                    let others = self.machines().filter(|other| *other != machine);
                    let links: Vec<_> = others.flat_map(|other| [(machine, other), (other, machine)]).collect();
                    self.network.cut(&links);
                    self.schedule(self.now_us + out_us, Event::Fault(Fault::Mend(links)));
                }
            }
            Fault::Start(machine) => self.start_machine(machine),
            Fault::PowerCut => self.crash_all(),
            Fault::Cut(links) => self.network.cut(&links),
            Fault::Mend(links) => self.network.mend(&links),
            Fault::Disk(machine, slowness) => {
                let of_machine = self.instances.iter_mut().filter(|instance| instance.machine == machine);
                of_machine.for_each(|instance| instance.slowness = slowness);
            }
            Fault::Forget(machine, records) => self.forget(machine, records),
            Fault::SpendCounter(machine) => self.spend_counter(machine),
            Fault::Scale(groups, mischief) => self.scale(groups, mischief),
            Fault::Corruption => self.corrupt(),
            Fault::Sides(sides) => self.sides = sides,
        }
        self.note_cold();
    }

    /// Who leads the highest view that a correct machine takes part in.
    fn leader(&self) -> Option<MachineId> {
        let running = self.correct().filter_map(|instance| instance.running.as_ref());
        let live = running.map(|machine| machine.status());
        let live = live.filter(|status| status.phase == Phase::Live);
        live.max_by_key(|status| status.view).map(|status| status.primary)
    }

    /// Notes when more than f machines are Byzantine or out: from then on a start of all is needed, for counters
    /// that forget their values (`docs/protocol.md`, rule AdmittedEpochs).
    pub(super) fn note_cold(&mut self) {
        let byzantine = self.options.adversaries.len();
        let out = self.correct().filter(|instance| {
            instance
                .running
                .as_ref()
                .is_none_or(|machine| !matches!(machine.status().phase, Phase::Live | Phase::Changing))
        });
        let out = out.filter(|instance| instance.life > 1 || self.is_corrupted).count();
        if byzantine + out > usize::from(self.options.faults) {
            self.is_cold = true;
        }
    }

    pub(crate) fn indices(&self, machine: MachineId) -> Vec<usize> {
        let numbered = self.instances.iter().enumerate();
        numbered
            .filter(|(_, instance)| instance.machine == machine)
            .map(|(index, _)| index)
            .collect()
    }

    /// Starts a machine from its log, with its counter in a new epoch; nothing if it runs.
    pub(super) fn start_machine(&mut self, machine: MachineId) {
        let indices = self.indices(machine);
        if indices.iter().any(|index| self.instances[*index].running.is_some()) {
            return;
        }
        let epoch = &mut self.epochs[usize::from(machine.0)];
        *epoch += 1;
        let is_broken = self.is_corrupted && self.options.counters == Trust::Broken && !self.is_correct(machine);
        let trust = if is_broken { Trust::Broken } else { Trust::True };
        let counter = Rc::new(RefCell::new(Counter::new(
            machine.0,
            self.epochs[usize::from(machine.0)],
            trust,
        )));
        for index in indices {
            let own = Counter::new(machine.0, self.epochs[usize::from(machine.0)], trust);
            self.instances[index].counter = match trust {
                Trust::True => Rc::clone(&counter),
                Trust::Broken => Rc::new(RefCell::new(own)),
            };
            self.start_instance(index);
        }
        if self.is_correct(machine) {
            let voter = self.voters[usize::from(machine.0)].as_ref();
            let executed = voter.map(Voter::executed).unwrap_or_default();
            self.observe(&Observation::Restarted { machine, executed });
        }
    }

    fn start_instance(&mut self, index: usize) {
        let key = self.keys[usize::from(self.instances[index].machine.0)].clone();
        let instance = &mut self.instances[index];
        instance.life += 1;
        instance.is_syncing = false;
        instance.timer_us = None;
        instance.spent.clear();
        if let Some(script) = instance.script.as_mut() {
            script.certified.clear();
            script.promised.clear();
        }
        let log: Vec<P::Record> = instance.log().into_iter().map(|(_, record)| record).collect();
        if let Some(hand) = self.hand.as_mut() {
            hand.delivered.remove(&instance.machine);
            if let Some(watch) = hand.watch.as_mut() {
                watch.starts(instance.machine, &log);
            }
        }
        let mut counter = instance.counter.borrow_mut();
        let machine = P::start(instance.configuration.clone(), key, &mut counter, log.into_iter());
        drop(counter);
        instance.running = Some(machine);
        self.schedule_timer(index);
    }

    /// Kills a machine: its database keeps what was flushed, its log what was synced and perhaps more.
    pub(super) fn crash_machine(&mut self, machine: MachineId) {
        let loses_unsynced = self.options.loses_unsynced;
        for index in self.indices(machine) {
            let instance = &mut self.instances[index];
            if instance.running.take().is_none() {
                continue;
            }
            instance.waiting.clear();
            self.counts.unsynced_crashes += u64::from(instance.disk.pending().is_some());
            instance.disk.crash(loses_unsynced, &mut self.rng);
            if let Some(voter) = self.voters[usize::from(machine.0)].as_mut() {
                voter.crash();
            }
        }
    }

    pub(super) fn crash_all(&mut self) {
        for machine in self.machines() {
            self.crash_machine(machine);
        }
        self.note_cold();
    }

    /// The counter of a machine is used behind its back, in all slots.
    fn spend_counter(&mut self, machine: MachineId) {
        for index in self.indices(machine) {
            if self.is_correct(machine) && self.instances[index].running.is_some() {
                self.instances[index].spend_counter();
            }
        }
    }

    /// A machine has seen that its counter was spent on something else: it is restarted a little later.
    pub(super) fn restart_stopped(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        instance.spent.clear();
        let (machine, down_us) = (instance.machine, self.rng.random_range(20_000..500_000));
        let phase = instance.running.as_ref().map(|running| running.status().phase);
        if let Some(phase) = phase {
            self.observe(&Observation::CounterSkipped { machine, phase });
        }
        self.schedule(self.now_us + down_us, Event::Fault(Fault::Crash(machine)));
        self.schedule(self.now_us + down_us + 1, Event::Fault(Fault::Start(machine)));
    }

    /// A liar restarts with an old state.
    fn forget(&mut self, machine: MachineId, records: usize) {
        self.crash_machine(machine);
        self.counts.lies.count("forgets", true);
        for index in self.indices(machine) {
            self.instances[index].disk.forget(records);
        }
        self.start_machine(machine);
    }

    /// From now on the adversary has its machines.
    fn corrupt(&mut self) {
        self.is_corrupted = true;
        for (machine, behaviours) in self.options.adversaries.clone() {
            let script = Script::new(&behaviours, &mut self.rng);
            let Some(index) = self.indices(machine).first().copied() else {
                continue;
            };
            let is_twin = behaviours.contains(&Behaviour::Twins);
            self.instances[index].script = Some(script);
            if self.options.counters == Trust::Broken {
                self.break_counter(index);
            }
            if is_twin {
                self.make_twin(index);
            }
        }
    }

    /// The same counter at the same values, and from now on it certifies everything.
    fn break_counter(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        let mut old = instance.counter.borrow_mut();
        let mut broken = Counter::new(instance.machine.0, old.epoch(), Trust::Broken);
        for slot in 0..=u32::from(self.options.groups_in_all()) {
            for _ in 0..old.position(slot) {
                broken.create(slot, &[0; 32]);
            }
        }
        drop(old);
        instance.counter = Rc::new(RefCell::new(broken));
    }

    /// Two instances of one machine: both start again, from the same log.
    fn make_twin(&mut self, index: usize) {
        let machine = self.instances[index].machine;
        self.crash_machine(machine);
        self.counts.lies.count("twins", true);
        let mut twin = self.instances[index].twin();
        twin.script = Some(Script::new(self.options.behaviours(machine), &mut self.rng));
        self.instances.push(twin);
        self.start_machine(machine);
    }

    /// The end of the safety phase: the network is timely, the disks are fast, and all machines are up.
    pub fn heal(&mut self) {
        self.trace(|| "healed".to_owned());
        self.network.heal();
        self.queue.clear();
        let events = std::mem::take(&mut self.events);
        let mut numbers: Vec<u64> = events.keys().copied().collect();
        numbers.sort_unstable();
        let mut events = events;
        for number in numbers {
            let Some(event) = events.remove(&number) else { continue };
            // What was on its way arrives now; what was still to go wrong does not.
            if !matches!(event, Event::Fault(_)) {
                self.schedule(self.now_us + 1, event);
            }
        }
        self.instances.iter_mut().for_each(|instance| {
            instance.slowness = 1;
            instance.timer_us = None;
        });
        for index in 0..self.instances.len() {
            if !self.instances[index].spent.is_empty() || self.is_stopped(index) {
                self.crash_machine(self.instances[index].machine);
            }
        }
        for machine in self.machines() {
            self.start_machine(machine);
        }
        for index in 0..self.instances.len() {
            self.schedule_timer(index);
        }
        self.note_cold();
    }

    /// Whether a machine has found its counter spent, and waits to be restarted.
    fn is_stopped(&self, index: usize) -> bool {
        let running = self.instances[index].running.as_ref();
        running.is_some_and(|machine| machine.status().phase == Phase::Stopped)
    }

    /// Everything loses power and comes back: how a protocol without rejoining gets its machines back.
    pub fn power_cycle(&mut self) {
        self.trace(|| "power cycle".to_owned());
        self.crash_all();
        for machine in self.machines() {
            self.start_machine(machine);
        }
    }
}
