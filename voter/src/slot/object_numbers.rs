//! Object numbers (OIDs) that are the same on all servers: a transaction that holds everything asks how far each server has come, and
//! lists from where on all of them go on (`docs/decisions/0047-servers-number-objects-alike.md`).

use bytes::Bytes;
use sql::object_numbers::{after, ahead};
use sql::operation::{Exchange, ExchangeResult};

use super::Slot;
use super::running::{Played, Stop, Task};
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::postgres::backend::{Answer, Job};
use crate::work::is_everything;

/// Numbers that one transaction may make a server leave out, at most: about a tenth of a second's worth. A client that asks for more, or a
/// server that is further behind, gets so much nearer with each transaction.
const LEFT_OUT_MAX: u32 = 65_536;

/// Numbers that are left out at once: what ends the transaction is looked for between.
const AT_ONCE_MAX: u32 = 8_192;

/// Numbers that a transaction may still make this server leave out.
#[derive(Debug)]
pub(super) struct LeftOut {
    allowed: u32,
}

impl Default for LeftOut {
    fn default() -> Self {
        Self { allowed: LEFT_OUT_MAX }
    }
}

impl LeftOut {
    /// How many are to be left out at once, of so many that are missing.
    fn some_of(&mut self, missing: i64) -> u32 {
        let count = u32::try_from(missing.max(0)).unwrap_or(u32::MAX);
        let count = count.min(self.allowed).min(AT_ONCE_MAX);
        self.allowed -= count;
        count
    }
}

impl Slot {
    /// Runs one exchange, in its transaction's backend or, if it is not for that, beside it.
    pub(super) async fn play_one(&mut self, job: &Job, stop: Stop<'_>) -> Result<Played, PostgresError> {
        match job.exchange {
            Exchange::ObjectNumbers { next } => self.number_from(next, &stop).await,
            _ => self.play(Task::Within(job), stop).await,
        }
    }

    /// How far the server has numbered objects, when everything listed has run and nobody else runs.
    pub(super) async fn object_number(&mut self) -> Result<Outcome, PostgresError> {
        if !is_everything(&self.held) {
            return Ok(Outcome::Unavailable);
        }
        let taken = self.shared.bookkeeper.lock().await.take_object_numbers(1).await;
        taken_or_lost(taken).map(|taken| taken.map_or(Outcome::Unavailable, |number| Outcome::ObjectNumber { number }))
    }

    /// Has the server number the next object so, if it can. Whether it can is nothing that other voters could see: it is the same answer.
    async fn number_from(&mut self, next: u32, stop: &Stop<'_>) -> Result<Played, PostgresError> {
        let mut count = 1;
        let missed = loop {
            if self.must_stop(stop) {
                if let Some(borrowed) = self.backend.take() {
                    self.discard(borrowed).await?;
                }
                return Ok(Played::Stopped);
            }
            let taken = self.shared.bookkeeper.lock().await.take_object_numbers(count).await;
            let Some(last) = taken_or_lost(taken)? else {
                break None;
            };
            let missing = ahead(next, after(last, 1));
            count = self.left_out.some_of(missing);
            if count == 0 {
                break Some(missing);
            }
        };
        if missed != Some(0) {
            // Behind: the server gives numbers that others have left out. Ahead: it has given those already, to what was rolled back here
            // only, or ran here before.
            let (began, ahead) = (self.transaction.began, missed.map(|missing| -missing));
            tracing::warn!(
                began,
                next,
                ahead,
                "this server does not number objects as the others do"
            );
            metrics::counter!("cloudbft_voter_object_numbers_missed_total").increment(1);
        }
        let answer = ExchangeResult {
            messages: Bytes::new(),
            status: self.status(),
        };
        Ok(Played::Answers(vec![Answer::Result(answer)]))
    }
}

/// A server that refuses to give a number goes on with what it has; one that is lost is lost.
fn taken_or_lost(taken: Result<u32, PostgresError>) -> Result<Option<u32>, PostgresError> {
    match taken {
        Ok(number) => Ok(Some(number)),
        Err(error @ PostgresError::Server { .. }) => {
            tracing::warn!(%error, "the server gives no object number");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_makes_a_server_leave_out_so_many_and_no_more() {
        let mut left_out = LeftOut::default();
        assert_eq!([-5, 0, 3].map(|missing| left_out.some_of(missing)), [0, 0, 3]);
        let pieces: Vec<_> =
            std::iter::from_fn(|| Some(left_out.some_of(i64::MAX)).filter(|count| *count > 0)).collect();
        assert!(pieces.iter().all(|count| *count <= AT_ONCE_MAX));
        assert_eq!(3 + pieces.iter().sum::<u32>(), LEFT_OUT_MAX);
    }
}
