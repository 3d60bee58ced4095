//! Running one exchange: analysis, routing, and what its result means for the session.

use std::time::Instant;

use sql::analysis::ExchangeAnalysis;
use sql::footprint::Resource;
use sql::operation::{Exchange, ExchangeResult, Step};
use sql::refusal::Refusal;
use sql::statement::{Effect, StatementClass};

use super::Session;
use super::block::{Outside, outside_block};
use super::routing::{Kind, Routed};
use super::waiting::waits_for_locks;
use crate::client::{Failure, VotedResult};
use crate::error::{ApplicationError, FOOTPRINT_TOO_SMALL, NOT_SUPPORTED};
use crate::measures::{QueryClass, Stage};
use crate::wire::scan;

/// How often an exchange is tried again with a newer catalog.
const CATALOG_RETRIES_MAX: u32 = 3;

impl From<Refusal> for ApplicationError {
    fn from(refusal: Refusal) -> Self {
        ApplicationError::new(refusal.sqlstate, refusal.message)
            .detail(refusal.detail)
            .hint(refusal.hint)
    }
}

impl Session {
    /// Runs an exchange and gives the voted result (which may hold an error of the database's own).
    ///
    /// On an error, and on a result that fails, the transaction block (if any) has failed.
    pub(super) async fn execute(&mut self, exchange: &Exchange, kind: Kind) -> Result<VotedResult, ApplicationError> {
        let start = Instant::now();
        if self.transaction.as_ref().is_some_and(|transaction| transaction.failed) {
            return Err(ApplicationError::in_failed_transaction());
        }
        // Of a COPY that is under way, the backends have to be told.
        if self.cancel.is_requested() && !continues_copy(exchange) {
            self.fail_transaction();
            return Err(ApplicationError::cancelled());
        }
        let outcome = self.execute_with_retries(exchange, kind, start).await;
        let extended = matches!(exchange, Exchange::Extended { .. });
        match outcome {
            Ok((result, effect)) => {
                self.shared
                    .metrics
                    .query(QueryClass::from(effect), extended, start.elapsed());
                self.note_result(&result, effect);
                Ok(result)
            }
            Err(error) => {
                self.fail_transaction();
                Err(error)
            }
        }
    }

    /// The same for what the proxy itself reads: the whole result is here.
    pub(super) async fn execute_and_gather(
        &mut self,
        exchange: &Exchange,
        kind: Kind,
    ) -> Result<ExchangeResult, ApplicationError> {
        let result = self.execute(exchange, kind).await?;
        let gathered = self.shared.client.gather(result).await;
        gathered.map_err(|failure| {
            self.fail_transaction();
            failure.into_error()
        })
    }

    async fn execute_with_retries(
        &mut self,
        exchange: &Exchange,
        kind: Kind,
        start: Instant,
    ) -> Result<(VotedResult, Effect), ApplicationError> {
        let limits = self.limits(start);
        self.release_until = limits.statement_at;
        let encoded = exchange.encode();
        let mut retries = 0;
        loop {
            let state = self.catalog.current();
            let context = self.context();
            let start = Instant::now();
            let analysis = state.analyzer.exchange_within(exchange, &context.decoded, &self.made());
            self.shared.metrics.stage(Stage::Analyse, start.elapsed());
            let analysis = analysis.map_err(|refusal| {
                self.shared.metrics.refused(refusal.rule, refusal.sqlstate);
                ApplicationError::from(refusal)
            })?;
            if let Some(seen) = self.catalog.stale_version()
                && retries == 0
                && touches_everything(&analysis)
            {
                // What a session has just created is not known yet: that is worth waiting for, rather than to lock it all.
                retries += 1;
                self.refresh_catalog(seen).await;
                continue;
            }
            if analysis.needs_transaction && self.transaction.is_none() {
                return Err(
                    ApplicationError::new(NOT_SUPPORTED, "currval and lastval need an open transaction")
                        .detail("Statements outside a transaction share no session on the database nodes.")
                        .hint("Use INSERT ... RETURNING, or run both statements in one transaction."),
                );
            }
            if self.transaction.is_none() {
                match outside_block(exchange, &analysis) {
                    Outside::Runs => {}
                    Outside::RunsInBlock => self.begin_implicitly(),
                    Outside::Fails(error) => return Err(error),
                }
            }
            self.check_declared_cursors(&analysis)?;
            if analysis.effect == Effect::Maintenance && self.transaction.is_some() {
                return Err(ApplicationError::new(
                    "25001",
                    "maintenance statements cannot run inside a transaction block",
                )
                .hint("Run VACUUM, ANALYZE, REINDEX and the like by themselves."));
            }
            if limits.lock_at.is_some() && kind != Kind::Apart && waits_for_locks(analysis.effect) {
                // What is ordered by itself cannot be given up any more; a transaction can.
                self.begin_implicitly();
            }
            self.made_temporary |= analysis.temporary.makes();
            if let Some(transaction) = &mut self.transaction {
                transaction.used |= analysis.effect >= Effect::Read;
                transaction.made.add(&analysis.temporary);
            }
            let routed = Routed {
                encoded: encoded.clone(),
                several: runs_several(exchange, &analysis),
                copies: continues_copy(exchange),
                analysis: &analysis,
                kind,
            };
            match self.route_within(&routed, limits).await {
                Ok(result) => {
                    self.note_cursors(exchange, &analysis, &result);
                    return Ok((result, analysis.effect));
                }
                Err(Failure::Refused(error)) if error.sqlstate == FOOTPRINT_TOO_SMALL => {
                    let lost = self.transaction.as_ref().is_some_and(|transaction| transaction.doomed);
                    if lost || retries == CATALOG_RETRIES_MAX {
                        return Err(error);
                    }
                    retries += 1;
                    self.refresh_catalog(state.version).await;
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    async fn refresh_catalog(&self, seen: u64) {
        if let Err(error) = self.catalog.refresh_after(&self.shared.client, seen).await {
            tracing::warn!(%error, "the catalog could not be refreshed");
        }
    }

    fn note_result(&mut self, result: &VotedResult, effect: Effect) {
        let failed = scan(&result.messages).failed;
        if let Some(transaction) = &mut self.transaction {
            transaction.catalog_changed |= effect == Effect::Ddl;
            transaction.failed |= failed || result.status == b'E';
        }
    }

    /// An error happened: a block fails.
    pub(super) fn fail_transaction(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
        }
    }
}

/// Whether an exchange is a part of a COPY that is under way.
fn continues_copy(exchange: &Exchange) -> bool {
    matches!(
        exchange,
        Exchange::CopyData { .. } | Exchange::CopyEnd { .. } | Exchange::Stored { .. }
    )
}

/// Whether several statements of an exchange run: each may read another state.
fn runs_several(exchange: &Exchange, analysis: &ExchangeAnalysis) -> bool {
    match exchange {
        Exchange::Simple { .. } => {
            let statements = analysis.texts.iter().flat_map(|text| &text.statements);
            statements
                .filter(|statement| statement.class != StatementClass::Empty)
                .count()
                > 1
        }
        Exchange::Extended { steps, .. } => {
            let executes = steps.iter().filter(|step| matches!(step, Step::Execute { .. }));
            executes.count() > 1
        }
        _ => false,
    }
}

/// Whether everything is touched, though no DDL is done.
fn touches_everything(analysis: &ExchangeAnalysis) -> bool {
    let everything = analysis
        .footprint
        .entries()
        .first()
        .is_some_and(|(first, _)| *first == Resource::Everything);
    everything && !matches!(analysis.effect, Effect::Ddl | Effect::Maintenance)
}
