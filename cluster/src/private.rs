//! Files and directories that only their owner may read.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::unistd::Uid;

/// The mode of a directory that only its owner may enter.
const DIRECTORY_MODE: u32 = 0o700;
/// The mode of a file that only its owner may read.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Makes a directory of ours that only we may enter; one that is there already (an earlier build made it readable) becomes
/// so.
///
/// # Errors
/// When it cannot be made, or is somebody else's.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    restrict(path, DIRECTORY_MODE)
}

/// Makes a file of ours that only we may read, which an earlier build made readable.
///
/// # Errors
/// When it is not there, or is somebody else's.
pub(crate) fn restrict_file(path: &Path) -> io::Result<()> {
    restrict(path, FILE_MODE)
}

fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    if fs::metadata(path)?.mode() & 0o777 & !mode == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Writes a new file that only we may read, in the place of one that is there.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_file(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Makes a directory that only its owner may enter, where anybody may have made it before (in /tmp): one that is there must
/// be a directory of ours or of `also`, closed to all others, and no link.
///
/// # Errors
/// When it cannot be made, or is not such a directory.
pub(crate) fn claim_directory(path: &Path, also: Option<Uid>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    let found = fs::symlink_metadata(path)?;
    let owner = Uid::from_raw(found.uid());
    let refused = |what: &str| {
        let remedy = "remove it, if it is a leftover: it is made again";
        Err(io::Error::other(format!("{what}; {remedy}")))
    };
    if !found.is_dir() {
        return refused("it is there already, and is no directory");
    }
    if owner != Uid::effective() && Some(owner) != also {
        return refused(&format!("it is there already, and belongs to the user with id {owner}"));
    }
    if found.mode() & 0o077 != 0 {
        return refused(&format!(
            "it is there already, and open to other users (mode {:o})",
            found.mode() & 0o777
        ));
    }
    Ok(())
}

/// Checks that others cannot read a private key: as PostgreSQL does, one that belongs to the superuser may be readable for
/// its group.
///
/// # Errors
/// When the key is not there, or others can read it.
pub(crate) fn check_key(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path)?;
    let (mode, owner) = (found.mode() & 0o777, Uid::from_raw(found.uid()));
    let us = Uid::effective();
    if owner != us && !owner.is_root() {
        let path = path.display();
        return Err(io::Error::other(format!(
            "{path} belongs to another user, who can read this private key; run: chown {us} {path}"
        )));
    }
    let open = if owner == us { 0o077 } else { 0o037 };
    if mode & open != 0 {
        let path = path.display();
        return Err(io::Error::other(format!(
            "{path}: mode {mode:o} lets others read this private key; run: chmod 600 {path}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Gives a file away; false when we may not, not being the superuser.
    fn give_away(path: &Path) -> bool {
        std::os::unix::fs::chown(path, Some(12_345), None).is_ok()
    }

    #[test]
    fn what_is_written_is_ours_alone_even_over_a_file_that_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "old").unwrap();
        set_mode(&path, 0o644);
        write_file(&path, b"new").unwrap();
        assert_eq!((mode(&path), fs::read_to_string(&path).unwrap()), (0o600, "new".into()));
    }

    #[test]
    fn a_directory_that_was_open_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        make_directory(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_directory_in_a_public_place_is_claimed_once_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        claim_directory(&path, None).unwrap();
        assert_eq!(mode(&path), 0o700);
        claim_directory(&path, None).unwrap();
    }

    #[test]
    fn a_directory_that_somebody_else_prepared_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |path: &Path| claim_directory(path, None).unwrap_err().to_string();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        assert!(refused(&open).contains("open to other users"));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(refused(&link).contains("no directory"));
        let foreign = directory.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        set_mode(&foreign, 0o700);
        if give_away(&foreign) {
            assert!(refused(&foreign).contains("12345"));
            claim_directory(&foreign, Some(Uid::from_raw(12_345))).unwrap();
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.pem");
        fs::write(&key, "").unwrap();
        for open in [0o644, 0o640, 0o604] {
            set_mode(&key, open);
            let refused = check_key(&key).unwrap_err().to_string();
            assert!(refused.contains("chmod 600"), "{refused}");
        }
        set_mode(&key, 0o600);
        check_key(&key).unwrap();
        if give_away(&key) {
            assert!(check_key(&key).unwrap_err().to_string().contains("another user"));
        }
    }
}
