//! A repair that copies only the rows that differ (`docs/decisions/0058-a-repair-copies-what-differs.md`).
//!
//! The voter is out of service, so nobody writes to its database. Its tables are compared, range by range, with a snapshot of the others;
//! ranges that differ are replaced, and the voter's positions become those of the snapshot, in one transaction. Whenever it is killed, the
//! database is as it was, with the note that keeps its voter out; or it holds what f+1 others held at one state, and its voter goes
//! on from there as after a crash: its own floor is older than its positions.

mod apply;
mod plan;
mod quiet;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster::file::ClusterFile;
use ordering::identifiers::MachineId;

use super::Machinery;
use crate::databases::contents;
use crate::databases::members::{Books, Member, Positions, close, connect, connect_each, on_all, open_together};
use crate::databases::tables::{Table, lock};
use crate::databases::vote::agreed;
use crate::scrub::{defined, is_at};
use crate::{Failure, status};
use plan::Plan;

/// How long snapshots of one state are looked for.
const TOGETHER: Duration = Duration::from_secs(20);
/// How often snapshots are taken again that were too old, or whose definitions changed meanwhile.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// The databases to compare with: snapshots of one state, which at least f+1 say they hold.
struct Sources {
    members: Vec<Member>,
    needed: usize,
    tables: Vec<Table>,
    /// The transactions that the snapshots hold.
    positions: Positions,
}

/// Makes the rows of a machine's database equal to those of f+1 others. An error says why that cannot be, and that nothing has changed.
pub(super) async fn repair(file: &ClusterFile, target: &Machinery, others: &[Machinery]) -> Result<(), Failure> {
    let began = Instant::now();
    let needed = file.tunables.faults + 1;
    let mut serving = Vec::new();
    for other in others {
        if status::ask(&other.machine)
            .await
            .as_ref()
            .and_then(crate::verify::serves)
            .is_some()
        {
            serving.push(other.id());
        }
    }
    if serving.len() < needed {
        return Err(format!("fewer than f+1 = {needed} others serve").into());
    }
    let own = connect(file, &[target.id()]).await?;
    let own = own.into_iter().next().ok_or("its database does not answer")?;
    own.client
        .batch_execute("set application_name to 'cloudbft-repair'; set enable_seqscan to off")
        .await?;
    let Books { floor, .. } = Books::read(&own.client).await?;
    logs_reach(file, floor, needed).await?;
    let is_ours = quiet::note(&own).await?;
    let outcome = make_equal(file, target, &own, &serving, floor).await;
    if outcome.is_err() {
        let _ = own.client.batch_execute("rollback").await;
        if is_ours {
            // The machine served before: a repair of another kind takes it out of service again.
            let _ = own.client.batch_execute("delete from cloudbft.diverged").await;
        }
    }
    let counts = outcome?;
    println!(
        "{}: {} rows in {} of {} ranges were replaced, in {:.1} s",
        target.name(),
        counts.rows,
        counts.differing,
        counts.ranges,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn make_equal(
    file: &ClusterFile,
    target: &Machinery,
    own: &Member,
    serving: &[MachineId],
    floor: i64,
) -> Result<plan::Counts, Failure> {
    quiet::wait(&target.machine, own).await?;
    apply::check_indexes(own).await?;
    let sources = open_sources(file, own, serving, floor).await?;
    let watch = quiet::Watch::begin(file, &sources.members).await?;
    let outcome = async {
        apply::begin(own).await?;
        same_large_objects(&sources, own).await?;
        let plan = Plan::make(&sources, own, &watch, &target.name()).await?;
        apply::carry_out(&plan, &sources, own, &watch).await?;
        apply::commit(own, &sources.positions).await?;
        Ok(plan.counts)
    }
    .await;
    close(&sources.members).await?;
    outcome
}

/// The voter goes on from its floor: what was ordered since must be in f+1 logs.
async fn logs_reach(file: &ClusterFile, floor: i64, needed: usize) -> Result<(), Failure> {
    let next = floor.unsigned_abs() + 1;
    let answers = status::ask_all(file).await;
    let reaching = answers.iter().flatten().filter(|node| node.log_first <= next).count();
    match reaching >= needed {
        true => Ok(()),
        false => Err(format!("the logs do not go back to order {next}, from which it would go on").into()),
    }
}

/// Opens snapshots of one state on the others, which hold everything up to the floor of the database to repair, and the same definitions
/// as it.
async fn open_sources(file: &ClusterFile, own: &Member, serving: &[MachineId], floor: i64) -> Result<Sources, Failure> {
    let needed = file.tunables.faults + 1;
    let connected = connect_each(file, serving).await?;
    let members: Vec<_> = connected.into_iter().filter_map(|(_, member)| member.ok()).collect();
    for member in &members {
        let settings = "set application_name to 'cloudbft-repair'; set enable_seqscan to off";
        member.client.batch_execute(settings).await?;
    }
    let mut why = Failure::from("the others do not come to one state");
    for _ in 0..ATTEMPTS {
        let looked = on_all(&members, defined).await?;
        let looked: Vec<_> = looked.into_iter().map(|look| look.ok().flatten()).collect();
        let Some(truth) = agreed(&looked, needed).and_then(|place| looked.get(place).cloned().flatten()) else {
            why = "no f+1 others have the same definitions, or they change all the time".into();
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let here = defined(std::sync::Arc::clone(&own.client)).await?;
        let here = here.ok_or("its definitions change, though its voter is out of service")?;
        if here.contents != truth.contents || here.tables != truth.tables {
            return Err("its definitions of tables, functions or other objects differ".into());
        }
        same_numbers(&members, own, needed).await?;
        let opened = open_together(&members, &lock(truth.tables.iter()), TOGETHER).await?;
        let positions: Vec<_> = opened.into_iter().map(|opened| opened.ok().flatten()).collect();
        let Some(positions_agreed) =
            agreed(&positions, needed).and_then(|place| positions.get(place).cloned().flatten())
        else {
            close(&members).await?;
            continue;
        };
        let group = members.iter().zip(&positions);
        let group = group.filter(|(_, position)| position.as_ref() == Some(&positions_agreed));
        let (mut sources, mut fit) = (Vec::new(), 0);
        for (member, _) in group {
            let books = Books::read(&member.client).await?;
            if books.forgotten <= floor {
                fit += usize::from(books.floor >= floor && is_at(&member.client, &truth.order).await?);
                sources.push(member.clone());
            }
        }
        if sources.len() < needed {
            close(&members).await?;
            return Err("the others have forgotten positions that its voter would need to go on".into());
        }
        if fit >= needed {
            let mut tables = truth.tables;
            tables.extend([Table::positions(floor), Table::own("sequence", "name")]);
            return Ok(Sources {
                members: sources,
                needed,
                tables,
                positions: positions_agreed,
            });
        }
        why = "the others have not finished what it had, or change definitions all the time".into();
        close(&members).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Err(why)
}

/// Large objects are not replaced one by one: where they differ, only a whole copy helps.
async fn same_large_objects(sources: &Sources, own: &Member) -> Result<(), Failure> {
    let held = on_all(&sources.members, |client| async move {
        contents::large_objects(&client).await
    })
    .await?;
    let held: Vec<_> = held.into_iter().map(Result::ok).collect();
    let here = Some(contents::large_objects(&own.client).await?);
    match agreed(&held, sources.needed) {
        Some(place) if held.get(place) == Some(&here) => Ok(()),
        _ => Err("large objects differ, or no f+1 others hold the same".into()),
    }
}

/// Objects have the numbers (OIDs) that f+1 others give them: only a whole copy brings others.
async fn same_numbers(members: &[Member], own: &Member, needed: usize) -> Result<(), Failure> {
    let numbers = on_all(members, |client| async move { contents::numbers(&client).await }).await?;
    let numbers: Vec<_> = numbers.into_iter().map(Result::ok).collect();
    let here = Some(contents::numbers(&own.client).await?);
    match agreed(&numbers, needed) {
        Some(place) if numbers.get(place) != Some(&here) => Err("it numbers objects otherwise (OIDs)".into()),
        _ => Ok(()),
    }
}

/// The names of machines, for messages.
fn named(members: &[Member]) -> String {
    let names: BTreeSet<_> = members.iter().map(|member| member.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
