//! Indexes that do not fit their tables: each server checks its own, by the extension amcheck.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::databases::contents::IS_USERS;
use crate::databases::tables::printable;

/// The account that one server gives of its indexes.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// How many were checked.
    pub(crate) count: u64,
    /// The indexes that are broken, with what is wrong.
    pub(crate) broken: Vec<String>,
    /// Why the others were not checked.
    pub(crate) failure: Option<String>,
}

/// Broken indexes that are told of one server at most.
const BROKEN_MAX: usize = 20;

/// Checks all B-tree indexes, one after the other. Of `pause` the server rests after each, in proportion to the time that it took.
pub(crate) async fn check(client: Arc<Client>, pause: u32) -> Checked {
    let mut checked = Checked::default();
    if let Err(error) = check_all(&client, pause, &mut checked).await {
        checked.failure = Some(printable(&crate::with_causes(&error)));
    }
    checked
}

async fn check_all(client: &Client, pause: u32, checked: &mut Checked) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("set lock_timeout to '1s'").await?;
    let known = "select to_regprocedure('cloudbft.check_index(regclass,boolean)') is not null";
    if !client.query_one(known, &[]).await?.get::<_, bool>(0) {
        checked.failure = Some(String::from(
            "the server has no amcheck (Debian: postgresql-15), so that its indexes were not checked",
        ));
        return Ok(());
    }
    let indexes = format!(
        "select c.oid, c.oid::regclass::text from pg_index i join pg_class c on c.oid = i.indexrelid \
         join pg_namespace n on n.oid = c.relnamespace join pg_am a on a.oid = c.relam \
         where c.relkind = 'i' and a.amname = 'btree' and i.indisvalid and i.indisready and {IS_USERS} order by c.oid"
    );
    for row in client.query(&indexes, &[]).await? {
        let (number, name): (u32, String) = (row.get(0), row.get(1));
        let began = Instant::now();
        let check = format!("select cloudbft.check_index({number}::oid::regclass, true)");
        match client.batch_execute(&check).await {
            Ok(()) => checked.count += 1,
            Err(error) if is_broken(&error) => {
                if checked.broken.len() < BROKEN_MAX {
                    let error = crate::with_causes(&error);
                    checked.broken.push(printable(&format!("index {name}: {error}")));
                }
            }
            // The index was dropped meanwhile, or somebody has it.
            Err(error) if error.as_db_error().is_some() => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(began.elapsed() * pause).await;
    }
    client.batch_execute("set lock_timeout to 0").await
}

/// Whether the error is about the data. A broken index or page is no passing fault.
pub(super) fn is_broken(error: &tokio_postgres::Error) -> bool {
    let broken = [
        SqlState::DATA_CORRUPTED,
        SqlState::INDEX_CORRUPTED,
        SqlState::IO_ERROR,
        SqlState::UNDEFINED_FILE,
    ];
    error.code().is_some_and(|code| broken.contains(code))
}

/// The time of rest after work, in times of the work.
pub(super) fn rest(began: Instant, pause: u32) -> Duration {
    began.elapsed() * pause
}
