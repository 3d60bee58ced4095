//! The voters' and clients' side: COMMIT-DBs, results, fetches, and requests that are sent again.

use std::sync::Arc;

use ordering::agreement::{Agreement, Input};
use ordering::assignment::{Assignment, AssignmentChange};
use ordering::identifiers::{MachineId, Order};
use ordering::message::{CommitDb, CommitDbEntry, Request};
use ordering::verified::Verified;
use rand::RngExt;

use super::faults::Mischief;
use super::{Cluster, Event, Observation, Packet, TICK_US};
use crate::adversary::Behaviour;
use crate::protocol::Protocol;
use crate::violation::Violation;
use crate::voter::{Database, Voter, Wanted};

/// What a voter's wish is to a machine.
pub(super) fn input_of<M>(from: MachineId, wanted: Wanted) -> Input<M> {
    match wanted {
        Wanted::From(order) => Input::FetchCommitDb { from, order },
        Wanted::Body(order, digest) => Input::FetchRequest { from, order, digest },
    }
}

impl<P: Protocol> Cluster<P> {
    /// Decided: whole to the own voter, digests to all others.
    pub(super) fn deliver(&mut self, index: usize, message: CommitDb) {
        let machine = self.instances[index].machine;
        let is_correct = self.is_correct(machine);
        if is_correct {
            for entry in &message.entries {
                let group = message.group;
                self.trace(|| format!("m{machine} decides order {} of group {group}", entry.order));
                self.last_decided = self.last_decided.max(entry.order);
                self.observe(&Observation::Delivered { machine, group, entry });
            }
            let groups = self.options.groups;
            if let Some(hand) = self.hand.as_mut() {
                hand.delivers(machine, &message, groups);
            }
        }
        let mut digests = CommitDb {
            group: message.group,
            entries: message.entries.iter().map(without_body).collect(),
        };
        if is_correct {
            self.count_commit_db(machine, machine, &message);
        } else {
            self.lie_to_voters(index, &mut digests);
        }
        let digests = Arc::new(digests);
        for other in self.machines().filter(|other| *other != machine) {
            if self.voters[usize::from(other.0)].is_some() {
                self.transmit(index, other, Packet::CommitDb(Arc::clone(&digests)));
            }
        }
    }

    fn lie_to_voters(&mut self, index: usize, message: &mut CommitDb) {
        let Some(script) = self.instances[index].script.as_ref() else {
            return;
        };
        if !script.does(Behaviour::LyingToVoters, &mut self.rng) {
            return;
        }
        self.counts.lies.count("tells voters something else", true);
        for entry in &mut message.entries {
            match self.rng.random_range(0..3) {
                0 => entry.digest = [0; 32],
                1 => entry.digest[0] ^= 1,
                _ => entry.time_us += 1,
            }
        }
    }

    /// An answer to a voter's fetch: what a correct machine serves is what was decided, also the body of one order.
    pub(super) fn answer_voter(&mut self, index: usize, to: MachineId, message: CommitDb) {
        if let Some(answers) = self.hand.as_mut().and_then(|hand| hand.answers.as_mut()) {
            answers.push(message);
            return;
        }
        let machine = self.instances[index].machine;
        let is_claim = self.is_correct(machine);
        for entry in message.entries.iter().filter(|_| is_claim) {
            let group = message.group;
            self.observe(&Observation::Delivered { machine, group, entry });
        }
        if to == machine {
            if self.is_correct(machine) {
                self.count_commit_db(machine, machine, &message);
            }
            return;
        }
        self.transmit(index, to, Packet::CommitDb(Arc::new(message)));
    }

    /// The voter on a correct machine hears a replica.
    pub(super) fn count_commit_db(&mut self, machine: MachineId, from: MachineId, message: &CommitDb) {
        if let Some(voter) = self.voters[usize::from(machine.0)].as_mut() {
            voter.count(from, message);
        }
        self.execute(machine);
    }

    /// A replica cannot give the voter on a correct machine what it lacks. When f+1 cannot, its database is repaired
    /// from the one of a correct machine that is furthest: that this is possible is what cutting relies on.
    pub(super) fn log_begins(&mut self, machine: MachineId, from: MachineId, first: Order) {
        if !self.is_correct(machine) {
            return;
        }
        let voter = self.voters[usize::from(machine.0)].as_mut();
        let Some((executed, first)) = voter.and_then(|voter| Some((voter.executed(), voter.log_begins(from, first)?)))
        else {
            return;
        };
        let others = self.machines().filter(|other| self.is_correct(*other));
        let others = others.filter_map(|other| self.voters[usize::from(other.0)].as_ref());
        let furthest = others.map(Voter::database).max_by_key(|database| database.order);
        let is_capped = self.options.log_bytes_max < 1 << 32;
        let reaches = |database: &Database| database.order.next() >= first && database.order > executed;
        let Some(furthest) = furthest.filter(|other| is_capped && reaches(other)) else {
            let description = format!("f+1 logs begin at {first}, which the voter of m{machine} or every one lacks");
            self.violation
                .get_or_insert(Violation::safety("durability", description));
            return;
        };
        self.trace(|| format!("m{machine}'s database is repaired: {}", furthest.order));
        self.counts.repairs += 1;
        let executed = furthest.order;
        if let Some(voter) = self.voters[usize::from(machine.0)].as_mut() {
            voter.repair(furthest);
        }
        let quorum = usize::from(self.options.faults) + 1;
        let clients = self.clients.iter_mut();
        clients.for_each(|client| client.repaired(machine, executed, quorum));
        self.observe(&Observation::Restarted { machine, executed });
    }

    fn execute(&mut self, machine: MachineId) {
        while let Some(voter) = self.voters[usize::from(machine.0)].as_mut() {
            let Some(executed) = voter.execute() else { return };
            self.observe(&Observation::Executed {
                machine,
                order: executed.order,
                group: executed.group,
                time_us: executed.time_us,
                request: executed.request.as_deref(),
                digest: executed.digest,
                has_effect: executed.has_effect,
            });
            let quorum = usize::from(self.options.faults) + 1;
            if let Some(request) = executed.request.filter(|_| executed.has_effect || executed.is_refused)
                && let Some(client) = self.clients.get_mut(request.client.0 as usize)
            {
                client.answered(request.number, &executed.digest, machine, executed.order, quorum);
            }
        }
    }

    /// Clients submit and send again; voters flush, say how far they are, and fetch.
    pub(super) fn tick(&mut self) {
        self.submit();
        self.resend();
        self.resend_changes();
        self.resend_by_hand();
        for machine in self.machines() {
            self.tick_voter(machine);
        }
        self.schedule(self.now_us + TICK_US, Event::Tick);
    }

    fn submit(&mut self) {
        let ticks_left = self.submits_until_us.saturating_sub(self.now_us) / TICK_US + 1;
        for client in 0..self.clients.len() {
            let share = u64::from(self.to_submit[client]).div_ceil(ticks_left);
            for _ in 0..self
                .rng
                .random_range(0..=2 * share)
                .min(u64::from(self.to_submit[client]))
            {
                self.to_submit[client] -= 1;
                self.submit_one(client);
            }
        }
        if self.is_busy() {
            self.submit_one(self.clients.len() - 1);
        }
        if self.now_us < self.submits_until_us {
            for client in 0..self.byzantine_clients.len() {
                if self.rng.random_bool(0.2) {
                    self.mischief(client);
                }
            }
        }
    }

    fn submit_one(&mut self, client: usize) {
        let bytes_max = self.options.operation_bytes_max;
        let verified = self.clients[client].submit(&self.directory, self.now_us, bytes_max, &mut self.rng);
        let (request, digest) = (verified.message().clone(), *verified.digest());
        let request = &request;
        self.observe(&Observation::Signed { request, digest });
    }

    /// Whether the busy client goes on after the safety phase: nothing else must be passed over for its requests.
    fn is_busy(&self) -> bool {
        let Some((_, others)) = self.clients.split_last().filter(|_| self.options.busy_client) else {
            return false;
        };
        self.now_us >= self.submits_until_us && others.iter().any(|client| client.unended().next().is_some())
    }

    /// Lets each correct client submit some more requests, at once.
    pub fn submit_more(&mut self, requests: u32) {
        self.submits_until_us = self.now_us;
        self.to_submit.iter_mut().for_each(|left| *left += requests);
    }

    fn resend(&mut self) {
        for client in 0..self.clients.len() {
            for verified in self.clients[client].due(self.now_us) {
                self.send_request(self.reached[client], &verified);
            }
        }
    }

    /// The last assignment that a correct machine knows to be decided.
    fn last_assignment(&self) -> Assignment {
        let running = self.correct().filter(|instance| instance.configuration.has_replicas());
        let running = running.filter_map(|instance| instance.running.as_ref());
        let assignments = running.map(|machine| machine.status().assignment);
        assignments.max().unwrap_or(Assignment::FIRST)
    }

    /// The administrator wants so many groups to be in charge.
    pub(super) fn scale(&mut self, groups: u16, mischief: Mischief) {
        let version = self.last_assignment().version;
        let others = u64::from_le_bytes([0b0101_0101; 8]);
        let changes = match mischief {
            Mischief::None => vec![(u64::MAX, version + 1, groups)],
            Mischief::Few(audience) => vec![(audience, version + 1, groups)],
            Mischief::OldVersion => vec![(u64::MAX, version, groups)],
            Mischief::LaterVersion => vec![(u64::MAX, version + 2, groups)],
            Mischief::Two => vec![(others, version + 1, groups), (!others, version + 1, groups + 1)],
            Mischief::Again => Vec::new(),
        };
        for (audience, version, groups) in changes {
            let verified = self.sign_change(version, groups);
            self.administrator.asked.push((audience, self.now_us, verified));
        }
        if mischief == Mischief::Again {
            let asked = self.administrator.asked.iter_mut();
            asked.for_each(|(_, next_us, _)| *next_us = 0);
        }
    }

    /// The administrator signs a change.
    pub(crate) fn sign_change(&mut self, version: u64, groups: u16) -> Verified<Arc<Request>> {
        let request = self.administrator.ask(AssignmentChange { version, groups });
        let verified = self.directory.verify_request(request).expect("it is signed rightly");
        let (request, digest) = (verified.message().clone(), *verified.digest());
        let request = &request;
        self.observe(&Observation::Signed { request, digest });
        verified
    }

    /// What the administrator asks for is sent again until its version is there.
    fn resend_changes(&mut self) {
        if self.administrator.asked.is_empty() {
            return;
        }
        let version = self.last_assignment().version;
        for (audience, verified) in self.administrator.due(self.now_us, version) {
            self.send_request(audience, &verified);
        }
    }

    fn mischief(&mut self, client: usize) {
        let bytes_max = self.options.operation_bytes_max;
        for (audience, request) in self.byzantine_clients[client].mischief(bytes_max, &mut self.rng) {
            match self.directory.verify_request(request) {
                Err(_) => self.counts.requests_rejected += 1,
                Ok(verified) => {
                    let (request, digest) = (verified.message(), *verified.digest());
                    self.observe(&Observation::Signed { request, digest });
                    self.send_request(audience, &verified);
                }
            }
        }
    }

    pub(super) fn send_request(&mut self, audience: u64, verified: &Verified<Arc<Request>>) {
        for to in 0..self.instances.len() {
            let machine = self.instances[to].machine;
            let is_cut = audience & (1 << machine.0) == 0;
            // Clients are no machines: only loss and delay concern them.
            for delay_us in self.network.delays(machine, machine, &mut self.rng) {
                if !is_cut {
                    let packet = Packet::Request(verified.clone());
                    let event = Event::Arrive {
                        from: machine,
                        to,
                        packet,
                    };
                    self.schedule(self.now_us + delay_us, event);
                }
            }
        }
    }

    fn tick_voter(&mut self, machine: MachineId) {
        let Some(index) = self.indices(machine).first().copied() else {
            return;
        };
        if self.instances[index].running.is_none() || !self.is_correct(machine) {
            return;
        }
        let flushes = self.rng.random_bool(0.3);
        let Some(voter) = self.voters[usize::from(machine.0)].as_mut() else {
            return;
        };
        if flushes {
            voter.flush();
        }
        let (reply, wanted) = (voter.reply(), voter.tick());
        for other in self.machines() {
            if flushes && other != machine {
                self.transmit(index, other, Packet::Reply(reply.clone()));
            }
            if let Some(wanted) = wanted {
                if other == machine {
                    self.step(index, input_of(machine, wanted));
                } else {
                    self.transmit(index, other, Packet::Wanted(wanted));
                }
            }
        }
        if flushes {
            self.step(index, Input::Reply { from: machine, reply });
        }
        self.execute(machine);
    }
}

fn without_body(entry: &CommitDbEntry) -> CommitDbEntry {
    CommitDbEntry {
        order: entry.order,
        time_us: entry.time_us,
        digest: entry.digest,
        request: None,
    }
}
