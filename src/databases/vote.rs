//! Votes: f+1 databases that say the same are right. Pure.

/// The outcome of one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that answered say the same.
    Equal,
    /// Enough say the same, and these (by their places) say otherwise.
    Differ {
        /// The first of those that say the same.
        truth: usize,
        /// The places of the databases that say otherwise.
        others: Vec<usize>,
    },
    /// Too few say the same: nobody knows who is right.
    Disputed,
}

/// Counts the answers. `None`: no answer, which is not held against anybody. `needed`: f+1.
pub(crate) fn vote<T: PartialEq>(answers: &[Option<T>], needed: usize) -> Verdict {
    let Some(truth) = agreed(answers, needed) else {
        return Verdict::Disputed;
    };
    let said = answers.get(truth).and_then(Option::as_ref);
    let is_other = |answer: &&Option<T>| answer.is_some() && answer.as_ref() != said;
    let places = answers.iter().enumerate();
    let others: Vec<_> = places
        .filter(|(_, answer)| is_other(answer))
        .map(|(place, _)| place)
        .collect();
    match others.is_empty() {
        true => Verdict::Equal,
        false => Verdict::Differ { truth, others },
    }
}

/// The place of the first answer that so many say alike; of the most that do.
pub(crate) fn agreed<T: PartialEq>(answers: &[Option<T>], needed: usize) -> Option<usize> {
    let count = |answer: &T| answers.iter().flatten().filter(|other| *other == answer).count();
    let counted = answers
        .iter()
        .enumerate()
        .filter_map(|(place, answer)| Some((place, count(answer.as_ref()?))));
    let enough = counted.filter(|(_, count)| *count >= needed);
    enough.rev().max_by_key(|(_, count)| *count).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_otherwise_than_enough_others_differs() {
        assert_eq!(vote(&[Some(1), Some(1), Some(1)], 2), Verdict::Equal);
        assert_eq!(vote(&[None, Some(1), Some(1)], 2), Verdict::Equal);
        let differ = |truth, others: &[usize]| Verdict::Differ {
            truth,
            others: others.to_vec(),
        };
        assert_eq!(vote(&[Some(2), Some(1), Some(1)], 2), differ(1, &[0]));
        assert_eq!(
            vote(&[Some(1), Some(2), Some(1), Some(3), Some(1)], 3),
            differ(0, &[1, 3])
        );
    }

    #[test]
    fn without_enough_equal_answers_nobody_differs() {
        assert_eq!(vote(&[Some(1), Some(2), Some(3)], 2), Verdict::Disputed);
        assert_eq!(vote(&[Some(1), None, Some(2)], 2), Verdict::Disputed);
        assert_eq!(vote(&[Some(1), None, None], 2), Verdict::Disputed);
        assert_eq!(vote::<u8>(&[], 2), Verdict::Disputed);
    }
}
