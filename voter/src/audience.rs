//! Who is told what a transaction notifies when it commits.

use std::sync::Arc;

use ordering::identifiers::{ClientId, Order};
use ordering::message::Notifications;
use sql::operation::SessionContext;

use crate::listeners::Listeners;
use crate::lock_table::Position;
use crate::postgres::notified::Notified;
use crate::reporter::Reporter;

/// Those who listen as of the order that lets a transaction commit, and the transaction's place: alike on all voters.
#[derive(Clone, Debug)]
pub(crate) struct Audience {
    position: Position,
    listeners: Arc<Listeners>,
}

impl Audience {
    /// The audience of a transaction with this position.
    pub(crate) fn new(position: Position, listeners: &Arc<Listeners>) -> Self {
        Self {
            position,
            listeners: Arc::clone(listeners),
        }
    }

    /// The channels that the transaction's backend must listen to; `None` where nobody listens or nothing can be notified.
    pub(crate) fn channels(&self, may_notify: bool) -> Option<Arc<[String]>> {
        let wanted = may_notify && !self.listeners.is_empty();
        wanted.then(|| self.listeners.channels().into_iter().map(str::to_owned).collect())
    }

    /// Tells each proxy what the transaction of this session has notified that concerns it.
    pub(crate) async fn tell(&self, reporter: &Reporter, context: &SessionContext, notified: Notified) {
        if notified.is_empty() {
            return;
        }
        if notified.dropped > 0 {
            tracing::warn!(
                order = self.position.order,
                dropped = notified.dropped,
                "a transaction notified more than is told of one"
            );
            metrics::counter!("cloudbft_voter_notifications_dropped_total").increment(notified.dropped);
        }
        for (client, mut notifications) in self.listeners.divide(&notified.notifications) {
            metrics::counter!("cloudbft_voter_notifications_total").increment(notifications.len() as u64);
            if cfg!(feature = "lying-voter") {
                notifications.iter_mut().for_each(|one| one.payload.push('!'));
            }
            let message = Notifications {
                granted: Order(self.position.granted),
                order: Order(self.position.order),
                client: ClientId(context.client),
                session: context.session,
                notifications,
                dropped: notified.dropped,
            };
            reporter.notify(client, message).await;
        }
    }
}
