//! A place in the decided history.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::assignment::Assignment;
use crate::identifiers::{Digest, GroupId, Order, View};

/// A place in the decided history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Which groups are in charge of what follows.
    pub assignment: Assignment,
}

/// Set in the encoded view when an assignment follows that was changed.
const HAS_ASSIGNMENT: u64 = 1 << 63;

/// Encoded with the assignment only once that was changed: a log that was written before there were changes is read as before.
impl BorshSerialize for HistoryPoint {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        (self.order, self.time_us, self.history, self.bytes).serialize(writer)?;
        let Assignment { version, groups, since } = self.assignment;
        if self.assignment == Assignment::FIRST {
            return (self.view.0 & !HAS_ASSIGNMENT, self.value).serialize(writer);
        }
        (self.view.0 | HAS_ASSIGNMENT, self.value, version, groups, since).serialize(writer)
    }
}

impl BorshDeserialize for HistoryPoint {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let (order, time_us, history, bytes) = <(Order, u64, Digest, u64)>::deserialize_reader(reader)?;
        let (view, value) = <(u64, u64)>::deserialize_reader(reader)?;
        let mut assignment = Assignment::FIRST;
        if view & HAS_ASSIGNMENT != 0 {
            let (version, groups, since) = <(u64, u16, Order)>::deserialize_reader(reader)?;
            // A point that is encoded in two ways would have two digests.
            if version == 0 || groups == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            assignment = Assignment { version, groups, since };
        }
        Ok(HistoryPoint {
            order,
            time_us,
            history,
            bytes,
            view: View(view & !HAS_ASSIGNMENT),
            value,
            assignment,
        })
    }
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
        assignment: Assignment::FIRST,
    };

    /// Names the place, the assignment and the client table there: what a checkpoint is about.
    pub fn digest(&self, clients: &Digest) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("cloudbft history point v3");
        hasher.update(clients);
        hasher.update(&self.order.0.to_le_bytes());
        hasher.update(&self.time_us.to_le_bytes());
        hasher.update(&self.history);
        hasher.update(&self.bytes.to_le_bytes());
        hasher.update(&self.view.0.to_le_bytes());
        hasher.update(&self.value.to_le_bytes());
        if self.assignment != Assignment::FIRST {
            hasher.update(&self.assignment.version.to_le_bytes());
            hasher.update(&self.assignment.groups.to_le_bytes());
            hasher.update(&self.assignment.since.0.to_le_bytes());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_that_was_never_changed_is_not_encoded() {
        let point = HistoryPoint {
            order: Order(3),
            view: View(5),
            value: 7,
            ..HistoryPoint::GENESIS
        };
        let parts = (Order(3), 0_u64, [0_u8; 32], 0_u64, View(5), 7_u64);
        let bytes = borsh::to_vec(&parts).unwrap();
        assert_eq!(borsh::to_vec(&point).unwrap(), bytes);
        assert_eq!(borsh::from_slice::<HistoryPoint>(&bytes).unwrap(), point);
    }

    #[test]
    fn an_assignment_is_part_of_the_point() {
        let first = HistoryPoint::GENESIS;
        let assignment = Assignment {
            version: 2,
            groups: 5,
            since: Order(9),
        };
        let changed = HistoryPoint { assignment, ..first };
        let bytes = borsh::to_vec(&changed).unwrap();
        assert_eq!(borsh::from_slice::<HistoryPoint>(&bytes).unwrap(), changed);
        assert_ne!(first.digest(&[0; 32]), changed.digest(&[0; 32]));
        // Said in another way than we say it.
        let mut strange = bytes.clone();
        let version = strange.len() - 18;
        strange[version] = 0;
        assert!(borsh::from_slice::<HistoryPoint>(&strange).is_err());
    }
}
