//! The owner task: the only one that steps the agreement. It takes inputs, steps, and carries out the outputs in
//! their order; everything slow (verification, disk, peers, the database) happens beside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::agreement::{Input, Now, Output, To};
use ordering::hosting::Hosted;
use ordering::identifiers::{MachineId, Order};
use ordering::ledger::LogIndex;
use ordering::message::CommitDb;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use trusted_counter::TrustedCounter;
use voter::VoterInput;

use super::measures::Measures;
use super::own_client::Undecided;
use super::receiver::Arrival;
use super::status::StatusBoard;
use super::voter_queue::VoterQueue;
use super::{NodeError, history};
use crate::clock::Clock;
use crate::link::{Frame, Links, Peer};
use crate::log::{Log, LogEvent};

/// Inputs that are stepped before status and metrics are looked at.
const INPUTS_PER_ROUND: usize = 256;
/// How often gauges are set.
const GAUGES_MS: u64 = 250;

/// What the owner task owns.
pub(super) struct Owner<H> {
    pub(super) me: MachineId,
    pub(super) machine: H,
    pub(super) counter: Box<dyn TrustedCounter + Send>,
    pub(super) log: Arc<Log>,
    pub(super) index: LogIndex,
    pub(super) links: Arc<Links>,
    pub(super) voter: Option<Arc<VoterQueue>>,
    /// All other machines.
    pub(super) others: Vec<Peer>,
    /// All other machines that hold replicas.
    pub(super) replicas: Vec<Peer>,
    /// The operations that this machine has asked to have ordered under its own client.
    pub(super) undecided: Undecided,
    pub(super) board: StatusBoard,
    pub(super) clock: Clock,
    /// Everything up to this position is durable.
    pub(super) durable: u64,
    /// Log positions and the agreement's numbers of records that are not durable yet.
    pub(super) persisting: VecDeque<(u64, u64)>,
    pub(super) gauges_set: Instant,
    pub(super) measures: Measures,
}

impl<H: Hosted> Owner<H> {
    /// Steps until `shutdown` completes.
    ///
    /// # Errors
    /// When the log or the trusted counter fails: nothing can be promised any more.
    pub(super) async fn run(
        mut self,
        mut arrivals: mpsc::Receiver<Arrival<H>>,
        mut durable: watch::Receiver<LogEvent>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), NodeError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut inputs = vec![Input::Timeout];
        self.step(&mut inputs)?;
        self.set_gauges();
        loop {
            let deadline = self.deadline();
            let gauges = self.gauges_set + Duration::from_millis(GAUGES_MS);
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                changed = durable.changed() => {
                    if changed.is_err() {
                        return Err(NodeError::LogFailed);
                    }
                }
                arrival = arrivals.recv() => match arrival {
                    Some(arrival) => inputs.push(arrival.input),
                    None => return Ok(()),
                },
                () = sleep_until(deadline.into()) => inputs.push(Input::Timeout),
                () = sleep_until(gauges.into()) => {}
            }
            inputs.extend(self.advance(*durable.borrow_and_update())?);
            let arrived = std::iter::from_fn(|| arrivals.try_recv().ok());
            inputs.extend(arrived.take(INPUTS_PER_ROUND).map(|arrival| arrival.input));
            self.step(&mut inputs)?;
            if self.gauges_set.elapsed() >= Duration::from_millis(GAUGES_MS) {
                self.set_gauges();
            }
            self.board.set(self.machine.status(), self.log.bytes());
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic_us: self.clock.monotonic_us(),
            wall_us: self.clock.now_us(),
        }
    }

    fn deadline(&self) -> Instant {
        let never = Duration::from_secs(3600);
        let wait = self.machine.deadline().map_or(never, |deadline_us| {
            Duration::from_micros(deadline_us.saturating_sub(self.clock.monotonic_us())).min(never)
        });
        Instant::now() + wait
    }

    /// What has become durable, for the agreement.
    fn advance(&mut self, event: LogEvent) -> Result<Option<Input<H::Message>>, NodeError> {
        let LogEvent::Durable(position) = event else {
            return Err(NodeError::LogFailed);
        };
        self.durable = position;
        let mut persisted = None;
        while let Some((_, sequence)) = self.persisting.pop_front_if(|(waiting, _)| *waiting <= position) {
            persisted = Some(sequence);
        }
        Ok(persisted.map(Input::Persisted))
    }

    /// Takes the inputs, and all that follows from them within this machine.
    fn step(&mut self, inputs: &mut Vec<Input<H::Message>>) -> Result<(), NodeError> {
        for input in inputs.iter() {
            if let Input::Request(request) = input {
                self.measures.requested(request.message());
            }
        }
        let mut outputs = Vec::new();
        while !inputs.is_empty() {
            self.machine.step_all(self.now(), inputs.drain(..), &mut outputs);
            for output in outputs.drain(..) {
                inputs.extend(self.carry_out(output)?);
            }
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        output: Output<H::Message, H::Record, H::LogReader>,
    ) -> Result<Option<Input<H::Message>>, NodeError> {
        match output {
            Output::Persist { sequence, record } => {
                let payload = borsh::to_vec(&record).map_err(NodeError::Encoding)?;
                let position = self.log.append(Bytes::from(payload));
                history::note(&mut self.index, position, &record);
                self.persisting.push_back((position, sequence));
            }
            Output::Certify { slot, digest, ticket } => {
                let warrant = self.counter.create_uw(slot, &digest).map_err(NodeError::Counter)?;
                return Ok(Some(Input::Certified { ticket, warrant }));
            }
            Output::Send { to, message } => self.send(to, &message)?,
            Output::Deliver(message) => self.deliver(message),
            Output::Answer { to, message } => self.answer(to, message),
            Output::ReadLog { reader } => self.read_log(reader),
            Output::LogBegins { to, first } => self.log_begins(to, first),
            Output::CutLog { first } => history::cut(&self.log, &mut self.index, first, self.durable),
            Output::Report(misbehaviour) => {
                let peer = format!("m{}", misbehaviour.machine);
                tracing::warn!(%peer, kind = ?misbehaviour.kind, "misbehaviour");
                let reason = super::misbehaviour_label(misbehaviour.kind);
                metrics::counter!("cloudbft_invalid_messages_total", "peer" => peer, "reason" => reason).increment(1);
            }
        }
        Ok(None)
    }

    fn send(&self, to: To, message: &H::Message) -> Result<(), NodeError> {
        let bytes = Bytes::from(borsh::to_vec(message).map_err(NodeError::Encoding)?);
        let frame = Frame::Agreement(bytes);
        match to {
            To::Machine(machine) => self.links.send_frame(Peer::Machine(machine), &frame),
            To::Others => self.links.send_to_all(self.others.iter().copied(), &frame),
            To::Replicas => self.links.send_to_all(self.replicas.iter().copied(), &frame),
        }
        Ok(())
    }

    /// A decision, for the own voter. Others have it from their own replicas, or ask for it.
    fn deliver(&mut self, message: CommitDb) {
        self.measures.decided(&message);
        self.undecided.decided(&message);
        self.to_own_voter(message);
    }

    /// An answer to a voter's question.
    fn answer(&self, to: MachineId, message: CommitDb) {
        if to == self.me {
            self.to_own_voter(message);
        } else {
            self.links.send_frame(Peer::Machine(to), &Frame::CommitDb(message));
        }
    }

    /// A voter asks for what this log has no longer.
    fn log_begins(&self, to: MachineId, first: Order) {
        if to != self.me {
            self.links.send_frame(Peer::Machine(to), &Frame::LogBegins(first));
        } else if let Some(voter) = &self.voter {
            // It asks again.
            voter.offer_own(VoterInput::LogBegins { from: self.me, first });
        }
    }

    /// A voter that is stuck must not hold up the agreement: what does not fit is fetched again.
    fn to_own_voter(&self, message: CommitDb) {
        if let Some(voter) = &self.voter {
            voter.offer_own(VoterInput::CommitDb { from: self.me, message });
        }
    }

    /// Reads beside the owner task.
    fn read_log(&self, reader: H::LogReader) {
        let position = history::position_of(&self.index, H::wanted_from(&reader));
        let reading = history::Reading::<H> {
            directory: self.log.directory().to_owned(),
            position,
            reader,
            me: self.me,
            links: Arc::clone(&self.links),
            voter: self.voter.clone(),
        };
        tokio::task::spawn_blocking(move || reading.run());
    }

    fn set_gauges(&mut self) {
        self.gauges_set = Instant::now();
        let status = self.machine.status();
        if let Some(voter) = &self.voter {
            // Told again soon.
            voter.offer_own(VoterInput::Decided(status.decided));
        }
        self.measures.set_gauges(&status);
        if let Some(up) = self.board.voter_serves() {
            metrics::gauge!("cloudbft_voter_up").set(if up { 1.0 } else { 0.0 });
        }
        metrics::gauge!("cloudbft_log_bytes").set(self.log.bytes() as f64);
        for peer in &self.others {
            let bytes = self.links.queued_bytes(*peer);
            metrics::gauge!("cloudbft_link_queue_bytes", "peer" => peer.to_string()).set(bytes as f64);
        }
    }
}
