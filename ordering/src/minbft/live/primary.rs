//! The primary: gives orders to requests, in batches with one warrant each. It sends digests only. The followers tell it
//! how far their logs are.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::agreement::To;
use crate::assignment::Assignment;
use crate::configuration::{Configuration, Mutant, PRIMARY_SLOT};
use crate::identifiers::{Digest, MachineId, Order};
use crate::ledger::PrepareEntry;
use crate::ledger::client_table::ClientTable;
use crate::message::Request;
use crate::minbft::core::Core;
use crate::minbft::counter::Certifying;
use crate::minbft::live::Live;
use crate::minbft::wire::message::{Message, Progress};
use crate::minbft::wire::ordered::Prepare;
use crate::minbft::wire::outcome::Outcome;
use crate::timers::Timer;

/// Batches whose bodies and PREPAREs the primary keeps to serve them.
pub(crate) const ISSUED_KEPT: usize = 512;

/// A request that waits for its batch.
#[derive(Debug)]
struct Queued {
    digest: Digest,
    request: Arc<Request>,
}

/// A batch that was sent.
#[derive(Debug)]
struct Issued {
    prepare: Arc<Prepare>,
    bytes: usize,
}

/// A batch that is to be certified.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) first: Order,
    pub(crate) time_us: u64,
    pub(crate) entries: Vec<PrepareEntry>,
    pub(crate) requests: Vec<Arc<Request>>,
}

/// The leader's part of a view.
#[derive(Debug)]
pub(crate) struct Primary {
    /// The order of the next entry.
    pub(crate) next: Order,
    /// The time of the last entry.
    time_us: u64,
    /// Which groups are in charge of the next entry.
    assignment: Assignment,
    /// Numbers that were queued in this view.
    clients: ClientTable,
    queue: VecDeque<Queued>,
    /// Batches that are with the counter.
    certifying: usize,
    issued: VecDeque<Issued>,
    /// Bodies of the issued batches. Only looked up, never walked.
    bodies: HashMap<Digest, Arc<Request>>,
    bodies_bytes: usize,
    /// How far each machine's log is, by counter value.
    progress: BTreeMap<MachineId, u64>,
    /// How many machines' progress suffices: f+1.
    quorum: u32,
    /// The last value that was issued.
    pub(crate) value: u64,
}

impl Primary {
    /// `value`: the position of the own counter; `replicas`: whose progress counts, `quorum` of them suffice.
    fn new(value: u64, outcome: &Outcome, replicas: impl Iterator<Item = MachineId>, quorum: u32) -> Self {
        Primary {
            quorum,
            next: outcome.end(),
            time_us: outcome.time_us(),
            assignment: outcome.assignment(),
            clients: ClientTable::default(),
            queue: VecDeque::new(),
            certifying: 0,
            issued: VecDeque::new(),
            bodies: HashMap::new(),
            bodies_bytes: 0,
            progress: replicas.map(|machine| (machine, value)).collect(),
            value,
        }
    }

    /// Begins to lead a view that begins like this, with all requests that wait. `value`: the position of the own counter.
    pub(crate) fn begin(core: &Core, outcome: &Outcome, value: u64) -> Self {
        let configuration = &core.ledger.configuration;
        let replicas = configuration.replica_machines();
        let mut leading = Primary::new(value, outcome, replicas, configuration.quorum());
        for (digest, request) in core.ledger.bodies.pending_in_order() {
            leading.queue(*digest, Arc::clone(request), configuration);
        }
        leading
    }

    /// Queues a request once; false when it may not run (again) or the queue is full.
    pub(crate) fn queue(&mut self, digest: Digest, request: Arc<Request>, configuration: &Configuration) -> bool {
        if self.queue.len() >= configuration.requests_queued_max {
            return false;
        }
        let is_new = self.clients.add(&request);
        if !(is_new || configuration.is(Mutant::OrderTwice)) {
            return false;
        }
        self.queue.push_back(Queued { digest, request });
        true
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Batches between certification and f+1 durable copies.
    pub(crate) fn in_flight(&self) -> usize {
        let done = self.quorum_progress();
        self.certifying + usize::try_from(self.value.saturating_sub(done)).unwrap_or(usize::MAX)
    }

    /// The value up to which f+1 machines have everything in their logs: the slowest do not matter.
    fn quorum_progress(&self) -> u64 {
        let mut values: Vec<u64> = self.progress.values().copied().collect();
        values.sort_unstable_by(|left, right| right.cmp(left));
        values.get(self.quorum.saturating_sub(1) as usize).copied().unwrap_or(0)
    }

    /// The next batch, if there is something to order and room for it.
    pub(crate) fn next_batch(&mut self, wall_us: u64, configuration: &Configuration) -> Option<Batch> {
        if self.queue.is_empty() || self.in_flight() >= configuration.batches_in_flight_max {
            return None;
        }
        let mut batch = Batch {
            first: self.next,
            time_us: wall_us.max(self.time_us + 1),
            entries: Vec::new(),
            requests: Vec::new(),
        };
        let mut bytes = 0;
        while let Some(queued) = self.queue.front() {
            bytes += queued.request.operation.len();
            let is_full = batch.entries.len() == configuration.batch_entries_max
                || (!batch.entries.is_empty() && bytes > configuration.batch_bytes_max);
            if is_full {
                break;
            }
            let Some(queued) = self.queue.pop_front() else { break };
            let name = configuration.name_of(&self.assignment, &queued.request);
            let order = Order(batch.first.0 + batch.entries.len() as u64);
            self.assignment = self.assignment.after_entry(order, name, &queued.digest);
            batch.entries.push(PrepareEntry {
                group: name,
                digest: queued.digest,
            });
            batch.requests.push(queued.request);
            if name.asked().is_some() {
                // One assignment is in force for all entries of a batch.
                break;
            }
        }
        self.time_us = batch.time_us + batch.entries.len() as u64 - 1;
        self.next = Order(batch.first.0 + batch.entries.len() as u64);
        self.certifying += 1;
        Some(batch)
    }

    /// A batch was certified and is being sent.
    pub(crate) fn issue(&mut self, prepare: &Arc<Prepare>, requests: Vec<Arc<Request>>, bytes_max: usize) {
        self.certifying -= 1;
        self.value = prepare.warrant.value;
        let mut bytes = 0;
        for (entry, request) in prepare.entries.iter().zip(requests) {
            bytes += request.operation.len();
            self.bodies.insert(entry.digest, request);
        }
        self.bodies_bytes += bytes;
        self.issued.push_back(Issued {
            prepare: Arc::clone(prepare),
            bytes,
        });
        self.trim(bytes_max);
    }

    /// Forgets the oldest batches; those that are in flight stay.
    fn trim(&mut self, bytes_max: usize) {
        let slowest = self.progress.values().copied().min().unwrap_or(0);
        let done = self.quorum_progress();
        while let Some(oldest) = self
            .issued
            .front()
            .filter(|oldest| oldest.prepare.warrant.value <= done)
        {
            let too_much = self.issued.len() > ISSUED_KEPT || self.bodies_bytes > bytes_max;
            let everywhere = oldest.prepare.warrant.value <= slowest && self.issued.len() > ISSUED_KEPT / 8;
            if !(too_much || everywhere) {
                break;
            }
            let Some(oldest) = self.issued.pop_front() else { break };
            self.bodies_bytes -= oldest.bytes;
            for entry in &oldest.prepare.entries {
                self.bodies.remove(&entry.digest);
            }
        }
    }

    /// A machine's log is that far.
    pub(crate) fn progress(&mut self, machine: MachineId, value: u64) {
        if let Some(known) = self.progress.get_mut(&machine) {
            *known = value.min(self.value).max(*known);
        }
    }

    /// The body of a request that was issued or is queued.
    pub(crate) fn body(&self, digest: &Digest) -> Option<&Arc<Request>> {
        self.bodies.get(digest)
    }

    /// PREPAREs after this value that can be sent again.
    pub(crate) fn issued_after(&self, value: u64) -> impl Iterator<Item = &Arc<Prepare>> {
        self.issued
            .iter()
            .map(|issued| &issued.prepare)
            .filter(move |prepare| prepare.warrant.value > value)
    }

    /// PREPAREs in flight.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = &Arc<Prepare>> {
        self.issued_after(self.quorum_progress())
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.bodies_bytes,
            self.issued.iter().map(|issued| issued.bytes).sum::<usize>()
        );
        assert!(
            self.issued
                .back()
                .is_none_or(|issued| issued.prepare.warrant.value == self.value)
        );
        assert!(self.progress.values().all(|value| *value <= self.value));
    }
}

impl Live {
    /// The primary: orders what waits, as far as there is room in flight.
    pub(super) fn order_batches(&mut self, core: &mut Core) {
        let (view, wall_us) = (self.view, core.ledger.now.wall_us);
        let Some(leading) = self.leading.as_mut() else { return };
        while let Some(batch) = leading.next_batch(wall_us, &core.ledger.configuration) {
            let digest = Prepare::digest(view, batch.first, batch.time_us, &batch.entries);
            let purpose = Certifying::Prepare {
                view,
                first: batch.first,
                time_us: batch.time_us,
                entries: batch.entries,
                requests: batch.requests,
            };
            core.certify(PRIMARY_SLOT, digest, purpose);
        }
    }

    /// The primary: sends a batch that was certified.
    pub(crate) fn issue(&mut self, core: &mut Core, prepare: &Arc<Prepare>, requests: Vec<Arc<Request>>) {
        if let Some(leading) = self.leading.as_mut() {
            leading.issue(prepare, requests, core.ledger.configuration.tail_bytes_max);
            look_again(core);
        }
        core.ledger.send(To::Replicas, Message::Prepare(Arc::clone(prepare)));
        if !core.is_sequencer() {
            let digest = prepare.own_digest();
            self.on_prepare(core, prepare, digest);
        }
    }

    /// The primary: a machine's log is that far.
    pub(crate) fn on_progress(&mut self, core: &mut Core, from: MachineId, progress: Progress) {
        let Some(leading) = self.leading.as_mut() else { return };
        leading.progress(from, progress.committed);
        if leading.in_flight() == 0 {
            core.ledger.timers.stop(Timer::Resend);
        } else {
            look_again(core);
        }
    }

    /// A follower: tells the primary how far our log is.
    pub(super) fn tell_progress(&mut self, core: &mut Core) {
        if self.committed <= self.told {
            return;
        }
        self.told = self.committed;
        let progress = Progress {
            view: self.view,
            committed: self.committed,
        };
        if self.primary == core.own() {
            self.on_progress(core, self.primary, progress);
        } else {
            core.ledger.send(To::Machine(self.primary), Message::Progress(progress));
        }
    }
}

/// The primary: looks later again whether f+1 replicas get on with what is in flight.
fn look_again(core: &mut Core) {
    let resend_us = core.now_us() + core.ledger.configuration.retransmission_us;
    core.ledger.timers.set(Timer::Resend, resend_us);
}
