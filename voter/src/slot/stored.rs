//! The bodies of exchanges that are kept outside the order: read from the machine's store, or fetched from the others.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{ClientId, MachineId};
use ordering::message::BodyName;
use sql::operation::Exchange;

use super::Slot;
use super::running::Stop;
use crate::bodies::BodyStore;
use crate::voter::VoterOutput;
use crate::work::{Refused, decode, decode_listed};

/// A body that is not here is asked of another machine after this: it may be on its way from the client.
const FETCH_AFTER: Duration = Duration::from_millis(100);

/// And of the next machine after this again.
const FETCH_AGAIN: Duration = Duration::from_millis(300);

/// How often a Commit that waits for a body says so.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// How long a body that is not here is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Other voters may run the statement meanwhile.
    Short,
    /// The transaction is committed: f+1 voters say that they have had it.
    Endless,
}

/// An exchange that is to run.
pub(super) enum Ready {
    Exchange(Exchange),
    /// It cannot run, on any voter.
    Refused(Refused),
    /// It is to run no more.
    Stopped,
    /// Its body has not come in time.
    Missing,
}

impl From<Result<Exchange, Refused>> for Ready {
    fn from(decoded: Result<Exchange, Refused>) -> Self {
        match decoded {
            Ok(exchange) => Ready::Exchange(exchange),
            Err(refused) => Ready::Refused(refused),
        }
    }
}

impl Slot {
    /// The exchange that an encoded one of the list stands for.
    pub(super) async fn exchange(&self, encoded: &Bytes, stop: &Stop<'_>, patience: Patience) -> Ready {
        let (digest, length) = match decode_listed(encoded) {
            Ok(Exchange::Stored { digest, length }) => (digest, length),
            other => return other.into(),
        };
        let id = self.transaction.id;
        let name = BodyName {
            client: ClientId(id.client),
            session: id.session,
            number: id.number,
            digest,
        };
        let body = match self.shared.config.bodies.read(name).await {
            Some(body) => body,
            None => match self.await_body(name, stop, patience).await {
                Ok(body) => body,
                Err(none) => return none,
            },
        };
        // All correct voters have the same body, since the digest is right.
        if u32::try_from(body.len()) != Ok(length) {
            return Ready::Refused(Refused::new("08P01", "a body has another length than listed"));
        }
        decode(&body).into()
    }

    /// Waits for a body, and asks other machines for it, one after the other.
    async fn await_body(&self, name: BodyName, stop: &Stop<'_>, patience: Patience) -> Result<Bytes, Ready> {
        metrics::counter!("cloudbft_bodies_missed_total").increment(1);
        let store: &BodyStore = &self.shared.config.bodies;
        let (want, mut arrivals) = (store.want(name), store.arrivals());
        let started = Instant::now();
        let deadline = match patience {
            Patience::Short => Some(started + self.shared.config.limits.direct_wait),
            Patience::Endless => None,
        };
        let others: Vec<MachineId> = self.shared.config.voter_keys.keys().copied().collect();
        let mut others = others
            .into_iter()
            .filter(|machine| *machine != self.shared.config.machine)
            .cycle();
        let (mut ask_at, mut report_at) = (started + FETCH_AFTER, started + REPORT_INTERVAL);
        loop {
            if let Some(body) = store.read(name).await {
                return Ok(body);
            }
            // A word says that the body is on the disk here: without room there is none.
            if patience == Patience::Endless
                && let Some(body) = want.loose()
            {
                return Ok(body);
            }
            let now = Instant::now();
            if self.must_stop(stop) {
                return Err(Ready::Stopped);
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Ready::Missing);
            }
            if ask_at <= now
                && let Some(from) = others.next()
            {
                metrics::counter!("cloudbft_bodies_fetched_total").increment(1);
                self.shared.reporter.output(VoterOutput::FetchBody { from, name }).await;
                ask_at = now + FETCH_AGAIN;
            }
            if report_at <= now {
                tracing::error!(
                    began = self.transaction.began,
                    "a committed body is on no machine that answers"
                );
                report_at = now + REPORT_INTERVAL;
            }
            let wake_at = deadline.unwrap_or(report_at).min(ask_at);
            tokio::select! {
                _ = arrivals.changed() => {}
                () = self.signal.changed() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }
}
