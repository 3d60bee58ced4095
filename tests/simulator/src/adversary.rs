//! What Byzantine machines do. *Twins* are two instances of one machine's production code with the same keys, each
//! connected to a part of the others. The others are one instance whose messages an adversary suppresses, repeats
//! or replaces, with the machine's own key and counter.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use ordering::identifiers::{Digest, GroupId, MachineId};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::counter::Counter;
use crate::protocol::Protocol;

macro_rules! behaviours {
    ($($(#[$meta:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// One thing that an adversary does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Behaviour { $($(#[$meta])* $name),* }

        impl Behaviour {
            /// All of them.
            pub const ALL: &'static [Behaviour] = &[$(Behaviour::$name),*];

            /// As it is printed and written on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Behaviour::$name => $text),* }
            }

            /// The behaviour of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Behaviour::$name),)* _ => None }
            }
        }
    };
}

behaviours! {
    /// Two instances with the same keys. They share one counter, unless it is broken: then each has its own.
    Twins = "twins",
    /// Says nothing.
    Silent = "silent",
    /// Says some kinds of messages to some machines only.
    Selective = "selective",
    /// Sends messages again, its own and those of others, to anybody, at any time.
    Replaying = "replaying",
    /// Alters messages and keeps their signatures.
    Forging = "forging",
    /// Sends many copies, and many altered ones.
    Flooding = "flooding",
    /// Restarts with an old state of its log.
    Amnesiac = "amnesiac",
    /// Sends any message at all, rightly signed.
    Arbitrary = "arbitrary",
    /// Tells voters other decisions than were made.
    LyingToVoters = "lying-to-voters",
    /// As primary: different batches for different machines.
    Equivocating = "equivocating",
    /// As primary: orders a request twice, in two groups where there are two.
    DoubleOrdering = "double-ordering",
    /// As primary: orders requests for groups that are not in charge, or for no group.
    WrongGroups = "wrong-groups",
    /// As primary: leaves out orders, goes back, stamps impossible times, orders what nobody has.
    BreakingOrder = "breaking-order",
    /// As replica: confirms what it has not got, something else, or nothing.
    WrongCommits = "wrong-commits",
    /// Signs checkpoints of histories that never were.
    LyingCheckpoints = "lying-checkpoints",
    /// Lies about its log when the cluster starts: leaves things out, sends different evidence to different machines.
    LyingStarts = "lying-starts",
    /// Lies about its log in a view change, and wants views that nobody needs.
    LyingViewChanges = "lying-view-changes",
    /// Proposes a view that does not follow from the evidence, or different ones to different machines.
    LyingNewViews = "lying-new-views",
    /// Endorses one outcome of a view and means another, or acknowledges what it has not checked.
    LyingEndorsements = "lying-endorsements",
    /// Lies about its counter's epoch and values, and wants to be admitted again without need.
    LyingAdmissions = "lying-admissions",
    /// Commits in a view after it has left it.
    CommittingLate = "committing-late",
    /// As replica: leaves one COMMIT out and sends hundreds of later ones, which nobody can follow.
    RunningAhead = "running-ahead",
    /// As replica: commits with a counter that it has restarted, and spends nothing of the one that is admitted.
    RestartingCounters = "restarting-counters",
    /// As primary: collects certificates that nobody else has, and shows them when something else has been decided.
    /// PBFT only: under MinBFT no number can have two certificates.
    Hoarding = "hoarding",
}

impl Behaviour {
    /// What lies in a view change, in a start, and about what they begin with.
    pub const OF_CHANGES: &'static [Behaviour] = &[
        Behaviour::LyingViewChanges,
        Behaviour::LyingNewViews,
        Behaviour::LyingEndorsements,
        Behaviour::LyingAdmissions,
        Behaviour::LyingStarts,
        Behaviour::LyingCheckpoints,
        Behaviour::CommittingLate,
        Behaviour::RestartingCounters,
    ];

    /// What only PBFT's adversaries do: the last ones of all.
    pub const OF_PBFT: &'static [Behaviour] = &[Behaviour::Hoarding];

    /// All but twins, and what only PBFT's adversaries do.
    fn of_all_protocols() -> &'static [Behaviour] {
        let end = Behaviour::ALL.len() - Behaviour::OF_PBFT.len();
        &Behaviour::ALL[1..end]
    }

    /// Draws one to four that go together, under any protocol.
    pub fn draw(rng: &mut impl Rng) -> Vec<Behaviour> {
        if rng.random_bool(0.25) {
            return vec![Behaviour::Twins];
        }
        // Few of all occasions to lie are in a view change, and it takes the most to bear what is said there.
        let (choices, count) = if rng.random_bool(0.5) {
            (Behaviour::OF_CHANGES, rng.random_range(2..=4))
        } else {
            (Behaviour::of_all_protocols(), rng.random_range(1..=3))
        };
        let mut drawn: Vec<Behaviour> = (0..count)
            .map(|_| choices[rng.random_range(0..choices.len())])
            .collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    /// Whether the adversary certifies messages itself, late, instead of letting the production code do so.
    pub fn certifies_late(self) -> bool {
        matches!(
            self,
            Behaviour::Equivocating
                | Behaviour::DoubleOrdering
                | Behaviour::WrongGroups
                | Behaviour::BreakingOrder
                | Behaviour::WrongCommits
                | Behaviour::LyingViewChanges
                | Behaviour::LyingEndorsements
                | Behaviour::RestartingCounters
        )
    }
}

/// A request that an adversary has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its digest.
    pub digest: Digest,
    /// The group in charge.
    pub group: GroupId,
}

/// Messages, each for the machines whose bit is set.
pub type Addressed<M> = Vec<(u64, M)>;

/// What an adversary remembers of one machine's conversation.
pub struct Script<P: Protocol> {
    /// What it does.
    pub behaviours: Vec<Behaviour>,
    /// How often, in percent of the occasions.
    pub percent: u32,
    /// What was certified at (slot, value): sent again alike when the production code repeats itself.
    pub certified: BTreeMap<(u32, u64), Addressed<P::Message>>,
    /// Values that were promised to the production code, by slot.
    pub promised: BTreeMap<u32, u64>,
    /// Messages to replay.
    pub heard: Vec<P::Message>,
    /// Selective: whether a kind is withheld from a machine.
    pub withheld: BTreeMap<(MachineId, &'static str), bool>,
    /// What the adapter wants to keep from one message to the next.
    pub memory: P::Memory,
}

/// Messages that are remembered for replays.
pub const HEARD_MAX: usize = 200;

impl<P: Protocol> Script<P> {
    /// A script.
    pub fn new(behaviours: &[Behaviour], rng: &mut impl Rng) -> Self {
        let is_seldom = behaviours
            .iter()
            .any(|behaviour| Behaviour::OF_CHANGES.contains(behaviour));
        let percents = if is_seldom { [20, 60, 100] } else { [5, 30, 100] };
        Script {
            behaviours: behaviours.to_vec(),
            percent: percents[rng.random_range(0..3)],
            certified: BTreeMap::new(),
            promised: BTreeMap::new(),
            heard: Vec::new(),
            withheld: BTreeMap::new(),
            memory: P::Memory::default(),
        }
    }

    /// Whether it does this.
    pub fn has(&self, behaviour: Behaviour) -> bool {
        self.behaviours.contains(&behaviour)
    }

    /// Whether it does this now.
    pub fn does(&self, behaviour: Behaviour, rng: &mut impl Rng) -> bool {
        self.has(behaviour) && rng.random_ratio(self.percent, 100)
    }

    /// Whether it certifies messages itself.
    pub fn certifies_late(&self) -> bool {
        self.behaviours.iter().any(|behaviour| behaviour.certifies_late())
    }

    /// Remembers a message, for a replay and for the adapter.
    pub fn hear(&mut self, message: &P::Message, rng: &mut impl Rng) {
        P::remember(&mut self.memory, message);
        if self.heard.len() < HEARD_MAX {
            self.heard.push(message.clone());
        } else {
            self.heard[rng.random_range(0..HEARD_MAX)] = message.clone();
        }
    }

    /// Whether the production code is kept from hearing this kind: what it has decided itself, it would not give up.
    pub fn ignores(&self, kind: &str) -> bool {
        self.has(Behaviour::RestartingCounters) && kind == "COMMIT"
    }

    /// Selective: whether this kind is withheld from that machine, for the whole run.
    pub fn withholds(&mut self, to: MachineId, kind: &'static str, rng: &mut impl Rng) -> bool {
        *self.withheld.entry((to, kind)).or_insert_with(|| rng.random_bool(0.4))
    }
}

/// What the adversary's machines tell each other.
#[derive(Clone, Debug, Default)]
pub struct Conspiracy {
    /// Different batches for one (view, place): the digest, and the machines that got it.
    pub batches: BTreeMap<(u64, u64), Vec<(u64, Digest)>>,
    /// Numbers for which one of them keeps a certificate to itself, with its view.
    pub hoarded: BTreeMap<u64, u64>,
    /// Those of them for which something has been prepared in a later view.
    pub superseded: BTreeSet<u64>,
}

/// What an adversary has.
pub struct Tools<'a> {
    /// The machine.
    pub machine: MachineId,
    /// f.
    pub faults: u8,
    /// How many groups there are.
    pub groups: u16,
    /// Whether the number of groups in charge is changed in this run.
    pub changes_groups: bool,
    /// How many machines there are.
    pub machines: u8,
    /// The machine's ordinary key.
    pub key: &'a SigningKey,
    /// The machine's counter.
    pub counter: &'a mut Counter,
    /// Requests that clients have sent to this machine.
    pub seen: &'a [Seen],
    /// What all machines of the adversary know.
    pub conspiracy: &'a mut Conspiracy,
    /// The lies that are told at this occasion, by name.
    pub told: &'a mut Vec<&'static str>,
    /// Chance.
    pub rng: &'a mut ChaCha8Rng,
}

impl Tools<'_> {
    /// A wrong group for an entry. Where groups are changed, now and then that the entry changes their number.
    pub fn wrong_group(&mut self) -> GroupId {
        // The last one is no group at all: verification refuses the whole batch.
        let group = self.rng.random_range(0..=self.groups);
        if group == self.groups && self.changes_groups {
            return GroupId::change(self.rng.random_range(0..=self.groups));
        }
        GroupId(group)
    }

    /// Notes that a lie is told; [`crate::lies`] counts it.
    pub fn tell(&mut self, lie: &'static str) {
        self.told.push(lie);
    }

    /// Some of the machines, as bits.
    pub fn some(&mut self) -> u64 {
        self.rng.random()
    }

    /// A request that was seen.
    pub fn request(&mut self) -> Option<Seen> {
        if self.seen.is_empty() {
            return None;
        }
        Some(self.seen[self.rng.random_range(0..self.seen.len())])
    }

    /// A digest that nothing has.
    pub fn noise(&mut self) -> Digest {
        let mut digest = [0; 32];
        self.rng.fill_bytes(&mut digest);
        digest
    }
}
