//! A pass: who takes part, what was found, and what is done about it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, Layout};
use ordering::identifiers::MachineId;

use super::indexes::is_broken;
use super::report::{Report, now_seconds};
use super::{indexes, sequences};
use crate::Failure;
use crate::databases::contents;
use crate::databases::members::{Member, close, connect_each, on_all, open_together};
use crate::databases::ranges::{self, Content, Range};
use crate::databases::tables::{Table, constant, lock, printable};
use crate::databases::vote::{Verdict, agreed, vote};
use crate::verify::INCOMPLETE;

/// How long snapshots of one state are looked for.
const TOGETHER: Duration = Duration::from_secs(20);
/// In times of the work, how long a gentle pass rests after it.
const GENTLE: u32 = 3;
/// How long a difference is looked for further before its machine is taken out of service.
const FURTHER: Duration = Duration::from_secs(5);
/// How often a difference is looked at again that is gone or cannot be looked at.
const CONFIRM_TIMES: usize = 3;

/// Why a pass cannot go on; what it has found stays.
#[derive(Debug)]
pub(super) enum Stop {
    /// Fewer than f+1 members are left.
    TooFew,
    /// Something of ours failed.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A difference of one machine's database.
struct Found {
    since: Instant,
    /// A range that differed; `None` for what was looked at several times when it was found.
    range: Option<(Table, Range)>,
    what: String,
}

/// The kinds of errors of members, by what is to be done about them.
enum Trouble {
    /// The error counts against the database.
    Damaged(String),
    /// The error passes: somebody changes definitions.
    Passing,
    /// The member is not compared any more.
    Failed(String),
}

pub(super) struct Pass {
    layout: Layout,
    pub(super) members: Vec<Member>,
    /// Machines whose databases cannot be read any more.
    damaged: Vec<Member>,
    pub(super) needed: usize,
    faults: usize,
    /// Databases that do not serve, before the pass or by it.
    out: usize,
    pub(super) report: Report,
    found: BTreeMap<MachineId, Found>,
    /// In times of the work, how long it rests after it.
    pub(super) pause: u32,
}

impl Pass {
    pub(super) async fn begin(
        file: &ClusterFile,
        serving: &[MachineId],
        out: usize,
        report: Report,
        gentle: bool,
    ) -> Result<Self, Failure> {
        let (mut members, mut out, mut report) = (Vec::new(), out, report);
        for (_, connected) in connect_each(file, serving).await? {
            match connected {
                Ok(member) => {
                    // Ranges are read by the key's index, also in a database that has no statistics.
                    let settings = "set application_name to 'cloudbft-scrub'; set enable_seqscan to off";
                    member.client.batch_execute(settings).await?;
                    members.push(member);
                }
                Err(error) => {
                    out += 1;
                    report.not_compared(error.to_string());
                }
            }
        }
        Ok(Self {
            layout: file.layout(),
            members,
            damaged: Vec::new(),
            needed: file.tunables.faults + 1,
            faults: file.tunables.faults,
            out,
            report,
            found: BTreeMap::new(),
            pause: if gentle { GENTLE } else { 0 },
        })
    }

    /// Compares everything.
    pub(super) async fn run(&mut self) -> Result<(), Stop> {
        if self.members.len() < self.needed {
            return Err(Stop::TooFew);
        }
        self.schema().await?;
        self.sequences().await?;
        self.tables().await?;
        self.indexes().await
    }

    /// Does what is to be done about what was found, and says it.
    pub(super) async fn end(mut self, outcome: Result<(), Stop>) -> Result<ExitCode, Failure> {
        close(&self.members).await?;
        self.convict().await?;
        match outcome {
            Ok(()) => {}
            Err(Stop::TooFew) => self
                .report
                .not_compared(String::from("the rest: fewer than f+1 databases are left")),
            Err(Stop::Failed(error)) => self.report.not_compared(format!("the rest: {error}")),
        }
        self.report.ended_seconds = now_seconds();
        self.report.print();
        self.report.write(&self.layout.scrub_report())?;
        let (ended, ranges, differences) = (self.report.ended_seconds, self.report.ranges, self.report.differences());
        let keep = format!(
            "begin; delete from cloudbft.scrub; insert into cloudbft.scrub values ({ended}, {ranges}, {differences}); commit"
        );
        on_all(&self.members, |client| {
            let keep = keep.clone();
            async move { client.batch_execute(&keep).await.is_ok() }
        })
        .await?;
        Ok(match (differences, self.report.not_compared.is_empty()) {
            (0, true) => ExitCode::SUCCESS,
            (0, false) => ExitCode::from(INCOMPLETE),
            _ => ExitCode::FAILURE,
        })
    }

    async fn sequences(&mut self) -> Result<(), Stop> {
        if !self.open(std::iter::empty::<&Table>()).await? {
            let why = "the sequences: they cannot be read at one state";
            self.report.not_compared(String::from(why));
            return Ok(());
        }
        let committed = on_all(&self.members, |client| async move {
            contents::committed_sequences(&client).await
        });
        let committed = committed.await?;
        close(&self.members).await?;
        let (committed, _) = self.answered(committed)?;
        self.judge(&committed, None, "where the last commit left the sequences");
        let moved = on_all(&self.members, sequences::moved).await?;
        let (moved, _) = self.answered(moved)?;
        let mut names: Vec<_> = moved.iter().flatten().flat_map(|moved| moved.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let places: Vec<_> = moved.iter().map(|moved| Some(moved.as_ref()?.get(name))).collect();
            let place = places.iter().flatten().flatten().next();
            let place = place.map_or(0, |(value, _)| *value);
            let what = printable(&format!(
                "sequence {name}: it was moved to {place}, which nobody ordered"
            ));
            self.judge(&places, None, &what);
        }
        Ok(())
    }

    async fn indexes(&mut self) -> Result<(), Stop> {
        println!("indexes ...");
        let pause = self.pause;
        let checked = on_all(&self.members, |client| indexes::check(client, pause)).await?;
        let mut told = Vec::new();
        for (member, checked) in self.members.clone().iter().zip(checked) {
            self.report.indexes += checked.count;
            if let Some(failure) = checked.failure {
                told.push(format!("indexes of {}: {failure}", member.name));
            }
            for what in checked.broken {
                self.find(member.id, None, &what);
            }
        }
        told.into_iter().for_each(|what| self.report.not_compared(what));
        Ok(())
    }

    /// Opens snapshots of one state on all members, and locks tables in them. False when that cannot be now, since definitions are
    /// being changed.
    pub(super) async fn open<'tables>(&mut self, tables: impl Iterator<Item = &'tables Table>) -> Result<bool, Stop> {
        let locks = lock(tables);
        loop {
            let opened = open_together(&self.members, &locks, TOGETHER).await?;
            let before = self.members.len();
            let (positions, passing) = self.answered(opened)?;
            if passing {
                close(&self.members).await?;
                return Ok(false);
            }
            if positions.len() < before {
                close(&self.members).await?;
                continue;
            }
            let Some(place) = agreed(&positions, self.needed) else {
                return Err("the databases do not come to one state: try again under less load".into());
            };
            let together = positions.get(place).cloned().flatten();
            let apart = positions
                .iter()
                .zip(&self.members)
                .filter(|(position, _)| **position != together);
            let apart: Vec<_> = apart.map(|(_, member)| member.clone()).collect();
            close(&apart).await?;
            for member in apart {
                self.leave_out(member.id, "does not come to one state with the others");
            }
            return Ok(true);
        }
    }

    /// The answers of members, in their order: whoever could not answer is a member no more, and what counts against it is noted. True when an
    /// error is a passing one.
    pub(super) fn answered<T>(
        &mut self,
        answers: Vec<Result<T, tokio_postgres::Error>>,
    ) -> Result<(Vec<Option<T>>, bool), Stop> {
        let (mut kept, mut passing) = (Vec::new(), false);
        for (member, answer) in self.members.clone().iter().zip(answers) {
            match answer {
                Ok(answer) => kept.push(Some(answer)),
                Err(error) => match trouble(&error) {
                    Trouble::Damaged(what) => {
                        self.find(member.id, None, &what);
                        self.members.retain(|other| other.id != member.id);
                        self.damaged.push(member.clone());
                    }
                    Trouble::Passing => {
                        passing = true;
                        kept.push(None);
                    }
                    Trouble::Failed(what) => self.leave_out(member.id, &what),
                },
            }
        }
        match self.members.len() < self.needed {
            true => Err(Stop::TooFew),
            false => Ok((kept, passing)),
        }
    }

    pub(super) fn leave_out(&mut self, id: MachineId, why: &str) {
        if let Some(at) = self.members.iter().position(|member| member.id == id) {
            let member = self.members.remove(at);
            self.report.not_compared(format!("{}: {why}", member.name));
        }
    }

    /// Counts what the members say of one thing, and notes who says otherwise than f+1; the places of those.
    pub(super) fn judge<T: PartialEq>(
        &mut self,
        answers: &[Option<T>],
        range: Option<(&Table, &Range)>,
        what: &str,
    ) -> Vec<usize> {
        match vote(answers, self.needed) {
            Verdict::Equal => Vec::new(),
            Verdict::Differ { others, .. } => {
                let ids = others.iter().filter_map(|place| self.members.get(*place));
                let ids: Vec<_> = ids.map(|member| member.id).collect();
                ids.into_iter().for_each(|id| self.find(id, range, what));
                others
            }
            Verdict::Disputed => {
                self.report.dispute(what);
                Vec::new()
            }
        }
    }

    pub(super) fn find(&mut self, id: MachineId, range: Option<(&Table, &Range)>, what: &str) {
        self.report.differs(id, what);
        self.found.entry(id).or_insert_with(|| Found {
            since: Instant::now(),
            range: range.map(|(table, range)| (table.clone(), range.clone())),
            what: what.to_owned(),
        });
    }

    /// Whether somebody was found to differ so long ago that it is to be taken out of service before the pass goes on.
    pub(super) fn is_urgent(&self) -> bool {
        self.found.values().any(|found| found.since.elapsed() > FURTHER)
    }

    /// Takes out of service who differs, unless more than f would be out: then whoever is left must be repaired first.
    pub(super) async fn convict(&mut self) -> Result<(), Failure> {
        for (id, found) in std::mem::take(&mut self.found) {
            if let Some((table, range)) = &found.range {
                match self.confirm(id, table, range).await? {
                    Some(true) => {}
                    Some(false) => {
                        self.report.withdraw(id);
                        continue;
                    }
                    None => {
                        let why = format!("{}: it cannot be looked at again, so nothing is done", found.what);
                        self.report.not_compared(why);
                        continue;
                    }
                }
            }
            if self.out >= self.faults {
                println!("as many databases as may be are out of service already: nothing is done about a further one");
                continue;
            }
            let mut known = self.members.iter().chain(&self.damaged);
            let Some(member) = known.find(|member| member.id == id) else {
                continue;
            };
            let note = format!(
                "rollback; set synchronous_commit to on; insert into cloudbft.diverged select coalesce((select max(greatest(granted, \"order\")) \
                 from cloudbft.applied), 0), {} where not exists (select from cloudbft.diverged)",
                constant(&format!("found by cloudbft scrub: {}", found.what))
            );
            match member.client.batch_execute(&note).await {
                Ok(()) => {
                    self.out += 1;
                    self.report.noted(id);
                    self.members.retain(|member| member.id != id);
                }
                Err(error) => self.leave_out(id, &printable(&crate::with_causes(&error))),
            }
        }
        Ok(())
    }

    /// Looks at a range again, in other snapshots: whether the machine still differs; `None` when that cannot be.
    async fn confirm(&mut self, id: MachineId, table: &Table, range: &Range) -> Result<Option<bool>, Failure> {
        for _ in 0..CONFIRM_TIMES {
            match self.open(std::iter::once(table)).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(Stop::TooFew) => return Ok(None),
                Err(Stop::Failed(error)) => return Err(error),
            }
            let answers = ranges::contents(&self.members, table, range).await?;
            close(&self.members).await?;
            if answers.iter().any(Result::is_err) {
                continue;
            }
            let answers: Vec<Option<Content>> = answers.into_iter().map(Result::ok).collect();
            return Ok(match vote(&answers, self.needed) {
                Verdict::Equal => Some(false),
                Verdict::Disputed => None,
                Verdict::Differ { others, .. } => {
                    let ids = others.iter().filter_map(|place| self.members.get(*place));
                    Some(ids.map(|member| member.id).any(|other| other == id))
                }
            });
        }
        Ok(None)
    }
}

fn trouble(error: &tokio_postgres::Error) -> Trouble {
    let said = printable(&crate::with_causes(error));
    if is_broken(error) {
        return Trouble::Damaged(format!("it cannot be read: {said}"));
    }
    // A lock, a serialization failure, a name that is no more, an aborted transaction, a cache that lags.
    let passing = ["55P03", "40001", "57014", "25P02", "XX000"];
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some(code) if passing.contains(&code) || code.starts_with("42") => Trouble::Passing,
        _ => Trouble::Failed(said),
    }
}
