//! Nobody writes to the database that is repaired, and nobody waits for the snapshots of the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, Machine};
use cluster::node::NEEDS_REPAIR;
use tokio_postgres::Client;

use crate::databases::members::{Member, connect};
use crate::{Failure, status};

/// How long the voter may take to notice that it is out of service.
const NOTICED: Duration = Duration::from_secs(30);
/// The pause between looks.
const POLL: Duration = Duration::from_millis(100);
/// How often is looked whether anybody waits.
const WATCHED: Duration = Duration::from_secs(1);

/// The name of a voter's connections.
const VOTER: &str = "cloudbft-voter";

/// Counts who waits for a lock that a process holds, for longer than a second.
const WAITING: &str = "select count(*) from pg_stat_activity a where wait_event_type = 'Lock' \
    and $1 = any (pg_blocking_pids(a.pid)) and query_start < clock_timestamp() - interval '1 s'";

/// Notes in the database that it serves no more; true if that was not noted yet.
pub(super) async fn note(own: &Member) -> Result<bool, Failure> {
    let note = "insert into cloudbft.diverged select 0, 'it is being repaired' where not exists (select from cloudbft.diverged)";
    own.client.batch_execute("set synchronous_commit to on").await?;
    Ok(own.client.execute(note, &[]).await? > 0)
}

/// Waits until the voter says that it is out of service, or does not run, and until what it has begun is over.
pub(super) async fn wait(machine: &Machine, own: &Member) -> Result<(), Failure> {
    let deadline = Instant::now() + NOTICED;
    loop {
        let is_out = status::ask(machine).await.is_none_or(|node| {
            let is_noted = node.effects.as_ref().is_some_and(|effects| effects.diverged.is_some());
            let needs_repair = node.state == NEEDS_REPAIR;
            node.executed.is_none() && (is_noted || !needs_repair)
        });
        if is_out {
            break;
        }
        if Instant::now() > deadline {
            return Err("its voter does not go out of service".into());
        }
        tokio::time::sleep(POLL).await;
    }
    // A voter that begins from now on finds the note before it does anything.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = current_database()";
    while !own.client.query(end, &[&VOTER]).await?.is_empty() {
        if Instant::now() > deadline {
            return Err("connections of its voter do not end".into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Looks whether anybody waits for the snapshots' locks.
pub(super) struct Watch {
    watched: Vec<(Arc<Client>, i32)>,
    last: Mutex<Instant>,
}

impl Watch {
    pub(super) async fn begin(file: &ClusterFile, members: &[Member]) -> Result<Self, Failure> {
        let ids: Vec<_> = members.iter().map(|member| member.id).collect();
        let mut watched = Vec::new();
        for watcher in connect(file, &ids).await? {
            let member = members.iter().find(|member| member.id == watcher.id);
            let member = member.ok_or("a machine that was not asked for")?;
            let process: i32 = member.client.query_one("select pg_backend_pid()", &[]).await?.get(0);
            watched.push((watcher.client, process));
        }
        let last = Mutex::new(Instant::now());
        Ok(Self { watched, last })
    }

    /// Fails when somebody waits. Looks once a second.
    pub(super) async fn look(&self) -> Result<(), Failure> {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() < WATCHED {
                return Ok(());
            }
            *last = Instant::now();
        }
        for (watcher, process) in &self.watched {
            let count: i64 = watcher.query_one(WAITING, &[process]).await?.get(0);
            if count > 0 {
                return Err("applications change definitions, and would wait for it".into());
            }
        }
        Ok(())
    }
}
