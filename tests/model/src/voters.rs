//! Model checking of the voters' seam: three voters, f = 1, of which one may lie, an honest client and one that lies, and a database
//! that is nothing but a list of what it ran.
//!
//! What decides is production code of the crate `voter`: the vote counter, the client windows, the lock table with its physical
//! dependencies, the checks of operations, what a transaction has run and whose turn it is, what a Commit does with its list and its
//! words, certificates, what an ordered end stops, what is abandoned, positions and what is run again, floors. `voter.rs` and
//! `slot.rs` drive these, as `voter/src/owner/` and `voter/src/slot/` do: those call PostgreSQL in the midst of what they do, so
//! their flow is written a second time here, and could differ. (The twins run the first one.)
//!
//! Left out: reads, snapshots (REPEATABLE READ), cancels, bodies outside the order, COPY, changes of the catalog, settings and
//! roles, sequences, statements that fail on one server or everywhere, limits, and the replicas' logs being cut.
//!
//! As in the other family, a voter is a function of what it was fed, and is made anew for each step. But two chains of inputs that
//! lead to one inner state are one state here (`Voter::describe`).
//!
//! | file | what |
//! |---|---|
//! | `scenarios.rs` | what is explored, and faults that the properties must find |
//! | `clients.rs` | what clients, nodes and the lying voter can do |
//! | `voter.rs`, `slot.rs` | a correct voter, and one transaction in it |
//! | `database.rs` | its database |
//! | `world.rs` | keys, the catalog, the statements |

mod clients;
mod database;
mod scenarios;
mod slot;
mod voter;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use ::voter::transactions::chain_over;
use bytes::Bytes;
use ordering::identifiers::{ClientId, Digest, MachineId};
use ordering::message::Request;
use sql::operation::{Operation, TransactionWrite, Work};
use stateright::{Model, Property};

use clients::{Given, Sight, clients, messages};
use database::Committed;
pub use scenarios::{Fault, Lies, Scenario};
use voter::{Answer, Key, Message, Said, Stimulus, Voter};
pub use world::Table;
use world::{FAULTS, HONEST, MACHINES, World, is_short};

/// Names an inner state of a voter.
type VoterId = [u8; 16];

/// Names a request.
type RequestId = [u8; 16];

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The correct voters.
    voters: Vec<VoterId>,
    /// What is ordered, first order first.
    order: Vec<RequestId>,
    restarts: u8,
    floors: u8,
    expiries: u8,
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A request gets the next order; its client and number.
    Order(RequestId, ClientId, u64),
    /// A correct voter (by its place among them) learns the next order.
    Decide(u8),
    /// A direct message arrives at a voter.
    Direct(u8, u64),
    /// A voter's transaction goes on.
    Step(u8, u64),
    /// A voter's one-shot runs in the database.
    Run(u8, u64),
    /// Statements of a voter's transaction have waited too long.
    Expire(u8, u64),
    /// A voter takes a candidate for its floor.
    Candidate(u8),
    /// A voter and its server crash, and so many commits are lost.
    Crash(u8, usize),
}

impl std::fmt::Debug for Action {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let machine = |voter: &u8| u32::from(*voter) + 1;
        match self {
            Action::Order(_, client, number) => write!(formatter, "order request {number} of client {}", client.0),
            Action::Decide(voter) => write!(formatter, "m{} next", machine(voter)),
            Action::Direct(voter, number) => write!(formatter, "m{} direct {number}", machine(voter)),
            Action::Step(voter, began) => write!(formatter, "m{} step {began}", machine(voter)),
            Action::Run(voter, order) => write!(formatter, "m{} run {order}", machine(voter)),
            Action::Expire(voter, began) => write!(formatter, "m{} expire {began}", machine(voter)),
            Action::Candidate(voter) => write!(formatter, "m{} floor", machine(voter)),
            Action::Crash(voter, lost) => write!(formatter, "m{} crash {lost}", machine(voter)),
        }
    }
}

/// What is known of an inner state of a voter.
struct Known {
    /// A shortest way to it, as far as it was met.
    stimuli: Vec<Stimulus>,
    machine: MachineId,
    fed: u64,
    own: Vec<Stimulus>,
    waiting: Vec<u64>,
    delivered: Vec<bool>,
    can_propose: bool,
    unflushed: usize,
    said: Vec<Said>,
    words: Vec<Given>,
    commits: Vec<Committed>,
    ever: BTreeMap<String, Vec<(u64, Digest)>>,
    changed_its_mind: bool,
    lock_states: BTreeMap<u64, Digest>,
    forgot_locks: bool,
    is_down: bool,
    stuck: Vec<u64>,
}

/// Three voters on abstract databases, and their clients.
pub struct Voters {
    scenario: Scenario,
    /// The property that is checked, if not all are.
    only: Option<&'static str>,
    world: World,
    messages: Vec<Arc<Message>>,
    known: Mutex<HashMap<VoterId, Arc<Known>>>,
    edges: Mutex<HashMap<(VoterId, [u8; 16]), VoterId>>,
    ordered: Mutex<HashMap<RequestId, Arc<Ordered>>>,
    orderable: Mutex<HashMap<[u8; 16], Arc<Vec<Action>>>>,
    begin: State,
}

/// A request that can be ordered.
struct Ordered {
    request: Arc<Request>,
    operation: Operation,
}

impl Scenario {
    /// The voters of this scenario.
    pub fn voters(self) -> Voters {
        let mut voters = Voters {
            scenario: self,
            only: None,
            world: World::new(),
            messages: messages(self),
            known: Mutex::default(),
            edges: Mutex::default(),
            ordered: Mutex::default(),
            orderable: Mutex::default(),
            begin: State {
                voters: Vec::new(),
                order: Vec::new(),
                restarts: self.restarts,
                floors: self.floors,
                expiries: self.expiries,
            },
        };
        let correct = MACHINES.len() - usize::from(self.lying_voter);
        let machines = MACHINES.into_iter().take(correct);
        voters.begin.voters = machines.map(|machine| voters.compute(machine, Vec::new())).collect();
        voters
    }
}

impl Voters {
    /// Checks this property, and no other.
    #[must_use]
    pub fn only(mut self, property: &'static str) -> Self {
        self.only = Some(property);
        self
    }

    fn known(&self, id: VoterId) -> Arc<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.get(&id).expect("only known states are named"))
    }

    fn request(&self, id: RequestId) -> Arc<Ordered> {
        let ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(ordered.get(&id).expect("only known requests are named"))
    }

    fn intern(&self, request: Request) -> RequestId {
        let id = shorten(&request.digest());
        let mut ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        ordered.entry(id).or_insert_with(|| {
            let operation = borsh::from_slice(&request.operation).expect("clients encode operations");
            Arc::new(Ordered {
                request: Arc::new(request),
                operation,
            })
        });
        id
    }

    /// What can be ordered next; computed once for each order and each set of words.
    fn orderable(&self, state: &State, sight: &Sight<'_>) -> Arc<Vec<Action>> {
        let words: Vec<_> = sight.words.iter().map(|given| given.word.signature).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(state.order.as_flattened());
        hasher.update(b"words");
        hasher.update(words.as_flattened());
        let key = shorten(hasher.finalize().as_bytes());
        if let Some(known) = self.orderable.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(known);
        }
        let mut requests = sight.orderable();
        requests.sort_by_key(Request::digest);
        requests.dedup_by_key(|request| request.digest());
        let actions = requests.into_iter().map(|request| {
            let (client, number) = (request.client, request.number);
            Action::Order(self.intern(request), client, number)
        });
        let actions = Arc::new(actions.collect());
        let mut known = self.orderable.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, Arc::clone(&actions));
        actions
    }

    /// The state of a voter that is fed this.
    fn compute(&self, machine: MachineId, stimuli: Vec<Stimulus>) -> VoterId {
        let mut voter = Voter::new(&self.world, machine, self.scenario.fault);
        for stimulus in &stimuli {
            voter.take(stimulus);
        }
        let id = shorten(blake3::hash(voter.describe().as_bytes()).as_bytes());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .entry(id)
            .or_insert_with(|| Arc::new(Known::of(&voter, machine, stimuli, &self.messages)));
        id
    }

    fn after(&self, id: VoterId, stimulus: Stimulus) -> VoterId {
        let edge = (id, name(&stimulus));
        if let Some(next) = self.edges.lock().unwrap_or_else(PoisonError::into_inner).get(&edge) {
            return *next;
        }
        let before = self.known(id);
        let mut stimuli = before.stimuli.clone();
        stimuli.push(stimulus);
        let next = self.compute(before.machine, stimuli);
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        edges.insert(edge, next);
        next
    }

    fn all(&self, state: &State) -> Vec<Arc<Known>> {
        state.voters.iter().map(|id| self.known(*id)).collect()
    }

    fn ordered(&self, state: &State) -> Vec<Arc<Ordered>> {
        state.order.iter().map(|id| self.request(*id)).collect()
    }

    fn stimulus(&self, state: &State, known: &Known, action: Action) -> Option<Stimulus> {
        Some(match action {
            Action::Order(..) => return None,
            Action::Decide(_) => {
                let next = usize::try_from(known.fed).ok()?;
                Stimulus::Order(Arc::clone(&self.request(*state.order.get(next)?).request))
            }
            Action::Direct(_, number) => {
                let message = self.messages.get(usize::try_from(number).ok()?)?;
                Stimulus::Direct(number, Arc::clone(message))
            }
            Action::Step(_, began) => Stimulus::Step(began),
            Action::Run(_, order) => Stimulus::Run(order),
            Action::Expire(_, began) => Stimulus::Expire(began),
            Action::Candidate(_) => Stimulus::Candidate,
            Action::Crash(_, lost) => Stimulus::Crash(lost),
        })
    }

    fn voter_actions(&self, state: &State, voter: u8, known: &Known, sight: &Sight<'_>, actions: &mut Vec<Action>) {
        if known.is_down {
            return;
        }
        if known.fed < state.order.len() as u64 {
            actions.push(Action::Decide(voter));
        }
        actions.extend(known.own.iter().filter_map(|stimulus| match stimulus {
            Stimulus::Step(began) => Some(Action::Step(voter, *began)),
            Stimulus::Run(order) => Some(Action::Run(voter, *order)),
            _ => None,
        }));
        for (number, message) in (0..).zip(&self.messages) {
            let delivered = known.delivered.get(usize::try_from(number).unwrap_or(0));
            if delivered == Some(&false) && sight.has_begun(message.client) {
                actions.push(Action::Direct(voter, number));
            }
        }
        if state.expiries > 0 {
            actions.extend(known.waiting.iter().map(|began| Action::Expire(voter, *began)));
        }
        if state.floors > 0 && known.can_propose {
            actions.push(Action::Candidate(voter));
        }
        if state.restarts > 0 {
            actions.extend((0..=known.unflushed).map(|lost| Action::Crash(voter, lost)));
        }
    }

    fn sight<'sight>(&'sight self, order: &'sight [Arc<Ordered>], known: &[Arc<Known>]) -> Sight<'sight> {
        Sight {
            scenario: self.scenario,
            world: &self.world,
            order: order.iter().map(|ordered| ordered.request.as_ref()).collect(),
            words: known.iter().flat_map(|known| known.words.clone()).collect(),
        }
    }
}

impl Known {
    fn of(voter: &Voter<'_>, machine: MachineId, stimuli: Vec<Stimulus>, messages: &[Arc<Message>]) -> Self {
        let words = voter.said.iter();
        Self {
            stimuli,
            machine,
            fed: voter.fed(),
            own: voter.own(),
            waiting: voter.waiting(),
            delivered: messages
                .iter()
                .map(|message| voter.has(message.direct.number))
                .collect(),
            can_propose: voter.can_propose(),
            unflushed: voter.database.unflushed(),
            words: words.filter_map(|said| Given::of(said.client, &said.answer)).collect(),
            said: voter.said.clone(),
            commits: voter.database.commits().to_vec(),
            ever: voter.database.ever().clone(),
            changed_its_mind: voter.database.changed_its_mind,
            lock_states: voter.lock_states.clone(),
            forgot_locks: voter.forgot_locks,
            is_down: voter.is_down,
            stuck: voter.stuck(),
        }
    }

    /// Whether all orders have reached it, and nothing is left that it could do by itself.
    fn is_quiet(&self, state: &State) -> bool {
        self.fed == state.order.len() as u64 && self.own.is_empty() && self.waiting.is_empty()
    }

    fn has_answered(&self, request: &Request) -> bool {
        let key = Key::Ordered(request.number);
        let mut said = self.said.iter();
        said.any(|said| said.client == request.client && said.key == key)
    }
}

/// What an ordered operation lists.
fn listed(order: &[Arc<Ordered>], at: u64) -> Option<Vec<Bytes>> {
    let ordered = order.get(usize::try_from(at).ok()?.checked_sub(1)?)?;
    match &ordered.operation.work {
        Work::OneShot { exchange } | Work::Extend { exchange, .. } => Some(vec![exchange.clone()]),
        Work::Begin { exchanges, .. } => Some(exchanges.clone()),
        Work::Commit { writes, .. } => {
            let exchanges = writes.iter().map(|write| match write {
                TransactionWrite::Direct(exchange) => Some(vec![exchange.clone()]),
                TransactionWrite::Ordered(earlier) if *earlier < at => listed(order, *earlier),
                TransactionWrite::Ordered(_) => None,
            });
            let exchanges: Option<Vec<_>> = exchanges.collect();
            exchanges.map(|exchanges| exchanges.concat())
        }
        _ => None,
    }
}

fn is_prefix<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn name(stimulus: &Stimulus) -> [u8; 16] {
    let text = match stimulus {
        Stimulus::Order(request) => format!("order {:?}", request.digest()),
        Stimulus::Direct(number, _) => format!("direct {number}"),
        other => format!("{other:?}"),
    };
    shorten(blake3::hash(text.as_bytes()).as_bytes())
}

fn shorten(hash: &[u8; 32]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

impl Voters {
    /// Committed states are prefixes of each other on each table, and what a crash has lost is committed again alike.
    fn do_not_diverge(&self, state: &State) -> bool {
        let known = self.all(state);
        let pairs = known.iter().flat_map(|one| known.iter().map(move |other| (one, other)));
        let mut tables =
            pairs.flat_map(|(one, other)| one.ever.iter().map(move |(table, on)| (on, other.ever.get(table))));
        tables.all(|(one, other)| other.is_none_or(|other| is_prefix(one, other)))
            && known.iter().all(|known| !known.changed_its_mind)
    }

    /// No voter has committed an operation twice; and when a voter has nothing left to do, it has committed whatever a correct
    /// voter has said to be committed (one of any f+1 that say so is correct).
    fn lose_and_double_nothing(&self, state: &State) -> bool {
        let (known, order) = (self.all(state), self.ordered(state));
        let key = |order_of_it: u64| {
            let at = usize::try_from(order_of_it).unwrap_or(0).wrapping_sub(1);
            order
                .get(at)
                .map(|ordered| (ordered.request.client, ordered.request.number))
        };
        let said = known.iter().flat_map(|known| &known.said);
        let acknowledged: Vec<_> = said
            .filter(|said| said.answer == Answer::Committed)
            .map(|said| (said.client, said.key))
            .collect();
        known.iter().all(|known| {
            let mut committed: Vec<_> = known.commits.iter().filter_map(|commit| key(commit.order)).collect();
            let count = committed.len();
            committed.sort_unstable();
            committed.dedup();
            let has = |(client, key): &(_, Key)| match key {
                Key::Ordered(number) => committed.contains(&(*client, *number)),
                Key::Direct(_) => false,
            };
            committed.len() == count && (known.is_down || !known.is_quiet(state) || acknowledged.iter().all(has))
        })
    }

    /// What is committed is what was listed at its order, and what is not short has the equal words of f+1 voters.
    fn commit_what_is_listed_and_certified(&self, state: &State) -> bool {
        let (known, order) = (self.all(state), self.ordered(state));
        let liars = usize::from(self.scenario.lying_voter);
        let mut commits = known.iter().flat_map(|known| &known.commits);
        commits.all(|commit| {
            let ran: Vec<Bytes> = commit.list.iter().map(|ran| ran.exchange.clone()).collect();
            if listed(&order, commit.order).as_ref() != Some(&ran) {
                return false;
            }
            if ran.iter().all(is_short) {
                return true;
            }
            let at = usize::try_from(commit.order).unwrap_or(0) - 1;
            let list = chain_over(ran.iter().map(Bytes::as_ref));
            let answers = chain_over(commit.list.iter().map(|ran| ran.answer.as_slice()));
            let vouches = |known: &&Arc<Known>| {
                let mut words = known.words.iter();
                words.any(|given| {
                    given.client == order[at].request.client && given.list == list && given.word.answers == answers
                })
            };
            known.iter().filter(vouches).count() + liars > FAULTS
        })
    }

    /// The lock state after an order is the same on all correct voters, and in all their lives.
    fn lock_alike(&self, state: &State) -> bool {
        let known = self.all(state);
        let mut at: BTreeMap<u64, Digest> = BTreeMap::new();
        let mut states = known.iter().flat_map(|known| &known.lock_states);
        states.all(|(order, digest)| at.entry(*order).or_insert(*digest) == digest)
            && known.iter().all(|known| !known.forgot_locks)
    }

    /// A voter that has nothing left to do has finished each order, but for what waits for an open transaction; and has answered
    /// whatever commits.
    fn are_not_stuck(&self, state: &State) -> bool {
        let (known, order) = (self.all(state), self.ordered(state));
        let commits = |ordered: &&Arc<Ordered>| matches!(ordered.operation.work, Work::Commit { .. });
        known.iter().all(|known| {
            let quiet = known.is_quiet(state);
            let answered = || {
                order
                    .iter()
                    .filter(commits)
                    .all(|ordered| known.has_answered(&ordered.request))
            };
            !known.is_down && (!quiet || (known.stuck.is_empty() && answered()))
        })
    }

    /// The transactions of all clients are committed everywhere.
    fn have_committed(&self, state: &State) -> bool {
        self.has_committed_everywhere(state, &clients(self.scenario))
    }

    fn has_committed_everywhere(&self, state: &State, clients: &[ClientId]) -> bool {
        let (known, order) = (self.all(state), self.ordered(state));
        let is_of = |commit: &Committed, client| {
            let at = usize::try_from(commit.order).unwrap_or(0).wrapping_sub(1);
            order.get(at).is_some_and(|ordered| ordered.request.client == client)
        };
        let committed = |known: &Known, client| known.commits.iter().any(|commit| is_of(commit, client));
        known
            .iter()
            .all(|known| clients.iter().all(|client| committed(known, *client)))
    }
}

impl Model for Voters {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (known, order) = (self.all(state), self.ordered(state));
        let sight = self.sight(&order, &known);
        for (voter, known) in (0..).zip(&known) {
            self.voter_actions(state, voter, known, &sight, actions);
        }
        actions.extend(self.orderable(state, &sight).iter().copied());
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let voter = match action {
            Action::Order(request, ..) => {
                next.order.push(request);
                return Some(next);
            }
            Action::Crash(voter, _) => {
                next.restarts -= 1;
                voter
            }
            Action::Candidate(voter) => {
                next.floors -= 1;
                voter
            }
            Action::Expire(voter, _) => {
                next.expiries -= 1;
                voter
            }
            Action::Decide(voter) | Action::Direct(voter, _) | Action::Step(voter, _) | Action::Run(voter, _) => voter,
        };
        let id = next.voters.get_mut(usize::from(voter))?;
        let stimulus = self.stimulus(state, &self.known(*id), action)?;
        *id = self.after(*id, stimulus);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no divergence", Self::do_not_diverge),
            Property::always("nothing is lost or doubled", Self::lose_and_double_nothing),
            Property::always(
                "what commits is the certified list",
                Self::commit_what_is_listed_and_certified,
            ),
            Property::always("lock states are equal", Self::lock_alike),
            Property::always("nothing is stuck", Self::are_not_stuck),
        ];
        let committed = match self.scenario.lies {
            Lies::Absent | Lies::Commits | Lies::Lists => Self::have_committed as fn(&Self, &State) -> bool,
            Lies::Endless | Lies::NeverEnds => {
                |model: &Self, state: &State| model.has_committed_everywhere(state, &[HONEST])
            }
        };
        properties.push(Property::sometimes("what can commit does", committed));
        properties.retain(|property| self.only.is_none_or(|only| property.name == only));
        properties
    }
}
