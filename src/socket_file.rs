//! The file of a Unix socket: made in one step with its final mode, taken over from a process that was
//! killed, never taken from one that lives, and removed by the process that made it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys;

/// How long a start waits for another one in the same directory. Somebody else may hold its lock for ever,
/// and that must not keep us from starting.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The file of a Unix socket that we made; removed on drop, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
    /// Only this process removes it: a fork has a copy of this value, and no right to it.
    owner: u32,
}

impl SocketFile {
    /// Binds `path` and listens. With a `mode`, the file has it from its first moment; without, the umask
    /// decides. The error is what follows `cannot bind PATH: `.
    pub(crate) fn bind(
        path: &Path,
        mode: Option<u32>,
        backlog: i32,
    ) -> Result<(Socket, SocketFile), String> {
        // Two starts at once: without the lock, the second could find the first bound but not yet listening,
        // take it for dead and remove its file.
        let _lock = lock_directory_of(path);
        remove_if_stale(path)?;
        let bound = bind_and_listen(path, mode, backlog).map_err(|e| e.to_string())?;
        match mode {
            Some(mode) if bound.1.mode()? != mode => Err(format!(
                "its file cannot have mode {mode:o}: set a umask that leaves the owner's rights"
            )),
            _ => Ok(bound),
        }
    }

    /// The file of a socket that another image of process `owner` made.
    pub(crate) fn inherit(path: &Path, owner: u32) -> Option<SocketFile> {
        let inode = std::fs::symlink_metadata(path).ok()?.ino();
        Some(SocketFile { path: path.to_path_buf(), inode, owner })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn mode(&self) -> Result<u32, String> {
        let meta = std::fs::symlink_metadata(&self.path)
            .map_err(|e| format!("its file cannot be checked: {e}"))?;
        Ok(meta.mode() & 0o777)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = self.owner == std::process::id()
            && std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours {
            // Nothing can be done about a failure, and the next start recognises the file as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The kernel gives the file the mode of the socket less the umask: set before bind, it is never wider, not
/// for a moment.
fn bind_and_listen(
    path: &Path,
    mode: Option<u32>,
    backlog: i32,
) -> io::Result<(Socket, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Some(mode) = mode {
        fchmod(&socket, Mode::from_bits_truncate(mode))?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let inode = std::fs::symlink_metadata(path)?.ino();
    let file = SocketFile { path: path.to_path_buf(), inode, owner: std::process::id() };
    socket.listen(backlog)?;
    Ok((socket, file))
}

fn lock_directory_of(path: &Path) -> Option<Flock<File>> {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut file = File::open(directory.unwrap_or(Path::new("."))).ok()?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((again, nix::errno::Errno::EAGAIN)) if Instant::now() < give_up => file = again,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A socket file that nobody answers on was left by a process that was killed: it may go. One that answers is
/// in use, and a file that is no socket is somebody's data, be it a link to a socket.
pub(crate) fn remove_if_stale(path: &Path) -> Result<(), String> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err("the path exists and is not a socket; remove it or choose another".to_string());
    }
    match probe(path) {
        Ok(peer) => Err(match sys::peer::peer(&peer).ok().and_then(|peer| peer.process()) {
            Some(holder) => format!("address already in use (held by {holder})"),
            None => "address already in use".to_string(),
        }),
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
fn probe(path: &Path) -> io::Result<Socket> {
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
        let (_live, file) = SocketFile::bind(&path, Some(0o600), 16).expect("replaces it");
        assert_eq!(file.mode(), Ok(0o600));
        let why = SocketFile::bind(&path, Some(0o600), 16).expect_err("taken");
        assert!(why.starts_with("address already in use (held by pid "), "{why}");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_holder_that_accepts_nobody_is_alive_all_the_same() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let _live = SocketFile::bind(&path, None, 0).expect("bind");
        let _queue: Vec<_> = std::iter::from_fn(|| probe(&path).ok()).take(9).collect();
        let why = SocketFile::bind(&path, None, 0).expect_err("taken");
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
            let why = SocketFile::bind(path, None, 16).expect_err("no socket");
            assert!(why.contains("is not a socket"), "{why}");
        }
        assert_eq!(std::fs::read_to_string(&data).expect("kept"), "data");
        assert!(link.is_symlink() && dir.path().join("stale").exists());
    }

    #[test]
    fn only_the_file_that_we_made_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (_socket, file) = SocketFile::bind(&path, None, 16).expect("bind");
        std::fs::rename(&path, dir.path().join("elsewhere")).expect("move");
        std::fs::write(&path, "another's").expect("write");
        drop(file);
        assert!(path.exists());
    }
}
