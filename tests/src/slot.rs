//! How many clusters run at once: they are heavy, and tests of one binary run side by side.

use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Names a file that exists as long as other tests run beside these (`scripts/run-tests`): then a cluster runs alone.
const BESIDE: &str = "CLOUDBFT_TESTS_BESIDE";

/// Clusters at once when nothing else runs: most of the time they wait.
const CLUSTERS_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The leave to run a cluster, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(());

impl Slot {
    /// Waits for one.
    pub(crate) fn take() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= clusters_max() {
            // The file may go at any time.
            let waited = ENDED.wait_timeout(running, Duration::from_secs(1));
            (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

fn clusters_max() -> usize {
    let is_beside = std::env::var_os(BESIDE).is_some_and(|path| Path::new(&path).exists());
    if is_beside { 1 } else { CLUSTERS_MAX }
}
