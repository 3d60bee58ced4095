//! The voter's functions in its database (`bootstrap.sql`), called by number.
//!
//! A FunctionCall names a function by its OID and carries nothing that has to be parsed or planned. So no search path, no
//! setting and no prepared statement of an application can put another function in its place; no view of running queries and
//! no log of statements shows its arguments, of which the token is secret; and it costs the server half of what a statement
//! that calls the same function does (`docs/decisions/0041-the-position-stays-a-row.md`).

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::PostgresError;

/// Asks for the token and the number of each function, in the order of the fields of [`Functions`].
pub(super) const FUNCTIONS_QUERY: &str = "SELECT value, \
    'cloudbft.set_applied(text,text,bigint,bigint)'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.command(text)'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.written(text,text[])'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.catalog_changes(text)'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.record_sequences(text,text[])'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.restore_sequences(text,text[])'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.open_temporary(text,text,text[],boolean)'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.close_temporary(text,text,text[],text[],text[])'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.end_temporary(text,text,text[])'::pg_catalog.regprocedure::pg_catalog.oid, \
    'cloudbft.drop_temporary(text,text)'::pg_catalog.regprocedure::pg_catalog.oid FROM cloudbft.token";

/// What stands for all sequences, whoever has moved them.
pub(super) const ALL_SEQUENCES: &str = "{*}";

/// The format of arguments and results.
const TEXT: i16 = 0;

/// The functions of one database, with the token that they ask for.
#[derive(Clone, PartialEq, Eq)]
pub struct Functions {
    token: Arc<str>,
    set_applied: u32,
    command: u32,
    written: u32,
    catalog_changes: u32,
    record_sequences: u32,
    restore_sequences: u32,
    open_temporary: u32,
    close_temporary: u32,
    end_temporary: u32,
    drop_temporary: u32,
}

/// A call of one of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The function's number in this database.
    pub function: u32,
    /// Its arguments as text; `None` is NULL.
    pub arguments: Vec<Option<&'a str>>,
}

impl Functions {
    /// From the answer to [`FUNCTIONS_QUERY`].
    ///
    /// # Errors
    /// When it is not one row of one text and ten numbers.
    pub(super) fn from_rows(rows: &[Vec<Option<String>>]) -> Result<Self, PostgresError> {
        let [row] = rows else {
            return Err(PostgresError::Unfit(format!("cloudbft.token has {} rows", rows.len())));
        };
        let [Some(token), numbers @ ..] = row.as_slice() else {
            return Err(PostgresError::Unfit("cloudbft.token is empty".into()));
        };
        let mut numbers = numbers.iter();
        let mut next = || {
            let number = numbers.next().and_then(Option::as_deref);
            let number = number.and_then(|text| text.parse::<u32>().ok());
            number.ok_or_else(|| PostgresError::protocol("the functions' numbers cannot be read"))
        };
        let functions = Self {
            token: Arc::from(token.as_str()),
            set_applied: next()?,
            command: next()?,
            written: next()?,
            catalog_changes: next()?,
            record_sequences: next()?,
            restore_sequences: next()?,
            open_temporary: next()?,
            close_temporary: next()?,
            end_temporary: next()?,
            drop_temporary: next()?,
        };
        match numbers.next() {
            None => Ok(functions),
            Some(_) => Err(PostgresError::protocol("the functions have too many numbers")),
        }
    }

    /// Records a position: home, granting order, own order.
    pub fn set_applied<'a>(&'a self, home: &'a str, granted: &'a str, order: &'a str) -> Call<'a> {
        self.call(self.set_applied, &[Some(home), Some(granted), Some(order)])
    }

    /// Answers the number of the transaction's present command. Whatever writes or locks a row after it takes a later one.
    pub fn command(&self) -> Call<'_> {
        self.call(self.command, &[])
    }

    /// Answers whether the transaction may have written anything, or moved one of these sequences (an array constant of names;
    /// `None`: any): 1 or 0.
    pub fn written<'a>(&'a self, names: Option<&'a str>) -> Call<'a> {
        self.call(self.written, &[names])
    }

    /// Answers what the transaction has written to the catalogs, for [`super::written::Written::read`].
    pub fn catalog_changes(&self) -> Call<'_> {
        self.call(self.catalog_changes, &[])
    }

    /// Records where sequences stand (an array constant of names; `None`: those that the transaction may have moved).
    pub fn record_sequences<'a>(&'a self, names: Option<&'a str>) -> Call<'a> {
        self.call(self.record_sequences, &[names])
    }

    /// Sets sequences (an array constant of names; `None`: all of them) back to where the last commit left them.
    pub fn restore_sequences<'a>(&'a self, names: Option<&'a str>) -> Call<'a> {
        self.call(self.restore_sequences, &[names])
    }

    /// Lets roles (an array constant) make objects in a session's schema, which is made too if `make` says so (`true`).
    pub fn open_temporary<'a>(&'a self, schema: &'a str, roles: &'a str, make: &'a str) -> Call<'a> {
        self.call(self.open_temporary, &[Some(schema), Some(roles), Some(make)])
    }

    /// Ends that, and notes what was made: names and what becomes of each at COMMIT (array constants).
    pub fn close_temporary<'a>(
        &'a self,
        schema: &'a str,
        roles: &'a str,
        names: &'a str,
        at_commit: &'a str,
    ) -> Call<'a> {
        let arguments = [Some(schema), Some(roles), Some(names), Some(at_commit)];
        self.call(self.close_temporary, &arguments)
    }

    /// Does what COMMIT does to temporary tables that were written (an array constant of names; `None`: all of the session's).
    pub fn end_temporary<'a>(&'a self, schema: &'a str, names: Option<&'a str>) -> Call<'a> {
        self.call(self.end_temporary, &[Some(schema), names])
    }

    /// Drops all temporary objects of a session.
    pub fn drop_temporary<'a>(&'a self, schema: &'a str) -> Call<'a> {
        self.call(self.drop_temporary, &[Some(schema)])
    }

    fn call<'a>(&'a self, function: u32, arguments: &[Option<&'a str>]) -> Call<'a> {
        let mut all = vec![Some(&*self.token)];
        all.extend_from_slice(arguments);
        Call {
            function,
            arguments: all,
        }
    }
}

impl Call<'_> {
    /// The FunctionCall message.
    ///
    /// # Errors
    /// When an argument is too large for the protocol.
    pub(super) fn write(&self, outgoing: &mut BytesMut) -> std::io::Result<()> {
        let mut body = BytesMut::new();
        body.put_u32(self.function);
        body.put_i16(1);
        body.put_i16(TEXT);
        body.put_i16(i16::try_from(self.arguments.len()).map_err(std::io::Error::other)?);
        for argument in &self.arguments {
            match argument {
                Some(text) => {
                    body.put_i32(i32::try_from(text.len()).map_err(std::io::Error::other)?);
                    body.put_slice(text.as_bytes());
                }
                None => body.put_i32(-1),
            }
        }
        body.put_i16(TEXT);
        outgoing.put_u8(b'F');
        outgoing.put_i32(i32::try_from(body.len() + 4).map_err(std::io::Error::other)?);
        outgoing.unsplit(body);
        Ok(())
    }
}

/// The token is not for logs.
impl std::fmt::Debug for Functions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Functions").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[&str]) -> Vec<Option<String>> {
        fields.iter().map(|field| Some((*field).to_owned())).collect()
    }

    #[test]
    fn the_token_comes_first_in_every_call_and_shows_in_no_debug_text() {
        let texts = ["secret", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20"];
        let functions = Functions::from_rows(&[row(&texts)]).unwrap();
        let call = functions.set_applied("shop", "7", "9");
        assert_eq!(call.function, 11);
        assert_eq!(call.arguments, [Some("secret"), Some("shop"), Some("7"), Some("9")]);
        assert_eq!(functions.record_sequences(None).arguments, [Some("secret"), None]);
        assert!(!format!("{functions:?}").contains("secret"));
    }

    #[test]
    fn a_call_is_written_as_the_protocol_says() {
        let call = Call {
            function: 258,
            arguments: vec![Some("ab"), None],
        };
        let mut written = BytesMut::new();
        call.write(&mut written).unwrap();
        let body = b"\0\0\x01\x02\0\x01\0\0\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0";
        assert_eq!(&written[..], [b"F\0\0\0\x1a", &body[..]].concat());
    }

    #[test]
    fn anything_but_one_token_and_ten_numbers_is_refused() {
        for rows in [
            vec![],
            vec![
                row(&["a", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]),
                row(&["b", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]),
            ],
            vec![row(&["a", "1", "2", "3", "4", "5", "6", "7", "8", "9"])],
            vec![row(&["a", "1", "2", "3", "4", "5", "6", "7", "8", "9", "x"])],
            vec![vec![None, Some("1".into())]],
        ] {
            assert!(Functions::from_rows(&rows).is_err(), "{rows:?}");
        }
    }
}
