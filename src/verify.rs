//! `cloudbft verify`: compares the contents of all database nodes, table by table.

mod numbers;
mod snapshots;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use cluster::node::{DATABASE_DOWN, NEEDS_REPAIR, NodeStatus, STOPPED};
use ordering::identifiers::MachineId;

use crate::databases::contents::{self, Contents};
use crate::{Failure, status};
pub(crate) use snapshots::{Node, read_together};

/// The pause between looks at nodes that catch up.
const POLL_MS: u64 = 100;
/// How long snapshots of one state are looked for, where nodes do not come to rest.
const TOGETHER_SECONDS: u64 = 30;
/// The exit code when what was compared is equal, but not all could be compared.
pub(crate) const INCOMPLETE: u8 = 2;

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

/// Compares; the exit code is 1 when contents differ, and 2 when not all nodes could be compared.
pub(crate) async fn run(options: &VerifyOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let seen = wait_until_even(&file, Duration::from_secs(options.wait_seconds)).await;
    let (mut serving, mut missing) = (Vec::new(), Vec::new());
    for (machine, node) in file.machines.iter().zip(&seen.answers) {
        if machine.database.is_none() {
            continue;
        }
        let name = machine_name(machine.id);
        if let Some(order) = node.as_ref().and_then(serves) {
            println!("{name}: order {order}");
            serving.push(machine.id);
        } else {
            let state = node.as_ref().map_or("down", |node| node.state.as_str());
            println!("{name}: not serving ({state}), not compared");
            missing.push(name);
        }
    }
    if serving.len() < 2 {
        println!("fewer than two database nodes serve: there is nothing to compare");
        return Ok(ExitCode::from(INCOMPLETE));
    }
    let read = read_together(&file, &serving, seen.at_rest, Duration::from_secs(TOGETHER_SECONDS)).await?;
    if !read.together {
        eprintln!("cloudbft: the nodes do not come to one state: a difference may be a lag");
    }
    if !compare(&read.nodes).await? {
        return Ok(ExitCode::FAILURE);
    }
    for note in numbers::notes(&read.nodes) {
        println!("note: {note}");
    }
    let names: Vec<_> = read.nodes.iter().map(Node::name).collect();
    if missing.is_empty() {
        println!("all {} database nodes hold the same data", names.len());
        return Ok(ExitCode::SUCCESS);
    }
    let (names, missing) = (names.join(", "), missing.join(", "));
    println!("{names} hold the same data; NOT COMPARED, as not serving: {missing}");
    Ok(ExitCode::from(INCOMPLETE))
}

/// What all nodes said last.
struct Seen {
    answers: Vec<Option<NodeStatus>>,
    /// All that serve had executed everything, twice in a row.
    at_rest: bool,
}

/// The last order that a voter which serves has executed.
pub(crate) fn serves(node: &NodeStatus) -> Option<u64> {
    node.executed.filter(|_| node.state == "up")
}

/// Waits for machines that are coming back, and until all voters that serve have executed the same order twice in a row.
async fn wait_until_even(file: &ClusterFile, patience: Duration) -> Seen {
    let deadline = Instant::now() + patience;
    let mut before = Vec::new();
    loop {
        let answers = status::ask_all(file).await;
        let decided = answers.iter().flatten().map(|node| node.decided).max().unwrap_or(0);
        let with_database = file.machines.iter().zip(&answers);
        let of_databases: Vec<_> = with_database
            .filter(|(machine, _)| machine.database.is_some())
            .map(|(_, answer)| answer.as_ref())
            .collect();
        let orders: Vec<_> = of_databases.iter().map(|node| node.and_then(serves)).collect();
        let coming = of_databases.iter().copied().flatten().any(is_coming_back);
        let even = !coming && orders.iter().flatten().all(|order| *order == decided);
        let at_rest = even && orders == before;
        if at_rest || Instant::now() > deadline {
            return Seen { answers, at_rest };
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

/// The machines that hold the same in every part: the largest such group, the first of equals.
pub(crate) fn largest_group(nodes: &[Node]) -> Vec<MachineId> {
    let groups = nodes.iter().rev().map(|one| equal_to(nodes, &one.contents));
    groups.max_by_key(Vec::len).unwrap_or_default()
}

/// The machines that hold exactly this.
pub(crate) fn equal_to(nodes: &[Node], contents: &Contents) -> Vec<MachineId> {
    let equal = nodes.iter().filter(|node| node.contents == *contents);
    equal.map(Node::id).collect()
}

/// Compares everything with what most nodes have, and shows the first row that differs; whether nothing does.
pub(crate) async fn compare(nodes: &[Node]) -> Result<bool, Failure> {
    let mut names: Vec<_> = nodes.iter().flat_map(|node| node.contents.parts.keys()).collect();
    names.sort();
    names.dedup();
    let mut differing = None;
    println!("{:<40} {:>12} {:<18} result", "what", "rows", "digest");
    for name in names {
        let mut votes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, node) in nodes.iter().enumerate() {
            votes.entry(node.contents.parts.get(name)).or_default().push(index);
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
        let others: Vec<_> = others.filter_map(|index| nodes.get(*index)).map(Node::name).collect();
        println!("{name:<40} {rows:>12} {digest:<18} DIFFERS on {}", others.join(", "));
        let other = votes
            .values()
            .find(|holders| *holders != most)
            .and_then(|holders| holders.first())
            .copied();
        differing = differing.or(Some((name.clone(), most.first().copied(), other)));
    }
    let Some((name, one, other)) = differing else {
        return Ok(true);
    };
    let pick = |index: Option<usize>| index.and_then(|index| nodes.get(index));
    if let (Some(one), Some(other)) = (pick(one), pick(other)) {
        show_difference(&name, one, other).await?;
    }
    Ok(false)
}

async fn show_difference(name: &str, one: &Node, other: &Node) -> Result<(), Failure> {
    println!("first difference, in {name}:");
    let both = (
        (&*one.member.client, &one.contents),
        (&*other.member.client, &other.contents),
    );
    match contents::first_difference(name, both.0, both.1).await? {
        Some((Some(row), _)) => println!("  only on {}: {row}", one.name()),
        Some((None, Some(row))) => println!("  only on {}: {row}", other.name()),
        _ => println!("  (gone when looked at again: the nodes are not at rest)"),
    }
    Ok(())
}
