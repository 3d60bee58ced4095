//! Which requests of which client have run: no request runs twice (rule OnceOnly). Pure.
//!
//! A function of the ordered history alone, so that all voters refuse the same duplicates.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use ordering::identifiers::ClientId;
use ordering::message::REQUEST_WINDOW;

/// Whether an ordered request is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is new: it runs.
    New,
    /// It was ordered before: nothing happens.
    Duplicate,
    /// Its number lies outside the client's window: nothing happens.
    Outside,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Window {
    floor: u64,
    /// Invariant: all in `floor..floor + REQUEST_WINDOW`.
    seen: BTreeSet<u64>,
}

/// The windows of all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClientWindows {
    clients: BTreeMap<ClientId, Window>,
}

impl ClientWindows {
    /// Admits an ordered request of a known client (the caller bounds the clients), once.
    pub fn admit(&mut self, client: ClientId, number: u64, floor: u64) -> Admission {
        let window = self.clients.entry(client).or_default();
        if floor > window.floor {
            window.floor = floor;
            window.seen = window.seen.split_off(&floor);
        }
        if number < window.floor || number - window.floor >= REQUEST_WINDOW {
            return Admission::Outside;
        }
        if window.seen.insert(number) {
            Admission::New
        } else {
            Admission::Duplicate
        }
    }

    /// The lowest number of a client that is still wanted.
    pub fn floor(&self, client: ClientId) -> u64 {
        self.clients.get(&client).map_or(0, |window| window.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_runs_once() {
        let mut windows = ClientWindows::default();
        let client = ClientId(4);
        assert_eq!(windows.admit(client, 7, 5), Admission::New);
        assert_eq!(windows.admit(client, 7, 5), Admission::Duplicate);
        assert_eq!(windows.admit(client, 4, 5), Admission::Outside);
        assert_eq!(windows.admit(client, 8, 8), Admission::New);
        assert_eq!(windows.admit(client, 7, 0), Admission::Outside, "forgotten and refused");
        assert_eq!(windows.admit(client, 8 + REQUEST_WINDOW, 8), Admission::Outside);
        assert_eq!(windows.admit(ClientId(5), 7, 0), Admission::New);
    }
}
