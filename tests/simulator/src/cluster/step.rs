//! Feeding a machine, and carrying out what it wants.

use ordering::agreement::{Agreement, Input, MisbehaviourKind, Output};
use ordering::identifiers::{MachineId, Order};
use ordering::ledger::{LogAnswer, LogIndex};
use rand::RngExt;
use trusted_counter::UniqueWarrant;

use super::{Cluster, Event, Observation, Packet, VERIFIED_MAX, Verification};
use crate::adversary::Seen;
use crate::protocol::Protocol;
use crate::violation::Violation;

/// How much of a message an event log shows.
const CONTENT_CHARACTERS: usize = 120;

/// How long the trusted counter takes, in microseconds.
const COUNTER_US: u64 = 30;

/// The shortest sync of a disk, in microseconds.
const SYNC_MIN_US: u64 = 100;

type MachineOutput<P> = Output<<P as Protocol>::Message, <P as Protocol>::Record, <P as Protocol>::Reader>;

impl<P: Protocol> Cluster<P> {
    pub(super) fn arrive(&mut self, from: MachineId, to: usize, packet: Packet) {
        let machine = self.instances[to].machine;
        let is_up = self.instances[to].running.is_some();
        match packet {
            Packet::CommitDb(message) => {
                if is_up && self.is_correct(machine) {
                    self.count_commit_db(machine, from, &message);
                }
            }
            _ if !is_up => {}
            Packet::Agreement { bytes, is_forged } => self.receive(from, to, &bytes, is_forged),
            Packet::Request(verified) => {
                let request = verified.message();
                let group = ordering::configuration::group_of(request.home, self.options.groups);
                let digest = *verified.digest();
                self.instances[to].see(Seen { digest, group });
                self.step(to, Input::Request(verified));
            }
            Packet::Wanted(wanted) => self.step(to, super::voters::input_of(from, wanted)),
            Packet::LogBegins(first) => self.log_begins(machine, from, first),
            Packet::Reply(reply) => self.step(to, Input::Reply { from, reply }),
        }
    }

    fn receive(&mut self, from: MachineId, to: usize, bytes: &[u8], is_forged: bool) {
        match self.verify(from, bytes) {
            None => self.counts.undecodable += 1,
            Some(Err(rejection)) => {
                *self.counts.rejected.entry(rejection).or_default() += 1;
                let by = self.instances[to].machine;
                if let Some(hand) = self.hand.as_mut() {
                    hand.rejected.push((from, rejection));
                }
                if self.is_correct(from) && self.is_correct(by) && !self.is_framed(from) {
                    let kind = borsh::from_slice(bytes).map_or("message", |message| P::kind(&message));
                    let machine = from;
                    self.observe(&Observation::Refused {
                        by,
                        machine,
                        kind,
                        rejection,
                    });
                }
            }
            Some(Ok(message)) => {
                if is_forged {
                    let kind = P::kind(message.message());
                    let description = format!("a {kind} of m{from} was altered, and verification accepted it");
                    self.violation
                        .get_or_insert(Violation::safety("authenticity", description));
                    return;
                }
                let (machine, side) = (self.instances[to].machine, self.instances[to].side);
                self.trace(|| {
                    let twin = if side == 1 { "'" } else { "" };
                    let (kind, content) = (P::kind(message.message()), format!("{:?}", message.message()));
                    let content: String = content.chars().take(CONTENT_CHARACTERS).collect();
                    format!("m{machine}{twin} <- m{from} {kind} {content}")
                });
                if let Some(script) = self.instances[to].script.as_mut() {
                    script.hear(message.message(), &mut self.rng);
                    if script.ignores(P::kind(message.message())) {
                        return;
                    }
                }
                self.step(to, Input::Message { from, message });
            }
        }
    }

    /// Decodes and verifies as a receiver does. What many receive from one sender is verified once: verification
    /// depends on nothing else.
    pub(super) fn verify(&mut self, from: MachineId, bytes: &[u8]) -> Option<Verification<P::Message>> {
        let key = (from, blake3::hash(bytes));
        if let Some(known) = self.verified.get(&key) {
            return Some(known.clone());
        }
        let message: P::Message = borsh::from_slice(bytes).ok()?;
        let verified = P::verify(from, message, &self.directory);
        if self.verified.len() >= VERIFIED_MAX {
            self.verified.clear();
        }
        self.verified.insert(key, verified.clone());
        Some(verified)
    }

    pub(super) fn certified(&mut self, to: usize, life: u64, ticket: u64, warrant: UniqueWarrant) {
        if self.instances[to].life == life && self.instances[to].running.is_some() {
            self.step(to, Input::Certified { ticket, warrant });
        }
    }

    pub(super) fn synced(&mut self, to: usize, life: u64, sequence: u64, bytes: usize) {
        let instance = &mut self.instances[to];
        if instance.life != life || instance.running.is_none() {
            return;
        }
        instance.disk.sync(bytes);
        instance.is_syncing = false;
        let machine = instance.machine;
        if let Some(watch) = self.hand.as_mut().and_then(|hand| hand.watch.as_mut()) {
            watch.synced(machine, sequence);
        }
        self.schedule_sync(to);
        self.step(to, Input::Persisted(sequence));
    }

    pub(super) fn timer(&mut self, to: usize, life: u64) {
        let instance = &mut self.instances[to];
        if instance.life != life {
            return;
        }
        instance.timer_us = None;
        let Some(deadline) = instance.running.as_ref().and_then(|machine| machine.deadline()) else {
            return;
        };
        if deadline <= instance.clock.now(self.now_us).monotonic_us {
            self.step(to, Input::Timeout);
        } else {
            self.schedule_timer(to);
        }
    }

    pub(super) fn schedule_timer(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        let Some(deadline) = instance.running.as_ref().and_then(|machine| machine.deadline()) else {
            return;
        };
        let at_us = instance.clock.when(deadline).max(self.now_us);
        if instance.timer_us.is_some_and(|scheduled_us| scheduled_us <= at_us) {
            return;
        }
        instance.timer_us = Some(at_us);
        let life = instance.life;
        self.schedule(at_us, Event::Timer { to: index, life });
    }

    fn schedule_sync(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        let Some(sequence) = instance.disk.pending().filter(|_| !instance.is_syncing) else {
            return;
        };
        let most_us = self.options.sync_max_us.max(SYNC_MIN_US + 1);
        let duration_us = self.rng.random_range(SYNC_MIN_US..=most_us) * instance.slowness;
        instance.is_syncing = true;
        let (life, bytes) = (instance.life, instance.disk.unsynced_bytes());
        let event = Event::Synced {
            to: index,
            life,
            sequence,
            bytes,
        };
        self.schedule(self.now_us + duration_us, event);
    }

    /// Feeds an instance that is up, now or together with what comes until it looks.
    pub(crate) fn step(&mut self, index: usize, input: Input<P::Message>) {
        let together_us = self.options.together_us;
        if together_us == 0 {
            self.step_all(index, vec![input]);
            return;
        }
        let instance = &mut self.instances[index];
        if instance.running.is_some() {
            instance.waiting.push(input);
        }
        if instance.waiting.len() == 1 {
            let (life, look_us) = (instance.life, (self.now_us / together_us + 1) * together_us);
            self.schedule(look_us, Event::Look { to: index, life });
        }
    }

    /// Takes what has come.
    pub(super) fn look(&mut self, to: usize, life: u64) {
        if self.instances[to].life == life {
            let inputs = std::mem::take(&mut self.instances[to].waiting);
            self.step_all(to, inputs);
        }
    }

    fn step_all(&mut self, index: usize, inputs: Vec<Input<P::Message>>) {
        let instance = &mut self.instances[index];
        let now = instance.clock.now(self.now_us);
        let shows_spent = inputs.iter().any(|input| instance.shows_spent_counter(input));
        let Some(machine) = instance.running.as_mut() else {
            return;
        };
        let mut outputs = Vec::new();
        machine.step_all(now, inputs, &mut outputs);
        self.counts.steps += 1;
        let deadline = machine.deadline();
        let is_correct = self.is_correct(self.instances[index].machine);
        if is_correct {
            let machine = self.instances[index].running.as_ref();
            machine.into_iter().for_each(|machine| machine.check_invariants());
            if deadline.is_some_and(|deadline| deadline <= now.monotonic_us) {
                let description = format!(
                    "a step of m{} leaves a deadline that is over",
                    self.instances[index].machine
                );
                self.violation
                    .get_or_insert(Violation::liveness("progress", description));
            }
        }
        let sent_before = self.counts.sent;
        let mut sent_bytes = 0;
        for output in outputs {
            sent_bytes += self.carry_out(index, output);
        }
        self.schedule_timer(index);
        if shows_spent {
            self.restart_stopped(index);
        }
        if is_correct && (self.counts.sent > sent_before || self.counts.steps.is_multiple_of(8)) {
            self.observe_step(index, sent_bytes);
        }
    }

    fn observe_step(&mut self, index: usize, sent_bytes: usize) {
        let instance = &self.instances[index];
        let Some(machine) = instance.running.as_ref() else {
            return;
        };
        let (status, history) = (machine.status(), P::history(machine));
        let observation = Observation::Stepped {
            machine: instance.machine,
            configuration: &instance.configuration,
            status: &status,
            history,
            sent_bytes,
        };
        if let Err(violation) = self.checkers.observe(&observation) {
            self.violation.get_or_insert(violation);
        }
    }

    /// Carries out one output; tells how many bytes it has sent.
    fn carry_out(&mut self, index: usize, output: MachineOutput<P>) -> usize {
        match output {
            Output::Persist { sequence, record } => {
                let bytes = borsh::to_vec(&record).expect("records encode");
                self.instances[index].disk.append(sequence, &bytes);
                let machine = self.instances[index].machine;
                if let Some(watch) = self.hand.as_mut().and_then(|hand| hand.watch.as_mut()) {
                    watch.writes(machine, sequence, &record);
                }
                self.schedule_sync(index);
            }
            Output::Certify { slot, digest, ticket } => {
                let warrant = self.certify(index, slot, &digest);
                let (to, life) = (index, self.instances[index].life);
                let event = Event::Certified {
                    to,
                    life,
                    ticket,
                    warrant,
                };
                self.schedule(self.now_us + COUNTER_US, event);
            }
            Output::Send { to, message } => return self.send(index, to, message),
            Output::Deliver(message) => self.deliver(index, message),
            Output::Answer { to, message } => self.answer_voter(index, to, message),
            Output::ReadLog { reader } => match P::read_log(reader, &self.instances[index].log()) {
                LogAnswer::Voter { to, messages } => {
                    for message in messages {
                        self.answer_voter(index, to, message);
                    }
                }
                LogAnswer::Peer { to, message } => {
                    return self.send(index, ordering::agreement::To::Machine(to), message);
                }
            },
            Output::LogBegins { to, first } => {
                let machine = self.instances[index].machine;
                if to == machine {
                    self.log_begins(machine, machine, first);
                } else {
                    self.transmit(index, to, Packet::LogBegins(first));
                }
            }
            Output::CutLog { first } => self.cut_log(index, first),
            Output::Report(misbehaviour) => {
                let machine = self.instances[index].machine;
                self.trace(|| format!("m{machine} reports {misbehaviour:?}"));
                if self.is_correct(machine) {
                    let key = (misbehaviour.machine, misbehaviour.kind);
                    *self.counts.reports.entry(key).or_default() += 1;
                    let (accused, kind) = (misbehaviour.machine, misbehaviour.kind);
                    if let Some(hand) = self.hand.as_mut() {
                        hand.reports.push((accused, kind));
                    }
                    // A counter that was spent behind its machine's back is the machine's own word (`own_counter.rs`).
                    let is_own = accused == machine && kind == MisbehaviourKind::OwnCounter;
                    if self.is_correct(accused) && !is_own && !self.is_framed(accused) {
                        let by = machine;
                        let machine = accused;
                        self.observe(&Observation::Accused { by, machine, kind });
                    }
                }
            }
        }
        0
    }

    /// As the shell does it, with the finest index.
    fn cut_log(&mut self, index: usize, first: Order) {
        let instance = &mut self.instances[index];
        let (mut marks, log) = (LogIndex::with_marks_every(1), instance.log());
        for (position, (_, record)) in (0..).zip(&log) {
            marks.add(position, record);
        }
        if let Some(position) = marks.cut(first, log.len() as u64) {
            instance.disk.cut(usize::try_from(position).unwrap_or(0));
            self.counts.cuts += 1;
        }
    }

    /// The counter's answer; an adversary that certifies late only pretends here.
    fn certify(&mut self, index: usize, slot: u32, digest: &[u8; 32]) -> UniqueWarrant {
        let instance = &mut self.instances[index];
        let mut counter = instance.counter.borrow_mut();
        match instance.script.as_mut().filter(|script| script.certifies_late()) {
            None => counter.create(slot, digest),
            Some(script) => {
                let position = counter.position(slot);
                let promised = script.promised.entry(slot).or_insert(position);
                *promised += 1;
                counter.pretend(slot, *promised)
            }
        }
    }
}
