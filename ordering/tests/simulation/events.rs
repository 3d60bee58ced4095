//! The events of a machine, and how its outputs are carried out.

use crate::cluster::{Cluster, Decided, Event, START_WALL_US, Scheduled};
use ordering::agreement::{Agreement, Now, To};
use ordering::configuration::group_of;
use ordering::identifiers::MachineId;
use ordering::ledger::{LogAnswer, LogIndex};
use ordering::message::CommitDb;
use ordering::minbft::{Input, LogReader, Message, Output, Record, verify_message};
use rand::RngExt;
use std::sync::Arc;
use trusted_counter::TrustedCounter;

impl Cluster {
    pub(crate) fn happen(&mut self, scheduled: Scheduled) {
        let id = scheduled.machine;
        let node = &mut self.nodes[usize::from(id.0)];
        if node.machine.is_none() || scheduled.life.is_some_and(|life| life != node.life) {
            return;
        }
        let input = match scheduled.event {
            Event::Arrive { from, bytes } => {
                let message: Message = borsh::from_slice(&bytes).unwrap();
                match verify_message(from, message, &self.directory) {
                    Ok(message) => Input::Message { from, message },
                    Err(rejection) => {
                        self.rejected.push((from, rejection));
                        return;
                    }
                }
            }
            Event::Request { index } => Input::Request(self.submitted[index].verified.clone()),
            Event::Certified { ticket, warrant } => Input::Certified { ticket, warrant },
            Event::Synced { sequence } => {
                node.sync_scheduled = false;
                let records = std::mem::take(&mut node.disk.buffer);
                let (synced, rest): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|(written, _)| *written <= sequence);
                node.disk.log.extend(synced.into_iter().map(|(_, record)| record));
                node.disk.buffer = rest;
                if let Some((last, _)) = node.disk.buffer.last() {
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
        let node = &mut self.nodes[usize::from(id.0)];
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
            "a step must move its deadline on: m{id}"
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
        let life = self.nodes[usize::from(id.0)].life;
        match output {
            Output::Persist { sequence, record } => {
                let node = &mut self.nodes[usize::from(id.0)];
                node.disk.buffer.push((sequence, borsh::to_vec(&record).unwrap()));
                if !node.sync_scheduled {
                    self.schedule_sync(id, sequence);
                }
            }
            Output::Certify { slot, digest, ticket } => {
                let node = &mut self.nodes[usize::from(id.0)];
                let warrant = node.counter.create_uw(slot, &digest).unwrap();
                // The counter answers in order.
                self.schedule(self.now_us + 30, id, Some(life), Event::Certified { ticket, warrant });
            }
            Output::Send { to, message } => self.send(id, to, &message),
            Output::Deliver(message) => self.delivered(id, &message),
            Output::Answer { message, .. } => answers.push(message),
            Output::ReadLog { reader } => match self.read_log(id, reader) {
                LogAnswer::Voter { messages, .. } => answers.extend(messages),
                LogAnswer::Peer { to, message } => self.send(id, To::Machine(to), &message),
            },
            // Only m0's may: `tests/simulator` cuts the others.
            Output::CutLog { .. } => assert_eq!(id, MachineId(0)),
            Output::LogBegins { .. } => panic!("these histories are too short to be cut"),
            Output::Report(misbehaviour) => self.reports.push((misbehaviour.machine, misbehaviour.kind)),
        }
    }

    /// As the shell does it: through the index, until the reader is full.
    pub(crate) fn read_log(&self, id: MachineId, mut reader: LogReader) -> LogAnswer<Message> {
        let log = &self.nodes[usize::from(id.0)].disk.log;
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
            To::Others => self.machines().collect(),
            To::Replicas => self.replicas().collect(),
        };
        let misplaced = self.misplaced(from, message);
        let message = misplaced.as_ref().unwrap_or(message);
        let bytes = Arc::new(borsh::to_vec(message).unwrap());
        self.largest = self.largest.max(bytes.len());
        self.new_views += u64::from(matches!(message, Message::NewView(_)));
        for to in targets.into_iter().filter(|to| *to != from) {
            self.sent += 1;
            let is_lost = self.rng.random_bool(self.weather.loss)
                || self.cut.contains(&(from, to))
                || !(self.filter)(from, to, message);
            if is_lost {
                continue;
            }
            let copies = if self.rng.random_bool(self.weather.duplication) {
                2
            } else {
                1
            };
            for _ in 0..copies {
                let at_us = self.now_us + self.rng.random_range(10..=self.weather.delay_max_us.max(11));
                self.schedule(
                    at_us,
                    to,
                    None,
                    Event::Arrive {
                        from,
                        bytes: Arc::clone(&bytes),
                    },
                );
            }
        }
    }

    pub(crate) fn delivered(&mut self, id: MachineId, message: &CommitDb) {
        for entry in &message.entries {
            let decided = Decided {
                group: message.group,
                time_us: entry.time_us,
                digest: entry.digest,
            };
            let known = self.decided.entry(entry.order).or_insert(decided);
            self.done.insert(entry.digest);
            assert_eq!(*known, decided, "agreement: m{id} differs at order {}", entry.order);
            let is_nothing = entry.digest == [0; 32];
            assert_eq!(
                entry.request.is_none(),
                is_nothing,
                "whole operations go to the local voter"
            );
            if let Some(request) = &entry.request {
                assert_eq!(request.digest(), entry.digest);
                assert_eq!(group_of(request.home, self.groups), message.group);
            }
            let node = &mut self.nodes[usize::from(id.0)];
            let before = node.delivered.insert(entry.order, entry.digest);
            assert!(before.is_none(), "m{id} delivers order {} twice", entry.order);
        }
    }
}
