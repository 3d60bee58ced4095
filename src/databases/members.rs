//! Connections to the databases of several machines, and snapshots of them at one and the same state, while the cluster goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use ordering::identifiers::MachineId;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::{Failure, up};

/// The pause before snapshots are taken again that were not of one state.
const AGAIN_MS: u64 = 10;

/// Opens a snapshot: taken by the first statement that reads, so that tables can be locked before.
const OPEN: &str = "begin isolation level repeatable read read only";

/// Says which committed transactions a snapshot holds: the last position of each home, which ascend.
pub(crate) const POSITIONS: &str = "select md5(coalesce(string_agg(format('%s %s %s', home, granted, \"order\"), ',' \
    order by home collate \"C\"), '')) from cloudbft.applied";

/// Values have the same text on all servers, and no name means an application's object.
const SETTINGS: &str = "set search_path to ''; set extra_float_digits to 1; set datestyle to 'ISO, MDY'; \
    set intervalstyle to 'postgres'; set timezone to 'UTC'; set bytea_output to 'hex'; \
    set standard_conforming_strings to on";

/// A machine with a connection to its database, as superuser.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: MachineId,
    pub(crate) name: String,
    pub(crate) client: Arc<Client>,
}

/// Connects to the databases of these machines.
pub(crate) async fn connect(file: &ClusterFile, machines: &[MachineId]) -> Result<Vec<Member>, Failure> {
    let connected = connect_each(file, machines).await?;
    connected.into_iter().map(|(_, member)| member).collect()
}

/// Connects to the databases of these machines, as far as they answer.
pub(crate) async fn connect_each(
    file: &ClusterFile,
    machines: &[MachineId],
) -> Result<Vec<(MachineId, Result<Member, Failure>)>, Failure> {
    let with_database = file.machines.iter().filter(|machine| machine.database.is_some());
    let mut members = Vec::new();
    for (server, machine) in up::databases(file)?.into_iter().zip(with_database) {
        if !machines.contains(&machine.id) {
            continue;
        }
        let id = machine.id;
        let name = machine_name(id);
        let connecting = async {
            let client = server.connect(&file.tunables.database).await?;
            client.batch_execute(SETTINGS).await?;
            Ok::<_, Failure>(Arc::new(client))
        };
        let member = match connecting.await {
            Ok(client) => Ok(Member { id, name, client }),
            Err(error) => Err(format!("{name}: {}", crate::with_causes(&*error)).into()),
        };
        members.push((id, member));
    }
    Ok(members)
}

/// Does the same on all members at once; the answers in their order.
pub(crate) async fn on_all<T, Action, Doing>(members: &[Member], action: Action) -> Result<Vec<T>, Failure>
where
    T: Send + 'static,
    Action: Fn(Arc<Client>) -> Doing,
    Doing: Future<Output = T> + Send + 'static,
{
    let doing = |member: &Member| tokio::spawn(action(Arc::clone(&member.client)));
    let tasks: Vec<_> = members.iter().map(doing).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await?);
    }
    Ok(answers)
}

/// Transactions that a member's snapshot holds, or why it could not be opened.
pub(crate) type Opened = Result<String, tokio_postgres::Error>;

/// Opens snapshots that hold the same transactions; after this long, or when a member fails, whatever they hold. `locks`, the statement
/// that locks what is to be read (or nothing), runs before: so nothing that a snapshot does not govern, as TRUNCATE, comes in between.
pub(crate) async fn open_together(members: &[Member], locks: &str, patience: Duration) -> Result<Vec<Opened>, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        let opening = format!("{OPEN}; {locks}");
        let opened = on_all(members, |client| {
            let opening = opening.clone();
            async move {
                client.batch_execute(&opening).await?;
                Ok::<String, tokio_postgres::Error>(client.query_one(POSITIONS, &[]).await?.get(0))
            }
        })
        .await?;
        let failed = opened
            .iter()
            .any(|opened| opened.as_ref().is_err_and(|error| !is_locked(error)));
        if failed || are_together(&opened) || Instant::now() > deadline {
            return Ok(opened);
        }
        close(members).await?;
        tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
    }
}

/// Whether all snapshots hold the same.
pub(crate) fn are_together(opened: &[Opened]) -> bool {
    let mut positions = opened.iter().map(|opened| opened.as_ref().ok());
    let first = positions.next().flatten();
    first.is_some() && positions.all(|position| position == first)
}

/// Ends the transactions of all members. Who has lost its connection is told by whatever asks it next.
pub(crate) async fn close(members: &[Member]) -> Result<(), Failure> {
    on_all(members, |client| async move {
        client.batch_execute("rollback").await.is_ok()
    })
    .await?;
    Ok(())
}

/// Somebody else has the lock.
fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}
