//! Whose turn it is: one client acts at a time, in an order that the seed draws. A client that waits for an answer which does
//! not come (for a lock, mostly) loses its turn until it has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It wants to act.
    Ready,
    /// It acts, or waits for what it asked.
    Busy,
    /// It has nothing more to do.
    Done,
}

/// A client's end.
#[derive(Debug)]
pub struct Turn {
    phase: watch::Sender<Phase>,
    permits: Arc<Semaphore>,
}

/// The driver's end.
#[derive(Debug)]
pub struct Actor {
    phase: watch::Receiver<Phase>,
    permits: Arc<Semaphore>,
}

/// The two ends of a client.
pub fn turns() -> (Turn, Actor) {
    let (sender, phase) = watch::channel(Phase::Busy);
    let permits = Arc::new(Semaphore::new(0));
    let turn = Turn {
        phase: sender,
        permits: Arc::clone(&permits),
    };
    (turn, Actor { phase, permits })
}

impl Turn {
    /// Waits for a turn.
    pub async fn take(&self) {
        self.phase.send_replace(Phase::Ready);
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
        self.phase.send_replace(Phase::Busy);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Done);
    }
}

impl Actor {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Gives it its turn, and waits until it has acted, at most this long.
    pub async fn act(&mut self, patience: Duration) {
        self.phase.mark_unchanged();
        self.permits.add_permits(1);
        // It is busy first, then ready or done.
        let _ = tokio::time::timeout(patience, async {
            while self.phase.changed().await.is_ok() {
                if *self.phase.borrow_and_update() != Phase::Busy {
                    return;
                }
            }
        })
        .await;
    }
}
