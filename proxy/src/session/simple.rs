//! Simple Query: one text, one or several statements.

use std::ops::Range;
use std::sync::Arc;

use sql::analysis::{StatementAnalysis, TextAnalysis};
use sql::operation::Exchange;
use sql::statement::{Cursor, StatementClass};

use super::configs::Bound;
use super::held::Wire;
use super::release::Whole;
use super::routing::Kind;
use super::special::{Reply, is_special, special_columns};
use super::{End, Session};
use crate::client::VotedResult;
use crate::error::ApplicationError;
use crate::wire::{scan, shift_error_position};

/// A part of a text that is run at once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// Statements that go to the voters as they are, by their place in the text.
    Plain { range: Range<usize>, stateful: bool },
    /// A statement that the proxy treats apart, by its number.
    Special(usize),
}

/// What the session must do before the next segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    /// An error: the rest of the text is not run.
    Stop,
}

impl Session {
    /// Runs a Query message.
    pub(super) async fn simple_query(&mut self, text: String) -> Result<(), End> {
        if !self.pipeline.is_empty() {
            self.run_pipeline(true).await?;
        }
        self.skip_to_sync = false;
        self.forget_statement("");
        self.portals.remove("");
        let analysis = self.analysis_of(literal_set_config(&text));
        self.run_text(&analysis).await?;
        self.end_implicit().await;
        if self.transaction.is_none() {
            self.portals.clear();
        }
        self.ready().await
    }

    async fn run_text(&mut self, analysis: &Arc<TextAnalysis>) -> Result<(), End> {
        let text = analysis.text();
        let statements = &analysis.statements;
        if statements
            .iter()
            .all(|statement| statement.class == StatementClass::Empty)
        {
            self.connection.out.empty_query_response();
            return Ok(());
        }
        let segments = segments(text, statements, self.may_hold(statements));
        if let [Segment::Plain { stateful, .. }] = segments.as_slice() {
            let exchange = Exchange::Simple { text: text.to_owned() };
            let outcome = self.execute(&exchange, Kind::stateful(*stateful)).await;
            self.answer(outcome).await?;
            return Ok(());
        }
        let several = segments.len() > 1;
        for segment in segments {
            let flow = match segment {
                Segment::Plain { range, stateful } => {
                    self.begin_implicitly();
                    self.run_plain(text, range, stateful).await?
                }
                Segment::Special(index) => {
                    let Some(statement) = statements.get(index) else {
                        continue;
                    };
                    self.run_special_statement(text, statement, several).await?
                }
            };
            if flow == Flow::Stop {
                break;
            }
        }
        Ok(())
    }

    async fn run_plain(&mut self, text: &str, range: Range<usize>, stateful: bool) -> Result<Flow, End> {
        let before = text.get(..range.start).map_or(0, |before| before.chars().count());
        let part = text.get(range).unwrap_or_default();
        let mut outcome = self
            .execute(&Exchange::Simple { text: part.to_owned() }, Kind::stateful(stateful))
            .await;
        if let Ok(result) = &mut outcome {
            result.messages = shift_error_position(&result.messages, before);
        }
        self.answer(outcome).await
    }

    async fn run_special_statement(
        &mut self,
        text: &str,
        statement: &StatementAnalysis,
        several: bool,
    ) -> Result<Flow, End> {
        let part = text.get(statement.range.clone()).unwrap_or_default().trim();
        match &statement.class {
            StatementClass::Execute { name } => {
                let checked = match self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
                    true => Err(ApplicationError::in_failed_transaction()),
                    false => self.check_shape(name).await,
                };
                let expanded = match checked.and_then(|()| self.expand_execute(name, part)) {
                    Ok(expanded) => expanded,
                    Err(error) => {
                        let error = self.failing(error);
                        return self.answer(Err(error)).await;
                    }
                };
                if several {
                    self.begin_implicitly();
                }
                let analysis = self.analysis_of(&expanded);
                if let [only] = analysis.statements.as_slice()
                    && is_special(&only.class, &expanded)
                    && !matches!(only.class, StatementClass::CopyFrom)
                {
                    return self.answer_special(&only.class, &expanded).await;
                }
                let outcome = self.execute(&Exchange::Simple { text: expanded }, Kind::Plain).await;
                self.answer(outcome).await
            }
            StatementClass::CopyFrom => {
                self.begin_implicitly();
                let outcome = self.copy_from(part).await?;
                self.answer(outcome.map(VotedResult::of_messages)).await
            }
            StatementClass::Refused(refusal) => {
                self.shared.metrics.refused(refusal.rule, refusal.sqlstate);
                let error = self.failing(refusal.clone().into());
                self.answer(Err(error)).await
            }
            class => {
                if several && !matches!(class, StatementClass::TransactionControl(_)) {
                    self.begin_implicitly();
                }
                match class {
                    class if self.held.concerns(class) => match self.answer_held(class, Wire::Simple).await? {
                        Ok(()) => Ok(Flow::Continue),
                        Err(error) => self.answer(Err(error)).await,
                    },
                    StatementClass::Cursor(_) => self.run_plain(text, statement.range.clone(), true).await,
                    class => self.answer_special(class, part).await,
                }
            }
        }
    }

    async fn answer_special(&mut self, class: &StatementClass, text: &str) -> Result<Flow, End> {
        match self.run_special(class, text, &Bound::default()).await {
            Ok(reply) => {
                self.write_reply(&reply, class, text);
                Ok(Flow::Continue)
            }
            Err(error) => self.answer(Err(error)).await,
        }
    }

    /// An error of the proxy's own: an open block fails.
    fn failing(&mut self, error: ApplicationError) -> ApplicationError {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return ApplicationError::in_failed_transaction();
        }
        self.fail_transaction();
        error
    }

    fn write_reply(&mut self, reply: &Reply, class: &StatementClass, text: &str) {
        let columns = special_columns(class, text);
        if !columns.is_empty() {
            self.connection.out.columns(&columns, |_| 0);
        }
        for row in &reply.rows {
            self.connection
                .out
                .row(row.iter().map(|value| value.as_ref().map(String::as_bytes)));
        }
        self.connection.out.command_complete(&reply.tag);
    }

    async fn answer(&mut self, outcome: Result<VotedResult, ApplicationError>) -> Result<Flow, End> {
        match outcome {
            Ok(VotedResult { before, messages, .. }) => {
                if let Some(before) = before
                    && !self.release_chunks(before, &mut Whole).await?
                {
                    return Ok(Flow::Stop);
                }
                let failed = scan(&messages).failed;
                if let Some(error) = failed.then(|| crate::wire::first_error(&messages)).flatten() {
                    self.shared.metrics.error(&error.sqlstate);
                }
                self.connection.deliver(&messages).await?;
                Ok(if failed { Flow::Stop } else { Flow::Continue })
            }
            Err(error) => {
                self.report(&error);
                Ok(Flow::Stop)
            }
        }
    }

    /// Ends the implicit block of a text or a pipeline: commits it, or rolls it back when it has failed.
    pub(super) async fn end_implicit(&mut self) {
        if self.transaction.as_ref().is_none_or(|transaction| transaction.explicit) {
            return;
        }
        if let Err(error) = self.commit().await {
            self.report(&error);
        }
    }
}

/// pg_dump's own way to set a parameter that old servers lack (CVE-2024-7348), as a plain `set_config`.
fn literal_set_config(text: &str) -> &str {
    match text {
        "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = \
         'restrict_nonsystem_relation_kind'" => {
            "SELECT set_config('restrict_nonsystem_relation_kind', 'view, foreign-table', false)"
        }
        text => text,
    }
}

/// Divides a text into parts that go to the voters and statements that the proxy treats apart. `may_hold`: whether the proxy may answer
/// statements about cursors when they are reached.
fn segments(text: &str, statements: &[StatementAnalysis], may_hold: bool) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (index, statement) in statements.iter().enumerate() {
        let part = text.get(statement.range.clone()).unwrap_or_default();
        let apart = is_special(&statement.class, part)
            || matches!(
                statement.class,
                StatementClass::Execute { .. } | StatementClass::Refused(_)
            );
        let is_cursor = matches!(statement.class, StatementClass::Cursor(_));
        let apart = apart || may_hold && is_cursor && !is_declare(&statement.class);
        match segments.last_mut() {
            _ if statement.class == StatementClass::Empty => {}
            _ if apart => segments.push(Segment::Special(index)),
            Some(Segment::Plain { range, stateful }) => {
                range.end = statement.range.end;
                *stateful |= is_cursor;
            }
            _ => segments.push(Segment::Plain {
                range: statement.range.clone(),
                stateful: is_cursor,
            }),
        }
    }
    segments
}

fn is_declare(class: &StatementClass) -> bool {
    matches!(class, StatementClass::Cursor(Cursor::Declare { .. }))
}

/// Whether a statement's class concerns a cursor.
pub(super) fn is_cursor(class: &StatementClass) -> bool {
    matches!(class, StatementClass::Cursor(_))
}
