//! What is explored, and what is broken on purpose.

use super::world::Table;

/// A rule that is left out of all correct voters of the model, so that it can be seen that the properties need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Granted work does not wait for what it conflicts with in the database.
    IgnoresDependencies,
    /// A restarted voter does not look which positions its database has.
    ForgetsPositions,
    /// A floor is written though not everything up to it is over.
    FloorTooEarly,
    /// One word is enough.
    OneWordCertifies,
    /// A Commit commits what has run, whatever it lists.
    CommitsWhatRan,
    /// A restarted voter does not restore the locks of its floor.
    ForgetsLocks,
    /// A voter in which a statement waits too long ends the transaction by itself.
    LocalTimeout,
    /// A Begin that is granted by the order that abandons it is never over.
    BeginsNeverEnd,
    /// A Commit lets the statement that runs come to its end if it carries words, whatever these are.
    WordsUnchecked,
}

/// What the client that lies does with its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// The client has no transaction.
    Absent,
    /// The client begins a transaction, runs what it says, and commits that list.
    Commits,
    /// The client tells voters different statements, and commits either, or what nobody ran, with words of anybody.
    Lists,
    /// The client runs a statement that never ends, and commits it with made-up words.
    Endless,
    /// The client begins a transaction, extends it to the other client's table, and never ends it.
    NeverEnds,
}

/// A small configuration of three voters, f = 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Whether one of the voters is the adversary's: its words are whatever the clients like.
    pub lying_voter: bool,
    /// Whether there is an honest client.
    pub honest: bool,
    /// Whether the honest client's second statement is an Extend to the other table.
    pub extends: bool,
    /// What the lying client does.
    pub lies: Lies,
    /// The table on which its transaction begins; the honest one's begins on the first.
    pub table: Table,
    /// Whether there is a one-shot on the first table, whose request is ordered twice.
    pub one_shot: bool,
    /// How many nodes order that all transactions are abandoned; the first of them is the adversary's.
    pub abandons: u8,
    /// How often a voter crashes with its server, which loses any part of what is not flushed.
    pub restarts: u8,
    /// How often a candidate for a floor is taken.
    pub floors: u8,
    /// How often statements wait in vain.
    pub expiries: u8,
    /// What is broken.
    pub fault: Option<Fault>,
}

impl Default for Scenario {
    /// One transaction of the honest client, and a voter that lies.
    fn default() -> Self {
        Self {
            lying_voter: true,
            honest: true,
            extends: false,
            lies: Lies::Absent,
            table: Table::First,
            one_shot: false,
            abandons: 0,
            restarts: 0,
            floors: 0,
            expiries: 0,
            fault: None,
        }
    }
}

impl Scenario {
    /// All that are explored, with their names; the first ones can be explored completely.
    pub fn all() -> Vec<(&'static str, Scenario)> {
        let base = Scenario::default();
        let lists = Scenario {
            lies: Lies::Lists,
            abandons: 2,
            ..base
        };
        let alone = Scenario {
            honest: false,
            abandons: 0,
            ..lists
        };
        vec![
            ("one transaction", base),
            (
                "one transaction, one restart",
                Scenario {
                    restarts: 1,
                    floors: 1,
                    ..base
                },
            ),
            (
                "a one-shot behind a transaction, one restart",
                Scenario {
                    one_shot: true,
                    restarts: 1,
                    floors: 1,
                    ..base
                },
            ),
            ("a liar alone", alone),
            ("a liar alone, abandoned", Scenario { abandons: 2, ..alone }),
            (
                "a liar alone, one restart",
                Scenario {
                    restarts: 1,
                    floors: 1,
                    ..alone
                },
            ),
            ("lies about lists on one table", lists),
            (
                "lies about lists on two tables",
                Scenario {
                    table: Table::Second,
                    ..lists
                },
            ),
            (
                "a statement without end",
                Scenario {
                    lies: Lies::Endless,
                    abandons: 2,
                    ..base
                },
            ),
            (
                "extends that wait for each other",
                Scenario {
                    lies: Lies::NeverEnds,
                    table: Table::Second,
                    extends: true,
                    abandons: 2,
                    expiries: 1,
                    ..base
                },
            ),
            (
                "two transactions on one table, one restart",
                Scenario {
                    lies: Lies::Commits,
                    restarts: 1,
                    floors: 1,
                    ..base
                },
            ),
            (
                "everything",
                Scenario {
                    table: Table::Second,
                    one_shot: true,
                    restarts: 1,
                    floors: 1,
                    expiries: 1,
                    ..lists
                },
            ),
            (
                "everything on one table",
                Scenario {
                    one_shot: true,
                    restarts: 1,
                    floors: 1,
                    expiries: 1,
                    ..lists
                },
            ),
            (
                "everything, three correct voters",
                Scenario {
                    lying_voter: false,
                    restarts: 1,
                    floors: 1,
                    expiries: 1,
                    ..lists
                },
            ),
        ]
    }
}
