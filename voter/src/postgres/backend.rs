//! One backend of the database server, and everything that runs on it in one write and one read.

mod own;
mod steps;
mod temporary;
mod transaction;

use std::sync::Arc;

use std::collections::BTreeSet;

use ordering::message::CHUNK_MESSAGE_BYTES_MAX;
use sql::analysis::ExchangeAnalysis;
use sql::operation::{Exchange, ExchangeResult};
use sql::statement::{Setting, StatementClass};

use super::PostgresError;
use super::capture::{CaptureLimits, Captured};
use super::connection::Connection;
use super::functions::Functions;
use super::notified::Notified;
use super::prepared::Prepared;
use super::script::{Part, Played, Script, Segment};
use super::settings;
use super::written::Written;
use crate::config::VoterConfig;
use crate::lock_table::Position;
use crate::outcome::LargeResult;

/// What a backend may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Writes and interactive transactions.
    Write,
    /// Reads only: the server refuses everything else.
    Read,
}

/// The clock and the seed of one exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Microseconds since 1970.
    pub time_us: u64,
    /// Hexadecimal.
    pub seed: String,
}

/// An exchange as it runs: with its analysis, and under which clock.
#[derive(Clone, Debug)]
pub struct Job {
    /// The exchange.
    pub exchange: Exchange,
    /// Its analysis against the catalog of its order.
    pub analysis: ExchangeAnalysis,
    /// The clock; sent only if the analysis needs it.
    pub clock: Clock,
    /// What goes around the exchange where the session has temporary objects or makes some.
    pub temporary: Option<Temporary>,
}

/// What an exchange of a session with temporary objects needs beside itself (rule TemporaryTables).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Temporary {
    /// The session's schema.
    pub schema: String,
    /// The roles that may use it.
    pub roles: Vec<String>,
    /// The exchange changes the catalog: it may make objects in the schema.
    pub changes_catalog: bool,
}

/// What a COMMIT does to temporary tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemporaryEnd {
    /// The session's schema.
    pub schema: String,
    /// The tables that may have been written; `None`: all of the session's.
    pub written: Option<Vec<String>>,
}

/// What a committing transaction records with its effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Home and position; `None` when nothing was locked exclusively.
    pub applied: Option<(String, Position)>,
    /// The sequences that may have moved.
    pub sequences: Sequences,
    /// Whether the catalog may have changed, so that it is asked what has.
    pub asks_catalog: bool,
    /// What the COMMIT does to temporary tables before it commits; `None`: nothing.
    pub temporary: Option<TemporaryEnd>,
    /// The channels of which the COMMIT's notifications are told; `None`: nobody listens, or it cannot notify.
    pub listens: Option<Arc<[String]>>,
}

/// Which sequences a transaction may have moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sequences {
    /// None.
    #[default]
    None,
    /// These, as `schema.name`.
    Some(Vec<String>),
    /// Any.
    All,
}

/// What became of an exchange.
#[derive(Debug)]
pub enum Answer {
    /// The server answered: a result, even when it is an error.
    Result(ExchangeResult),
    /// The same with a result that travels in chunks.
    Large(Box<LargeResult>),
    /// The result is larger than the limit; the effect stands.
    TooLarge,
    /// This machine has no room for the result; the effect stands.
    NoRoom(String),
    /// An error that speaks of the server: no result.
    Fault(String),
    /// Code that is deferred to the end of the transaction defers itself again and again.
    Unsettled,
}

/// A backend.
#[derive(Debug)]
pub struct Backend {
    connection: Connection,
    kind: Kind,
    role: String,
    functions: Arc<Functions>,
    /// What has been set; `None` when a statement may have changed settings behind our back.
    settings: Option<Vec<(String, String)>>,
    settings_hash: u64,
    /// Settings with a dot in their name that were ever set here: a reset leaves them empty, which is not the same as
    /// never set.
    custom_settings: BTreeSet<String>,
    prepared: Prepared,
    /// The catalog's generation under which `prepared` was filled.
    catalog: u64,
    status: u8,
    drop_prepared: bool,
    /// Sequences may have been drawn from: `currval` tells so until they are discarded.
    drew: bool,
    /// Sets what names and texts mean under the operation's settings: after code that is not ours, which may have changed it
    /// in the same transaction.
    meaning: String,
    /// The operation's own statements have changed what names mean.
    renamed: bool,
    /// Code that is not ours has run: nobody else may be served here, since nothing in the backend can be trusted.
    foreign: bool,
    copying: bool,
    /// The open transaction has run nothing: its BEGIN goes out with what it runs first.
    begin_is_due: bool,
    /// The server still answers something that nobody reads.
    left: bool,
    /// The open transaction may have written: not so only when it was asked and said so.
    written: bool,
    /// What the transaction that was committed last wrote to the catalog, where its record asked for that.
    catalog_written: Written,
    /// What the transaction that was committed last notified, where its record asked for that.
    notified: Notified,
    limits: CaptureLimits,
}

impl Backend {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn open(
        config: &VoterConfig,
        kind: Kind,
        role: &str,
        functions: &Arc<Functions>,
    ) -> Result<Self, PostgresError> {
        let read_only = match kind {
            Kind::Write => "off",
            Kind::Read => "on",
        };
        let extra = [("default_transaction_read_only", read_only)];
        let connection = Connection::open(&config.postgres, role, &extra, CHUNK_MESSAGE_BYTES_MAX).await?;
        Ok(Self {
            connection,
            kind,
            role: role.to_owned(),
            functions: Arc::clone(functions),
            settings: Some(Vec::new()),
            settings_hash: settings::hash(&[]),
            custom_settings: BTreeSet::new(),
            prepared: Prepared::default(),
            catalog: 0,
            status: b'I',
            drop_prepared: false,
            drew: false,
            meaning: own::meaning(&[]),
            renamed: false,
            foreign: false,
            copying: false,
            begin_is_due: false,
            left: false,
            written: true,
            catalog_written: Written::Unknown,
            notified: Notified::default(),
            limits: CaptureLimits::of(config),
        })
    }

    /// What it may do.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The role that it is logged in as.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The number of the server's process that serves it.
    pub fn process(&self) -> i32 {
        self.connection.process()
    }

    /// The settings that it has, if known.
    pub fn settings(&self) -> Option<&[(String, String)]> {
        self.settings.as_deref()
    }

    /// The transaction status after the last exchange.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether code that is not ours has run in it.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether a read was left that the server still runs: it has to be ended.
    pub fn is_left(&self) -> bool {
        self.left
    }

    /// Whether the open transaction may have written anything, as of [`Backend::settle`].
    pub fn has_written(&self) -> bool {
        self.written
    }

    /// What the transaction that was committed last wrote to the catalog; known once, and only where its record asked for it.
    pub fn take_catalog_written(&mut self) -> Written {
        std::mem::take(&mut self.catalog_written)
    }

    /// What the transaction that was committed last notified; known once, and only where its record asked for it.
    pub fn take_notified(&mut self) -> Notified {
        std::mem::take(&mut self.notified)
    }

    /// Whether another operation may use it: nothing is open, and only the voter's statements and allow-listed ones have run.
    pub fn is_reusable(&self) -> bool {
        !self.foreign && !self.copying && !self.left && self.status == b'I'
    }

    /// Whether an operation with these settings sees nothing of settings that others had.
    pub fn serves(&self, wants: &[(String, String)]) -> bool {
        let wanted = |name: &String| wants.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        self.custom_settings.iter().all(wanted)
    }

    /// Brings the backend to an operation's settings and catalog. A setting that the server refuses is the operation's
    /// result.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn prepare(&mut self, wants: &[(String, String)], catalog: u64) -> Result<Option<Answer>, PostgresError> {
        let mut script = Script::default();
        self.meaning = own::meaning(wants);
        self.renamed = false;
        if self.catalog != catalog {
            self.catalog = catalog;
            for name in self.prepared.clear() {
                script.close(Part::Own, b'S', &name)?;
            }
            script.sync();
        }
        if std::mem::take(&mut self.drew) {
            script.query(Part::Own, own::DISCARD_SEQUENCES)?;
        }
        if let Some(text) = settings::difference(self.settings.as_deref(), wants) {
            let custom = wants.iter().map(|(name, _)| name).filter(|name| name.contains('.'));
            self.custom_settings
                .extend(custom.map(|name| name.to_ascii_lowercase()));
            self.settings = None;
            script.query(Part::Silent, &text)?;
            let played = self.play(script, || {}).await?;
            if played.error().is_some() {
                return Ok(Some(self.answer(played).await));
            }
            self.settings = Some(wants.to_vec());
            self.settings_hash = settings::hash(wants);
        } else if !script.is_empty() {
            self.play(script, || {}).await?;
        }
        Ok(None)
    }

    /// Notes that the voter's settings may have changed behind its back.
    pub fn forget_settings(&mut self) {
        self.settings = None;
    }

    /// Forgets prepared statements: the open transaction has changed the catalog.
    pub fn forget_prepared(&mut self) {
        self.drop_prepared = true;
    }

    /// Whether COPY FROM STDIN is open.
    pub fn copying(&self) -> bool {
        self.copying
    }

    /// A direct read outside transactions (the backend is read-only).
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn read(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::of_read();
        self.add_exchange(&mut script, job)?;
        self.run(script, || {}).await
    }

    /// An ordered read on a snapshot of its place; `open` is called when the snapshot is taken.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn snapshot_read(&mut self, job: &Job, open: impl FnOnce()) -> Result<Answer, PostgresError> {
        let mut open = Some(open);
        let mut script = Script::of_read();
        script.query(Part::Own, &with_clock(own::BEGIN_SNAPSHOT, job))?;
        self.add_exchange(&mut script, job)?;
        script.query(Part::Own, own::COMMIT)?;
        let opened = || {
            if let Some(open) = open.take() {
                open();
            }
        };
        let answer = self.run(script, opened).await?;
        Ok(self.ended(answer))
    }

    /// A one-shot: everything in one pipeline, committed with its position, or not at all.
    ///
    /// # Errors
    /// When the connection is lost: whether it committed is then known only from `cloudbft.applied`.
    pub async fn one_shot(&mut self, job: &Job, record: &Record) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        let begin = if record.applied.is_some() {
            own::BEGIN
        } else {
            own::BEGIN_READ_ONLY
        };
        self.drew |= record.sequences != Sequences::None;
        script.query(Part::Own, &with_clock(begin, job))?;
        self.add_exchange(&mut script, job)?;
        script.cut();
        self.add_record(&mut script, record)?;
        script.query(Part::Silent, own::COMMIT)?;
        self.add_unlisten(&mut script, record)?;
        let mut played = self.play_and_note(script, || {}).await?;
        let committed = played.tag.starts_with(COMMIT_TAG);
        self.note_notified(&mut played, committed);
        let at_commit = played.segments.pop();
        let ran = self.answer_segment(played.into_segment(&self.limits)).await;
        let failed = at_commit.filter(|segment| segment.error.is_some());
        let answer = match (&ran, failed) {
            (Answer::Result(result), Some(failed)) if !has_error(&result.messages) => self.answer_segment(failed).await,
            (Answer::Large(large), Some(failed)) if !large.stored.failed() => self.answer_segment(failed).await,
            (Answer::NoRoom(reason), _) if !committed => Answer::Fault(reason.clone()),
            _ => ran,
        };
        if !committed {
            self.roll_back(&record.sequences).await?;
        }
        Ok(idle(answer))
    }

    /// A statement that Postgres refuses inside a transaction block.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn outside_transaction(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        self.add_exchange(&mut script, job)?;
        self.run(script, || {}).await
    }

    /// Notes what an exchange may leave behind in the backend.
    fn note(&mut self, job: &Job) {
        self.foreign |= job.analysis.foreign_code || sets_custom(&job.analysis);
        self.renamed |= job.analysis.renames;
    }

    async fn play(&mut self, script: Script, between: impl FnMut()) -> Result<Played, PostgresError> {
        let played = script.play(&mut self.connection, &self.limits, between).await?;
        self.status = played.status();
        self.left |= played.left;
        Ok(played)
    }

    async fn play_and_note(&mut self, script: Script, between: impl FnMut()) -> Result<Played, PostgresError> {
        let mut played = self.play(script, between).await?;
        for (key, name) in std::mem::take(&mut played.prepared) {
            self.prepared.insert(key, &name);
        }
        Ok(played)
    }

    async fn run(&mut self, script: Script, between: impl FnMut()) -> Result<Answer, PostgresError> {
        let played = self.play_and_note(script, between).await?;
        Ok(self.answer(played).await)
    }

    async fn answer(&self, played: Played) -> Answer {
        self.answer_segment(played.into_segment(&self.limits)).await
    }

    async fn answer_segment(&self, segment: Segment) -> Answer {
        if let Some((error, part)) = &segment.error
            && (error.is_server_fault() || *part == Part::Own)
        {
            return Answer::Fault(format!("{}: {}", error.sqlstate, error.message));
        }
        answer_of(segment.capture.finish(segment.status).await)
    }

    /// An exchange within a transaction must leave it open; else nothing is known of what was committed.
    fn still_open(&self, answer: Answer) -> Answer {
        match self.status {
            b'I' if !self.left => Answer::Fault(CLOSED.into()),
            _ => answer,
        }
    }

    /// Something that leaves no transaction open. One that is open all the same is code's that is not ours.
    fn ended(&mut self, answer: Answer) -> Answer {
        self.foreign |= self.status != b'I';
        idle(answer)
    }
}

/// The answer that was captured.
pub fn answer_of(captured: Captured) -> Answer {
    match captured {
        Captured::Result(result) => Answer::Result(result),
        Captured::Large(large) => Answer::Large(large),
        Captured::TooLarge => Answer::TooLarge,
        Captured::NoRoom(reason) => Answer::NoRoom(reason),
    }
}

/// What is said of a transaction that an exchange has ended.
const CLOSED: &str = "a statement ended the transaction behind the voter's back";

/// The tag of a COMMIT that committed.
const COMMIT_TAG: &[u8] = b"COMMIT";

fn own_error(played: Played) -> Result<(), PostgresError> {
    let error = played.segments.into_iter().find_map(|segment| segment.error);
    error.map_or(Ok(()), |(error, _)| Err(error.into()))
}

/// A result of something that leaves no transaction open, whatever the status was when it failed.
fn idle(answer: Answer) -> Answer {
    match answer {
        Answer::Result(result) => Answer::Result(ExchangeResult { status: b'I', ..result }),
        Answer::Large(large) => Answer::Large(Box::new(LargeResult { status: b'I', ..*large })),
        other => other,
    }
}

impl Answer {
    /// Whether the server did what it was asked, whatever became of what it said.
    pub fn succeeded(&self) -> bool {
        match self {
            Answer::Result(result) => !has_error(&result.messages),
            Answer::Large(large) => !large.stored.failed(),
            Answer::TooLarge | Answer::NoRoom(_) => true,
            Answer::Fault(_) | Answer::Unsettled => false,
        }
    }

    /// A COMMIT's answer, after the notices that came when everything deferred was run. Many of them travel alone.
    pub fn with_notices(self, notices: Answer) -> Answer {
        match (notices, self) {
            (Answer::Result(notices), Answer::Result(committed)) => Answer::Result(ExchangeResult {
                messages: [notices.messages, committed.messages].concat().into(),
                status: committed.status,
            }),
            (Answer::Large(notices), Answer::Result(committed)) if !has_error(&committed.messages) => {
                Answer::Large(Box::new(LargeResult {
                    status: committed.status,
                    ..*notices
                }))
            }
            (_, committed) => committed,
        }
    }
}

/// Whether a result holds an ErrorResponse.
pub fn has_error(messages: &[u8]) -> bool {
    sql::result::messages(messages).any(|message| matches!(message, Ok((b'E', _)) | Err(_)))
}

/// Whether a statement sets a setting that has a dot in its name.
fn sets_custom(analysis: &ExchangeAnalysis) -> bool {
    let mut statements = analysis.texts.iter().flat_map(|text| &text.statements);
    statements.any(|statement| match &statement.class {
        StatementClass::Setting(Setting::Set { name, .. } | Setting::SetConfig { name, .. }) => name.contains('.'),
        _ => false,
    })
}

/// The clock and the seed of an exchange, as a Query of the voter's own.
fn clock_text(job: &Job) -> Option<String> {
    job.analysis.needs_clock.then(|| {
        let time = settings::literal(&job.clock.time_us.to_string());
        let seed = settings::literal(&job.clock.seed);
        format!("SET LOCAL cloudbft.time_us = {time}; SET LOCAL cloudbft.seed = {seed}")
    })
}

fn add_clock(script: &mut Script, job: &Job) -> Result<(), PostgresError> {
    match clock_text(job) {
        Some(text) => Ok(script.query(Part::Own, &text)?),
        None => Ok(()),
    }
}

fn with_clock(begin: &str, job: &Job) -> String {
    match clock_text(job) {
        Some(text) => format!("{begin}; {text}"),
        None => begin.to_owned(),
    }
}

/// The names as an array constant, `Some(None)` for all; `None` when nothing is to be done.
pub fn sequence_names(sequences: &Sequences) -> Option<Option<String>> {
    match sequences {
        Sequences::None => None,
        Sequences::All => Some(None),
        Sequences::Some(names) => {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            Some(Some(settings::array(&names)))
        }
    }
}
