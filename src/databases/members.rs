//! Connections to the databases of several machines, and snapshots of them at one and the same state, while the cluster goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::file::{ClusterFile, machine_name};
use ordering::identifiers::MachineId;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::{Failure, up};

/// The pause before snapshots are taken again that were not of one state.
const AGAIN_MS: u64 = 10;

/// Opens a snapshot: taken by the first statement that reads, so that tables can be locked before.
const OPEN: &str = "begin isolation level repeatable read read only";

/// Says which committed transactions above an order a snapshot holds: the last position of each home, which ascend.
const POSITIONS: &str = "select md5(coalesce(string_agg(format('%s %s %s', home, granted, \"order\"), ',' \
    order by home collate \"C\"), '')) from cloudbft.applied where greatest(granted, \"order\") > $1";

/// Says up to which order everything is over in a database, and up to which one it has forgotten positions. (Where the table is of an earlier
/// build and has no such column, the name means the other one.)
const BOOKS: &str = "select coalesce((select \"order\" from cloudbft.floor limit 1), 0), \
    coalesce((select forgotten from cloudbft.floor limit 1), 0) from (select 0::bigint as forgotten) as earlier";

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

/// The transactions that a snapshot holds. Everything up to an order is over in it: what is above tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    above: i64,
    digest: String,
}

impl Positions {
    /// The positions of a database above the same order.
    pub(crate) async fn above_same(&self, client: &Client) -> Result<Self, Error> {
        Self::read(client, self.above).await
    }

    async fn read(client: &Client, above: i64) -> Result<Self, Error> {
        let digest = client.query_one(POSITIONS, &[&above]).await?.get(0);
        Ok(Self { above, digest })
    }
}

/// How far a database's books reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Books {
    /// Everything up to this order is over in it.
    pub(crate) floor: i64,
    /// Up to this order it has forgotten positions.
    pub(crate) forgotten: i64,
}

impl Books {
    /// Asks a database.
    pub(crate) async fn read(client: &Client) -> Result<Self, Error> {
        let row = client.query_one(BOOKS, &[]).await?;
        Ok(Self {
            floor: row.get(0),
            forgotten: row.get(1),
        })
    }

    /// Whether positions above this order tell all that a database holds.
    pub(crate) fn tell_all_above(self, order: i64) -> bool {
        self.forgotten <= order && order <= self.floor
    }
}

/// The transactions that a member's snapshot holds (`None`: its books do not reach as far as the others'), or why it could not be opened.
pub(crate) type Opened = Result<Option<Positions>, Error>;

/// Opens snapshots that hold the same transactions; after this long, or when a member fails, whatever they hold. `locks`, the statement
/// that locks what is to be read (or nothing), runs before: so nothing that a snapshot does not govern, as TRUNCATE, comes in between.
pub(crate) async fn open_together(members: &[Member], locks: &str, patience: Duration) -> Result<Vec<Opened>, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        let opening = format!("{OPEN}; {locks}");
        let books = on_all(members, |client| {
            let opening = opening.clone();
            async move {
                client.batch_execute(&opening).await?;
                Books::read(&client).await
            }
        })
        .await?;
        let opened = positions(members, books).await?;
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

/// The positions in members' snapshots above one order: the order above which most say the same. Floors are members' own words, which nobody
/// else can tell; so each is tried.
async fn positions(members: &[Member], answers: Vec<Result<Books, Error>>) -> Result<Vec<Opened>, Failure> {
    if answers.iter().any(Result::is_err) {
        return Ok(answers.into_iter().map(|books| books.map(|_| None)).collect());
    }
    let books: Vec<_> = answers.into_iter().flatten().collect();
    let floors: BTreeSet<_> = books.iter().map(|books| books.floor).collect();
    let mut best = vec![None; members.len()];
    for above in floors {
        let reaching = |books: &Books| books.tell_all_above(above);
        let asked = members.iter().zip(&books).filter(|(_, books)| reaching(books));
        let asked: Vec<_> = asked.map(|(member, _)| member.clone()).collect();
        let read = on_all(&asked, |client| async move { Positions::read(&client, above).await }).await?;
        let mut read = read.into_iter();
        let told = books.iter().map(|books| match reaching(books) {
            true => read.next().transpose(),
            false => Ok(None),
        });
        let told: Vec<Opened> = told.collect();
        if told.iter().any(Result::is_err) {
            return Ok(told);
        }
        let told: Vec<_> = told.into_iter().map(Result::ok).map(Option::flatten).collect();
        if saying_the_same(&told) > saying_the_same(&best) {
            best = told;
        }
        if saying_the_same(&best) == members.len() {
            break;
        }
    }
    Ok(best.into_iter().map(Ok).collect())
}

/// How many say what most say.
fn saying_the_same(told: &[Option<Positions>]) -> usize {
    let same = |one: &Positions| told.iter().flatten().filter(|other| *other == one).count();
    told.iter().flatten().map(same).max().unwrap_or(0)
}

/// Whether all snapshots hold the same.
pub(crate) fn are_together(opened: &[Opened]) -> bool {
    let mut positions = opened
        .iter()
        .map(|opened| opened.as_ref().ok().and_then(Option::as_ref));
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
fn is_locked(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}
