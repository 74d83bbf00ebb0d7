//! The pid file: written for others, never read to signal anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::text::printable;
use crate::upgrade::PassedFile;

/// How often the file may change under us before we give up.
const MAX_RACES: usize = 16;

/// A pid file that is ours: locked as long as this lives, removed at its end.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    inode: u64,
    /// Only this process removes it: a worker has a copy of this value, and no right to it.
    owner: u32,
    /// Its lock is what counts: a file that was left by a killed process has none. The lock ends when nobody
    /// has the file open any more; workers close theirs.
    locked: File,
}

impl PidFile {
    /// Writes our pid, in one step for whoever reads it. Refuses when another living process holds the file.
    pub(crate) fn create(path: &Path) -> Result<PidFile> {
        let failed =
            |e: io::Error| Error::system(format!("write the pid file {}", path.display()), e);
        for _ in 0..MAX_RACES {
            let existing = match open(path) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(failed(e)),
            };
            if let Some(mut file) = existing.as_ref()
                && file.try_lock().is_err()
            {
                return Err(held(path, &mut file));
            }
            let file = match (put_in_place(path, existing.as_ref()), existing) {
                (Ok(Some(file)), _) => file,
                // Another start was faster, or has removed the file meanwhile.
                (Ok(None), _) => continue,
                (Err(e), existing) if leaves_no_room_beside(&e) => {
                    write_in_place(path, existing).map_err(failed)?
                }
                (Err(e), _) => return Err(failed(e)),
            };
            let inode = file.metadata().map_err(failed)?.ino();
            let (path, owner) = (path.to_path_buf(), std::process::id());
            return Ok(PidFile { path, inode, owner, locked: file });
        }
        Err(failed(io::Error::other("other processes keep changing it")))
    }
}

impl PidFile {
    /// Takes over the file of another image of this process. The lock comes with the descriptor, even if a worker that was
    /// forked a moment before the exec still has a copy of it.
    ///
    /// # Errors
    /// The descriptor is not open, or somebody else holds the lock.
    pub(crate) fn inherit(passed: &PassedFile) -> Result<PidFile> {
        let path = passed.path.clone();
        let failed = |e: io::Error| {
            Error::system(format!("take over the pid file {}", passed.path.display()), e)
        };
        let locked = File::from(prefork_os::fd::take_inherited_fd(passed.fd).map_err(failed)?);
        locked.try_lock().map_err(|e| failed(e.into()))?;
        Ok(PidFile { path, inode: passed.inode, owner: std::process::id(), locked })
    }

    /// What the next image has to know of it; `None` if its path cannot be written down, and the next image creates it.
    pub(crate) fn pass(&self) -> Option<PassedFile> {
        self.path.to_str()?;
        let fd = self.locked.as_raw_fd();
        Some(PassedFile { path: self.path.clone(), inode: self.inode, fd })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file that others find at its path is still this one, with our pid in it.
    pub(crate) fn is_intact(&self) -> bool {
        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        let mut content = [0; 32];
        let read = nix::sys::uio::pread(&self.locked, &mut content, 0).unwrap_or(0);
        is_ours && content[..read] == *format!("{}\n", std::process::id()).as_bytes()
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.locked.as_fd()
    }
}

/// Opens what is at `path`, which has to be a regular file.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let meta = path.symlink_metadata()?;
    // A link could point to a file that somebody else wants us to overwrite.
    let what = match meta.file_type() {
        kind if kind.is_file() => {
            return OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path);
        }
        kind if kind.is_symlink() => "a link",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::other(format!("it is {what}; name a regular file")))
}

/// Makes a locked file with our pid beside `path` and moves it there, over `existing`, whose lock is ours. `None` if
/// `path` is not what it was.
fn put_in_place(path: &Path, existing: Option<&File>) -> io::Result<Option<File>> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    // Of a process with our pid that was killed in the middle of this.
    let _ = std::fs::remove_file(&beside);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(OFlag::O_CLOEXEC.bits())
        .open(&beside)?;
    let put = || -> io::Result<bool> {
        file.lock()?;
        write_pid(&file)?;
        match existing {
            // Fails if somebody has made the file meanwhile.
            None => std::fs::hard_link(&beside, path).map(|()| true),
            Some(existing) if is_at(existing, path) => {
                std::fs::rename(&beside, path).map(|()| true)
            }
            Some(_) => Ok(false),
        }
    };
    let outcome = put();
    // After a rename there is nothing to remove.
    let _ = std::fs::remove_file(&beside);
    match outcome {
        Ok(true) => Ok(Some(file)),
        Ok(false) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether no file can be made beside the pid file, or none moved over it (a mount point), so that it has to be written
/// where it is.
fn leaves_no_room_beside(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EACCES
                | Errno::EPERM
                | Errno::EROFS
                | Errno::EBUSY
                | Errno::EXDEV
                | Errno::EOPNOTSUPP
        )
    )
}

fn write_in_place(path: &Path, existing: Option<File>) -> io::Result<File> {
    let file = match existing {
        Some(file) => file,
        None => {
            let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o644);
            let file = options.custom_flags(flags.bits()).open(path)?;
            file.lock()?;
            file
        }
    };
    write_pid(&file)?;
    Ok(file)
}

fn write_pid(mut file: &File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    // Written before the old rest is cut off: a full disk leaves what there was.
    file.write_all(pid.as_bytes())?;
    file.set_len(pid.len() as u64)?;
    // Whatever the umask: others may read it.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn is_at(file: &File, path: &Path) -> bool {
    matches!((file.metadata(), path.symlink_metadata()), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.dev() == b.dev())
}

fn held(path: &Path, file: &mut &File) -> Error {
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
    fn whoever_reads_it_sees_the_old_pid_or_ours_and_never_half_of_one() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pid");
        std::fs::write(&path, "999999999\n").expect("write");
        let mut reader = File::open(&path).expect("open");
        let _ours = PidFile::create(&path).expect("created");
        let mut seen = String::new();
        reader.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, "999999999\n");
        // And nothing is left beside it.
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 1);
    }

    #[test]
    fn what_is_no_regular_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("FIFO");
        for (path, what) in [
            (&fifo, "a FIFO"),
            (&dir.path().to_path_buf(), "a directory"),
            (&"/dev/null".into(), "a device"),
        ] {
            let why = PidFile::create(path).expect_err("refused").to_string();
            assert!(why.contains(&format!("it is {what}; name a regular file")), "{why}");
            assert!(path.exists());
        }
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
