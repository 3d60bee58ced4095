//! A place in the decided history.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::identifiers::{Digest, GroupId, Order, View};

/// A place in the decided history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct HistoryPoint {
    /// The order of the last operation.
    pub order: Order,
    /// Its time.
    pub time_us: u64,
    /// The hash over everything up to it (`extend_history`).
    pub history: Digest,
    /// Bytes of all operations up to it.
    pub bytes: u64,
    /// The view in which it was prepared.
    pub view: View,
    /// The value of the primary's counter that prepared it in that view.
    pub value: u64,
}

impl HistoryPoint {
    /// Before anything was ordered.
    pub const GENESIS: HistoryPoint = HistoryPoint {
        order: Order(0),
        time_us: 0,
        history: [0; 32],
        bytes: 0,
        view: View(0),
        value: 0,
    };

    /// Names the place, and the client table there: what a checkpoint is about.
    pub fn digest(&self, clients: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("cloudbft history point v3");
        hasher.update(clients);
        hasher.update(&self.order.0.to_le_bytes());
        hasher.update(&self.time_us.to_le_bytes());
        hasher.update(&self.history);
        hasher.update(&self.bytes.to_le_bytes());
        hasher.update(&self.view.0.to_le_bytes());
        hasher.update(&self.value.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// The hash over the decided history, one operation further.
pub(crate) fn extend_history(history: &Digest, group: GroupId, time_us: u64, digest: &Digest) -> Digest {
    let mut bytes = [0; 32 + 2 + 8 + 32];
    let (head, rest) = bytes.split_at_mut(32);
    head.copy_from_slice(history);
    let (middle, rest) = rest.split_at_mut(2);
    middle.copy_from_slice(&group.0.to_le_bytes());
    let (time, rest) = rest.split_at_mut(8);
    time.copy_from_slice(&time_us.to_le_bytes());
    rest.copy_from_slice(digest);
    *blake3::hash(&bytes).as_bytes()
}
