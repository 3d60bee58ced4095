//! The extended protocol: messages gathered up to Sync (or Flush) make one exchange.

use std::sync::Arc;

use bytes::Bytes;
use sql::operation::{StatementText, Step};
use sql::statement::StatementClass;

use super::advisory::check_declared;
use super::configs::Bound;
use super::connection::Connection;
use super::held::already_exists;
use super::pipeline::{Pipeline, Portal, Undo};
use super::prepared::{Prepared, no_statement};
use super::release::Pieces;
use super::routing::Kind;
use super::simple::is_cursor;
use super::special::{is_special, special_columns};
use super::{End, Session};
use crate::client::VotedResult;
use crate::error::ApplicationError;
use crate::wire::{Backend, Bind, Frontend, first_error, scan, step_boundaries};

/// Bytes of the parameters that the portals of statements of the proxy's own keep, at most.
const BOUND_BYTES_MAX: usize = 1 << 20;

impl Session {
    /// Takes one message of the extended protocol.
    pub(super) async fn extended(&mut self, message: Frontend) -> Result<(), End> {
        let mut parses_unnamed = false;
        let outcome = match message {
            Frontend::Parse {
                name,
                text,
                parameter_types,
            } => {
                parses_unnamed = name.is_empty();
                self.parse(name, text, parameter_types).await
            }
            Frontend::Bind(bind) => match self.check_shape(&bind.statement).await {
                Ok(()) => self.bind(bind),
                Err(error) => Err(error),
            },
            Frontend::DescribeStatement(name) => match self.check_shape(&name).await {
                Ok(()) => self.describe_statement(&name),
                Err(error) => Err(error),
            },
            Frontend::DescribePortal(name) => self.describe_portal(name),
            Frontend::Execute { portal, max_rows } => {
                self.execute_portal(portal, max_rows).await?;
                Ok(())
            }
            Frontend::CloseStatement(name) => {
                self.close_statement(name);
                Ok(())
            }
            Frontend::ClosePortal(name) => {
                self.close_portal(name);
                Ok(())
            }
            Frontend::Flush => {
                self.run_pipeline(false).await?;
                self.connection.flush().await?;
                Ok(())
            }
            _ => Ok(()),
        };
        match outcome {
            Ok(()) if self.pipeline.is_full() => {
                self.run_pipeline(false).await?;
                self.connection.flush().await?;
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) => {
                let is_first = self.pipeline_error(&error).await?;
                if is_first && parses_unnamed {
                    self.forget_statement("");
                }
                Ok(())
            }
        }
    }

    async fn parse(
        &mut self,
        name: String,
        mut text: String,
        parameter_types: Vec<u32>,
    ) -> Result<(), ApplicationError> {
        let mut analysis = self.analysis_of(&text);
        if analysis.statements.len() > 1 {
            return Err(ApplicationError::new(
                "42601",
                "cannot insert multiple commands into a prepared statement",
            ));
        }
        let class_of = |analysis: &sql::analysis::TextAnalysis| {
            analysis
                .statements
                .first()
                .map_or(StatementClass::Empty, |statement| statement.class.clone())
        };
        let mut class = class_of(&analysis);
        if let StatementClass::Execute { name } = &class {
            self.check_shape(name).await?;
            text = self.expand_execute(name, &text)?;
            analysis = self.analysis_of(&text);
            class = class_of(&analysis);
        }
        if let StatementClass::Refused(refusal) = class {
            self.shared.metrics.refused(refusal.rule, refusal.sqlstate);
            return Err(refusal.into());
        }
        check_declared(&class, &parameter_types)?;
        let special = class == StatementClass::Empty || is_special(&class, &text);
        let statement = StatementText { text, parameter_types };
        let held = self.held.concerns(&class);
        let known = !special && !is_cursor(&class) && self.known_description(&statement).is_some();
        let before = self.keep_statement(&name, Prepared::new(statement, class, special))?;
        if special || held || known {
            self.pipeline.insert(Backend::parse_complete);
        } else if let Some(prepared) = self.statements.get(&name).cloned() {
            let statement = self.pipeline.index(&prepared);
            self.pipeline.steps.push(Step::Parse { statement });
        }
        self.pipeline.changed(Undo::Parse(name, before));
        Ok(())
    }

    fn bind(&mut self, bind: Bind) -> Result<(), ApplicationError> {
        let prepared = self
            .statements
            .get(&bind.statement)
            .cloned()
            .ok_or_else(|| no_statement(&bind.statement))?;
        // Whether the proxy answers FETCH is known now: its cursor may have come to be held since the Parse.
        let held = self.held.concerns(&prepared.class);
        let columns = match held {
            true => Some(self.held.width(&prepared.class)),
            false if prepared.special => Some(special_columns(&prepared.class, &prepared.statement.text).len()),
            false => None,
        };
        check_bind(&bind, &prepared, columns)?;
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            return Err(ApplicationError::new(
                "42P03",
                format!("portal \"{}\" already exists", bind.portal),
            ));
        }
        if self.is_held(&bind.portal) {
            return Err(already_exists(&bind.portal));
        }
        let portal = if prepared.special || held {
            let bound = Arc::new(Bound::of(&bind)?);
            let kept = self.portals.values().map(Portal::bound_bytes).sum::<usize>();
            if kept + bound.bytes() > BOUND_BYTES_MAX {
                return Err(ApplicationError::new(
                    "54000",
                    "too many or too large parameters of settings in portals",
                ));
            }
            self.pipeline.insert(Backend::bind_complete);
            self.pipeline.bytes += bound.bytes();
            Portal::Special {
                prepared,
                formats: bind.result_formats,
                bound,
            }
        } else {
            let statement = self.pipeline.index(&prepared);
            let formats = bind.parameter_formats.len() + bind.result_formats.len();
            let parameters = bind.parameters.iter().flatten().map(Bytes::len).sum::<usize>();
            self.pipeline.bytes += parameters + 2 * formats + 4 * bind.parameters.len() + 2 * bind.portal.len();
            self.pipeline.stateful |= !bind.portal.is_empty() || is_cursor(&prepared.class);
            self.pipeline.steps.push(Step::Bind {
                portal: bind.portal.clone(),
                statement,
                parameter_formats: bind.parameter_formats,
                parameters: bind.parameters,
                result_formats: bind.result_formats,
            });
            self.pipeline.bound.push(bind.portal.clone());
            Portal::Backend
        };
        let before = self.portals.insert(bind.portal.clone(), portal);
        self.pipeline.changed(Undo::Portal(bind.portal, before));
        Ok(())
    }

    async fn execute_portal(&mut self, name: String, max_rows: u32) -> Result<(), End> {
        match self.portals.get(&name) {
            Some(Portal::Special {
                prepared,
                formats,
                bound,
            }) => {
                let (prepared, formats, bound) = (Arc::clone(prepared), formats.clone(), Arc::clone(bound));
                self.execute_special(&prepared, &formats, &bound).await
            }
            None if !self.is_begun() => self.pipeline_error(&no_portal(&name)).await.map(|_| ()),
            _ => {
                self.pipeline.stateful |= max_rows > 0 || !self.pipeline.bound.contains(&name);
                self.pipeline.bytes += name.len();
                self.pipeline.steps.push(Step::Execute { portal: name, max_rows });
                Ok(())
            }
        }
    }

    fn close_statement(&mut self, name: String) {
        let before = self.forget_statement(&name);
        self.pipeline.insert(Backend::close_complete);
        self.pipeline.changed(Undo::Close(name, before));
    }

    fn close_portal(&mut self, name: String) {
        let before = self.portals.remove(&name);
        if before.is_none() {
            self.close_held(&name);
        }
        match &before {
            Some(Portal::Backend) => {
                self.pipeline.stateful |= !self.pipeline.bound.contains(&name);
                self.pipeline.steps.push(Step::ClosePortal { portal: name.clone() });
            }
            _ => self.pipeline.insert(Backend::close_complete),
        }
        self.pipeline.changed(Undo::Portal(name, before));
    }

    /// Sync: everything gathered runs, and an implicit block ends.
    pub(super) async fn sync(&mut self) -> Result<(), End> {
        if self.skip_to_sync {
            self.pipeline = Pipeline::default();
        } else {
            self.run_pipeline(true).await?;
        }
        self.skip_to_sync = false;
        self.end_implicit().await;
        if self.transaction.is_none() {
            self.portals.clear();
        }
        self.ready().await
    }

    /// Runs what was gathered as one exchange. Without a Sync behind it, more of the same transaction may follow.
    pub(super) async fn run_pipeline(&mut self, at_sync: bool) -> Result<(), End> {
        let mut pipeline = std::mem::take(&mut self.pipeline);
        if pipeline.steps.is_empty() {
            for (_, messages) in &pipeline.inserts {
                self.connection.deliver(messages).await?;
            }
            return Ok(());
        }
        let stays_open = !at_sync && pipeline.has_bind();
        if stays_open {
            self.begin_implicitly();
        }
        let epoch = self.catalog.epoch();
        let exchange = pipeline.exchange();
        let outcome = self
            .execute(&exchange, Kind::stateful(pipeline.stateful || stays_open))
            .await;
        match outcome {
            Ok(result) => self.pipeline_result(pipeline, result, epoch).await,
            Err(error) => {
                let first = pipeline.inserts.iter().take_while(|(after, _)| *after == 0);
                first.for_each(|(_, messages)| self.connection.out.raw(messages));
                self.take_back(pipeline.undo, 0);
                self.report(&error);
                self.stop_pipeline();
                Ok(())
            }
        }
    }

    async fn pipeline_result(&mut self, pipeline: Pipeline, result: VotedResult, epoch: u64) -> Result<(), End> {
        let failed = scan(&result.messages).failed;
        let boundaries = step_boundaries(&result.messages);
        if result.before.is_none() {
            for (step, key, prepared) in &pipeline.described {
                if let Some(messages) = step_messages(&result.messages, &boundaries, *step) {
                    prepared.is_described_by(&messages, epoch);
                    self.shared.descriptions.keep(*key, epoch, messages);
                }
            }
        }
        let mut pieces = WithInserts {
            inserts: &pipeline.inserts,
            completed: 0,
        };
        if let Some(before) = result.before
            && !self.release_chunks(before, &mut pieces).await?
        {
            let completed = pieces.completed;
            self.take_back(pipeline.undo, completed);
            self.stop_pipeline();
            return Ok(());
        }
        pieces.write(&mut self.connection, &result.messages).await?;
        if failed {
            if let Some(error) = first_error(&result.messages) {
                self.shared.metrics.error(&error.sqlstate);
            }
            let completed = pieces.completed;
            self.take_back(pipeline.undo, completed);
            self.stop_pipeline();
        }
        Ok(())
    }

    /// Delivers the result of one statement that ran by itself.
    pub(super) async fn deliver_result(&mut self, messages: &Bytes) -> Result<(), End> {
        self.connection.deliver(messages).await?;
        if scan(messages).failed {
            self.stop_pipeline();
        }
        Ok(())
    }

    /// Takes back what happened after the last step that was completed.
    fn take_back(&mut self, undo: Vec<(usize, Undo)>, completed: usize) {
        for (needs, undo) in undo.into_iter().rev().filter(|(needs, _)| *needs > completed) {
            debug_assert!(needs > completed);
            match undo {
                // A Parse of the unnamed statement that fails has removed the one before (as by Postgres).
                Undo::Parse(name, _) if name.is_empty() && needs == completed + 1 => {
                    self.forget_statement(&name);
                }
                Undo::Parse(name, before) | Undo::Close(name, before) => {
                    self.forget_statement(&name);
                    if let Some(before) = before {
                        self.statements.insert(name, before);
                        self.shared.metrics.prepared_statements.increment(1.0);
                    }
                }
                Undo::Portal(name, before) => {
                    match before {
                        Some(before) => self.portals.insert(name, before),
                        None => self.portals.remove(&name),
                    };
                }
            }
        }
    }

    /// An error: what came before is run and answered first. Gives whether that did not fail already.
    pub(super) async fn pipeline_error(&mut self, error: &ApplicationError) -> Result<bool, End> {
        self.run_pipeline(false).await?;
        let is_first = !self.skip_to_sync;
        if is_first {
            self.report(error);
            self.stop_pipeline();
        }
        // Applications may wait for an error without a Sync or Flush.
        self.connection.flush().await?;
        Ok(is_first)
    }

    /// The application pauses without a Sync: what it has sent runs, since it may be waiting for an error. Without an
    /// error nothing is sent before a Flush or Sync.
    pub(super) async fn run_paused_pipeline(&mut self) -> Result<(), End> {
        self.run_pipeline(false).await?;
        if self.skip_to_sync {
            self.connection.flush().await?;
        }
        Ok(())
    }

    /// The rest of the pipeline is skipped; its transaction has failed.
    fn stop_pipeline(&mut self) {
        self.pipeline = Pipeline::default();
        self.skip_to_sync = true;
        self.fail_transaction();
    }
}

/// Pieces of a result between which the proxy's own responses go, each after so many completed steps.
struct WithInserts<'pipeline> {
    inserts: &'pipeline [(usize, Bytes)],
    /// Steps that were completed in the pieces so far.
    completed: usize,
}

impl Pieces for WithInserts<'_> {
    async fn write(&mut self, connection: &mut Connection, piece: &Bytes) -> Result<(), End> {
        if self.inserts.is_empty() {
            // Which steps were completed is asked for only of a piece that fails.
            if scan(piece).failed {
                self.completed += step_boundaries(piece).len();
            }
            return Ok(connection.deliver(piece).await?);
        }
        let boundaries = step_boundaries(piece);
        let mut sent = 0;
        while let Some(((after, messages), rest)) = self.inserts.split_first() {
            let at = match after.saturating_sub(self.completed).checked_sub(1) {
                None => sent,
                Some(step) => match boundaries.get(step) {
                    Some(at) => *at,
                    None => break,
                },
            };
            connection.deliver(&piece.slice(sent..at)).await?;
            connection.deliver(messages).await?;
            sent = at;
            self.inserts = rest;
        }
        self.completed += boundaries.len();
        Ok(connection.deliver(&piece.slice(sent..)).await?)
    }
}

/// The messages that answer one step (counted from 1).
pub(super) fn step_messages(result: &Bytes, boundaries: &[usize], step: usize) -> Option<Bytes> {
    let end = *boundaries.get(step.checked_sub(1)?)?;
    let start = step
        .checked_sub(2)
        .map_or(Some(0), |before| boundaries.get(before).copied())?;
    // Notices of the step before do not belong to it.
    let messages = result.get(start..end)?;
    let clean = sql::result::messages(messages)
        .flatten()
        .all(|(tag, _)| matches!(tag, b't' | b'T' | b'n'));
    clean.then(|| result.slice(start..end))
}

/// What Postgres refuses in a Bind whatever the database holds; how many columns a query has only the database knows.
/// `columns`: how many columns the result has, where the proxy gives it.
fn check_bind(bind: &Bind, prepared: &Prepared, columns: Option<usize>) -> Result<(), ApplicationError> {
    let (formats, supplied, required) = (bind.parameter_formats.len(), bind.parameters.len(), prepared.parameters);
    let violation = |message: String| Err(ApplicationError::new("08P01", message));
    if formats > 1 && formats != supplied {
        return violation(format!(
            "bind message has {formats} parameter formats but {supplied} parameters"
        ));
    }
    if supplied != required {
        let name = &bind.statement;
        return violation(format!(
            "bind message supplies {supplied} parameters, but prepared statement \"{name}\" requires {required}"
        ));
    }
    if let Some(columns) = columns {
        let formats = bind.result_formats.len();
        if formats > 1 && formats != columns {
            return violation(format!(
                "bind message has {formats} result formats but query has {columns} columns"
            ));
        }
    }
    let mut formats = bind.parameter_formats.iter().chain(&bind.result_formats);
    match formats.find(|format| !matches!(format, 0 | 1)) {
        Some(format) => Err(ApplicationError::new(
            "22023",
            format!("unsupported format code: {format}"),
        )),
        None => Ok(()),
    }
}

pub(super) fn no_portal(name: &str) -> ApplicationError {
    ApplicationError::new("34000", format!("portal \"{name}\" does not exist"))
}
