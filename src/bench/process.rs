//! CPU time and memory of the processes below one process, from /proc.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde::{Deserialize, Serialize};

/// Clock ticks per second in /proc, on every Linux that is.
const TICKS_PER_SECOND: f64 = 100.0;
/// A backend calls itself `postgres: ROLE DATABASE CLIENT ACTIVITY`; PostgreSQL's own helpers have fewer words.
const BACKEND_TITLE_WORDS_MIN: usize = 5;

/// What Pgpool-II's processes are called. It does the work of a proxy.
const PGPOOL: &str = "pgpool";

/// One process, as /proc shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Process {
    pid: u32,
    parent: u32,
    command: String,
    /// User and system time, with that of the children that ended and were waited for.
    seconds: f64,
    /// User and system time of this process alone.
    own_seconds: f64,
}

/// What a process is in its system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Postgres,
    Node,
    Proxy,
    Supervisor,
}

/// CPU time of a system, in seconds, by what it was spent in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CpuSeconds {
    /// All PostgreSQL servers with their backends.
    pub(crate) postgres: f64,
    /// All nodes.
    pub(crate) nodes: f64,
    /// The proxy, or Pgpool-II.
    pub(crate) proxy: f64,
    /// What watches them.
    pub(crate) supervisor: f64,
}

impl CpuSeconds {
    /// All of it.
    pub(crate) fn total(self) -> f64 {
        self.postgres + self.nodes + self.proxy + self.supervisor
    }

    /// What was spent since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            postgres: self.postgres - before.postgres,
            nodes: self.nodes - before.nodes,
            proxy: self.proxy - before.proxy,
            supervisor: self.supervisor - before.supervisor,
        }
    }
}

/// How often threads of a system gave up their processor to wait, since an earlier look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sleeps {
    /// Threads of all nodes.
    pub(crate) nodes: u64,
    /// Threads of the proxy.
    pub(crate) proxy: u64,
}

/// The voluntary context switches of each thread of nodes and proxy so far, by its number.
#[derive(Debug, Default)]
pub(crate) struct SleepCounts {
    nodes: HashMap<u32, u64>,
    proxy: HashMap<u32, u64>,
}

impl SleepCounts {
    /// What came since `before`. Threads that ended in between do not count.
    pub(crate) fn since(&self, before: &Self) -> Sleeps {
        let added = |after: &HashMap<u32, u64>, before: &HashMap<u32, u64>| {
            let of_threads = after
                .iter()
                .map(|(thread, count)| count.saturating_sub(before.get(thread).copied().unwrap_or(0)));
            of_threads.sum()
        };
        Sleeps {
            nodes: added(&self.nodes, &before.nodes),
            proxy: added(&self.proxy, &before.proxy),
        }
    }
}

/// Peak resident memory (VmHWM) in KiB, by process; of PostgreSQL the largest server and the largest backend.
pub(crate) type PeakKib = BTreeMap<String, u64>;

/// The processes below some (with these), at one moment.
#[derive(Debug)]
pub(crate) struct Tree {
    processes: Vec<(Process, Role)>,
}

impl Tree {
    /// Looks at /proc.
    pub(crate) fn below(roots: &[u32]) -> Self {
        Self::of(all_processes(), roots, command_line)
    }

    fn of(all: Vec<Process>, roots: &[u32], command_line: impl Fn(u32) -> Vec<String>) -> Self {
        let mut children: HashMap<u32, Vec<Process>> = HashMap::new();
        let mut processes = Vec::new();
        for process in all {
            if roots.contains(&process.pid) {
                let role = role_of(&process, &command_line(process.pid), Role::Supervisor);
                processes.push((process, role));
            } else {
                children.entry(process.parent).or_default().push(process);
            }
        }
        let mut next = 0;
        while let Some((process, role)) = processes.get(next) {
            let role = *role;
            for child in children.remove(&process.pid).unwrap_or_default() {
                let role = role_of(&child, &command_line(child.pid), role);
                processes.push((child, role));
            }
            next += 1;
        }
        Self { processes }
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|(process, _)| process.pid).collect()
    }

    /// The CPU time of all of them so far, with that of their children that ended.
    pub(crate) fn cpu(&self) -> CpuSeconds {
        let mut sum = CpuSeconds::default();
        for (process, role) in &self.processes {
            let part = match role {
                Role::Postgres => &mut sum.postgres,
                Role::Node => &mut sum.nodes,
                Role::Proxy => &mut sum.proxy,
                Role::Supervisor => &mut sum.supervisor,
            };
            *part += process.seconds;
        }
        sum
    }

    /// How often the threads of nodes and proxy have gone to sleep so far.
    pub(crate) fn sleeps(&self) -> SleepCounts {
        let mut counts = SleepCounts::default();
        for (process, role) in &self.processes {
            let threads = match role {
                Role::Node => &mut counts.nodes,
                Role::Proxy => &mut counts.proxy,
                Role::Postgres | Role::Supervisor => continue,
            };
            threads.extend(thread_sleeps(process.pid));
        }
        counts
    }

    /// Raises the peaks to those of the processes that live now.
    pub(crate) fn raise_peaks(&self, peaks: &mut PeakKib) {
        for (process, role) in &self.processes {
            let Some(kib) = peak_kib(process.pid) else { continue };
            let peak = peaks.entry(self.label(process, *role)).or_default();
            *peak = kib.max(*peak);
        }
    }

    fn label(&self, process: &Process, role: Role) -> String {
        let words = command_line(process.pid);
        let word_after = |option: &str| words.iter().skip_while(|word| *word != option).nth(1);
        let is_server = |pid| {
            self.processes
                .iter()
                .any(|(other, _)| other.pid == pid && other.command == "postgres")
        };
        match role {
            Role::Proxy if process.command == PGPOOL => String::from("Pgpool-II process"),
            Role::Proxy => String::from("proxy"),
            Role::Supervisor => String::from("supervisor"),
            Role::Node => match word_after("--machine") {
                Some(machine) => format!("node {machine}"),
                None => format!("node ({})", process.command),
            },
            Role::Postgres if !is_server(process.parent) => String::from("postgres server"),
            Role::Postgres if title_words(&words) >= BACKEND_TITLE_WORDS_MIN => String::from("postgres backend"),
            Role::Postgres => String::from("postgres helper"),
        }
    }
}

/// The CPU time of this process alone, in seconds: the kit's, when it runs here.
pub(crate) fn own_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse_stat(&stat).map_or(0.0, |process| process.own_seconds)
}

/// The CPU time of all processes of the machine, in seconds.
pub(crate) fn machine_cpu_seconds() -> f64 {
    parse_machine_stat(&fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(0.0)
}

/// Parses `cpu user nice system idle iowait irq softirq ...` of /proc/stat.
fn parse_machine_stat(text: &str) -> Option<f64> {
    let fields: Vec<f64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    let busy = [0, 1, 2, 5, 6].into_iter().map(|index| fields.get(index).copied());
    Some(busy.sum::<Option<f64>>()? / TICKS_PER_SECOND)
}

fn title_words(words: &[String]) -> usize {
    words.iter().flat_map(|word| word.split_whitespace()).count()
}

fn role_of(process: &Process, words: &[String], parent: Role) -> Role {
    if process.command == "postgres" {
        return Role::Postgres;
    }
    if process.command == PGPOOL {
        return Role::Proxy;
    }
    match words.get(1).map(String::as_str) {
        Some("node") => Role::Node,
        Some("proxy") => Role::Proxy,
        _ => parent,
    }
}

fn all_processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    entries
        .filter(|entry| is_process(&entry.file_name()))
        .filter_map(|entry| parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

/// Parses /proc/PID/stat: `pid (command) state parent ... utime stime cutime cstime ...`; the command may hold spaces
/// and parentheses.
fn parse_stat(text: &str) -> Option<Process> {
    let (pid, rest) = text.split_once(" (")?;
    let (command, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |index: usize| -> Option<f64> { Some(fields.get(index)?.parse::<f64>().ok()? / TICKS_PER_SECOND) };
    let own_seconds = seconds(11)? + seconds(12)?;
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        command: command.to_owned(),
        seconds: own_seconds + seconds(13)? + seconds(14)?,
        own_seconds,
    })
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The voluntary context switches of each thread of a process that lives.
fn thread_sleeps(pid: u32) -> Vec<(u32, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let of_thread = |entry: fs::DirEntry| {
        let thread = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        Some((thread, parse_sleeps(&status)?))
    };
    entries.filter_map(of_thread).collect()
}

/// Finds `voluntary_ctxt_switches:   1234` in /proc/PID/task/TID/status.
fn parse_sleeps(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

fn peak_kib(pid: u32) -> Option<u64> {
    parse_peak_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Finds `VmHWM:   1234 kB` in /proc/PID/status.
fn parse_peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (tmux: (server) x) S 17 4242 4242 0 -1 4194560 1234 0 0 0 150 50 300 100 20 0 1 0 99 1 2";

    fn process(pid: u32, parent: u32, command: &str, seconds: f64) -> Process {
        let command = command.to_owned();
        Process {
            pid,
            parent,
            command,
            seconds,
            own_seconds: seconds,
        }
    }

    #[test]
    fn a_command_with_spaces_and_parentheses_shifts_no_field() {
        let process = parse_stat(STAT).unwrap();
        assert_eq!(
            (process.pid, process.parent, process.command.as_str()),
            (4242, 17, "tmux: (server) x")
        );
        assert!(
            (process.seconds - 6.0).abs() < 1e-9,
            "own 2 s, and 4 s of children that ended"
        );
        assert!((process.own_seconds - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_damaged_stat_is_no_process() {
        for text in [
            "",
            "1",
            "1 (a",
            "1 (a) S",
            "x (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
            "1 (a) S 1 2 3 4 5 6 7 8 9 10 eleven 12 13 14 15",
        ] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn the_living_are_parsed() {
        let me = parse_stat(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(peak_kib(me.pid).unwrap() > 100);
    }

    #[test]
    fn idle_time_of_the_machine_is_not_spent() {
        assert_eq!(
            parse_machine_stat("cpu  100 200 300 9999 9999 40 60 7 0 0\ncpu0 1 2"),
            Some(7.0)
        );
        assert_eq!(parse_machine_stat("cpu 1 2"), None);
        assert!(machine_cpu_seconds() > 0.0);
    }

    #[test]
    fn the_peak_is_read_from_status() {
        assert_eq!(
            parse_peak_kib("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   5120 kB\nVmRSS:\t 1 kB\n"),
            Some(5120)
        );
        assert_eq!(parse_peak_kib("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn sleeps_are_those_of_each_thread_since_the_earlier_look() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t99\n";
        assert_eq!(parse_sleeps(status), Some(12));
        assert_eq!(parse_sleeps("Name:\tx\n"), None);
        assert!(!thread_sleeps(std::process::id()).is_empty());
        let before = SleepCounts {
            nodes: HashMap::from([(1, 100), (2, 50)]),
            proxy: HashMap::from([(7, 3)]),
        };
        let after = SleepCounts {
            nodes: HashMap::from([(1, 130), (3, 5)]),
            proxy: HashMap::from([(7, 3)]),
        };
        assert_eq!(after.since(&before), Sleeps { nodes: 35, proxy: 0 });
    }

    #[test]
    fn time_is_split_by_role_and_strangers_do_not_count() {
        let all = vec![
            process(1, 0, "init", 1000.0),
            process(40, 30, "postgres", 4.0),
            process(10, 1, "cloudbft", 1.0),
            process(20, 10, "cloudbft", 2.0),
            process(21, 10, "cloudbft", 3.0),
            process(30, 10, "postgres", 8.0),
            process(50, 20, "counter", 0.5),
            process(60, 1, "postgres", 500.0),
            process(70, 1, "pgpool", 0.25),
            process(71, 70, "pgpool", 0.5),
        ];
        let words = |pid: u32| match pid {
            20 => vec![String::from("cloudbft"), String::from("node")],
            21 => vec![String::from("cloudbft"), String::from("proxy")],
            _ => vec![String::from("x"), String::from("up")],
        };
        let pool = Tree::of(all.clone(), &[60, 70], words).cpu();
        assert_eq!((pool.postgres, pool.proxy), (500.0, 0.75));
        let cpu = Tree::of(all, &[10], words).cpu();
        let expected = CpuSeconds {
            postgres: 12.0,
            nodes: 2.5,
            proxy: 3.0,
            supervisor: 1.0,
        };
        assert_eq!(cpu, expected);
        assert!((cpu.since(expected).total()).abs() < 1e-9);
    }

    #[test]
    fn time_of_a_child_that_ended_is_counted_once() {
        use std::io::{BufRead, BufReader};
        let script = "(i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done); echo done; read end";
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let tree = Tree::below(&[shell.id()]);
        let cpu = tree.cpu().total();
        shell.kill().unwrap();
        shell.wait().unwrap();
        let [(process, _)] = &tree.processes[..] else {
            panic!("the subshell has ended: {tree:?}")
        };
        assert!(process.own_seconds < 0.05 && cpu > 0.05, "{process:?}");
        assert_eq!(cpu, process.seconds);
    }
}
