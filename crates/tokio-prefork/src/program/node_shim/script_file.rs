//! The file of the script: private, removed when its program has ended, or by a later guard if this one is killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use prefork_os::system::random_u64;

/// How the names of the files begin.
const PREFIX: &str = "prefork-node-";
const MODE: u32 = 0o600;
/// How often a file may be taken for a stale one before it is locked.
const MAX_ATTEMPTS: usize = 8;

/// A file in the directory for temporary files that only this user can read. Removed when dropped.
pub(super) struct ScriptFile {
    path: PathBuf,
    /// Locked while the file is in use. The kernel releases the lock when this process dies.
    locked_file: File,
}

impl ScriptFile {
    /// Writes a file with a name that nobody can guess, and removes those of processes that were killed.
    ///
    /// # Errors
    /// The directory cannot be written, or is full.
    pub(super) fn write(text: &str) -> Result<ScriptFile> {
        let dir = std::env::temp_dir();
        ScriptFile::write_in(&dir, text).map_err(|e| {
            Error::system(
                format!(
                    "write the script for Node programs into {}: set TMPDIR to a directory that this user can write, or \
                     node-shim = false",
                    dir.display()
                ),
                e,
            )
        })
    }

    fn write_in(dir: &Path, text: &str) -> io::Result<ScriptFile> {
        let dir = std::path::absolute(dir)?;
        remove_stale_files(&dir);
        for _ in 0..MAX_ATTEMPTS {
            let path =
                dir.join(format!("{PREFIX}{:016x}{:016x}.cjs", random_u64()?, random_u64()?));
            let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path)?;
            // Before it has the lock, another guard may take it for a stale one, and remove it.
            if file.try_lock().is_err() || file.metadata()?.nlink() == 0 {
                continue;
            }
            let script = ScriptFile { path, locked_file: file };
            (&script.locked_file).write_all(text.as_bytes())?;
            return Ok(script);
        }
        Err(io::Error::other("other processes keep removing it"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        // If it is gone already, nothing is left to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes the files of this user that no process has locked: their guards were killed, and their programs with them.
fn remove_stale_files(dir: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Neither a link nor a FIFO is opened.
        let is_own_file = entry.metadata().is_ok_and(|data| data.is_file() && data.uid() == own);
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        if is_own_file
            && let Ok(file) =
                OpenOptions::new().read(true).custom_flags(flags.bits()).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_script_is_private_and_removed_with_its_program() {
        let dir = tempfile::tempdir().expect("directory");
        let script = ScriptFile::write_in(dir.path(), "text").expect("write");
        assert_eq!(std::fs::read_to_string(script.path()).expect("read"), "text");
        let mode = std::fs::metadata(script.path()).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let path = script.path().to_path_buf();
        drop(script);
        assert!(!path.exists());
    }

    #[test]
    fn scripts_of_killed_guards_are_removed_by_the_next() {
        let dir = tempfile::tempdir().expect("directory");
        let stale = dir.path().join(format!("{PREFIX}0.cjs"));
        let other = dir.path().join("other.cjs");
        std::fs::write(&stale, "").expect("write");
        std::fs::write(&other, "").expect("write");
        let first = ScriptFile::write_in(dir.path(), "1").expect("write");
        let second = ScriptFile::write_in(dir.path(), "2").expect("write");
        assert!(!stale.exists() && other.exists());
        assert!(first.path().exists() && second.path().exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        assert!(ScriptFile::write_in(Path::new("/proc/self"), "text").is_err());
    }
}
