//! From where on the servers are to number objects (OIDs), of what the voters say
//! (`docs/decisions/0047-servers-number-objects-alike.md`).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ordering::identifiers::MachineId;
use ordering::message::DirectKind;
use sql::object_numbers::{after, ahead};
use tokio::time::{Instant, timeout_at};

use super::calls::Waiting;
use super::collect::{Collect, Rows};
use super::direct::{Asked, Question};
use super::live::Live;
use super::{Cancel, Client, Failure};
use crate::port::MachineSet;

/// How far a server that is ahead of most others draws them along at once: further than the four crashes that it may have had since
/// (each makes it leave out up to 8,192 numbers). A voter that lies makes the others leave out no more.
const DRAWN_ALONG_MAX: u32 = 32_768;

/// Numbers between where the servers are and where they go on: each takes one more before, and autovacuum may take some.
const MARGIN: u32 = 32;

/// Numbers that are left out once for a voter that does not answer: its server may have crashed, and then goes on up to 8,192 further on
/// than it had come. When it is back, it is to find itself behind what the others have numbered meanwhile. Twice as many, since it may
/// have been somewhat ahead of them, or crash again.
const LEFT_OUT_FOR_CRASH: u32 = 16_384;

/// How long the voters may take to say where their servers are.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much later than f+1 voters the others may say so: one that is later is not waited for.
const OTHERS_PATIENCE: Duration = Duration::from_millis(100);

/// The voters that did not say the last time where their servers are: numbers have been left out for them.
#[derive(Debug, Default)]
pub(super) struct Absent(Mutex<MachineSet>);

impl Absent {
    /// Notes who is absent; whether somebody is that was not before.
    fn notice(&self, absent: MachineSet) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *known, absent);
        !absent.without(before).is_empty()
    }
}

impl Client {
    /// From which number on all servers can number the objects that an open transaction makes, which holds everything; `None` when
    /// too few voters say where their servers are. All voters are live from now on.
    pub(crate) async fn next_object_number(
        &self,
        live: &mut Live,
        cancel: Option<&Cancel>,
    ) -> Result<Option<u32>, Failure> {
        self.join(live).await?;
        let question = Question {
            context: live.context(),
            exchange: Bytes::new(),
            rows: Rows::Unordered,
        };
        let collect = Collect::new(self.voter_set, self.faults + 1, false, question.rows);
        let kind = Asked::Inside(DirectKind::ObjectNumber);
        let (waiting, mut asking) = self.direct(question, kind, Some(live), collect);
        asking.send(&self.voters, false).await?;
        let numbers = tokio::select! {
            numbers = self.object_numbers(&waiting) => numbers,
            () = super::order::wait_for(cancel) => return Err(Failure::Cancelled),
        };
        let answered = numbers.iter().map(|(machine, _)| *machine).collect();
        let numbers: Vec<_> = numbers.into_iter().map(|(_, number)| number).collect();
        let next = next_number(&numbers, self.faults);
        Ok(
            next.map(|next| match self.absent.notice(self.voter_set.without(answered)) {
                true => after(next, LEFT_OUT_FOR_CRASH),
                false => next,
            }),
        )
    }

    /// What the voters say that seem to be there, as far as it is worth waiting for.
    async fn object_numbers(&self, waiting: &Waiting<'_>) -> Vec<(MachineId, u32)> {
        let mut until = Instant::now() + PATIENCE;
        loop {
            let (numbers, answered) = {
                let collect = waiting.call.collect();
                (collect.object_numbers(), collect.standing().answered)
            };
            if self.health.live().without(answered).is_empty() {
                return numbers;
            }
            if numbers.len() > self.faults {
                until = until.min(Instant::now() + OTHERS_PATIENCE);
            }
            if timeout_at(until, waiting.call.changed.notified()).await.is_err() {
                return numbers;
            }
        }
    }
}

/// Where all go on: after the server that is furthest ahead, as far as it is not too far ahead of most. `None` of too few answers.
fn next_number(numbers: &[u32], faults: usize) -> Option<u32> {
    if numbers.len() <= faults {
        return None;
    }
    // Numbers go round. Of those that f others are nearest to, none is far from all correct ones.
    let spread = |reference: &u32| {
        let mut distances: Vec<_> = numbers.iter().map(|number| ahead(*number, *reference).abs()).collect();
        distances.sort_unstable();
        distances.get(faults).copied()
    };
    let reference = *numbers.iter().min_by_key(|reference| spread(reference))?;
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable_by_key(|number| ahead(*number, reference));
    let (middle, furthest) = (*numbers.get((numbers.len() - 1) / 2)?, *numbers.last()?);
    let drawn_along = ahead(furthest, middle).clamp(0, i64::from(DRAWN_ALONG_MAX));
    Some(after(after(middle, u32::try_from(drawn_along).unwrap_or(0)), MARGIN))
}

#[cfg(test)]
mod tests {
    use sql::object_numbers::FIRST;

    use super::*;

    fn next(numbers: &[u32]) -> Option<u32> {
        next_number(numbers, 1)
    }

    #[test]
    fn all_go_on_after_the_one_that_is_furthest_ahead() {
        for (numbers, furthest) in [
            ([20_000, 20_000, 20_000], 20_000),
            ([20_000, 20_007, 19_000], 20_007),
            ([28_192, 20_000, 20_001], 28_192),
            ([u32::MAX, u32::MAX - 8, FIRST + 3], FIRST + 3),
            ([FIRST + 9, u32::MAX - 8, u32::MAX], FIRST + 9),
        ] {
            assert_eq!(next(&numbers), Some(after(furthest, MARGIN)), "{numbers:?}");
        }
        for two in [[20_000, 28_000], [28_000, 20_000]] {
            assert_eq!(next(&two), Some(after(28_000, MARGIN)), "{two:?}");
        }
    }

    #[test]
    fn one_that_lies_draws_the_others_no_further_than_so() {
        for (honest, other) in [(20_000, 20_010), (u32::MAX - 3, FIRST + 7)] {
            let (low, high) = (after(honest, MARGIN), after(after(other, MARGIN), DRAWN_ALONG_MAX));
            for lie in [0, 1, FIRST, 1 << 20, 1 << 31, (1 << 31) + 20_005, 3 << 30, u32::MAX] {
                let chosen = next(&[lie, honest, other]).unwrap();
                let is_near = ahead(chosen, low) >= 0 && ahead(high, chosen) >= 0;
                assert!(is_near, "{lie}: {chosen} of {honest} and {other}");
                assert!(
                    ahead(chosen, after(other, MARGIN)) >= 0,
                    "{lie}: {chosen} is behind {other}"
                );
            }
        }
    }

    #[test]
    fn numbers_are_left_out_once_for_each_absence() {
        let set = |machines: &[u8]| machines.iter().copied().map(MachineId).collect::<MachineSet>();
        let absent = Absent::default();
        let noticed = [&[][..], &[3], &[3], &[2, 3], &[2], &[], &[3]].map(|machines| absent.notice(set(machines)));
        assert_eq!(noticed, [false, true, false, true, false, false, true]);
    }

    #[test]
    fn too_few_answers_say_nothing() {
        assert_eq!(next(&[]), None);
        assert_eq!(next(&[20_000]), None);
        assert_eq!(next_number(&[20_000], 0), Some(20_032));
    }
}
