//! From the text of an exchange to its class, its footprint and the text that runs (`docs/design.md` and
//! `docs/determinism.md`).
//!
//! A text is analysed once and cached; per exchange only the bound parameters are put into the templates of
//! its statements.

mod cache;
mod changed;
mod ddl;
mod derive;
mod level;
mod parse;
mod statement;
mod template;
mod temporary;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::footprint::{Footprint, Mode};
use crate::names::{Made, Names, TemporaryWork};
use crate::operation::{Exchange, SessionContext, StatementText, Step};
use crate::refusal::{NOT_SUPPORTED, Refusal};
use crate::schema::Schema;
use crate::statement::{Effect, StatementClass};

use cache::Cache;
use template::{Parameters, Template};

pub(crate) use derive::is_bounded_expression;
pub(crate) use template::{KeyKind, clock_word_refusal, is_clock_word};

/// Statements above this many bytes are not parsed: they take `Everything`; texts above it are not cached.
pub const PARSED_BYTES_MAX: usize = 256 * 1024;

/// Texts above this many bytes are refused.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// More statements than this in one text are refused.
pub const STATEMENTS_MAX: usize = 10_000;

/// Analyses texts and exchanges against one state of the catalog.
///
/// A change of the catalog needs a new one.
pub struct Analyzer {
    schema: Arc<Schema>,
    cache: Mutex<Cache>,
}

/// All statements of one text.
#[derive(Debug)]
pub struct TextAnalysis {
    /// The statements in order; a text without any has one of class [`StatementClass::Empty`].
    pub statements: Vec<StatementAnalysis>,
    text: Arc<str>,
    executable: Option<String>,
}

/// One statement of a text.
#[derive(Debug)]
pub struct StatementAnalysis {
    /// Where it stands in the text, in bytes, without the semicolon.
    pub range: Range<usize>,
    /// What kind of statement it is.
    pub class: StatementClass,
    /// What runs: the statement's own text, with calls of the clock and of random sources replaced.
    pub executable: String,
    /// Whether it (or a default, a trigger or a function that it may use) reads the clock or the seed, so that the voter
    /// must set `cloudbft.time_us` and `cloudbft.seed` before.
    pub needs_clock: bool,
    /// Whether its result depends on an earlier statement of the same backend session (`currval`, `lastval`): it
    /// has a meaning only within an open transaction.
    pub needs_transaction: bool,
    /// Whether the order of its rows means something: it says ORDER BY somewhere, or takes rows of a cursor that may.
    pub orders_rows: bool,
    /// Whether its form bounds its run time, the size of its result and its outcome.
    pub short: bool,
    /// Whether it is a SELECT over plain tables with allow-listed functions only.
    pub plain_read: bool,
    /// Whether code that is not ours may run in it. Unset only where that is certain.
    pub foreign_code: bool,
    /// What the statement or exchange does with temporary objects.
    pub temporary: TemporaryWork,
    /// Whether it is DDL or a DO.
    numbers_objects: bool,
    /// Whether it is NOTIFY, or calls `pg_notify` by itself.
    notifies: bool,
    /// Whether it means something else to other sessions.
    of_session: bool,
    template: Template,
}

/// One exchange with its parameters.
#[derive(Clone, Debug)]
pub struct ExchangeAnalysis {
    /// The strongest effect of the statements that are bound (simple: of all).
    pub effect: Effect,
    /// What they touch.
    pub footprint: Footprint,
    /// Whether one of them needs the clock.
    pub needs_clock: bool,
    /// Whether one of them has a meaning only within an open transaction.
    pub needs_transaction: bool,
    /// Whether the order of one's rows means something.
    pub orders_rows: bool,
    /// Whether its run time, the size of its result and its outcome are bounded by its shape: it may be ordered once and run
    /// in its turn, without words.
    pub short: bool,
    /// Whether it is an allow-listed read: one statement by the extended protocol on the unnamed portal, over plain tables, with
    /// allow-listed functions only. Such a read needs no guard and is not listed by COMMIT.
    pub plain_read: bool,
    /// Whether code that is not ours may have run in the backend: a function that is not allow-listed, DO, a trigger, or
    /// anything that was not parsed. The backend serves nobody else afterwards.
    pub foreign_code: bool,
    /// What the statement or exchange does with temporary objects.
    pub temporary: TemporaryWork,
    /// Whether the session has temporary objects before it, as far as the catalog and what its transaction has made tell.
    pub has_temporary: bool,
    /// Whether it changes what names mean to the statements after it, also of later exchanges: it sets `search_path` or the
    /// role. Within the exchange, this is taken into account.
    pub renames: bool,
    /// Whether objects that it makes shall have the same numbers on all servers: one of its statements is DDL or a DO.
    pub numbers_objects: bool,
    /// Whether one of its statements is NOTIFY, or calls `pg_notify` by itself. What code of users notifies is not told.
    pub notifies: bool,
    /// The analyses of the exchange's texts: of the one text of a simple exchange, or of each entry of
    /// `statements` of an extended one, by index.
    pub texts: Vec<Arc<TextAnalysis>>,
}

impl Analyzer {
    /// An analyser for this catalog, with an empty cache.
    pub fn new(schema: Arc<Schema>) -> Self {
        Self {
            schema,
            cache: Mutex::new(Cache::default()),
        }
    }

    /// The catalog it works with.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Analyses a text of a session without temporary objects. See [`Analyzer::text_of`].
    pub fn text(&self, text: &str) -> Arc<TextAnalysis> {
        self.text_of(text, &Names::default())
    }

    /// Analyses a text of a session, or takes the analysis from the cache. Never fails: a statement that cannot run is of
    /// class [`StatementClass::Refused`].
    pub fn text_of(&self, text: &str, names: &Names) -> Arc<TextAnalysis> {
        if !names.is_active()
            && !names.has_changes()
            && let Some(found) = self.cache().get(text)
        {
            return found;
        }
        let key = names.key(text).filter(|_| text.len() <= PARSED_BYTES_MAX);
        if let Some(found) = key.as_ref().and_then(|key| self.cache().get(key)) {
            return found;
        }
        let analysis = Arc::new(statement::analyse_text(&self.schema, names, text));
        let is_common = analysis.statements.iter().all(|statement| !statement.of_session);
        match key {
            Some(_) if is_common && !names.is_active() => {
                self.cache().insert(Arc::clone(&analysis.text), Arc::clone(&analysis));
            }
            Some(key) => self.cache().insert(Arc::from(key), Arc::clone(&analysis)),
            None => {}
        }
        analysis
    }

    /// What names mean to a session, after what its open transaction has made.
    pub fn names(&self, context: &SessionContext, made: &Made) -> Names {
        Names::new(&self.schema, context, made)
    }

    /// Analyses an exchange of a session: its effect and its footprint, from literals and bound parameters.
    ///
    /// COPY data and its end touch what the COPY statement touched: their footprint is empty.
    ///
    /// # Errors
    /// When a statement of it cannot run.
    pub fn exchange(&self, exchange: &Exchange, context: &SessionContext) -> Result<ExchangeAnalysis, Refusal> {
        self.exchange_within(exchange, context, &Made::default())
    }

    /// The same after what the session's open transaction has made of names.
    ///
    /// # Errors
    /// When a statement of it cannot run.
    pub fn exchange_within(
        &self,
        exchange: &Exchange,
        context: &SessionContext,
        made: &Made,
    ) -> Result<ExchangeAnalysis, Refusal> {
        let names = self.names(context, made);
        let has_temporary = names.is_active();
        let session = (context.client, context.session);
        let mut analysis = match exchange {
            Exchange::Simple { text } | Exchange::CopyStart { text } => {
                self.simple(text, &names, &Parameters::none(session))?
            }
            Exchange::Extended { statements, steps } => self.extended(statements, steps, names, session)?,
            // The code that their rows run is that of the COPY statement. A stored exchange outside a COPY is analysed when its
            // body is at hand.
            Exchange::CopyData { .. } | Exchange::CopyEnd { .. } | Exchange::Stored { .. } => {
                ExchangeAnalysis::with_effect(Effect::Write)
            }
            Exchange::ObjectNumbers { .. } => return Ok(ExchangeAnalysis::of_object_numbers()),
        };
        analysis.has_temporary = has_temporary;
        if !self.schema.is_plain_path(context) {
            analysis.widen();
        }
        analysis.short &= !matches!(
            exchange,
            Exchange::CopyStart { .. } | Exchange::CopyData { .. } | Exchange::CopyEnd { .. } | Exchange::Stored { .. }
        );
        Ok(analysis)
    }

    fn simple(&self, text: &str, names: &Names, parameters: &Parameters<'_>) -> Result<ExchangeAnalysis, Refusal> {
        let text = self.text_of(text, names);
        let mut analysis = ExchangeAnalysis::with_effect(Effect::Nothing);
        for statement in &text.statements {
            analysis.add(&self.schema, statement, parameters)?;
        }
        analysis.plain_read = matches!(text.statements.as_slice(), [only] if only.plain_read);
        analysis.texts.push(text);
        Ok(analysis)
    }

    fn extended(
        &self,
        statements: &[StatementText],
        steps: &[Step],
        mut names: Names,
        session: (u32, u64),
    ) -> Result<ExchangeAnalysis, Refusal> {
        let mut texts = Vec::with_capacity(statements.len());
        for statement in statements {
            let text = self.text_of(&statement.text, &names);
            for statement in &text.statements {
                names.after(&statement.temporary);
            }
            texts.push(text);
        }
        for text in &texts {
            text.refusal().map_or(Ok(()), |refusal| Err(refusal.clone()))?;
        }
        let mut analysis = ExchangeAnalysis::with_effect(Effect::Nothing);
        let mut portals: Vec<&str> = Vec::new();
        let mut is_plain = true;
        let mut bound: Option<&Arc<TextAnalysis>> = None;
        for step in steps {
            let (portal, statement, parameter_formats, parameters) = match step {
                Step::Bind {
                    portal,
                    statement,
                    parameter_formats,
                    parameters,
                    ..
                } => (portal, statement, parameter_formats, parameters),
                Step::Execute { portal, max_rows } => {
                    // An earlier exchange bound it: what it is, is not known here.
                    analysis.short &= portals.contains(&portal.as_str());
                    is_plain &= portal.is_empty() && *max_rows == 0 && !portals.is_empty();
                    continue;
                }
                _ => continue,
            };
            is_plain &= portal.is_empty() && portals.is_empty();
            portals.push(portal);
            let index = usize::from(*statement);
            let (Some(text), Some(source)) = (texts.get(index), statements.get(index)) else {
                return Err(unknown_statement());
            };
            bound = Some(text);
            let parameters = Parameters::new(session, &source.parameter_types, parameter_formats, parameters);
            for statement in &text.statements {
                analysis.add(&self.schema, statement, &parameters)?;
            }
        }
        let reads_plainly = bound.is_some_and(|text| matches!(text.statements.as_slice(), [only] if only.plain_read));
        analysis.plain_read = is_plain && reads_plainly;
        analysis.texts = texts;
        Ok(analysis)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TextAnalysis {
    /// The text as sent.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text that runs in its place.
    pub fn executable(&self) -> &str {
        self.executable.as_deref().unwrap_or(&self.text)
    }

    /// Bytes of what runs in its place, as a whole and by statement.
    fn executable_bytes(&self) -> usize {
        let statements = self.statements.iter().map(|statement| statement.executable.len());
        self.executable.as_ref().map_or(0, String::len) + statements.sum::<usize>()
    }

    /// Why it cannot run: the refusal of its first refused statement.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.statements.iter().find_map(|statement| match &statement.class {
            StatementClass::Refused(refusal) => Some(refusal),
            _ => None,
        })
    }

    /// The strongest effect of its statements.
    pub fn effect(&self) -> Effect {
        let effects = self.statements.iter().map(|statement| statement.class.effect());
        effects.max().unwrap_or_default()
    }
}

impl ExchangeAnalysis {
    fn with_effect(effect: Effect) -> Self {
        Self {
            effect,
            footprint: Footprint::empty(),
            needs_clock: false,
            needs_transaction: false,
            orders_rows: false,
            short: true,
            plain_read: false,
            foreign_code: false,
            temporary: TemporaryWork::default(),
            has_temporary: false,
            renames: false,
            numbers_objects: false,
            notifies: false,
            texts: Vec::new(),
        }
    }

    /// The exchange runs no code, and nobody else may number objects meanwhile.
    fn of_object_numbers() -> Self {
        Self {
            footprint: Footprint::everything(),
            short: false,
            ..Self::with_effect(Effect::Write)
        }
    }

    fn add(
        &mut self,
        schema: &Schema,
        statement: &StatementAnalysis,
        parameters: &Parameters<'_>,
    ) -> Result<(), Refusal> {
        if let StatementClass::Refused(refusal) = &statement.class {
            return Err(refusal.clone());
        }
        self.effect = self.effect.max(statement.class.effect());
        self.needs_clock |= statement.needs_clock;
        self.needs_transaction |= statement.needs_transaction;
        self.orders_rows |= statement.orders_rows;
        self.short &= statement.short;
        self.foreign_code |= statement.foreign_code;
        self.numbers_objects |= statement.numbers_objects;
        self.notifies |= statement.notifies;
        self.temporary.add(&statement.temporary);
        statement
            .template
            .instantiate(parameters, schema.rules(), &mut self.footprint)?;
        if self.renames {
            self.widen();
        }
        self.renames |= statement.class.renames();
        Ok(())
    }

    /// Widens to everything, in the mode that the effect asks for: names do not mean what they mean by default.
    fn widen(&mut self) {
        let mode = match self.effect {
            Effect::Nothing | Effect::Session => return,
            Effect::Read => Mode::Shared,
            Effect::LockingRead | Effect::Write | Effect::Ddl | Effect::Maintenance => Mode::Exclusive,
        };
        self.needs_clock = true;
        self.short = false;
        self.plain_read = false;
        self.foreign_code = true;
        self.footprint = Footprint::of(crate::footprint::Resource::Everything, mode);
    }
}

fn unknown_statement() -> Refusal {
    Refusal::new(
        NOT_SUPPORTED,
        0,
        "a Bind names a statement that the exchange does not hold",
        "This is a defect of the proxy.",
    )
}
