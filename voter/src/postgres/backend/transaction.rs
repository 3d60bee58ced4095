//! An open transaction in a backend: its exchanges, one by one or as a list, and how it ends.

use bytes::{BufMut, Bytes};
use sql::operation::{Exchange, ExchangeResult, Isolation};

use super::{
    Answer, Backend, CLOSED, COMMIT_TAG, Job, Record, Sequences, TemporaryEnd, add_clock, has_error, idle, own,
    own_error, sequence_names,
};
use crate::postgres::PostgresError;
use crate::postgres::notified::{self, Notified};
use crate::postgres::script::{Part, Played, Script, Segment};
use crate::postgres::written::Written;

/// How often everything deferred is run in one pipeline: what ran the first time may have written, the second time it
/// usually has not.
const SETTLE_ROUNDS: u32 = 2;

/// How many such pipelines are tried before code that defers itself is taken for endless.
const SETTLE_TIMES_MAX: u32 = 16;

/// An array of no names.
const NO_SEQUENCES: &str = "{}";

impl Backend {
    /// Opens a transaction; `open` is called when its snapshot is taken (if it has one). Without a snapshot its BEGIN goes out
    /// with what it runs first.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn begin(
        &mut self,
        isolation: Isolation,
        read_only: bool,
        open: impl FnOnce(),
    ) -> Result<(), PostgresError> {
        let text = match (isolation, read_only) {
            (_, true) => own::BEGIN_SNAPSHOT,
            (Isolation::RepeatableRead, false) => own::BEGIN_REPEATABLE,
            (Isolation::ReadCommitted | Isolation::Serializable, false) => {
                self.begin_is_due = true;
                self.status = b'T';
                open();
                return Ok(());
            }
        };
        let mut script = Script::default();
        script.query(Part::Own, text)?;
        let played = self.play(script, || {}).await?;
        open();
        own_error(played)
    }

    /// Adds the BEGIN that has not gone out yet.
    fn add_begin(&mut self, script: &mut Script) -> Result<(), PostgresError> {
        match std::mem::take(&mut self.begin_is_due) {
            true => Ok(script.query(Part::Own, own::BEGIN)?),
            false => Ok(()),
        }
    }

    /// An exchange within the open transaction.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn within(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        self.add_begin(&mut script)?;
        match &job.exchange {
            Exchange::CopyData { data } => return self.copy_data(data).await,
            Exchange::CopyStart { .. } => {
                self.note(job);
                let text = job.analysis.texts.first().map_or("", |text| text.executable());
                add_clock(&mut script, job)?;
                script.copy_start(text)?;
                let answer = self.run(script, || {}).await?;
                let failed = matches!(&answer, Answer::Result(result) if has_error(&result.messages));
                self.copying = matches!(&answer, Answer::Result(_)) && !failed && self.status == b'T';
                return Ok(answer);
            }
            Exchange::CopyEnd { failure } => {
                self.copying = false;
                script.copy_end(failure.as_deref())?;
            }
            // Its body runs in its place.
            Exchange::Stored { .. } => return Ok(Answer::Fault("a stored exchange without its body".into())),
            Exchange::ObjectNumbers { .. } => {
                return Ok(Answer::Fault("object numbers are not of this backend".into()));
            }
            Exchange::Simple { .. } | Exchange::Extended { .. } => self.add_within(&mut script, job)?,
        }
        let answer = self.run(script, || {}).await?;
        Ok(self.still_open(answer))
    }

    /// A read within the open transaction that is known to be harmless.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn read_within(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::of_read();
        self.add_begin(&mut script)?;
        self.add_within(&mut script, job)?;
        let answer = self.run(script, || {}).await?;
        Ok(self.still_open(answer))
    }

    /// A read within the open transaction that is not known to be harmless: nothing that it does to data stays.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn guarded(&mut self, job: &Job) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        self.add_begin(&mut script)?;
        script.query(Part::Own, own::GUARD)?;
        self.add_within(&mut script, job)?;
        script.cut();
        script.query(Part::Own, own::UNGUARD)?;
        let mut played = self.play_and_note(script, || {}).await?;
        if let Some(Segment { error: Some(_), .. }) = played.segments.pop() {
            return Ok(Answer::Fault("a read's savepoint is gone".into()));
        }
        let answer = self.answer_segment(played.into_segment(&self.limits)).await;
        Ok(self.still_open(answer))
    }

    /// Exchanges within the open transaction, none of which is a COPY FROM STDIN, in one pipeline; an answer for each.
    ///
    /// `at_once`: with one Sync at the end, where nothing of the voter's own stands between them. It spares the server a write for each, and
    /// gives no answers to what follows a failure: fewer than there are exchanges.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn list(&mut self, jobs: &[Job], at_once: bool) -> Result<Vec<Answer>, PostgresError> {
        let at_once = at_once && !self.foreign && jobs.iter().all(runs_at_once);
        let mut script = Script::default();
        self.add_begin(&mut script)?;
        for (index, job) in jobs.iter().enumerate() {
            match (index, at_once) {
                (0, _) => {}
                (_, true) => script.cut_open(),
                (_, false) => script.cut(),
            }
            match at_once {
                true => self.add_messages(&mut script, job).map(|_| ())?,
                false => self.add_within(&mut script, job)?,
            }
        }
        if at_once {
            script.sync();
        }
        let played = self.play_and_note(script, || {}).await?;
        let closed = played.segments.iter().any(|segment| segment.status == b'I');
        let mut answers = Vec::with_capacity(played.segments.len());
        for segment in played.segments {
            answers.push(self.answer_segment(segment).await);
        }
        if closed {
            return Ok(vec![Answer::Fault(CLOSED.into())]);
        }
        Ok(answers)
    }

    /// Runs what would run at COMMIT: an error or notices are the result of the COMMIT. After it COMMIT runs no code that is not ours.
    ///
    /// `foreign`: such code may be deferred, and may defer itself again. What is deferred has written a row. So nothing is
    /// left when nothing has written since everything was made immediate; the transaction's command counter tells.
    ///
    /// `sequences`: those that the transaction may have moved, for [`Backend::has_written`]. What has written nothing has
    /// nothing deferred, so that is asked first.
    ///
    /// `end`: what becomes of temporary tables, after everything that was deferred.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn settle(
        &mut self,
        foreign: bool,
        sequences: &Sequences,
        end: Option<&TemporaryEnd>,
    ) -> Result<Answer, PostgresError> {
        self.written = true;
        let mut noticed = None;
        for round in 0..if foreign { SETTLE_TIMES_MAX } else { 1 } {
            let mut script = Script::after(noticed.take());
            self.add_begin(&mut script)?;
            self.add_unlimited(&mut script)?;
            if round == 0 {
                let names = sequence_names(sequences).unwrap_or(Some(NO_SEQUENCES.into()));
                script.number(&self.functions.written(names.as_deref()))?;
            }
            for _ in 0..if foreign { SETTLE_ROUNDS } else { 1 } {
                self.add_command(&mut script, foreign)?;
                script.query(Part::Noticed, own::CONSTRAINTS)?;
                script.query(Part::Silent, own::CLOSE_ALL)?;
            }
            self.add_command(&mut script, foreign)?;
            self.add_end(&mut script, end)?;
            let played = self.play_and_note(script, || {}).await?;
            if round == 0 {
                self.written = played.numbers.first() != Some(&0);
            }
            let silent = matches!(played.numbers.as_slice(),
                [.., before, after] if before.checked_add(own::COMMANDS_OF_ITS_OWN) == Some(*after));
            if silent || !foreign || played.error().is_some() {
                let answer = self.answer(played).await;
                return Ok(self.still_open(answer));
            }
            noticed = Some(played.into_segment(&self.limits).capture);
        }
        Ok(self.still_open(Answer::Unsettled))
    }

    fn add_command(&self, script: &mut Script, foreign: bool) -> Result<(), PostgresError> {
        if foreign {
            script.number(&self.functions.command())?;
        }
        Ok(())
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

    /// Commits the open transaction with its position: the result is COMMIT's own, or its error.
    ///
    /// # Errors
    /// When the connection is lost: whether it committed is then known only from `cloudbft.applied`.
    pub async fn commit(&mut self, record: &Record) -> Result<Answer, PostgresError> {
        let mut script = Script::default();
        self.drew |= record.sequences != Sequences::None;
        self.add_begin(&mut script)?;
        self.catalog_written = Written::Unknown;
        self.add_unlimited(&mut script)?;
        if record.asks_catalog {
            // After a crash the server numbers objects from further on: what is run again then has other numbers than elsewhere.
            script.query(Part::Own, own::DURABLE)?;
        }
        self.add_record(&mut script, record)?;
        script.query(Part::Client, own::COMMIT)?;
        self.add_unlisten(&mut script, record)?;
        let mut played = self.play_and_note(script, || {}).await?;
        self.catalog_written = played.text.as_deref().map(Written::read).unwrap_or_default();
        let committed = played.tag.starts_with(COMMIT_TAG);
        self.note_notified(&mut played, committed);
        let answer = self.answer(played).await;
        if !committed {
            self.roll_back(&record.sequences).await?;
        }
        Ok(idle(answer))
    }

    /// Ends the open transaction, if there is one, without effect, and sets its sequences back.
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
        if std::mem::take(&mut self.begin_is_due) {
            self.status = b'I';
        }
        if self.status != b'I' {
            script.query(Part::Own, own::ROLLBACK)?;
        }
        if let Some(names) = sequence_names(sequences) {
            self.drew = true;
            script.call(Part::Own, &self.functions.restore_sequences(names.as_deref()))?;
        }
        if script.is_empty() {
            return Ok(());
        }
        own_error(self.play(script, || {}).await?)
    }

    pub(super) fn add_record(&self, script: &mut Script, record: &Record) -> Result<(), PostgresError> {
        self.add_end(script, record.temporary.as_ref())?;
        if record.asks_catalog {
            script.text(&self.functions.catalog_changes())?;
        }
        if let Some(channels) = &record.listens {
            script.query(Part::Own, &notified::listen(channels))?;
        }
        if let Some((home, position)) = &record.applied {
            if let Some(names) = sequence_names(&record.sequences) {
                script.call(Part::Own, &self.functions.record_sequences(names.as_deref()))?;
            }
            let (granted, order) = (position.granted.to_string(), position.order.to_string());
            script.call(Part::Own, &self.functions.set_applied(home, &granted, &order))?;
        }
        Ok(())
    }

    /// Nothing listens after the COMMIT.
    pub(super) fn add_unlisten(&self, script: &mut Script, record: &Record) -> Result<(), PostgresError> {
        match record.listens {
            Some(_) => Ok(script.aside(notified::UNLISTEN)?),
            None => Ok(()),
        }
    }

    /// Keeps what a transaction has notified, if it has committed.
    pub(super) fn note_notified(&mut self, played: &mut Played, committed: bool) {
        let notified = std::mem::take(&mut played.notified);
        self.notified = match committed {
            true => notified,
            false => Notified::default(),
        };
    }

    fn add_unlimited(&self, script: &mut Script) -> Result<(), PostgresError> {
        match self.foreign {
            true => Ok(script.query(Part::Own, own::UNLIMITED)?),
            false => Ok(()),
        }
    }

    /// An exchange of an open transaction, with its clock.
    fn add_within(&mut self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        add_clock(script, job)?;
        self.add_unlimited(script)?;
        if self.foreign && !self.renamed {
            script.query(Part::Own, &self.meaning)?;
        }
        self.add_before(script, job)?;
        self.add_exchange(script, job)?;
        self.add_after(script, job)
    }
}

/// Whether nothing but messages of the extended protocol that are the client's own belongs to an exchange.
fn runs_at_once(job: &Job) -> bool {
    let extended = match job.exchange {
        Exchange::Extended { .. } => true,
        Exchange::Simple { .. } => {
            let text = job.analysis.texts.first();
            text.is_some_and(|text| text.statements.len() == 1)
        }
        _ => false,
    };
    extended && !job.analysis.needs_clock && !job.analysis.foreign_code && job.temporary.is_none()
}
