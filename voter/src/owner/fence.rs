//! When the owner writes into its server's log how far it is, so that whoever reads the log knows which orders have changed
//! nothing (`docs/decisions/0051-effects-are-compared.md`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Owner;
use crate::executor::Event;

/// The shortest time between two fences.
const FENCE_INTERVAL: Duration = Duration::from_millis(500);

/// After its start the voter writes fences for so long, whether it has executed anything or not: the first two tell from where on
/// nothing is missed.
const FIRST_FENCES: Duration = Duration::from_secs(10);

/// What was written of how far the voter is.
pub(super) struct Fences {
    started: Instant,
    written: Instant,
    last: (u64, u64),
    /// The last one is in the log. The next one is put together only then.
    is_done: Arc<AtomicBool>,
}

impl Fences {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            written: now,
            last: (0, 0),
            is_done: Arc::new(AtomicBool::new(true)),
        }
    }
}

impl Owner<'_> {
    /// Writes a fence if it is time, and there is something new to say.
    pub(super) fn fence(&mut self) {
        let now = Instant::now();
        let fences = &mut self.fences;
        if self.outside.effects.is_none()
            || now.duration_since(fences.written) < FENCE_INTERVAL
            || !fences.is_done.load(Ordering::Acquire)
        {
            return;
        }
        let ceiling = self.last_fed.max(self.survived.newest());
        let fence = (self.executed.load(Ordering::Relaxed), ceiling);
        if fence == fences.last && now.duration_since(fences.started) > FIRST_FENCES {
            return;
        }
        (fences.last, fences.written) = (fence, now);
        fences.is_done.store(false, Ordering::Release);
        let (shared, is_done) = (Arc::clone(&self.shared), Arc::clone(&fences.is_done));
        self.tasks.spawn(async move {
            let written = shared.bookkeeper.lock().await.fence(fence.0, fence.1).await;
            is_done.store(true, Ordering::Release);
            if let Err(error) = written {
                shared.tell(Event::Lost(format!("fence: {error}")));
            }
        });
    }
}
