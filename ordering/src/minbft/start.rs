//! The start of the cluster (rule AllLogsAtStart): fresh, or after all machines were down and their counters have new
//! epochs.
//!
//! 1. Every machine announces itself: HELLO with its counter's epoch and its highest proven checkpoint.
//! 2. The candidate of the next view takes one hello of each machine, and so fixes epochs, view and base: COLLECT.
//! 3. Every replica fetches what it lacks up to the base, and reports what its log holds above it: REPORT. From
//!    then on it takes part in no lower view.
//! 4. From the reports of **all** replicas follows how the view begins (`outcome.rs`): START carries them, and
//!    everybody computes the same.
//! 5. A replica that has this, with all bodies, in its durable log says so: ACKNOWLEDGE.
//! 6. When **all** replicas have acknowledged, the view is live, and what it takes over is decided (rule CommittedView:
//!    no correct machine can have started the view differently).
//!
//! All means all that the operator has not declared lost. A silent liar can hold a start up, but not corrupt it; one
//! that mentions a view far above those of f others counts as silent, else liars could use up the views. A
//! machine that is restarted alone takes no part in this: the live ones admit it by a view change (`suspicion.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::is_replica;
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::history::{ANSWER_BYTES_MAX, bytes_of};
use crate::minbft::journal::Persisting;
use crate::minbft::lead::Leading;
use crate::minbft::messages::{Message, Prepare};
use crate::minbft::outcome::{NOTHING, compute};
use crate::minbft::record::Record;
use crate::minbft::start_messages::{Acknowledgement, Collect, Hello, LiveProof, Outcome, OutcomeEntry, Report, Start};
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::{Machine, Output};

/// What a machine knows that does not take part in a view.
#[derive(Debug)]
pub(crate) struct StartState {
    /// The last hello of each machine.
    pub(crate) hellos: BTreeMap<MachineId, Arc<Hello>>,
    /// When each machine last said hello, monotonic: a machine that is live no longer does.
    pub(crate) heard_us: BTreeMap<MachineId, u64>,
    /// The highest view that the log or an attempt mentions.
    pub(crate) mentioned: Option<View>,
    /// From the log, or left: the last view, and its PREPAREs above the stable checkpoint.
    pub(crate) last_live: Option<Arc<LiveProof>>,
    pub(crate) prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint: from the log, from the view that was left, or fetched.
    pub(crate) held: BTreeMap<Digest, (Order, Arc<Request>)>,
    /// Our own attempt.
    pub(crate) leading: Option<Leading>,
    /// The attempt that we take part in.
    pub(crate) joined: Option<Joined>,
    /// When to say again what may have got lost, monotonic.
    pub(crate) next_us: u64,
    rounds: u64,
}

/// An attempt that we take part in.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) collect: Arc<Collect>,
    pub(crate) digest: Digest,
    pub(crate) report: Option<Arc<Report>>,
    pub(crate) outcome: Option<(Arc<Outcome>, Digest)>,
    /// Bodies of the outcome that are not here.
    pub(crate) wanted: BTreeSet<Digest>,
    /// The outcome is on its way to the log.
    pub(crate) is_logging: bool,
    /// It is in the log, and we have said so.
    pub(crate) acknowledgement: Option<Acknowledgement>,
    /// All have acknowledged; that is on its way to the log.
    pub(crate) is_finishing: bool,
    pub(crate) acknowledgements: BTreeMap<MachineId, (Digest, [u8; 64])>,
}

impl StartState {
    pub(crate) fn new(
        mentioned: Option<View>,
        last_live: Option<Arc<LiveProof>>,
        prepares: Vec<Arc<Prepare>>,
        held: BTreeMap<Digest, (Order, Arc<Request>)>,
    ) -> Self {
        StartState {
            hellos: BTreeMap::new(),
            heard_us: BTreeMap::new(),
            mentioned,
            last_live,
            prepares,
            held,
            leading: None,
            joined: None,
            next_us: 0,
            rounds: 0,
        }
    }

    /// The view is under way: what led to it is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.joined = None;
        self.leading = None;
        self.hellos.clear();
        self.held.clear();
        self.prepares.clear();
    }

    /// The last view that this machine was live in.
    pub(crate) fn last_live_view(&self) -> Option<View> {
        self.last_live.as_ref().map(|proof| proof.outcome.view)
    }

    /// The view of the attempt that this machine takes part in.
    pub(crate) fn joined_view(&self) -> Option<View> {
        self.joined.as_ref().map(|joined| joined.collect.view)
    }
}

impl Machine {
    /// Says again whatever the others may have missed.
    pub(crate) fn start_timer(&mut self, out: &mut Vec<Output>) {
        if self.start.next_us > self.now.monotonic_us {
            return;
        }
        self.start.next_us = self.now.monotonic_us + self.configuration.hello_us;
        self.start.rounds += 1;
        self.say_hello(out);
        self.lead_again(out);
        let Some(joined) = &self.start.joined else { return };
        let leader = To::Machine(self.configuration.primary(joined.collect.view));
        if let Some(acknowledgement) = joined.acknowledgement.clone() {
            self.send(To::Others, Message::Acknowledge(acknowledgement), out);
        } else if let Some(report) = joined.report.clone().filter(|_| joined.outcome.is_none()) {
            self.send(leader, Message::Report(report), out);
        }
        self.fetch_wanted(out);
        self.advance_start(out);
    }

    fn say_hello(&mut self, out: &mut Vec<Output>) {
        let mut hello = Hello {
            machine: self.configuration.machine,
            admission: self.journal.counter.clone(),
            view: self.start.mentioned,
            stable: self.checkpoints.stable.clone(),
            signature: [0; 64],
        };
        hello.signature = self.sign(&hello.digest());
        let hello = Arc::new(hello);
        self.send(To::Others, Message::Hello(Arc::clone(&hello)), out);
        self.on_hello(&hello, out);
    }

    pub(crate) fn on_collect(&mut self, collect: &Arc<Collect>, digest: Digest, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let is_ours = collect
            .hello(own)
            .is_some_and(|hello| hello.admission == self.journal.counter);
        let mut needed = self.configuration.replica_machines();
        let is_complete =
            needed.all(|machine| collect.hello(machine).is_some() || self.configuration.lost.contains(&machine));
        let is_out = self.live.is_none() && self.changing.is_none();
        if !is_out || !is_ours || !is_complete || !self.may_join(collect.view, &digest) {
            return;
        }
        self.start.mentioned = self.start.mentioned.max(Some(collect.view));
        self.start.joined = Some(Joined {
            collect: Arc::clone(collect),
            digest,
            report: None,
            outcome: None,
            wanted: BTreeSet::new(),
            is_logging: false,
            acknowledgement: None,
            is_finishing: false,
            acknowledgements: BTreeMap::new(),
        });
        self.advance_start(out);
    }

    /// A later attempt replaces an earlier one; one of the same view only as long as nothing of it is in the log.
    fn may_join(&self, view: View, digest: &Digest) -> bool {
        match &self.start.joined {
            Some(joined) if joined.collect.view == view => joined.digest != *digest && !joined.is_logging,
            Some(joined) => joined.collect.view < view,
            None => self.start.mentioned.is_none_or(|mentioned| mentioned < view),
        }
    }

    /// Does whatever the attempt can do now.
    pub(crate) fn advance_start(&mut self, out: &mut Vec<Output>) {
        let Some(joined) = self.start.joined.as_ref().filter(|_| self.live.is_none()) else {
            return;
        };
        if !self.configuration.has_replicas() {
            self.finish_start(out);
            return;
        }
        let base = joined.collect.base().order;
        if self.history.point.order < base {
            self.fetch_history(base, out);
        } else if joined.report.is_none() {
            self.report_log(out);
        } else if joined.outcome.is_some() && !joined.is_logging && joined.wanted.is_empty() {
            self.log_outcome(out);
        } else {
            self.finish_start(out);
        }
    }

    /// Tells the leader what our log holds above the base.
    fn report_log(&mut self, out: &mut Vec<Output>) {
        let Some(joined) = self.start.joined.as_ref() else {
            return;
        };
        let base = joined.collect.base().order;
        let above = |prepare: &&Arc<Prepare>| prepare.last() > base;
        let held = self
            .start
            .held
            .iter()
            .filter(|(_, (order, _))| *order > base)
            .map(|(digest, (_, request))| (*digest, self.configuration.group_of(request.home)));
        let mut report = Report {
            machine: self.configuration.machine,
            collect: joined.digest,
            live: self.start.last_live.clone(),
            prepares: self.start.prepares.iter().filter(above).cloned().collect(),
            held: held.collect(),
            signature: [0; 64],
        };
        report.signature = self.sign(&report.digest());
        let report = Arc::new(report);
        let leader = self.configuration.primary(joined.collect.view);
        if let Some(joined) = self.start.joined.as_mut() {
            joined.report = Some(Arc::clone(&report));
        }
        self.send(To::Machine(leader), Message::Report(Arc::clone(&report)), out);
        if leader == self.configuration.machine {
            self.on_report(&report, out);
        }
    }

    pub(crate) fn on_start(&mut self, start: &Arc<Start>, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let leader = self.configuration.primary(start.collect.view);
        if self.live.is_some() {
            // The leader repeats what led here: it has not heard of all acknowledgements.
            return self.tell_live(leader, out);
        }
        // Of two attempts of one view, the later one may have come first.
        self.on_collect(&start.collect, start.collect.digest(), out);
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
        let has_own = start.reports.iter().find(|report| report.machine == own) == joined.report.as_ref();
        if joined.outcome.is_some() || start.collect.digest() != joined.digest || !has_own {
            return;
        }
        let Some(outcome) = compute(&start.collect, &start.reports) else {
            self.report(leader, MisbehaviourKind::WrongRecovery, out);
            return;
        };
        let is_here = |entry: &&OutcomeEntry| {
            let held = self.start.held.get(&entry.digest);
            held.is_some_and(|(_, request)| self.configuration.group_of(request.home) == entry.group)
        };
        let wanted = outcome.entries.iter().filter(|entry| entry.digest != NOTHING);
        joined.wanted = wanted
            .filter(|entry| !is_here(entry))
            .map(|entry| entry.digest)
            .collect();
        let digest = outcome.digest();
        joined.outcome = Some((Arc::new(outcome), digest));
        self.take_pending();
        self.fetch_wanted(out);
        self.advance_start(out);
    }

    /// Bodies that clients have sent again meanwhile.
    fn take_pending(&mut self) {
        let Some(joined) = self.start.joined.as_ref() else {
            return;
        };
        let wanted = joined
            .wanted
            .iter()
            .filter_map(|digest| Some((*digest, self.bodies.pending(digest)?.clone())));
        for (digest, request) in wanted.collect::<Vec<_>>() {
            self.take_wanted(digest, request);
        }
    }

    /// Takes a body that the outcome needs.
    pub(crate) fn take_wanted(&mut self, digest: Digest, request: Arc<Request>) {
        let group = self.configuration.group_of(request.home);
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
        let outcome = joined.outcome.as_ref();
        let is_misplaced = outcome.is_some_and(|(outcome, _)| {
            let mut entries = outcome.entries.iter();
            entries.any(|entry| entry.digest == digest && entry.group != group)
        });
        if is_misplaced {
            // A liar has reported it for that group: it was not decided, and a start with it is not acknowledged here.
            return;
        }
        if joined.wanted.remove(&digest) {
            self.start.held.insert(digest, (Order(0), request));
        }
    }

    /// Asks the replicas in turn for bodies that the outcome needs.
    fn fetch_wanted(&mut self, out: &mut Vec<Output>) {
        let Some(joined) = self.start.joined.as_ref().filter(|joined| !joined.wanted.is_empty()) else {
            return;
        };
        let digests = joined.wanted.iter().take(FETCH_REQUESTS_MAX).copied().collect();
        let turn = self.start.rounds % u64::from(self.configuration.replicas());
        let peer = self.next_peer(MachineId(u8::try_from(turn).unwrap_or(0) + 1));
        self.send(To::Machine(peer), Message::FetchRequests(digests), out);
    }

    /// Writes the outcome with all bodies to the log; the acknowledgement follows when that is durable.
    fn log_outcome(&mut self, out: &mut Vec<Output>) {
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
        let Some((outcome, _)) = joined.outcome.clone() else {
            return;
        };
        joined.is_logging = true;
        self.log_taken_over(&outcome, out);
        self.journal
            .persist(Record::Start(Arc::clone(&outcome)), Persisting::Start(outcome), out);
    }

    /// Writes the operations that an outcome takes over to the log; those that only older records have stay there.
    pub(crate) fn log_taken_over(&mut self, outcome: &Outcome, out: &mut Vec<Output>) {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let digest = outcome.digest();
        for (group, operation) in self.taken_over(outcome) {
            if operation.request.is_none() && operation.digest != NOTHING {
                continue;
            }
            bytes += bytes_of(&operation.request);
            entries.push((group, operation));
            if bytes >= ANSWER_BYTES_MAX {
                bytes = 0;
                let entries = std::mem::take(&mut entries);
                self.journal.write(
                    Record::TakenOver {
                        view: outcome.view,
                        outcome: digest,
                        entries,
                    },
                    out,
                );
            }
        }
        if !entries.is_empty() {
            self.journal.write(
                Record::TakenOver {
                    view: outcome.view,
                    outcome: digest,
                    entries,
                },
                out,
            );
        }
    }

    /// The operations that the outcome takes over, whole.
    pub(crate) fn taken_over(&self, outcome: &Outcome) -> Vec<(GroupId, CommitDbEntry)> {
        let numbered = outcome.entries.iter().enumerate();
        let whole = numbered.map(|(index, entry)| {
            let operation = CommitDbEntry {
                order: Order(outcome.base.order.0 + 1 + index as u64),
                time_us: entry.time_us,
                digest: entry.digest,
                request: self.start.held.get(&entry.digest).map(|(_, request)| request.clone()),
            };
            (entry.group, operation)
        });
        whole.collect()
    }

    pub(crate) fn on_start_logged(&mut self, outcome: &Arc<Outcome>, out: &mut Vec<Output>) {
        let machine = self.configuration.machine;
        let digest = outcome.digest();
        let signature = self.sign(&Acknowledgement::digest(outcome.view, &digest));
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
        // A later attempt may have replaced this one: then it must not be acknowledged.
        if joined
            .outcome
            .as_ref()
            .is_none_or(|(_, joined_digest)| *joined_digest != digest)
        {
            return;
        }
        let acknowledgement = Acknowledgement {
            machine,
            view: outcome.view,
            outcome: digest,
            signature,
        };
        joined.acknowledgement = Some(acknowledgement.clone());
        self.send(To::Others, Message::Acknowledge(acknowledgement.clone()), out);
        self.on_acknowledge(&acknowledgement, out);
    }

    pub(crate) fn on_acknowledge(&mut self, acknowledgement: &Acknowledgement, out: &mut Vec<Output>) {
        let from = acknowledgement.machine;
        if let Some(live) = &self.live {
            // It has not heard of all others: it must not have to wait for what they may never say again.
            if live.view >= acknowledgement.view {
                self.tell_live(from, out);
            }
            return;
        }
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
        if joined.collect.view == acknowledgement.view {
            joined
                .acknowledgements
                .insert(from, (acknowledgement.outcome, acknowledgement.signature));
            self.finish_start(out);
        }
    }

    /// When all replicas have acknowledged the outcome: writes that down, and then takes part in the view.
    fn finish_start(&mut self, out: &mut Vec<Output>) {
        let Some(joined) = self.start.joined.as_ref() else {
            return;
        };
        let Some((outcome, digest)) = joined.outcome.as_ref() else {
            return;
        };
        let agreed = |machine: MachineId| {
            let (acknowledged, signature) = joined.acknowledgements.get(&machine)?;
            (acknowledged == digest).then_some((machine, *signature))
        };
        let signatures: Option<Vec<_>> = replicas_of(&joined.collect).map(agreed).collect();
        if let Some(signatures) = signatures {
            let proof = LiveProof {
                outcome: outcome.as_ref().clone(),
                signatures,
                acknowledgements: Vec::new(),
            };
            self.on_live(&Arc::new(proof), out);
        }
    }

    pub(crate) fn on_live(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let has_replicas = self.configuration.has_replicas();
        let is_joined = self.start.joined_view() == Some(proof.outcome.view);
        // m0 has nothing to report, and nothing to acknowledge: it may come late into a view that was started, too.
        if proof.outcome.is_change() || !(has_replicas || is_joined) {
            self.join_live(proof, out);
            return;
        }
        let Some(joined) = self.start.joined.as_mut().filter(|_| self.live.is_none()) else {
            return;
        };
        let is_ours = joined
            .outcome
            .as_ref()
            .is_some_and(|(outcome, _)| **outcome == proof.outcome);
        let is_logged = joined.acknowledgement.is_some() || !has_replicas;
        if is_ours && is_logged && !joined.is_finishing {
            joined.is_finishing = true;
            self.log_live(proof, out);
        }
    }
}

/// The replicas that take part in an attempt.
pub(crate) fn replicas_of(collect: &Collect) -> impl Iterator<Item = MachineId> + '_ {
    collect
        .hellos
        .iter()
        .map(|hello| hello.machine)
        .filter(|machine| is_replica(*machine))
}
