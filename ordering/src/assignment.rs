//! Which groups are in charge of which homes, and how an ordered request changes that while the cluster runs
//! (`docs/decisions/0057`).
//!
//! Every machine holds a replica of every group that the cluster may ever have. The assignment says how many of them, from the
//! first on, are in charge of homes: `home % groups` names the one. It changes at an order, alike on all machines: the request of
//! the change itself is decided by the first group, and what is ordered after it belongs to the groups of the new assignment.
//! So which group decides an order is a function of the history before it.
//!
//! PREPAREs and outcomes hold digests only. So that a machine without bodies knows the assignment too, an entry that holds a
//! change names, instead of a group, the number of groups that it changes to ([`GroupId::change`]); a replica commits the entry
//! only after it has found in the body what the entry says.

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::{Signer, SigningKey};

use crate::configuration::{Configuration, GROUPS_MAX};
use crate::identifiers::{Digest, GroupId, Order, administrator};
use crate::ledger::piece::NOTHING;
use crate::message::Request;

/// Marks an entry that holds a change. Invariant: above every group.
const CHANGE: u16 = 0x8000;

impl GroupId {
    /// The name under which a change to so many groups is ordered; 0: one that changes nothing, since it was asked for a version
    /// that is not the next one.
    pub fn change(groups: u16) -> Self {
        GroupId(CHANGE | groups)
    }

    /// The number of groups that an entry changes to; 0: it changes nothing; none: it holds an ordinary request.
    pub fn asked(self) -> Option<u16> {
        (self.0 & CHANGE != 0).then_some(self.0 & !CHANGE)
    }

    /// Whether an entry of this name changes the assignment.
    pub fn is_change(self) -> bool {
        self.asked().is_some_and(|groups| groups > 0)
    }

    /// The group whose replicas decide an entry of this name: of a change the first one.
    pub fn deciding(self) -> Self {
        if self.asked().is_some() { GroupId(0) } else { self }
    }

    /// Whether an entry may have this name, in a cluster with so many groups.
    pub(crate) fn is_possible(self, groups: u16) -> bool {
        self.asked().map_or(self.0 < groups, |asked| asked <= GROUPS_MAX)
    }
}

/// Whether the names of a batch's entries are possible, and a change, if there is one, is the last entry: so one assignment is in
/// force for all entries of a batch.
pub(crate) fn are_possible(names: impl DoubleEndedIterator<Item = GroupId>, groups: u16) -> bool {
    names
        .rev()
        .enumerate()
        .all(|(behind, name)| name.is_possible(groups) && (behind == 0 || name.asked().is_none()))
}

/// The request to change the number of groups, as the operation of a [`Request`] of [`administrator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AssignmentChange {
    /// The version that it begins: it changes nothing unless this is the next one, so it is never applied twice.
    pub version: u64,
    /// The number of groups that are to be in charge.
    pub groups: u16,
}

impl AssignmentChange {
    /// The signed request. `number` must be higher than every number that the administrator has used before.
    pub fn request(&self, number: u64, key: &SigningKey) -> Request {
        let mut operation = self.version.to_le_bytes().to_vec();
        operation.extend_from_slice(&self.groups.to_le_bytes());
        let mut request = Request {
            client: administrator(),
            number,
            floor: number,
            home: 0,
            operation: operation.into(),
            signature: [0; 64],
        };
        request.signature = key.sign(&request.digest()).to_bytes();
        request
    }

    /// The change that a request of the administrator asks for; none: it is not one.
    pub fn of(request: &Request) -> Option<Self> {
        let is_one = request.client == administrator();
        let change = is_one.then(|| borsh::from_slice::<Self>(&request.operation).ok());
        change.flatten()
    }
}

/// Which groups are in charge, at a place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Assignment {
    /// How often it was changed.
    pub version: u64,
    /// How many groups are in charge; 0 in version 0: the number that the cluster was made with.
    pub groups: u16,
    /// The order of the change that began it; what is ordered after it belongs to these groups.
    pub since: Order,
}

impl Assignment {
    /// Before anything was ordered.
    pub const FIRST: Assignment = Assignment {
        version: 0,
        groups: 0,
        since: Order(0),
    };

    /// The number of groups that a request changes to at a place with this assignment; 0: none, it changes nothing.
    fn granted(&self, request: &Request) -> u16 {
        let change = AssignmentChange::of(request);
        let is_next = |change: &AssignmentChange| {
            Some(change.version) == self.version.checked_add(1) && (1..=GROUPS_MAX).contains(&change.groups)
        };
        change.filter(is_next).map_or(0, |change| change.groups)
    }

    fn changed(self, groups: u16, at: Order) -> Self {
        match groups {
            0 => self,
            _ => Assignment {
                version: self.version.saturating_add(1),
                groups,
                since: at,
            },
        }
    }

    /// The assignment after an order at which this request was decided.
    #[must_use]
    pub fn after(self, at: Order, request: &Request) -> Self {
        self.changed(self.granted(request), at)
    }

    /// The assignment after an order whose entry has this name and digest.
    #[must_use]
    pub(crate) fn after_entry(self, at: Order, name: GroupId, digest: &Digest) -> Self {
        match name.asked() {
            Some(groups) if *digest != NOTHING => self.changed(groups, at),
            _ => self,
        }
    }

    /// How many groups are in charge in a cluster with so many groups, of which `at_first` were in charge at first.
    pub fn in_charge(&self, at_first: u16, groups: u16) -> u16 {
        match self.version {
            0 => at_first,
            _ => self.groups.min(groups),
        }
    }
}

impl Configuration {
    /// How many groups are in charge of homes.
    pub fn in_charge(&self, assignment: &Assignment) -> u16 {
        assignment.in_charge(self.groups_at_first, self.groups)
    }

    /// The name under which a request is ordered where this assignment is in force: the group in charge of its home, or what it
    /// changes.
    pub fn name_of(&self, assignment: &Assignment, request: &Request) -> GroupId {
        if request.client == administrator() {
            return GroupId::change(assignment.granted(request));
        }
        crate::configuration::group_of(request.home, self.in_charge(assignment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Faults;
    use crate::identifiers::MachineId;

    fn change(version: u64, groups: u16) -> Request {
        AssignmentChange { version, groups }.request(7, &SigningKey::from_bytes(&[1; 32]))
    }

    #[test]
    fn a_change_begins_the_next_version_only() {
        let first = Assignment::FIRST;
        let second = first.after(Order(5), &change(1, 3));
        let expected = Assignment {
            version: 1,
            groups: 3,
            since: Order(5),
        };
        assert_eq!(second, expected);
        assert_eq!(second.after(Order(6), &change(1, 4)), second, "it is not applied twice");
        assert_eq!(second.after(Order(6), &change(3, 4)), second, "no version is left out");
        assert_eq!(
            second.after(Order(6), &change(2, 0)),
            second,
            "some group must be in charge"
        );
        assert_eq!(second.after(Order(6), &change(2, GROUPS_MAX + 1)), second);
        let mut strange = change(2, 4);
        strange.client = crate::identifiers::ClientId(0);
        assert_eq!(second.after(Order(6), &strange), second, "only the administrator may");
    }

    #[test]
    fn an_entry_says_what_its_body_changes() {
        let mut configuration = Configuration::new(MachineId(1), Faults(1), 8);
        configuration.groups_at_first = 2;
        let (first, home) = (Assignment::FIRST, |home| Request { home, ..strange() });
        assert_eq!(configuration.name_of(&first, &home(5)), GroupId(1));
        let name = configuration.name_of(&first, &change(1, 3));
        assert_eq!((name.asked(), name.deciding()), (Some(3), GroupId(0)));
        let second = first.after_entry(Order(9), name, &[1; 32]);
        assert_eq!(second, first.after(Order(9), &change(1, 3)));
        assert_eq!(first.after_entry(Order(9), name, &NOTHING), first);
        assert_eq!(configuration.name_of(&second, &home(5)), GroupId(2));
        let vain = configuration.name_of(&second, &change(1, 3));
        assert!(!vain.is_change() && vain.asked() == Some(0));
        // Never more than there are replicas for.
        let most = second.after(Order(10), &change(2, 1000));
        assert_eq!(configuration.in_charge(&most), 8);
    }

    fn strange() -> Request {
        Request {
            client: crate::identifiers::ClientId(0),
            number: 1,
            floor: 0,
            home: 0,
            operation: Vec::new().into(),
            signature: [0; 64],
        }
    }

    #[test]
    fn a_change_is_the_last_entry_of_its_batch() {
        let possible = |names: &[GroupId]| are_possible(names.iter().copied(), 3);
        assert!(possible(&[GroupId(0), GroupId(2), GroupId::change(3)]));
        assert!(!possible(&[GroupId::change(3), GroupId(0)]));
        assert!(!possible(&[GroupId::change(0), GroupId::change(2)]));
        assert!(!possible(&[GroupId(3)]), "there is no such group");
        assert!(!possible(&[GroupId::change(GROUPS_MAX + 1)]));
    }
}
