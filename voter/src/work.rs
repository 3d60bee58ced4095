//! Checks of operations and exchanges that all correct voters make alike (`docs/design.md#locks`). Pure.

use std::sync::Arc;

use bytes::Bytes;
use ordering::message::{BODY_BYTES_MAX, BODY_BYTES_MIN};
use sql::analysis::{Analyzer, ExchangeAnalysis};
use sql::footprint::{Footprint, Mode, Resource};
use sql::names::{Made, temporary_schema};
use sql::operation::{Exchange, SessionContext, Step};
use sql::refusal::Refusal;
use sql::statement::{Effect, Setting, StatementClass, TransactionControl};

use crate::config::VoterConfig;
use crate::lock_table::LockRefusal;
use crate::lock_table::advisory::LOCKS_OF_CLIENT_MAX;
use crate::outcome::Outcome;
use crate::postgres::backend::{Sequences, Temporary, TemporaryEnd};
use crate::postgres::settings;
use crate::transactions::OrderedTransaction;
use ordering::identifiers::ClientId;

/// Footprint too small (`docs/wire.md#sqlstates-of-our-own`).
pub const FOOTPRINT_TOO_SMALL: &str = "BF003";

/// Why a voter refuses something, alike on all correct voters: becomes [`Outcome::Refused`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// SQLSTATE.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// Rule or resource.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

impl Refused {
    /// A refusal without detail and hint.
    pub fn new(sqlstate: &str, message: impl Into<String>) -> Self {
        Self {
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: String::new(),
            hint: String::new(),
        }
    }

    fn malformed(what: &str) -> Self {
        Self::new("08P01", format!("malformed operation: {what}"))
    }

    /// 40001 of a transaction that reads a snapshot.
    pub fn written_since() -> Self {
        Self {
            detail: "The statement uses data that another transaction has changed since this one's snapshot.".into(),
            hint: "Retry the transaction.".into(),
            ..Self::new("40001", "could not serialize access due to concurrent update")
        }
    }

    /// 25P02 of what still waited for its locks when its transaction ended.
    pub fn ended_before() -> Self {
        Self::new("25P02", "the transaction ended before this could run")
    }

    /// BF003.
    pub fn too_small(needed: &Footprint, held: &Footprint) -> Self {
        Self {
            detail: format!("needs {needed}, has {held}"),
            hint: "The proxy derives the footprint again from the present catalog and retries.".into(),
            ..Self::new(
                FOOTPRINT_TOO_SMALL,
                "the operation needs more than its footprint declares",
            )
        }
    }
}

impl From<Refused> for Outcome {
    fn from(refused: Refused) -> Self {
        Outcome::Refused {
            sqlstate: refused.sqlstate,
            message: refused.message,
            detail: refused.detail,
            hint: refused.hint,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            sqlstate: refusal.sqlstate.into(),
            message: refusal.message,
            detail: refusal.detail,
            hint: refusal.hint.into_owned(),
        }
    }
}

impl From<LockRefusal> for Refused {
    fn from(refusal: LockRefusal) -> Self {
        match refusal {
            LockRefusal::NoTransaction => Self::new("25P01", "the transaction is not open"),
            LockRefusal::TransactionExists => Self::malformed("the transaction exists"),
            LockRefusal::Deadlock => Self {
                detail: "The statement would close a cycle of transactions that wait for each other.".into(),
                hint: "Retry the transaction.".into(),
                ..Self::new("40P01", "deadlock detected")
            },
            LockRefusal::TooMany => Self {
                hint: "Run the statement again when fewer sessions wait for each other's transactions.".into(),
                ..Self::new("53400", "too many operations wait for locks")
            },
            LockRefusal::TooManyAdvisory => Self {
                detail: format!("The sessions of one proxy may hold {LOCKS_OF_CLIENT_MAX} advisory locks."),
                ..Self::new("53200", "too many advisory locks")
            },
            LockRefusal::TooManyOpen(max) => Self {
                detail: format!("At most {max} may be open at once, over all applications."),
                hint: "Run the transaction again when others have ended (a pool of connections bounds how many there are), \
                       or raise open_transactions_max in the cluster file."
                    .into(),
                ..Self::new("53400", "too many transactions are open")
            },
        }
    }
}

/// Where an exchange stands: what it may contain depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A one-shot.
    OneShot,
    /// A read outside transactions.
    Read,
    /// Within an interactive transaction, and listed by its Commit: whatever it touches, it reads included, must be held.
    Listed,
    /// Within an interactive transaction, and not listed: it must be a read by itself.
    Unlisted,
}

/// Whether a client may use the role, the database and the settings that an operation names.
///
/// # Errors
/// When not.
pub fn check_context(config: &VoterConfig, client: ClientId, context: &SessionContext) -> Result<(), Refused> {
    let roles = config.client_roles.get(&client);
    if !roles.is_some_and(|roles| roles.contains(&context.role)) {
        return Err(Refused::new(
            "28000",
            format!("the client may not use the role \"{}\"", context.role),
        ));
    }
    if context.client != client.0 {
        return Err(Refused::malformed("the context of another client"));
    }
    if context.database != config.postgres.database {
        let message = format!("database \"{}\" is not served", context.database);
        return Err(Refused::new("3D000", message));
    }
    match settings::refused(&context.settings) {
        Some(name) => Err(Refused::new("55P02", format!("parameter \"{name}\" cannot be changed"))),
        None if context.settings.iter().any(|(_, value)| value.contains('\0')) => {
            Err(Refused::malformed("a setting with NUL"))
        }
        None => Ok(()),
    }
}

/// Decodes an exchange that is not a stored one, and makes sure that it can be encoded for the server.
///
/// # Errors
/// When it cannot.
pub fn decode(bytes: &[u8]) -> Result<Exchange, Refused> {
    match decode_listed(bytes)? {
        Exchange::Stored { .. } => Err(Refused::malformed("a stored exchange where none can be")),
        exchange => Ok(exchange),
    }
}

/// Decodes an exchange of a transaction's list, which may name a body of the store, and makes sure that it can be encoded
/// for the server.
///
/// # Errors
/// When it cannot.
pub fn decode_listed(bytes: &[u8]) -> Result<Exchange, Refused> {
    let exchange = Exchange::decode(bytes).map_err(|_| Refused::malformed("not an exchange"))?;
    let nul = match &exchange {
        Exchange::Stored { length, .. } => {
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length) {
                return Err(Refused::malformed("a body of a size that no machine keeps"));
            }
            false
        }
        Exchange::Simple { text } | Exchange::CopyStart { text } => text.contains('\0'),
        Exchange::Extended { statements, steps } => {
            let count = statements.len();
            if !steps
                .iter()
                .all(|step| indexed(step).is_none_or(|index| usize::from(index) < count))
            {
                return Err(Refused::malformed("a step names no statement"));
            }
            if !steps.iter().all(encodable) {
                return Err(Refused::malformed("too many parameters"));
            }
            statements.iter().any(|statement| statement.text.contains('\0'))
                || steps.iter().any(|step| portal(step).contains('\0'))
        }
        Exchange::ObjectNumbers { .. } => false,
        Exchange::CopyEnd { failure } => failure.as_ref().is_some_and(|reason| reason.contains('\0')),
        Exchange::CopyData { data } => {
            if data.len() > COPY_DATA_BYTES_MAX {
                return Err(Refused::malformed("too much COPY data in one piece"));
            }
            false
        }
    };
    if nul {
        Err(Refused::malformed("a text with NUL"))
    } else {
        Ok(exchange)
    }
}

/// The largest piece of COPY data.
pub const COPY_DATA_BYTES_MAX: usize = 1 << 20;

/// Postgres counts parameters and columns in 16 bits.
const COUNT_MAX: usize = 65_535;

fn encodable(step: &Step) -> bool {
    match step {
        Step::Bind {
            parameter_formats,
            parameters,
            result_formats,
            ..
        } => [parameter_formats.len(), parameters.len(), result_formats.len()]
            .iter()
            .all(|count| *count <= COUNT_MAX),
        _ => true,
    }
}

fn indexed(step: &Step) -> Option<u16> {
    match step {
        Step::Parse { statement } | Step::DescribeStatement { statement } | Step::Bind { statement, .. } => {
            Some(*statement)
        }
        Step::DescribePortal { .. } | Step::Execute { .. } | Step::ClosePortal { .. } => None,
    }
}

fn portal(step: &Step) -> &str {
    match step {
        Step::Bind { portal, .. }
        | Step::DescribePortal { portal }
        | Step::Execute { portal, .. }
        | Step::ClosePortal { portal } => portal,
        Step::Parse { .. } | Step::DescribeStatement { .. } => "",
    }
}

/// Derives an exchange's footprint against the catalog of its order and what its transaction has `made`, and checks that it may run
/// where it stands, holding what it holds.
///
/// # Errors
/// When not, alike on all correct voters.
pub fn check(
    analyzer: &Analyzer,
    exchange: &Exchange,
    context: &SessionContext,
    place: Place,
    held: &Footprint,
    made: &Made,
) -> Result<ExchangeAnalysis, Refused> {
    let analysis = analyzer.exchange_within(exchange, context, made)?;
    for (index, text) in analysis.texts.iter().enumerate() {
        let runs = runs(exchange, index);
        for statement in &text.statements {
            match &statement.class {
                // Parse and Describe of a statement do nothing; only what is bound has to fit the place.
                class if runs => check_class(class, exchange, place)?,
                StatementClass::Refused(refusal) => return Err(refusal.clone().into()),
                _ => {}
            }
        }
    }
    let copying = matches!(exchange, Exchange::CopyData { .. } | Exchange::CopyEnd { .. });
    if copying && place != Place::Listed {
        return Err(Refused::malformed("COPY data that no Commit lists"));
    }
    match place {
        Place::OneShot if analysis.effect == Effect::Maintenance && outside(&analysis) && !alone(&analysis) => {
            return Err(Refused::new("25001", "the statement cannot run together with others"));
        }
        Place::OneShot if analysis.effect == Effect::Maintenance => {}
        Place::OneShot if !analysis.short => {
            return Err(Refused {
                hint: "The proxy runs it in a transaction that voters certify.".into(),
                ..Refused::new(NOT_SHORT, "the statement cannot be ordered to run by itself")
            });
        }
        Place::Read | Place::Unlisted if analysis.effect > Effect::Read || !binds_what_it_runs(exchange) => {
            return Err(Refused::new("25006", "a read must not write"));
        }
        _ => {}
    }
    let needs_cover = matches!(place, Place::OneShot | Place::Listed);
    if needs_cover && !held.covers(&analysis.footprint) {
        return Err(Refused::too_small(&analysis.footprint, held));
    }
    Ok(analysis)
}

/// Checks the exchanges of a Begin or an Extend.
///
/// # Errors
/// The refusal, alike on all voters.
pub fn check_listed(
    analyzer: &Analyzer,
    exchanges: &[Bytes],
    transaction: &OrderedTransaction,
    held: &Footprint,
) -> Result<(), Refused> {
    if exchanges.is_empty() && !transaction.reads_snapshot() {
        return Err(Refused::new("08P01", "a Begin without an exchange"));
    }
    let mut made = Made::default();
    for bytes in exchanges {
        let exchange = decode_listed(bytes)?;
        if matches!(exchange, Exchange::Stored { .. }) {
            // Checked like every other when it runs, with its body at hand.
            continue;
        }
        let analysis = check(analyzer, &exchange, &transaction.context, Place::Listed, held, &made)?;
        made.add(&analysis.temporary);
    }
    Ok(())
}

/// A one-shot whose time, size or outcome its shape does not bound.
pub const NOT_SHORT: &str = "BF006";

/// Whether an exchange executes only portals that it bound itself.
fn binds_what_it_runs(exchange: &Exchange) -> bool {
    let Exchange::Extended { steps, .. } = exchange else {
        return true;
    };
    let mut bound = std::collections::BTreeSet::new();
    steps.iter().all(|step| match step {
        Step::Bind { portal, .. } => {
            bound.insert(portal.as_str());
            true
        }
        Step::Execute { portal, .. } | Step::DescribePortal { portal } | Step::ClosePortal { portal } => {
            bound.contains(portal.as_str())
        }
        Step::Parse { .. } | Step::DescribeStatement { .. } => true,
    })
}

/// Whether the statement with this index is bound, and so may run.
fn runs(exchange: &Exchange, index: usize) -> bool {
    match exchange {
        Exchange::Extended { steps, .. } => steps.iter().any(|step| match step {
            Step::Bind { statement, .. } => usize::from(*statement) == index,
            _ => false,
        }),
        _ => true,
    }
}

/// Whether Postgres refuses the exchange inside a transaction block.
pub fn outside(analysis: &ExchangeAnalysis) -> bool {
    let mut statements = analysis.texts.iter().flat_map(|text| &text.statements);
    statements.any(|statement| {
        matches!(
            statement.class,
            StatementClass::Maintenance {
                outside_transaction: true
            }
        )
    })
}

fn alone(analysis: &ExchangeAnalysis) -> bool {
    analysis.texts.iter().map(|text| text.statements.len()).sum::<usize>() == 1
}

/// Whether the exchange may leave settings of the backend changed.
pub fn changes_settings(analysis: &ExchangeAnalysis) -> bool {
    let mut statements = analysis.texts.iter().flat_map(|text| &text.statements);
    statements.any(|statement| matches!(statement.class, StatementClass::Setting(_)))
}

/// Whether the exchange may have changed the catalog: by itself, or by code of users, which runs under Everything.
pub fn changes_catalog(analysis: &ExchangeAnalysis) -> bool {
    let by_code = analysis.effect == Effect::Write && analysis.foreign_code && is_everything(&analysis.footprint);
    analysis.effect == Effect::Ddl || by_code
}

/// Whether everything is held exclusively.
pub fn is_everything(footprint: &Footprint) -> bool {
    footprint.entries().first() == Some(&(Resource::Everything, Mode::Exclusive))
}

fn check_class(class: &StatementClass, exchange: &Exchange, place: Place) -> Result<(), Refused> {
    let listed = place == Place::Listed;
    let allowed = match class {
        StatementClass::Refused(refusal) => return Err(refusal.clone().into()),
        StatementClass::TransactionControl(control) => listed && divides(control),
        StatementClass::Prepare { .. } | StatementClass::Execute { .. } | StatementClass::Deallocate(_) => false,
        StatementClass::Setting(Setting::Show(_) | Setting::ShowAll) => true,
        StatementClass::Setting(Setting::DiscardTemporary) => listed,
        StatementClass::Setting(Setting::DiscardAll | Setting::DiscardOther | Setting::Configs(_)) => false,
        StatementClass::Setting(Setting::Set { name, .. } | Setting::SetConfig { name, .. }) => {
            let pair = [(name.clone(), String::new())];
            matches!(place, Place::OneShot | Place::Listed) && settings::refused(&pair).is_none()
        }
        StatementClass::Setting(Setting::Reset(_) | Setting::ResetAll) => {
            matches!(place, Place::OneShot | Place::Listed)
        }
        StatementClass::Cursor(_) => listed,
        StatementClass::CopyFrom => listed && matches!(exchange, Exchange::CopyStart { .. }),
        StatementClass::Maintenance { .. } => place == Place::OneShot,
        StatementClass::Listening(_) | StatementClass::Advisory(_) => false,
        StatementClass::Write | StatementClass::Notify | StatementClass::Ddl | StatementClass::LockingRead => {
            matches!(place, Place::OneShot | Place::Listed)
        }
        StatementClass::Empty | StatementClass::Read | StatementClass::CopyTo => true,
    };
    let copy = matches!(exchange, Exchange::CopyStart { .. })
        && !matches!(class, StatementClass::CopyFrom | StatementClass::Empty);
    if allowed && !copy {
        return Ok(());
    }
    Err(Refused::new(
        sql::refusal::NOT_SUPPORTED,
        "a statement of this kind cannot be part of such an operation",
    ))
}

fn divides(control: &TransactionControl) -> bool {
    matches!(
        control,
        TransactionControl::Savepoint(_) | TransactionControl::Release(_) | TransactionControl::RollbackTo(_)
    )
}

/// Whether an exchange is one ROLLBACK TO and nothing else.
pub fn is_rollback_to(analysis: &ExchangeAnalysis) -> bool {
    let mut statements = analysis.texts.iter().flat_map(|text| &text.statements);
    let first = statements.next().map(|statement| &statement.class);
    let is_rollback = |class: &StatementClass| {
        matches!(
            class,
            StatementClass::TransactionControl(TransactionControl::RollbackTo(_))
        )
    };
    first.is_some_and(is_rollback) && statements.next().is_none()
}

/// The sequences that an operation with this footprint may move.
pub fn sequences(footprint: &Footprint) -> Sequences {
    if is_everything(footprint) {
        return Sequences::All;
    }
    let names: Vec<String> = footprint
        .entries()
        .iter()
        .filter_map(|(resource, mode)| match (resource, mode) {
            (Resource::Sequence(name), Mode::Exclusive) => Some(name.clone()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        Sequences::None
    } else {
        Sequences::Some(names)
    }
}

/// What a COMMIT of a session with temporary objects does to those that it may have written; `None`: nothing.
pub fn temporary_end(context: &SessionContext, footprint: &Footprint) -> Option<TemporaryEnd> {
    let schema = temporary_schema(context.client, context.session);
    if is_everything(footprint) {
        let written = None;
        return Some(TemporaryEnd { schema, written });
    }
    let own = |resource: &Resource| match resource {
        Resource::Table(name) => name.strip_prefix(&schema)?.strip_prefix('.').map(str::to_owned),
        _ => None,
    };
    let entries = footprint.entries().iter();
    let written: Vec<_> = entries
        .filter(|(_, mode)| *mode == Mode::Exclusive)
        .filter_map(|(resource, _)| own(resource))
        .collect();
    (!written.is_empty()).then_some(TemporaryEnd {
        schema,
        written: Some(written),
    })
}

/// What an exchange of an open transaction needs if its session has temporary objects or makes some.
pub fn temporary(context: &SessionContext, analysis: &ExchangeAnalysis) -> Option<Temporary> {
    let concerned = analysis.has_temporary || analysis.temporary.makes() || analysis.temporary.discards;
    concerned.then(|| {
        let set = context.settings.iter().find(|(name, _)| name == "role");
        let set = set.map(|(_, role)| role.trim_matches('"').to_owned());
        let mut roles = vec![context.role.clone()];
        roles.extend(set.filter(|role| *role != context.role && role != "none"));
        Temporary {
            schema: temporary_schema(context.client, context.session),
            roles,
            changes_catalog: analysis.effect == Effect::Ddl && !analysis.temporary.discards,
        }
    })
}

/// The home to be recorded: `None` when nothing is held exclusively, so that nothing can be written.
pub fn recorded_home(footprint: &Footprint) -> Option<String> {
    let writes = footprint.entries().iter().any(|(_, mode)| *mode == Mode::Exclusive);
    writes.then(|| footprint.home().to_string())
}

/// The seed of the `index`-th exchange of the operation or transaction that began at `order`. The operation's random bytes
/// are in it: who sees one of its results cannot tell the next.
pub fn seed(nonce: &[u8; 16], order: u64, index: u32) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("cloudbft seed v2");
    hasher.update(nonce);
    hasher.update(&order.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.finalize().to_hex().as_str().chars().take(SEED_DIGITS).collect()
}

/// Hexadecimal digits of a seed: 128 bits.
const SEED_DIGITS: usize = 32;

impl Catalog {
    /// The context with the search path of a session that has temporary objects.
    pub fn with_temporary(&self, mut context: SessionContext) -> SessionContext {
        if self.analyzer.schema().has_temporary(context.client, context.session) {
            let schema = temporary_schema(context.client, context.session);
            context.settings = settings::with_temporary(&context.settings, &schema);
        }
        context
    }
}

/// A shared analyser with the number of catalog changes before it.
#[derive(Clone)]
pub struct Catalog {
    /// The analyser.
    pub analyzer: Arc<Analyzer>,
    /// Grows with each change of the catalog.
    pub generation: u64,
}
