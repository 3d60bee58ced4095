//! Runs statements that other voters have run before: as many as stand one behind the other, in one pipeline.

use std::time::Instant;

use bytes::Bytes;
use ordering::message::chain;

use super::Slot;
use super::list::{ListRan, PIPELINE_MAX, Wanted};
use super::running::Stop;
use super::waiting::Waiting;
use crate::executor::observe;
use crate::outcome::Outcome;
use crate::postgres::PostgresError;
use crate::transactions::listed_bytes;

impl Slot {
    /// Runs a statement whose turn it is, with those behind it. Where that cannot be had, this voter does not follow any more.
    pub(super) async fn replay(&mut self, first: Waiting) -> Result<(), PostgresError> {
        let started = Instant::now();
        let mut replayed = vec![first];
        self.add_following(&mut replayed);
        let exchanges: Vec<Bytes> = replayed
            .iter()
            .filter_map(|waiting| waiting.command.replays())
            .map(|(exchange, _)| exchange.clone())
            .collect();
        let (ran, count) = self.replay_exchanges(&exchanges).await?;
        let rest = replayed.split_off(count.min(replayed.len()));
        for waiting in replayed {
            self.answer(waiting.command, Outcome::Unavailable).await;
        }
        if ran {
            rest.into_iter()
                .rev()
                .for_each(|waiting| self.waiting.push_front(waiting));
        } else {
            for waiting in rest {
                self.refuse(waiting.command).await;
            }
        }
        observe("replay", started);
        Ok(())
    }

    /// Takes from what waits the statements that follow one another behind the last of `replayed`, as many as one pipeline takes.
    fn add_following(&mut self, replayed: &mut Vec<Waiting>) {
        while replayed.len() < PIPELINE_MAX
            && let Some((exchange, place)) = replayed.last().and_then(|waiting| waiting.command.replays())
        {
            let (count, link) = (place.writes_before.saturating_add(1), chain(&place.chain, exchange));
            let follows = |waiting: &Waiting| {
                let place = waiting.command.replays().map(|(_, place)| place);
                place.is_some_and(|place| place.writes_before == count && place.chain == link)
            };
            let next = self.waiting.iter().position(follows);
            let Some(next) = next.and_then(|at| self.waiting.remove(at)) else {
                return;
            };
            replayed.push(next);
        }
    }

    /// Whether the first of these exchanges have run, and how many.
    async fn replay_exchanges(&mut self, exchanges: &[Bytes]) -> Result<(bool, usize), PostgresError> {
        let bytes = exchanges.iter().fold(self.history.bytes(), |bytes, exchange| {
            bytes.saturating_add(listed_bytes(exchange))
        });
        let fits = bytes <= self.shared.config.limits.transaction_bytes_max;
        if !fits || !self.ensure_built(Wanted::GoOn).await? {
            self.lost = true;
            return Ok((false, 0));
        }
        let stop = Stop::Replay(exchanges);
        let at_once = !self.transaction.reads_snapshot();
        let (ran, count) = self.run_piece(exchanges, &stop, false, at_once).await?;
        match ran {
            ListRan::All => return Ok((true, count)),
            ListRan::Skipped => {
                let mut list = self.history.exchanges();
                list.extend_from_slice(exchanges);
                if let (None, ListRan::All) = self.run_list(&list, Stop::AtEnd, false).await? {
                    return Ok((true, exchanges.len()));
                }
            }
            // The client, or the end of the transaction, does not want it any more.
            ListRan::Failed if self.must_stop(&stop) => return Ok((false, 0)),
            ListRan::Failed | ListRan::Refused(_) => {}
        }
        self.lost = true;
        self.close().await?;
        Ok((false, 0))
    }
}
