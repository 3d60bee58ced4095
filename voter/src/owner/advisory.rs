//! Advisory locks (`docs/decisions/0054`): decided at their order by the lock table; nothing runs in a database.

use bytes::Bytes;
use sql::footprint::{Footprint, Mode, Resource};
use sql::operation::{Advisory, ExchangeResult, SessionId, TransactionId, advisory_tag};

use super::catalog::data_row;
use super::{Asker, Owner, Start};
use crate::executor::outcome;
use crate::lock_table::advisory::AdvisoryRequest;
use crate::lock_table::{Advised, LockRefusal, Node};
use crate::outcome::Outcome;
use crate::postgres::backend::Answer;
use crate::postgres::capture::command_complete;
use crate::slot::ending::completed;

impl Owner<'_> {
    /// A session's wish. Its transactions are its own only; another's is none.
    pub(super) async fn feed_advisory(&mut self, asker: Asker, session: SessionId, advisory: &Advisory) {
        let outcome = match advisory {
            Advisory::Lock {
                key,
                shared,
                transaction,
                waits,
            } => {
                let request = AdvisoryRequest {
                    key: *key,
                    shared: *shared,
                    transaction: transaction.map(|id| id.number),
                };
                let is_own = transaction.is_none_or(|id| id.session_id() == session);
                let advised = match is_own {
                    true => self.locks.advisory_lock(asker.order, session, request, *waits),
                    false => Err(LockRefusal::NoTransaction),
                };
                match advised {
                    Ok(Advised::Granted) => completed(advisory_tag::GRANTED),
                    Ok(Advised::Waits) => completed(advisory_tag::WAITS),
                    Ok(Advised::Taken) => completed(advisory_tag::TAKEN),
                    Err(refusal) => return self.refuse(asker, refusal).await,
                }
            }
            Advisory::Unlock { key, shared } => match self.locks.advisory_unlock(session, *key, *shared) {
                true => completed(advisory_tag::RELEASED),
                false => completed(advisory_tag::NOT_HELD),
            },
            Advisory::UnlockAll => {
                // Who asks for this waits for nothing any more.
                self.locks.advisory_unlock_all(session);
                completed(advisory_tag::RELEASED)
            }
            Advisory::GiveUp { since } => match self.locks.advisory_give_up(session, *since) {
                true => completed(advisory_tag::GIVEN_UP),
                false => completed(advisory_tag::NOT_WAITING),
            },
            Advisory::Report => self.report_advisory(asker.client.0),
        };
        if !self.locks.has_advisory(session) {
            self.abandoned.remove(&TransactionId::of_session(session));
        }
        // Who is granted a lock finds in the database whatever was committed under it before.
        let everything = Footprint::of(Resource::Everything, Mode::Shared);
        let node = Node::Read { transaction: None };
        self.run(asker.order, node, &everything, Start::Answer(asker, outcome));
    }

    /// Which sessions of a client wait and hold. As many as a client may have advisory locks, each in few bytes.
    fn report_advisory(&self, client: u32) -> Outcome {
        let mut messages = Vec::new();
        for (session, waits, holds) in self.locks.advisory_of_client(client) {
            let session = session.to_string();
            let waits = waits.map(|since| since.to_string());
            let held = holds.then(|| String::from(advisory_tag::HELD));
            for what in waits.into_iter().chain(held) {
                messages.extend(data_row([&session, &what]).unwrap_or_default());
            }
        }
        messages.extend(command_complete("REPORT"));
        let result = ExchangeResult {
            messages: Bytes::from(messages),
            status: b'I',
        };
        outcome(Answer::Result(result)).unwrap_or(Outcome::Unavailable)
    }
}
