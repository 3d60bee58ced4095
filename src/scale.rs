//! `cloudbft scale`: changes how many groups share the ordering work, while applications run.
//!
//! The administrator's signed request is ordered like any other; from its order on the new groups are in charge, alike on all
//! machines (`docs/decisions/0057-groups-change-at-an-order.md`). This command asks, and waits until f+1 machines say so.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::file::ClusterFile;
use cluster::front::machine_addresses;
use cluster::identity::Identity;
use cluster::link::{Frame, Links, Peer, Receiver};
use ordering::assignment::AssignmentChange;
use ordering::identifiers::administrator;

use crate::status::{AssignmentStatus, ask_all};
use crate::{Failure, state};

/// The pause between two looks at what the machines say.
const POLL_MS: u64 = 20;
/// The request is sent again after this long: whatever has it already ignores it.
const RESEND_MS: u64 = 500;

/// `cloudbft scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleOptions {
    /// The directory of a running cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// How many groups are to be in charge (at most `groups_max` in the cluster file)
    #[arg(long)]
    groups: u16,
    /// How long the change may take, in seconds
    #[arg(long, default_value_t = 30)]
    wait_seconds: u64,
}

/// Machines have nothing to say to the administrator.
struct Deaf;

impl Receiver for Deaf {
    async fn receive(&self, _from: Peer, _frame: Frame, _bytes: usize) {}
}

/// The exit code is 0 when so many groups are in charge, 1 when not.
pub(crate) async fn run(options: &ScaleOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let most = file.tunables.groups_max;
    if !(1..=most).contains(&options.groups) {
        return Err(format!(
            "--groups must be 1 to {most}: groups_max in the cluster file, which is chosen when a cluster is made"
        )
        .into());
    }
    let identity = administrator_identity(&file)?;
    if state::lock(&file.layout())?.is_some() {
        return Err("the cluster does not run: start it with `cloudbft up`".into());
    }
    let needed = file.tunables.faults + 1;
    let before = AssignmentStatus::stated_by(&ask_all(&file).await, needed);
    let before =
        before.ok_or_else(|| format!("fewer than f+1 = {needed} machines agree on which groups are in charge"))?;
    if before.groups == options.groups {
        println!(
            "{} groups are in charge already (version {})",
            before.groups, before.version
        );
        return Ok(ExitCode::SUCCESS);
    }
    let change = AssignmentChange {
        version: before.version + 1,
        groups: options.groups,
    };
    let begun = Instant::now();
    let after = change_groups(&file, &identity, change, Duration::from_secs(options.wait_seconds)).await?;
    if (after.version, after.groups) != (change.version, change.groups) {
        return Err(format!(
            "another change came first: {} groups are in charge since order {} (version {})",
            after.groups, after.since, after.version
        )
        .into());
    }
    println!(
        "groups {} -> {}, from order {} on (version {}), after {} ms",
        before.groups,
        after.groups,
        after.since,
        after.version,
        begun.elapsed().as_millis()
    );
    Ok(ExitCode::SUCCESS)
}

/// The key that may change the number of groups.
fn administrator_identity(file: &ClusterFile) -> Result<Identity, Failure> {
    let Some(listed) = file.administrator else {
        return Err("the cluster file has no [administrator]: the cluster was made by an earlier build, and keeps its number of groups".into());
    };
    let path = file.layout().administrator_identity();
    let identity = Identity::read(&path)?;
    if identity.public().to_bytes() != listed {
        return Err(format!(
            "{} is not the key that the cluster file lists as the administrator's",
            path.display()
        )
        .into());
    }
    Ok(identity)
}

/// Has a change ordered; what f+1 machines say once its version is there.
async fn change_groups(
    file: &ClusterFile,
    identity: &Identity,
    change: AssignmentChange,
    within: Duration,
) -> Result<AssignmentStatus, Failure> {
    let addresses = machine_addresses(file);
    let everybody: Vec<Peer> = addresses.iter().map(|address| address.peer).collect();
    // Higher than every number that was used before, as long as the clock does not go back behind the last change.
    let number = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let request = change.request(u64::try_from(number)?, identity.signing_key());
    let frame = Frame::Request(request);
    let links = Links::start(
        Peer::Client(administrator()),
        identity,
        &addresses,
        None,
        Arc::new(Deaf),
    )?;
    let needed = file.tunables.faults + 1;
    let (begun, mut sent) = (Instant::now(), None::<Instant>);
    let mut reached = vec![false; everybody.len()];
    loop {
        // A link takes a moment to come up, and drops what is sent before: everybody is sent it then, and again.
        let is_due = sent.is_none_or(|sent| sent.elapsed() >= Duration::from_millis(RESEND_MS));
        if is_due {
            sent = Some(Instant::now());
        }
        for (peer, reached) in everybody.iter().zip(&mut reached) {
            let is_up = links.is_up(*peer);
            if is_up && (is_due || !*reached) {
                links.send_frame(*peer, &frame);
            }
            *reached |= is_up;
        }
        let stated = AssignmentStatus::stated_by(&ask_all(file).await, needed);
        if let Some(stated) = stated.filter(|stated| stated.version >= change.version) {
            return Ok(stated);
        }
        if begun.elapsed() > within {
            return Err(format!(
                "not decided within {} s: the cluster makes no progress (see `cloudbft status`), or the clock of this machine is behind \
                 that of the last change. The change may still happen",
                within.as_secs()
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
    }
}
