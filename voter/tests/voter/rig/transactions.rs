//! Open transactions of the rig's client: what a proxy orders and sends directly for them.

use super::*;

/// An interactive transaction as its proxy sees it.
#[derive(Clone)]
pub(crate) struct Transaction {
    pub(crate) id: TransactionId,
    pub(crate) footprint: Footprint,
    pub(crate) writes: Vec<TransactionWrite>,
    pub(crate) count: u32,
    pub(crate) chain: Digest,
}

impl Transaction {
    pub(crate) fn note(&mut self, exchange: &Exchange, write: TransactionWrite) {
        self.count += 1;
        self.chain = chain(&self.chain, &exchange.encode());
        self.writes.push(write);
    }
}

impl Rig {
    pub(crate) fn new_transaction(&mut self, footprint: Footprint) -> Transaction {
        self.number += 1;
        Transaction {
            id: TransactionId {
                client: CLIENT.0,
                session: 1,
                number: self.number,
            },
            footprint,
            writes: Vec::new(),
            count: 0,
            chain: CHAIN_START,
        }
    }

    /// Orders the Begin of a transaction; its order.
    pub(crate) async fn begin(
        &mut self,
        transaction: &mut Transaction,
        isolation: Isolation,
        exchange: &Exchange,
    ) -> u64 {
        self.begin_as(transaction, isolation, u64::MAX, exchange).await
    }

    /// The same with the mask of live voters.
    pub(crate) async fn begin_live(&mut self, transaction: &mut Transaction, live: u64, exchange: &Exchange) -> u64 {
        self.begin_as(transaction, Isolation::ReadCommitted, live, exchange)
            .await
    }

    async fn begin_as(
        &mut self,
        transaction: &mut Transaction,
        isolation: Isolation,
        live: u64,
        exchange: &Exchange,
    ) -> u64 {
        let work = Work::Begin {
            transaction: transaction.id,
            isolation,
            read_only: false,
            live,
            exchanges: vec![exchange.encode()],
        };
        let order = self.order(transaction.footprint.clone(), work).await;
        transaction.note(exchange, TransactionWrite::Ordered(order));
        order
    }

    /// Orders the Begin of a REPEATABLE READ transaction that only opens its snapshot.
    pub(crate) async fn begin_snapshot(&mut self, transaction: &mut Transaction) -> u64 {
        let work = Work::Begin {
            transaction: transaction.id,
            isolation: Isolation::RepeatableRead,
            read_only: false,
            live: u64::MAX,
            exchanges: Vec::new(),
        };
        let order = self.order(transaction.footprint.clone(), work).await;
        transaction.writes.push(TransactionWrite::Ordered(order));
        order
    }

    /// Sends a direct statement; the key of its result.
    pub(crate) async fn send_direct(
        &mut self,
        transaction: Option<&Transaction>,
        exchange: &Exchange,
        write: bool,
    ) -> ResultKey {
        let kind = if write { DirectKind::Write } else { DirectKind::Read };
        self.send_place(transaction, exchange.encode(), kind).await
    }

    /// Sends a direct message of any kind.
    pub(crate) async fn send_place(
        &mut self,
        transaction: Option<&Transaction>,
        exchange: Bytes,
        kind: DirectKind,
    ) -> ResultKey {
        self.number += 1;
        let place = transaction.map(|transaction| DirectTransaction {
            session: transaction.id.session,
            number: transaction.id.number,
            writes_before: transaction.count,
            chain: transaction.chain,
            kind,
        });
        let direct = Direct {
            number: 1000 + self.number,
            whole: true,
            context: Bytes::from(borsh::to_vec(&self.context()).unwrap()),
            transaction: place,
            not_before: Order(0),
            exchange,
        };
        let key = ResultKey::Direct(direct.number);
        let input = self.handle.as_ref().unwrap().input();
        input.send(VoterInput::Direct { client: CLIENT, direct }).await.unwrap();
        key
    }

    pub(crate) async fn direct_outcome(&self, key: ResultKey) -> Outcome {
        self.wait_for(key).await.outcome
    }

    /// A direct write that this voter gets and runs.
    pub(crate) async fn write(&mut self, transaction: &mut Transaction, exchange: &Exchange) -> ExchangeResult {
        let key = self.send_direct(Some(transaction), exchange, true).await;
        transaction.note(exchange, TransactionWrite::Direct(exchange.encode()));
        self.whole(key).await
    }

    /// A direct write that other voters have run; the key of what is no answer.
    pub(crate) async fn replay(&mut self, transaction: &mut Transaction, exchange: &Exchange) -> ResultKey {
        let key = self
            .send_place(Some(transaction), exchange.encode(), DirectKind::Replay)
            .await;
        transaction.note(exchange, TransactionWrite::Direct(exchange.encode()));
        key
    }

    /// A direct write that this voter never gets.
    pub(crate) fn missed_write(&mut self, transaction: &mut Transaction, exchange: &Exchange) {
        transaction.note(exchange, TransactionWrite::Direct(exchange.encode()));
    }

    pub(crate) async fn extend(
        &mut self,
        transaction: &mut Transaction,
        footprint: Footprint,
        exchange: &Exchange,
    ) -> u64 {
        let work = Work::Extend {
            transaction: transaction.id,
            writes_before: transaction.count,
            exchange: exchange.encode(),
        };
        let order = self.order(footprint, work).await;
        transaction.note(exchange, TransactionWrite::Ordered(order));
        order
    }

    /// Asks for the voter's word; with the one of another voter that says the same, if it gives one.
    pub(crate) async fn words(&mut self, transaction: &Transaction) -> Vec<Word> {
        let key = self.send_place(Some(transaction), Bytes::new(), DirectKind::Word).await;
        let Outcome::Word { answers, signature } = self.direct_outcome(key).await else {
            return Vec::new();
        };
        let mut words = self.words_with(transaction, answers);
        words[0].signature = signature;
        words
    }

    /// The words of two voters for what they would have answered.
    pub(crate) fn words_with(&self, transaction: &Transaction, answers: Digest) -> Vec<Word> {
        let began = match transaction.writes.first() {
            Some(TransactionWrite::Ordered(order)) => *order,
            other => panic!("no Begin: {other:?}"),
        };
        let signed = word_digest(transaction.id, began, &transaction.chain, &answers);
        let word = |machine| Word {
            machine,
            answers,
            signature: machine_key(machine).sign(&signed).to_bytes(),
        };
        vec![word(1), word(2)]
    }

    pub(crate) async fn commit(&mut self, transaction: &Transaction) -> u64 {
        let words = self.words(transaction).await;
        self.commit_with(transaction, words).await
    }

    pub(crate) async fn commit_with(&mut self, transaction: &Transaction, words: Vec<Word>) -> u64 {
        let work = Work::Commit {
            transaction: transaction.id,
            writes: transaction.writes.clone(),
            words,
        };
        self.order(transaction.footprint.clone(), work).await
    }

    pub(crate) async fn abort(&mut self, transaction: &Transaction) -> u64 {
        let work = Work::Abort {
            transaction: transaction.id,
        };
        self.order(transaction.footprint.clone(), work).await
    }

    /// What stands for an exchange whose body is kept outside the order, and the body's name.
    pub(crate) fn stored(transaction: &Transaction, exchange: &Exchange) -> (Exchange, BodyName, Bytes) {
        let body = exchange.encode();
        let name = BodyName {
            client: CLIENT,
            session: transaction.id.session,
            number: transaction.id.number,
            digest: body_digest(&body),
        };
        let stored = Exchange::Stored {
            digest: name.digest,
            length: body.len() as u32,
        };
        (stored, name, body)
    }

    /// Keeps an exchange's body in the voter's store, and says what stands for it.
    pub(crate) async fn store(&self, transaction: &Transaction, exchange: &Exchange) -> Exchange {
        let (stored, name, body) = Self::stored(transaction, exchange);
        let (sender, kept) = tokio::sync::oneshot::channel();
        self.bodies.store(name, body, |kept| sender.send(kept).unwrap()).await;
        assert_eq!(kept.await.unwrap(), ordering::message::Kept::Durable);
        stored
    }

    /// Has other machines keep an exchange's body, and says what stands for it.
    pub(crate) fn store_elsewhere(&self, transaction: &Transaction, exchange: &Exchange) -> Exchange {
        let (stored, name, body) = Self::stored(transaction, exchange);
        self.elsewhere.lock().unwrap().insert(name, body);
        stored
    }

    /// Opens the store again, as it is on the disk; empty if the disk is `lost`.
    pub(crate) fn reopen_bodies(&mut self, lost: bool) {
        if lost {
            self.bodies_directory = tempfile::tempdir().unwrap();
        }
        self.bodies = open_bodies(&self.bodies_directory);
    }
}
