//! The direct writes of an open transaction: f+1 voters get them at once, the others only when they are needed, or else
//! with the COMMIT, which lists them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use ordering::identifiers::{MachineId, Order};
use ordering::message::{ClientMessage, Direct, DirectTransaction};

use super::{Client, Failure};
use crate::port::{Destination, MachineSet, ToNode};

/// Writes that a voter may lack, at most: its queues must hold them when they come together.
const MISSING_MAX: usize = 128;

/// The direct writes of a transaction so far. Bounded as COMMIT's list is.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    writes: Vec<(DirectTransaction, Bytes)>,
    /// How many of them a voter was sent.
    sent: BTreeMap<MachineId, usize>,
}

impl Backlog {
    /// Adds a write.
    pub(crate) fn push(&mut self, place: DirectTransaction, exchange: Bytes) {
        self.writes.push((place, exchange));
    }

    /// How many writes there are.
    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// The writes up to `end` that a voter was not sent; it counts as having them from now on.
    fn take_missing(&mut self, machine: MachineId, end: usize) -> &[(DirectTransaction, Bytes)] {
        let sent = self.sent.entry(machine).or_default();
        let begin = std::mem::replace(sent, end.max(*sent));
        self.writes.get(begin..end).unwrap_or_default()
    }

    /// Notes that voters are sent the last write too.
    pub(super) fn has_all(&mut self, machines: MachineSet) {
        let all = self.writes.len();
        self.sent.extend(machines.iter().map(|machine| (machine, all)));
    }

    /// The voters that lack so many that sending them at once would be too much soon.
    pub(super) fn far_behind(&self, voters: MachineSet) -> MachineSet {
        let missing = |machine| self.len() - self.sent.get(&machine).copied().unwrap_or(0).min(self.len());
        voters
            .iter()
            .filter(|machine| missing(*machine) > MISSING_MAX)
            .collect()
    }
}

impl Client {
    /// Sends voters the first `end` direct writes of a transaction, as far as they lack them.
    pub(crate) async fn catch_up(
        &self,
        context: &Bytes,
        backlog: &mut Backlog,
        machines: MachineSet,
        end: usize,
    ) -> Result<(), Failure> {
        for machine in machines.iter() {
            let missing = backlog.take_missing(machine, end);
            for (place, exchange) in missing {
                let direct = Direct {
                    number: self.next_direct.fetch_add(1, Ordering::Relaxed),
                    whole: false,
                    context: context.clone(),
                    transaction: Some(place.clone()),
                    not_before: Order(0),
                    exchange: exchange.clone(),
                };
                let message = ToNode::Client(ClientMessage::Direct(direct));
                self.send(Destination::Machines(MachineSet::one(machine)), message)
                    .await?;
            }
            metrics::counter!("cloudbft_backlog_writes_total").increment(missing.len() as u64);
        }
        Ok(())
    }

    /// Sends every voter what it lacks: what is ordered next in the transaction needs it there.
    pub(crate) async fn catch_up_all(&self, context: &Bytes, backlog: &mut Backlog) -> Result<(), Failure> {
        let end = backlog.len();
        self.catch_up(context, backlog, self.voter_set, end).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_voter_gets_every_write_once() {
        let place = |writes_before| DirectTransaction {
            session: 1,
            number: 1,
            writes_before,
            chain: [0; 32],
            write: true,
        };
        let mut backlog = Backlog::default();
        let count = |backlog: &mut Backlog, machine, end| backlog.take_missing(MachineId(machine), end).len();
        backlog.push(place(1), Bytes::from_static(b"a"));
        assert_eq!((count(&mut backlog, 1, 0), count(&mut backlog, 1, 1)), (0, 1));
        backlog.push(place(2), Bytes::from_static(b"b"));
        assert_eq!((count(&mut backlog, 1, 2), count(&mut backlog, 1, 2)), (1, 0));
        assert_eq!((count(&mut backlog, 2, 2), count(&mut backlog, 2, 1)), (2, 0));
        let voters = [1, 2, 3].map(MachineId).into_iter().collect();
        assert!(backlog.far_behind(voters).is_empty());
        for writes_before in 0..=MISSING_MAX as u32 {
            backlog.push(place(writes_before), Bytes::new());
        }
        count(&mut backlog, 1, 3);
        assert_eq!(backlog.far_behind(voters), [2, 3].map(MachineId).into_iter().collect());
    }
}
