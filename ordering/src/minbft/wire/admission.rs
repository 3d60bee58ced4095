//! The counter epochs that a start or a view change admits.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::check::NUMBER_MAX;
use crate::directory::Directory;

/// A counter as it is now: what an attempt to start would admit.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Admission {
    /// The counter's epoch.
    pub epoch: u64,
    /// The last value of each slot (0: primary candidate; 1 + g: replica of group g).
    pub positions: Vec<u64>,
}

pub(crate) fn is_admission(admission: &Admission, directory: &Directory) -> bool {
    admission.positions.len() == usize::from(directory.groups) + 1
        && admission.positions.iter().all(|position| *position <= NUMBER_MAX)
}
