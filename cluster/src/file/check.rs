//! The checks that make a file as written a [`ClusterFile`].

use std::collections::BTreeSet;
use std::ops::Range;

use ordering::identifiers::{ClientId, MachineId};
use toml::Spanned;

use super::raw::{Authentication, Parsed, Tunables, line_of};
use super::{
    CLIENT_SILENCE_MS_MIN, Client, ClusterFile, Database, FAULTS_MAX, FileError, GROUPS_MAX, LOG_BYTES_MIN, Machine,
    TRANSACTION_BYTES_MIN,
};
use crate::hex;

impl Parsed<'_> {
    pub(super) fn error(&self, span: Range<usize>, message: impl Into<String>, remedy: impl Into<String>) -> FileError {
        let (message, remedy) = (message.into(), remedy.into());
        FileError {
            path: self.path.to_owned(),
            line: line_of(self.text, span.start),
            message,
            remedy,
        }
    }

    /// An error at the first line that sets `key`.
    fn error_at(&self, key: &str, message: impl Into<String>, remedy: &str) -> FileError {
        let lines = self.text.lines();
        let is_key = |line: &str| {
            line.trim_start()
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        let line = lines.into_iter().position(is_key).map_or(0, |at| at + 1);
        FileError {
            path: self.path.to_owned(),
            line,
            message: message.into(),
            remedy: remedy.to_owned(),
        }
    }

    pub(super) fn check_tunables(&self) -> Result<(), FileError> {
        let Tunables {
            faults,
            groups,
            groups_max,
            limits,
            timeouts,
            authentication,
            listen,
            roles,
            ..
        } = &self.tunables;
        if !(1..=FAULTS_MAX).contains(faults) {
            let remedy = "tolerate 1 fault with 4 machines, 2 with 6, f with 2f+2";
            return Err(self.error_at("faults", format!("faults must be 1 to {FAULTS_MAX}"), remedy));
        }
        if !(1..=GROUPS_MAX).contains(groups) {
            return Err(self.error_at(
                "groups",
                format!("groups must be 1 to {GROUPS_MAX}"),
                "start with groups = 1",
            ));
        }
        if *groups_max != 0 && !(*groups..=GROUPS_MAX).contains(groups_max) {
            return Err(self.error_at(
                "groups_max",
                format!("groups_max must be {groups} (groups) to {GROUPS_MAX}"),
                "each group that may be there costs a counter certificate in a view change: 8 are enough for most",
            ));
        }
        let positive = [
            ("application_connections_max", limits.application_connections_max),
            ("open_transactions_max", limits.open_transactions_max),
            ("batch_entries_max", limits.batch_entries_max),
            ("batches_in_flight_max", limits.batches_in_flight_max),
            ("shared_buffers_mib", limits.shared_buffers_mib),
            ("node_threads", limits.node_threads),
            ("proxy_threads", limits.proxy_threads),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(self.error_at(
                key,
                format!("{key} must be at least 1"),
                "remove the line to get the default",
            ));
        }
        if timeouts.client_silence_ms < CLIENT_SILENCE_MS_MIN {
            return Err(self.error_at(
                "client_silence_ms",
                format!("client_silence_ms must be at least {CLIENT_SILENCE_MS_MIN}"),
                "a client that lives says so every second, and one message may be late",
            ));
        }
        if limits.log_bytes_max < LOG_BYTES_MIN {
            return Err(self.error_at(
                "log_bytes_max",
                format!("log_bytes_max must be at least {LOG_BYTES_MIN} (1 MiB)"),
                "a database that is down for longer than the log reaches back needs repair: allow some GiB",
            ));
        }
        let bytes = [
            ("transaction_bytes_max", limits.transaction_bytes_max),
            ("bodies_bytes_max", limits.bodies_bytes_max),
            ("results_bytes_max", limits.results_bytes_max),
        ];
        if let Some((key, _)) = bytes.into_iter().find(|(_, bytes)| *bytes < TRANSACTION_BYTES_MIN) {
            return Err(self.error_at(
                key,
                format!("{key} must be at least {TRANSACTION_BYTES_MIN} (16 MiB)"),
                "a COPY or a result of this size must fit: remove the line to get the default",
            ));
        }
        if roles.is_empty() {
            return Err(self.error_at("roles", "there is no role", "add [[roles]] with name = \"app\""));
        }
        match authentication {
            Authentication::Trust if !listen.ip().is_loopback() => Err(self.error_at(
                "listen",
                format!("with authentication = \"trust\", anyone who reaches {listen} would be any role"),
                "listen on 127.0.0.1, or set authentication = \"scram-sha-256\" and give each role a scram_verifier",
            )),
            Authentication::ScramSha256 if roles.iter().any(|role| role.scram_verifier.is_none()) => Err(self
                .error_at(
                    "authentication",
                    "a role has no scram_verifier",
                    "copy it from `select rolpassword from pg_authid` of a server where the password is set",
                )),
            _ => Ok(()),
        }
    }

    pub(super) fn resolve(self) -> Result<ClusterFile, FileError> {
        self.check_tunables()?;
        let machines = self.machines()?;
        let clients = self.clients()?;
        let administrator = self.administrator(&machines, &clients)?;
        let mut tunables = self.tunables;
        if tunables.groups_max == 0 {
            tunables.groups_max = tunables.groups;
        }
        tunables.partitions.multi_partition = tunables.multi_partition;
        Ok(ClusterFile {
            path: self.path.to_owned(),
            tunables,
            machines,
            clients,
            administrator,
        })
    }

    fn machines(&self) -> Result<Vec<Machine>, FileError> {
        let (faults, agreement) = (self.tunables.faults, self.tunables.agreement);
        let expected = agreement.machines(faults);
        if self.machines.len() != expected {
            let message = format!(
                "{} machines are listed; {} needs {expected}",
                self.machines.len(),
                agreement.name()
            );
            let remedy = "list 2f+2 machines (minbft) or 3f+1 (pbft), m0 first, or change `faults`";
            return Err(match self.machines.last() {
                Some(last) => self.error(last.name.span(), message, remedy),
                None => self.error_at("faults", message, remedy),
            });
        }
        let mut seen = BTreeSet::new();
        let checked = self.machines.iter().zip(0_u8..).map(|(raw, index)| {
            let id = MachineId(index);
            let name = super::machine_name(id);
            if *raw.name.get_ref() != name {
                let message = format!("machine {} is out of order", raw.name.get_ref());
                return Err(self.error(
                    raw.name.span(),
                    message,
                    format!("name it {name}: machines are m0, m1, ..."),
                ));
            }
            let holds_voter = (1..=2 * faults + 1).contains(&usize::from(index));
            if raw.database.is_some() != holds_voter {
                let (message, remedy) = if !holds_voter {
                    (
                        "only m1 to m(2f+1) have a database",
                        "remove machines.database of this machine",
                    )
                } else {
                    (
                        "this machine has no database",
                        "add [machines.database] with socket_directory and port",
                    )
                };
                return Err(self.error(raw.name.span(), message, remedy));
            }
            let identity = self.key(&raw.identity)?;
            if !seen.insert(identity) {
                let remedy = "every machine and client needs a key of its own";
                return Err(self.error(raw.identity.span(), "this identity is listed twice", remedy));
            }
            let database = raw.database.as_ref();
            Ok(Machine {
                id,
                link: raw.link,
                metrics: raw.metrics,
                identity,
                counter: self.key(&raw.counter)?,
                database: database.map(|raw| Database {
                    socket_directory: raw.socket_directory.clone(),
                    port: raw.port,
                }),
            })
        });
        checked.collect()
    }

    fn clients(&self) -> Result<Vec<Client>, FileError> {
        let known: BTreeSet<_> = self.tunables.roles.iter().map(|role| role.name.as_str()).collect();
        let checked = self.clients.iter().zip(0_u32..).map(|(raw, index)| {
            if let Some(role) = raw.roles.iter().find(|role| !known.contains(role.get_ref().as_str())) {
                let message = format!("role {} is not listed", role.get_ref());
                return Err(self.error(role.span(), message, "add it as [[roles]], or remove it here"));
            }
            Ok(Client {
                id: ClientId(index),
                name: raw.name.get_ref().clone(),
                identity: self.key(&raw.identity)?,
                roles: raw.roles.iter().map(|role| role.get_ref().clone()).collect(),
            })
        });
        checked.collect()
    }

    fn administrator(&self, machines: &[Machine], clients: &[Client]) -> Result<Option<[u8; 32]>, FileError> {
        let Some(raw) = &self.administrator else {
            return Ok(None);
        };
        let identity = self.key(&raw.identity)?;
        let machines = machines.iter().map(|machine| machine.identity);
        if machines
            .chain(clients.iter().map(|client| client.identity))
            .any(|other| other == identity)
        {
            let remedy = "the administrator needs a key of their own";
            return Err(self.error(raw.identity.span(), "this identity is listed twice", remedy));
        }
        Ok(Some(identity))
    }

    fn key(&self, raw: &Spanned<String>) -> Result<[u8; 32], FileError> {
        hex::decode(raw.get_ref()).ok_or_else(|| {
            let remedy = "write the public key as 64 hexadecimal digits, as `up` does";
            self.error(raw.span(), "this is no key", remedy)
        })
    }
}
