//! `cloudbft status`: what every machine says of itself, gathered over its metrics endpoint.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cluster::file::{ClusterFile, Machine, machine_name};
use cluster::http;
use cluster::node::{EffectsStatus, NEEDS_REPAIR, NodeStatus};
use serde::Serialize;

use crate::scrub::Report;
use crate::state::UpState;
use crate::{Failure, up};

/// How long a node may take to answer.
const ANSWER_MS_MAX: u64 = 2_000;

/// The voters' counter of object numbers that a server could not be brought to.
const NUMBERS_METRIC: &str = "cloudbft_voter_object_numbers_missed_total";

/// `cloudbft status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusOptions {
    /// The directory of the cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The whole cluster.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    dsn: String,
    view: u64,
    primary: String,
    order: u64,
    proxy_pid: Option<u32>,
    /// Whether `up` repairs databases by itself.
    automatic_repair: bool,
    /// How many groups are in charge, and since when.
    assignment: AssignmentStatus,
    /// The last pass over all contents.
    scrub: Option<Report>,
    groups: Vec<GroupStatus>,
    machines: Vec<MachineStatus>,
}

/// Which groups are in charge of partitions: what most nodes say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct AssignmentStatus {
    /// How often it was changed since the cluster was made.
    pub(crate) version: u64,
    /// The order of the last change; what is ordered after it belongs to these groups.
    pub(crate) since: u64,
    /// How many groups are in charge.
    pub(crate) groups: u16,
}

impl AssignmentStatus {
    /// What a node says; `None` when it does not say.
    fn of(node: &NodeStatus) -> Option<Self> {
        (node.groups_in_charge > 0).then_some(Self {
            version: node.assignment_version,
            since: node.assignment_since,
            groups: node.groups_in_charge,
        })
    }

    /// The highest version that so many nodes state alike.
    pub(crate) fn stated_by(answers: &[Option<NodeStatus>], needed: usize) -> Option<Self> {
        let stated: Vec<Self> = answers.iter().flatten().filter_map(Self::of).collect();
        let by = |one: &&Self| stated.iter().filter(|other| other == one).count() >= needed;
        stated.iter().filter(by).max().copied()
    }
}

/// One group.
#[derive(Debug, Serialize)]
struct GroupStatus {
    group: u16,
    order: u64,
}

/// One machine.
#[derive(Debug, Serialize)]
struct MachineStatus {
    name: String,
    node_pid: Option<u32>,
    postgres_pid: Option<u32>,
    postgres_socket_dir: Option<PathBuf>,
    postgres_port: Option<u16>,
    database: Option<String>,
    last_order: Option<u64>,
    lag: Option<u64>,
    digest: Option<String>,
    view: Option<u64>,
    state: String,
    /// Transactions since its start of which its server could not number the objects as the others do.
    object_numbers_missed: Option<u64>,
    /// The findings of the machine's voter, which compares its database's changes with those of the other databases.
    effects: Option<EffectsStatus>,
    /// The command that makes its database anew, if it needs that.
    repair: Option<String>,
}

/// What a machine's node says; `None` when it does not answer.
pub(crate) async fn ask(machine: &Machine) -> Option<NodeStatus> {
    let body = http::get(machine.metrics, "/status", Duration::from_millis(ANSWER_MS_MAX))
        .await
        .ok()?;
    serde_json::from_str(&body).ok()
}

/// How many transactions a machine's server could not number as the others do; `None` when its node does not say.
async fn object_numbers_missed(machine: &Machine) -> Option<u64> {
    let metrics = http::get(machine.metrics, "/metrics", Duration::from_millis(ANSWER_MS_MAX)).await;
    let metrics = metrics.ok()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(NUMBERS_METRIC))?;
    line.trim().parse().ok()
}

/// What all nodes say, in the order of the machines.
pub(crate) async fn ask_all(file: &ClusterFile) -> Vec<Option<NodeStatus>> {
    let mut asking = tokio::task::JoinSet::new();
    for machine in file.machines.clone() {
        asking.spawn(async move { (machine.id, ask(&machine).await) });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(id, _)| *id);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Whether every node takes part, and every voter serves.
pub(crate) async fn all_serving(file: &ClusterFile) -> bool {
    ask_all(file)
        .await
        .iter()
        .all(|answer| answer.as_ref().is_some_and(|node| node.state == "up"))
}

/// Prints the status.
pub(crate) async fn run(options: &StatusOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let status = gather(&file).await?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print_table(&status);
    }
    Ok(ExitCode::SUCCESS)
}

async fn gather(file: &ClusterFile) -> Result<ClusterStatus, Failure> {
    let answers = ask_all(file).await;
    let mut missed = Vec::with_capacity(answers.len());
    for (machine, answer) in file.machines.iter().zip(&answers) {
        // Who does not answer is not asked twice.
        let asked = machine.database.is_some() && answer.is_some();
        missed.push(match asked {
            true => object_numbers_missed(machine).await,
            false => None,
        });
    }
    let live = || answers.iter().flatten();
    let order = live().map(|node| node.decided).max().unwrap_or(0);
    // The view that the most nodes are in; of equals the highest.
    let agreeing = |view: u64| live().filter(|node| node.view == view).count();
    let view = live()
        .map(|node| node.view)
        .max_by_key(|view| (agreeing(*view), *view))
        .unwrap_or(0);
    let primary = usize::try_from(view).unwrap_or(0) % file.machines.len().max(1);
    let databases = up::databases(file)?;
    let state = UpState::read(&file.layout());
    let said = answers.iter().zip(missed);
    let machines = file
        .machines
        .iter()
        .zip(said)
        .map(|(machine, (answer, object_numbers_missed))| {
            let name = machine_name(machine.id);
            let server = usize::from(machine.id.0)
                .checked_sub(1)
                .and_then(|index| databases.get(index));
            let executed = answer.as_ref().and_then(|node| node.executed);
            MachineStatus {
                node_pid: answer.as_ref().map(|node| node.pid),
                postgres_pid: server.and_then(cluster::postgres::DatabaseServer::pid),
                postgres_socket_dir: machine
                    .database
                    .as_ref()
                    .map(|database| database.socket_directory.clone()),
                postgres_port: machine.database.as_ref().map(|database| database.port),
                database: machine.database.as_ref().map(|_| file.tunables.database.clone()),
                last_order: executed.or(answer.as_ref().map(|node| node.decided)),
                lag: executed.map(|executed| order.saturating_sub(executed)),
                digest: answer.as_ref().and_then(|node| node.digest.clone()),
                view: answer.as_ref().map(|node| node.view),
                object_numbers_missed,
                effects: answer.as_ref().and_then(|node| node.effects.clone()),
                repair: answer.as_ref().filter(|node| node.state == NEEDS_REPAIR).map(|_| {
                    format!(
                        "cloudbft repair --dir {} --machine {name}",
                        file.layout().directory().display()
                    )
                }),
                state: answer
                    .as_ref()
                    .map_or_else(|| String::from("down"), |node| node.state.clone()),
                name,
            }
        });
    let machines = machines.collect();
    // Of f+1 machines one is correct. Where fewer answer, what is known is what the file says, or any of them.
    let assignment = AssignmentStatus::stated_by(&answers, file.tunables.faults + 1);
    let assignment = assignment
        .or_else(|| AssignmentStatus::stated_by(&answers, 1))
        .filter(|stated| stated.groups <= file.tunables.groups_max);
    let assignment = assignment.unwrap_or(AssignmentStatus {
        groups: file.tunables.groups,
        ..AssignmentStatus::default()
    });
    let groups = (0..assignment.groups).map(|group| {
        let last = |node: &NodeStatus| {
            node.groups
                .iter()
                .find(|(known, _)| *known == group)
                .map(|(_, order)| *order)
        };
        GroupStatus {
            group,
            order: live().filter_map(last).max().unwrap_or(0),
        }
    });
    Ok(ClusterStatus {
        dsn: file.dsn(),
        view,
        primary: format!("m{primary}"),
        order,
        proxy_pid: state
            .proxy_pid
            .filter(|pid| crate::state::is_ours(*pid, file.layout().directory())),
        automatic_repair: file.tunables.automatic_repair,
        assignment,
        scrub: Report::read(&file.layout().scrub_report()),
        groups: groups.collect(),
        machines,
    })
}

fn print_table(status: &ClusterStatus) {
    let number = |value: Option<u64>| value.map_or_else(|| String::from("-"), |value| value.to_string());
    let pid = |value: Option<u32>| number(value.map(u64::from));
    println!(
        "{}  view {}  primary {}  order {}",
        status.dsn, status.view, status.primary, status.order
    );
    println!("proxy  {}", pid(status.proxy_pid));
    let AssignmentStatus { version, since, groups } = status.assignment;
    match version {
        0 => println!("groups {groups}"),
        _ => println!(
            "groups {groups}  changed {version} times, last at order {since} (the cluster file says how many there were at first)"
        ),
    }
    println!(
        "{:<8} {:<21} {:>9} {:>9} {:>11} {:>7}",
        "machine", "state", "node", "postgres", "last order", "lag"
    );
    for machine in &status.machines {
        let MachineStatus { name, state, .. } = machine;
        let (node, postgres) = (pid(machine.node_pid), pid(machine.postgres_pid));
        let (last, lag) = (number(machine.last_order), number(machine.lag));
        println!("{name:<8} {state:<21} {node:>9} {postgres:>9} {last:>11} {lag:>7}");
    }
    if let Some(scrub) = &status.scrub {
        scrub.print_status();
    }
    for machine in &status.machines {
        if let Some(missed) = machine.object_numbers_missed.filter(|missed| *missed > 0) {
            println!(
                "{}: its database server could not number the objects of {missed} transactions (OIDs) as the others do, since its node \
                 started; cloudbft verify tells which are left",
                machine.name
            );
        }
        if let Some(effects) = &machine.effects {
            print_effects(&machine.name, effects);
        }
        if let Some(repair) = &machine.repair {
            println!(
                "{0}: its database lacks orders that are in no log any more, or contradicts what f+1 voters have certified or \
                 changed;\n\
                 {0}: its replica takes part. To make the database anew from another: {repair}",
                machine.name
            );
            if status.automatic_repair {
                println!(
                    "{0}: `up` does so by itself (automatic_repair in the cluster file), one machine at a time: see {0}/repair.log",
                    machine.name
                );
            }
        }
    }
}

fn print_effects(name: &str, effects: &EffectsStatus) {
    if effects.state != "compared" {
        println!("{name}: what its database changes is not compared: {}", effects.state);
    }
    if let Some(diverged) = &effects.diverged {
        println!("{name}: its database has changed something else than f+1 others: {diverged}");
    }
    if let Some(last) = &effects.last_disputed {
        println!(
            "{name}: AT {} ORDERS NO f+1 DATABASES HAVE CHANGED THE SAME, so nobody knows which one is right; `cloudbft verify` \
             shows where they differ. The last one is {last}",
            effects.disputed
        );
    }
    if let Some(last) = &effects.last_unordered {
        println!(
            "{name}: its database was changed by {} transactions that nobody ordered; the last one: {last}",
            effects.unordered
        );
    }
}
