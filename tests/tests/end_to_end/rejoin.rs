//! Machines that come back after long: with their log, with an empty disk, and after the others have cut off what they lack.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::file::ClusterFile;
use cluster::node::{NEEDS_REPAIR, NodeStatus};
use tests::cluster::{Cluster, binary, text};

/// Connections of the load: enough that batches fill.
const CONNECTIONS: u64 = 32;
/// Rows that it writes.
const ROWS: u64 = 10_000;
/// How long a cluster that is whole again may take until everybody takes part.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// How many orders a machine misses: `CLOUDBFT_REJOIN_ORDERS` replaces it.
fn orders_missed() -> u64 {
    std::env::var("CLOUDBFT_REJOIN_ORDERS").map_or(2_000, |orders| orders.parse().expect("a number"))
}

/// A cluster whose m1 and m3 can be kept down: `up` starts their nodes through a script that waits while it is told to.
struct Gated {
    cluster: Cluster,
    gates: tempfile::TempDir,
}

impl Gated {
    fn up(options: &[&str]) -> Gated {
        let gates = tempfile::tempdir().expect("a directory");
        let program = |machine: &str| -> String {
            let path = gates.path().join(machine);
            // The directory goes when the test ends, and the waiting with it.
            let script = "#!/bin/sh\nwhile [ -e \"$0.hold\" ]; do sleep 0.05; done\n";
            let script = format!("{script}exec {:?} \"$@\"\n", binary());
            std::fs::write(&path, script).expect("a script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
            format!("{machine}={}", path.display())
        };
        let programs = [program("m1"), program("m3")];
        let ours = ["--node-program", &programs[0], "--node-program", &programs[1]];
        let cluster = Cluster::up(&[options, ours.as_slice()].concat());
        Gated { cluster, gates }
    }

    fn hold(&self, machine: &str) -> PathBuf {
        self.gates.path().join(format!("{machine}.hold"))
    }

    /// Kills a machine's node, and keeps it down.
    fn keep_down(&self, machine: &str) {
        std::fs::File::create(self.hold(machine)).expect("a file");
        self.cluster.kill_node(machine);
    }

    fn let_up(&self, machine: &str) {
        std::fs::remove_file(self.hold(machine)).expect("it was down");
    }

    /// What a machine's node says of itself.
    fn node(&self, machine: u8) -> Option<NodeStatus> {
        let file = ClusterFile::read(&self.cluster.directory().join("cluster.toml")).expect("a cluster file");
        let address = file.machines[usize::from(machine)].metrics;
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let asked = cluster::http::get(address, "/status", Duration::from_secs(2));
        serde_json::from_str(&runtime.block_on(asked).ok()?).ok()
    }

    fn metric(&self, machine: u8, name: &str) -> f64 {
        let file = ClusterFile::read(&self.cluster.directory().join("cluster.toml")).expect("a cluster file");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let asked = cluster::http::get(
            file.machines[usize::from(machine)].metrics,
            "/metrics",
            Duration::from_secs(2),
        );
        let metrics = runtime.block_on(asked).expect("metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }

    /// Waits until this holds of a machine's node.
    fn wait(&self, machine: u8, within: Duration, what: &str, holds: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let deadline = Instant::now() + within;
        loop {
            let node = self.node(machine);
            if let Some(node) = node.as_ref().filter(|node| holds(node)) {
                return node.clone();
            }
            assert!(Instant::now() < deadline, "m{machine} is not {what}: {node:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn make_table(&self) {
        self.cluster.psql(&format!(
            "create table counters (id integer primary key, n integer not null);
             insert into counters select i, 0 from generate_series(1, {ROWS}) as i;"
        ));
    }

    fn write(&self, orders: u64) {
        self.write_padded(orders, 0);
    }

    /// So many one-shot writes, each on a row of its own, over many connections; with so many useless bytes.
    fn write_padded(&self, orders: u64, bytes: usize) {
        let script = self.gates.path().join("write.sql");
        let padding = "x".repeat(bytes);
        let update = format!("update counters set n = n + 1 where id = :id /* {padding} */;");
        std::fs::write(&script, format!("\\set id random(1, {ROWS})\n{update}\n")).expect("a script");
        let connections = CONNECTIONS.to_string();
        let each = orders.div_ceil(CONNECTIONS).to_string();
        let begin = Instant::now();
        let run = Command::new("pgbench")
            .args(["-n", "-M", "simple", "-c", &connections, "-t", &each, "-f"])
            .arg(&script)
            .arg(self.cluster.dsn())
            .output()
            .expect("pgbench runs");
        assert!(run.status.success(), "{}", text(&run));
        assert!(
            text(&run).contains("number of failed transactions: 0 (0.000%)"),
            "{}",
            text(&run)
        );
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "{orders} writes in {seconds:.1} s: {:.0} orders/s",
            orders as f64 / seconds
        );
    }

    /// Waits until m3 has executed what m2 has.
    fn wait_caught_up(&self) {
        let begin = Instant::now();
        let goal = self.node(2).expect("m2").decided;
        let within = UP_WITHIN + Duration::from_millis(10 * orders_missed());
        self.wait(3, within, "taking part", |node| {
            node.state == "up" && node.decided >= goal
        });
        println!("m3 takes part after {:.1} s", begin.elapsed().as_secs_f64());
        self.wait(3, within, "current", |node| {
            node.executed.is_some_and(|executed| executed >= goal)
        });
        println!("m3's database is current after {:.1} s", begin.elapsed().as_secs_f64());
    }

    /// With m1 down, m2 and m3 are just enough: an answer shows that m3 takes part.
    fn assert_m3_is_needed_and_there(&self) {
        self.cluster.wait_all_up(UP_WITHIN);
        self.keep_down("m1");
        let begin = Instant::now();
        for _ in 0..5 {
            self.cluster.psql("update counters set n = n + 1 where id = 1;");
        }
        println!(
            "m1 down: five writes acknowledged after {} ms",
            begin.elapsed().as_millis()
        );
        self.let_up("m1");
        self.cluster.wait_all_up(UP_WITHIN);
        self.cluster.assert_equal();
    }

    /// A write that nobody waits for.
    fn write_in_background(&self) -> Child {
        let mut child = Command::new("psql")
            .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", self.cluster.dsn()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql starts");
        let mut input = child.stdin.take().expect("piped");
        input
            .write_all(b"update counters set n = n + 1 where id = 1;")
            .expect("psql reads");
        child
    }

    fn machine_directory(&self, machine: &str) -> PathBuf {
        self.cluster.directory().join(machine)
    }

    /// What a machine that gets a new disk loses, when only its keys are put back.
    fn empty_disk(&self, machine: &str) {
        let directory = self.machine_directory(machine);
        std::fs::remove_dir_all(directory.join("log")).expect("a log");
        std::fs::remove_file(directory.join("counter/counter.epoch")).expect("an epoch");
    }

    fn epoch(&self, machine: &str) -> u64 {
        let stored = std::fs::read(self.machine_directory(machine).join("counter/counter.epoch")).expect("an epoch");
        u64::from_le_bytes(stored[..8].try_into().expect("8 bytes"))
    }
}

#[test]
fn a_machine_that_was_down_for_long_catches_up_and_takes_part() {
    let gated = Gated::up(&[]);
    gated.make_table();
    gated.keep_down("m3");
    gated.write(orders_missed());
    gated.let_up("m3");
    gated.wait_caught_up();
    gated.assert_m3_is_needed_and_there();
}

#[test]
fn a_machine_that_lacks_what_the_others_have_cut_off_takes_part_without_its_database() {
    // More than the others' logs may weigh, and than they keep in memory (24 MiB).
    let mut gated = Gated::up(&[]);
    gated
        .cluster
        .set(&[("log_bytes_max", "1048576"), ("automatic_repair", "false")]);
    gated.make_table();
    gated.keep_down("m3");
    gated.write_padded(orders_missed().max(4_500), 8_000);
    let first = gated.node(2).expect("m2").log_first;
    assert!(first > 1, "m2's log was cut");
    let log_bytes = gated.metric(2, "cloudbft_log_bytes");
    println!("m2's log begins with order {first}, and weighs {log_bytes} bytes");
    gated.let_up("m3");
    let begin = Instant::now();
    let goal = gated.node(2).expect("m2").decided;
    let needs_repair = |node: &NodeStatus| node.state == NEEDS_REPAIR && node.decided >= goal;
    let node = gated.wait(3, UP_WITHIN, "left behind and taking part", needs_repair);
    println!(
        "m3 is at order {} after {:.1} s",
        node.decided,
        begin.elapsed().as_secs_f64()
    );
    // Gauges are set a few times a second.
    let deadline = Instant::now() + UP_WITHIN;
    let gauges = || ["cloudbft_voter_up", "cloudbft_log_first_order"].map(|name| gated.metric(3, name));
    while !matches!(gauges(), [up, first] if up < 0.5 && first > 1.0) {
        assert!(Instant::now() < deadline, "m3's metrics: {:?}", gauges());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = text(&gated.cluster.command_on_directory("status", &[]));
    assert!(status.contains(NEEDS_REPAIR), "{status}");
    assert!(status.contains("--machine m3"), "what to do: {status}");

    // Two databases are left, and both are needed for an answer. For a decision, m2 and m3 are.
    gated.keep_down("m1");
    let mut write = gated.write_in_background();
    for machine in [2, 3] {
        gated.wait(machine, UP_WITHIN, "deciding", |node| node.decided > goal);
    }
    gated.let_up("m1");
    assert!(write.wait().expect("psql ends").success());
    gated.cluster.psql("update counters set n = n + 1 where id = 2;");
    // `verify` waits for m1, which is coming back.
    gated.cluster.assert_equal_but("m3");

    // What status says that an operator can do.
    let repaired = gated.cluster.command_on_directory("repair", &["--machine", "m3"]);
    assert_eq!(repaired.status.code(), Some(0), "{}", text(&repaired));
    println!("{}", text(&repaired));
    gated.assert_m3_is_needed_and_there();
}

#[test]
fn a_machine_with_an_empty_disk_comes_back_as_a_new_epoch() {
    for counter in ["ed25519", "process"] {
        let gated = Gated::up(&["--counter", counter]);
        gated.make_table();
        gated.write(1_000);
        let epoch = gated.epoch("m3");
        gated.keep_down("m3");
        gated.empty_disk("m3");
        if counter == "process" {
            // `up` starts it again at once, and it finds nothing but its key.
            kill_counter(&gated.cluster, "m3");
        }
        gated.write(1_000);
        gated.let_up("m3");
        gated.wait_caught_up();
        assert!(gated.epoch("m3") > epoch, "{counter}");
        gated.assert_m3_is_needed_and_there();
    }
}

/// Under PBFT it could vote twice (`docs/decisions/0028`): it stays down, and the others go on.
#[test]
fn a_pbft_machine_with_an_empty_log_stays_down() {
    let gated = Gated::up(&["--agreement", "pbft"]);
    gated.make_table();
    gated.write(500);
    gated.keep_down("m3");
    std::fs::remove_dir_all(gated.machine_directory("m3").join("log")).expect("a log");
    gated.let_up("m3");
    let said = gated.machine_directory("m3").join("node.log");
    let deadline = Instant::now() + UP_WITHIN;
    while !std::fs::read_to_string(&said)
        .expect("m3's words")
        .contains("log is gone")
    {
        assert!(Instant::now() < deadline, "m3 does not say why it stays down");
        std::thread::sleep(Duration::from_millis(50));
    }
    gated.write(500);
    assert_eq!(gated.cluster.machine("m3", "state"), "down");
    gated.cluster.assert_equal_but("m3");
}

#[test]
fn a_machine_whose_database_is_gone_too_gets_a_new_one() {
    let gated = Gated::up(&[]);
    gated.make_table();
    gated.write(1_000);
    gated.keep_down("m3");
    gated.empty_disk("m3");
    // `up` starts the server again at once, and finds nothing.
    let database = gated.machine_directory("m3").join("database");
    let gone = gated.machine_directory("m3").join("gone");
    gated.cluster.kill_postgres("m3");
    std::fs::rename(database.join("data"), &gone).expect("the server's data");
    gated.write(1_000);
    gated.let_up("m3");
    gated.wait_caught_up();
    let new = gated
        .cluster
        .behind_the_back("m3", "select system_identifier from pg_control_system()");
    let other = gated
        .cluster
        .behind_the_back("m2", "select system_identifier from pg_control_system()");
    assert!(database.join("data").exists() && new != other);
    gated.assert_m3_is_needed_and_there();
}

/// Kills the counter process of a machine; `up` starts it again.
fn kill_counter(cluster: &Cluster, machine: &str) {
    let directory = cluster.directory().to_str().expect("UTF-8").to_owned();
    let is_counter = |pid: &Path| {
        let command = std::fs::read(pid.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let has = |word: &str| words.iter().any(|known| known == word);
        has("counter") && has(machine) && words.iter().any(|word| word.starts_with(&directory))
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pid = processes
        .map(|entry| entry.path())
        .find(|path| is_counter(path))
        .and_then(|path| path.file_name()?.to_str()?.parse().ok())
        .expect("a counter process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("it runs");
}
