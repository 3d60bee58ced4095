//! Counting the answers to one call: pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::{Digest, MachineId, Order};
use ordering::message::{Outcome, ResultMessage, SMALL_RESULT_BYTES};
use sql::result::chunks_digest;

use crate::port::MachineSet;

/// What a voter said, as far as it enters the vote.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Done {
        sequence: Digest,
        multiset: Digest,
        /// Of a result that travels in chunks: the digest of their digests.
        chunks: Option<Digest>,
    },
    Refused(Refused),
    /// The voter's word on a transaction.
    Word(Digest),
    /// How far the voter's server has numbered objects.
    ObjectNumber(u32),
    /// It was committed before the voter's restart, and the result is gone there.
    Executed,
    Unavailable,
}

impl Verdict {
    /// Whether it says what happened, so that another voter may contradict it.
    fn speaks(&self) -> bool {
        !matches!(
            self,
            Verdict::Unavailable | Verdict::Executed | Verdict::ObjectNumber(_)
        )
    }
}

/// A voter's answer that travels in chunks.
#[derive(Debug)]
pub(crate) struct LargeAnswer {
    /// The multiset digest that the voter gives.
    pub(crate) multiset: Digest,
    pub(crate) status: u8,
    /// The digests of the chunks.
    pub(crate) chunks: Vec<Digest>,
}

/// A voter that says that it runs a statement says so again before this.
const RUNNING_AGE_MAX: Duration = Duration::from_secs(2);

/// A refusal by voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: String,
    pub(crate) hint: String,
}

#[derive(Clone, Debug)]
struct Answer {
    machine: MachineId,
    order: Order,
    verdict: Verdict,
}

/// What enough voters agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Agreed {
    Sequence(Digest),
    Multiset(Digest),
    Refused(Refused),
    /// Words whose chains over the answers are this one.
    Word(Digest),
}

impl Agreed {
    /// Whether a result with these digests is the one.
    pub(crate) fn is_of(&self, sequence: &Digest, multiset: &Digest) -> bool {
        match self {
            Agreed::Sequence(agreed) => agreed == sequence,
            Agreed::Multiset(agreed) => agreed == multiset,
            Agreed::Refused(_) | Agreed::Word(_) => false,
        }
    }
}

/// What a group of voters agrees on, the voters, and the order that they name.
type Group = Option<(Agreed, MachineSet, Order)>;

/// How a call stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What enough voters agree on, the voters that do, and the order that they name.
    pub(crate) agreed: Option<(Agreed, MachineSet, Order)>,
    /// Voters that answered, in whatever way.
    pub(crate) answered: MachineSet,
    /// Voters that could not say.
    pub(crate) unavailable: MachineSet,
    /// Voters that had committed it before their restart, and have no result any more.
    pub(crate) executed: MachineSet,
    /// The size of the largest group of equal answers.
    pub(crate) largest: usize,
    /// Enough voters agree on the rows and not on their order, which means something: others may decide it.
    pub(crate) order_open: bool,
    /// Whether two answers differ.
    pub(crate) conflict: bool,
    /// Voters that have not answered, and said a moment ago that they run it.
    pub(crate) running: MachineSet,
}

impl Standing {
    /// Whether voters that were asked contradict each other or cannot say, so that others have to be asked.
    pub(crate) fn needs_others(&self) -> bool {
        self.conflict || !self.unavailable.is_empty() || !self.executed.is_empty()
    }
}

/// What the order of a result's rows means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Nothing: servers may give them in different orders.
    Unordered,
    /// The statement asked for it. Servers differ only among rows that its ORDER BY leaves equal; a lone liar that gives
    /// another order is outvoted as long as the correct voters answer.
    Ordered,
}

/// The answers to one call.
///
/// Invariant: at most one answer of each voter, and at most one whole result of each voter: a small one, or one that was
/// asked for.
#[derive(Debug)]
pub(crate) struct Collect {
    voters: MachineSet,
    /// Equal answers that are needed.
    needed: usize,
    /// Whether orders must be equal too: for requests.
    ordered: bool,
    answers: Vec<Answer>,
    /// Voters whose whole result is welcome.
    whole_from: MachineSet,
    wholes: Vec<(MachineId, Bytes)>,
    /// Answers that travel in chunks.
    larges: Vec<(MachineId, Arc<LargeAnswer>)>,
    /// When voters have said that they run it.
    running: Vec<(MachineId, Instant)>,
    /// The signatures of words.
    signatures: Vec<(MachineId, [u8; 64])>,
    /// Whether a result counts whose rows come in another order than from other voters.
    any_order: bool,
    /// Whether correct voters that are at different orders may answer differently.
    may_differ: bool,
    /// Voters that were already reported to differ.
    differing: MachineSet,
}

impl Collect {
    pub(crate) fn new(voters: MachineSet, needed: usize, ordered: bool, rows: Rows) -> Self {
        Self {
            voters,
            needed,
            ordered,
            answers: Vec::with_capacity(voters.len()),
            whole_from: MachineSet::EMPTY,
            wholes: Vec::new(),
            larges: Vec::new(),
            running: Vec::new(),
            signatures: Vec::new(),
            any_order: rows == Rows::Unordered,
            may_differ: false,
            differing: MachineSet::EMPTY,
        }
    }

    /// The same for a read that no lock protects: different answers do not speak against a voter.
    pub(crate) fn of_unlocked_read(self) -> Self {
        Self {
            may_differ: true,
            ..self
        }
    }

    /// The voters whose answers differ from what was agreed on, each once.
    pub(crate) fn take_differing(&mut self) -> MachineSet {
        if self.may_differ || !self.has_conflict() {
            return MachineSet::EMPTY;
        }
        let Some((_, supporters, _)) = self.standing().agreed else {
            return MachineSet::EMPTY;
        };
        let spoken = self.answers.iter().filter(|answer| answer.verdict.speaks());
        let agreed = |machine| supporters.contains(machine);
        let Some(one) = self.answers.iter().find(|answer| agreed(answer.machine)) else {
            return MachineSet::EMPTY;
        };
        let others = spoken.filter(|answer| !agreed(answer.machine) && !self.equal(one, answer));
        let new = others.map(|answer| answer.machine).collect::<MachineSet>();
        let new = new.without(self.differing);
        self.differing = self.differing.union(new);
        new
    }

    /// Nobody waits any more: keeps only what a late answer is compared with. False when none is to come.
    pub(crate) fn settle(&mut self) -> bool {
        self.whole_from = MachineSet::EMPTY;
        self.wholes = Vec::new();
        self.larges = Vec::new();
        let all = self
            .voters
            .iter()
            .all(|voter| self.answers.iter().any(|answer| answer.machine == voter));
        !self.may_differ && !all && self.standing().agreed.is_some()
    }

    /// From now on, takes whole results of these voters.
    pub(crate) fn welcome_whole(&mut self, machines: MachineSet) {
        self.whole_from = self.whole_from.union(machines);
    }

    /// From now on, a result counts in whatever order its rows come: no more answers are to be expected.
    pub(crate) fn accept_any_order(&mut self) {
        self.any_order = true;
    }

    /// Counts an answer; says whether somebody should look.
    pub(crate) fn add(&mut self, machine: MachineId, result: ResultMessage) -> bool {
        if !self.voters.contains(machine) {
            return false;
        }
        let verdict = match result.outcome {
            Outcome::Done {
                sequence,
                multiset,
                whole,
            } => {
                if let Some(whole) = whole {
                    self.keep_whole(machine, whole);
                }
                Verdict::Done {
                    sequence,
                    multiset,
                    chunks: None,
                }
            }
            Outcome::Large {
                sequence,
                multiset,
                status,
                chunks,
            } => {
                let digest = chunks_digest(&chunks);
                if !self.larges.iter().any(|(from, _)| *from == machine) {
                    let large = LargeAnswer {
                        multiset,
                        status,
                        chunks,
                    };
                    self.larges.push((machine, Arc::new(large)));
                }
                Verdict::Done {
                    sequence,
                    multiset,
                    chunks: Some(digest),
                }
            }
            Outcome::Running => {
                self.running.retain(|(from, _)| *from != machine);
                self.running.push((machine, Instant::now()));
                return true;
            }
            // They come to whoever has asked for them.
            Outcome::Chunk { .. } => return false,
            Outcome::Refused {
                sqlstate,
                message,
                detail,
                hint,
            } => Verdict::Refused(Refused {
                sqlstate,
                message,
                detail,
                hint,
            }),
            Outcome::Word { answers, signature } => {
                if !self.signatures.iter().any(|(from, _)| *from == machine) {
                    self.signatures.push((machine, signature));
                }
                Verdict::Word(answers)
            }
            Outcome::ObjectNumber { number } => Verdict::ObjectNumber(number),
            Outcome::Executed => Verdict::Executed,
            Outcome::Unavailable => Verdict::Unavailable,
        };
        let answer = Answer {
            machine,
            order: result.order,
            verdict,
        };
        match self.answers.iter_mut().find(|answer| answer.machine == machine) {
            // A voter's word stands, unless it had none.
            Some(before) if before.verdict == Verdict::Unavailable => *before = answer,
            Some(_) => {}
            None => self.answers.push(answer),
        }
        self.answers.len() >= self.needed.min(self.voters.len() / 2 + 1)
            || self.answers.last().is_some_and(|last| !last.verdict.speaks())
            || self.has_conflict()
    }

    fn keep_whole(&mut self, machine: MachineId, whole: Bytes) {
        let welcome = whole.len() <= SMALL_RESULT_BYTES || self.whole_from.contains(machine);
        if welcome && !self.wholes.iter().any(|(from, _)| *from == machine) {
            self.wholes.push((machine, whole));
        }
    }

    /// A whole result of one of these voters.
    pub(crate) fn take_whole(&mut self, supporters: MachineSet) -> Option<(MachineId, Bytes)> {
        let at = self
            .wholes
            .iter()
            .position(|(machine, _)| supporters.contains(*machine))?;
        Some(self.wholes.swap_remove(at))
    }

    /// The whole results of these voters that are here, but for what was taken.
    pub(crate) fn wholes(&self, supporters: MachineSet) -> Vec<Bytes> {
        let of_supporters = self.wholes.iter().filter(|(machine, _)| supporters.contains(*machine));
        of_supporters.map(|(_, whole)| whole.clone()).collect()
    }

    /// The answers of these voters that travel in chunks.
    pub(crate) fn larges(&self, supporters: MachineSet) -> Vec<(MachineId, Arc<LargeAnswer>)> {
        let of_supporters = self.larges.iter().filter(|(machine, _)| supporters.contains(*machine));
        of_supporters.cloned().collect()
    }

    /// Whether so many voters run it at this moment that it may still be answered.
    pub(crate) fn is_running(&self) -> bool {
        let enough = self.needed.min(self.voters.len() / 2 + 1);
        let Standing { running, answered, .. } = self.standing();
        !running.is_empty() && running.union(answered).len() >= enough
    }

    /// How far each voter's server has numbered objects, of those that have said so.
    pub(crate) fn object_numbers(&self) -> Vec<(MachineId, u32)> {
        let numbers = self.answers.iter().filter_map(|answer| match answer.verdict {
            Verdict::ObjectNumber(number) => Some((answer.machine, number)),
            _ => None,
        });
        numbers.collect()
    }

    /// The signatures of these voters' words.
    pub(crate) fn signatures(&self, supporters: MachineSet) -> Vec<(MachineId, [u8; 64])> {
        let of_supporters = self
            .signatures
            .iter()
            .filter(|(machine, _)| supporters.contains(*machine));
        of_supporters.copied().collect()
    }

    /// A voter's answer turned out to be worth nothing.
    pub(crate) fn discard(&mut self, machine: MachineId) {
        if let Some(answer) = self.answers.iter_mut().find(|answer| answer.machine == machine) {
            answer.verdict = Verdict::Unavailable;
        }
        self.signatures.retain(|(from, _)| *from != machine);
    }

    /// The voters that have executed it at the same order: those whose results have this digest, and those whose result is gone.
    pub(crate) fn executed_with(&self, result: &Digest) -> MachineSet {
        let executed = |answer: &&Answer| match &answer.verdict {
            Verdict::Done { sequence, .. } => sequence == result,
            verdict => *verdict == Verdict::Executed,
        };
        let groups = self.answers.iter().map(|one| {
            let same = self.answers.iter().filter(|answer| answer.order == one.order);
            same.filter(executed)
                .map(|answer| answer.machine)
                .collect::<MachineSet>()
        });
        groups.max_by_key(|group| group.len()).unwrap_or_default()
    }

    /// The largest group of equal results, whether or not they are enough.
    pub(crate) fn largest_result(&self) -> Option<(Agreed, MachineSet)> {
        let (agreed, members, _) = self.largest_group(Self::same_sequence)?;
        matches!(agreed, Agreed::Sequence(_)).then_some((agreed, members))
    }

    fn has_conflict(&self) -> bool {
        let mut spoken = self.answers.iter().filter(|answer| answer.verdict.speaks());
        spoken
            .next()
            .is_some_and(|first| spoken.any(|answer| !self.equal(first, answer)))
    }

    fn equal(&self, one: &Answer, other: &Answer) -> bool {
        let verdicts = match (&one.verdict, &other.verdict) {
            (
                Verdict::Done {
                    sequence,
                    multiset,
                    chunks,
                },
                Verdict::Done {
                    sequence: sequence_2,
                    multiset: multiset_2,
                    chunks: chunks_2,
                },
            ) => (sequence == sequence_2 && chunks == chunks_2) || multiset == multiset_2,
            (Verdict::Refused(one), Verdict::Refused(other)) => one == other,
            (Verdict::Word(one), Verdict::Word(other)) => one == other,
            _ => false,
        };
        verdicts && (!self.ordered || one.order == other.order)
    }

    /// How the call stands.
    pub(crate) fn standing(&self) -> Standing {
        let with = |verdict: Verdict| {
            let answers = self.answers.iter().filter(move |answer| answer.verdict == verdict);
            answers.map(|answer| answer.machine).collect()
        };
        let mut standing = Standing {
            agreed: None,
            answered: self.answers.iter().map(|answer| answer.machine).collect(),
            unavailable: with(Verdict::Unavailable),
            executed: with(Verdict::Executed),
            largest: 0,
            order_open: false,
            conflict: self.has_conflict(),
            running: self.running_now(),
        };
        let sequence = self.largest_group(Self::same_sequence);
        let multiset = self.largest_group(Self::same_multiset);
        let enough = |group: &Group, needed| group.as_ref().is_some_and(|(_, members, _)| members.len() >= needed);
        let sizes = [&sequence, &multiset].map(|group| group.as_ref().map_or(0, |(_, members, _)| members.len()));
        standing.largest = sizes.into_iter().max().unwrap_or(0);
        let any_order = self.any_order || self.answers.len() == self.voters.len();
        if enough(&sequence, self.needed) {
            standing.agreed = sequence;
        } else if enough(&multiset, self.needed) {
            standing.order_open = !any_order;
            // Where more must agree on the rows than f+1, f+1 still decide their order.
            let by_order = enough(&sequence, self.voters.len() / 2 + 1);
            let agreed = if by_order { sequence } else { multiset };
            standing.agreed = agreed.filter(|_| any_order);
        }
        standing
    }

    fn running_now(&self) -> MachineSet {
        let recent = self.running.iter().filter(|(_, at)| at.elapsed() < RUNNING_AGE_MAX);
        let answered = |machine: &MachineId| self.answers.iter().any(|answer| answer.machine == *machine);
        recent
            .map(|(machine, _)| *machine)
            .filter(|machine| !answered(machine))
            .collect()
    }

    /// The largest group of answers that are alike, with the order that they name.
    fn largest_group(&self, compare: impl Fn(&Answer, &Answer) -> Option<Agreed>) -> Group {
        let groups = self.answers.iter().filter_map(|answer| {
            let same_order = |other: &Answer| !self.ordered || answer.order == other.order;
            let members = self
                .answers
                .iter()
                .filter(|other| compare(answer, other).is_some() && same_order(other));
            let members: MachineSet = members.map(|other| other.machine).collect();
            Some((compare(answer, answer)?, members, answer.order))
        });
        groups.max_by_key(|(_, members, _)| members.len())
    }

    fn same_sequence(one: &Answer, other: &Answer) -> Option<Agreed> {
        match (&one.verdict, &other.verdict) {
            (
                Verdict::Done { sequence, chunks, .. },
                Verdict::Done {
                    sequence: other,
                    chunks: chunks_2,
                    ..
                },
            ) if sequence == other && chunks == chunks_2 => Some(Agreed::Sequence(*sequence)),
            (Verdict::Refused(refused), Verdict::Refused(other)) if refused == other => {
                Some(Agreed::Refused(refused.clone()))
            }
            (Verdict::Word(answers), Verdict::Word(other)) if answers == other => Some(Agreed::Word(*answers)),
            _ => None,
        }
    }

    fn same_multiset(one: &Answer, other: &Answer) -> Option<Agreed> {
        match (&one.verdict, &other.verdict) {
            // In which order rows come says where chunks end, and not whether there are any.
            (
                Verdict::Done { multiset, chunks, .. },
                Verdict::Done {
                    multiset: other,
                    chunks: chunks_2,
                    ..
                },
            ) if multiset == other && chunks.is_some() == chunks_2.is_some() => Some(Agreed::Multiset(*multiset)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
