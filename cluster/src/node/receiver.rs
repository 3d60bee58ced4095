//! What arrives on the links of a node: verified here, beside the owner task, and handed to whom it is for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ordering::agreement::Input;
use ordering::directory::Directory;
use ordering::hosting::Hosted;
use ordering::identifiers::{MachineId, administrator};
use ordering::message::ClientMessage;
use ordering::verified::Rejection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use voter::VoterInput;

use super::bodies::BodyDesk;
use super::voter_queue::VoterQueue;
use crate::link::{Frame, Peer, Receiver};

/// What may wait for the owner task from one peer, in bytes; more slows that peer down.
const PEER_BYTES_MAX: usize = 64 << 20;

/// An input for the owner task, with its claim on the sender's budget.
pub(super) struct Arrival<H: Hosted> {
    pub(super) input: Input<H::Message>,
    pub(super) _claim: Option<OwnedSemaphorePermit>,
}

impl<H: Hosted> Arrival<H> {
    /// An input from this machine itself.
    pub(super) fn own(input: Input<H::Message>) -> Self {
        Self { input, _claim: None }
    }
}

/// The receiving side of a node's links.
pub(super) struct NodeReceiver<H: Hosted> {
    directory: Directory,
    owner: mpsc::Sender<Arrival<H>>,
    voter: Option<Arc<VoterQueue>>,
    bodies: Option<BodyDesk>,
    budgets: BTreeMap<Peer, Arc<Semaphore>>,
    verify_seconds: metrics::Histogram,
}

impl<H: Hosted> NodeReceiver<H> {
    pub(super) fn new(
        directory: Directory,
        owner: mpsc::Sender<Arrival<H>>,
        voter: Option<Arc<VoterQueue>>,
        bodies: Option<BodyDesk>,
        peers: impl Iterator<Item = Peer>,
    ) -> Self {
        let budgets = peers
            .map(|peer| (peer, Arc::new(Semaphore::new(PEER_BYTES_MAX))))
            .collect();
        Self {
            directory,
            owner,
            voter,
            bodies,
            budgets,
            verify_seconds: metrics::histogram!("cloudbft_signature_verify_duration_seconds"),
        }
    }

    async fn to_owner(&self, from: Peer, bytes: usize, input: Input<H::Message>) {
        let bytes = u32::try_from(bytes.min(PEER_BYTES_MAX)).unwrap_or(u32::MAX);
        let claim = match self.budgets.get(&from) {
            Some(budget) => Arc::clone(budget).acquire_many_owned(bytes).await.ok(),
            None => None,
        };
        let _ = self.owner.send(Arrival { input, _claim: claim }).await;
    }

    fn to_voter(&self, from: Peer, bytes: usize, input: VoterInput) {
        if let Some(voter) = &self.voter {
            voter.offer(from, bytes, input);
        }
    }

    /// Decodes and verifies what needs it; `None` when it went to the voter or is refused.
    fn verified(&self, from: Peer, frame: Frame, bytes: usize) -> Result<Option<Input<H::Message>>, Rejection> {
        let machine = match from {
            Peer::Machine(machine) => machine,
            Peer::Client(client) => {
                match frame {
                    Frame::Client(_) if client == administrator() => {}
                    Frame::Request(request) if request.client != client => return Err(Rejection::WrongSender),
                    Frame::Request(request) => {
                        return Ok(Some(Input::Request(self.directory.verify_request(request)?)));
                    }
                    Frame::Client(ClientMessage::Direct(direct)) => {
                        self.to_voter(from, bytes, VoterInput::Direct { client, direct });
                    }
                    Frame::Client(ClientMessage::KeepAlive) => {
                        self.to_voter(from, bytes, VoterInput::KeepAlive(client))
                    }
                    Frame::Client(ClientMessage::GiveUp(key)) => {
                        self.to_voter(from, bytes, VoterInput::GiveUp { client, key })
                    }
                    Frame::Client(ClientMessage::Recall(key)) => {
                        self.to_voter(from, bytes, VoterInput::Recall { client, key })
                    }
                    Frame::Client(ClientMessage::RecallChunk { key, index }) => {
                        self.to_voter(from, bytes, VoterInput::RecallChunk { client, key, index })
                    }
                    Frame::Client(ClientMessage::Release(key)) => {
                        self.to_voter(from, bytes, VoterInput::Release { client, key })
                    }
                    _ => {}
                }
                return Ok(None);
            }
        };
        Ok(match frame {
            // A replica passes on what the primary seems not to have.
            Frame::Request(request) => Some(Input::Request(self.directory.verify_request(request)?)),
            Frame::Agreement(bytes) => {
                let message = borsh::from_slice(&bytes).map_err(|_| Rejection::Malformed)?;
                let message = H::verify(machine, message, &self.directory)?;
                Some(Input::Message { from: machine, message })
            }
            Frame::CommitDb(message) => {
                self.to_voter(from, bytes, VoterInput::CommitDb { from: machine, message });
                None
            }
            Frame::LogBegins(first) => {
                self.to_voter(from, bytes, VoterInput::LogBegins { from: machine, first });
                None
            }
            Frame::ReplyCommitDb(reply) => {
                let executed = VoterInput::Executed {
                    from: machine,
                    order: reply.executed,
                };
                self.to_voter(from, bytes, executed);
                if let Some(bodies) = &self.bodies {
                    bodies.flushed(machine, reply.flushed);
                }
                Some(Input::Reply { from: machine, reply })
            }
            Frame::Effects(message) => {
                self.to_voter(from, bytes, VoterInput::Effects { from: machine, message });
                None
            }
            Frame::FetchCommitDb(order) => Some(Input::FetchCommitDb { from: machine, order }),
            Frame::FetchRequest(order, digest) => Some(Input::FetchRequest {
                from: machine,
                order,
                digest,
            }),
            Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Client(_)
            | Frame::Result(_)
            | Frame::Receipt(_)
            | Frame::FetchBody(_)
            | Frame::Body(..)
            | Frame::Notifications(_) => None,
        })
    }
}

impl<H: Hosted> Receiver for NodeReceiver<H> {
    async fn receive(&self, from: Peer, frame: Frame, bytes: usize) {
        let frame = match &self.bodies {
            Some(bodies) => match bodies.take(from, frame).await {
                Some(other) => other,
                None => return,
            },
            None => frame,
        };
        let signed = matches!(frame, Frame::Request(_) | Frame::Agreement(_));
        let started = Instant::now();
        let verified = self.verified(from, frame, bytes);
        if signed {
            let seconds = started.elapsed().as_secs_f64();
            self.verify_seconds.record(seconds);
        }
        match verified {
            Ok(Some(input)) => self.to_owner(from, bytes, input).await,
            Ok(None) => {}
            Err(rejection) => {
                let (peer, reason) = (from.to_string(), rejection_label(rejection));
                tracing::warn!(%peer, %rejection, "rejected a message");
                metrics::counter!("cloudbft_invalid_messages_total", "peer" => peer, "reason" => reason).increment(1);
            }
        }
    }
}

/// A bounded label for metrics.
fn rejection_label(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::UnknownMachine => "unknown_machine",
        Rejection::UnknownClient => "unknown_client",
        Rejection::WrongSignature => "wrong_signature",
        Rejection::WrongWarrant => "wrong_warrant",
        Rejection::CounterUnavailable => "counter_unavailable",
        Rejection::WrongSender => "wrong_sender",
        Rejection::TooLarge => "too_large",
        Rejection::Malformed => "malformed",
    }
}

/// The machines that hold voters.
pub(super) fn voters(faults: usize) -> impl Iterator<Item = MachineId> {
    (1..).take(2 * faults + 1).map(MachineId)
}
