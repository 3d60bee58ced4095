//! Exactly once (`docs/protocol.md`, rule OnceOnly): which request numbers of a client have been seen.

use std::collections::BTreeMap;
use std::io;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{ClientId, Digest};
use crate::message::{REQUEST_WINDOW, Request};

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

/// Encoded as the floor and the words of the bitmap that are not zero, each with its place: nearly all are.
impl BorshSerialize for ClientWindow {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let words = (0_u8..).zip(self.seen.iter()).filter(|(_, word)| **word != 0);
        (self.floor, words.collect::<Vec<(u8, &u64)>>()).serialize(writer)
    }
}

impl BorshDeserialize for ClientWindow {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let (floor, words) = <(u64, Vec<(u8, u64)>)>::deserialize_reader(reader)?;
        let mut window = ClientWindow {
            floor,
            ..ClientWindow::default()
        };
        let is_canonical = words.is_sorted_by(|left, right| left.0 < right.0);
        for (place, word) in words {
            let known = window.seen.get_mut(usize::from(place));
            *known
                .filter(|_| is_canonical && word != 0)
                .ok_or(io::ErrorKind::InvalidData)? = word;
        }
        Ok(window)
    }
}

/// The windows of all clients. Bounded: one window (about 512 bytes) for each client that has a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClientTable {
    clients: BTreeMap<ClientId, ClientWindow>,
}

impl ClientTable {
    /// Names the table: part of what a checkpoint's signature covers.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("cloudbft client table v1");
        // Hashing cannot fail: the hasher takes every write.
        let _ = borsh::to_writer(&mut hasher, self);
        *hasher.finalize().as_bytes()
    }

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

    /// Whether this request may run.
    pub(crate) fn lacks(&self, request: &Request) -> bool {
        self.is_new(request.client, request.number, request.floor)
    }

    /// Records this request; false when it may not run.
    pub(crate) fn add(&mut self, request: &Request) -> bool {
        self.record(request.client, request.number, request.floor)
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

    proptest! {
        #[test]
        fn what_is_encoded_is_the_same_table(steps in prop::collection::vec((0u16..3, 0u64..20_000, 0u64..6_000), 0..100)) {
            let mut table = ClientTable::default();
            for (client, number, behind) in steps {
                table.record(ClientId(client.into()), number, number.saturating_sub(behind));
            }
            let bytes = borsh::to_vec(&table).unwrap();
            let again: ClientTable = borsh::from_slice(&bytes).unwrap();
            prop_assert_eq!(again.digest(), table.digest());
            prop_assert_eq!(again, table);
        }
    }

    #[test]
    fn a_table_that_is_not_written_as_we_write_it_is_refused() {
        let window = |words: Vec<(u8, u64)>| borsh::to_vec(&(7_u64, words)).unwrap();
        let read = |bytes: &[u8]| borsh::from_slice::<ClientWindow>(bytes).is_ok();
        assert!(read(&window(vec![(0, 1), (63, 2)])));
        assert!(!read(&window(vec![(64, 1)])), "beyond the window");
        assert!(!read(&window(vec![(1, 1), (0, 1)])), "out of order");
        assert!(!read(&window(vec![(1, 0)])), "an empty word");
    }

    #[test]
    fn the_highest_numbers_do_not_overflow() {
        let mut window = ClientWindow::default();
        assert!(window.record(u64::MAX, u64::MAX));
        assert!(!window.record(u64::MAX, u64::MAX));
        assert!(!window.record(0, 0));
    }
}
