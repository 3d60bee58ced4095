//! The tables that there are, and the key by which each is read in ranges.

use tokio_postgres::{Client, Error};

use super::contents::IS_USERS;

/// The longest statement that locks tables names so many.
const LOCKED_MAX: usize = 64;

/// A table or materialized view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The columns of its primary key, if all of them are of types whose order is the same on all servers and needs nobody's
    /// code; else empty, and its rows are compared as a multiset.
    pub(crate) key: Vec<String>,
    /// A materialized view: nobody can lock it or write to it.
    pub(crate) is_view: bool,
    /// For positions of a voter: those of rows and unique values are compared above this order only. Up to it everything is over, and
    /// they may be forgotten.
    pub(crate) above: Option<i64>,
}

/// Asks for all tables of the application, in the order of their names.
const TABLES: &str = "
select n.nspname::text, c.relname::text, c.relkind = 'm', coalesce((
  select array_agg(a.attname::text order by k.place)
    from pg_index i cross join lateral unnest(i.indkey::int2[]) with ordinality k (attnum, place)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
    join pg_type t on t.oid = a.atttypid left join pg_type b on b.oid = t.typbasetype
   where i.indrelid = c.oid and i.indisprimary and i.indisvalid and k.place <= i.indnkeyatts
  having bool_and(a.attcollation in (0, 100, 950, 951) and (t.typtype = 'e'
      or t.typtype = 'b' and t.typnamespace = 'pg_catalog'::regnamespace
      or b.typtype = 'b' and b.typnamespace = 'pg_catalog'::regnamespace))), '{}')
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'm') and USERS order by n.nspname collate \"C\", c.relname collate \"C\"";

/// The tables that a database says it has. A name of them is used on other servers only if f+1 databases name it.
pub(crate) async fn tables(client: &Client) -> Result<Vec<Table>, Error> {
    let rows = client.query(&TABLES.replace("USERS", IS_USERS), &[]).await?;
    let table = |row: &tokio_postgres::Row| Table {
        schema: row.get(0),
        name: row.get(1),
        is_view: row.get(2),
        key: row.get(3),
        above: None,
    };
    Ok(rows.iter().map(table).collect())
}

impl Table {
    /// The table of this name that voters keep their books in.
    pub(crate) fn own(name: &str, key: &str) -> Self {
        Self {
            schema: String::from("cloudbft"),
            name: name.to_owned(),
            key: vec![key.to_owned()],
            is_view: false,
            above: None,
        }
    }

    /// The positions of a voter, where everything up to this order is over.
    pub(crate) fn positions(above: i64) -> Self {
        Self {
            above: Some(above),
            ..Self::own("applied", "home")
        }
    }

    /// The table's name as a statement writes it.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// The table's name for people.
    pub(crate) fn shown(&self) -> String {
        printable(&format!("{}.{}", self.schema, self.name))
    }
}

/// The statement that keeps the definitions of tables as they are, and lets everybody read and write. It waits a second for who changes
/// them, no more: others would wait behind it.
pub(crate) fn lock<'tables>(tables: impl Iterator<Item = &'tables Table>) -> String {
    let names: Vec<_> = tables
        .filter(|table| !table.is_view)
        .map(|table| format!("only {}", table.quoted()))
        .collect();
    let mut statement = String::from("set local lock_timeout to '1s'");
    for names in names.chunks(LOCKED_MAX) {
        statement.push_str(&format!("; lock table {} in access share mode", names.join(", ")));
    }
    statement
}

/// A name as SQL writes it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A constant of any type, as SQL writes it (`standard_conforming_strings` is on).
pub(crate) fn constant(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A database's words, for a terminal or a log.
pub(crate) fn printable(text: &str) -> String {
    let shown = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(200).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_names_is_quoted() {
        let mut table = Table::own("a\"b", "id");
        assert_eq!(table.quoted(), "\"cloudbft\".\"a\"\"b\"");
        assert_eq!(constant("it's \\"), "'it''s \\'");
        assert_eq!(printable("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(
            lock([table.clone()].iter()),
            "set local lock_timeout to '1s'; lock table only \"cloudbft\".\"a\"\"b\" in access share mode"
        );
        table.is_view = true;
        assert_eq!(lock([table].iter()), "set local lock_timeout to '1s'");
    }
}
