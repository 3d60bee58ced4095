//! The start of the cluster (rule 6): fresh, or after all machines were down and their counters have new epochs.
//!
//! 1. Every machine announces itself: HELLO with its counter's epoch and its highest proven checkpoint.
//! 2. The candidate of the next view takes one hello of each machine, and so fixes epochs, view and base: COLLECT.
//! 3. Every replica fetches what it lacks up to the base, and reports what its log holds above it: REPORT. From
//!    then on it takes part in no lower view.
//! 4. From the reports of **all** replicas follows how the view begins (`outcome.rs`): START carries them, and
//!    everybody computes the same.
//! 5. A replica that has this, with all bodies, in its durable log says so: ACKNOWLEDGE.
//! 6. When **all** replicas have acknowledged, the view is live, and what it takes over is decided (rule 4: no
//!    correct machine can have started the view differently).
//!
//! All means all that the operator has not declared lost. A silent liar can hold a start up, but not corrupt it. A
//! machine that is restarted alone stays out: the live ones do not report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::agreement::{MisbehaviourKind, To};
use crate::configuration::{is_replica, replica_slot};
use crate::identifiers::{Digest, GroupId, MachineId, Order, View};
use crate::message::{CommitDbEntry, Request};
use crate::minbft::group::{Group, PeerStream};
use crate::minbft::history::{ANSWER_BYTES_MAX, by_group, bytes_of, to_history};
use crate::minbft::journal::Persisting;
use crate::minbft::live::LiveView;
use crate::minbft::messages::{Message, Prepare};
use crate::minbft::outcome::{NOTHING, compute, next_view};
use crate::minbft::primary::Primary;
use crate::minbft::reader::ViewBase;
use crate::minbft::record::Record;
use crate::minbft::serving::Expense;
use crate::minbft::start_messages::{Acknowledgement, Admission, Collect, Hello, LiveProof, Outcome, Report, Start};
use crate::minbft::stream::Stream;
use crate::minbft::verification::FETCH_REQUESTS_MAX;
use crate::minbft::{Machine, Output};

/// What a machine knows that does not take part in a view.
#[derive(Debug)]
pub(crate) struct StartState {
    /// The last hello of each machine.
    hellos: BTreeMap<MachineId, Arc<Hello>>,
    /// The highest view that the log or an attempt mentions.
    pub(crate) mentioned: Option<View>,
    /// From the log: the last view, and its PREPAREs above the stable checkpoint.
    last_live: Option<Arc<LiveProof>>,
    prepares: Vec<Arc<Prepare>>,
    /// Bodies above the stable checkpoint: from the log, or fetched.
    pub(crate) held: BTreeMap<Digest, (Order, Request)>,
    /// Our own attempt.
    leading: Option<Leading>,
    /// The attempt that we take part in.
    pub(crate) joined: Option<Joined>,
    /// When to say again what may have got lost, monotonic.
    pub(crate) next_us: u64,
    rounds: u64,
}

/// An attempt that we lead.
#[derive(Debug)]
struct Leading {
    collect: Arc<Collect>,
    digest: Digest,
    reports: BTreeMap<MachineId, Arc<Report>>,
    start: Option<Arc<Start>>,
}

/// An attempt that we take part in.
#[derive(Debug)]
pub(crate) struct Joined {
    collect: Arc<Collect>,
    digest: Digest,
    report: Option<Arc<Report>>,
    outcome: Option<(Arc<Outcome>, Digest)>,
    /// Bodies of the outcome that are not here.
    wanted: BTreeSet<Digest>,
    /// The outcome is on its way to the log.
    is_logging: bool,
    /// It is in the log, and we have said so.
    acknowledgement: Option<Acknowledgement>,
    /// All have acknowledged; that is on its way to the log.
    is_finishing: bool,
    acknowledgements: BTreeMap<MachineId, (Digest, [u8; 64])>,
}

impl StartState {
    pub(crate) fn new(
        mentioned: Option<View>,
        last_live: Option<Arc<LiveProof>>,
        prepares: Vec<Arc<Prepare>>,
        held: BTreeMap<Digest, (Order, Request)>,
    ) -> Self {
        StartState {
            hellos: BTreeMap::new(),
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

    /// Repeats our own attempt to those who have not answered.
    fn lead_again(&mut self, out: &mut Vec<Output>) {
        let Some(leading) = &self.start.leading else { return };
        let acknowledged = self.start.joined.as_ref().map(|joined| &joined.acknowledgements);
        for machine in replicas_of(&leading.collect) {
            match &leading.start {
                Some(start) => {
                    if acknowledged.is_none_or(|acknowledged| !acknowledged.contains_key(&machine)) {
                        self.send(To::Machine(machine), Message::Start(Arc::clone(start)), out);
                    }
                }
                None => {
                    if !leading.reports.contains_key(&machine) {
                        let collect = Message::Collect(Arc::clone(&leading.collect));
                        self.send(To::Machine(machine), collect, out);
                    }
                }
            }
        }
    }

    pub(crate) fn on_hello(&mut self, hello: &Arc<Hello>, out: &mut Vec<Output>) {
        if self.live.is_some() {
            return;
        }
        // Hellos may arrive late: one of an earlier life must not replace a newer one.
        let age = |hello: &Hello| (hello.admission.epoch, hello.view, hello.point().order);
        if self
            .start
            .hellos
            .get(&hello.machine)
            .is_some_and(|known| age(known) > age(hello))
        {
            return;
        }
        self.start.hellos.insert(hello.machine, Arc::clone(hello));
        self.lead(out);
    }

    /// Begins an attempt when it is our turn and everybody who must take part is there.
    fn lead(&mut self, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let views = self.start.hellos.values().filter_map(|hello| hello.view);
        let mentioned = views.max().max(self.start.mentioned);
        let needed = self
            .configuration
            .replica_machines()
            .filter(|machine| !self.configuration.lost.contains(machine));
        let hellos: Option<BTreeMap<MachineId, Arc<Hello>>> = needed
            .chain([own])
            .map(|machine| Some((machine, Arc::clone(self.start.hellos.get(&machine)?))))
            .collect();
        let Some(hellos) = hellos else { return };
        if self
            .start
            .leading
            .as_ref()
            .is_some_and(|leading| is_current(&leading.collect, &hellos))
        {
            return;
        }
        let view = next_view(mentioned, self.configuration.machines());
        if self.configuration.primary(view) != own {
            return;
        }
        let mut collect = Collect {
            view,
            hellos: hellos.into_values().collect(),
            signature: [0; 64],
        };
        let digest = collect.digest();
        collect.signature = self.sign(&digest);
        let collect = Arc::new(collect);
        let reports = BTreeMap::new();
        self.start.leading = Some(Leading {
            collect: Arc::clone(&collect),
            digest,
            reports,
            start: None,
        });
        self.send(To::Others, Message::Collect(Arc::clone(&collect)), out);
        self.on_collect(&collect, digest, out);
    }

    pub(crate) fn on_collect(&mut self, collect: &Arc<Collect>, digest: Digest, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let is_ours = collect
            .hello(own)
            .is_some_and(|hello| hello.admission == self.journal.counter);
        let mut needed = self.configuration.replica_machines();
        let is_complete =
            needed.all(|machine| collect.hello(machine).is_some() || self.configuration.lost.contains(&machine));
        if self.live.is_some() || !is_ours || !is_complete || !self.may_join(collect.view, &digest) {
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
            .map(|(digest, _)| *digest);
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

    pub(crate) fn on_report(&mut self, report: &Arc<Report>, out: &mut Vec<Output>) {
        let Some(leading) = self
            .start
            .leading
            .as_mut()
            .filter(|leading| leading.digest == report.collect)
        else {
            return;
        };
        if let Some(start) = leading.start.clone() {
            self.send(To::Machine(report.machine), Message::Start(start), out);
            return;
        }
        leading.reports.insert(report.machine, Arc::clone(report));
        let is_complete = replicas_of(&leading.collect).all(|machine| leading.reports.contains_key(&machine));
        if !is_complete {
            return;
        }
        let reports = leading.reports.values().cloned().collect();
        let mut start = Start {
            collect: Arc::clone(&leading.collect),
            reports,
            signature: [0; 64],
        };
        start.signature = self.sign(&start.digest());
        let start = Arc::new(start);
        if let Some(leading) = self.start.leading.as_mut() {
            leading.start = Some(Arc::clone(&start));
        }
        self.send(To::Others, Message::Start(Arc::clone(&start)), out);
        self.on_start(&start, out);
    }

    pub(crate) fn on_start(&mut self, start: &Arc<Start>, out: &mut Vec<Output>) {
        let own = self.configuration.machine;
        let leader = self.configuration.primary(start.collect.view);
        let Some(joined) = self.start.joined.as_mut().filter(|_| self.live.is_none()) else {
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
        let wanted = outcome
            .entries
            .iter()
            .map(|entry| entry.digest)
            .filter(|digest| *digest != NOTHING);
        joined.wanted = wanted.filter(|digest| !self.start.held.contains_key(digest)).collect();
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
    pub(crate) fn take_wanted(&mut self, digest: Digest, request: Request) {
        let Some(joined) = self.start.joined.as_mut() else {
            return;
        };
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
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (group, operation) in self.taken_over(&outcome) {
            bytes += bytes_of(&operation.request);
            entries.push((group, operation));
            if bytes >= ANSWER_BYTES_MAX {
                bytes = 0;
                let entries = std::mem::take(&mut entries);
                self.journal.write(
                    Record::TakenOver {
                        view: outcome.view,
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
                    entries,
                },
                out,
            );
        }
        self.journal
            .persist(Record::Start(Arc::clone(&outcome)), Persisting::Start(outcome), out);
    }

    /// The operations that the outcome takes over, whole.
    fn taken_over(&self, outcome: &Outcome) -> Vec<(GroupId, CommitDbEntry)> {
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
            if live.view == acknowledgement.view {
                let proof = Arc::clone(&live.proof);
                if self.may_answer(from, Expense::Live, self.configuration.hello_us / 2) {
                    self.send(To::Machine(from), Message::Live(proof), out);
                }
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
            };
            self.on_live(&Arc::new(proof), out);
        }
    }

    pub(crate) fn on_live(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let has_replicas = self.configuration.has_replicas();
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
            self.journal.persist(
                Record::Live(Arc::clone(proof)),
                Persisting::Live(Arc::clone(proof)),
                out,
            );
        }
    }

    /// Takes part in a view that begins with this outcome. The way into every view.
    pub(crate) fn enter_view(&mut self, proof: &Arc<LiveProof>, out: &mut Vec<Output>) {
        let outcome = &proof.outcome;
        let is_joined = self
            .start
            .joined
            .as_ref()
            .is_some_and(|joined| joined.collect.view == outcome.view);
        let primary = self.configuration.primary(outcome.view);
        let Some(admission) = outcome.admission(primary).filter(|_| is_joined && self.live.is_none()) else {
            return;
        };
        let value = admission.positions.first().copied().unwrap_or(0);
        self.views.push(ViewBase {
            view: outcome.view,
            base: outcome.base.order,
        });
        let before = self.history.point;
        self.take_over(outcome, value, out);
        let last_us = outcome
            .entries
            .last()
            .map_or(outcome.base.time_us, |entry| entry.time_us);
        let next = Order(outcome.base.order.0 + outcome.entries.len() as u64 + 1);
        let mut live = self.new_view(proof, primary, Stream::new(value, next, last_us));
        live.primary_epoch = admission.epoch;
        if primary == self.configuration.machine {
            let quorum = self.configuration.quorum();
            let mut leading = Primary::new(value, next, last_us, self.configuration.replica_machines(), quorum);
            for (digest, request) in self.bodies.pending_in_order() {
                leading.queue(*digest, request.clone(), &self.configuration);
            }
            live.leading = Some(leading);
        }
        self.live = Some(Box::new(live));
        self.start.joined = None;
        self.start.leading = None;
        self.start.hellos.clear();
        self.start.held.clear();
        self.start.prepares.clear();
        self.catch_up = None;
        if self.history.point != before {
            self.history_extended(&before, out);
        }
    }

    /// What the outcome takes over is decided.
    fn take_over(&mut self, outcome: &Outcome, value: u64, out: &mut Vec<Output>) {
        if !self.configuration.has_replicas() {
            return;
        }
        let operations = self.taken_over(outcome);
        for (_, operation) in &operations {
            self.bodies.take(&operation.digest);
            self.bodies.locate(operation.digest, operation.order);
            if let Some(request) = &operation.request {
                self.clients.record(request.client, request.number, request.floor);
            }
        }
        out.extend(by_group(operations.iter().cloned()).into_iter().map(Output::Deliver));
        let history = operations
            .into_iter()
            .map(|(group, operation)| to_history(group, operation));
        for gone in self
            .history
            .append(history, outcome.view, value, self.configuration.tail_bytes_max)
        {
            self.bodies.forget_location(&gone.digest, gone.order);
        }
    }

    fn new_view(&self, proof: &Arc<LiveProof>, primary: MachineId, stream: Stream) -> LiveView {
        let own = self.configuration.machine;
        let now_us = self.now.monotonic_us;
        let decided = self.history.point.order;
        let others: Vec<_> = proof
            .outcome
            .admitted
            .iter()
            .filter(|(machine, _)| *machine != own)
            .collect();
        let peers = |slot: u32| -> BTreeMap<MachineId, PeerStream> {
            let replicas = others.iter().filter(|(machine, _)| is_replica(*machine));
            replicas
                .map(|(machine, admission)| (*machine, peer_stream(admission, slot)))
                .collect()
        };
        let groups = if self.configuration.has_replicas() {
            self.configuration.groups
        } else {
            0
        };
        let groups = (0..groups)
            .map(|group| Group::new(decided, peers(replica_slot(GroupId(group)))))
            .collect();
        LiveView {
            view: proof.outcome.view,
            proof: Arc::clone(proof),
            primary,
            primary_epoch: 0,
            committed: stream.value,
            told: stream.value,
            stream,
            groups,
            touched: Vec::new(),
            leading: None,
            ask_us: u64::MAX,
            hold_us: u64::MAX,
            tick_us: now_us + self.configuration.retransmission_us,
            mark: (0, Order(0), 0),
            stalled: 0,
            ticks: 0,
            is_behind: false,
            idle_us: u64::MAX,
        }
    }
}

fn peer_stream(admission: &Admission, slot: u32) -> PeerStream {
    let position = usize::try_from(slot)
        .ok()
        .and_then(|slot| admission.positions.get(slot));
    PeerStream::new(admission.epoch, position.copied().unwrap_or(0))
}

/// The replicas that take part in an attempt.
fn replicas_of(collect: &Collect) -> impl Iterator<Item = MachineId> + '_ {
    collect
        .hellos
        .iter()
        .map(|hello| hello.machine)
        .filter(|machine| is_replica(*machine))
}

/// Whether an attempt still fits: nobody's counter has changed since.
fn is_current(collect: &Collect, hellos: &BTreeMap<MachineId, Arc<Hello>>) -> bool {
    collect.hellos.len() == hellos.len()
        && hellos.iter().all(|(machine, hello)| {
            collect
                .hello(*machine)
                .is_some_and(|collected| collected.admission == hello.admission)
        })
}
