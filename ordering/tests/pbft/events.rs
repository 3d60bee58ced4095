//! The events of a machine, and how its outputs are carried out.

use crate::cluster::{Cluster, Event, START_WALL_US, Scheduled};
use ordering::agreement::{Agreement, Now, To};
use ordering::identifiers::MachineId;
use ordering::ledger::{LogAnswer, LogIndex};
use ordering::message::CommitDb;
use ordering::pbft::{Input, LogReader, Message, Output, Record, verify_message};
use rand::RngExt;
use std::sync::Arc;

impl Cluster {
    pub(crate) fn happen(&mut self, scheduled: Scheduled) {
        let id = scheduled.machine;
        let node = &mut self.nodes[usize::from(id.0)];
        if node.machine.is_none() || scheduled.life.is_some_and(|life| life != node.life) {
            return;
        }
        let input = match scheduled.event {
            Event::Arrive { from, bytes } => {
                match verify_message(from, borsh::from_slice(&bytes).unwrap(), &self.directory) {
                    Ok(message) => Input::Message { from, message },
                    Err(rejection) => return self.rejected.push((from, rejection)),
                }
            }
            Event::Request { index } => Input::Request(self.submitted[index].verified.clone()),
            Event::Synced { sequence } => {
                node.sync_scheduled = false;
                let records = std::mem::take(&mut node.buffer);
                let (synced, rest): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|(written, _)| *written <= sequence);
                node.make_durable(synced.into_iter());
                node.buffer = rest;
                if let Some((last, _)) = node.buffer.last() {
                    let last = *last;
                    self.schedule_sync(id, last);
                }
                Input::Persisted(sequence)
            }
            Event::Timer => Input::Timeout,
        };
        self.step(id, input);
    }

    pub(crate) fn schedule_sync(&mut self, id: MachineId, sequence: u64) {
        let at_us = self.now_us + self.rng.random_range(200..2_000);
        let node = self.node_mut(id);
        node.sync_scheduled = true;
        let life = node.life;
        self.schedule(at_us, id, Some(life), Event::Synced { sequence });
    }

    pub(crate) fn step(&mut self, id: MachineId, input: Input) -> Vec<CommitDb> {
        let now = Now {
            monotonic_us: self.now_us,
            wall_us: START_WALL_US + self.now_us,
        };
        let mut outputs = Vec::new();
        let machine = self.nodes[usize::from(id.0)].machine.as_mut().unwrap();
        let before = machine.deadline();
        let is_timeout = matches!(input, Input::Timeout);
        machine.step(now, input, &mut outputs);
        machine.check_invariants();
        let deadline = machine.deadline();
        assert!(
            deadline.is_none_or(|deadline| deadline > self.now_us),
            "a step must move its deadline on"
        );
        let mut answers = Vec::new();
        for output in outputs {
            self.carry_out(id, output, &mut answers);
        }
        if is_timeout || deadline < before || before.is_none() {
            self.schedule_timer(id);
        }
        answers
    }

    pub(crate) fn carry_out(&mut self, id: MachineId, output: Output, answers: &mut Vec<CommitDb>) {
        match output {
            Output::Persist { sequence, record } => {
                let node = self.node_mut(id);
                node.buffer.push((sequence, borsh::to_vec(&record).unwrap()));
                if !node.sync_scheduled {
                    self.schedule_sync(id, sequence);
                }
            }
            Output::Certify { .. } => panic!("PBFT has no trusted counter"),
            Output::Send { to, message } => self.send(id, to, &message),
            Output::Deliver(message) => self.delivered(id, &message),
            Output::Answer { message, .. } => answers.push(message),
            Output::ReadLog { reader } => match self.read_log(id, reader) {
                LogAnswer::Voter { messages, .. } => answers.extend(messages),
                LogAnswer::Peer { to, message } => self.send(id, To::Machine(to), &message),
            },
            Output::LogBegins { .. } | Output::CutLog { .. } => panic!("these histories are too short to be cut"),
            Output::Report(misbehaviour) => {
                if !self.adversaries.contains_key(&id) {
                    self.reports.push((misbehaviour.machine, misbehaviour.kind));
                }
            }
        }
    }

    /// As the shell does it: through the index, until the reader is full.
    pub(crate) fn read_log(&self, id: MachineId, mut reader: LogReader) -> LogAnswer<Message> {
        let log = &self.node(id).log;
        let (mut index, mut offset) = (LogIndex::default(), 0);
        let mut offsets = Vec::new();
        for bytes in log {
            let record: Record = borsh::from_slice(bytes).unwrap();
            index.add(offset, &record);
            offsets.push(offset);
            offset += bytes.len() as u64;
        }
        let begin = index.offset(reader.from());
        for (bytes, _) in log.iter().zip(offsets).filter(|(_, offset)| *offset >= begin) {
            if reader.is_full() {
                break;
            }
            reader.push(borsh::from_slice(bytes).unwrap());
        }
        reader.finish()
    }

    pub(crate) fn send(&mut self, from: MachineId, to: To, message: &Message) {
        let targets: Vec<MachineId> = match to {
            To::Machine(id) => vec![id],
            To::Others | To::Replicas => self.machines().collect(),
        };
        for to in targets.into_iter().filter(|to| *to != from) {
            match self.adversaries.remove(&from) {
                Some(mut adversary) => {
                    let messages = adversary.rewrite(&self.keys[usize::from(from.0)], to, message);
                    self.adversaries.insert(from, adversary);
                    messages.iter().for_each(|message| self.transmit(from, to, message));
                }
                None => {
                    self.check_durable(from, message);
                    self.transmit(from, to, message);
                }
            }
        }
    }

    pub(crate) fn transmit(&mut self, from: MachineId, to: MachineId, message: &Message) {
        self.sent += 1;
        let is_lost = self.rng.random_bool(self.weather.loss)
            || self.cut.contains(&(from, to))
            || !(self.filter)(from, to, message);
        if is_lost {
            return;
        }
        let bytes = Arc::new(borsh::to_vec(message).unwrap());
        let copies = 1 + usize::from(self.rng.random_bool(self.weather.duplication));
        for _ in 0..copies {
            let at_us = self.now_us + self.rng.random_range(10..=self.weather.delay_max_us.max(11));
            let bytes = Arc::clone(&bytes);
            self.schedule(at_us, to, None, Event::Arrive { from, bytes });
        }
    }
}
