//! LISTEN and UNLISTEN, and what the application is told (`docs/decisions/0050`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sql::footprint::Footprint;
use sql::operation::{Operation, SessionContext, Work};
use sql::statement::Listening;

use super::Session;
use super::special::Reply;
use super::transaction::Transaction;
use crate::client::{Client, Rows};
use crate::error::ApplicationError;
use crate::shared::Shared;
use crate::wire::first_error;

/// How long a session waits at the end of a transaction for what that has notified, when a voter has told of it.
const OWN_PATIENCE: Duration = Duration::from_millis(500);
/// How often time passes for what voters have told.
const TICK: Duration = Duration::from_millis(500);
/// How often voters are told that channels are listened to no more, in ticks.
const TIDY_TICKS: u32 = 60;

impl Session {
    /// LISTEN, UNLISTEN, and the question for the channels.
    pub(super) async fn listening(&mut self, listening: &Listening) -> Result<Reply, ApplicationError> {
        let tag = match listening {
            Listening::Show => {
                let rows: Vec<_> = self
                    .ear
                    .channels()
                    .into_iter()
                    .map(|channel| vec![Some(channel)])
                    .collect();
                let tag = format!("SELECT {}", rows.len());
                return Ok(Reply { rows, tag });
            }
            Listening::Listen(channel) => {
                if !self.ear.want(channel) {
                    return Err(ApplicationError::new(
                        "54000",
                        "the sessions of this proxy listen to too many channels",
                    )
                    .hint("Use fewer channels, and tell in the payload what a notification is about."));
                }
                // Before the application is told, or commits: what is committed from then on is told.
                let context = self.context();
                if let Err(error) = register(&self.shared.client, &context.decoded).await {
                    self.end_listening(None);
                    return Err(error);
                }
                "LISTEN"
            }
            Listening::Unlisten(_) => "UNLISTEN",
        };
        let Some(transaction) = &mut self.transaction else {
            let channels = listening.after(self.ear.channels());
            self.ear.listen_to(channels);
            return Ok(Reply::tag(tag));
        };
        if !transaction.listening.push(listening.clone()) {
            let message = "too many LISTEN and UNLISTEN in one transaction";
            return Err(ApplicationError::new("54000", message));
        }
        Ok(Reply::tag(tag))
    }

    /// A transaction has ended: committed, or without effect (`None`).
    pub(super) fn end_listening(&mut self, committed: Option<&Transaction>) {
        if !self.ear.is_active() {
            return;
        }
        let mut channels = self.ear.channels();
        if let Some(transaction) = committed {
            channels = transaction.listening.after(channels);
        }
        self.ear.listen_to(channels);
    }

    /// The session listens to nothing any more.
    pub(super) fn unlisten_all(&mut self) {
        if self.ear.is_active() {
            self.ear.listen_to(BTreeSet::new());
        }
    }

    /// Puts what waits for the application into the response, where PostgreSQL does: outside of transactions. A session that notifies
    /// itself is told before it is ready again.
    pub(super) async fn notify(&mut self) {
        let order = self.committed_at.take();
        if !self.ear.is_active() || self.transaction.is_some() {
            return;
        }
        if let Some(order) = order {
            // What is not confirmed in time comes later.
            let _ = tokio::time::timeout(OWN_PATIENCE, self.shared.client.hub.told(order)).await;
        }
        let (queue, dropped) = self.ear.take();
        for told in queue {
            self.connection.out.notification(told.process, &told.notification);
        }
        if dropped > 0 {
            let warning = ApplicationError::warning("01000", "notifications were dropped").detail(format!(
                "{dropped} were too many to keep for this session, or in one transaction."
            ));
            self.connection.out.error(&warning);
        }
    }
}

/// Makes sure that voters tell of all channels that sessions of the proxy listen to, from an order on that is over when this returns.
async fn register(client: &Client, context: &SessionContext) -> Result<(), ApplicationError> {
    let mut registered = client.hub.registered().await;
    let wanted = client.hub.channels();
    if registered.as_ref().is_some_and(|known| wanted.is_subset(known)) {
        return Ok(());
    }
    // Until it is known to be done, nothing is known.
    *registered = None;
    let operation = Operation {
        context: context.clone(),
        footprint: Footprint::empty(),
        nonce: rand::random(),
        work: Work::Listen {
            channels: wanted.iter().cloned().collect(),
        },
    };
    let voted = client.order(&operation, Rows::Ordered, None).await;
    let voted = voted.map_err(crate::client::Failure::into_error)?;
    if let Some(error) = first_error(&voted.result.messages) {
        return Err(error);
    }
    client.hub.begin_at(voted.order.0);
    *registered = Some(wanted);
    Ok(())
}

/// Lets time pass for notifications, for ever; now and then tells voters which channels are not listened to any more.
pub(crate) async fn keep_listening(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks = 0_u32;
    loop {
        interval.tick().await;
        shared.client.hub.tick();
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TIDY_TICKS)
            && let Some(catalog) = shared.catalogs.values().next()
            && shared.client.hub.forget_unwanted().await
            && let Err(error) = register(&shared.client, catalog.context()).await
        {
            tracing::debug!(error = %error.message, "voters are not told yet which channels are listened to");
        }
    }
}
