//! Open interactive transactions: what has run, and what their Commit has to do (`docs/design.md#statements`). Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use ordering::identifiers::{ClientId, Digest, MachineId};
use ordering::message::{CHAIN_START, chain};
use sql::operation::{
    Exchange, Isolation, SessionContext, TransactionId, TransactionWrite, Word, same_answers, word_digest,
};

use crate::work::Refused;

/// A Commit that does not carry the words it needs.
pub const WORDS_MISSING: &str = "BF007";

/// What all voters know alike of an open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedTransaction {
    /// The transaction.
    pub id: TransactionId,
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
    /// The machines whose voters run its statements as they come, as a mask.
    pub live: u64,
    /// Who asked.
    pub context: SessionContext,
    /// The random bytes of its Begin.
    pub nonce: [u8; 16],
    /// The exchanges of its Begin and its Extends.
    ordered: BTreeMap<u64, Vec<Bytes>>,
    bytes: usize,
}

/// A Begin, as ordered.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The transaction.
    pub id: TransactionId,
    /// The client.
    pub client: ClientId,
    /// Its order.
    pub order: u64,
    /// The primary's time.
    pub time_us: u64,
    /// The isolation that was asked for.
    pub isolation: Isolation,
    /// READ ONLY.
    pub read_only: bool,
    /// The machines whose voters run its statements as they come, as a mask.
    pub live: u64,
    /// Who asked.
    pub context: SessionContext,
    /// The random bytes.
    pub nonce: [u8; 16],
    /// Its exchanges.
    pub exchanges: Vec<Bytes>,
}

impl OrderedTransaction {
    /// A transaction as its Begin opens it.
    pub fn new(begin: Begin) -> Self {
        Self {
            id: begin.id,
            client: begin.client,
            began: begin.order,
            time_us: begin.time_us,
            isolation: begin.isolation,
            read_only: begin.read_only,
            live: begin.live,
            context: begin.context,
            nonce: begin.nonce,
            bytes: begin.exchanges.iter().map(Bytes::len).sum(),
            ordered: BTreeMap::from([(begin.order, begin.exchanges)]),
        }
    }

    /// Whether its statements read the snapshot of its Begin.
    pub fn reads_snapshot(&self) -> bool {
        self.read_only || self.isolation == Isolation::RepeatableRead
    }

    /// Whether a machine's voter runs its statements as they come.
    pub fn is_live(&self, machine: MachineId) -> bool {
        self.live
            .checked_shr(u32::from(machine.0))
            .is_some_and(|mask| mask & 1 == 1)
    }

    /// Notes the exchange of an Extend, for Commits that name it.
    ///
    /// # Errors
    /// When the transaction would retain more than `bytes_max` in memory.
    pub fn extend(&mut self, order: u64, exchange: Bytes, bytes_max: usize) -> Result<(), Refused> {
        if self.bytes.saturating_add(exchange.len()) > bytes_max {
            return Err(too_large());
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
    /// When it names an order that is not one of this transaction, or one twice.
    pub fn listed(&self, writes: &[TransactionWrite]) -> Result<Vec<Bytes>, Refused> {
        let mut listed = Vec::with_capacity(writes.len());
        let mut named = BTreeSet::new();
        for write in writes {
            match write {
                TransactionWrite::Direct(exchange) => listed.push(exchange.clone()),
                TransactionWrite::Ordered(order) => {
                    let exchanges = self.ordered.get(order).filter(|_| named.insert(*order));
                    let exchanges = exchanges
                        .ok_or_else(|| Refused::new("08P01", "the Commit lists a foreign order, or one twice"))?;
                    listed.extend(exchanges.iter().cloned());
                }
            }
        }
        Ok(listed)
    }

    /// The exchanges that a Commit lists, in order, with their bodies of at most so many bytes.
    ///
    /// # Errors
    /// See [`OrderedTransaction::listed`]; and when they are larger.
    pub fn committed(&self, writes: &[TransactionWrite], bytes_max: u64) -> Result<Vec<Bytes>, Refused> {
        let listed = self.listed(writes)?;
        let bytes = listed.iter().map(|exchange| listed_bytes(exchange)).sum::<u64>();
        if bytes > bytes_max {
            return Err(too_large());
        }
        Ok(listed)
    }
}

/// A transaction that lists more than it may.
pub fn too_large() -> Refused {
    Refused {
        hint: "Use several transactions, or raise transaction_bytes_max in the cluster file.".into(),
        ..Refused::new("54000", "the transaction writes too much")
    }
}

/// What a listed exchange weighs, in bytes: with its body, if it is kept outside the order.
pub fn listed_bytes(exchange: &[u8]) -> u64 {
    let encoded = u64::try_from(exchange.len()).unwrap_or(u64::MAX);
    encoded.saturating_add(stored_length(exchange).map_or(0, u64::from))
}

/// Whether an encoded exchange names a body that is kept outside the order.
pub fn is_stored(exchange: &[u8]) -> bool {
    stored_length(exchange).is_some()
}

fn stored_length(exchange: &[u8]) -> Option<u32> {
    if exchange.len() != STORED_BYTES {
        return None;
    }
    match Exchange::decode(exchange) {
        Ok(Exchange::Stored { length, .. }) => Some(length),
        _ => None,
    }
}

/// The bytes of an encoded exchange that names a body.
const STORED_BYTES: usize = 1 + 32 + 4;

/// The chain over a list of exchanges, or of digests of answers.
pub fn chain_over<'links>(links: impl IntoIterator<Item = &'links [u8]>) -> Digest {
    links
        .into_iter()
        .fold(CHAIN_START, |previous, link| chain(&previous, link))
}

/// What f+1 voters answered to the list, by their words; `None` if the Commit carries no words.
///
/// # Errors
/// When the words are not those of f+1 different voters, over this list, with equal answers.
pub fn certificate(
    words: &[Word],
    voters: &BTreeMap<MachineId, VerifyingKey>,
    faults: usize,
    transaction: TransactionId,
    began: u64,
    list: &Digest,
) -> Result<Option<Digest>, Refused> {
    let Some(first) = words.first() else {
        return Ok(None);
    };
    let refused = |why: &str| {
        Err(Refused {
            detail: why.into(),
            ..Refused::new(WORDS_MISSING, "the words of the voters do not certify the transaction")
        })
    };
    let mut machines = BTreeSet::new();
    for word in words {
        let Some(key) = voters.get(&MachineId(word.machine)) else {
            return refused("a word of a machine that holds no voter");
        };
        if word.answers != first.answers || !machines.insert(word.machine) {
            return refused("two words differ, or are of one voter");
        }
        let signed = word_digest(transaction, began, list, &word.answers);
        if key
            .verify_strict(&signed, &Signature::from_bytes(&word.signature))
            .is_err()
        {
            return refused("a word is not signed by its voter");
        }
    }
    if machines.len() <= faults {
        return refused("too few words");
    }
    Ok(Some(first.answers))
}

/// A listed exchange that has run here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ran {
    exchange: Bytes,
    answer: Digest,
    /// The chains after it.
    list: Digest,
    answers: Digest,
    /// The bytes up to it.
    bytes: u64,
}

/// The listed exchanges of a transaction that have run on this voter, in order, and what they answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    ran: Vec<Ran>,
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

impl History {
    /// How many exchanges have run.
    pub fn len(&self) -> u32 {
        u32::try_from(self.ran.len()).unwrap_or(u32::MAX)
    }

    /// Whether none has run.
    pub fn is_empty(&self) -> bool {
        self.ran.is_empty()
    }

    /// The chain over the exchanges.
    pub fn list(&self) -> Digest {
        self.ran.last().map_or(CHAIN_START, |ran| ran.list)
    }

    /// The chain over the answers.
    pub fn answers(&self) -> Digest {
        self.ran.last().map_or(CHAIN_START, |ran| ran.answers)
    }

    /// The bytes of what has run, bodies outside the order included.
    pub fn bytes(&self) -> u64 {
        self.ran.last().map_or(0, |ran| ran.bytes)
    }

    /// The exchanges.
    pub fn exchanges(&self) -> Vec<Bytes> {
        self.ran.iter().map(|ran| ran.exchange.clone()).collect()
    }

    /// Counts an exchange with its answer.
    pub fn push(&mut self, exchange: Bytes, answer: Digest) {
        let ran = Ran {
            list: chain(&self.list(), &exchange),
            answers: chain(&self.answers(), &answer),
            bytes: self.bytes().saturating_add(listed_bytes(&exchange)),
            exchange,
            answer,
        };
        self.ran.push(ran);
    }

    /// Forgets all but the first exchanges.
    pub fn truncate(&mut self, count: u32) {
        self.ran.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    }

    /// Whether it is the turn of a statement after these many writes with this chain.
    pub fn turn(&self, writes_before: u32, expected: Option<&Digest>) -> Turn {
        if writes_before < self.len() {
            return Turn::Never;
        }
        if writes_before > self.len() {
            return Turn::Later;
        }
        if expected.is_none_or(|expected| *expected == self.list()) {
            Turn::Now
        } else {
            Turn::Never
        }
    }

    /// Whether exactly this list has run, and answered what its words say, if it has words.
    pub fn is(&self, list: &Digest, certified: Option<Digest>) -> bool {
        self.list() == *list && certified.is_none_or(|answers| same_answers(&answers, &self.answers()))
    }

    /// Whether what ran, and what runs now, is how the list begins.
    pub fn begins(&self, listed: &[Bytes], now: &[Bytes]) -> bool {
        let ran = self.ran.iter().map(|ran| &ran.exchange).chain(now);
        let count = self.ran.len() + now.len();
        listed.len() >= count && ran.eq(listed.iter().take(count))
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn list(texts: &[&str]) -> Vec<Bytes> {
        texts
            .iter()
            .map(|text| Bytes::copy_from_slice(text.as_bytes()))
            .collect()
    }

    fn history(texts: &[&str]) -> History {
        let mut history = History::default();
        for exchange in list(texts) {
            history.push(exchange, [1; 32]);
        }
        history
    }

    #[test]
    fn what_ran_is_compared_with_the_list() {
        let ran = history(&["a", "b"]);
        assert!(ran.begins(&list(&["a", "b"]), &[]));
        assert!(ran.begins(&list(&["a", "b", "c"]), &list(&["c"])));
        assert!(!ran.begins(&list(&["a", "b", "c"]), &list(&["d"])));
        assert!(!ran.begins(&list(&["a", "x", "c"]), &[]));
        assert!(!ran.begins(&list(&["a"]), &[]));
        let list = list(&["a", "b"]);
        assert_eq!(ran.list(), chain_over(list.iter().map(Bytes::as_ref)));
    }

    #[test]
    fn a_statement_has_its_turn_after_exactly_the_writes_before_it() {
        let mut ran = history(&["a"]);
        let after = ran.list();
        assert_eq!(ran.turn(1, Some(&after)), Turn::Now);
        assert_eq!(ran.turn(1, Some(&CHAIN_START)), Turn::Never);
        assert_eq!(ran.turn(2, None), Turn::Later);
        assert_eq!(ran.turn(0, None), Turn::Never);
        ran.truncate(0);
        assert_eq!(ran.turn(0, Some(&CHAIN_START)), Turn::Now);
    }

    fn transaction() -> OrderedTransaction {
        OrderedTransaction::new(Begin {
            id: TransactionId {
                client: 1,
                session: 1,
                number: 1,
            },
            client: ClientId(1),
            order: 5,
            time_us: 0,
            isolation: Isolation::ReadCommitted,
            read_only: false,
            live: 0b110,
            context: SessionContext::default(),
            nonce: [0; 16],
            exchanges: list(&["a"]),
        })
    }

    #[test]
    fn a_commit_names_orders_of_its_own_and_each_once() {
        let transaction = transaction();
        let own = TransactionWrite::Ordered(5);
        assert_eq!(transaction.listed(std::slice::from_ref(&own)), Ok(list(&["a"])));
        assert!(
            transaction.listed(&[own.clone(), own]).is_err(),
            "bounded by what was ordered"
        );
        assert!(transaction.listed(&[TransactionWrite::Ordered(6)]).is_err());
    }

    #[test]
    fn the_mask_names_the_live_voters() {
        let transaction = transaction();
        let live = [0, 1, 2, 3, 64, 255].map(|machine| transaction.is_live(MachineId(machine)));
        assert_eq!(live, [false, true, true, false, false, false]);
    }

    fn key(machine: u8) -> SigningKey {
        SigningKey::from_bytes(&[machine; 32])
    }

    fn word(machine: u8, answers: Digest, list: &Digest) -> Word {
        let signed = word_digest(transaction().id, 5, list, &answers);
        Word {
            machine,
            answers,
            signature: key(machine).sign(&signed).to_bytes(),
        }
    }

    #[test]
    fn only_the_equal_words_of_enough_voters_over_this_list_certify() {
        let keys: BTreeMap<_, _> = (1..=3).map(|id| (MachineId(id), key(id).verifying_key())).collect();
        let list = [9; 32];
        let check = |words: &[Word]| certificate(words, &keys, 1, transaction().id, 5, &list);
        assert_eq!(check(&[]), Ok(None));
        assert_eq!(
            check(&[word(1, [1; 32], &list), word(3, [1; 32], &list)]),
            Ok(Some([1; 32]))
        );
        for bad in [
            vec![word(1, [1; 32], &list)],
            vec![word(1, [1; 32], &list), word(1, [1; 32], &list)],
            vec![word(1, [1; 32], &list), word(2, [2; 32], &list)],
            vec![word(1, [1; 32], &list), word(2, [1; 32], &[8; 32])],
            vec![word(1, [1; 32], &list), word(4, [1; 32], &list)],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
        let forged = Word {
            machine: 2,
            ..word(1, [1; 32], &list)
        };
        assert!(check(&[word(1, [1; 32], &list), forged]).is_err());
    }
}
