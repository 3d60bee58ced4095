//! Advisory locks (`docs/decisions/0054`): which sessions of this proxy wait for one or hold some, as far as the voters have said.
//!
//! A voter does not push that a lock was granted. While sessions wait, the proxy asks for all of them together: at once when one of its own
//! sessions has given something back, and now and then for what sessions of other proxies do. While sessions hold locks it asks too,
//! rarely: voters that took this proxy for dead have given them to others.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sql::footprint::Footprint;
use sql::operation::{Advisory, Operation, SessionContext, Work, advisory_tag};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{Client, Rows};
use crate::error::ApplicationError;
use crate::shared::Shared;
use crate::wire::{command_tag, first_error, read_rows};

/// How often it is asked what has become of sessions that wait.
const WAITING_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is asked whether sessions still hold what they hold.
const HOLDING_INTERVAL: Duration = Duration::from_secs(5);
/// The pause before the locks of a session that has ended are given back again.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// The end of a session's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The session holds the lock.
    Granted,
    /// The voters have taken this proxy for dead: it holds nothing.
    Lost,
}

/// The locks of one session.
#[derive(Debug, Default)]
struct Locks {
    /// Grows with each wish, before it is sent and when it is answered: an answer to an earlier question says nothing then.
    version: u64,
    /// A wish of the session is on its way.
    is_asking: bool,
    /// The session may hold more locks of its own than are counted, since a wish of it was not answered.
    is_unsure: bool,
    /// The session's own locks, each counted as often as it was taken.
    own: u64,
    /// The order since which the session waits.
    waits: Option<u64>,
    /// The end of its wait, until the session has taken notice.
    waited: Option<Waited>,
    /// The voters have given the session's locks away.
    is_lost: bool,
}

impl Locks {
    fn may_hold(&self) -> bool {
        self.own > 0 || self.is_unsure
    }
}

/// One session, as advisory locks concern it.
#[derive(Debug)]
pub(crate) struct Station {
    id: u64,
    locks: Mutex<Locks>,
    woken: Notify,
    board: Arc<Board>,
}

/// All sessions that hold locks or wait. Whoever locks both locks `stations` first.
#[derive(Debug, Default)]
pub(crate) struct Board {
    stations: Mutex<HashMap<u64, Arc<Station>>>,
    /// Something may have been granted.
    moved: Notify,
}

/// The state of a session when the voters were asked about it.
struct Known {
    station: Arc<Station>,
    version: u64,
}

impl Board {
    /// A session's place on the board.
    pub(crate) fn station(self: &Arc<Self>, id: u64) -> Arc<Station> {
        Arc::new(Station {
            id,
            locks: Mutex::default(),
            woken: Notify::new(),
            board: Arc::clone(self),
        })
    }

    fn stations(&self) -> MutexGuard<'_, HashMap<u64, Arc<Station>>> {
        self.stations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has given something back, or begins to wait.
    pub(crate) fn moved(&self) {
        self.moved.notify_one();
    }

    fn anybody_waits(&self) -> bool {
        self.stations().values().any(|station| station.locks().waits.is_some())
    }

    fn known(&self) -> Vec<Known> {
        let known = |station: &Arc<Station>| {
            let locks = station.locks();
            (!locks.is_asking).then(|| Known {
                station: Arc::clone(station),
                version: locks.version,
            })
        };
        self.stations().values().filter_map(known).collect()
    }
}

impl Known {
    /// The voters say which sessions wait since when, and which hold something.
    fn compare(&self, waiting: &BTreeSet<(u64, u64)>, holding: &BTreeSet<u64>) {
        let mut locks = self.station.locks();
        if locks.version != self.version {
            return;
        }
        let holds = holding.contains(&self.station.id);
        if let Some(since) = locks.waits
            && !waiting.contains(&(self.station.id, since))
        {
            locks.waits = None;
            locks.waited = Some(if holds { Waited::Granted } else { Waited::Lost });
        }
        locks.is_lost |= locks.own > 0 && !holds;
        if locks.waited.is_some() || locks.is_lost {
            self.station.woken.notify_one();
        }
        drop(locks);
        self.station.take_place();
    }
}

impl Station {
    fn locks(&self) -> MutexGuard<'_, Locks> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may hold locks of its own.
    pub(crate) fn may_hold(&self) -> bool {
        self.locks().may_hold()
    }

    /// Stands on the board as long as there is something to ask about it.
    fn take_place(self: &Arc<Self>) {
        let mut stations = self.board.stations();
        let locks = self.locks();
        match locks.may_hold() || locks.waits.is_some() {
            true => stations.insert(self.id, Arc::clone(self)),
            false => stations.remove(&self.id),
        };
    }

    /// Whether the voters have given its locks away.
    pub(crate) fn is_lost(&self) -> bool {
        self.locks().is_lost
    }

    /// Completes when they have.
    pub(crate) async fn lost(&self) {
        while !self.is_lost() {
            self.woken.notified().await;
        }
    }

    /// Completes when it waits no longer.
    pub(crate) async fn waited(&self) -> Waited {
        loop {
            if let Some(waited) = self.locks().waited.take() {
                return waited;
            }
            self.woken.notified().await;
        }
    }

    /// Has its wish ordered; the answer's tag and order.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        client: &Client,
        context: &SessionContext,
        advisory: Advisory,
    ) -> Result<(String, u64), ApplicationError> {
        self.begin(&advisory);
        let answered = order(client, context, advisory.clone()).await;
        let answered = answered.map(|(messages, order)| (command_tag(&messages).unwrap_or_default(), order));
        self.note(&advisory, answered.as_ref().ok());
        answered
    }

    fn begin(&self, advisory: &Advisory) {
        let mut locks = self.locks();
        locks.version += 1;
        locks.is_asking = true;
        if let Advisory::Lock { .. } = advisory {
            locks.waited = None;
        }
    }

    fn note(self: &Arc<Self>, advisory: &Advisory, answer: Option<&(String, u64)>) {
        let mut locks = self.locks();
        locks.version += 1;
        locks.is_asking = false;
        let (tag, order) = answer.map_or(("", 0), |(tag, order)| (tag.as_str(), *order));
        match (advisory, tag) {
            (Advisory::Lock { transaction: None, .. }, advisory_tag::GRANTED) => locks.own += 1,
            (Advisory::Lock { .. }, advisory_tag::WAITS) => locks.waits = Some(order),
            (Advisory::Unlock { .. }, advisory_tag::RELEASED) => locks.own = locks.own.saturating_sub(1),
            (Advisory::UnlockAll, advisory_tag::RELEASED) => {
                locks.own = 0;
                locks.is_unsure = false;
            }
            _ => {}
        }
        if let Advisory::GiveUp { .. } = advisory {
            locks.waits = None;
        }
        locks.is_unsure |= answer.is_none();
        drop(locks);
        self.take_place();
        if matches!(
            tag,
            advisory_tag::RELEASED | advisory_tag::WAITS | advisory_tag::GIVEN_UP
        ) {
            self.board.moved();
        }
    }

    /// A lock of its own that it waited for is granted.
    pub(crate) fn granted(self: &Arc<Self>) {
        let mut locks = self.locks();
        locks.version += 1;
        locks.own += 1;
        drop(locks);
        self.take_place();
    }

    /// The session has ended: gives back what it holds, until the voters have said so.
    pub(crate) async fn leave(self: Arc<Self>, client: &Client, context: &SessionContext) {
        while self.may_hold() && !client.is_cut_off() {
            if let Err(error) = self.ask(client, context, Advisory::UnlockAll).await {
                tracing::debug!(error = %error.message, "advisory locks are not given back yet");
                tokio::time::sleep(RELEASE_PAUSE).await;
            }
        }
    }
}

/// Has a wish ordered; the messages of the answer, and its order.
async fn order(
    client: &Client,
    context: &SessionContext,
    advisory: Advisory,
) -> Result<(bytes::Bytes, u64), ApplicationError> {
    let operation = Operation {
        context: context.clone(),
        footprint: Footprint::empty(),
        nonce: rand::random(),
        work: Work::Advisory(advisory),
    };
    let voted = client.order(&operation, Rows::Ordered, None).await;
    let voted = voted.map_err(crate::client::Failure::into_error)?;
    let order = voted.order.0;
    let result = client.gather(voted.result).await;
    let result = result.map_err(crate::client::Failure::into_error)?;
    match first_error(&result.messages) {
        Some(error) => Err(error),
        None => Ok((result.messages, order)),
    }
}

/// Asks what has become of the sessions that wait and hold, for ever.
pub(crate) async fn keep_asking(shared: Arc<Shared>) {
    let board = &shared.advisory;
    let Some(catalog) = shared.catalogs.values().next() else {
        return;
    };
    let mut asked_at = Instant::now();
    loop {
        let interval = match board.anybody_waits() {
            true => WAITING_INTERVAL,
            false => HOLDING_INTERVAL,
        };
        let due = tokio::select! {
            () = tokio::time::sleep_until(asked_at + interval) => true,
            () = board.moved.notified() => false,
        };
        let known = match due || board.anybody_waits() {
            true => board.known(),
            false => continue,
        };
        asked_at = Instant::now();
        if known.is_empty() {
            continue;
        }
        match order(&shared.client, catalog.context(), Advisory::Report).await {
            Ok((messages, _)) => {
                let (mut waiting, mut holding) = (BTreeSet::new(), BTreeSet::new());
                for row in read_rows(&messages).unwrap_or_default() {
                    let [Some(session), Some(what)] = row.as_slice() else {
                        continue;
                    };
                    let Ok(session) = session.parse() else { continue };
                    match what.parse() {
                        Ok(since) => drop(waiting.insert((session, since))),
                        Err(_) => drop(holding.insert(session)),
                    }
                }
                known.iter().for_each(|known| known.compare(&waiting, &holding));
            }
            Err(error) => {
                tracing::debug!(error = %error.message, "it is not known yet what becomes of advisory locks");
                tokio::time::sleep(WAITING_INTERVAL).await;
            }
        }
    }
}
