//! Snapshots of several databases at one and the same state, while the cluster goes on.

use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use ordering::identifiers::MachineId;
use tokio_postgres::Client;

use super::contents::{self, Contents, Numbers, Sequences};
use crate::{Failure, up};

/// The pause before snapshots are taken again that were not of one state.
const AGAIN_MS: u64 = 10;

/// Opens a snapshot, and says which committed transactions it holds: the last position of each home, which ascend.
const OPEN: &str = "begin isolation level repeatable read read only";
const POSITIONS: &str = "select md5(coalesce(string_agg(format('%s %s %s', home, granted, \"order\"), ',' \
    order by home collate \"C\"), '')) from cloudbft.applied";

/// A database node, and what it holds.
pub(crate) struct Node {
    pub(crate) id: MachineId,
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) contents: Contents,
    pub(super) numbers: Numbers,
}

/// What was read.
pub(crate) struct Read {
    pub(crate) nodes: Vec<Node>,
    /// At one state.
    pub(crate) together: bool,
}

/// Reads databases in snapshots that hold the same transactions; after this long in any.
pub(crate) async fn read_together(
    file: &ClusterFile,
    machines: &[MachineId],
    at_rest: bool,
    patience: Duration,
) -> Result<Read, Failure> {
    let with_database = file.machines.iter().filter(|machine| machine.database.is_some());
    let mut clients = Vec::new();
    for (server, machine) in up::databases(file)?.into_iter().zip(with_database) {
        if machines.contains(&machine.id) {
            clients.push((machine.id, server.connect(&file.tunables.database).await?));
        }
    }
    let deadline = Instant::now() + patience;
    let mut together = false;
    while !together {
        let (opened, opening) = open_all(clients).await?;
        clients = opened;
        let first = opening.first();
        together = opening.iter().all(|positions| Some(positions) == first);
        if together || Instant::now() > deadline {
            break;
        }
        for (_, client) in &clients {
            client.batch_execute("rollback").await?;
        }
        tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
    }
    let sequences = match at_rest {
        true => Sequences::Themselves,
        false => Sequences::Committed,
    };
    let mut reading = tokio::task::JoinSet::new();
    for (id, client) in clients {
        reading.spawn(async move {
            let (contents, numbers) = contents::read(&client, sequences).await?;
            let name = machine_name(id);
            Ok::<_, tokio_postgres::Error>(Node {
                id,
                name,
                client,
                contents,
                numbers,
            })
        });
    }
    let mut nodes = reading.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    nodes.sort_by_key(|node| node.id);
    Ok(Read { nodes, together })
}

type Clients = Vec<(MachineId, Client)>;

/// Opens a snapshot on each, all at once; what each holds.
async fn open_all(clients: Clients) -> Result<(Clients, Vec<String>), tokio_postgres::Error> {
    let mut opening = tokio::task::JoinSet::new();
    for (id, client) in clients {
        opening.spawn(async move {
            client.batch_execute(OPEN).await?;
            let positions: String = client.query_one(POSITIONS, &[]).await?.get(0);
            Ok(((id, client), positions))
        });
    }
    let opened = opening.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(opened.into_iter().unzip())
}
