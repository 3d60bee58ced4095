//! How an open transaction ends: what an ordered end lets run on, what a Commit does with what has run, and which transactions are
//! abandoned (`docs/design.md#statements`). Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use ordering::identifiers::{Digest, MachineId};
use sql::footprint::Footprint;
use sql::operation::{TransactionId, Word, same_answers};

use crate::lock_table::Position;
use crate::outcome::Outcome;
use crate::survived::Survived;
use crate::transactions::{History, certificate, chain_over};
use crate::work::{Refused, recorded_home};

/// How a transaction ends.
#[derive(Clone, Debug)]
pub enum End {
    /// Without effect.
    Abort,
    /// With exactly this list. `certified`: f+1 voters have run it to its end.
    Commit {
        /// The listed exchanges.
        listed: Vec<Bytes>,
        /// Whether the Commit carries words.
        certified: bool,
    },
}

impl End {
    /// Whether a statement that runs after what has run here must stop: a read, or the listed exchange `next`.
    pub fn stops(&self, history: &History, next: Option<&Bytes>, short: bool) -> bool {
        match (self, next) {
            (End::Abort, _) | (End::Commit { .. }, None) => true,
            // A listed exchange ends by itself: f+1 voters have seen its end, or its shape says so.
            (End::Commit { listed, certified }, Some(_)) => {
                !(history.begins(listed, next.map_or(&[], std::slice::from_ref)) && (*certified || short))
            }
        }
    }

    /// Whether listed exchanges must stop that run one behind the other after what has run here.
    pub fn stops_replay(&self, history: &History, exchanges: &[Bytes]) -> bool {
        match self {
            End::Abort => true,
            End::Commit { listed, certified } => !(*certified && history.begins(listed, exchanges)),
        }
    }

    /// Whether what is deferred must stop, which runs after what has run here for the sake of a word. A certified Commit of exactly that
    /// would run it again, with everything before it.
    pub fn stops_word(&self, history: &History) -> bool {
        match self {
            End::Abort => true,
            End::Commit { listed, certified } => {
                let is_all = history.begins(listed, &[]) && usize::try_from(history.len()) == Ok(listed.len());
                !(is_all && *certified)
            }
        }
    }
}

/// The voters whose words count.
#[derive(Clone, Copy, Debug)]
pub struct Electorate<'voters> {
    /// Their keys.
    pub keys: &'voters BTreeMap<MachineId, VerifyingKey>,
    /// f.
    pub faults: usize,
}

/// A Commit of an open transaction, as ordered.
#[derive(Clone, Debug)]
pub struct OrderedCommit<'ordered> {
    /// Its order.
    pub order: u64,
    /// The transaction.
    pub transaction: TransactionId,
    /// The order of its Begin.
    pub began: u64,
    /// The list.
    pub listed: Vec<Bytes>,
    /// The words that it carries.
    pub words: &'ordered [Word],
    /// What the transaction holds.
    pub held: &'ordered Footprint,
}

/// The work of a Commit on this voter.
#[derive(Clone, Debug)]
pub enum Due {
    /// No work: the transaction was over before this life of the voter began. The answer.
    Over(Outcome),
    /// To commit the list.
    Run {
        /// The list.
        listed: Vec<Bytes>,
        /// What f+1 voters have answered by their words, if it carries words; or why these certify nothing.
        certified: Result<Option<Digest>, Refused>,
        /// The home and position that are recorded with its effects; `None` when it holds nothing exclusively.
        applied: Option<(String, Position)>,
    },
}

impl OrderedCommit<'_> {
    /// The work of this Commit on a voter whose database held the positions in `survived` when its life began.
    pub fn due(self, survived: &Survived, electorate: Electorate<'_>) -> Due {
        let position = Position {
            granted: self.order,
            order: 0,
        };
        let applied = recorded_home(self.held).map(|home| (home, position));
        if let Some((home, position)) = &applied
            && survived.includes(home, *position)
        {
            return Due::Over(survived.outcome(home, *position));
        }
        let list = chain_over(self.listed.iter().map(Bytes::as_ref));
        let Electorate { keys, faults } = electorate;
        let certified = certificate(self.words, keys, faults, self.transaction, self.began, &list);
        Due::Run {
            listed: self.listed,
            certified,
            applied,
        }
    }
}

impl Due {
    /// The end that a statement is told of which still runs. Words that a client made up let nothing run on: only what f+1 voters have run
    /// to its end is waited for.
    pub fn end(&self) -> End {
        match self {
            Due::Over(_) => End::Abort,
            Due::Run { listed, certified, .. } => End::Commit {
                listed: listed.clone(),
                certified: matches!(certified, Ok(Some(_))),
            },
        }
    }
}

/// The fate of a list that has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The voter commits the list.
    Commit,
    /// The voter refuses the list: it is not short, and nobody has certified it.
    WordsMissing,
    /// The list answered otherwise than f+1 voters have said, and changed nothing: a transaction without exclusive locks leaves no
    /// position behind. Run again after a restart, it reads what was written after it.
    Executed,
    /// The list answered otherwise than f+1 voters have said under their signatures. This voter does not commit it.
    Contradicted,
    /// The list itself has failed, and so has the transaction.
    RolledBack,
}

/// The outcome of running a Commit's list, by which its fate is decided.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// The answers that f+1 voters have certified, if the Commit carries words.
    pub certified: Option<Digest>,
    /// The answers on this voter.
    pub answers: Digest,
    /// Whether each exchange is short.
    pub all_short: bool,
    /// Whether a position is recorded with it.
    pub records: bool,
    /// Whether the transaction is open and has not failed.
    pub is_sound: bool,
}

impl Answered {
    /// The fate of the list.
    pub fn verdict(self) -> Verdict {
        match self.certified {
            None if !self.all_short => Verdict::WordsMissing,
            Some(answers) if !same_answers(&answers, &self.answers) && self.records => Verdict::Contradicted,
            Some(answers) if !same_answers(&answers, &self.answers) => Verdict::Executed,
            _ if !self.is_sound => Verdict::RolledBack,
            _ => Verdict::Commit,
        }
    }
}

/// Open transactions that nodes have said to be abandoned, with the nodes.
pub type Abandoned = BTreeMap<TransactionId, BTreeSet<MachineId>>;

/// Counts what a node says to be abandoned; which of these transactions f+1 nodes have said so of by now.
pub fn count_abandoned(
    abandoned: &mut Abandoned,
    node: MachineId,
    transactions: &[TransactionId],
    faults: usize,
    is_open: impl Fn(TransactionId) -> bool,
) -> BTreeSet<TransactionId> {
    for id in transactions {
        if is_open(*id) {
            abandoned.entry(*id).or_default().insert(node);
        }
    }
    let enough = |id: &&TransactionId| abandoned.get(*id).is_some_and(|nodes| nodes.len() > faults);
    transactions.iter().filter(enough).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran() -> Answered {
        Answered {
            certified: Some([1; 32]),
            answers: [1; 32],
            all_short: false,
            records: true,
            is_sound: true,
        }
    }

    #[test]
    fn what_is_committed_is_certified_or_short() {
        assert_eq!(ran().verdict(), Verdict::Commit);
        let uncertified = Answered {
            certified: None,
            ..ran()
        };
        assert_eq!(uncertified.verdict(), Verdict::WordsMissing);
        let short = Answered {
            all_short: true,
            ..uncertified
        };
        assert_eq!(short.verdict(), Verdict::Commit);
        let failed = Answered {
            is_sound: false,
            ..short
        };
        assert_eq!(failed.verdict(), Verdict::RolledBack);
    }

    #[test]
    fn a_contradicted_list_is_not_committed() {
        let otherwise = Answered {
            answers: [2; 32],
            ..ran()
        };
        assert_eq!(otherwise.verdict(), Verdict::Contradicted);
        let reads = Answered {
            records: false,
            ..otherwise
        };
        assert_eq!(reads.verdict(), Verdict::Executed);
    }

    #[test]
    fn one_node_ends_nothing_and_what_is_not_open_is_not_counted() {
        let id = |number| TransactionId {
            client: 1,
            session: 1,
            number,
        };
        let mut abandoned = Abandoned::new();
        let mut count = |node| {
            count_abandoned(&mut abandoned, MachineId(node), &[id(1), id(2)], 1, |open| {
                open == id(1)
            })
        };
        assert!(count(1).is_empty());
        assert!(count(1).is_empty());
        assert_eq!(count(2), BTreeSet::from([id(1)]));
        assert!(!abandoned.contains_key(&id(2)));
    }
}
