//! FunctionCall, by which libpq and the drivers that build on it work with large objects (`docs/decisions/0056`). The call becomes a SELECT of the
//! function with the same parameters.

use bytes::Bytes;
use sql::operation::{Exchange, StatementText, Step};
use sql::result::messages;

use super::routing::Kind;
use super::{End, Session};
use crate::error::ApplicationError;
use crate::wire::{FunctionCall, first_error, format_of};

const INT4: u32 = 23;
const INT8: u32 = 20;
const OID: u32 = 26;
const BYTEA: u32 = 17;

/// A function that may be called: its number in every PostgreSQL database, its name, and the types of its arguments.
type Callable = (u32, &'static str, &'static [u32]);

/// The functions of large objects.
const CALLABLE: [Callable; 17] = [
    (715, "lo_create", &[OID]),
    (952, LO_OPEN, &[OID, INT4]),
    (953, "lo_close", &[INT4]),
    (954, "loread", &[INT4, INT4]),
    (955, "lowrite", &[INT4, BYTEA]),
    (956, "lo_lseek", &[INT4, INT4, INT4]),
    (957, "lo_creat", &[INT4]),
    (958, "lo_tell", &[INT4]),
    (964, "lo_unlink", &[OID]),
    (1004, "lo_truncate", &[INT4, INT4]),
    (3170, "lo_lseek64", &[INT4, INT8, INT4]),
    (3171, "lo_tell64", &[INT4]),
    (3172, "lo_truncate64", &[INT4, INT8]),
    (3457, "lo_from_bytea", &[OID, BYTEA]),
    (3458, "lo_get", &[OID]),
    (3459, "lo_get", &[OID, INT8, INT4]),
    (3460, "lo_put", &[OID, INT8, BYTEA]),
];

const LO_OPEN: &str = "lo_open";
/// The bit of `lo_open`'s mode that asks for writing.
const INV_WRITE: i32 = 0x0002_0000;
/// The mode that asks for nothing but reading.
const INV_READ: i32 = 0x0004_0000;

/// Before the columns of a DataRow: type, length, number of columns.
const ROW_HEADER_BYTES: usize = 7;

impl Session {
    /// Answers FunctionCall.
    pub(super) async fn function_call(&mut self, call: FunctionCall) -> Result<(), End> {
        if !self.pipeline.is_empty() {
            self.run_pipeline(true).await?;
        }
        self.skip_to_sync = false;
        match self.call(call).await {
            Ok(value) => self.connection.out.function_result(value.as_deref()),
            Err(error) => {
                self.report(&error);
                self.fail_transaction();
            }
        }
        self.end_implicit().await;
        self.ready().await
    }

    /// The value that a function gives; `None` for NULL.
    async fn call(&mut self, call: FunctionCall) -> Result<Option<Bytes>, ApplicationError> {
        let exchange = exchange(call)?;
        let result = self.execute_and_gather(&exchange, Kind::Plain).await?;
        if let Some(error) = first_error(&result.messages) {
            return Err(error);
        }
        let row = messages(&result.messages).flatten().find(|(tag, _)| *tag == b'D');
        let malformed = || ApplicationError::new("XX000", "a function gave no value");
        let value = row
            .and_then(|(_, row)| row.get(ROW_HEADER_BYTES..))
            .ok_or_else(malformed)?;
        let (length, value) = value.split_first_chunk::<4>().ok_or_else(malformed)?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => Ok(None),
            Ok(length) => Ok(Some(Bytes::copy_from_slice(value.get(..length).ok_or_else(malformed)?))),
        }
    }
}

/// The exchange that calls the function.
fn exchange(call: FunctionCall) -> Result<Exchange, ApplicationError> {
    let found = CALLABLE.iter().find(|(number, ..)| *number == call.function);
    let Some((_, name, types)) = found else {
        let message = format!("function {} cannot be called by the wire protocol", call.function);
        return Err(ApplicationError::new("0A000", message)
            .detail("Only the functions of large objects can.")
            .hint("Call the function with SELECT."));
    };
    if call.arguments.len() != types.len() {
        let message = format!(
            "function call message contains {} arguments but function requires {}",
            call.arguments.len(),
            types.len()
        );
        return Err(ApplicationError::new("08P01", message));
    }
    let formats = call.argument_formats.len();
    if formats > 1 && formats != call.arguments.len() {
        let message = format!(
            "function call message contains {formats} argument formats but {} arguments",
            call.arguments.len()
        );
        return Err(ApplicationError::new("08P01", message));
    }
    let mut parameters: Vec<_> = (1..=types.len()).map(|number| format!("${number}")).collect();
    let mut arguments = call.arguments;
    let mut parameter_types = types.to_vec();
    let mut parameter_formats = call.argument_formats;
    // A session that opens an object for reading alone excludes no reader: so the mode is in the text.
    if *name == LO_OPEN
        && reads_only(arguments.get(1), format_of(&parameter_formats, 1))
        && let Some(mode) = parameters.last_mut()
    {
        *mode = INV_READ.to_string();
        arguments.truncate(1);
        parameter_types.truncate(1);
        parameter_formats.truncate(1);
    }
    let statement = StatementText {
        text: format!("SELECT pg_catalog.{name}({})", parameters.join(", ")),
        parameter_types,
    };
    let bind = Step::Bind {
        portal: String::new(),
        statement: 0,
        parameter_formats,
        parameters: arguments,
        result_formats: vec![call.result_format],
    };
    let execute = Step::Execute {
        portal: String::new(),
        max_rows: 0,
    };
    Ok(Exchange::Extended {
        statements: vec![statement],
        steps: vec![bind, execute],
    })
}

/// Whether a mode of `lo_open` asks for nothing but reading.
fn reads_only(mode: Option<&Option<Bytes>>, format: i16) -> bool {
    let Some(Some(mode)) = mode else {
        return false;
    };
    let mode = match format {
        1 => mode
            .first_chunk::<4>()
            .filter(|_| mode.len() == 4)
            .map(|mode| i32::from_be_bytes(*mode)),
        _ => std::str::from_utf8(mode).ok().and_then(|mode| mode.parse().ok()),
    };
    mode.is_some_and(|mode| mode & INV_READ != 0 && mode & INV_WRITE == 0)
}
