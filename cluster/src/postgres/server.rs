//! One database server: made, started, waited for, stopped.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::NoTls;

use super::{Binaries, PostgresError, SUPERUSER};

/// How long a start (which may replay its log) or a stop may take.
const START_MS_MAX: u64 = 120_000;
const STOP_MS_MAX: u64 = 30_000;
/// How often a start is tried, and the pause between.
const START_ATTEMPTS: usize = 10;
const START_PAUSE_MS: u64 = 300;
/// How much of a server's log an error shows.
const LOG_LINES_SHOWN: usize = 5;
/// How long the backends of a killed server may linger.
const LEFTOVERS_MS_MAX: u64 = 10_000;
/// The pause between looks at a server that starts or stops.
const POLL_MS: u64 = 20;

/// How a server is made.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The directory that holds `data`, and the server's log.
    pub directory: PathBuf,
    /// The directory of the Unix socket: its path must be short (see [`crate::file::Layout`]).
    pub socket_directory: PathBuf,
    /// The port, which names the socket.
    pub port: u16,
    /// `max_connections`.
    pub connections_max: usize,
    /// `shared_buffers`, in MiB.
    pub shared_buffers_mib: usize,
    /// Whether the server's log says what changes, for logical decoding.
    pub logical: bool,
    /// The database to make.
    pub database: String,
    /// The application's roles, none of which is a superuser. The first one owns the schema `public`, and may make others; of
    /// a plain server it owns the database.
    pub roles: Vec<String>,
}

/// A server that `up` manages.
#[derive(Clone, Debug)]
pub struct DatabaseServer {
    binaries: Binaries,
    options: ServerOptions,
    flavour: Flavour,
}

/// What a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    /// A database node, whose durable copy is the replicas' log.
    DatabaseNode,
    /// A PostgreSQL as it comes, to compare with.
    Plain,
}

impl DatabaseServer {
    /// The server of a directory, which need not exist yet.
    pub fn new(binaries: Binaries, options: ServerOptions) -> Self {
        let flavour = Flavour::DatabaseNode;
        Self {
            binaries,
            options,
            flavour,
        }
    }

    /// A server as `initdb` makes it: all settings (durability among them) are PostgreSQL's defaults but port and socket
    /// directory, so `connections_max` and `shared_buffers_mib` mean nothing. It also listens on localhost.
    pub fn plain(binaries: Binaries, options: ServerOptions) -> Self {
        let flavour = Flavour::Plain;
        Self {
            binaries,
            options,
            flavour,
        }
    }

    /// Makes the data directory unless it is there, starts the server unless it runs, waits until it answers, and
    /// makes the database and its roles.
    ///
    /// # Errors
    /// When a program fails or the server does not come up in time.
    pub async fn start(&self) -> Result<(), PostgresError> {
        let mut attempt = 1;
        loop {
            match self.try_start().await {
                // A server that was just killed may still look alive, and end under our hands.
                Err(PostgresError::NotReady { .. } | PostgresError::Setup(_)) if attempt < START_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(START_PAUSE_MS)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_start(&self) -> Result<(), PostgresError> {
        let server = self.clone();
        let launching = tokio::task::spawn_blocking(move || server.initialise().and_then(|()| server.launch()));
        let launched = launching.await.map_err(|error| PostgresError::System {
            what: String::from("initdb"),
            source: error.into(),
        })??;
        self.wait_ready(launched).await?;
        self.make_database().await
    }

    /// The process id of the server, if it runs.
    pub fn pid(&self) -> Option<u32> {
        running_pid(&self.data())
    }

    /// Stops the server: connections are cut, and everything is flushed.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&self) -> Result<(), PostgresError> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let signalled = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT);
        signalled.map_err(|error| PostgresError::System {
            what: format!("stop {pid}"),
            source: error.into(),
        })?;
        let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
        while self.pid().is_some() {
            if Instant::now() > deadline {
                return Err(self.not_ready());
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
        Ok(())
    }

    /// A connection as the superuser.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, PostgresError> {
        connect(&self.options.socket_directory, self.options.port, database).await
    }

    /// Copies the data of another server, which runs, to a place beside this one's own, where [`DatabaseServer::replace`]
    /// takes them from.
    ///
    /// # Errors
    /// When the other server does not give them, or there is no room.
    pub async fn copy_from(&self, source: &Self) -> Result<(), PostgresError> {
        let (server, source) = (self.clone(), source.options.clone());
        let copying = tokio::task::spawn_blocking(move || {
            remove_directory(&server.copy())?;
            let mut backup = server.binaries.command("pg_basebackup");
            backup.arg("--pgdata").arg(server.copy());
            backup.arg("--host").arg(&source.socket_directory);
            backup.arg("--port").arg(source.port.to_string());
            backup.args(["--username", SUPERUSER, "--no-password"]);
            backup.args(["--checkpoint=fast", "--wal-method=stream"]);
            // A Ctrl-C at the terminal ends who waits for it; what it leaves is removed by the next one.
            run(backup, "pg_basebackup")
        });
        copying.await.map_err(|error| PostgresError::System {
            what: String::from("pg_basebackup"),
            source: error.into(),
        })?
    }

    /// How much has been copied by now, in bytes.
    pub fn copied_bytes(&self) -> u64 {
        bytes_in(&self.copy())
    }

    /// Puts the copy in the place of this server's data, which must be stopped: at once, so that there are always data.
    ///
    /// # Errors
    /// When a directory cannot be renamed.
    pub fn replace(&self) -> Result<(), PostgresError> {
        let (data, copy) = (self.data(), self.copy());
        let failed = || PostgresError::system(format!("cannot put {} in its place", copy.display()));
        self.remove_replaced()?;
        if data.exists() {
            let exchange = RenameFlags::RENAME_EXCHANGE;
            renameat2(AT_FDCWD, &copy, AT_FDCWD, &data, exchange)
                .map_err(std::io::Error::from)
                .map_err(failed())?;
            fs::rename(&copy, self.replaced()).map_err(failed())?;
        } else {
            fs::rename(&copy, &data).map_err(failed())?;
        }
        let directory = fs::File::open(&self.options.directory);
        directory.and_then(|directory| directory.sync_all()).map_err(failed())
    }

    /// Where the data are that a copy has replaced.
    pub fn replaced(&self) -> PathBuf {
        self.options.directory.join("data.replaced")
    }

    /// Removes the data that a copy has replaced.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_replaced(&self) -> Result<(), PostgresError> {
        remove_directory(&self.replaced())
    }

    fn copy(&self) -> PathBuf {
        self.options.directory.join("data.copy")
    }

    fn data(&self) -> PathBuf {
        self.options.directory.join("data")
    }

    fn log(&self) -> PathBuf {
        self.options.directory.join("postgres.log")
    }

    fn not_ready(&self) -> PostgresError {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..);
        PostgresError::NotReady {
            directory: self.data(),
            log: self.log(),
            last: last.unwrap_or_default().join("\n"),
        }
    }

    fn initialise(&self) -> Result<(), PostgresError> {
        let binaries = &self.binaries;
        binaries.own_directory(&self.options.directory)?;
        binaries.own_directory(&self.options.socket_directory)?;
        if binaries.is_another_user() {
            check_reachable(&self.options.directory)?;
        }
        let data = self.data();
        // Whatever a killed initdb left is no database: it is made in another place and renamed.
        if !data.exists() {
            let unfinished = self.options.directory.join("data.unfinished");
            remove_directory(&unfinished)?;
            let mut initdb = binaries.command("initdb");
            initdb.args(["--locale=C", "--encoding=UTF8", "--auth=trust", "--no-instructions"]);
            if self.flavour == Flavour::DatabaseNode {
                initdb.arg("--data-checksums");
            }
            initdb.arg("--username").arg(SUPERUSER).arg("--pgdata").arg(&unfinished);
            run(initdb, "initdb")?;
            fs::rename(&unfinished, &data).map_err(PostgresError::system("cannot rename data.unfinished"))?;
        }
        self.configure()
    }

    /// Writes the settings that are ours into a file of their own, at every start.
    fn configure(&self) -> Result<(), PostgresError> {
        let data = self.data();
        let main = data.join("postgresql.conf");
        let include = "include 'cloudbft.conf'";
        let text = fs::read_to_string(&main).map_err(PostgresError::system("cannot read postgresql.conf"))?;
        if !text.lines().any(|line| line == include) {
            let appended = fs::OpenOptions::new().append(true).open(&main);
            appended
                .and_then(|mut file| writeln!(file, "\n{include}"))
                .map_err(PostgresError::system("cannot extend postgresql.conf"))?;
        }
        let ours = data.join("cloudbft.conf");
        let settings = match self.flavour {
            Flavour::DatabaseNode => self.settings(),
            Flavour::Plain => self.address_settings(),
        };
        fs::write(&ours, settings).map_err(PostgresError::system("cannot write cloudbft.conf"))?;
        self.binaries.own(&ours)
    }

    /// The only settings of a plain server that are not PostgreSQL's defaults.
    fn address_settings(&self) -> String {
        let ServerOptions {
            socket_directory, port, ..
        } = &self.options;
        let socket = socket_directory.display().to_string().replace('\'', "''");
        format!("unix_socket_directories = '{socket}'\nport = {port}\n")
    }

    /// The settings that keep servers alike (`docs/determinism.md`, rules RowOrder, FloatSums, PlanDifferences,
    /// ParallelPlans, TimeLimits and SessionSettings), and those that make use of the replicas' logs being the durable
    /// copy (`docs/design.md#exactly-once`). `pg_dump` and `cloudbft verify` lock every relation at once: there is room for the locks of
    /// some ten thousand.
    fn settings(&self) -> String {
        let ServerOptions {
            socket_directory,
            port,
            connections_max,
            shared_buffers_mib,
            ..
        } = &self.options;
        let socket = socket_directory.display().to_string().replace('\'', "''");
        let wal_level = if self.needs_logical() { "logical" } else { "replica" };
        format!(
            "# Written by cloudbft at every start; changes here are lost.\n\
             listen_addresses = ''\n\
             unix_socket_directories = '{socket}'\n\
             unix_socket_permissions = 0700\n\
             port = {port}\n\
             max_connections = {connections_max}\n\
             shared_buffers = '{shared_buffers_mib}MB'\n\
             synchronous_commit = off\n\
             fsync = on\n\
             full_page_writes = on\n\
             wal_level = {wal_level}\n\
             max_wal_senders = 6\n\
             max_slot_wal_keep_size = '4GB'\n\
             max_locks_per_transaction = 512\n\
             max_wal_size = '2GB'\n\
             checkpoint_timeout = '15min'\n\
             wal_writer_delay = '200ms'\n\
             max_parallel_workers_per_gather = 0\n\
             max_parallel_maintenance_workers = 0\n\
             jit = off\n\
             synchronize_seqscans = off\n\
             statement_timeout = 0\n\
             lock_timeout = 0\n\
             idle_in_transaction_session_timeout = 0\n\
             idle_session_timeout = 0\n\
             deadlock_timeout = '10s'\n\
             standard_conforming_strings = on\n\
             backslash_quote = safe_encoding\n\
             array_nulls = on\n\
             transform_null_equals = off\n\
             default_transaction_isolation = 'read committed'\n\
             max_prepared_transactions = 0\n\
             lc_messages = 'C'\n\
             timezone = 'UTC'\n\
             log_timezone = 'UTC'\n\
             datestyle = 'ISO, MDY'\n\
             log_line_prefix = '%m [%p] %u '\n\
             cluster_name = ''\n"
        )
    }

    /// Whether the server's log must be fit for logical decoding: a server that has a slot for it does not start without. (When
    /// effects are not compared any more, voters remove their slots.)
    fn needs_logical(&self) -> bool {
        let slots = fs::read_dir(self.data().join("pg_replslot"));
        self.options.logical || slots.is_ok_and(|mut slots| slots.next().is_some())
    }

    /// Starts the server unless it runs; what is returned becomes true when the one that was started ends.
    fn launch(&self) -> Result<Option<Arc<AtomicBool>>, PostgresError> {
        if self.pid().is_some() {
            return Ok(None);
        }
        self.clear_leftovers();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.map_err(PostgresError::system("cannot open postgres.log"))?;
        let errors = log
            .try_clone()
            .map_err(PostgresError::system("cannot open postgres.log"))?;
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.data()).stdout(log).stderr(errors);
        // A process group of its own: a Ctrl-C at the terminal is for `up`, which stops the servers last.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .spawn()
            .map_err(PostgresError::system("cannot start postgres"))?;
        let ended = Arc::new(AtomicBool::new(false));
        let noticed = Arc::clone(&ended);
        std::thread::spawn(move || {
            let _ = child.wait();
            noticed.store(true, Ordering::Relaxed);
        });
        Ok(Some(ended))
    }

    /// Waits until no process of a server that was killed is left (backends notice the end of their parent), then
    /// removes `postmaster.pid`: by now its number may belong to somebody else, and would keep the server from starting.
    fn clear_leftovers(&self) {
        let deadline = Instant::now() + Duration::from_millis(LEFTOVERS_MS_MAX);
        loop {
            let left = processes_in(&self.data());
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                for pid in left {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
    }

    async fn wait_ready(&self, launched: Option<Arc<AtomicBool>>) -> Result<(), PostgresError> {
        let deadline = Instant::now() + Duration::from_millis(START_MS_MAX);
        loop {
            if self.connect("postgres").await.is_ok() {
                return Ok(());
            }
            let ended = match &launched {
                Some(ended) => ended.load(Ordering::Relaxed),
                None => self.pid().is_none(),
            };
            if ended || Instant::now() > deadline {
                return Err(self.not_ready());
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    async fn make_database(&self) -> Result<(), PostgresError> {
        let client = self.connect("postgres").await?;
        for role in &self.options.roles {
            if client
                .query_opt("select 1 from pg_roles where rolname = $1", &[role])
                .await?
                .is_none()
            {
                client
                    .batch_execute(&format!("create role {} login", quoted(role)))
                    .await?;
            }
        }
        let database = &self.options.database;
        if client
            .query_opt("select 1 from pg_database where datname = $1", &[database])
            .await?
            .is_none()
        {
            let owner = match (self.flavour, self.options.roles.first()) {
                (Flavour::Plain, Some(role)) => role,
                _ => SUPERUSER,
            };
            let (database, owner) = (quoted(database), quoted(owner));
            client
                .batch_execute(&format!("create database {database} owner {owner} template template0"))
                .await?;
        }
        match (self.flavour, self.options.roles.first()) {
            (Flavour::DatabaseNode, Some(role)) => self.let_in(role).await,
            _ => Ok(()),
        }
    }

    /// Gives the first role what it needs in a new database that the superuser owns: an owner could allow temporary tables,
    /// and attach settings to the database. (Voters take over databases that earlier builds gave to that role.)
    async fn let_in(&self, role: &str) -> Result<(), PostgresError> {
        let client = self.connect(&self.options.database).await?;
        let is_new = "select 1 from pg_database d, pg_namespace n where d.datname = current_database() \
                      and d.datdba = current_user::regrole and n.nspname = 'public' \
                      and n.nspowner = 'pg_database_owner'::regrole";
        if client.query_opt(is_new, &[]).await?.is_some() {
            let (database, role) = (quoted(&self.options.database), quoted(role));
            client
                .batch_execute(&format!(
                    "grant create, connect on database {database} to {role} with grant option; \
                     revoke temporary on database {database} from public; \
                     alter schema public owner to {role}"
                ))
                .await?;
        }
        Ok(())
    }
}

/// A superuser connection over a Unix socket.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn connect(
    socket_directory: &Path,
    port: u16,
    database: &str,
) -> Result<tokio_postgres::Client, PostgresError> {
    let mut configuration = tokio_postgres::Config::new();
    configuration
        .host_path(socket_directory)
        .port(port)
        .user(SUPERUSER)
        .dbname(database);
    configuration.connect_timeout(Duration::from_secs(5));
    let (client, connection) = configuration.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn remove_directory(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PostgresError::system(format!(
            "cannot remove {}",
            path.display()
        ))(error)),
        _ => Ok(()),
    }
}

/// The size of all files below a directory, as far as they can be seen.
fn bytes_in(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() {
            bytes_in(&entry.path())
        } else {
            metadata.len()
        })
    });
    sizes.sum()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The process id in `postmaster.pid`, if that process is a server for this directory.
fn running_pid(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    // Zombies have no command line.
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let is_server = command
        .split(|byte| *byte == 0)
        .any(|word| word == data.as_os_str().as_encoded_bytes());
    is_server.then_some(pid)
}

/// The processes whose working directory is `directory`: a server and its backends.
fn processes_in(directory: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            (fs::read_link(entry.path().join("cwd")).ok()? == directory).then(|| Pid::from_raw(pid))
        })
        .collect()
}

/// When another user runs the server, every directory above must let that user through.
fn check_reachable(directory: &Path) -> Result<(), PostgresError> {
    use std::os::unix::fs::PermissionsExt;
    for above in directory.ancestors().skip(1) {
        let mode = fs::metadata(above)
            .map(|metadata| metadata.permissions().mode())
            .unwrap_or(0o001);
        if mode & 0o001 == 0 {
            let what = format!(
                "the user `postgres` cannot enter {}; run: chmod o+x {0}",
                above.display()
            );
            return Err(PostgresError::System {
                what,
                source: std::io::ErrorKind::PermissionDenied.into(),
            });
        }
    }
    Ok(())
}

fn run(mut command: Command, program: &str) -> Result<(), PostgresError> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.map_err(PostgresError::system(format!("cannot run {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PostgresError::Program {
        program: program.to_owned(),
        message,
    })
}
