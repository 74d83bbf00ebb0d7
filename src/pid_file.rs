//! The pid file: written for others, never read to signal anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::printable::printable;

/// A pid file that is ours: locked as long as this lives, removed at its end.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    inode: u64,
    /// Only this process removes it: a worker has a copy of this value, and no right to it.
    owner: u32,
    /// Its lock is what counts: a file that was left by a killed process has none. The lock ends when nobody
    /// has the file open any more; workers close theirs.
    _locked: File,
}

impl PidFile {
    /// Writes our pid. Refuses when another living process holds the file.
    pub(crate) fn create(path: &Path) -> Result<PidFile> {
        let failed =
            |e: io::Error| Error::system(format!("write the pid file {}", path.display()), e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            // A link could point to a file that somebody else wants us to overwrite.
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path)
            .map_err(failed)?;
        if file.try_lock().is_err() {
            return Err(held(path, &mut file));
        }
        let mut write = || -> io::Result<u64> {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            // Whatever the umask: others may read it.
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            Ok(file.metadata()?.ino())
        };
        let inode = write().map_err(failed)?;
        let (path, owner) = (path.to_path_buf(), std::process::id());
        Ok(PidFile { path, inode, owner, _locked: file })
    }
}

fn held(path: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // Whatever stands there is only shown.
    let _ = Read::by_ref(file).take(20).read_to_string(&mut pid);
    Error::bind(
        format!("the pid file {}", path.display()),
        format!("it is held by a running process (pid {})", printable(pid.trim())),
    )
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = self.owner == std::process::id()
            && std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours {
            // A file that stays is recognised as stale by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_replaced_a_held_one_is_not_and_ours_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pid");
        std::fs::write(&path, "999999999 stale and long\n").expect("write");
        let ours = PidFile::create(&path).expect("replaces the stale one");
        let mine = format!("{}\n", std::process::id());
        assert_eq!(std::fs::read_to_string(&path).expect("read"), mine);
        let error = PidFile::create(&path).expect_err("held").to_string();
        assert!(
            error.contains(&format!("held by a running process (pid {}", mine.trim())),
            "{error}"
        );
        drop(ours);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("dir");
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "precious").expect("write");
        std::os::unix::fs::symlink(&target, &link).expect("link");
        assert!(PidFile::create(&link).is_err());
        assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious");
    }
}
