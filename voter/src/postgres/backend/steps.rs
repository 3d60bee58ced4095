//! From an exchange to the messages that carry it, with prepared statements taken from the backend's cache.

use std::sync::Arc;

use sql::operation::{Exchange, StatementText, Step};

use super::{Backend, Job};
use crate::postgres::PostgresError;
use crate::postgres::prepared::PreparedKey;
use crate::postgres::script::{Part, Script};

/// The names of an exchange's statements on this backend, as far as the exchange has needed them.
type Names = Vec<Option<String>>;

impl Backend {
    /// The messages of an exchange, with the Sync that ends it.
    pub(super) fn add_exchange(&mut self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        if self.add_messages(script, job)? {
            script.sync();
        }
        Ok(())
    }

    /// The messages of an exchange, and whether a Sync ends it: a Query needs none.
    ///
    /// A text of one statement runs by the extended protocol, in which the server itself takes no second one.
    pub(super) fn add_messages(&mut self, script: &mut Script, job: &Job) -> Result<bool, PostgresError> {
        self.note(job);
        if std::mem::take(&mut self.drop_prepared) {
            for name in self.prepared.clear() {
                script.close(Part::Own, b'S', &name)?;
            }
        }
        match &job.exchange {
            Exchange::Extended { statements, steps } => {
                let mut names: Names = vec![None; statements.len()];
                for step in steps {
                    self.add_step(script, job, statements, &mut names, step)?;
                }
                for name in self.prepared.evict() {
                    script.close(Part::Own, b'S', &name)?;
                }
            }
            _ => {
                if script.ends_without_sync() {
                    script.sync();
                }
                let text = job.analysis.texts.first().map_or("", |text| text.executable());
                let single = job
                    .analysis
                    .texts
                    .first()
                    .is_some_and(|text| text.statements.len() == 1);
                if !single {
                    script.query(Part::Client, text)?;
                    return Ok(false);
                }
                script.parse(Part::Silent, "", text, &[], None)?;
                script.bind(Part::Silent, "", "", &[], &[], &[])?;
                script.describe_rows("")?;
                script.execute(Part::Client, "", 0)?;
            }
        }
        Ok(true)
    }

    fn add_step(
        &mut self,
        script: &mut Script,
        job: &Job,
        statements: &[StatementText],
        names: &mut Names,
        step: &Step,
    ) -> Result<(), PostgresError> {
        match step {
            Step::Parse { statement } => {
                self.prepare_statement(script, job, statements, names, *statement, Part::Client)?
            }
            Step::DescribeStatement { statement } => {
                self.prepare_statement(script, job, statements, names, *statement, Part::Silent)?;
                script.describe_statement(Part::Client, name_of(names, *statement))?;
            }
            Step::Bind {
                portal,
                statement,
                parameter_formats,
                parameters,
                result_formats,
            } => {
                self.prepare_statement(script, job, statements, names, *statement, Part::Silent)?;
                let name = name_of(names, *statement);
                script.bind(
                    Part::Client,
                    portal,
                    name,
                    parameter_formats,
                    parameters,
                    result_formats,
                )?;
            }
            Step::DescribePortal { portal } => script.describe_portal(Part::Client, portal)?,
            Step::Execute { portal, max_rows } => script.execute(Part::Client, portal, *max_rows)?,
            Step::ClosePortal { portal } => script.close(Part::Client, b'P', portal)?,
        }
        Ok(())
    }

    /// Makes sure that a statement has a name on this backend. As [`Part::Client`] it answers the client's Parse.
    fn prepare_statement(
        &mut self,
        script: &mut Script,
        job: &Job,
        statements: &[StatementText],
        names: &mut Names,
        index: u16,
        part: Part,
    ) -> Result<(), PostgresError> {
        let at = usize::from(index);
        let known = names.get(at).is_some_and(Option::is_some);
        let (Some(statement), Some(analysis)) = (statements.get(at), job.analysis.texts.get(at)) else {
            return Err(PostgresError::protocol(
                "an exchange names a statement that it does not hold",
            ));
        };
        let key = PreparedKey {
            text: Arc::from(analysis.executable()),
            parameter_types: statement.parameter_types.clone(),
            settings: self.settings_hash,
        };
        let found = if known {
            names.get(at).cloned().flatten()
        } else {
            self.prepared.find(&key)
        };
        let name = match found {
            Some(name) => {
                if part == Part::Client {
                    script.parsed();
                }
                name
            }
            None => {
                let name = self.prepared.new_name();
                let types = statement.parameter_types.iter().copied();
                script.parse(part, &name, &key.text.clone(), &types.collect::<Vec<_>>(), Some(key))?;
                name
            }
        };
        if let Some(slot) = names.get_mut(at) {
            *slot = Some(name);
        }
        Ok(())
    }
}

fn name_of(names: &Names, index: u16) -> &str {
    names
        .get(usize::from(index))
        .and_then(Option::as_deref)
        .unwrap_or_default()
}
