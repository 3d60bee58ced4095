//! `SELECT set_config(...), current_setting(...), ...`: settings that are changed by a query, with parameters too.

use bytes::Bytes;
use sql::operation::Exchange;
use sql::statement::{
    AdvisoryArgument, ConfigArgument, ConfigCall, ConfigColumn, StatementClass, pinned_value, setting_refusal,
};

use super::Session;
use super::advisory::advisory_parameters;
use super::routing::Kind;
use super::set::shown_default;
use super::special::{BOOL_OID, Reply, TEXT_OID, is_shown_here};
use super::tokens::quote_literal;
use crate::error::ApplicationError;
use crate::wire::{Bind, first_error, format_of, read_rows};

/// Bytes of the parameters of one such statement, at most.
const BOUND_BYTES_MAX: usize = 256 << 10;

/// The parameters of a statement that the proxy runs itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Bound {
    values: Vec<Option<Bytes>>,
    formats: Vec<i16>,
}

impl Bound {
    /// Those of a Bind; they are kept as long as its portal.
    pub(super) fn of(bind: &Bind) -> Result<Self, ApplicationError> {
        let bound = Self {
            // Copies of their own: a slice would keep the whole message.
            values: bind
                .parameters
                .iter()
                .map(|value| value.as_deref().map(Bytes::copy_from_slice))
                .collect(),
            formats: bind.parameter_formats.clone(),
        };
        match bound.bytes() <= BOUND_BYTES_MAX {
            true => Ok(bound),
            false => Err(ApplicationError::new(
                "54000",
                "too many or too large parameters of settings",
            )),
        }
    }

    /// Bytes that they take, nearly.
    pub(super) fn bytes(&self) -> usize {
        let values = self.values.iter().map(|value| value.as_ref().map_or(0, Bytes::len));
        values.sum::<usize>() + size_of_val(self.values.as_slice()) + size_of_val(self.formats.as_slice())
    }

    /// The value of an argument as text; `None` for NULL.
    fn text(&self, argument: &ConfigArgument) -> Result<Option<String>, ApplicationError> {
        let number = match argument {
            ConfigArgument::Literal(value) => return Ok(Some(value.clone())),
            ConfigArgument::Null => return Ok(None),
            ConfigArgument::Parameter(number) => *number,
        };
        let value = self.parameter(number)?.0;
        value
            .map(|value| {
                let text = std::str::from_utf8(value);
                text.map(str::to_owned)
                    .map_err(|_| ApplicationError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
            })
            .transpose()
    }

    /// The value of a Boolean argument; NULL is false.
    fn boolean(&self, argument: &ConfigArgument) -> Result<bool, ApplicationError> {
        if let ConfigArgument::Parameter(number) = argument
            && let (Some(value), 1) = self.parameter(*number)?
        {
            return match value {
                [byte] => Ok(*byte != 0),
                _ => Err(ApplicationError::new("22P03", "incorrect binary data format")),
            };
        }
        let Some(text) = self.text(argument)? else {
            return Ok(false);
        };
        parse_boolean(&text)
            .ok_or_else(|| ApplicationError::new("22P02", format!("invalid input syntax for type boolean: \"{text}\"")))
    }

    /// The value of an integer argument; `None` for NULL.
    pub(super) fn integer(&self, argument: &AdvisoryArgument) -> Result<Option<i64>, ApplicationError> {
        let number = match argument {
            AdvisoryArgument::Number(number) => return Ok(Some(*number)),
            AdvisoryArgument::Null => return Ok(None),
            AdvisoryArgument::Parameter(number, _) => *number,
        };
        let (Some(value), format) = self.parameter(number)? else {
            return Ok(None);
        };
        if format == 1 {
            let short = value
                .first_chunk::<2>()
                .map(|bytes| i64::from(i16::from_be_bytes(*bytes)));
            let int = value
                .first_chunk::<4>()
                .map(|bytes| i64::from(i32::from_be_bytes(*bytes)));
            let long = value.first_chunk::<8>().map(|bytes| i64::from_be_bytes(*bytes));
            let read = match value.len() {
                2 => short,
                4 => int,
                8 => long,
                _ => None,
            };
            let incorrect = || ApplicationError::new("22P03", "incorrect binary data format");
            return read.map(Some).ok_or_else(incorrect);
        }
        let text = String::from_utf8_lossy(value);
        let no_integer = |_| {
            let message = format!("invalid input syntax for type bigint: \"{text}\"");
            ApplicationError::new("22P02", message)
        };
        text.trim().parse().map(Some).map_err(no_integer)
    }

    /// A parameter, with its format.
    fn parameter(&self, number: u16) -> Result<(Option<&[u8]>, i16), ApplicationError> {
        let index = usize::from(number).checked_sub(1);
        let value = index.and_then(|index| self.values.get(index));
        let value = value.ok_or_else(|| ApplicationError::new("42P02", format!("there is no parameter ${number}")))?;
        let format = index.map_or(0, |index| format_of(&self.formats, index));
        Ok((value.as_deref(), format))
    }
}

/// As Postgres reads a Boolean: any beginning of a word that is not ambiguous.
fn parse_boolean(text: &str) -> Option<bool> {
    let text = text.trim().to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if begins("true", 1) || begins("yes", 1) || text == "on" || text == "1" {
        return Some(true);
    }
    (begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0").then_some(false)
}

/// The types of such a statement's parameters: as declared, else as PostgreSQL infers them.
pub(super) fn parameter_types(class: &StatementClass, declared: &[u32], count: usize) -> Vec<u32> {
    let mut types = vec![TEXT_OID; count];
    if let StatementClass::Setting(sql::statement::Setting::Configs(columns)) = class {
        for (argument, is_boolean) in columns.iter().flat_map(|column| column.call.arguments()) {
            if let ConfigArgument::Parameter(number) = argument
                && let Some(inferred) = usize::from(*number)
                    .checked_sub(1)
                    .and_then(|index| types.get_mut(index))
                && is_boolean
            {
                *inferred = BOOL_OID;
            }
        }
    }
    if let StatementClass::Advisory(columns) = class {
        for (number, oid) in advisory_parameters(columns) {
            let at = usize::from(number).checked_sub(1);
            if let Some(inferred) = at.and_then(|at| types.get_mut(at)) {
                *inferred = oid;
            }
        }
    }
    for (inferred, declared) in types.iter_mut().zip(declared) {
        if *declared != 0 {
            *inferred = *declared;
        }
    }
    types
}

impl Session {
    /// Runs the calls from left to right, as PostgreSQL does.
    pub(super) async fn run_configs(
        &mut self,
        columns: &[ConfigColumn],
        bound: &Bound,
    ) -> Result<Reply, ApplicationError> {
        let mut values = Vec::with_capacity(columns.len());
        for column in columns {
            values.push(match &column.call {
                ConfigCall::Set { name, value, local } => {
                    let name = bound
                        .text(name)?
                        .ok_or_else(|| ApplicationError::new("22004", "SET requires parameter name"))?;
                    let (value, local) = (bound.text(value)?, bound.boolean(local)?);
                    Some(self.set_config(&name.to_ascii_lowercase(), value, local).await?)
                }
                ConfigCall::Show { name, may_lack } => match bound.text(name)? {
                    Some(name) => self.current_setting(&name, bound.boolean(may_lack)?).await?,
                    None => None,
                },
            });
        }
        Ok(Reply::row(values))
    }

    /// `set_config`, of a name in lower case: gives the value in force, as PostgreSQL writes it.
    pub(super) async fn set_config(
        &mut self,
        name: &str,
        value: Option<String>,
        local: bool,
    ) -> Result<String, ApplicationError> {
        if let Some(refusal) = value.as_deref().and_then(|value| setting_refusal(name, value)) {
            self.shared.metrics.refused(refusal.rule, refusal.sqlstate);
            return Err(refusal.into());
        }
        let resets = value.is_none();
        let shown = self.change_setting(name, value, local, true).await?;
        match shown.filter(|_| !resets) {
            Some(shown) => Ok(shown),
            // A setting of the application's own that is taken back is not there on other backends.
            None => Ok(self.current_setting(name, true).await?.unwrap_or_default()),
        }
    }

    /// `current_setting`.
    async fn current_setting(&mut self, name: &str, may_lack: bool) -> Result<Option<String>, ApplicationError> {
        let lower = name.to_ascii_lowercase();
        if shown_default(&lower).is_some() || is_shown_here(&lower) {
            return Ok(Some(self.show(&lower)));
        }
        if let Some(pinned) = pinned_value(&lower) {
            return Ok(Some(pinned.to_owned()));
        }
        let text = format!("SELECT pg_catalog.current_setting({}, {may_lack})", quote_literal(name));
        let result = self.execute_and_gather(&Exchange::Simple { text }, Kind::Plain).await?;
        if let Some(error) = first_error(&result.messages) {
            return Err(ApplicationError {
                position: None,
                ..error
            });
        }
        Ok(read_rows(&result.messages).and_then(|rows| rows.into_iter().next()?.into_iter().next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_as_by_postgres() {
        for (text, expected) in [
            ("t", Some(true)),
            ("TRUE", Some(true)),
            (" y ", Some(true)),
            ("on", Some(true)),
            ("o", None),
            ("of", Some(false)),
            ("n", Some(false)),
            ("0", Some(false)),
            ("", None),
            ("truely", None),
        ] {
            assert_eq!(parse_boolean(text), expected, "{text}");
        }
    }
}
