//! Who may cancel what: CancelRequest names a process number and a secret key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client::Cancel;
use crate::scram::equal;

/// The sessions that can be cancelled. Bounded by the connection limit.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: i32,
    sessions: HashMap<i32, (Vec<u8>, Arc<Cancel>)>,
}

/// A session's entry; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) process: i32,
    cancels: Arc<Cancels>,
}

impl Cancels {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a session, with the key that its application gets.
    pub(crate) fn register(self: &Arc<Self>, key: Vec<u8>, cancel: Arc<Cancel>) -> Registered {
        let mut table = self.lock();
        loop {
            table.next = table.next.checked_add(1).unwrap_or(1);
            let process = table.next;
            if let Entry::Vacant(vacant) = table.sessions.entry(process) {
                vacant.insert((key, cancel));
                return Registered {
                    process,
                    cancels: Arc::clone(self),
                };
            }
        }
    }

    /// Cancels what the session runs, if the key is right. Completes when the session's next statement is not meant any more.
    pub(crate) async fn cancel(&self, process: i32, key: &[u8]) {
        let found = self
            .lock()
            .sessions
            .get(&process)
            .map(|(key, cancel)| (key.clone(), Arc::clone(cancel)));
        if let Some((_, cancel)) = found.filter(|(expected, _)| equal(expected, key)) {
            cancel.request();
            cancel.seen().await;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.cancels.lock().sessions.remove(&self.process);
    }
}
