//! Tables, compared range by range: some thousands of rows by primary key, or, without a key, all rows whose hashes begin alike.
//!
//! Each server digests its own rows: SHA-256 over the sorted SHA-256 of each row's text. (Sums of hashes can be forged by who chooses
//! rows, see `spool/src/sorted.rs`; a repair copies rows that a server gives.) What a server says of a key is quoted before it
//! is used on another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::{Client, Error};

use super::members::{Member, on_all};
use super::tables::{Table, constant, identifier};
use super::vote::agreed;
use crate::Failure;

/// Rows of one range.
pub(crate) const RANGE_ROWS: i64 = 4096;

/// Ranges of a table without a key: 2 to this power at most.
const BITS_MAX: u32 = 16;

/// The hash of a row's text, which its types' output functions give: a cast may be an application's function.
const ROW_HASH: &str = "sha256(textsend(textin(record_out(t.*))))";

/// The digest of the hashes `h`.
const DIGEST: &str = "encode(sha256(coalesce(string_agg(h, ''::bytea order by h), '')), 'hex')";

/// Some rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// The rows behind one key, up to and with another; `None`: from the first row, to the last.
    Keys {
        after: Option<Vec<String>>,
        up_to: Option<Vec<String>>,
    },
    /// The rows whose hashes begin with these bits.
    Hashes { bits: u32, begin: i32 },
}

/// Positions that no voter forgets (`voter/src/postgres/bootstrap.rs`).
const KEPT: &str = "split_part(t.home, ':', 1) not in ('row', 'key', 'value')";

/// A server's account of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) rows: i64,
    pub(crate) digest: String,
}

impl Content {
    /// No rows.
    pub(crate) fn nothing() -> Self {
        Self {
            rows: 0,
            digest: EMPTY.to_owned(),
        }
    }
}

/// A server's account of a range, or why it cannot give one.
pub(crate) type Answer = Result<Content, Error>;

/// A range, and what each member says of it.
pub(crate) struct Compared {
    pub(crate) range: Range,
    pub(crate) answers: Vec<Answer>,
}

impl Table {
    fn columns(&self) -> Vec<String> {
        let quoted = |column: &String| format!("t.{}", identifier(column));
        self.key.iter().map(quoted).collect()
    }

    /// The condition under which a row `t` of the table is in the range, and is compared.
    pub(crate) fn condition(&self, range: &Range) -> String {
        let within = self.range_condition(range);
        match self.above {
            Some(order) => format!("{within} and ({KEPT} or greatest(t.granted, t.\"order\") > {order})"),
            None => within,
        }
    }

    /// The condition under which a row `t` of the table is in the range.
    pub(crate) fn range_condition(&self, range: &Range) -> String {
        match range {
            Range::Keys { after, up_to } => {
                let bound = |operator: &str, values: &Option<Vec<String>>| {
                    let values = values.as_ref()?;
                    let values: Vec<_> = values.iter().map(|value| constant(value)).collect();
                    Some(match self.columns().as_slice() {
                        [column] => format!("{column} {operator} {}", values.join(", ")),
                        columns => format!("({}) {operator} ({})", columns.join(", "), values.join(", ")),
                    })
                };
                let bounds = [bound(">", after), bound("<=", up_to)];
                let bounds: Vec<_> = bounds.into_iter().flatten().collect();
                match bounds.is_empty() {
                    true => String::from("true"),
                    false => bounds.join(" and "),
                }
            }
            Range::Hashes { bits, begin } => format!("{} = {begin}", bucket(ROW_HASH, *bits)),
        }
    }

    /// Asks for a range's rows and digest.
    pub(crate) fn content_query(&self, range: &Range) -> String {
        let (table, condition) = (self.quoted(), self.condition(range));
        format!("select count(*), {DIGEST} from (select {ROW_HASH} as h from only {table} t where {condition}) r")
    }

    /// Asks for the first rows behind a key: how many there are, their digest, and the last one's key.
    fn first_query(&self, after: &Option<Vec<String>>) -> String {
        let range = Range::Keys {
            after: after.clone(),
            up_to: None,
        };
        let (table, condition, columns) = (self.quoted(), self.condition(&range), self.columns());
        let named: Vec<_> = (0..columns.len()).map(|place| format!("k{place}")).collect();
        let texts: Vec<_> = named.iter().map(|name| format!("format('%s', {name})")).collect();
        let backwards: Vec<_> = named.iter().map(|name| format!("{name} desc")).collect();
        let selected = columns
            .iter()
            .zip(&named)
            .map(|(column, name)| format!("{column} as {name}"));
        format!(
            "with r as materialized (select {}, {ROW_HASH} as h from only {table} t where {condition} order by {} limit {RANGE_ROWS}) \
             select (select count(*) from r), (select {DIGEST} from r), \
             (select array[{}]::text[] from r order by {} limit 1)",
            selected.collect::<Vec<_>>().join(", "),
            columns.join(", "),
            texts.join(", "),
            backwards.join(", ")
        )
    }

    /// Asks for the digests of all ranges of a table without a key.
    fn hashes_query(&self, bits: u32) -> String {
        let (table, bucket) = (self.quoted(), bucket("h", bits));
        format!(
            "select {bucket}, count(*), {DIGEST} from (select {ROW_HASH} as h from only {table} t) r group by 1 order by 1"
        )
    }
}

fn bucket(hash: &str, bits: u32) -> String {
    let shift = BITS_MAX - bits.min(BITS_MAX);
    format!("((get_byte({hash}, 0) * 256 + get_byte({hash}, 1)) >> {shift})")
}

/// Each member's account of one range.
pub(crate) async fn contents(members: &[Member], table: &Table, range: &Range) -> Result<Vec<Answer>, Failure> {
    let query = table.content_query(range);
    on_all(members, |client| content(client, query.clone())).await
}

async fn content(client: Arc<Client>, query: String) -> Answer {
    let row = client.query_one(&query, &[]).await?;
    Ok(Content {
        rows: row.get(0),
        digest: row.get(1),
    })
}

/// The first rows behind a key, as a server says.
pub(crate) type First = (Content, Option<Vec<String>>);

/// The first rows behind a key in one database, and the key of the last of them, if others may follow.
pub(crate) async fn first_content(member: &Member, table: &Table, after: &Option<Vec<String>>) -> Result<First, Error> {
    first(Arc::clone(&member.client), table.first_query(after)).await
}

/// The digests of a table without a key in one database, by the first bits of the hashes.
pub(crate) async fn hashes_of(member: &Member, table: &Table, bits: u32) -> Result<BTreeMap<i32, Content>, Error> {
    hashes(Arc::clone(&member.client), table.hashes_query(bits), bits).await
}

async fn first(client: Arc<Client>, query: String) -> Result<First, Error> {
    let row = client.query_one(&query, &[]).await?;
    let content = Content {
        rows: row.get(0),
        digest: row.get(1),
    };
    // Fewer than asked for: there are no others.
    let last: Option<Vec<String>> = row.get(2);
    let last = last.filter(|_| content.rows >= RANGE_ROWS);
    Ok((content, last))
}

/// Compares the next range of a table with a key, behind this one. The end of the range is what f+1 members (`needed`) say. Where they do not
/// agree, it is what any says behind which f+1 have rows before it, so that a liar does not make ranges in which there is nothing; or
/// the end of the table.
pub(crate) async fn next_keys(
    members: &[Member],
    table: &Table,
    after: Option<Vec<String>>,
    needed: usize,
) -> Result<Compared, Failure> {
    let query = table.first_query(&after);
    let firsts = on_all(members, |client| first(client, query.clone())).await?;
    if firsts.iter().any(Result::is_err) {
        // A member that fails is not asked again in its transaction.
        let answers = firsts.into_iter().map(|first| first.map(|(content, _)| content));
        let range = Range::Keys { after, up_to: None };
        return Ok(Compared {
            range,
            answers: answers.collect(),
        });
    }
    let firsts: Vec<_> = firsts.into_iter().collect::<Result<_, _>>()?;
    let ends: Vec<_> = firsts.iter().map(|(_, last)| Some(last.clone())).collect();
    if let Some(place) = agreed(&ends, needed) {
        let up_to = ends.into_iter().nth(place).flatten().flatten();
        let range = Range::Keys {
            after,
            up_to: up_to.clone(),
        };
        // Members that say the same end have said all of this range.
        if firsts.iter().all(|(_, last)| *last == up_to) {
            let answers = firsts.into_iter().map(|(content, _)| Ok(content)).collect();
            return Ok(Compared { range, answers });
        }
        let answers = contents(members, table, &range).await?;
        return Ok(Compared { range, answers });
    }
    let open = Range::Keys {
        after: after.clone(),
        up_to: None,
    };
    let ends = firsts.into_iter().filter_map(|(_, last)| last);
    let ranges = ends.map(|last| Range::Keys {
        after: after.clone(),
        up_to: Some(last),
    });
    for range in ranges.chain([open.clone()]) {
        let answers = contents(members, table, &range).await?;
        let has_rows = |answer: &&Answer| answer.as_ref().is_ok_and(|content| content.rows > 0);
        let failed = answers.iter().any(Result::is_err);
        if failed || range == open || answers.iter().filter(has_rows).count() >= needed {
            return Ok(Compared { range, answers });
        }
    }
    Err("a table has no end".into())
}

/// Compares a table without a key, all at once.
pub(crate) async fn all_hashes(members: &[Member], table: &Table, needed: usize) -> Result<Vec<Compared>, Failure> {
    let count = format!("select count(*) from only {} t", table.quoted());
    let counts = on_all(members, |client| {
        let count = count.clone();
        async move { Ok::<i64, Error>(client.query_one(&count, &[]).await?.get(0)) }
    })
    .await?;
    let mut known: Vec<i64> = counts.iter().filter_map(|count| count.as_ref().ok().copied()).collect();
    if known.len() < counts.len() {
        let range = Range::Hashes { bits: 0, begin: 0 };
        let content = |rows: i64| Content {
            rows,
            digest: String::new(),
        };
        let answers = counts.into_iter().map(|count| count.map(content)).collect();
        return Ok(vec![Compared { range, answers }]);
    }
    // A count that f members at most exceed: no liar makes more ranges than rows ask for.
    known.sort_unstable_by(|one, other| other.cmp(one));
    let rows = known.get(needed.saturating_sub(1)).copied().unwrap_or(0);
    let wanted = u64::try_from(rows / RANGE_ROWS).unwrap_or(0) + 1;
    let bits = wanted.next_power_of_two().trailing_zeros().min(BITS_MAX);
    let query = table.hashes_query(bits);
    let said = on_all(members, |client| hashes(client, query.clone(), bits)).await?;
    if said.iter().any(Result::is_err) {
        let range = Range::Hashes { bits: 0, begin: 0 };
        let answers = said.into_iter().map(|said| said.map(|_| Content::nothing())).collect();
        return Ok(vec![Compared { range, answers }]);
    }
    let said: Vec<_> = said.into_iter().collect::<Result<_, _>>()?;
    let compared = (0_i32..1 << bits).map(|begin| {
        let of = |member: &BTreeMap<i32, Content>| Ok(member.get(&begin).cloned().unwrap_or_else(Content::nothing));
        Compared {
            range: Range::Hashes { bits, begin },
            answers: said.iter().map(of).collect(),
        }
    });
    Ok(compared.collect())
}

/// SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

async fn hashes(client: Arc<Client>, query: String, bits: u32) -> Result<BTreeMap<i32, Content>, Error> {
    let rows = client.query(&query, &[]).await?;
    let content = |row: &tokio_postgres::Row| {
        let content = Content {
            rows: row.get(1),
            digest: row.get(2),
        };
        (row.get::<_, i32>(0), content)
    };
    let known = rows
        .iter()
        .map(content)
        .filter(|(begin, _)| (0..1 << bits).contains(begin));
    Ok(known.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_behind_one_key_up_to_another() {
        let mut table = Table::own("applied", "home");
        let range = |after: Option<&str>, up_to: Option<&str>| Range::Keys {
            after: after.map(|key| vec![key.to_owned()]),
            up_to: up_to.map(|key| vec![key.to_owned()]),
        };
        assert_eq!(table.condition(&range(None, None)), "true");
        assert_eq!(table.condition(&range(Some("it's"), None)), "t.\"home\" > 'it''s'");
        assert_eq!(
            table.condition(&range(Some("a"), Some("b"))),
            "t.\"home\" > 'a' and t.\"home\" <= 'b'"
        );
        table.key.push(String::from("Day"));
        let both = Range::Keys {
            after: Some(vec![String::from("a"), String::from("1")]),
            up_to: None,
        };
        assert_eq!(table.condition(&both), "(t.\"home\", t.\"Day\") > ('a', '1')");
        let positions = Table::positions(7);
        let compared = format!("t.\"home\" > 'a' and ({KEPT} or greatest(t.granted, t.\"order\") > 7)");
        assert_eq!(positions.condition(&range(Some("a"), None)), compared);
        assert_eq!(positions.range_condition(&range(Some("a"), None)), "t.\"home\" > 'a'");
    }

    #[test]
    fn rows_without_a_key_are_in_the_range_of_the_first_bits_of_their_hash() {
        assert_eq!(bucket("h", 0), "((get_byte(h, 0) * 256 + get_byte(h, 1)) >> 16)");
        assert_eq!(bucket("h", 5), "((get_byte(h, 0) * 256 + get_byte(h, 1)) >> 11)");
    }
}
