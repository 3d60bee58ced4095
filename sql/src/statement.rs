//! What a statement is: the vocabulary of [`crate::analysis`].

use std::collections::BTreeSet;

use crate::names::Renaming;
use crate::operation::Isolation;
use crate::refusal::Refusal;

/// What kind of statement it is, as far as the proxy and the voters treat kinds differently.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StatementClass {
    /// Nothing but comments and white space.
    Empty,
    /// Reads only.
    Read,
    /// Reads and locks rows (`FOR UPDATE` ...): changes no data; its footprint is exclusive.
    LockingRead,
    /// Changes data, or may do so.
    Write,
    /// Changes the catalog (its footprint is `Everything` exclusive): caches of the catalog end here.
    Ddl,
    /// Begins, ends or divides a transaction.
    TransactionControl(TransactionControl),
    /// Reads or changes a setting of the session.
    Setting(Setting),
    /// `PREPARE name AS ...`.
    Prepare {
        /// The prepared statement's name, folded.
        name: String,
        /// The text after AS.
        body: String,
    },
    /// `EXECUTE name (...)`.
    Execute {
        /// The prepared statement's name, folded.
        name: String,
    },
    /// `DEALLOCATE name`, or `None` for ALL.
    Deallocate(Option<String>),
    /// A cursor statement; DECLARE's footprint is its query's.
    Cursor(Cursor),
    /// `COPY ... FROM STDIN`: a write.
    CopyFrom,
    /// `COPY ... TO STDOUT`: a read.
    CopyTo,
    /// VACUUM, ANALYZE, REINDEX, CLUSTER, CHECKPOINT: no data changes; runs outside a transaction block
    /// when `outside_transaction`.
    Maintenance {
        /// Whether Postgres refuses it inside a transaction block.
        outside_transaction: bool,
    },
    /// LISTEN or UNLISTEN: concerns the session only.
    Listening(Listening),
    /// `SELECT pg_advisory_lock(...), ...`: calls of functions of advisory locks, and nothing else.
    Advisory(Vec<AdvisoryColumn>),
    /// NOTIFY: changes no data, and has an effect when it commits.
    Notify,
    /// Refused before it runs.
    Refused(Refusal),
}

/// One column of a SELECT that consists of calls of functions of advisory locks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdvisoryColumn {
    /// Its name in the result.
    pub name: String,
    /// The function.
    pub call: AdvisoryCall,
    /// Its arguments: none, a bigint, or two ints.
    pub key: Vec<AdvisoryArgument>,
    /// Whether the result is cast to text.
    pub as_text: bool,
}

/// A function of advisory locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdvisoryCall {
    /// `pg_[try_]advisory_[xact_]lock[_shared]`.
    Lock {
        /// `try`.
        tries: bool,
        /// `xact`.
        of_transaction: bool,
        /// `shared`.
        shared: bool,
    },
    /// `pg_advisory_unlock[_shared]`.
    Unlock {
        /// `shared`.
        shared: bool,
    },
    /// `pg_advisory_unlock_all`.
    UnlockAll,
}

impl AdvisoryCall {
    /// Whether it returns a Boolean rather than void.
    #[must_use]
    pub fn is_boolean(self) -> bool {
        match self {
            AdvisoryCall::Lock { tries, .. } => tries,
            AdvisoryCall::Unlock { .. } => true,
            AdvisoryCall::UnlockAll => false,
        }
    }
}

/// A part of the key of an advisory lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AdvisoryArgument {
    /// A number.
    Number(i64),
    /// NULL.
    Null,
    /// `$n`, counted from 1; perhaps with the type that it is cast to, as its OID.
    Parameter(u16, Option<u32>),
}

/// To which channels a session listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listening {
    /// `LISTEN name`.
    Listen(String),
    /// `UNLISTEN name`, or `None` for `*`.
    Unlisten(Option<String>),
    /// `SELECT pg_listening_channels()` and nothing else.
    Show,
}

impl Listening {
    /// The channels after it.
    pub fn after(&self, mut channels: BTreeSet<String>) -> BTreeSet<String> {
        match self {
            Listening::Listen(channel) => {
                channels.insert(channel.clone());
            }
            Listening::Unlisten(Some(channel)) => {
                channels.remove(channel);
            }
            Listening::Unlisten(None) => channels.clear(),
            Listening::Show => {}
        }
        channels
    }
}

/// Statements that begin, end or divide a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TransactionControl {
    /// `BEGIN`, `START TRANSACTION`.
    Begin(TransactionModes),
    /// `COMMIT`, `END`.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `ROLLBACK`, `ABORT`.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// `RELEASE [SAVEPOINT] name`.
    Release(String),
    /// `ROLLBACK TO [SAVEPOINT] name`.
    RollbackTo(String),
    /// `SET TRANSACTION ...`: the present transaction.
    SetTransaction(TransactionModes),
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION ...`: later transactions of the session.
    SetSessionCharacteristics(TransactionModes),
}

/// Transaction modes; `None` where the statement leaves the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransactionModes {
    /// The isolation level.
    pub isolation: Option<Isolation>,
    /// READ ONLY (`true`) or READ WRITE (`false`).
    pub read_only: Option<bool>,
    /// DEFERRABLE (`true`) or NOT DEFERRABLE (`false`).
    pub deferrable: Option<bool>,
}

/// Statements about settings (GUCs). Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// `SET [SESSION | LOCAL] name {TO | =} value`; also SET TIME ZONE, NAMES, ROLE, SCHEMA, XML OPTION and
    /// SESSION AUTHORIZATION under the names `timezone`, `client_encoding`, `role`, `search_path`, `xmloption`
    /// and `session_authorization`.
    Set {
        /// SET LOCAL.
        local: bool,
        /// The setting's name.
        name: String,
        /// The value; `None` for DEFAULT.
        value: Option<String>,
    },
    /// `SELECT set_config('name', 'value', local)` as a whole statement: a [`Setting::Set`] that returns a row
    /// with one text column `set_config`.
    SetConfig {
        /// The third argument.
        local: bool,
        /// The setting's name.
        name: String,
        /// The value.
        value: String,
    },
    /// `SELECT set_config(...), current_setting(...), ...`: any other list of such calls, with at least one `set_config`.
    Configs(Vec<ConfigColumn>),
    /// `RESET name`.
    Reset(String),
    /// `RESET ALL`.
    ResetAll,
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DISCARD TEMP`: drops the session's temporary objects.
    DiscardTemporary,
    /// `DISCARD PLANS | SEQUENCES`: without effect through the proxy.
    DiscardOther,
    /// `SHOW name`.
    Show(String),
    /// `SHOW ALL`.
    ShowAll,
}

/// One column of a SELECT that consists of calls about settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigColumn {
    /// Its name in the result.
    pub name: String,
    /// The call.
    pub call: ConfigCall,
}

/// A call of a function about settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConfigCall {
    /// `set_config(name, value, local)`.
    Set {
        /// The setting's name, as written.
        name: ConfigArgument,
        /// The value; NULL is the default.
        value: ConfigArgument,
        /// Whether it ends with the transaction.
        local: ConfigArgument,
    },
    /// `current_setting(name, may_lack)`.
    Show {
        /// The setting's name, as written.
        name: ConfigArgument,
        /// Whether a setting that there is not is NULL rather than an error.
        may_lack: ConfigArgument,
    },
}

/// An argument of such a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConfigArgument {
    /// A literal; of a Boolean, `true` or `false`.
    Literal(String),
    /// NULL.
    Null,
    /// `$n`, counted from 1.
    Parameter(u16),
}

impl ConfigCall {
    /// Its arguments, each with whether it is a Boolean rather than a text.
    pub fn arguments(&self) -> Vec<(&ConfigArgument, bool)> {
        match self {
            ConfigCall::Set { name, value, local } => vec![(name, false), (value, false), (local, true)],
            ConfigCall::Show { name, may_lack } => vec![(name, false), (may_lack, true)],
        }
    }
}

/// Why a setting cannot be given this value, if so: it is pinned, or not for applications. The name is in lower case.
pub fn setting_refusal(name: &str, value: &str) -> Option<Refusal> {
    crate::classify::setting::pinned_refusal(name, Some(value))
}

/// What a pinned setting is on every database node, as Postgres shows it.
pub fn pinned_value(name: &str) -> Option<&'static str> {
    crate::classify::setting::pinned_value(name)
}

/// Cursor statements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cursor {
    /// `DECLARE name CURSOR FOR ...`.
    Declare {
        /// The cursor's name, folded.
        name: String,
        /// WITH HOLD: it outlives its transaction, in the proxy (`docs/decisions/0055`). The database nodes run it without.
        holding: Option<Holding>,
    },
    /// `FETCH ... name`.
    Fetch {
        /// The cursor's name, folded.
        name: String,
        /// The rows that are taken; `None` if the words mean nothing to Postgres.
        direction: Option<Direction>,
    },
    /// `MOVE ... name`.
    Move {
        /// The cursor's name, folded.
        name: String,
        /// The rows that are taken; `None` if the words mean nothing to Postgres.
        direction: Option<Direction>,
    },
    /// `CLOSE name`, or `None` for ALL.
    Close(Option<String>),
}

/// A cursor WITH HOLD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holding {
    /// Whether it can go backward: everything can that is not declared NO SCROLL. (PostgreSQL decides by the plan where nothing is
    /// declared, and each server makes its own.)
    pub scrolls: bool,
    /// BINARY: its rows are given in binary format where no other is asked for.
    pub binary: bool,
}

/// The rows that FETCH or MOVE takes, as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// So many rows ahead, or `None` for all.
    Forward(Option<i64>),
    /// So many rows back, or `None` for all.
    Backward(Option<i64>),
    /// The row of this number, from 1, or from the end, from -1.
    Absolute(i64),
    /// The row so far ahead.
    Relative(i64),
}

/// What a whole exchange does: the strongest of its statements, in ascending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Nothing that reaches the data: empty statements, Parse and Describe alone.
    #[default]
    Nothing,
    /// Only the session or the transaction: settings, transaction control, cursors' FETCH and CLOSE.
    Session,
    /// Reads only.
    Read,
    /// Reads, and locks rows.
    LockingRead,
    /// Changes data, or may do so.
    Write,
    /// Changes the catalog.
    Ddl,
    /// Maintenance, without effect on data.
    Maintenance,
}

impl StatementClass {
    /// Whether names mean other things to later statements of the session or transaction.
    pub(crate) fn renames(&self) -> bool {
        let renames = |name: &str| ["search_path", "role", "session_authorization"].contains(&name);
        match self {
            StatementClass::Setting(
                Setting::Set { name, .. } | Setting::SetConfig { name, .. } | Setting::Reset(name),
            ) => renames(name),
            StatementClass::Setting(Setting::ResetAll | Setting::DiscardAll | Setting::Configs(_)) => true,
            _ => false,
        }
    }

    /// What the statement does to the search path, as far as that is known.
    pub(crate) fn renaming(&self) -> Renaming {
        match self {
            StatementClass::Setting(Setting::Set { name, value, .. }) if name == "search_path" => {
                Renaming::Path(value.clone())
            }
            StatementClass::Setting(Setting::SetConfig { name, value, .. }) if name == "search_path" => {
                Renaming::Path(Some(value.clone()))
            }
            StatementClass::Setting(Setting::Reset(name)) if name == "search_path" => Renaming::Path(None),
            StatementClass::TransactionControl(TransactionControl::RollbackTo(_)) => Renaming::Undo,
            class if class.renames() => Renaming::Unknown,
            _ => Renaming::Nothing,
        }
    }

    /// What a statement of this class does.
    pub fn effect(&self) -> Effect {
        match self {
            StatementClass::Empty | StatementClass::Refused(_) => Effect::Nothing,
            StatementClass::Read | StatementClass::CopyTo | StatementClass::Cursor(Cursor::Declare { .. }) => {
                Effect::Read
            }
            StatementClass::LockingRead => Effect::LockingRead,
            StatementClass::Write | StatementClass::CopyFrom | StatementClass::Notify => Effect::Write,
            StatementClass::Ddl | StatementClass::Setting(Setting::DiscardTemporary) => Effect::Ddl,
            StatementClass::Maintenance { .. } => Effect::Maintenance,
            StatementClass::TransactionControl(_)
            | StatementClass::Setting(_)
            | StatementClass::Listening(_)
            | StatementClass::Advisory(_)
            | StatementClass::Prepare { .. }
            | StatementClass::Execute { .. }
            | StatementClass::Deallocate(_)
            | StatementClass::Cursor(_) => Effect::Session,
        }
    }
}
