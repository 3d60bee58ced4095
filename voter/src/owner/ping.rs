//! The owner looks after its database all the time: whether it is there, and whether somebody has noted that it is not fit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Owner;
use crate::executor::Event;
use crate::postgres::PostgresError;

/// How often the database server is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(1);

impl Owner<'_> {
    /// An idle voter finds out by itself that its server is gone, and any voter that somebody has noted in its database that it
    /// differs from f+1 others.
    pub(super) fn ping(&mut self) {
        if self.last_ping.elapsed() < PING_INTERVAL {
            return;
        }
        self.ping_now();
    }

    pub(super) fn ping_now(&mut self) {
        self.last_ping = Instant::now();
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            // Somebody who uses the connection finds out too.
            let Ok(mut bookkeeper) = shared.bookkeeper.try_lock() else {
                return;
            };
            let noted = bookkeeper.check_divergence().await;
            let told = match noted {
                Ok(()) => bookkeeper.tell_scrub().await,
                Err(error) => Err(error),
            };
            match told {
                Ok(()) => {}
                Err(PostgresError::Diverged { order, shown }) => shared.tell(Event::Noted { order, shown }),
                Err(error) => shared.tell(Event::Lost(format!("ping: {error}"))),
            }
        });
    }
}
