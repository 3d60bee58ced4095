//! What clients, nodes and the lying voter can do at a state: operations that can be ordered next, and direct messages that are on
//! their way to every voter, may arrive in any order, or never.

use std::sync::Arc;

use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest, MachineId, Order};
use ordering::message::{Direct, DirectKind, DirectTransaction, Request};
use sql::footprint::Footprint;
use sql::operation::{Isolation, TransactionWrite, Word, Work};
use voter::transactions::chain_over;

use super::scenarios::{Lies, Scenario};
use super::voter::{Answer, Message, no_context};
use super::world::{FAULTS, HONEST, LIAR, MACHINES, SHOPPER, Table, World, node_client, request, transaction};

/// A word that a voter has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub client: ClientId,
    pub began: u64,
    pub list: Digest,
    pub word: Word,
}

/// What clients can see.
pub(crate) struct Sight<'sight> {
    pub scenario: Scenario,
    pub world: &'sight World,
    /// The order so far.
    pub order: Vec<&'sight Request>,
    /// The words of correct voters.
    pub words: Vec<Given>,
}

impl Given {
    /// The word in an answer.
    pub(crate) fn of(client: ClientId, answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Word { began, list, word } => Some(Self {
                client,
                began: *began,
                list: *list,
                word: word.0.clone(),
            }),
            _ => None,
        }
    }
}

/// The first exchange of a client's transaction: its form bounds nothing.
fn first_exchange(scenario: Scenario, client: ClientId) -> Bytes {
    match client {
        HONEST => Table::First.long(1),
        _ => scenario.table.long(2),
    }
}

/// The exchanges that the clients send directly or by Extend, after the first.
fn second_exchanges(scenario: Scenario, client: ClientId) -> Vec<Bytes> {
    let table = scenario.table;
    match (client, scenario.lies) {
        (HONEST, _) if scenario.extends => vec![Table::Second.short(3)],
        (HONEST, _) => vec![Table::First.short(3)],
        (_, Lies::Absent) => Vec::new(),
        (_, Lies::Commits) => vec![table.short(4)],
        (_, Lies::Lists) => vec![table.short(4), table.short(5)],
        (_, Lies::Endless) => vec![table.endless()],
        (_, Lies::NeverEnds) => vec![Table::First.short(6)],
    }
}

/// Whether a client's second exchange is an Extend.
fn extends(scenario: Scenario, client: ClientId) -> bool {
    match client {
        HONEST => scenario.extends,
        _ => scenario.lies == Lies::NeverEnds,
    }
}

/// The clients that open transactions.
pub(crate) fn clients(scenario: Scenario) -> Vec<ClientId> {
    let honest = scenario.honest.then_some(HONEST);
    let liar = (scenario.lies != Lies::Absent).then_some(LIAR);
    honest.into_iter().chain(liar).collect()
}

/// All direct messages, by number.
pub(crate) fn messages(scenario: Scenario) -> Vec<Arc<Message>> {
    let mut messages = Vec::new();
    for client in clients(scenario) {
        let first = first_exchange(scenario, client);
        for second in second_exchanges(scenario, client) {
            if !extends(scenario, client) {
                messages.push((client, DirectKind::Write, vec![first.clone()], second.clone()));
            }
            if scenario.lies != Lies::Endless || client == HONEST {
                messages.push((client, DirectKind::Word, vec![first.clone(), second], Bytes::new()));
            }
        }
    }
    let number = |(number, (client, kind, before, exchange)): (u64, (ClientId, DirectKind, Vec<Bytes>, Bytes))| {
        let id = transaction(client);
        let place = DirectTransaction {
            session: id.session,
            number: id.number,
            writes_before: u32::try_from(before.len()).unwrap_or(u32::MAX),
            chain: chain_over(before.iter().map(Bytes::as_ref)),
            kind,
        };
        let direct = Direct {
            number,
            whole: false,
            context: no_context(),
            transaction: Some(place),
            not_before: Order(0),
            exchange,
        };
        Arc::new(Message { client, direct })
    };
    (0..).zip(messages).map(number).collect()
}

impl Sight<'_> {
    /// The order of a client's request.
    fn ordered(&self, client: ClientId, number: u64) -> Option<u64> {
        let is_it = |request: &&Request| request.client == client && request.number == number;
        let at = self.order.iter().position(is_it)?;
        u64::try_from(at).ok().map(|at| at + 1)
    }

    /// Whether a client's messages are on their way.
    pub(crate) fn has_begun(&self, client: ClientId) -> bool {
        self.ordered(client, 1).is_some()
    }

    /// What can be ordered next.
    pub(crate) fn orderable(&self) -> Vec<Request> {
        let clients = clients(self.scenario).into_iter();
        let mut requests: Vec<Request> = clients.flat_map(|client| self.of_client(client)).collect();
        if self.scenario.one_shot {
            requests.extend(self.one_shot());
        }
        requests.extend(self.abandons());
        requests
    }

    fn of_client(&self, client: ClientId) -> Vec<Request> {
        let scenario = self.scenario;
        let Some(began) = self.ordered(client, 1) else {
            return vec![self.begin(client)];
        };
        if self.ordered(client, 3).is_some() {
            return Vec::new();
        }
        let mut requests = Vec::new();
        if extends(scenario, client) && self.ordered(client, 2).is_none() {
            requests.push(self.extend(client));
        }
        let commits: Vec<Request> = match (client, scenario.lies) {
            (HONEST, _) | (_, Lies::Commits) => self.honest_commit(client, began).into_iter().collect(),
            (_, Lies::Absent | Lies::NeverEnds) => Vec::new(),
            (_, Lies::Lists) => self.lists(began),
            (_, Lies::Endless) => self.endless(began),
        };
        requests.extend(commits);
        requests
    }

    fn begin(&self, client: ClientId) -> Request {
        let (table, live) = match client {
            HONEST => (Table::First, 0b0110),
            _ => (self.scenario.table, 0b1100),
        };
        let work = Work::Begin {
            transaction: transaction(client),
            isolation: Isolation::ReadCommitted,
            read_only: false,
            live,
            exchanges: vec![first_exchange(self.scenario, client)],
        };
        request(client, 1, table.footprint(), work)
    }

    fn extend(&self, client: ClientId) -> Request {
        let table = if client == HONEST { Table::Second } else { Table::First };
        let exchange = second_exchanges(self.scenario, client).swap_remove(0);
        let work = Work::Extend {
            transaction: transaction(client),
            writes_before: 1,
            exchange,
        };
        request(client, 2, table.footprint(), work)
    }

    fn commit(&self, client: ClientId, writes: Vec<TransactionWrite>, words: Vec<Word>) -> Request {
        let work = Work::Commit {
            transaction: transaction(client),
            writes,
            words,
        };
        request(client, 3, Footprint::empty(), work)
    }

    /// The list of a transaction with this second exchange, as its Commit names it, and its chain.
    fn list(&self, client: ClientId, began: u64, second: Option<&Bytes>) -> (Vec<TransactionWrite>, Digest) {
        let first = first_exchange(self.scenario, client);
        let links = std::iter::once(&first).chain(second);
        let chain = chain_over(links.map(Bytes::as_ref));
        let mut writes = vec![TransactionWrite::Ordered(began)];
        writes.extend(second.map(|second| match self.ordered(client, 2) {
            Some(extend) => TransactionWrite::Ordered(extend),
            None => TransactionWrite::Direct(second.clone()),
        }));
        (writes, chain)
    }

    /// Words that certify a list, as soon as they can be had.
    fn certificate(&self, client: ClientId, began: u64, list: &Digest) -> Option<Vec<Word>> {
        let given = self.words.iter();
        let given = given.filter(|given| (given.client, given.began, given.list) == (client, began, *list));
        let mut words: Vec<Word> = given.map(|given| given.word.clone()).collect();
        let answers = words.first()?.answers;
        words.retain(|word| word.answers == answers);
        words.sort_by_key(|word| word.machine);
        words.dedup_by_key(|word| word.machine);
        if self.scenario.lying_voter {
            words.truncate(FAULTS);
            words.push(self.lie(client, began, list, answers));
        }
        words.truncate(FAULTS + 1);
        (words.len() == FAULTS + 1).then_some(words)
    }

    /// A word of the last machine, which gives any; if it is correct, one that somebody else has signed.
    fn lie(&self, client: ClientId, began: u64, list: &Digest, answers: Digest) -> Word {
        let [.., last] = MACHINES;
        let signer = if self.scenario.lying_voter { last } else { MachineId(99) };
        Word {
            machine: last.0,
            ..self.world.word(signer, transaction(client), began, list, answers)
        }
    }

    fn honest_commit(&self, client: ClientId, began: u64) -> Option<Request> {
        let second = second_exchanges(self.scenario, client).swap_remove(0);
        if extends(self.scenario, client) {
            self.ordered(client, 2)?;
        }
        let (writes, list) = self.list(client, began, Some(&second));
        let words = self.certificate(client, began, &list)?;
        Some(self.commit(client, writes, words))
    }

    /// Any list with any words.
    fn lists(&self, began: u64) -> Vec<Request> {
        let seconds = second_exchanges(self.scenario, LIAR);
        let mut commits = Vec::new();
        let certificates = seconds.iter().filter_map(|second| {
            let (_, list) = self.list(LIAR, began, Some(second));
            self.certificate(LIAR, began, &list)
        });
        let honest = self.words.iter().filter(|given| given.client == HONEST);
        let mut words: Vec<Vec<Word>> = certificates.collect();
        // Too few words, where all voters are correct. (Where one lies, its own are too few.)
        if !self.scenario.lying_voter {
            let own = self
                .words
                .iter()
                .filter(|given| given.client == LIAR && given.began == began);
            words.extend(own.map(|given| vec![given.word.clone()]));
        }
        // Words of another transaction.
        words.extend(honest.map(|given| vec![given.word.clone()]));
        for second in &seconds {
            let (writes, list) = self.list(LIAR, began, Some(second));
            // A list with the words for it, or for another, or for another transaction, and one that nobody has ever run.
            for words in &words {
                commits.push(self.commit(LIAR, writes.clone(), words.clone()));
            }
            commits.push(self.commit(LIAR, writes.clone(), Vec::new()));
            commits.push(self.commit(LIAR, writes, vec![self.lie(LIAR, began, &list, [7; 32])]));
        }
        if let Some(foreign) = self.ordered(HONEST, 1) {
            commits.push(self.commit(LIAR, vec![TransactionWrite::Ordered(foreign)], Vec::new()));
        }
        commits
    }

    /// What never ends, with words of one voter that has not seen its end, one or two of them.
    fn endless(&self, began: u64) -> Vec<Request> {
        let second = self.scenario.table.endless();
        let (writes, list) = self.list(LIAR, began, Some(&second));
        let lie = self.lie(LIAR, began, &list, [7; 32]);
        let commits = [Vec::new(), vec![lie.clone()], vec![lie.clone(), lie]];
        commits
            .into_iter()
            .map(|words| self.commit(LIAR, writes.clone(), words))
            .collect()
    }

    /// A one-shot, and the same request again.
    fn one_shot(&self) -> Option<Request> {
        let times = self.order.iter().filter(|request| request.client == SHOPPER).count();
        let exchange = Table::First.short(9);
        let work = Work::OneShot { exchange };
        (times < 2).then(|| request(SHOPPER, 1, Table::First.footprint(), work))
    }

    /// Nodes say that everything is abandoned.
    fn abandons(&self) -> Vec<Request> {
        let nodes = MACHINES.into_iter().rev().take(usize::from(self.scenario.abandons));
        let abandon = |machine| {
            let work = Work::Abandon {
                transactions: vec![transaction(HONEST), transaction(LIAR)],
            };
            request(node_client(machine), 1, Footprint::empty(), work)
        };
        let fresh = nodes.filter(|machine| self.ordered(node_client(*machine), 1).is_none());
        fresh.map(abandon).collect()
    }
}
