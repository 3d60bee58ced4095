//! Prepared statements: of the extended protocol, and of PREPARE, EXECUTE and DEALLOCATE, which share their names.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sql::operation::StatementText;
use sql::statement::{Setting, StatementClass};

use super::Session;
use super::describe::Shape;
use super::special::{Reply, special_columns};
use super::tokens::{parameters, parenthesised_list, replace_parameters};
use crate::error::ApplicationError;

/// Prepared statements of one session, at most.
const STATEMENTS_MAX: usize = 10_000;
/// The names and texts of one session's prepared statements, in bytes, at most.
const STATEMENTS_BYTES_MAX: usize = 64 << 20;

/// A prepared statement.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) statement: StatementText,
    /// What it is, as far as the proxy treats it apart.
    pub(super) class: StatementClass,
    /// Whether the proxy answers it itself.
    pub(super) special: bool,
    /// How many parameters a Bind must bring.
    pub(super) parameters: usize,
    /// The parameter types that SQL's PREPARE declared, as text.
    declared: Vec<String>,
    /// What to describe in its place: SQL's PREPARE declares types that the statement itself does not tell.
    pub(super) described_as: Option<StatementText>,
    /// The columns that the statement was first described with: they must not change as long as it is prepared.
    shape: OnceLock<Shape>,
    /// The epoch of the catalog at which it had this shape last.
    shape_epoch: AtomicU64,
}

impl Prepared {
    pub(super) fn new(statement: StatementText, class: StatementClass, special: bool) -> Self {
        let counted = match class {
            // Of the others that the proxy runs itself, none takes any.
            StatementClass::Setting(Setting::Configs(_)) | StatementClass::Advisory(_) => parameters(&statement.text),
            _ if special => 0,
            _ => parameters(&statement.text),
        };
        let parameters = counted.max(statement.parameter_types.len());
        Self {
            statement,
            class,
            special,
            parameters,
            declared: Vec::new(),
            described_as: None,
            shape: OnceLock::new(),
            shape_epoch: AtomicU64::new(0),
        }
    }

    /// Whether the catalog has changed since it was last seen to have the shape that it was described with.
    pub(super) fn may_have_changed(&self, epoch: u64) -> bool {
        self.shape.get().is_some() && self.shape_epoch.load(Ordering::Relaxed) != epoch
    }

    /// Takes a description of it; false if it has another shape than at first.
    pub(super) fn is_described_by(&self, messages: &[u8], epoch: u64) -> bool {
        let shape = Shape::of(messages);
        let same = *self.shape.get_or_init(|| shape) == shape;
        if same {
            self.shape_epoch.store(epoch, Ordering::Relaxed);
        }
        same
    }

    /// The statement that is described to learn its columns.
    pub(super) fn described(&self) -> &StatementText {
        self.described_as.as_ref().unwrap_or(&self.statement)
    }

    /// Bytes that it takes, nearly.
    pub(super) fn bytes(&self) -> usize {
        let described = self.described_as.as_ref().map_or(0, |described| described.text.len());
        self.statement.text.len() + described + size_of_val(self.statement.parameter_types.as_slice())
    }
}

/// The prepared statements of a session. Invariant: `bytes` is what names and statements take together.
#[derive(Debug, Default)]
pub(super) struct Statements {
    by_name: HashMap<String, Arc<Prepared>>,
    bytes: usize,
}

impl Statements {
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Prepared>> {
        self.by_name.get(name)
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is room for one more; the one of its name, if any, makes room.
    fn has_room(&self, name: &str, prepared: &Prepared) -> bool {
        let before = self.get(name).map(|before| name.len() + before.bytes());
        let bytes = self.bytes - before.unwrap_or(0) + name.len() + prepared.bytes();
        (before.is_some() || self.len() < STATEMENTS_MAX) && bytes <= STATEMENTS_BYTES_MAX
    }

    pub(super) fn insert(&mut self, name: String, prepared: Arc<Prepared>) -> Option<Arc<Prepared>> {
        let before = self.remove(&name);
        self.bytes += name.len() + prepared.bytes();
        self.by_name.insert(name, prepared);
        before
    }

    fn remove(&mut self, name: &str) -> Option<Arc<Prepared>> {
        let removed = self.by_name.remove(name)?;
        self.bytes -= name.len() + removed.bytes();
        Some(removed)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

pub(super) fn no_statement(name: &str) -> ApplicationError {
    match name {
        "" => ApplicationError::new("26000", "unnamed prepared statement does not exist"),
        name => ApplicationError::new("26000", format!("prepared statement \"{name}\" does not exist")),
    }
}

impl Session {
    /// Keeps a prepared statement; gives the one of this name before.
    pub(super) fn keep_statement(
        &mut self,
        name: &str,
        prepared: Prepared,
    ) -> Result<Option<Arc<Prepared>>, ApplicationError> {
        if !name.is_empty() && self.statements.get(name).is_some() {
            return Err(ApplicationError::new(
                "42P05",
                format!("prepared statement \"{name}\" already exists"),
            ));
        }
        if !self.statements.has_room(name, &prepared) {
            return Err(
                ApplicationError::new("54000", "too many or too large prepared statements in this session")
                    .detail(format!(
                        "A session may have {STATEMENTS_MAX} prepared statements, of {} MiB together.",
                        STATEMENTS_BYTES_MAX >> 20
                    ))
                    .hint("Close or DEALLOCATE those that are not needed any more."),
            );
        }
        let before = self.statements.insert(name.to_owned(), Arc::new(prepared));
        if before.is_none() {
            self.shared.metrics.prepared_statements.increment(1.0);
        }
        Ok(before)
    }

    /// Forgets a prepared statement.
    pub(super) fn forget_statement(&mut self, name: &str) -> Option<Arc<Prepared>> {
        let removed = self.statements.remove(name)?;
        self.shared.metrics.prepared_statements.decrement(1.0);
        Some(removed)
    }

    /// PREPARE: the database checks the statement, the proxy keeps it.
    pub(super) async fn sql_prepare(&mut self, name: &str, body: &str, text: &str) -> Result<Reply, ApplicationError> {
        let analysis = self.analysis_of(body);
        let class = analysis
            .statements
            .first()
            .map_or(StatementClass::Empty, |statement| statement.class.clone());
        if let StatementClass::Refused(refusal) = class {
            return Err(refusal.into());
        }
        let declared = declared_types(text);
        let statement = StatementText {
            text: body.to_owned(),
            parameter_types: Vec::new(),
        };
        // Of what the proxy answers itself, PREPARE takes only queries.
        let is_query = !matches!(class, StatementClass::Setting(Setting::Show(_)));
        let special = is_query && !special_columns(&class, body).is_empty();
        let mut prepared = Prepared::new(statement, class, special);
        if !special {
            prepared.described_as = described_as(body, &declared);
            let epoch = self.catalog.epoch();
            let described = match self.describe_as_prepared(&prepared).await {
                Ok(described) => described,
                Err(error) => {
                    let before = text.len().saturating_sub(body.len());
                    let shift = text.get(..before).map_or(0, |before| before.chars().count());
                    // Of a text that is not the application's, a place says nothing.
                    let position = error.position.filter(|_| declared.is_empty());
                    let position = position.map(|position| position + shift);
                    return Err(ApplicationError { position, ..error });
                }
            };
            prepared.is_described_by(&described, epoch);
        }
        prepared.parameters = prepared.parameters.max(declared.len());
        prepared.declared = declared;
        self.keep_statement(name, prepared)?;
        Ok(Reply::tag("PREPARE"))
    }

    /// DEALLOCATE.
    pub(super) fn sql_deallocate(&mut self, name: Option<&str>) -> Result<Reply, ApplicationError> {
        match name {
            None => {
                self.shared
                    .metrics
                    .prepared_statements
                    .decrement(self.statements.len() as f64);
                self.statements.clear();
                Ok(Reply::tag("DEALLOCATE ALL"))
            }
            Some(name) => {
                self.forget_statement(name).ok_or_else(|| no_statement(name))?;
                Ok(Reply::tag("DEALLOCATE"))
            }
        }
    }

    /// The text that an EXECUTE stands for: the prepared statement's, with the arguments in the place of parameters.
    pub(super) fn expand_execute(&self, name: &str, text: &str) -> Result<String, ApplicationError> {
        let prepared = self.statements.get(name).ok_or_else(|| no_statement(name))?;
        let arguments = arguments(text);
        let body = &prepared.statement.text;
        let expected = parameters(body).max(prepared.declared.len());
        if expected != arguments.len() {
            let message = format!("wrong number of parameters for prepared statement \"{name}\"");
            let detail = format!("Expected {expected} parameters but got {}.", arguments.len());
            return Err(ApplicationError::new("42601", message).detail(detail));
        }
        Ok(replace_parameters(body, |number| {
            let at = number.checked_sub(1)?;
            let argument = arguments.get(at)?;
            Some(match prepared.declared.get(at) {
                Some(declared) if declared != "unknown" => format!("CAST(({argument}) AS {declared})"),
                _ if is_simple_literal(argument) => argument.clone(),
                _ => format!("({argument})"),
            })
        }))
    }
}

/// The statement with NULLs of the declared types for its parameters, if there are any.
fn described_as(body: &str, declared: &[String]) -> Option<StatementText> {
    let text = replace_parameters(body, |number| {
        let declared = declared.get(number.checked_sub(1)?)?;
        (declared != "unknown").then(|| format!("CAST(NULL AS {declared})"))
    });
    (!declared.is_empty()).then_some(StatementText {
        text,
        parameter_types: Vec::new(),
    })
}

/// Whether a literal keeps its open type only without parentheses around it.
fn is_simple_literal(argument: &str) -> bool {
    let quoted = argument.starts_with('\'') && super::tokens::tokens(argument).count() == 1;
    quoted || argument.bytes().all(|byte| byte.is_ascii_digit())
}

/// What follows the name in `PREPARE name ...` and `EXECUTE name ...`.
fn after_name(text: &str) -> &str {
    let mut words = 0;
    let mut consumed = 0;
    for (token, piece) in super::tokens::tokens(text) {
        consumed += piece.len();
        if matches!(token, super::tokens::Token::Other(_)) && !piece.starts_with("--") && !piece.starts_with("/*") {
            words += 1;
            if words == 2 {
                break;
            }
        }
    }
    text.get(consumed..).unwrap_or_default()
}

/// The types in `PREPARE name (types) AS`.
fn declared_types(text: &str) -> Vec<String> {
    parenthesised_list(after_name(text))
        .map(|(types, _)| types)
        .unwrap_or_default()
}

/// The arguments of `EXECUTE name (arguments)`.
fn arguments(text: &str) -> Vec<String> {
    parenthesised_list(after_name(text))
        .map(|(arguments, _)| arguments)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_arguments_are_found() {
        assert_eq!(
            declared_types("PREPARE p (int, numeric(10, 2)) AS SELECT $1"),
            ["int", "numeric(10, 2)"]
        );
        assert_eq!(declared_types("prepare \"a b\" as select (1)"), Vec::<String>::new());
        assert_eq!(arguments("EXECUTE p(1, 'x,y')"), ["1", "'x,y'"]);
        assert_eq!(arguments("execute p"), Vec::<String>::new());
    }
}
