//! What one line of `test_decoding` says. Pure.
//!
//! The plugin writes one message for each change: `table public.t: UPDATE: id[integer]:1 v[text]:'x'`. Names and types are
//! written as in SQL, so that no OID is in a line; values are written as text under the settings of the connection, which are
//! pinned (`crate::postgres::connection::PINNED_SETTINGS`). Columns stand in the order in which the table has them.

use std::borrow::Cow;

/// The prefix of the voter's own logical messages ([`Decoded::Fence`]).
pub(crate) const MESSAGE_PREFIX: &str = "cloudbft";

/// The content of the message with which a repair's transaction begins (`docs/decisions/0058`).
const REPAIR: &str = "repair";

/// The bookkeeping of the voter: no data.
pub(crate) const OWN_SCHEMA: &str = "cloudbft";

/// The schemas of sessions' temporary objects (decision 0044) begin so. No application can give a schema such a name.
const TEMPORARY_SCHEMA: &str = "pg_cloudbft_temp_";

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded<'line> {
    /// A transaction begins.
    Begin,
    /// The transaction has been committed.
    Commit,
    /// The transaction is the effect of this order.
    Position(u64),
    /// When this was written everything up to `executed` had finished, and nothing above `ceiling` had been begun.
    Fence {
        /// Every order up to this one had finished.
        executed: u64,
        /// No order above this one had been begun.
        ceiling: u64,
    },
    /// The transaction is no order's: it makes the database equal to the others.
    Repair,
    /// A row was inserted, updated or deleted.
    Row(RowChange<'line>),
    /// Tables were emptied.
    Truncate {
        /// Their names.
        tables: Vec<TableName<'line>>,
        /// Whether sequences were set back, and whether other tables were emptied with them.
        flags: &'line str,
    },
    /// What is not compared: bookkeeping, and temporary tables.
    Ignored,
    /// Not a line of this plugin, as far as this build knows.
    Unknown,
}

/// A table's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableName<'line> {
    /// Its schema.
    pub(crate) schema: Cow<'line, str>,
    /// Its name within the schema.
    pub(crate) name: Cow<'line, str>,
}

impl TableName<'_> {
    fn is_ignored(&self) -> bool {
        let is_own = self.schema == OWN_SCHEMA && self.name != SEQUENCES;
        is_own || self.schema.starts_with(TEMPORARY_SCHEMA)
    }
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// It was inserted.
    Insert,
    /// It was updated.
    Update,
    /// It was deleted.
    Delete,
}

/// A change of one row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowChange<'line> {
    /// The table.
    pub(crate) table: TableName<'line>,
    /// What happened.
    pub(crate) kind: RowKind,
    /// The old row's replica identity, as far as the line has it.
    pub(crate) old: Option<Columns<'line>>,
    /// The new row.
    pub(crate) new: Option<Columns<'line>>,
}

/// The columns of a row with their types and values, as they stand in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns<'line>(pub(crate) &'line str);

/// Reads a line.
pub(crate) fn decode(line: &str) -> Decoded<'_> {
    match line {
        "BEGIN" => return Decoded::Begin,
        "COMMIT" => return Decoded::Commit,
        _ => {}
    }
    let decoded = match line.strip_prefix("table ") {
        Some(rest) => table_change(rest),
        None => line.strip_prefix("message: ").and_then(message),
    };
    decoded.unwrap_or(Decoded::Unknown)
}

fn message(rest: &str) -> Option<Decoded<'_>> {
    let (_, rest) = rest.split_once("prefix: ")?;
    let Some(rest) = rest
        .strip_prefix(MESSAGE_PREFIX)
        .and_then(|rest| rest.strip_prefix(", sz: "))
    else {
        return Some(Decoded::Ignored);
    };
    let (_, content) = rest.split_once(" content:")?;
    if content == REPAIR {
        return Some(Decoded::Repair);
    }
    let (executed, ceiling) = content.split_once(' ')?;
    Some(Decoded::Fence {
        executed: executed.parse().ok()?,
        ceiling: ceiling.parse().ok()?,
    })
}

fn table_change(rest: &str) -> Option<Decoded<'_>> {
    let (first, rest) = table_name(rest)?;
    if rest.starts_with(", ") || rest.starts_with(": TRUNCATE:") {
        return truncate(first, rest);
    }
    let (kind, rest) = [
        (": INSERT:", RowKind::Insert),
        (": UPDATE:", RowKind::Update),
        (": DELETE:", RowKind::Delete),
    ]
    .into_iter()
    .find_map(|(word, kind)| Some((kind, rest.strip_prefix(word)?)))?;
    if first.is_ignored() {
        let is_position = first.schema == OWN_SCHEMA && first.name == "applied" && kind != RowKind::Delete;
        return Some(match is_position.then(|| position(rest)).flatten() {
            Some(order) => Decoded::Position(order),
            None => Decoded::Ignored,
        });
    }
    let (old, new) = match kind {
        RowKind::Insert => (None, tuple(rest)),
        RowKind::Delete => (tuple(rest), None),
        RowKind::Update => match rest.strip_prefix(" old-key:") {
            Some(rest) => {
                let end = Columns(rest).end()?;
                let new = rest.get(end..)?.strip_prefix(" new-tuple:")?;
                (tuple(rest.get(..end)?), tuple(new))
            }
            None => (None, tuple(rest)),
        },
    };
    let table = first;
    Some(Decoded::Row(RowChange { table, kind, old, new }))
}

fn truncate<'line>(first: TableName<'line>, mut rest: &'line str) -> Option<Decoded<'line>> {
    let mut tables = vec![first];
    while let Some(more) = rest.strip_prefix(", ") {
        let (table, after) = table_name(more)?;
        tables.push(table);
        rest = after;
    }
    let flags = rest.strip_prefix(": TRUNCATE:")?;
    tables.retain(|table| !table.is_ignored());
    Some(match tables.is_empty() {
        true => Decoded::Ignored,
        false => Decoded::Truncate { tables, flags },
    })
}

/// The table in [`OWN_SCHEMA`] of what is state of users': where each sequence stood when it was last moved.
pub(crate) const SEQUENCES: &str = "sequence";

/// The order in a row of `cloudbft.applied` ([`crate::lock_table::Position`]): its last columns.
fn position(columns: &str) -> Option<u64> {
    let (columns, order) = columns.rsplit_once(" \"order\"[bigint]:")?;
    let (_, granted) = columns.rsplit_once(" granted[bigint]:")?;
    // The end of a transaction has no order of its own there.
    let order = if order == "0" { granted } else { order };
    order.parse().ok()
}

fn tuple(text: &str) -> Option<Columns<'_>> {
    (text != " (no-tuple-data)").then_some(Columns(text))
}

fn table_name(text: &str) -> Option<(TableName<'_>, &str)> {
    let (schema, rest) = identifier(text)?;
    let (name, rest) = identifier(rest.strip_prefix('.')?)?;
    Some((TableName { schema, name }, rest))
}

/// An identifier as `quote_identifier` writes it, and what follows.
fn identifier(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
        let (name, rest) = text.split_at(end.unwrap_or(text.len()));
        return (!name.is_empty()).then_some((Cow::Borrowed(name), rest));
    };
    let end = closing(quoted, b'"')?;
    let (name, rest) = (quoted.get(..end)?, quoted.get(end + 1..)?);
    let name = match name.contains('"') {
        true => Cow::Owned(name.replace("\"\"", "\"")),
        false => Cow::Borrowed(name),
    };
    Some((name, rest))
}

/// Where the quote stands that ends what was quoted: quotes within are doubled.
fn closing(text: &str, quote: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (*byte == quote, bytes.get(at + 1) == Some(&quote)) {
            (true, true) => at += 2,
            (true, false) => return Some(at),
            (false, _) => at += 1,
        }
    }
    None
}

/// One column of a row.
struct Column<'line> {
    name: Cow<'line, str>,
    value: &'line str,
    rest: &'line str,
}

/// The first column of ` name[type]:value name[type]:value`.
fn column(text: &str) -> Option<Column<'_>> {
    let (name, rest) = identifier(text.strip_prefix(' ')?)?;
    let rest = rest.strip_prefix('[')?;
    let rest = rest.get(type_end(rest)? + 2..)?;
    let quote = match rest.as_bytes() {
        [b'\'', ..] => Some(1),
        [b'B', b'\'', ..] => Some(2),
        _ => None,
    };
    let end = match quote {
        Some(open) => open + closing(rest.get(open..)?, b'\'')? + 1,
        None => rest.find(' ').unwrap_or(rest.len()),
    };
    let (value, rest) = rest.split_at_checked(end)?;
    Some(Column { name, value, rest })
}

/// Where the `]:` stands that ends a type's name, whose quoted parts may contain anything.
fn type_end(text: &str) -> Option<usize> {
    let (mut at, bytes) = (0, text.as_bytes());
    loop {
        match bytes.get(at)? {
            b'"' => at += closing(text.get(at + 1..)?, b'"')? + 2,
            b']' if bytes.get(at + 1) == Some(&b':') => return Some(at),
            _ => at += 1,
        }
    }
}

impl Columns<'_> {
    /// Where the columns end, and something else begins.
    fn end(&self) -> Option<usize> {
        let mut rest = self.0;
        while let Some(column) = column(rest) {
            rest = column.rest;
        }
        self.0.len().checked_sub(rest.len())
    }

    /// The values of these columns with their names; `None` if one of them is not there, or its value is not.
    pub(crate) fn key(&self, names: &[String]) -> Option<String> {
        let mut values = vec![None; names.len()];
        let mut rest = self.0;
        while let Some(column) = column(rest) {
            rest = column.rest;
            if let Some(at) = names.iter().position(|name| *name == column.name)
                && let Some(value) = values.get_mut(at)
            {
                *value = Some(column.value);
            }
        }
        let mut key = String::new();
        for (name, value) in names.iter().zip(values) {
            let value = value.filter(|value| *value != "unchanged-toast-datum")?;
            if !key.is_empty() {
                key.push(' ');
            }
            key.push_str(name);
            key.push('=');
            key.push_str(value);
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> RowChange<'_> {
        match decode(line) {
            Decoded::Row(row) => row,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows_are_read_with_their_keys() {
        let inserted = row("table public.t: INSERT: id[integer]:1 v[text]:'it''s' w[text]:null n[numeric]:1.50");
        assert_eq!(inserted.kind, RowKind::Insert);
        assert_eq!((&*inserted.table.schema, &*inserted.table.name), ("public", "t"));
        assert_eq!(inserted.new.unwrap().key(&names(&["id"])).unwrap(), "id=1");
        assert_eq!(
            inserted.new.unwrap().key(&names(&["w", "v"])).unwrap(),
            "w=null v='it''s'"
        );
        assert_eq!(inserted.new.unwrap().key(&names(&["missing"])), None);
        let deleted = row("table public.t: DELETE: id[integer]:1");
        assert_eq!((deleted.kind, deleted.new), (RowKind::Delete, None));
        assert_eq!(deleted.old.unwrap().key(&names(&["id"])).unwrap(), "id=1");
        let without = row("table public.t: DELETE: (no-tuple-data)");
        assert_eq!((without.old, without.new), (None, None));
    }

    #[test]
    fn an_update_of_a_key_has_both() {
        let moved = row(
            "table public.t: UPDATE: old-key: id[integer]:1 \"new-tuple\"[text]:' new-tuple: x' new-tuple: id[integer]:2 \
             \"new-tuple\"[text]:'y'",
        );
        let key = names(&["id", "new-tuple"]);
        assert_eq!(moved.old.unwrap().key(&key).unwrap(), "id=1 new-tuple=' new-tuple: x'");
        assert_eq!(moved.new.unwrap().key(&key).unwrap(), "id=2 new-tuple='y'");
        let kept = row("table public.t: UPDATE: id[integer]:1 big[text]:unchanged-toast-datum");
        assert_eq!(kept.old, None);
        assert_eq!(kept.new.unwrap().key(&names(&["big"])), None);
    }

    #[test]
    fn names_and_types_may_contain_anything() {
        let odd = row(
            "table \"a.b\".\"T: INSERT: \"\"x\": INSERT: \"a]:b\"[public.\"ty]:pe\"]:'v' tags[integer[]]:'{1,2}' b[bit]:B'101'",
        );
        assert_eq!((&*odd.table.schema, &*odd.table.name), ("a.b", "T: INSERT: \"x"));
        let key = odd.new.unwrap().key(&names(&["b", "a]:b", "tags"])).unwrap();
        assert_eq!(key, "b=B'101' a]:b='v' tags='{1,2}'");
    }

    #[test]
    fn positions_fences_and_tables_that_are_emptied() {
        let position =
            "table cloudbft.applied: UPDATE: home[text]:'\"order\"[bigint]:9' granted[bigint]:3 \"order\"[bigint]:5";
        assert_eq!(decode(position), Decoded::Position(5));
        let end = "table cloudbft.applied: INSERT: home[text]:'everything' granted[bigint]:3 \"order\"[bigint]:0";
        assert_eq!(decode(end), Decoded::Position(3));
        assert_eq!(
            decode("table cloudbft.floor: INSERT: \"order\"[bigint]:9"),
            Decoded::Ignored
        );
        assert_eq!(
            decode("table pg_cloudbft_temp_0_1.t: INSERT: a[integer]:1"),
            Decoded::Ignored
        );
        let fence = "message: transactional: 0 prefix: cloudbft, sz: 5 content:12 15";
        let expected = Decoded::Fence {
            executed: 12,
            ceiling: 15,
        };
        assert_eq!(decode(fence), expected);
        assert_eq!(
            decode("message: transactional: 0 prefix: other, sz: 1 content:1"),
            Decoded::Ignored
        );
        assert_eq!(
            decode("message: transactional: 1 prefix: cloudbft, sz: 6 content:repair"),
            Decoded::Repair
        );
        let Decoded::Truncate { tables, flags } =
            decode("table public.a, public.\"b, c\": TRUNCATE: restart_seqs cascade")
        else {
            panic!("no TRUNCATE");
        };
        assert_eq!(tables.len(), 2);
        assert_eq!((&*tables[1].name, flags), ("b, c", " restart_seqs cascade"));
        assert_eq!(
            decode("table pg_cloudbft_temp_0_1.t: TRUNCATE: (no-flags)"),
            Decoded::Ignored
        );
        assert_eq!(decode("something else"), Decoded::Unknown);
    }

    proptest::proptest! {
        /// Whatever stands in a line, it is read or not known; nothing panics, and a quoted value is found again.
        #[test]
        fn any_line_is_read(text in ".{0,60}", value in ".{0,40}") {
            for prefix in ["", "table ", "table public.t: INSERT:", "table public.t: UPDATE: old-key:", "message: "] {
                let line = format!("{prefix}{text}");
                if let Decoded::Row(row) = decode(&line) {
                    for columns in [row.old, row.new].into_iter().flatten() {
                        let _ = columns.key(&["a".to_owned()]);
                    }
                }
            }
            let quoted = value.replace('\'', "''");
            let line = format!("table public.t: INSERT: a[text]:'{quoted}' b[integer]:7");
            let Decoded::Row(row) = decode(&line) else { panic!("no row") };
            let key = row.new.and_then(|new| new.key(&["b".to_owned(), "a".to_owned()]));
            proptest::prop_assert_eq!(key, Some(format!("b=7 a='{quoted}'")));
        }
    }
}
