//! Pgpool-II in native replication mode over three servers, configured as its manual says; otherwise as it comes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::system::{DATABASE, PlainServer, ends_in_time, free_port, process_id};
use super::{Error, system_error};

/// Where Debian installs it.
const PROGRAM: &str = "/usr/sbin/pgpool";
/// As many servers as the cluster has at f = 1.
const SERVERS: usize = 3;
/// Connections beside the terminals': the loader's, and one that counts.
const OTHER_CONNECTIONS: u32 = 7;
/// How long it may take to answer.
const READY_MS_MAX: u64 = 30_000;
const POLL_MS: u64 = 50;
/// What is shown of its log.
const LOG_LINES: usize = 15;

/// A running Pgpool-II with its servers; stopped when dropped, before them.
pub(crate) struct Pgpool {
    directory: PathBuf,
    port: u16,
    child: Child,
    pub(crate) servers: Vec<PlainServer>,
}

impl Pgpool {
    /// Starts the servers, then Pgpool-II in front of them.
    pub(crate) async fn start(directory: &Path, terminals: u32) -> Result<Self, Error> {
        if !Path::new(PROGRAM).exists() {
            let missing = format!("{PROGRAM} is missing; `scripts/install --peers` installs it");
            return Err(Error::Answer(missing));
        }
        let directory = cluster::file::make_directory(directory).map_err(|error| Error::Answer(error.to_string()))?;
        let mut servers = Vec::new();
        for number in 0..SERVERS {
            servers.push(PlainServer::start(&directory.join(format!("server{number}"))).await?);
        }
        let (port, pcp_port) = (free_port()?, free_port()?);
        let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
        let configuration = configuration(&directory, port, pcp_port, &ports, terminals + OTHER_CONNECTIONS);
        let file = |name: &str| directory.join(name);
        fs::write(file("pgpool.conf"), configuration).map_err(system_error("pgpool.conf"))?;
        for empty in ["pcp.conf", "pool_hba.conf"] {
            fs::write(file(empty), "").map_err(system_error(empty))?;
        }
        let log = File::create(file("pgpool.log")).map_err(system_error("pgpool.log"))?;
        let mut command = Command::new(PROGRAM);
        command.arg("-n").arg("-D");
        command.arg("-f").arg(file("pgpool.conf"));
        command.arg("-F").arg(file("pcp.conf"));
        command.arg("-a").arg(file("pool_hba.conf"));
        // A process group of its own: a Ctrl-C at the terminal is for us, and we stop it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let errors = log.try_clone().map_err(system_error("pgpool.log"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().map_err(system_error(PROGRAM))?;
        let mut pgpool = Self {
            directory,
            port,
            child,
            servers,
        };
        pgpool.wait_ready().await?;
        Ok(pgpool)
    }

    pub(crate) fn dsn(&self) -> String {
        format!("postgresql://{DATABASE}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn wait_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_millis(READY_MS_MAX);
        loop {
            let connecting = tokio_postgres::connect(&self.dsn(), tokio_postgres::NoTls).await;
            let Err(error) = connecting else {
                return Ok(());
            };
            let has_ended = !matches!(self.child.try_wait(), Ok(None));
            if has_ended || Instant::now() > deadline {
                let words = self.last_words();
                return Err(Error::Answer(format!("Pgpool-II does not get ready: {error}\n{words}")));
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(self.directory.join("pgpool.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        tail.join("\n")
    }
}

impl Drop for Pgpool {
    fn drop(&mut self) {
        // "Fast": clients are not waited for.
        let _ = kill(process_id(self.child.id()), Signal::SIGINT);
        if !ends_in_time(|| !matches!(self.child.try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Native replication over `ports`, with load balancing of reads as it is by default; ports and files are ours. One pooled
/// connection for each client: all are of one role and one database.
fn configuration(directory: &Path, port: u16, pcp_port: u16, ports: &[u16], clients: u32) -> String {
    let directory = directory.display();
    let mut text = format!(
        "backend_clustering_mode = 'native_replication'\n\
         load_balance_mode = on\n\
         listen_addresses = '127.0.0.1'\n\
         port = {port}\n\
         pcp_listen_addresses = '127.0.0.1'\n\
         pcp_port = {pcp_port}\n\
         num_init_children = {clients}\n\
         max_pool = 1\n\
         enable_pool_hba = off\n\
         socket_dir = '{directory}'\n\
         pcp_socket_dir = '{directory}'\n\
         wd_ipc_socket_dir = '{directory}'\n\
         pid_file_name = '{directory}/pgpool.pid'\n\
         logdir = '{directory}'\n"
    );
    for (number, port) in ports.iter().enumerate() {
        text.push_str(&format!(
            "backend_hostname{number} = '127.0.0.1'\n\
             backend_port{number} = {port}\n\
             backend_weight{number} = 1\n\
             backend_flag{number} = 'ALLOW_TO_FAILOVER'\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_a_backend() {
        let text = configuration(Path::new("/d"), 1, 2, &[11, 12, 13], 15);
        assert!(
            text.contains("backend_clustering_mode = 'native_replication'\n"),
            "{text}"
        );
        for (number, port) in [11, 12, 13].iter().enumerate() {
            assert!(text.contains(&format!("backend_port{number} = {port}\n")), "{text}");
        }
        assert!(text.contains("num_init_children = 15\n"), "{text}");
    }
}
