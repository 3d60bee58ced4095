//! Exactly once (DESIGN.md section 4, rule 8): which request numbers of a client have been seen.

use std::collections::BTreeMap;

use crate::identifiers::ClientId;
use crate::message::REQUEST_WINDOW;

/// Words of the bitmap over one client's window.
const WORDS: usize = (REQUEST_WINDOW / 64) as usize;

/// What is remembered of one client: a floor, and one bit for each number in the window above it.
///
/// A function of the requests that were recorded, in their order; so it is alike wherever the same history is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientWindow {
    /// Numbers below are finished.
    floor: u64,
    /// Bit `number % REQUEST_WINDOW`: seen. Invariant: only bits of numbers in `floor..floor + REQUEST_WINDOW`.
    seen: Box<[u64; WORDS]>,
}

impl Default for ClientWindow {
    fn default() -> Self {
        ClientWindow {
            floor: 0,
            seen: Box::new([0; WORDS]),
        }
    }
}

impl ClientWindow {
    /// Whether a request may run: it is in the window above both floors, and has not been seen.
    pub fn is_new(&self, number: u64, floor: u64) -> bool {
        let floor = floor.max(self.floor);
        let in_window = number >= floor && number - floor < REQUEST_WINDOW;
        in_window && !(number - self.floor < REQUEST_WINDOW && self.bit(number))
    }

    /// Records a request; false when it may not run.
    pub fn record(&mut self, number: u64, floor: u64) -> bool {
        if !self.is_new(number, floor) {
            return false;
        }
        self.raise_floor(floor);
        if let Some(word) = self.seen.get_mut(Self::word(number)) {
            *word |= 1 << (number % 64);
        }
        true
    }

    fn raise_floor(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        if floor - self.floor >= REQUEST_WINDOW {
            self.seen.fill(0);
        } else {
            for number in self.floor..floor {
                if let Some(word) = self.seen.get_mut(Self::word(number)) {
                    *word &= !(1 << (number % 64));
                }
            }
        }
        self.floor = floor;
    }

    fn bit(&self, number: u64) -> bool {
        self.seen
            .get(Self::word(number))
            .is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn word(number: u64) -> usize {
        ((number % REQUEST_WINDOW) / 64) as usize
    }
}

/// The windows of all clients. Bounded: one window (about 512 bytes) for each client that has a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTable {
    clients: BTreeMap<ClientId, ClientWindow>,
}

impl ClientTable {
    /// Whether a request may run.
    pub fn is_new(&self, client: ClientId, number: u64, floor: u64) -> bool {
        match self.clients.get(&client) {
            Some(window) => window.is_new(number, floor),
            None => ClientWindow::default().is_new(number, floor),
        }
    }

    /// Records a request; false when it may not run.
    pub fn record(&mut self, client: ClientId, number: u64, floor: u64) -> bool {
        self.clients.entry(client).or_default().record(number, floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The same, by the definition.
    #[derive(Default)]
    struct Model {
        floor: u64,
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn record(&mut self, number: u64, floor: u64) -> bool {
            let raised = self.floor.max(floor);
            if number < raised || number >= raised + REQUEST_WINDOW || self.seen.contains(&number) {
                return false;
            }
            self.floor = raised;
            self.seen.insert(number);
            true
        }
    }

    proptest! {
        #[test]
        fn rule_8_the_window_is_a_set_above_a_floor(steps in prop::collection::vec((0u64..20_000, 0u64..6_000), 1..300)) {
            let (mut window, mut model) = (ClientWindow::default(), Model::default());
            for (number, behind) in steps {
                let floor = number.saturating_sub(behind);
                prop_assert_eq!(window.record(number, floor), model.record(number, floor));
            }
        }
    }

    #[test]
    fn the_highest_numbers_do_not_overflow() {
        let mut window = ClientWindow::default();
        assert!(window.record(u64::MAX, u64::MAX));
        assert!(!window.record(u64::MAX, u64::MAX));
        assert!(!window.record(0, 0));
    }
}
