//! LISTEN and NOTIFY (`docs/decisions/0050`): which sessions listen to what, and what they are told.

mod merge;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ordering::identifiers::{ClientId, MachineId};
use ordering::message::{Notification, Notifications};
use sql::operation::CHANNELS_MAX;
use sql::statement::Listening;
use tokio::sync::Notify;

use merge::Merge;

/// What waits for one session, in bytes, at most: an application that does not read loses what comes then.
const SESSION_BYTES_MAX: usize = 4 << 20;
/// What waits for all sessions together, in bytes, at most.
const ALL_BYTES_MAX: usize = 64 << 20;
/// What a notification in a session's queue takes beside its texts, nearly.
const QUEUED_BYTES: usize = 64;

/// Channels that nobody listens to any more, but voters tell of: so many are not worth an order.
const FORGOTTEN_MIN: usize = 16;

/// A notification for an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The process number of the session that notified.
    pub(crate) process: i32,
    pub(crate) notification: Arc<Notification>,
}

/// What waits for a session.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Told>,
    bytes: usize,
    /// How many were dropped since the application was told so.
    dropped: u64,
}

/// A session, as notifications concern it.
#[derive(Debug)]
struct Listener {
    process: i32,
    /// What it listens to.
    channels: BTreeSet<String>,
    /// What it will listen to when its transaction commits.
    wanted: BTreeSet<String>,
    waiting: Waiting,
    woken: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    sessions: HashMap<u64, Listener>,
    merge: Merge,
    /// What waits for all sessions, in bytes.
    bytes: usize,
    /// Voters have told of something to which nobody listens.
    stale: bool,
}

/// The sessions of a proxy that listen, and what voters say.
#[derive(Debug)]
pub(crate) struct Hub {
    client: ClientId,
    state: Mutex<State>,
    /// The channels that voters know of; `None`: what they know is not certain.
    registered: tokio::sync::Mutex<Option<BTreeSet<String>>>,
    /// Something was told.
    moved: Notify,
}

/// A session's part of the hub; dropping it removes the session.
#[derive(Debug)]
pub(crate) struct Ear {
    hub: Arc<Hub>,
    session: u64,
    woken: Arc<Notify>,
    /// Whether the session has ever listened: what has not costs nothing.
    active: bool,
}

impl Hub {
    pub(crate) fn new(client: ClientId, faults: usize) -> Self {
        Self {
            client,
            state: Mutex::new(State {
                sessions: HashMap::new(),
                merge: Merge::new(faults),
                bytes: 0,
                stale: false,
            }),
            registered: tokio::sync::Mutex::new(Some(BTreeSet::new())),
            moved: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that may listen.
    pub(crate) fn ear(self: &Arc<Self>, session: u64, process: i32) -> Ear {
        let woken = Arc::new(Notify::new());
        let listener = Listener {
            process,
            channels: BTreeSet::new(),
            wanted: BTreeSet::new(),
            waiting: Waiting::default(),
            woken: Arc::clone(&woken),
        };
        self.lock().sessions.insert(session, listener);
        Ear {
            hub: Arc::clone(self),
            session,
            woken,
            active: false,
        }
    }

    /// A voter says what a transaction notified.
    pub(crate) fn said(&self, voter: MachineId, notifications: Notifications) {
        let mut state = self.lock();
        let told = state.merge.say(voter, notifications, Instant::now());
        self.tell(&mut state, told);
    }

    /// Voters know of channels of this proxy from this order on. What is told of transactions before was meant for an earlier life of the
    /// proxy, whose sessions are gone.
    pub(crate) fn begin_at(&self, order: u64) {
        self.lock().merge.begin_at(order);
    }

    /// Time has passed.
    pub(crate) fn tick(&self) {
        let mut state = self.lock();
        let told = state.merge.tick(Instant::now());
        self.tell(&mut state, told);
        let dropped = state.merge.take_dropped();
        for (count, reason) in [(dropped.without_room, "no_room"), (dropped.unconfirmed, "unconfirmed")] {
            if count > 0 {
                tracing::warn!(count, reason, "notifications that single voters tell of are dropped");
                metrics::counter!("cloudbft_notifications_dropped_total", "reason" => reason).increment(count);
            }
        }
    }

    fn tell(&self, state: &mut State, told: Vec<Arc<Notifications>>) {
        if told.is_empty() {
            return;
        }
        for said in told {
            let own = (said.client == self.client)
                .then(|| state.sessions.get(&said.session))
                .flatten();
            let process = own.map_or_else(|| process_of(said.client, said.session), |session| session.process);
            let State {
                sessions, bytes, stale, ..
            } = &mut *state;
            if said.dropped > 0 {
                // They were on channels that are not known any more: all that listen are warned.
                let listening = sessions.values_mut().filter(|session| !session.channels.is_empty());
                listening.for_each(|session| session.lose(said.dropped));
            }
            for notification in &said.notifications {
                let notification = Arc::new(notification.clone());
                let mut heard = false;
                for session in sessions.values_mut() {
                    if session.channels.contains(&notification.channel) {
                        let notification = Arc::clone(&notification);
                        session.put(Told { process, notification }, bytes);
                        heard = true;
                    }
                }
                *stale |= !heard;
            }
        }
        self.moved.notify_waiters();
    }

    /// Waits until what voters have told of a transaction of this order has been told on.
    pub(crate) async fn told(&self, order: u64) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if !self.lock().merge.awaits(order) {
                return;
            }
            moved.await;
        }
    }

    /// The channels that voters know of. Whoever holds it changes them.
    pub(crate) async fn registered(&self) -> tokio::sync::MutexGuard<'_, Option<BTreeSet<String>>> {
        self.registered.lock().await
    }

    /// Forgets what voters know if that is much more than what is wanted, or, after a start of the proxy, not known to it: whether they
    /// are to be told anew.
    pub(crate) async fn forget_unwanted(&self) -> bool {
        let mut registered = self.registered.lock().await;
        let wanted = self.channels();
        let stale = std::mem::take(&mut self.lock().stale);
        let known = registered.as_ref().map_or(usize::MAX, BTreeSet::len);
        let much_more = known > 2 * wanted.len() + FORGOTTEN_MIN || (wanted.is_empty() && known > 0);
        if stale || much_more {
            *registered = None;
        }
        stale || much_more
    }

    /// All channels that sessions listen to, or will.
    pub(crate) fn channels(&self) -> BTreeSet<String> {
        let state = self.lock();
        let sessions = state.sessions.values();
        sessions
            .flat_map(|session| session.channels.union(&session.wanted))
            .cloned()
            .collect()
    }
}

/// The process number of a session that is not of this proxy, or has ended: the same wherever it is told.
fn process_of(client: ClientId, session: u64) -> i32 {
    let digest = blake3::hash(&[&client.0.to_le_bytes()[..], &session.to_le_bytes()].concat());
    let number = digest
        .as_bytes()
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    // Above the numbers that a proxy gives to its own sessions in practice.
    i32::try_from(number >> 2).unwrap_or(0) | 1 << 30
}

impl Listener {
    fn put(&mut self, told: Told, all_bytes: &mut usize) {
        let notification = &told.notification;
        let bytes = notification.channel.len() + notification.payload.len() + QUEUED_BYTES;
        if self.waiting.bytes + bytes > SESSION_BYTES_MAX || *all_bytes + bytes > ALL_BYTES_MAX {
            return self.lose(1);
        }
        self.waiting.bytes += bytes;
        *all_bytes += bytes;
        self.waiting.queue.push_back(told);
        self.woken.notify_one();
    }

    fn lose(&mut self, count: u64) {
        if self.waiting.dropped == 0 {
            tracing::warn!(
                "a session loses notifications: it does not take them in time, or there were too many at once"
            );
        }
        metrics::counter!("cloudbft_notifications_dropped_total", "reason" => "session").increment(count);
        self.waiting.dropped += count;
        self.woken.notify_one();
    }
}

impl Ear {
    /// Whether the session has ever listened.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    fn with<T: Default>(&self, action: impl FnOnce(&mut Listener) -> T) -> T {
        let mut state = self.hub.lock();
        state.sessions.get_mut(&self.session).map(action).unwrap_or_default()
    }

    /// The session will listen to this channel when its transaction commits; false if that would be too many for the proxy.
    pub(crate) fn want(&mut self, channel: &str) -> bool {
        self.active = true;
        let mut all = self.hub.channels();
        all.insert(channel.to_owned());
        let has_room = all.len() <= CHANNELS_MAX;
        if has_room {
            self.with(|listener| listener.wanted.insert(channel.to_owned()));
        }
        has_room
    }

    /// The session's transaction has ended: these are the channels that it listens to now.
    pub(crate) fn listen_to(&self, channels: BTreeSet<String>) {
        self.with(|listener| {
            listener.channels = channels;
            listener.wanted.clear();
        });
    }

    /// What the session listens to.
    pub(crate) fn channels(&self) -> BTreeSet<String> {
        self.with(|listener| listener.channels.clone())
    }

    /// What waits for the session, and how many notifications were dropped.
    pub(crate) fn take(&self) -> (VecDeque<Told>, u64) {
        let mut state = self.hub.lock();
        let waiting = state
            .sessions
            .get_mut(&self.session)
            .map(|session| std::mem::take(&mut session.waiting));
        let waiting = waiting.unwrap_or_default();
        state.bytes = state.bytes.saturating_sub(waiting.bytes);
        (waiting.queue, waiting.dropped)
    }

    /// Completes when something waits for the session. Cancel safe.
    pub(crate) async fn heard(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        if let Some(session) = state.sessions.remove(&self.session) {
            state.bytes = state.bytes.saturating_sub(session.waiting.bytes);
        }
    }
}

/// What a transaction changes of what its session listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes(Vec<Listening>);

/// Changes of one transaction, at most.
const CHANGES_MAX: usize = 10_000;

impl Changes {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes back what came after so many.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// One more; false if there are too many.
    pub(crate) fn push(&mut self, change: Listening) -> bool {
        let has_room = self.0.len() < CHANGES_MAX;
        if has_room {
            self.0.push(change);
        }
        has_room
    }

    /// What is listened to after them.
    pub(crate) fn after(&self, channels: BTreeSet<String>) -> BTreeSet<String> {
        self.0.iter().fold(channels, |channels, change| change.after(channels))
    }
}
