//! `cloudbft verify`: compares the contents of all database nodes, table by table.

mod contents;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use cluster::node::{DATABASE_DOWN, NEEDS_REPAIR, NodeStatus, STOPPED};
use contents::Contents;

use crate::{Failure, status, up};

/// The pause between looks at nodes that catch up.
const POLL_MS: u64 = 100;

/// `cloudbft verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyOptions {
    /// The directory of a running cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// How long to wait for all nodes to reach the same order, in seconds
    #[arg(long, default_value_t = 30)]
    wait_seconds: u64,
}

/// Compares; the exit code is 1 when contents differ.
pub(crate) async fn run(options: &VerifyOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let serving = wait_until_even(&file, Duration::from_secs(options.wait_seconds)).await;
    let mut reading = tokio::task::JoinSet::new();
    for ((server, machine), order) in up::databases(&file)?
        .into_iter()
        .zip(file.machines.iter().skip(1))
        .zip(serving)
    {
        let name = machine_name(machine.id);
        let Some(order) = order else {
            println!("{name}: not serving, not compared");
            continue;
        };
        println!("{name}: order {order}");
        let database = file.tunables.database.clone();
        reading.spawn(async move {
            let client = server.connect(&database).await?;
            let contents = contents::read(&client).await?;
            Ok::<_, Failure>((name, client, contents))
        });
    }
    let mut nodes = Vec::new();
    while let Some(read) = reading.join_next().await {
        nodes.push(read??);
    }
    nodes.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    if nodes.len() < 2 {
        return Err("fewer than two database nodes serve: there is nothing to compare".into());
    }
    compare(&nodes).await
}

/// Waits for machines that are coming back, and until all voters that serve have executed the same order twice in a row;
/// their orders, m1 first.
async fn wait_until_even(file: &ClusterFile, patience: Duration) -> Vec<Option<u64>> {
    let deadline = Instant::now() + patience;
    let mut before = Vec::new();
    loop {
        let answers = status::ask_all(file).await;
        let decided = answers.iter().flatten().map(|node| node.decided).max().unwrap_or(0);
        let serving = |node: &NodeStatus| node.executed.filter(|_| node.state == "up");
        let orders: Vec<_> = answers
            .iter()
            .skip(1)
            .map(|answer| answer.as_ref().and_then(serving))
            .collect();
        let coming = answers.iter().skip(1).flatten().any(is_coming_back);
        let even = !coming && orders.iter().flatten().all(|order| *order == decided);
        if even && orders == before {
            return orders;
        }
        if Instant::now() > deadline {
            eprintln!("cloudbft: the nodes do not come to rest at one order: a difference may be a lag");
            return orders;
        }
        before = orders;
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
    }
}

/// Whether a node will serve without anybody's help.
fn is_coming_back(node: &NodeStatus) -> bool {
    let waits_for_somebody = [NEEDS_REPAIR, DATABASE_DOWN, STOPPED].contains(&node.state.as_str());
    !waits_for_somebody && (node.state != "up" || node.executed.is_none())
}

type Node = (String, tokio_postgres::Client, Contents);

/// Compares everything with what most nodes have, and shows the first row that differs.
async fn compare(nodes: &[Node]) -> Result<ExitCode, Failure> {
    let mut names: Vec<_> = nodes
        .iter()
        .flat_map(|(_, _, contents)| contents.parts.keys())
        .collect();
    names.sort();
    names.dedup();
    let mut differing = None;
    println!("{:<40} {:>12} {:<18} result", "what", "rows", "digest");
    for name in names {
        let mut votes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, (_, _, contents)) in nodes.iter().enumerate() {
            votes.entry(contents.parts.get(name)).or_default().push(index);
        }
        let Some((part, most)) = votes.iter().max_by_key(|(_, holders)| holders.len()) else {
            continue;
        };
        let rows = part
            .and_then(|part| part.rows)
            .map_or_else(String::new, |rows| rows.to_string());
        let digest = part.map_or("-", |part| part.digest.get(..16).unwrap_or(&part.digest));
        if votes.len() == 1 {
            println!("{name:<40} {rows:>12} {digest:<18} equal");
            continue;
        }
        let others = votes.values().filter(|holders| *holders != most).flatten();
        let others: Vec<_> = others
            .filter_map(|index| nodes.get(*index))
            .map(|(node, ..)| node.as_str())
            .collect();
        println!("{name:<40} {rows:>12} {digest:<18} DIFFERS on {}", others.join(", "));
        let other = votes
            .values()
            .find(|holders| *holders != most)
            .and_then(|holders| holders.first())
            .copied();
        differing = differing.or(Some((name.clone(), most.first().copied(), other)));
    }
    let Some((name, one, other)) = differing else {
        println!("all {} database nodes hold the same data", nodes.len());
        return Ok(ExitCode::SUCCESS);
    };
    let pick = |index: Option<usize>| index.and_then(|index| nodes.get(index));
    if let (Some(one), Some(other)) = (pick(one), pick(other)) {
        show_difference(&name, one, other).await?;
    }
    Ok(ExitCode::FAILURE)
}

async fn show_difference(name: &str, one: &Node, other: &Node) -> Result<(), Failure> {
    println!("first difference, in {name}:");
    match contents::first_difference(name, (&one.1, &one.2), (&other.1, &other.2)).await? {
        Some((Some(row), _)) => println!("  only on {}: {row}", one.0),
        Some((None, Some(row))) => println!("  only on {}: {row}", other.0),
        _ => println!("  (gone when looked at again: the nodes are not at rest)"),
    }
    Ok(())
}
