//! `cloudbft up`: makes a cluster if there is none, starts everything, watches it, and stops it in order.

mod own_command;
mod repairs;
mod scrubs;
mod supervised;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use cluster::file::{self, ClusterFile, Database, Tunables};
use cluster::postgres::{Binaries, DatabaseServer, PostgresError, ServerOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use supervised::Supervised;

use crate::Failure;
use crate::state;

/// Connections of a database server beside the voter's: people, `verify`, reserved ones.
const CONNECTIONS_SPARE: usize = 20;

/// `cloudbft up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// The directory of the cluster: made with everything in it if it is not there
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// A file with tunables for a new cluster (the cluster file's, without machines and clients)
    #[arg(long)]
    config: Option<PathBuf>,
    /// f: how many machines may be Byzantine (new clusters)
    #[arg(long)]
    faults: Option<usize>,
    /// How many groups share the ordering work (new clusters)
    #[arg(long)]
    groups: Option<u16>,
    /// The agreement protocol: minbft or pbft (new clusters)
    #[arg(long)]
    agreement: Option<String>,
    /// Where applications connect
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// What an operation on several partitions locks: footprint or global (new clusters)
    #[arg(long)]
    multi_partition: Option<String>,
    /// Lock rows of tables without a partition rule where statements name them, not the tables: true (the default) or false (new
    /// clusters; see docs/decisions/0046)
    #[arg(long)]
    lock_rows: Option<bool>,
    /// Compare what databases change, and take one that differs out of service until it is repaired: true (the default) or false (new
    /// clusters; see docs/decisions/0051)
    #[arg(long)]
    compare_effects: Option<bool>,
    /// The trusted counter: ed25519, blake3 or process (new clusters)
    #[arg(long)]
    counter: Option<String>,
    /// Another build of the program for the node of one machine, as m2=PATH (diversity of machines; tests)
    #[arg(long, value_name = "MACHINE=PATH")]
    node_program: Vec<String>,
    /// Return when the cluster is ready, and leave it running (see `cloudbft down`)
    #[arg(long)]
    detach: bool,
    /// Set by --detach for the process that stays
    #[arg(long, hide = true)]
    detached: bool,
}

/// Runs until a signal, or until ready with `--detach`.
pub(crate) fn run(options: UpOptions) -> Result<ExitCode, Failure> {
    if options.detached {
        // A session of its own: no terminal's end reaches it.
        nix::unistd::setsid()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if options.detach {
        runtime.block_on(detach(&options.dir))
    } else {
        runtime.block_on(supervise(options))
    }
}

/// Starts this command again in the background, and returns when that one is ready.
async fn detach(directory: &Path) -> Result<ExitCode, Failure> {
    let log = file::make_directory(directory)?.join("up.log");
    let errors = std::fs::File::options().create(true).append(true).open(&log)?;
    let before = errors.metadata()?.len();
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    if let Some(line) = BufReader::new(output).lines().next_line().await? {
        println!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    child.wait().await?;
    let said = std::fs::read(&log)?;
    let said = said.get(usize::try_from(before)?..).unwrap_or_default();
    eprint!("{}", String::from_utf8_lossy(said));
    Ok(ExitCode::FAILURE)
}

async fn supervise(options: UpOptions) -> Result<ExitCode, Failure> {
    // From here on a signal stops what has been started.
    let mut signals = Signals::catch()?;
    let directory = file::make_directory(&options.dir)?;
    let layout = file::Layout::new(&directory);
    let Some(_lock) = state::lock(&layout)? else {
        return Err(format!("{} is in use by another `cloudbft up`", directory.display()).into());
    };
    let file = open_or_generate(&options, &directory)?;
    state::clear_leftovers(&layout, Duration::from_secs(10)).await;
    let mut cluster = Supervised::new(file, node_programs(&options)?)?;
    let started = tokio::select! {
        started = cluster.start() => started,
        () = signals.any() => Err("interrupted".into()),
    };
    let outcome = match started {
        Ok(()) => {
            println!("ready {}", cluster.file.dsn());
            cluster.watch(&mut signals).await;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error),
    };
    cluster.stop().await;
    outcome
}

/// The machines whose nodes run another program.
fn node_programs(options: &UpOptions) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let pairs = options.node_program.iter().map(|pair| {
        let (machine, path) = pair
            .split_once('=')
            .ok_or(format!("--node-program {pair}: expected MACHINE=PATH"))?;
        Ok((machine.to_string(), PathBuf::from(path)))
    });
    pairs.collect()
}

/// SIGINT, SIGTERM and, for detached ones, a hang-up that is ignored.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    _hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn open_or_generate(options: &UpOptions, directory: &Path) -> Result<ClusterFile, Failure> {
    let path = directory.join("cluster.toml");
    if path.exists() {
        ClusterFile::restrict(&path)?;
        let mut file = ClusterFile::read(&path)?;
        let fixed = [
            ("--config", options.config.is_some()),
            (
                "--faults",
                options.faults.is_some_and(|faults| faults != file.tunables.faults),
            ),
            (
                "--groups",
                options.groups.is_some_and(|groups| groups != file.tunables.groups),
            ),
            (
                "--agreement",
                options
                    .agreement
                    .as_ref()
                    .is_some_and(|word| word != file.tunables.agreement.name()),
            ),
        ];
        if let Some((option, _)) = fixed.into_iter().find(|(_, differs)| *differs) {
            let path = path.display();
            let instead = match option {
                "--groups" => String::from("see `cloudbft scale`"),
                _ => format!("edit {path} while the cluster is down"),
            };
            return Err(format!("{option} is for new clusters; {instead}").into());
        }
        // Port 0 means any: the one that was chosen is kept.
        let listen = options
            .listen
            .filter(|listen| listen.port() != 0 && *listen != file.tunables.listen);
        if let Some(listen) = listen {
            file = change_listen(&path, file.tunables.listen, listen)?;
        }
        return Ok(file);
    }
    let mut tunables = match &options.config {
        Some(path) => file::read_tunables(path)?,
        None => Tunables::default(),
    };
    tunables.faults = options.faults.unwrap_or(tunables.faults);
    tunables.groups = options.groups.unwrap_or(tunables.groups);
    tunables.listen = options.listen.unwrap_or(tunables.listen);
    if tunables.listen.port() == 0 {
        let free = file::free_ports(tunables.listen.ip(), 1, &[])?;
        tunables.listen = free.into_iter().next().unwrap_or(tunables.listen);
    }
    if let Some(word) = &options.agreement {
        tunables.agreement = file::parse_word(word)?;
    }
    if let Some(word) = &options.multi_partition {
        tunables.multi_partition = file::parse_word(word)?;
    }
    tunables.partitions.lock_rows = options.lock_rows.unwrap_or(tunables.partitions.lock_rows);
    tunables.effects.compare = options.compare_effects.unwrap_or(tunables.effects.compare);
    if let Some(word) = &options.counter {
        tunables.counter = file::parse_word(word)?;
    }
    let counters = cluster::counter::Provisioner::new(tunables.counter)?;
    let counter = |directory: &Path| counters.provision(directory).map_err(|error| error.to_string());
    Ok(file::generate(directory, &tunables, counter)?)
}

fn change_listen(path: &Path, old: SocketAddr, new: SocketAddr) -> Result<ClusterFile, Failure> {
    let text = std::fs::read_to_string(path)?;
    let text = text.replacen(&format!("listen = \"{old}\""), &format!("listen = \"{new}\""), 1);
    let file = ClusterFile::parse(path, &text)?;
    std::fs::write(path, text)?;
    Ok(file)
}

/// The database servers of a cluster, m1 first.
pub(crate) fn databases(file: &ClusterFile) -> Result<Vec<DatabaseServer>, PostgresError> {
    let binaries = Binaries::find()?;
    let with_database = |machine: &cluster::file::Machine| Some((machine.id, machine.database.clone()?));
    let tunables = &file.tunables;
    let servers = file
        .machines
        .iter()
        .filter_map(with_database)
        .map(|(id, Database { socket_directory, port })| {
            let options = ServerOptions {
                directory: file.layout().machine_database(id),
                socket_directory,
                port,
                connections_max: cluster::node::backends_max(file) + CONNECTIONS_SPARE,
                shared_buffers_mib: tunables.limits.shared_buffers_mib,
                logical: tunables.effects.compare,
                database: tunables.database.clone(),
                roles: tunables.roles.iter().map(|role| role.name.clone()).collect(),
            };
            DatabaseServer::new(binaries.clone(), options)
        });
    Ok(servers.collect())
}
