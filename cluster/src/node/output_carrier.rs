//! Carries a voter's outputs on: to clients, to other machines, and to this machine's own agreement.

use std::sync::Arc;
use std::time::Instant;

use ordering::agreement::Input;
use ordering::directory::Directory;
use ordering::hosting::Hosted;
use ordering::identifiers::MachineId;
use ordering::message::Request;
use tokio::sync::mpsc;
use voter::VoterOutput;

use super::own_client::OwnClient;
use super::receiver::Arrival;
use crate::link::{Frame, Links, Peer};

/// Carries a voter's outputs to whom they are for.
pub(super) struct OutputCarrier<H: Hosted> {
    pub(super) me: MachineId,
    pub(super) links: Arc<Links>,
    /// All other machines.
    pub(super) others: Vec<Peer>,
    /// The other machines that hold voters.
    pub(super) voters: Vec<Peer>,
    pub(super) owner: mpsc::Sender<Arrival<H>>,
    pub(super) directory: Directory,
    pub(super) own_client: OwnClient,
}

impl<H: Hosted> OutputCarrier<H> {
    /// Carries them until the voter or the owner task has ended.
    pub(super) async fn run(mut self, mut outputs: mpsc::Receiver<VoterOutput>) {
        loop {
            let carried = tokio::select! {
                output = outputs.recv() => match output {
                    Some(output) => self.carry(output).await,
                    None => return,
                },
                () = reached(self.own_client.deadline()) => match self.own_client.due(Instant::now()) {
                    Some(request) => self.request(request).await,
                    None => Ok(()),
                },
            };
            if carried.is_err() {
                return;
            }
        }
    }

    /// Fails when the owner task has ended.
    async fn carry(&mut self, output: VoterOutput) -> Result<(), mpsc::error::SendError<Arrival<H>>> {
        let me = self.me;
        match output {
            VoterOutput::Result { client, message } => {
                self.links.send_frame(Peer::Client(client), &Frame::Result(message));
                Ok(())
            }
            VoterOutput::Notifications { client, message } => {
                self.links
                    .send_frame(Peer::Client(client), &Frame::Notifications(message));
                Ok(())
            }
            VoterOutput::Order { operation, home } => {
                self.own_client.order(operation, home, Instant::now());
                Ok(())
            }
            VoterOutput::Reply(reply) => {
                let frame = Frame::ReplyCommitDb(reply.clone());
                self.send(&frame, Input::Reply { from: me, reply }).await
            }
            VoterOutput::Fetch { from: order } => {
                let own = Input::FetchCommitDb { from: me, order };
                self.send(&Frame::FetchCommitDb(order), own).await
            }
            VoterOutput::Effects { to, message } => {
                let frame = Frame::Effects(message);
                match to {
                    Some(to) => self.links.send_frame(Peer::Machine(to), &frame),
                    None => self.links.send_to_all(self.voters.iter().copied(), &frame),
                }
                Ok(())
            }
            VoterOutput::FetchBody { from, name } => {
                self.links.send_frame(Peer::Machine(from), &Frame::FetchBody(name));
                Ok(())
            }
            VoterOutput::FetchRequest { order, digest } => {
                let own = Input::FetchRequest {
                    from: me,
                    order,
                    digest,
                };
                self.send(&Frame::FetchRequest(order, digest), own).await
            }
        }
    }

    /// Sends a request of this machine's own client to all machines, this one too.
    async fn request(&self, request: Request) -> Result<(), mpsc::error::SendError<Arrival<H>>> {
        let frame = Frame::Request(request.clone());
        match self.directory.verify_request(request) {
            Ok(verified) => self.send(&frame, Input::Request(verified)).await,
            Err(rejection) => {
                tracing::error!(%rejection, "the others would refuse what this machine has ordered");
                Ok(())
            }
        }
    }

    async fn send(&self, frame: &Frame, own: Input<H::Message>) -> Result<(), mpsc::error::SendError<Arrival<H>>> {
        self.links.send_to_all(self.others.iter().copied(), frame);
        self.owner.send(Arrival::own(own)).await
    }
}

/// Completes at this time; never without one.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
