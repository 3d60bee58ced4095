//! A real cluster for one test: `cloudbft up` in a temporary directory, its real processes, and ways to hurt them.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::network::Network;
use crate::slot::Slot;

/// How long a cluster may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long a cluster may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// A running cluster; stopped and removed when dropped.
pub struct Cluster {
    directory: tempfile::TempDir,
    options: Vec<String>,
    variables: Vec<(String, PathBuf)>,
    network: Option<Network>,
    supervisor: Option<Child>,
    dsn: String,
    _slot: Slot,
}

/// The `cloudbft` binary that cargo built beside the tests; `CLOUDBFT_BINARY` names another.
pub fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("CLOUDBFT_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test has a path");
    let path = test
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>")
        .join("cloudbft");
    assert!(
        path.exists(),
        "{} is missing: `cargo build --bin cloudbft` first, as `make test` does",
        path.display()
    );
    path
}

/// The build with the features `lying-voter` and `byzantine-primary`, made by `make test`.
pub fn lying_binary() -> PathBuf {
    let path = binary().with_file_name("cloudbft-lying");
    assert!(path.exists(), "{} is missing: see `make test`", path.display());
    path
}

impl Cluster {
    /// Starts a cluster of `cloudbft up` with further options, on free ports.
    pub fn up(options: &[&str]) -> Cluster {
        Self::up_with(options, &[])
    }

    /// The same, with further environment variables.
    pub fn up_with(options: &[&str], variables: &[(&str, &Path)]) -> Cluster {
        let mut cluster = Self::new(options, variables);
        cluster.resume();
        cluster
    }

    /// Starts a cluster whose machines and proxy reach each other over wires that can be cut.
    pub fn up_on_wires(groups: u16) -> Cluster {
        let mut cluster = Self::new(&[], &[]);
        let listen = cluster::file::free_ports([127, 0, 0, 1].into(), 1, &[]).expect("a free port")[0];
        let (network, options) = Network::make(cluster.directory(), groups, listen, &binary());
        (cluster.network, cluster.options) = (Some(network), options);
        cluster.resume();
        cluster
    }

    fn new(options: &[&str], variables: &[(&str, &Path)]) -> Cluster {
        let slot = Slot::take();
        let directory = tempfile::Builder::new()
            .prefix("cloudbft-test.")
            .tempdir_in("/tmp")
            .expect("a directory");
        // Database servers run as user `postgres`, who must be able to enter.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).expect("permissions");
        let options = options.iter().map(ToString::to_string).collect();
        Cluster {
            directory,
            options,
            variables: variables
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_path_buf()))
                .collect(),
            network: None,
            supervisor: None,
            dsn: String::new(),
            _slot: slot,
        }
    }

    /// The wires of [`Cluster::up_on_wires`].
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster on wires")
    }

    /// Starts `cloudbft up` on the cluster's directory (again).
    pub fn resume(&mut self) {
        assert!(self.supervisor.is_none(), "the cluster runs already");
        let mut child = Command::new(binary())
            .args(["up", "--listen", "127.0.0.1:0", "--dir"])
            .arg(self.directory.path())
            .args(&self.options)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(self.log_file("up.log")))
            .spawn()
            .expect("cloudbft up starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        self.supervisor = Some(child);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        match receiver.recv_timeout(READY_WITHIN) {
            Ok(line) => {
                let dsn = line.strip_prefix("ready ");
                self.dsn = dsn.unwrap_or_else(|| panic!("not a ready line: {line}")).to_string();
            }
            Err(error) => panic!("no ready line ({error}); up.log says:\n{}", self.log("up.log")),
        }
    }

    /// Starts the cluster again, with other values in its cluster file.
    pub fn set(&mut self, values: &[(&str, &str)]) {
        self.stop();
        let path = self.directory().join("cluster.toml");
        let mut text = std::fs::read_to_string(&path).expect("a cluster file");
        for (key, value) in values {
            let line = text.lines().find(|line| line.starts_with(&format!("{key} =")));
            let line = line
                .unwrap_or_else(|| panic!("no {key} in the cluster file"))
                .to_owned();
            text = text.replace(&line, &format!("{key} = {value}"));
        }
        std::fs::write(&path, text).expect("a cluster file");
        self.resume();
    }

    fn log_file(&self, name: &str) -> std::fs::File {
        let path = self.directory.path().join(name);
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log file")
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    /// The connection string that applications use.
    pub fn dsn(&self) -> &str {
        &self.dsn
    }

    /// The cluster's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a `cloudbft` command.
    pub fn command(&self, arguments: &[&str]) -> Output {
        Command::new(binary()).args(arguments).output().expect("cloudbft runs")
    }

    /// Runs a `cloudbft` command on this cluster's directory.
    pub fn command_on_directory(&self, command: &str, arguments: &[&str]) -> Output {
        let directory = self.directory.path().to_str().expect("a UTF-8 path");
        self.command(&[&[command, "--dir", directory], arguments].concat())
    }

    /// Starts a `cloudbft` command on this cluster's directory, which says nothing.
    pub fn start(&self, command: &str, arguments: &[&str]) -> Child {
        Command::new(binary())
            .args([command, "--dir"])
            .arg(self.directory.path())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cloudbft starts")
    }

    /// `cloudbft status --json`.
    pub fn status(&self) -> Value {
        let output = self.command_on_directory("status", &["--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("status: {error}: {}", text(&output)))
    }

    /// A field of one machine's status.
    pub fn machine(&self, name: &str, field: &str) -> Value {
        let status = self.status();
        let machines = status["machines"].as_array().expect("machines");
        let machine = machines.iter().find(|machine| machine["name"] == name);
        machine.unwrap_or_else(|| panic!("no machine {name} in {status}"))[field].clone()
    }

    /// Kills one machine's node with SIGKILL.
    pub fn kill_node(&self, machine: &str) {
        kill_9(&self.machine(machine, "node_pid"));
    }

    /// The process id of one machine's node, which answers.
    pub fn node_pid(&self, machine: &str) -> Pid {
        let pid = self
            .machine(machine, "node_pid")
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        Pid::from_raw(pid.filter(|pid| *pid > 1).expect("a node that answers"))
    }

    /// The machine that leads the view that most nodes are in.
    pub fn primary(&self) -> String {
        self.status()["primary"].as_str().expect("a primary").to_string()
    }

    /// The view that most nodes are in.
    pub fn view(&self) -> u64 {
        self.status()["view"].as_u64().expect("a view")
    }

    /// Waits until every node takes part in the same view; panics when it does not.
    pub fn wait_all_up(&self, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let status = self.status();
            let machines = status["machines"].as_array().expect("machines").clone();
            let is_up = machines.iter().all(|machine| machine["state"] == "up");
            let same_view = machines.iter().all(|machine| machine["view"] == machines[0]["view"]);
            if is_up && same_view {
                return;
            }
            assert!(Instant::now() < deadline, "not all nodes take part: {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills one machine's database server with SIGKILL.
    pub fn kill_postgres(&self, machine: &str) {
        kill_9(&self.machine(machine, "postgres_pid"));
    }

    /// Kills the proxy with SIGKILL; the supervisor starts it again.
    pub fn kill_proxy(&self) {
        kill_9(&self.status()["proxy_pid"]);
    }

    /// Kills every process of the cluster with SIGKILL, the supervisor first so that it repairs nothing.
    pub fn kill_everything(&mut self) {
        let status = self.status();
        let mut supervisor = self.supervisor.take().expect("running");
        supervisor.kill().expect("SIGKILL");
        supervisor.wait().expect("reaped");
        kill_9(&status["proxy_pid"]);
        for machine in status["machines"].as_array().expect("machines") {
            kill_9(&machine["node_pid"]);
            kill_9(&machine["postgres_pid"]);
        }
    }

    /// SIGTERM to the supervisor, and its orderly end.
    pub fn stop(&mut self) {
        let Some(mut supervisor) = self.supervisor.take() else {
            return;
        };
        let pid = i32::try_from(supervisor.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        let deadline = Instant::now() + STOPPED_WITHIN;
        while supervisor.try_wait().expect("waitable").is_none() {
            if Instant::now() > deadline {
                supervisor.kill().ok();
                supervisor.wait().ok();
                assert!(
                    std::thread::panicking(),
                    "up did not stop; up.log says:\n{}",
                    self.log("up.log")
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs statements by psql through the proxy, stopping at the first error; panics unless it succeeds.
    pub fn psql(&self, statements: &str) -> String {
        let output = self.psql_output(statements);
        assert!(output.status.success(), "psql {statements}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs statements by psql through the proxy, each `;`-separated text as psql sends it from standard input.
    pub fn psql_output(&self, statements: &str) -> Output {
        let mut child = Command::new("psql")
            .args([
                "--no-psqlrc",
                "--quiet",
                "--tuples-only",
                "--no-align",
                "-v",
                "ON_ERROR_STOP=1",
                &self.dsn,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let mut input = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, statements.as_bytes()).expect("psql reads");
        drop(input);
        child.wait_with_output().expect("psql ends")
    }

    /// Answers of single voters that the proxy has seen to differ from the agreed ones, by its metrics.
    pub fn mismatches(&self) -> u64 {
        sum_of(self.file().tunables.proxy_metrics, "cloudbft_divergences_total{")
    }

    /// The sum of one of a node's metrics over its labels.
    pub fn node_metric(&self, machine: u8, name: &str) -> u64 {
        let file = self.file();
        let machine = file.machine(ordering::identifiers::MachineId(machine));
        sum_of(machine.expect("a machine").metrics, name)
    }

    fn file(&self) -> cluster::file::ClusterFile {
        cluster::file::ClusterFile::read(&self.directory().join("cluster.toml")).expect("a cluster file")
    }

    /// Asserts that all database nodes hold the same data.
    pub fn assert_equal(&self) {
        let output = self.command_on_directory("verify", &[]);
        assert!(output.status.success(), "verify: {}", text(&output));
    }

    /// Asserts that no machine has found that databases changed different things, and that they have compared some.
    pub fn assert_effects_agree(&self) {
        let mut agreed = Vec::new();
        for machine in ["m1", "m2", "m3"] {
            let effects = self.machine(machine, "effects");
            assert_eq!(effects["state"], "compared", "{machine}: {effects}");
            assert_eq!(effects["diverged"], Value::Null, "{machine}: {effects}");
            assert_eq!(effects["disputed"], 0, "{machine}: {effects}");
            agreed.push(effects["agreed"].as_u64().expect("a number"));
        }
        println!("effects that agreed, on each machine: {agreed:?}");
        assert!(agreed.iter().sum::<u64>() > 0, "nothing was compared");
    }

    /// Asserts that all database nodes hold the same data but one, which does not serve.
    pub fn assert_equal_but(&self, machine: &str) {
        let output = self.command_on_directory("verify", &[]);
        assert_eq!(output.status.code(), Some(2), "verify: {}", text(&output));
        let named = format!("NOT COMPARED, as not serving: {machine}\n");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(&named),
            "verify: {}",
            text(&output)
        );
    }

    /// Runs statements on one machine's database directly, as its superuser, past the proxy.
    pub fn behind_the_back(&self, machine: &str, statements: &str) -> String {
        let field = |name: &str| match self.machine(machine, name) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let superuser = std::env::var("CLOUDBFT_SUPERUSER").unwrap_or_else(|_| "cloudbft_admin".into());
        let output = Command::new("psql")
            .args([
                "--no-psqlrc",
                "--quiet",
                "--tuples-only",
                "--no-align",
                "-v",
                "ON_ERROR_STOP=1",
            ])
            .args([
                "-h",
                &field("postgres_socket_dir"),
                "-p",
                &field("postgres_port"),
                "-d",
                &field("database"),
            ])
            .args(["-U", &superuser, "-c", statements])
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "psql on {machine}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.stop();
    }
}

impl Cluster {
    /// The end of every log, for a test that failed.
    fn print_logs(&self) {
        let mut names = vec!["up.log".to_string(), "proxy/proxy.log".into(), "proxy.log".into()];
        for machine in 0..8 {
            names.extend(["node", "postgres"].map(|process| format!("m{machine}/{process}.log")));
        }
        for name in names {
            let log = self.log(&name);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
            if !tail.is_empty() {
                eprintln!("== {name}\n{}", tail.join("\n"));
            }
        }
    }
}

fn kill_9(pid: &Value) {
    let Some(pid) = pid
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 1)
    else {
        return;
    };
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// The sum of the metrics at an address whose lines begin so.
fn sum_of(address: std::net::SocketAddr, prefix: &str) -> u64 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asked = cluster::http::get(address, "/metrics", Duration::from_secs(5));
    let metrics = runtime.block_on(asked).expect("metrics");
    let counted = metrics.lines().filter(|line| line.starts_with(prefix));
    counted
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// What a command printed, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
