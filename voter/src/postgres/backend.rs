//! One backend of the database server, and everything that runs on it in one write and one read.

mod own;
mod steps;

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use sql::analysis::ExchangeAnalysis;
use sql::operation::{Exchange, ExchangeResult, Isolation};

use own::OWN_STATEMENTS;

use super::PostgresError;
use super::capture::command_complete;
use super::connection::Connection;
use super::prepared::Prepared;
use super::script::{Part, Played, Script};
use super::settings;
use crate::config::VoterConfig;
use crate::lock_table::Position;

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
}

/// What a committing transaction records with its effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Home and position; `None` when nothing was locked exclusively.
    pub applied: Option<(String, Position)>,
    /// The sequences that may have moved.
    pub sequences: Sequences,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server answered: a result, even when it is an error.
    Result(ExchangeResult),
    /// The result is larger than the limit; the effect stands.
    TooLarge,
    /// An error that speaks of the server: no result.
    Fault(String),
}

/// A backend.
#[derive(Debug)]
pub struct Backend {
    connection: Connection,
    kind: Kind,
    role: String,
    token: Arc<str>,
    /// What has been set; `None` when a statement may have changed settings behind our back.
    settings: Option<Vec<(String, String)>>,
    settings_hash: u64,
    prepared: Prepared,
    /// The catalog's generation under which `prepared` was filled.
    catalog: u64,
    status: u8,
    drop_prepared: bool,
    copying: bool,
    result_bytes_max: usize,
}

impl Backend {
    /// Opens a connection and prepares the voter's own statements.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn open(config: &VoterConfig, kind: Kind, role: &str, token: &Arc<str>) -> Result<Self, PostgresError> {
        let read_only = match kind {
            Kind::Write => "off",
            Kind::Read => "on",
        };
        let extra = [("default_transaction_read_only", read_only)];
        let result_bytes_max = config.limits.result_bytes_max;
        let mut connection = Connection::open(&config.postgres, role, &extra, result_bytes_max).await?;
        let mut script = Script::default();
        for (name, text) in OWN_STATEMENTS {
            script.parse(Part::Own, name, text, &[], None)?;
        }
        script.sync();
        let played = script.play(&mut connection, result_bytes_max, || {}).await?;
        if let Some((error, _)) = played.error {
            return Err(error.into());
        }
        Ok(Self {
            connection,
            kind,
            role: role.to_owned(),
            token: Arc::clone(token),
            settings: Some(Vec::new()),
            settings_hash: settings::hash(&[]),
            prepared: Prepared::default(),
            catalog: 0,
            status: b'I',
            drop_prepared: false,
            copying: false,
            result_bytes_max,
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

    /// The settings that it has, if known.
    pub fn settings(&self) -> Option<&[(String, String)]> {
        self.settings.as_deref()
    }

    /// The transaction status after the last exchange.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Brings the backend to an operation's settings and catalog. A setting that the server refuses is the operation's
    /// result.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn prepare(&mut self, wants: &[(String, String)], catalog: u64) -> Result<Option<Answer>, PostgresError> {
        let mut script = Script::default();
        if self.catalog != catalog {
            self.catalog = catalog;
            for name in self.prepared.clear() {
                script.close(Part::Own, b'S', &name)?;
            }
            script.sync();
        }
        if let Some(text) = settings::difference(self.settings.as_deref(), wants) {
            self.settings = None;
            script.query(Part::Silent, &text)?;
            let played = self.play(script, || {}).await?;
            if played.error.is_some() {
                return Ok(Some(self.answer(played)));
            }
            self.settings = Some(wants.to_vec());
            self.settings_hash = settings::hash(wants);
        } else if !script.is_empty() {
            self.play(script, || {}).await?;
        }
        Ok(None)
    }

    /// Notes that settings may have changed behind the voter's back.
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
        let mut script = Script::default();
        self.add_exchange(&mut script, job)?;
        self.sync_extended(&mut script, job);
        self.run(script, || {}).await
    }

    /// An ordered read on a snapshot of its place; `open` is called when the snapshot is taken.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn snapshot_read(&mut self, job: &Job, open: impl FnMut()) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        script.own(Part::Own, "begin_snapshot", &[])?;
        self.add_clock(&mut script, job)?;
        script.own(Part::Own, "snapshot", &[])?;
        script.sync();
        self.add_exchange_without_clock(&mut script, job)?;
        script.own(Part::Silent, "commit", &[])?;
        script.sync();
        let answer = self.run(script, open).await?;
        self.roll_back_if_open(&Sequences::None).await?;
        Ok(idle(answer))
    }

    /// A one-shot: everything in one pipeline, committed with its position, or not at all.
    ///
    /// # Errors
    /// When the connection is lost: whether it committed is then known only from `cloudbft.applied`.
    pub async fn one_shot(&mut self, job: &Job, record: &Record) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        let begin = if record.applied.is_some() {
            "begin"
        } else {
            "begin_read_only"
        };
        script.own(Part::Own, begin, &[])?;
        self.add_exchange(&mut script, job)?;
        self.add_commit(&mut script, record)?;
        let answer = self.run(script, || {}).await?;
        self.roll_back_if_open(&record.sequences).await?;
        Ok(idle(answer))
    }

    /// A statement that Postgres refuses inside a transaction block.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn outside_transaction(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        self.add_exchange_without_clock(&mut script, job)?;
        self.sync_extended(&mut script, job);
        self.run(script, || {}).await
    }

    /// Opens a transaction; `open` is called when its snapshot is taken (if it has one).
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn begin(
        &mut self,
        isolation: Isolation,
        read_only: bool,
        open: impl FnOnce(),
    ) -> Result<(), PostgresError> {
        let mut script = Script::default();
        let statement = match (isolation, read_only) {
            (_, true) => "begin_snapshot",
            (Isolation::RepeatableRead, false) => "begin_repeatable",
            (Isolation::ReadCommitted | Isolation::Serializable, false) => "begin",
        };
        script.own(Part::Own, statement, &[])?;
        if statement != "begin" {
            script.own(Part::Own, "snapshot", &[])?;
        }
        script.sync();
        let played = self.play(script, || {}).await?;
        open();
        own_error(played)
    }

    /// An exchange within the open transaction.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn within(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        match &job.exchange {
            Exchange::CopyData { data } => return self.copy_data(data).await,
            Exchange::CopyStart { .. } => {
                let text = job.analysis.texts.first().map_or("", |text| text.executable());
                self.add_clock(&mut script, job)?;
                if !script.is_empty() {
                    script.sync();
                }
                script.copy_start(text)?;
                let answer = self.run(script, || {}).await?;
                self.copying = matches!(&answer, Answer::Result(_)) && self.status == b'T';
                return Ok(answer);
            }
            Exchange::CopyEnd { failure } => {
                self.copying = false;
                script.copy_end(failure.as_deref())?;
            }
            Exchange::Simple { .. } | Exchange::Extended { .. } => {
                self.add_exchange(&mut script, job)?;
                self.sync_extended(&mut script, job);
            }
        }
        self.run(script, || {}).await
    }

    async fn copy_data(&mut self, data: &Bytes) -> Result<Answer, PostgresError> {
        let outgoing = self.connection.outgoing();
        outgoing.put_u8(b'd');
        outgoing.put_u32(u32::try_from(data.len() + 4).unwrap_or(u32::MAX));
        outgoing.put_slice(data);
        self.connection.flush().await?;
        Ok(Answer::Result(ExchangeResult {
            messages: Bytes::new(),
            status: b'T',
        }))
    }

    /// Commits the open transaction with its position.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn commit(&mut self, record: &Record) -> Result<Answer, PostgresError> {
        if self.status != b'T' {
            self.roll_back(&record.sequences).await?;
            return Ok(Answer::Result(ExchangeResult {
                messages: command_complete("ROLLBACK"),
                status: b'I',
            }));
        }
        let mut script = Script::default();
        self.add_commit(&mut script, record)?;
        let answer = self.run(script, || {}).await?;
        self.roll_back_if_open(&record.sequences).await?;
        Ok(match idle(answer) {
            Answer::Result(result) if result.messages.is_empty() => Answer::Result(ExchangeResult {
                messages: command_complete("COMMIT"),
                status: b'I',
            }),
            other => other,
        })
    }

    /// Ends the open transaction without effect, and sets its sequences back.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn roll_back(&mut self, sequences: &Sequences) -> Result<(), PostgresError> {
        let mut script = Script::default();
        if std::mem::take(&mut self.copying) {
            script.copy_end(Some("the transaction is rolled back"))?;
            self.play(script, || {}).await?;
            script = Script::default();
        }
        script.own(Part::Own, "rollback", &[])?;
        script.sync();
        if let Some(names) = sequence_names(sequences) {
            let token = Arc::clone(&self.token);
            self.own_with_names(&mut script, "restore_sequences", &token, &names)?;
            script.sync();
        }
        own_error(self.play(script, || {}).await?)
    }

    async fn roll_back_if_open(&mut self, sequences: &Sequences) -> Result<(), PostgresError> {
        let failed = self.status != b'I';
        if failed {
            self.roll_back(sequences).await
        } else {
            Ok(())
        }
    }

    fn own_with_names(
        &self,
        script: &mut Script,
        statement: &str,
        token: &str,
        names: &Option<String>,
    ) -> Result<(), PostgresError> {
        let value = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        let parameters = [value(token), names.as_deref().and_then(value)];
        script.bind(Part::Own, "", statement, &[0], &parameters, &[0])?;
        script.execute(Part::Own, "", 0)?;
        Ok(())
    }

    fn add_commit(&self, script: &mut Script, record: &Record) -> Result<(), PostgresError> {
        if let Some((home, position)) = &record.applied {
            if let Some(names) = sequence_names(&record.sequences) {
                self.own_with_names(script, "record_sequences", &self.token, &names)?;
            }
            let (granted, order) = (position.granted.to_string(), position.order.to_string());
            script.own(Part::Own, "applied", &[&self.token, home, &granted, &order])?;
        }
        script.own(Part::Silent, "commit", &[])?;
        script.sync();
        Ok(())
    }

    fn add_clock(&self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        if job.analysis.needs_clock {
            script.own(Part::Own, "clock", &[&job.clock.time_us.to_string(), &job.clock.seed])?;
        }
        Ok(())
    }

    fn add_exchange(&mut self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        self.add_clock(script, job)?;
        self.add_exchange_without_clock(script, job)
    }

    async fn play(&mut self, script: Script, between: impl FnMut()) -> Result<Played, PostgresError> {
        let played = script
            .play(&mut self.connection, self.result_bytes_max, between)
            .await?;
        self.status = played.status;
        Ok(played)
    }

    async fn run(&mut self, script: Script, between: impl FnMut()) -> Result<Answer, PostgresError> {
        let mut played = self.play(script, between).await?;
        for (key, name) in std::mem::take(&mut played.prepared) {
            self.prepared.insert(key, &name);
        }
        Ok(self.answer(played))
    }

    fn answer(&self, played: Played) -> Answer {
        if let Some((error, part)) = &played.error
            && (error.is_server_fault() || (*part == Part::Own && error.sqlstate != IN_FAILED_TRANSACTION))
        {
            return Answer::Fault(format!("{}: {}", error.sqlstate, error.message));
        }
        match played.capture.finish(self.status) {
            Some(result) => Answer::Result(result),
            None => Answer::TooLarge,
        }
    }
}

/// The SQLSTATE of a statement in a transaction that has failed.
const IN_FAILED_TRANSACTION: &str = "25P02";

fn own_error(played: Played) -> Result<(), PostgresError> {
    played.error.map_or(Ok(()), |(error, _)| Err(error.into()))
}

/// A result of something that leaves no transaction open, whatever the status was when it failed.
fn idle(answer: Answer) -> Answer {
    match answer {
        Answer::Result(result) => Answer::Result(ExchangeResult { status: b'I', ..result }),
        other => other,
    }
}

/// The names as an array constant, `Some(None)` for all; `None` when nothing is to be done.
fn sequence_names(sequences: &Sequences) -> Option<Option<String>> {
    match sequences {
        Sequences::None => None,
        Sequences::All => Some(None),
        Sequences::Some(names) => {
            let escaped = names.iter().map(|name| name.replace('\\', "\\\\").replace('"', "\\\""));
            let quoted: Vec<_> = escaped.map(|name| format!("\"{name}\"")).collect();
            Some(Some(format!("{{{}}}", quoted.join(","))))
        }
    }
}
