//! Open interactive transactions: what their Commit has to do (DESIGN.md section 3, step 4). Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest};
use ordering::message::{CHAIN_START, chain};
use sql::operation::{Isolation, SessionContext, TransactionWrite};

use crate::work::Refused;

/// What all voters know alike of an open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedTransaction {
    /// The client that opened it.
    pub client: ClientId,
    /// The order of its Begin.
    pub began: u64,
    /// The primary's time of its Begin: `now()` in all its statements.
    pub time_us: u64,
    /// The isolation that was asked for.
    pub isolation: Isolation,
    /// READ ONLY.
    pub read_only: bool,
    /// Who asked.
    pub context: SessionContext,
    /// The random bytes of its Begin.
    pub nonce: [u8; 16],
    /// The exchanges of its Begin and its Extends.
    ordered: BTreeMap<u64, Vec<Bytes>>,
    bytes: usize,
}

impl OrderedTransaction {
    /// A transaction as its Begin opens it.
    pub fn new(
        client: ClientId,
        began: (u64, u64),
        isolation: Isolation,
        read_only: bool,
        context: SessionContext,
        nonce: [u8; 16],
        exchanges: Vec<Bytes>,
    ) -> Self {
        let bytes = exchanges.iter().map(Bytes::len).sum();
        Self {
            client,
            began: began.0,
            time_us: began.1,
            isolation,
            read_only,
            context,
            nonce,
            ordered: BTreeMap::from([(began.0, exchanges)]),
            bytes,
        }
    }

    /// Notes the exchange of an Extend, for Commits that name it.
    ///
    /// # Errors
    /// When the transaction would retain more than `bytes_max`.
    pub fn extend(&mut self, order: u64, exchange: Bytes, bytes_max: usize) -> Result<(), Refused> {
        if self.bytes.saturating_add(exchange.len()) > bytes_max {
            return Err(Refused::new("54000", "the transaction writes too much"));
        }
        self.bytes += exchange.len();
        self.ordered.insert(order, vec![exchange]);
        Ok(())
    }

    /// The exchanges of Begin.
    pub fn first_exchanges(&self) -> &[Bytes] {
        self.ordered.get(&self.began).map_or(&[], Vec::as_slice)
    }

    /// The exchanges that a Commit lists, in order.
    ///
    /// # Errors
    /// When it names an order that is not one of this transaction.
    pub fn listed(&self, writes: &[TransactionWrite]) -> Result<Vec<Bytes>, Refused> {
        let mut listed = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                TransactionWrite::Direct(exchange) => listed.push(exchange.clone()),
                TransactionWrite::Ordered(order) => {
                    let exchanges = self.ordered.get(order);
                    let exchanges =
                        exchanges.ok_or_else(|| Refused::new("08P01", "the Commit lists a foreign order"))?;
                    listed.extend(exchanges.iter().cloned());
                }
            }
        }
        Ok(listed)
    }
}

/// How far a transaction has come on this voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Writes that have run.
    pub writes: u32,
    /// The chain over them.
    pub chain: Digest,
    /// Whether the backend's state is not the one that the chain tells (a statement failed that the other voters did not
    /// run, or something is missing).
    pub stale: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            writes: 0,
            chain: CHAIN_START,
            stale: false,
        }
    }
}

/// How a direct statement's place compares with how far this voter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is next.
    Now,
    /// Writes before it are missing.
    Later,
    /// Its place has passed, or it follows other writes than those that ran here.
    Never,
}

/// What a Commit has to do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitPlan {
    /// Run the writes from this index on, then commit: what ran is a prefix of the list.
    RunFrom(usize),
    /// Roll back, run the whole list, then commit.
    RunAll,
}

impl Progress {
    /// Counts a write.
    pub fn wrote(&mut self, exchange: &[u8]) {
        self.writes = self.writes.saturating_add(1);
        self.chain = chain(&self.chain, exchange);
    }

    /// Whether it is the turn of a statement after these many writes with this chain.
    pub fn turn(&self, writes_before: u32, expected: Option<&Digest>) -> Turn {
        if self.stale || writes_before < self.writes {
            return Turn::Never;
        }
        if writes_before > self.writes {
            return Turn::Later;
        }
        if expected.is_none_or(|expected| *expected == self.chain) {
            Turn::Now
        } else {
            Turn::Never
        }
    }

    /// What a Commit of this list has to do.
    pub fn commit_plan(&self, listed: &[Bytes]) -> CommitPlan {
        let done = usize::try_from(self.writes).unwrap_or(usize::MAX);
        let Some(prefix) = listed.get(..done).filter(|_| !self.stale) else {
            return CommitPlan::RunAll;
        };
        let over_prefix = prefix
            .iter()
            .fold(CHAIN_START, |previous, exchange| chain(&previous, exchange));
        if over_prefix == self.chain {
            CommitPlan::RunFrom(done)
        } else {
            CommitPlan::RunAll
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<Bytes> {
        texts
            .iter()
            .map(|text| Bytes::copy_from_slice(text.as_bytes()))
            .collect()
    }

    #[test]
    fn a_voter_that_ran_the_list_commits_and_one_that_misses_the_end_runs_it() {
        let mut progress = Progress::default();
        progress.wrote(b"a");
        progress.wrote(b"b");
        assert_eq!(progress.commit_plan(&list(&["a", "b"])), CommitPlan::RunFrom(2));
        assert_eq!(progress.commit_plan(&list(&["a", "b", "c"])), CommitPlan::RunFrom(2));
    }

    #[test]
    fn a_voter_that_ran_something_else_runs_all() {
        let mut progress = Progress::default();
        progress.wrote(b"a");
        assert_eq!(progress.commit_plan(&list(&["b"])), CommitPlan::RunAll);
        assert_eq!(progress.commit_plan(&[]), CommitPlan::RunAll);
        let stale = Progress {
            stale: true,
            ..Progress::default()
        };
        assert_eq!(stale.commit_plan(&list(&["a"])), CommitPlan::RunAll);
    }

    #[test]
    fn a_direct_statement_waits_for_the_writes_before_it() {
        let mut progress = Progress::default();
        let after_a = chain(&CHAIN_START, b"a");
        assert_eq!(progress.turn(1, Some(&after_a)), Turn::Later);
        progress.wrote(b"a");
        assert_eq!(progress.turn(1, Some(&after_a)), Turn::Now);
        assert_eq!(progress.turn(1, Some(&CHAIN_START)), Turn::Never);
        assert_eq!(progress.turn(0, None), Turn::Never);
    }

    #[test]
    fn a_commit_cannot_name_foreign_orders() {
        let context = SessionContext::default();
        let transaction = OrderedTransaction::new(
            ClientId(1),
            (5, 0),
            Isolation::ReadCommitted,
            false,
            context,
            [0; 16],
            list(&["a"]),
        );
        assert_eq!(transaction.listed(&[TransactionWrite::Ordered(5)]), Ok(list(&["a"])));
        assert!(transaction.listed(&[TransactionWrite::Ordered(6)]).is_err());
    }
}
