//! Where everything lies below the directory of a cluster.

use std::path::{Path, PathBuf};

use ordering::identifiers::MachineId;

use super::machine_name;

/// The longest socket path that the kernel takes is 107 bytes; the server appends `/.s.PGSQL.65535.lock`.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 107 - 21;

/// The paths of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The layout below a directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cluster file.
    pub fn cluster_file(&self) -> PathBuf {
        self.directory.join("cluster.toml")
    }

    /// The directory of a machine.
    pub fn machine(&self, id: MachineId) -> PathBuf {
        self.directory.join(machine_name(id))
    }

    /// The private identity of a machine.
    pub fn machine_identity(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("identity.pem")
    }

    /// The number of the last start of a machine's node.
    pub fn machine_incarnation(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("incarnation")
    }

    /// The directory of a machine's trusted counter.
    pub fn machine_counter(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("counter")
    }

    /// The directory of a machine's durable log.
    pub fn machine_log(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("log")
    }

    /// The directory where a machine keeps results that are larger than memory shall hold: in files without names.
    pub fn machine_results(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("results")
    }

    /// The same of the proxy.
    pub fn proxy_results(&self) -> PathBuf {
        self.proxy().join("results")
    }

    /// The directory of a machine's store of bodies.
    pub fn machine_bodies(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("bodies")
    }

    /// The directory of a machine's database server.
    pub fn machine_database(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("database")
    }

    /// Held while the database server of a machine is started, or made anew.
    pub fn machine_database_lock(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("database.lock")
    }

    /// What a machine's node says.
    pub fn node_log(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("node.log")
    }

    /// The output of the repairs of a machine's database that `up` has run by itself.
    pub fn repair_log(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("repair.log")
    }

    /// What a machine's counter process says.
    pub fn counter_log(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("counter.log")
    }

    /// The directory of the proxy.
    pub fn proxy(&self) -> PathBuf {
        self.directory.join("proxy")
    }

    /// The private identity of the proxy.
    pub fn proxy_identity(&self) -> PathBuf {
        self.proxy().join("identity.pem")
    }

    /// The directory of the administrator.
    pub fn administrator(&self) -> PathBuf {
        self.directory.join("administrator")
    }

    /// The private identity of the administrator: needed by `cloudbft scale` only, and may be kept elsewhere.
    pub fn administrator_identity(&self) -> PathBuf {
        self.administrator().join("identity.pem")
    }

    /// What the proxy says.
    pub fn proxy_log(&self) -> PathBuf {
        self.proxy().join("proxy.log")
    }

    /// The number of the last start of the proxy.
    pub fn proxy_incarnation(&self) -> PathBuf {
        self.proxy().join("incarnation")
    }

    /// The output of the last pass over all contents.
    pub fn scrub_log(&self) -> PathBuf {
        self.directory.join("scrub.log")
    }

    /// The findings of the last pass over all contents.
    pub fn scrub_report(&self) -> PathBuf {
        self.directory.join("scrub.json")
    }

    /// Held while all contents are compared.
    pub fn scrub_lock(&self) -> PathBuf {
        self.directory.join("scrub.lock")
    }

    /// The process ids of a running `up` and its children.
    pub fn state(&self) -> PathBuf {
        self.directory.join("up.json")
    }

    /// Held while `up` runs.
    pub fn lock(&self) -> PathBuf {
        self.directory.join("up.lock")
    }
}

/// A directory for a server's Unix socket: below the machine's own, or in /tmp when that path is too long.
pub fn socket_directory(layout: &Layout, id: MachineId) -> PathBuf {
    let own = layout.machine(id).join("socket");
    if own.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX {
        return own;
    }
    let hash = blake3::hash(own.as_os_str().as_encoded_bytes()).to_hex();
    let short = hash.get(..16).unwrap_or_default();
    Path::new("/tmp").join(format!("cloudbft-{short}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_falls_back_to_a_short_one() {
        let layout = Layout::new(Path::new(&format!("/{}", "x".repeat(100))));
        let short = socket_directory(&layout, MachineId(1));
        assert!(short.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX);
        assert_ne!(short, socket_directory(&layout, MachineId(2)));
        assert_eq!(
            socket_directory(&Layout::new(Path::new("/a")), MachineId(1)),
            Path::new("/a/m1/socket")
        );
    }
}
