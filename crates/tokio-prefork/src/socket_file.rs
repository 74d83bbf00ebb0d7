//! The file of a Unix socket: made in one step with its final mode, taken over from a process that was
//! killed, never taken from one that lives, and removed by the process that made it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::text::printable_process;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fchmod, umask};
use nix::unistd::{Gid, Uid, fchownat};
use socket2::{Domain, SockAddr, Socket, Type};

/// How long a start waits for another one in the same directory. Somebody else may hold its lock for ever,
/// and that must not keep us from starting.
const DIRECTORY_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Mode, owner and group of a file, in numbers. `None` leaves a value as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SocketPermissions {
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// The file of a Unix socket; removed on drop if we made it and it is still the same.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    /// Absolute: nobody may find another file there after a change of directory.
    path: PathBuf,
    id: FileIdentity,
    /// Only this process removes it: a fork has a copy of this value, and no right to it. `None`: it is not ours to
    /// remove.
    owner: Option<u32>,
}

/// Tells a file from every other one that is or was at its path. A number of an inode alone is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    /// `None` where the file system does not say.
    created: Option<SystemTime>,
}

impl FileIdentity {
    /// The socket at `path`. A link to one is none.
    fn of_socket_at(path: &Path) -> io::Result<FileIdentity> {
        let meta = std::fs::symlink_metadata(path)?;
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("it is not a socket"));
        }
        Ok(FileIdentity { device: meta.dev(), inode: meta.ino(), created: meta.created().ok() })
    }
}

impl UnixSocketFile {
    /// Binds `path` and listens. With a `mode`, the file has it from its first moment; without, the umask
    /// decides. The error is what follows `cannot bind PATH: `.
    pub(crate) fn bind(
        path: &Path,
        mode: Option<u32>,
        backlog: i32,
    ) -> Result<(Socket, UnixSocketFile), String> {
        UnixSocketFile::bind_with_permissions(
            path,
            SocketPermissions { mode, ..SocketPermissions::default() },
            backlog,
        )
    }

    /// The same with an owner and a group. Nobody can connect before the file has them.
    pub(crate) fn bind_with_permissions(
        path: &Path,
        access: SocketPermissions,
        backlog: i32,
    ) -> Result<(Socket, UnixSocketFile), String> {
        // Two starts at once: without the lock, the second could find the first bound but not yet listening,
        // take it for dead and remove its file.
        let _lock = lock_parent_directory(path);
        remove_stale_socket(path)?;
        let (socket, file) = bind_with_mode(path, access.mode).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "its directory does not exist: make it first".to_string(),
            io::ErrorKind::PermissionDenied => {
                format!("its directory cannot be written by this user ({e})")
            }
            _ => e.to_string(),
        })?;
        file.set_owner(access)?;
        // Until now a client was refused, whatever the rights of the file.
        socket.listen(backlog).map_err(|e| e.to_string())?;
        Ok((socket, file))
    }

    /// The file of a socket that another image of process `owner` made; of one that somebody else made and removes, if
    /// there is no owner.
    pub(crate) fn inherit(path: &Path, owner: Option<u32>) -> Option<UnixSocketFile> {
        let path = std::path::absolute(path).ok()?;
        Some(UnixSocketFile { id: FileIdentity::of_socket_at(&path).ok()?, path, owner })
    }

    /// The file of a socket that another image of this process made, known by its inode: whatever else stands at `path` by
    /// now is not removed.
    pub(crate) fn inherit_by_inode(path: &Path, inode: u64) -> UnixSocketFile {
        let gone = FileIdentity { device: 0, inode, created: None };
        let found = FileIdentity::of_socket_at(path).ok().filter(|found| found.inode == inode);
        let owner = Some(std::process::id());
        UnixSocketFile { path: path.to_path_buf(), id: found.unwrap_or(gone), owner }
    }

    /// Tells this file from another one at the same path.
    pub(crate) fn inode(&self) -> u64 {
        self.id.inode
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path still leads to it.
    pub(crate) fn is_in_place(&self) -> bool {
        FileIdentity::of_socket_at(&self.path).is_ok_and(|found| found == self.id)
    }

    /// Gives the file other rights, for clients that connect from now on. The error says which could not be given.
    pub(crate) fn set_permissions(&self, access: SocketPermissions) -> Result<(), String> {
        self.set_owner(access)?;
        let Some(mode) = access.mode else { return Ok(()) };
        let failed = |e: nix::Error| format!("its file cannot get mode {mode:o}: {e}");
        // A path of its own for the very file that was checked: a link that somebody puts there is not followed.
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

    /// The file itself, whatever its path leads to later.
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
        if self.owner == Some(std::process::id()) && self.is_in_place() {
            // Nothing can be done about a failure, and the next start recognises the file as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The kernel gives the file the mode of the socket less the umask, so both are set before bind: the file never has
/// another one, not for a moment.
fn bind_with_mode(path: &Path, mode: Option<u32>) -> io::Result<(Socket, UnixSocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let addr = SockAddr::unix(path)?;
    let before = match mode {
        Some(mode) => {
            fchmod(&socket, Mode::from_bits_truncate(mode))?;
            Some(umask(Mode::empty()))
        }
        None => None,
    };
    let bound = socket.bind(&addr);
    before.map(umask);
    bound?;
    let path = std::path::absolute(path)?;
    let file = UnixSocketFile {
        id: FileIdentity::of_socket_at(&path)?,
        path,
        owner: Some(std::process::id()),
    };
    Ok((socket, file))
}

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

/// A socket file that nobody answers on was left by a process that was killed: it may go. One that answers is
/// in use, and a file that is no socket is somebody's data, be it a link to a socket.
pub(crate) fn remove_stale_socket(path: &Path) -> Result<(), String> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err("the path exists and is not a socket; remove it or choose another".to_string());
    }
    match connect_nonblocking(path) {
        Ok(peer) => Err(
            match prefork_os::credentials::peer_credentials(&peer)
                .ok()
                .and_then(|peer| printable_process(peer.pid))
            {
                Some(holder) => format!("address already in use (held by {holder})"),
                None => "address already in use".to_string(),
            },
        ),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| format!("cannot remove the stale socket file: {e}")),
        // A full queue means that somebody listens.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err("address already in use".to_string())
        }
        Err(e) => Err(format!("cannot tell whether it is in use: {e}")),
    }
}

/// Connects without waiting: a frozen process whose queue is full must not freeze us, too.
fn connect_nonblocking(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_replaced_and_a_live_one_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("stale"));
        let (_live, file) = UnixSocketFile::bind(&path, Some(0o600), 16).expect("replaces it");
        assert_eq!(file.mode(), 0o600);
        let why = UnixSocketFile::bind(&path, Some(0o600), 16).expect_err("taken");
        assert!(why.starts_with("address already in use (held by pid "), "{why}");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_holder_that_accepts_nobody_is_alive_all_the_same() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let _live = UnixSocketFile::bind(&path, None, 0).expect("bind");
        let _queue: Vec<_> =
            std::iter::from_fn(|| connect_nonblocking(&path).ok()).take(9).collect();
        let why = UnixSocketFile::bind(&path, None, 0).expect_err("taken");
        assert_eq!(why, "address already in use");
    }

    #[test]
    fn data_and_links_are_refused_and_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        std::fs::write(&data, "data").expect("write");
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("stale")).expect("stale"));
        std::os::unix::fs::symlink("stale", &link).expect("link");
        for path in [&data, &link] {
            let why = UnixSocketFile::bind(path, None, 16).expect_err("no socket");
            assert!(why.contains("is not a socket"), "{why}");
        }
        assert_eq!(std::fs::read_to_string(&data).expect("kept"), "data");
        assert!(link.is_symlink() && dir.path().join("stale").exists());
    }

    #[test]
    fn the_mode_is_exact_whatever_the_umask_and_can_be_changed() {
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
    fn a_file_that_was_replaced_is_not_in_its_place() {
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
    fn a_directory_that_does_not_exist_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let why =
            UnixSocketFile::bind(&dir.path().join("no/s"), None, 16).expect_err("no directory");
        assert!(why.contains("directory does not exist"), "{why}");
    }

    #[test]
    fn only_the_file_that_we_made_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (_socket, file) = UnixSocketFile::bind(&path, None, 16).expect("bind");
        std::fs::rename(&path, dir.path().join("elsewhere")).expect("move");
        std::fs::write(&path, "another's").expect("write");
        drop(file);
        assert!(path.exists());
    }
}
