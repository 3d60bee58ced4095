//! Model checking of a small configuration (f = 1, one and two groups, two views under PBFT) with `stateright`: every
//! order in which messages can arrive, every loss, and timers that fire at any moment, on the production state
//! machines themselves. There is no second description of the protocol that could differ from the code.
//!
//! A machine cannot be copied, but it is a function of what it was fed. So a state of the model names for each machine
//! its *history*, the chain of its inputs; the outputs of each history are computed once, by feeding a new machine. A
//! step includes what the trusted counter and the log answer: they answer at once, and nothing crashes (the simulator
//! does that).
//!
//! | file | what |
//! |---|---|
//! | `lib.rs` | states, actions, properties |
//! | `histories.rs` | machines as functions of their inputs |
//! | `scenarios.rs` | the configurations, and what their adversaries may send |
//! | `voters.rs` | the second family: voters on abstract databases |

mod histories;
mod scenarios;
pub mod voters;

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use ordering::identifiers::Order;
use simulator::protocol::Protocol;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property, UniformChooser};

use histories::{Decided, Histories, HistoryId, MessageId, Stimulus};
pub use scenarios::Scenario;

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InFlight {
    to: u8,
    message: MessageId,
}

/// A state of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// By machine; none: the machine is the adversary's.
    histories: Vec<Option<HistoryId>>,
    /// Ascending. A message that is lost stays for ever.
    network: Vec<InFlight>,
    /// Times that the timers of each machine may still fire.
    timeouts: Vec<u8>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A message arrives.
    Deliver(InFlight),
    /// A machine waits in vain, long enough for every timer of its.
    Timeout(u8),
}

/// A configuration whose states are explored.
pub struct Cluster<P: Protocol> {
    histories: Histories<P>,
    begin: State,
    /// Decisions without which the exploration would show nothing.
    decided_expected: u64,
}

impl<P: Protocol> Cluster<P> {
    /// What all correct machines have decided.
    fn decisions(&self, state: &State) -> Vec<Decided> {
        let histories = state.histories.iter().flatten();
        histories
            .flat_map(|history| self.histories.get(*history).decided.clone())
            .collect()
    }

    fn feed(&self, state: &State, machine: u8, stimulus: Stimulus) -> Option<State> {
        let mut next = state.clone();
        let history = next.histories.get_mut(usize::from(machine))?.as_mut()?;
        *history = self.histories.after(*history, stimulus);
        for (to, message) in &self.histories.get(*history).sent {
            let in_flight = InFlight {
                to: *to,
                message: *message,
            };
            let is_heard = next.histories.get(usize::from(*to)).is_some_and(Option::is_some);
            if let (Err(place), true) = (next.network.binary_search(&in_flight), is_heard) {
                next.network.insert(place, in_flight);
            }
        }
        Some(next)
    }
}

impl<P: Protocol> Model for Cluster<P>
where
    Histories<P>: Sync + Send,
{
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.network.iter().copied().map(Action::Deliver));
        let waiting = (0..).zip(&state.timeouts).filter(|(_, left)| **left > 0);
        actions.extend(waiting.map(|(machine, _)| Action::Timeout(machine)));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Deliver(in_flight) => {
                let mut next = self.feed(state, in_flight.to, Stimulus::Message(in_flight.message))?;
                next.network.retain(|other| *other != in_flight);
                Some(next)
            }
            Action::Timeout(machine) => {
                let mut next = self.feed(state, machine, Stimulus::Timeout)?;
                *next.timeouts.get_mut(usize::from(machine))? -= 1;
                Some(next)
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("agreement", |model: &Self, state: &State| {
                let mut decisions = model.decisions(state);
                decisions.sort_unstable();
                decisions.dedup();
                decisions.windows(2).all(|pair| pair[0].order != pair[1].order)
            }),
            Property::always("order without gaps", |model: &Self, state: &State| {
                let histories = state.histories.iter().flatten();
                histories
                    .map(|history| model.histories.get(*history))
                    .all(|history| history.decided_through <= Order(history.decided.len() as u64))
            }),
            Property::sometimes("everything is decided everywhere", |model: &Self, state: &State| {
                let mut histories = state.histories.iter().flatten();
                histories.all(|history| model.histories.get(*history).decided.len() as u64 >= model.decided_expected)
            }),
        ]
    }
}

/// What an exploration found.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Distinct states; for random walks, steps.
    pub states: usize,
    /// The longest path.
    pub depth: usize,
    /// Nothing was left to explore.
    pub is_complete: bool,
    /// Whether a state was reached without which the exploration would show nothing: where everything is decided, or committed,
    /// everywhere.
    pub is_decided: bool,
    /// The property that does not hold, with the actions that lead there.
    pub violation: Option<String>,
}

/// Explores depth first for at most this long.
pub fn explore<M>(model: M, time: Duration, threads: usize) -> Explored
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + Send + Sync + Debug + PartialEq,
    M::Action: Clone + Send + Sync + Debug + PartialEq,
{
    let (begun, expected) = (Instant::now(), expected(&model));
    // Depth first: decisions lie deep, and an exploration that time ends should have seen some.
    let checker = model
        .checker()
        .threads(threads)
        .timeout(time)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    explored(&checker, &expected, begun.elapsed() < time)
}

/// Walks at random for this long, from the beginning to the end and again: for what is too large to be explored.
pub fn walk<M>(model: M, time: Duration, threads: usize) -> Explored
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + Send + Sync + Debug + PartialEq,
    M::Action: Clone + Send + Sync + Debug + PartialEq,
{
    let expected = expected(&model);
    let checker = model
        .checker()
        .threads(threads)
        .timeout(time)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_simulation(1, UniformChooser)
        .join();
    explored(&checker, &expected, false)
}

/// The properties that some state must have.
fn expected<M: Model>(model: &M) -> Vec<&'static str> {
    let properties = model.properties().into_iter();
    let expected = properties.filter(|property| property.expectation == Expectation::Sometimes);
    expected.map(|property| property.name).collect()
}

fn explored<M>(checker: &impl Checker<M>, expected: &[&'static str], is_in_time: bool) -> Explored
where
    M: Model,
    M::State: Hash + Clone + Debug + PartialEq,
    M::Action: Clone + Debug + PartialEq,
{
    let discoveries = checker.discoveries();
    let violated = discoveries.iter().find(|(name, _)| !expected.contains(name));
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        is_complete: is_in_time && violated.is_none(),
        is_decided: expected.iter().all(|name| discoveries.contains_key(name)),
        violation: violated.map(|(name, path)| format!("{name}: {:?}", path.clone().into_actions())),
    }
}
