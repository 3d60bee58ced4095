//! Where PostgreSQL's programs are, and as whom they run.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User};

use super::PostgresError;
use crate::private;

/// Where Debian and its kin put one directory per major version.
const VERSIONS_DIRECTORY: &str = "/usr/lib/postgresql";
/// The oldest major version that is supported.
const MAJOR_VERSION_MIN: u32 = 15;
/// Who runs the servers when we are root, which they refuse to be.
const SERVER_USER: &str = "postgres";

/// PostgreSQL's programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
    /// The major version.
    pub major_version: u32,
    run_as: Option<(Uid, Gid)>,
}

impl Binaries {
    /// The newest PostgreSQL of this machine.
    ///
    /// # Errors
    /// When there is none, or none that may run.
    pub fn find() -> Result<Self, PostgresError> {
        let (major_version, directory) = candidates()
            .into_iter()
            .filter(|(version, _)| *version >= MAJOR_VERSION_MIN)
            .max()
            .ok_or(PostgresError::NotFound)?;
        let run_as = if Uid::effective().is_root() {
            let user = User::from_name(SERVER_USER)
                .ok()
                .flatten()
                .ok_or(PostgresError::NoUser)?;
            Some((user.uid, user.gid))
        } else {
            None
        };
        Ok(Self {
            directory,
            major_version,
            run_as,
        })
    }

    /// A command for one of the programs, as the user that may run it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path_of(program));
        command.stdin(Stdio::null()).current_dir("/");
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin")
            .env("TZ", "UTC");
        if let Some((user, group)) = self.run_as {
            command.uid(user.as_raw()).gid(group.as_raw());
        }
        command
    }

    /// Where a program is: beside the server's, or where another package has put it for the same major version.
    fn path_of(&self, program: &str) -> PathBuf {
        let beside = self.directory.join(program);
        if beside.is_file() {
            return beside;
        }
        let same_version = candidates()
            .into_iter()
            .filter(|(version, _)| *version == self.major_version);
        same_version
            .map(|(_, directory)| directory.join(program))
            .find(|path| path.is_file())
            .unwrap_or(beside)
    }

    /// Makes a directory that only the server's user (and root) may enter, and hands it over. One that is there must be ours
    /// or that user's: a socket directory may lie in /tmp, where anybody can have made it.
    pub(super) fn own_directory(&self, path: &Path) -> Result<(), PostgresError> {
        let what = format!("cannot use {}", path.display());
        private::claim_directory(path, self.run_as.map(|(user, _)| user)).map_err(PostgresError::system(what))?;
        self.own(path)
    }

    /// Hands a file or directory over to the server's user.
    pub(super) fn own(&self, path: &Path) -> Result<(), PostgresError> {
        let Some((user, group)) = self.run_as else {
            return Ok(());
        };
        let what = format!("cannot change the owner of {}", path.display());
        std::os::unix::fs::chown(path, Some(user.as_raw()), Some(group.as_raw())).map_err(PostgresError::system(what))
    }

    /// Whether the server runs as somebody else than we do.
    pub(super) fn is_another_user(&self) -> bool {
        self.run_as.is_some()
    }
}

fn candidates() -> Vec<(u32, PathBuf)> {
    let versions = std::fs::read_dir(VERSIONS_DIRECTORY).into_iter().flatten().flatten();
    let mut found: Vec<_> = versions
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let directory = entry.path().join("bin");
            directory.join("initdb").is_file().then_some((version, directory))
        })
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).filter_map(|directory| {
        let server = directory.join("postgres");
        let version = if server.is_file() && directory.join("initdb").is_file() {
            version_of(server.as_os_str())
        } else {
            None
        };
        version.map(|version| (version, directory))
    }));
    found
}

/// The major version that `postgres --version` prints, as in `postgres (PostgreSQL) 15.14`.
fn version_of(server: &OsStr) -> Option<u32> {
    let output = Command::new(server).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split(')').nth(1)?.trim();
    version.split(['.', ' ', 'b', 'r']).next()?.parse().ok()
}
