//! Sequences that somebody moved past the voter: they stand elsewhere than the last commit left them, though no transaction that has drawn
//! from them is open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, Error};

use crate::databases::contents::IS_USERS;

/// How often is looked, and the pause between. A transaction that has just ended is taken back by its voter within it.
const LOOKS: usize = 6;
const PAUSE: Duration = Duration::from_millis(300);

/// Sequences of one statement.
const TOGETHER_MAX: usize = 100;

/// Where sequences stand that were moved.
pub(super) type Moved = BTreeMap<String, (i64, bool)>;

/// The sequences that were moved, and stay where they are while they are looked at several times. A transaction that draws from a sequence
/// locks the sequence to the transaction's end (RowExclusive).
pub(super) async fn moved(client: Arc<Client>) -> Result<Moved, Error> {
    let mut moved = look(&client).await?;
    for _ in 1..LOOKS {
        if moved.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let again = look(&client).await?;
        moved.retain(|name, place| again.get(name) == Some(place));
    }
    Ok(moved)
}

async fn look(client: &Client) -> Result<Moved, Error> {
    let names = format!(
        "select format('select %L::text as name, %s::oid as number, last_value, is_called from %I.%I', \
         n.nspname || '.' || c.relname, c.oid, n.nspname, c.relname) \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S' and {IS_USERS} order by c.oid"
    );
    // The text that a server says of itself runs there only.
    let selects: Vec<String> = client.query(&names, &[]).await?.iter().map(|row| row.get(0)).collect();
    let mut moved = Moved::new();
    for selects in selects.chunks(TOGETHER_MAX) {
        let query = format!(
            "select q.name, q.last_value, q.is_called from ({}) q join cloudbft.sequence s on s.name = q.name \
             where (q.last_value, q.is_called) <> (s.last_value, s.is_called) and not exists (select from pg_locks l \
             where l.locktype = 'relation' and l.relation = q.number and l.granted and l.mode <> 'AccessShareLock')",
            selects.join(" union all ")
        );
        let rows = client.query(&query, &[]).await?;
        moved.extend(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))));
    }
    Ok(moved)
}
