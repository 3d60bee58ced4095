//! A network that can be cut: a TCP forwarder for each pair of a dialling and a listening process.
//!
//! Links are TLS with both ends pinned, so a forwarder can hold bytes back and nothing else. Each node reads a cluster
//! file of its own, in which the others have the addresses of its wires; the cluster's own file has the proxy's.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::counter::Provisioner;
use cluster::file::{ClusterFile, Tunables, generate, machine_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a wire holds of one direction at most, beside the kernel's buffers.
const CHUNK_BYTES: usize = 16 << 10;

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A machine's node.
    Machine(u8),
    /// The proxy.
    Proxy,
}

/// One direction of the wires between two ends.
struct Valve {
    /// Whether bytes pass.
    open: watch::Sender<bool>,
    /// How often bytes were there and did not.
    held: Arc<AtomicU64>,
}

impl Valve {
    fn new() -> Valve {
        let (open, held) = (watch::Sender::new(true), Arc::default());
        Valve { open, held }
    }
}

/// Which bytes pass: one valve for each ordered pair of sender and receiver.
type Valves = BTreeMap<(End, End), Valve>;

/// All wires of a cluster.
pub struct Network {
    valves: Arc<Valves>,
    machines: u8,
    _runtime: tokio::runtime::Runtime,
}

impl Network {
    /// Makes a cluster in a directory, and the wires between its processes. Tells the options of `cloudbft up` that make
    /// each node use its own wires.
    pub fn make(directory: &Path, groups: u16, listen: SocketAddr, program: &Path) -> (Network, Vec<String>) {
        let mut tunables = Tunables::default();
        (tunables.groups, tunables.listen) = (groups, listen);
        let counters = Provisioner::new(tunables.counter).expect("counters");
        let counter = |path: &Path| counters.provision(path).map_err(|error| error.to_string());
        let file = generate(directory, &tunables, counter).expect("a cluster file");
        let machines = u8::try_from(file.machines.len()).expect("few machines");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let ends: Vec<_> = (0..machines).map(End::Machine).chain([End::Proxy]).collect();
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to)));
        let valves: Arc<Valves> = Arc::new(pairs.map(|pair| (pair, Valve::new())).collect());
        let text = std::fs::read_to_string(&file.path).expect("the cluster file");
        let mut options = Vec::new();
        for from in ends {
            let mut own = text.clone();
            for to in dialled(from, machines) {
                let target = link(&file, to);
                let wire = runtime.block_on(lay(from, End::Machine(to), target, &valves));
                let (old, new) = (format!("link = \"{target}\""), format!("link = \"{wire}\""));
                assert!(own.contains(&old), "{target} is in the cluster file");
                own = own.replace(&old, &new);
            }
            match from {
                End::Proxy => std::fs::write(&file.path, own).expect("the cluster's file"),
                End::Machine(machine) => options.extend(node_program(directory, machine, &own, program)),
            }
        }
        let network = Network {
            valves,
            machines,
            _runtime: runtime,
        };
        (network, options)
    }

    /// Nothing passes from one to the other; the other direction is left as it is.
    pub fn cut_one_way(&self, from: End, to: End) {
        self.set(from, to, false);
    }

    /// Nothing passes between the two.
    pub fn cut(&self, one: End, other: End) {
        self.set(one, other, false);
        self.set(other, one, false);
    }

    /// Cuts a machine off from all other machines.
    pub fn cut_off(&self, machine: u8) {
        let others = (0..self.machines).filter(|other| *other != machine);
        others.for_each(|other| self.cut(End::Machine(machine), End::Machine(other)));
    }

    /// Everything passes again, also what was held back.
    pub fn heal(&self) {
        for valve in self.valves.values() {
            valve.open.send_replace(true);
        }
    }

    fn set(&self, from: End, to: End, open: bool) {
        self.valves[&(from, to)].open.send_replace(open);
    }

    /// How often bytes from one to the other were held back: whether a cut has cut anything.
    pub fn held(&self, from: End, to: End) -> u64 {
        self.valves[&(from, to)].held.load(Ordering::Relaxed)
    }
}

/// The machines that a process dials: between machines the lower index dials.
fn dialled(from: End, machines: u8) -> std::ops::Range<u8> {
    match from {
        End::Machine(machine) => machine + 1..machines,
        End::Proxy => 0..machines,
    }
}

fn link(file: &ClusterFile, machine: u8) -> SocketAddr {
    file.machines[usize::from(machine)].link
}

/// A cluster file of its own for a node, and the program that names it to the node.
fn node_program(directory: &Path, machine: u8, text: &str, program: &Path) -> [String; 2] {
    let name = machine_name(ordering::identifiers::MachineId(machine));
    let (own, script) = (
        directory.join(format!("cluster-of-{name}.toml")),
        directory.join(format!("node-of-{name}")),
    );
    std::fs::write(&own, text).expect("a node's cluster file");
    // The last of two --config would be refused: the script leaves the first one out.
    let lines = format!(
        "#!/bin/sh\nexec '{}' node --machine {name} --lifeline --config '{}'\n",
        program.display(),
        own.display()
    );
    std::fs::write(&script, lines).expect("a script");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("permissions");
    [String::from("--node-program"), format!("{name}={}", script.display())]
}

/// Listens for one dialling process, and forwards to the one that it means.
async fn lay(from: End, to: End, target: SocketAddr, valves: &Valves) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let passage = |from, to| Passage {
        open: valves[&(from, to)].open.subscribe(),
        held: Arc::clone(&valves[&(from, to)].held),
    };
    let (there, back) = (passage(from, to), passage(to, from));
    tokio::spawn(async move {
        while let Ok((dialler, _)) = listener.accept().await {
            tokio::spawn(forward(dialler, target, there.clone(), back.clone()));
        }
    });
    address
}

/// What one connection knows of a valve.
#[derive(Clone)]
struct Passage {
    open: watch::Receiver<bool>,
    held: Arc<AtomicU64>,
}

impl Passage {
    /// Waits until what is in hand may pass; none: the network has ended.
    async fn pass(&mut self) -> Option<()> {
        if !*self.open.borrow() {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        self.open.wait_for(|open| *open).await.ok().map(drop)
    }
}

/// Carries one connection to its end.
async fn forward(dialler: TcpStream, target: SocketAddr, mut there: Passage, back: Passage) -> Option<()> {
    // A connection is made by what passes there.
    there.pass().await?;
    let listener = TcpStream::connect(target).await.ok()?;
    dialler.set_nodelay(true).and(listener.set_nodelay(true)).ok()?;
    let (dialler_reads, dialler_writes) = tokio::io::split(dialler);
    let (listener_reads, listener_writes) = tokio::io::split(listener);
    tokio::select! {
        ended = pump(dialler_reads, listener_writes, there) => ended,
        ended = pump(listener_reads, dialler_writes, back) => ended,
    }
}

/// Carries bytes one way while the valve is open. What comes while it is closed waits, as on a real network.
async fn pump(mut from: ReadHalf<TcpStream>, mut to: WriteHalf<TcpStream>, mut passage: Passage) -> Option<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = from.read(&mut chunk).await.ok().filter(|length| *length > 0)?;
        passage.pass().await?;
        to.write_all(&chunk[..length]).await.ok()?;
    }
}
