//! The file of a Unix socket.
//!
//! It is created with its final mode, replaced if the process that created it was killed, left alone if a running process
//! listens on it, and removed by the process that created it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::text::printable_process;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fchmod, umask};
use nix::unistd::{Gid, Uid, fchownat};
use prefork_os::unix_path::with_unix_addr;
use socket2::{Domain, Socket, Type};

/// How long to wait for the lock of the directory. Any process may hold that lock forever, which must not prevent a start.
const DIRECTORY_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Mode, owner and group to set on a socket file, as numbers. `None` leaves a value unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SocketPermissions {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// The file of a Unix socket. Removed on drop if this process owns it and the path still leads to it.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    /// Absolute, so that a change of the working directory does not matter.
    path: PathBuf,
    id: FileIdentity,
    /// The pid of the process that removes the file; forked processes have a copy of this value. `None` if another
    /// service removes it.
    owner_pid: Option<u32>,
}

/// Why a Unix socket cannot be bound. Displays what follows `cannot bind PATH: `.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SocketFileError {
    /// A running process listens at the path.
    InUse {
        /// The process (`pid 812, nginx`), if it can be seen.
        holder: Option<String>,
    },
    /// Any other reason.
    Failed {
        why: String,
        /// The error number of the system, if it was the system that refused.
        errno: Option<i32>,
    },
}

impl SocketFileError {
    pub(crate) fn from_io(why: impl fmt::Display, error: &io::Error) -> SocketFileError {
        SocketFileError::Failed { why: why.to_string(), errno: error.raw_os_error() }
    }

    /// Converts into the error of binding `addr`, with the system's error as its source.
    pub(crate) fn into_bind_error(self, addr: impl fmt::Display) -> Error {
        let errno = match &self {
            SocketFileError::InUse { .. } => Some(nix::errno::Errno::EADDRINUSE as i32),
            SocketFileError::Failed { errno, .. } => *errno,
        };
        let error = Error::bind(addr, self);
        match errno {
            Some(errno) => error.with_source(io::Error::from_raw_os_error(errno)),
            None => error,
        }
    }
}

impl fmt::Display for SocketFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketFileError::InUse { holder: Some(holder) } => {
                write!(f, "address already in use (held by {holder})")
            }
            SocketFileError::InUse { holder: None } => f.write_str("address already in use"),
            SocketFileError::Failed { why, .. } => f.write_str(why),
        }
    }
}

impl From<String> for SocketFileError {
    fn from(why: String) -> SocketFileError {
        SocketFileError::Failed { why, errno: None }
    }
}

/// Identifies a file among all that were ever at its path. An inode number alone does not, because it is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    /// `None` if the file system does not record it.
    created: Option<SystemTime>,
}

impl FileIdentity {
    /// Returns the identity of the socket at `path`. Does not follow links.
    fn of_socket_at(path: &Path) -> io::Result<FileIdentity> {
        let meta = std::fs::symlink_metadata(path)?;
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("it is not a socket"));
        }
        Ok(FileIdentity { device: meta.dev(), inode: meta.ino(), created: meta.created().ok() })
    }
}

impl UnixSocketFile {
    /// Binds `path` and listens. The file has `mode` from its creation; `None` leaves the mode to the umask.
    pub(crate) fn bind(
        path: &Path,
        mode: Option<u32>,
        backlog: i32,
    ) -> Result<(Socket, UnixSocketFile), SocketFileError> {
        UnixSocketFile::bind_with_permissions(
            path,
            SocketPermissions { mode, ..SocketPermissions::default() },
            backlog,
        )
    }

    /// Binds `path` and listens, as [`bind`](UnixSocketFile::bind). No client can connect before the file has its owner and
    /// group.
    pub(crate) fn bind_with_permissions(
        path: &Path,
        access: SocketPermissions,
        backlog: i32,
    ) -> Result<(Socket, UnixSocketFile), SocketFileError> {
        // Without the lock, a second start could find the first one bound but not yet listening, and remove its file as
        // stale.
        let _lock = lock_parent_directory(path);
        remove_stale_socket(path)?;
        let (socket, file) = bind_with_mode(path, access.mode).map_err(|e| {
            let why = match e.kind() {
                io::ErrorKind::NotFound => {
                    "its directory does not exist: create it first".to_string()
                }
                io::ErrorKind::PermissionDenied => {
                    format!("its directory cannot be written by this user ({e})")
                }
                _ => e.to_string(),
            };
            SocketFileError::from_io(why, &e)
        })?;
        file.set_owner(access)?;
        // Before this, every client is refused, whatever the permissions of the file.
        socket.listen(backlog).map_err(|e| SocketFileError::from_io(&e, &e))?;
        Ok((socket, file))
    }

    /// Returns the existing socket file at `path`. `owner_pid` is the process that removes it; `None` if another service does.
    pub(crate) fn inherit(path: &Path, owner_pid: Option<u32>) -> Option<UnixSocketFile> {
        let path = std::path::absolute(path).ok()?;
        Some(UnixSocketFile { id: FileIdentity::of_socket_at(&path).ok()?, path, owner_pid })
    }

    /// Takes over the socket file of the previous image, known by its inode. Another file at `path` is not removed.
    pub(crate) fn inherit_by_inode(path: &Path, inode: u64) -> UnixSocketFile {
        let gone = FileIdentity { device: 0, inode, created: None };
        let found = FileIdentity::of_socket_at(path).ok().filter(|found| found.inode == inode);
        let owner_pid = Some(std::process::id());
        UnixSocketFile { path: path.to_path_buf(), id: found.unwrap_or(gone), owner_pid }
    }

    /// Returns the inode number, with which the next image recognizes the file.
    pub(crate) fn inode(&self) -> u64 {
        self.id.inode
    }

    /// Returns the absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the path still leads to this file.
    pub(crate) fn is_in_place(&self) -> bool {
        FileIdentity::of_socket_at(&self.path).is_ok_and(|found| found == self.id)
    }

    /// Changes the permissions of the file, for clients that connect from now on. The error names what could not be set.
    pub(crate) fn set_permissions(&self, access: SocketPermissions) -> Result<(), String> {
        self.set_owner(access)?;
        let Some(mode) = access.mode else { return Ok(()) };
        let failed = |e: nix::Error| format!("its file cannot get mode {mode:o}: {e}");
        // Names the opened file itself, so that a link that replaces it is not followed.
        let file = self.open()?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            path.as_str(),
            Mode::from_bits_truncate(mode),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .map_err(failed)
    }

    fn set_owner(&self, access: SocketPermissions) -> Result<(), String> {
        let SocketPermissions { owner, group, .. } = access;
        if owner.is_none() && group.is_none() {
            return Ok(());
        }
        let (uid, gid) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        fchownat(&self.open()?, "", uid, gid, AtFlags::AT_EMPTY_PATH).map_err(|e| {
            let shown = |id: Option<u32>| id.map_or("the same".to_string(), |id| id.to_string());
            let (owner, group) = (shown(owner), shown(group));
            format!(
                "its file cannot get owner {owner} and group {group}: {e}; start as root, or name a group that this \
                 user is in"
            )
        })
    }

    /// Opens the file itself, after checking that the path still leads to it.
    fn open(&self) -> Result<File, String> {
        let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
        let failed = |e: io::Error| format!("its file cannot be opened: {e}");
        let file =
            File::options().read(true).custom_flags(flags).open(&self.path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        match (meta.dev(), meta.ino()) == (self.id.device, self.id.inode) {
            true => Ok(file),
            false => Err("its file was replaced by another".to_string()),
        }
    }

    #[cfg(test)]
    fn mode(&self) -> u32 {
        std::fs::symlink_metadata(&self.path).expect("file").mode() & 0o777
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        if self.owner_pid == Some(std::process::id()) && self.is_in_place() {
            // If this fails, the next start recognizes the file as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds `path` so that the file has its final mode from the start: the kernel creates it with the mode of the socket minus
/// the umask.
fn bind_with_mode(path: &Path, mode: Option<u32>) -> io::Result<(Socket, UnixSocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let before = match mode {
        Some(mode) => {
            fchmod(&socket, Mode::from_bits_truncate(mode))?;
            Some(umask(Mode::empty()))
        }
        None => None,
    };
    let bound = with_unix_addr(path, |addr| socket.bind(addr));
    before.map(umask);
    bound?;
    let path = std::path::absolute(path)?;
    let file = UnixSocketFile {
        id: FileIdentity::of_socket_at(&path)?,
        path,
        owner_pid: Some(std::process::id()),
    };
    Ok((socket, file))
}

/// Locks the directory of `path`. Returns `None` if it cannot be locked in time.
fn lock_parent_directory(path: &Path) -> Option<Flock<File>> {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut file = File::open(directory.unwrap_or(Path::new("."))).ok()?;
    let deadline = Instant::now() + DIRECTORY_LOCK_TIMEOUT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((again, nix::errno::Errno::EAGAIN)) if Instant::now() < deadline => file = again,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a socket file on which no process listens: the process that created it was killed.
///
/// # Errors
/// A process listens on it, or the file is not a socket (a link to one included), so it may be data.
pub(crate) fn remove_stale_socket(path: &Path) -> Result<(), SocketFileError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        let why = "the path exists and is not a socket; remove it or choose another";
        return Err(why.to_string().into());
    }
    match connect_nonblocking(path) {
        Ok(peer) => {
            let peer = prefork_os::credentials::peer_credentials(&peer).ok();
            let holder = peer.and_then(|peer| printable_process(peer.pid));
            Err(SocketFileError::InUse { holder })
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| {
                SocketFileError::from_io(format!("cannot remove the stale socket file: {e}"), &e)
            }),
        // A full accept queue means that a process listens.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketFileError::InUse { holder: None })
        }
        Err(e) => {
            Err(SocketFileError::from_io(format!("cannot find out whether it is in use: {e}"), &e))
        }
    }
}

/// Connects without waiting, because a stalled process whose queue is full would block the caller.
fn connect_nonblocking(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    with_unix_addr(path, |addr| socket.connect(addr))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("stale"));
        let (_live, file) = UnixSocketFile::bind(&path, Some(0o600), 16).expect("replaces it");
        assert_eq!(file.mode(), 0o600);
        let error = UnixSocketFile::bind(&path, Some(0o600), 16).expect_err("taken");
        let SocketFileError::InUse { holder: Some(holder) } = error else { panic!("{error}") };
        assert!(holder.starts_with(&format!("pid {}, ", std::process::id())), "{holder}");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_listener_with_a_full_queue_counts_as_in_use() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let _live = UnixSocketFile::bind(&path, None, 0).expect("bind");
        let _queue: Vec<_> =
            std::iter::from_fn(|| connect_nonblocking(&path).ok()).take(9).collect();
        let why = UnixSocketFile::bind(&path, None, 0).expect_err("taken");
        assert_eq!(why, SocketFileError::InUse { holder: None });
    }

    #[test]
    fn regular_files_and_links_are_refused_and_not_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        std::fs::write(&data, "data").expect("write");
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("stale")).expect("stale"));
        std::os::unix::fs::symlink("stale", &link).expect("link");
        for path in [&data, &link] {
            let why = UnixSocketFile::bind(path, None, 16).expect_err("no socket").to_string();
            assert!(why.contains("is not a socket"), "{why}");
        }
        assert_eq!(std::fs::read_to_string(&data).expect("kept"), "data");
        assert!(link.is_symlink() && dir.path().join("stale").exists());
    }

    #[test]
    fn mode_is_independent_of_the_umask_and_can_be_changed() {
        let dir = tempfile::tempdir().expect("dir");
        for mode in [0o666, 0o660, 0o600, 0o777] {
            let path = dir.path().join(format!("{mode:o}"));
            let access = SocketPermissions { mode: Some(mode), ..SocketPermissions::default() };
            let (_socket, file) =
                UnixSocketFile::bind_with_permissions(&path, access, 16).expect("bind");
            assert_eq!(file.mode(), mode);
            let access = SocketPermissions { mode: Some(0o640), ..SocketPermissions::default() };
            file.set_permissions(access).expect("change");
            assert_eq!(file.mode(), 0o640);
        }
    }

    #[test]
    fn a_replaced_file_is_not_in_place() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (_socket, file) = UnixSocketFile::bind(&path, None, 16).expect("bind");
        assert!(file.is_in_place());
        std::fs::remove_file(&path).expect("remove");
        assert!(!file.is_in_place());
        // Most file systems give the same inode number again.
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        assert!(!file.is_in_place());
        drop(file);
        assert!(path.exists(), "the file of another is not removed");
    }

    #[test]
    fn a_missing_directory_is_named_in_the_error() {
        let dir = tempfile::tempdir().expect("dir");
        let why = UnixSocketFile::bind(&dir.path().join("no/s"), None, 16)
            .expect_err("no directory")
            .to_string();
        assert!(why.contains("directory does not exist"), "{why}");
    }

    #[test]
    fn drop_removes_only_the_own_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (_socket, file) = UnixSocketFile::bind(&path, None, 16).expect("bind");
        std::fs::rename(&path, dir.path().join("elsewhere")).expect("move");
        std::fs::write(&path, "another's").expect("write");
        drop(file);
        assert!(path.exists());
    }
}
