//! What a seed may bring up: each can be left out, or asked for alone, to see which faults it finds.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

macro_rules! topics {
    ($($(#[$meta:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// Something that a seed may bring up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Topic {
            $($(#[$meta])* $variant,)*
        }

        impl Topic {
            /// All of them.
            pub const ALL: &[Topic] = &[$(Topic::$variant,)*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Topic::$variant => $name,)*
                }
            }
        }
    };
}

topics! {
    /// Savepoints of honest clients.
    Savepoints = "savepoints",
    /// Cursors of honest clients.
    Cursors = "cursors",
    /// COPY.
    Copy = "copy",
    /// Changes of the catalog.
    Ddl = "ddl",
    /// A table with a trigger.
    Triggers = "triggers",
    /// serial columns and nextval.
    Sequences = "sequences",
    /// Constraints that fail at COMMIT.
    Deferred = "deferred",
    /// Statements that fail.
    Failing = "failing",
    /// REPEATABLE READ.
    Repeatable = "repeatable",
    /// READ ONLY.
    ReadOnly = "read-only",
    /// SERIALIZABLE.
    Serializable = "serializable",
    /// Clock and random values.
    Clock = "clock",
    /// Functions and DO blocks.
    Functions = "functions",
    /// Errors that look like those of a broken server.
    Poison = "poison",
    /// Temporary tables that are not called so.
    Temporary = "temporary",
    /// Sequences with a cache.
    Cached = "cached",
    /// currval without nextval.
    Currval = "currval",
    /// Ordered and unordered reads.
    Reads = "reads",
    /// Lie: savepoints, settings and cursors as reads.
    SessionReads = "session-reads",
    /// Lie: Execute of a portal that was bound before.
    Portals = "portals",
    /// Lie: listed reads of what is not held.
    Uncovered = "uncovered",
    /// Lie: settings inside of exchanges.
    Settings = "settings",
    /// Lie: different statements to different voters, lists that differ from what ran.
    Lists = "lists",
    /// Lie: functions that write, as reads.
    Volatile = "volatile",
    /// Lie: footprints that are too small.
    Small = "small",
    /// Lie: words that are wrong, stale, forged or of others.
    Words = "words",
    /// Lie: transactions that are left open.
    Abandoned = "abandoned",
    /// A voter whose answers are altered.
    LyingVoter = "lying-voter",
    /// Voters that lag.
    Lag = "lag",
    /// Voters that are restarted.
    Restarts = "restarts",
    /// Servers that crash.
    Crashes = "crashes",
    /// All servers crash at once.
    PowerCuts = "power-cuts",
}

impl fmt::Display for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Topic {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Topic::ALL.iter().find(|topic| topic.name() == name);
        found.copied().ok_or_else(|| format!("no topic is called {name}"))
    }
}

/// The topics of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics(BTreeSet<Topic>);

impl Default for Topics {
    fn default() -> Self {
        Self(Topic::ALL.iter().copied().collect())
    }
}

impl Topics {
    /// These and no others.
    pub fn only(topics: impl IntoIterator<Item = Topic>) -> Self {
        Self(topics.into_iter().collect())
    }

    /// Leaves one out.
    pub fn remove(&mut self, topic: Topic) {
        self.0.remove(&topic);
    }

    /// Whether it may come up.
    pub fn has(&self, topic: Topic) -> bool {
        self.0.contains(&topic)
    }
}
