//! The pid file: written for other programs, never read to signal a process.

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

/// How often another process may change the file before `create` fails.
const MAX_CREATE_ATTEMPTS: usize = 16;

/// A pid file of this process: locked while this value lives, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    inode: u64,
    /// Only this process removes the file; a forked worker has a copy of this value.
    owner_pid: u32,
    /// Holds the lock, which tells a live file from one that a killed process has left. The lock ends when no process has the
    /// file open; workers close their copies.
    locked_file: File,
}

impl PidFile {
    /// Writes this process's pid. Readers see the old content or the new one, never a part.
    ///
    /// # Errors
    /// Another running process holds the file, it is no regular file, or it cannot be written.
    pub(crate) fn create(path: &Path) -> Result<PidFile> {
        let failed =
            |e: io::Error| Error::system(format!("write the pid file {}", path.display()), e);
        for _ in 0..MAX_CREATE_ATTEMPTS {
            let existing = match open_regular_file(path) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(failed(e)),
            };
            if let Some(mut file) = existing.as_ref()
                && file.try_lock().is_err()
            {
                return Err(held_by_other_process(path, &mut file));
            }
            let file = match (replace_atomically(path, existing.as_ref()), existing) {
                (Ok(Some(file)), _) => file,
                // Another process has created or removed the file meanwhile.
                (Ok(None), _) => continue,
                (Err(e), existing) if is_directory_unusable(&e) => {
                    rewrite_in_place(path, existing).map_err(failed)?
                }
                (Err(e), _) => return Err(failed(e)),
            };
            let inode = file.metadata().map_err(failed)?.ino();
            let (path, owner_pid) = (path.to_path_buf(), std::process::id());
            return Ok(PidFile { path, inode, owner_pid, locked_file: file });
        }
        Err(failed(io::Error::other("other processes keep changing it")))
    }

    /// Takes over the file of the previous image. The lock comes with the descriptor, even if a worker that was forked a moment
    /// before the exec still has a copy.
    ///
    /// # Errors
    /// The descriptor is not open, or another process holds the lock.
    pub(crate) fn inherit(passed: &PassedFile) -> Result<PidFile> {
        let path = passed.path.clone();
        let failed = |e: io::Error| {
            Error::system(format!("take over the pid file {}", passed.path.display()), e)
        };
        let file = File::from(prefork_os::fd::take_inherited_fd(passed.fd).map_err(failed)?);
        file.try_lock().map_err(|e| failed(e.into()))?;
        let owner_pid = std::process::id();
        Ok(PidFile { path, inode: passed.inode, owner_pid, locked_file: file })
    }

    /// Returns what the next image needs to take the file over. `None` if the path is not UTF-8, so that it cannot be passed.
    fn pass_to_new_image(&self) -> Option<PassedFile> {
        self.path.to_str()?;
        let fd = self.locked_file.as_raw_fd();
        Some(PassedFile { path: self.path.clone(), inode: self.inode, fd })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the file at the path is still this one and contains this process's pid.
    pub(crate) fn is_intact(&self) -> bool {
        let is_same_file = self.is_in_place();
        let mut content = [0; 32];
        let read = nix::sys::uio::pread(&self.locked_file, &mut content, 0).unwrap_or(0);
        is_same_file && content[..read] == *format!("{}\n", std::process::id()).as_bytes()
    }

    fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }
}

/// The pid file that the configuration names, and the file itself if it could be written.
#[derive(Debug)]
pub(crate) struct ConfiguredPidFile {
    /// Fixed at the start: a reload does not change it.
    path: Option<PathBuf>,
    file: Option<PidFile>,
}

impl ConfiguredPidFile {
    pub(crate) fn new(path: Option<PathBuf>, file: Option<PidFile>) -> ConfiguredPidFile {
        ConfiguredPidFile { path, file }
    }

    /// Writes the file again if it is missing or changed. Returns its path if it was written.
    ///
    /// # Errors
    /// The file cannot be written. Until the next repair there is none.
    pub(crate) fn repair(&mut self) -> Result<Option<&Path>> {
        let Some(path) = &self.path else { return Ok(None) };
        if self.file.as_ref().is_some_and(PidFile::is_intact) {
            return Ok(None);
        }
        // Dropped first: its own lock would prevent rewriting a file that has lost its content.
        self.file = None;
        self.file = Some(PidFile::create(path)?);
        Ok(Some(path))
    }

    /// Returns what the next image needs to take the file over.
    pub(crate) fn pass_to_new_image(&self) -> Option<PassedFile> {
        self.file.as_ref().and_then(PidFile::pass_to_new_image)
    }

    /// Returns the descriptor that holds the lock.
    pub(crate) fn lock_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.locked_file.as_fd())
    }

    /// Closes the file in a forked worker. It is the primary's and stays.
    pub(crate) fn close_in_worker(&mut self) {
        self.file = None;
    }
}

/// Opens the regular file at `path`.
fn open_regular_file(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let meta = path.symlink_metadata()?;
    // A link of another user could make this process overwrite any file.
    let found = match meta.file_type() {
        kind if kind.is_file() => {
            return OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path);
        }
        kind if kind.is_symlink() => "a link",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::other(format!("it is {found}; name a regular file")))
}

/// Writes a locked file beside `path` and moves it there, over `existing`, whose lock this process holds. Returns `None` if
/// `path` has changed meanwhile.
fn replace_atomically(path: &Path, existing: Option<&File>) -> io::Result<Option<File>> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    // May be left by a process with the same pid that was killed here.
    let _ = std::fs::remove_file(&temporary);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(OFlag::O_CLOEXEC.bits())
        .open(&temporary)?;
    let put = || -> io::Result<bool> {
        file.lock()?;
        write_pid(&file)?;
        match existing {
            // Fails if another process has created the file meanwhile.
            None => std::fs::hard_link(&temporary, path).map(|()| true),
            Some(existing) if is_file_at(existing, path) => {
                std::fs::rename(&temporary, path).map(|()| true)
            }
            Some(_) => Ok(false),
        }
    };
    let outcome = put();
    // After a rename there is nothing to remove.
    let _ = std::fs::remove_file(&temporary);
    match outcome {
        Ok(true) => Ok(Some(file)),
        Ok(false) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns whether no file can be created beside the pid file or moved over it (a mount point), so that the file itself has to
/// be rewritten.
fn is_directory_unusable(error: &io::Error) -> bool {
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

fn rewrite_in_place(path: &Path, existing: Option<File>) -> io::Result<File> {
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
    // Truncated after the write: a full disk leaves the old content.
    file.write_all(pid.as_bytes())?;
    file.set_len(pid.len() as u64)?;
    // Readable for all, whatever the umask.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

fn is_file_at(file: &File, path: &Path) -> bool {
    matches!((file.metadata(), path.symlink_metadata()), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.dev() == b.dev())
}

fn held_by_other_process(path: &Path, file: &mut &File) -> Error {
    let mut pid = String::new();
    // The content is only shown.
    let _ = Read::by_ref(file).take(20).read_to_string(&mut pid);
    Error::pid_file_held(path, &printable(pid.trim()))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.owner_pid == std::process::id() && self.is_in_place() {
            // If this fails, the next start recognizes the file as stale by its missing lock.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_stale_file_refuses_a_locked_one_and_removes_its_own() {
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
    fn replaces_the_file_atomically() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pid");
        std::fs::write(&path, "999999999\n").expect("write");
        let mut reader = File::open(&path).expect("open");
        let _ours = PidFile::create(&path).expect("created");
        let mut seen = String::new();
        reader.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, "999999999\n");
        // The temporary file is gone.
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 1);
    }

    #[test]
    fn refuses_and_keeps_what_is_not_a_regular_file() {
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
    fn does_not_follow_a_symbolic_link() {
        let dir = tempfile::tempdir().expect("dir");
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "precious").expect("write");
        std::os::unix::fs::symlink(&target, &link).expect("link");
        assert!(PidFile::create(&link).is_err());
        assert_eq!(std::fs::read_to_string(&target).expect("read"), "precious");
    }
}
