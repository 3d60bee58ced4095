//! `cloudbft repair`: makes the database of one machine equal to those of the others, while the cluster goes on.
//!
//! At first only the rows that differ are replaced (`rows`). Where that cannot be, all of another database is copied.
//! Then only the database server stops, and only while its data are exchanged: the machine's replica takes part all the time. The
//! copy holds how far it goes (`cloudbft.floor`), so that the voter goes on from there by the replicas' logs. A copy is as
//! good as where it comes from: that is compared with others before, and the result with f+1 others after
//! (`docs/decisions/0042-a-database-is-copied-from-one-and-checked-by-others.md`).

mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, Machine, machine_name};
use cluster::node::NEEDS_REPAIR;
use cluster::postgres::DatabaseServer;
use nix::fcntl::FlockArg;
use ordering::identifiers::MachineId;

use crate::verify::{INCOMPLETE, Node, compare, equal_to, largest_group, read_together, serves};
use crate::{Failure, state, status, up};

/// The pause between looks at something that is waited for.
const POLL_MS: u64 = 100;
/// How often something that takes long says how far it is.
const PROGRESS_SECONDS: u64 = 2;
/// How long snapshots of one state are looked for.
const TOGETHER_SECONDS: u64 = 60;
/// How long another command may have the machine's server, and the server may take to start.
const SERVER_SECONDS: u64 = 120;
/// How long a machine whose server runs again may say that it needs repair: it says so until its voter has looked.
const LOOK_SECONDS: u64 = 20;

/// `cloudbft repair`.
#[derive(Debug, clap::Args)]
pub(crate) struct RepairOptions {
    /// The directory of a running cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// The machine whose database is made anew
    #[arg(long)]
    machine: String,
    /// The machine whose database is copied, as a whole [default: only the rows that differ, from any that f others agree with; where that
    /// cannot be, the whole of the one of an equal majority that is furthest]
    #[arg(long)]
    from: Option<String>,
    /// Copy the whole database, not only the rows that differ
    #[arg(long)]
    whole: bool,
    /// How long the machine may take to catch up, in seconds
    #[arg(long, default_value_t = 600)]
    wait_seconds: u64,
}

/// A machine with its server.
#[derive(Clone)]
struct Machinery {
    machine: Machine,
    server: DatabaseServer,
}

impl Machinery {
    fn id(&self) -> MachineId {
        self.machine.id
    }

    fn name(&self) -> String {
        machine_name(self.machine.id)
    }
}

/// The exit code is 0 when the machine serves again with what f+1 others hold, 1 when it failed or differs, and 2 when it
/// serves and could not be compared.
pub(crate) async fn run(options: &RepairOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    if state::lock(&file.layout())?.is_some() {
        return Err("the cluster does not run; a repair needs the others: start it with `cloudbft up`".into());
    }
    let (target, others) = members(&file, &options.machine)?;
    let (name, patience) = (target.name(), Duration::from_secs(options.wait_seconds));
    let lock = exclude(&file, target.id()).await?;
    if !options.whole && options.from.is_none() {
        if status::ask(&target.machine).await.as_ref().and_then(serves).is_some() {
            // The machine goes out of service only where there is something to make its database equal to.
            choose_source(&file, &target, &others, None).await?;
        }
        match rows::repair(&file, &target, &others).await {
            Ok(()) => match catch_up(&target, decided(&file).await, patience).await {
                Ok(()) => {
                    println!("{name} is repaired: each range of its rows held what f+1 others did");
                    return Ok(ExitCode::SUCCESS);
                }
                Err(error) => println!("{name}: {error}"),
            },
            Err(error) => {
                let error = crate::with_causes(&*error);
                println!("{name}: its rows cannot be replaced where they differ: {error}");
            }
        }
    }
    let source = choose_source(&file, &target, &others, options.from.as_deref()).await?;
    println!("{name}: copying the database of {} ...", source.name());
    copy(&target, &source).await?;
    println!("{name}: stopping its database server, and putting the copy in its place");
    target.server.stop().await?;
    target.server.replace()?;
    drop(lock);
    wait_for_server(&target).await?;
    let goal = decided(&file).await;
    catch_up(&target, goal, patience).await?;
    check(&file, &target, &source, &others).await
}

/// The machine to repair, and the others that have databases.
fn members(file: &ClusterFile, wanted: &str) -> Result<(Machinery, Vec<Machinery>), Failure> {
    let with_database = file.machines.iter().filter(|machine| machine.database.is_some());
    let members = up::databases(file)?.into_iter().zip(with_database.cloned());
    let (targets, others): (Vec<_>, Vec<_>) = members
        .map(|(server, machine)| Machinery { machine, server })
        .partition(|member| member.name() == wanted);
    let names: Vec<_> = others.iter().map(Machinery::name).collect();
    let target = targets.into_iter().next();
    let target = target.ok_or_else(|| format!("{wanted} has no database; those that have: {}", names.join(", ")))?;
    Ok((target, others))
}

/// Keeps `up` from starting the machine's server, and another repair out.
async fn exclude(file: &ClusterFile, id: MachineId) -> Result<impl Drop, Failure> {
    let deadline = Instant::now() + Duration::from_secs(SERVER_SECONDS);
    loop {
        if let Some(lock) = state::database_lock(&file.layout(), id, FlockArg::LockExclusiveNonblock)? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let name = machine_name(id);
            return Err(
                format!("another `cloudbft repair --machine {name}` runs, or its server is being started").into(),
            );
        }
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
    }
}

/// The highest order that any machine has decided.
async fn decided(file: &ClusterFile) -> u64 {
    let answers = status::ask_all(file).await;
    answers.iter().flatten().map(|node| node.decided).max().unwrap_or(0)
}

/// A database that serves, and holds the same as f others at least.
async fn choose_source(
    file: &ClusterFile,
    target: &Machinery,
    others: &[Machinery],
    wanted: Option<&str>,
) -> Result<Machinery, Failure> {
    let needed = file.tunables.faults + 1;
    let mut serving = Vec::new();
    for member in others {
        let node = status::ask(&member.machine).await;
        if let Some(executed) = node.as_ref().and_then(serves) {
            serving.push((executed, member));
        }
    }
    let ids: Vec<_> = serving.iter().map(|(_, member)| member.id()).collect();
    let names: Vec<_> = serving.iter().map(|(_, member)| member.name()).collect();
    let names = names.join(", ");
    if ids.len() < needed {
        return Err(format!(
            "a copy must be checked against f+1 = {needed} other databases that serve; those that do: {}",
            if names.is_empty() { "none" } else { &names }
        )
        .into());
    }
    println!("{}: comparing the databases of {names} ...", target.name());
    let patience = Duration::from_secs(TOGETHER_SECONDS);
    let read = read_together(file, &ids, false, patience).await?;
    let equal = largest_group(&read.nodes);
    if equal.len() < needed {
        let hint = if read.together {
            "`cloudbft verify` shows where they differ"
        } else {
            "they do not come to one state: try again under less load"
        };
        return Err(
            format!("fewer than f+1 = {needed} of {names} hold the same, so none can be trusted: {hint}").into(),
        );
    }
    let mut candidates = serving.iter().filter(|(_, member)| equal.contains(&member.id()));
    match wanted {
        None => candidates.max_by_key(|(executed, _)| *executed),
        Some(wanted) => candidates.find(|(_, member)| member.name() == wanted),
    }
    .map(|(_, member)| (*member).clone())
    .ok_or_else(|| {
        let wanted = wanted.unwrap_or_default();
        format!("{wanted} is not one of the others that serve and hold the same; leave --from out").into()
    })
}

/// Copies, and says how far it is.
async fn copy(target: &Machinery, source: &Machinery) -> Result<(), Failure> {
    let began = Instant::now();
    let copying = target.server.copy_from(&source.server);
    tokio::pin!(copying);
    let mebibytes = || target.server.copied_bytes() >> 20;
    loop {
        tokio::select! {
            copied = &mut copying => {
                copied.map_err(|error| {
                    let name = source.name();
                    format!("{error}\n  nothing has changed. pg_basebackup is in the package `postgresql-client`; a server of \
                             {name} that an earlier build started gives no copy before `cloudbft down` and `cloudbft up`")
                })?;
                break;
            }
            () = tokio::time::sleep(Duration::from_secs(PROGRESS_SECONDS)) => {
                println!("{}: copied {} MiB", target.name(), mebibytes());
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{}: copied {} MiB in {seconds:.1} s", target.name(), mebibytes());
    Ok(())
}

/// `up` starts it.
async fn wait_for_server(target: &Machinery) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(SERVER_SECONDS);
    while target.server.pid().is_none() || target.server.connect("postgres").await.is_err() {
        if Instant::now() > deadline {
            let (name, replaced) = (target.name(), target.server.replaced());
            return Err(format!(
                "{name}: its database server does not come up with the copy: see {name}/database/postgres.log; \
                 what it had is in {}",
                replaced.display()
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
    }
    println!("{}: its database server runs with the copy", target.name());
    Ok(())
}

/// Waits until the voter has executed what had been decided when its server ran again.
async fn catch_up(target: &Machinery, goal: u64, patience: Duration) -> Result<(), Failure> {
    let name = target.name();
    let began = Instant::now();
    let (mut told, mut needs_repair) = (Instant::now(), None);
    loop {
        let node = status::ask(&target.machine).await;
        let executed = node.as_ref().and_then(serves);
        if let Some(executed) = executed.filter(|executed| *executed >= goal) {
            println!("{name}: serves, at order {executed}");
            return Ok(());
        }
        let state = node.map_or_else(|| String::from("down"), |node| node.state);
        let since = (state == NEEDS_REPAIR).then(|| needs_repair.unwrap_or_else(Instant::now));
        needs_repair = since;
        if since.is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(LOOK_SECONDS)) {
            return Err(format!(
                "{name}: its database needs repair again: the logs were cut off meanwhile (a larger log_bytes_max keeps \
                 more), or where it was copied from contradicts what f+1 voters have certified (--from names another); \
                 see {name}/node.log"
            )
            .into());
        }
        if began.elapsed() > patience {
            return Err(format!(
                "{name}: does not catch up with order {goal} in time ({state}): see `cloudbft status`"
            )
            .into());
        }
        if told.elapsed() > Duration::from_secs(PROGRESS_SECONDS) {
            told = Instant::now();
            let executed = executed.map_or_else(|| state.clone(), |executed| executed.to_string());
            println!("{name}: catching up: {executed} of {goal}");
        }
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
    }
}

/// Compares the machine with the others. Where it was copied from is one of f+1 that must hold the same.
async fn check(
    file: &ClusterFile,
    target: &Machinery,
    source: &Machinery,
    others: &[Machinery],
) -> Result<ExitCode, Failure> {
    let name = target.name();
    let mut ids = vec![target.id()];
    for member in others {
        let node = status::ask(&member.machine).await;
        ids.extend(node.as_ref().and_then(serves).map(|_| member.id()));
    }
    println!("{name}: comparing it with the others ...");
    let read = read_together(file, &ids, false, Duration::from_secs(TOGETHER_SECONDS)).await?;
    let needed = file.tunables.faults + 1;
    let own = read.nodes.iter().find(|node| node.id() == target.id());
    let equal = own.map_or_else(Vec::new, |own: &Node| equal_to(&read.nodes, &own.contents));
    let equal: Vec<_> = equal.into_iter().filter(|id| *id != target.id()).collect();
    let names: Vec<_> = equal.iter().map(|id| machine_name(*id)).collect();
    let replaced = target.server.replaced();
    if equal.len() >= needed {
        target.server.remove_replaced()?;
        println!("{name} is repaired: it holds the same as {}", names.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    if !read.together || ids.len() <= needed {
        println!(
            "{name} serves, but could not be compared with f+1 = {needed} others at one state: run `cloudbft verify` when all \
             serve, or under less load. What it had is in {}",
            replaced.display()
        );
        return Ok(ExitCode::from(INCOMPLETE));
    }
    compare(&read.nodes).await?;
    println!(
        "{name} DIFFERS: fewer than f+1 = {needed} of the others hold what it was given by {}. What it had is in {}.\n\
         {name}: if another machine differs from most, repair that one; then repair {name} again with another --from.",
        source.name(),
        replaced.display()
    );
    Ok(ExitCode::FAILURE)
}
