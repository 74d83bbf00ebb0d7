//! Binding: socket options, the guard against a second start, and the files of Unix sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{ListenAddr, Listener, holder};
use crate::error::{Error, Result};
use crate::sys;

/// The file of a Unix socket that we made; removed on drop, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Makes or takes over the listening socket of `addr`.
pub(super) fn acquire(addr: &ListenAddr, backlog: u32) -> Result<(Listener, Option<SocketFile>)> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let (socket, file) = match addr {
        ListenAddr::Tcp(tcp) => (bind_tcp(*tcp, backlog)?, None),
        ListenAddr::Unix(path) => {
            let (socket, file) = bind_unix(addr, path, backlog)?;
            (socket, Some(file))
        }
        ListenAddr::Fd(number) => (take_over(addr, *number)?, None),
    };
    Ok((listening(addr, socket)?, file))
}

/// Takes over a socket that was made for `addr` by another image of this process, with its file.
pub(super) fn inherit(addr: &ListenAddr, fd: OwnedFd) -> Result<(Listener, Option<SocketFile>)> {
    let file = match addr {
        ListenAddr::Unix(path) => std::fs::symlink_metadata(path)
            .ok()
            .map(|meta| SocketFile { path: path.clone(), inode: meta.ino() }),
        ListenAddr::Tcp(_) | ListenAddr::Fd(_) => None,
    };
    Ok((listening(addr, Socket::from(fd))?, file))
}

fn listening(addr: &ListenAddr, socket: Socket) -> Result<Listener> {
    // Shared by all processes that inherit the socket: O_NONBLOCK belongs to the open file description.
    socket
        .set_nonblocking(true)
        .map_err(|e| Error::system(format!("make {addr} non-blocking"), e))?;
    let local =
        socket.local_addr().map_err(|e| Error::system(format!("read the name of {addr}"), e))?;
    let local = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => format!("http://{tcp}"),
        (None, Some(path)) => format!("unix:{}", path.display()),
        (None, None) => addr.to_string(),
    };
    Ok(Listener { addr: addr.clone(), local, socket })
}

/// SO_REUSEPORT is set only *after* bind and listen. With it set before, the kernel would let a second start
/// of the same user share the port and silently take half the traffic; a probe before would leave a race.
/// This way the bind itself is the guard, and the socket is a reuseport one from then on.
fn bind_tcp(addr: SocketAddr, backlog: i32) -> Result<Socket> {
    let bind = || -> io::Result<Socket> {
        let domain = Domain::for_address(addr);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            // [::] is dual stack whatever net.ipv6.bindv6only says; any other address is IPv6 anyway.
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        // Lets us bind while connections of a former run are in TIME_WAIT, never beside a living listener.
        socket.set_reuse_address(true)?;
        // Inherited by every accepted connection: saves a system call for each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&addr.into())?;
        socket.listen(backlog)?;
        socket.set_reuse_port(true)?;
        Ok(socket)
    };
    bind().map_err(|e| Error::bind(addr, explain(&e, addr)))
}

fn explain(error: &io::Error, addr: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder::of_port(addr) {
            Some(holder) => format!("address already in use (held by {holder})"),
            None => "address already in use".to_string(),
        },
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => format!(
            "permission denied: ports below 1024 need root, CAP_NET_BIND_SERVICE or a socket from systemd \
             ({error})"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this machine has this address ({error})")
        }
        _ => error.to_string(),
    }
}

fn bind_unix(addr: &ListenAddr, path: &Path, backlog: i32) -> Result<(Socket, SocketFile)> {
    remove_if_stale(addr, path)?;
    let bind = || -> io::Result<(Socket, SocketFile)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(backlog)?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        Ok((socket, SocketFile { path: path.to_path_buf(), inode }))
    };
    bind().map_err(|e| Error::bind(addr, e))
}

/// A socket file that nobody answers on was left by a process that was killed: it may go. One that answers is
/// in use, and a file that is no socket is somebody's data.
fn remove_if_stale(addr: &ListenAddr, path: &Path) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Error::bind(
            addr,
            "the path exists and is not a socket; remove it or choose another",
        ));
    }
    match UnixStream::connect(path) {
        Ok(peer) => Err(Error::bind(
            addr,
            match holder::of_peer(&peer) {
                Some(holder) => format!("address already in use (held by {holder})"),
                None => "address already in use".to_string(),
            },
        )),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| Error::bind(addr, format!("cannot remove the stale socket file: {e}"))),
        // A full queue means that somebody listens.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::bind(addr, "address already in use"))
        }
        Err(e) => Err(Error::bind(addr, format!("cannot tell whether it is in use: {e}"))),
    }
}

/// A socket that our parent opened: it must be a listening stream socket, and is otherwise left as it is.
fn take_over(addr: &ListenAddr, number: i32) -> Result<Socket> {
    let fd = sys::fd::adopt(number).map_err(|e| {
        Error::bind(addr, format!("descriptor {number} was not passed to this process ({e})"))
    })?;
    let socket = Socket::from(fd);
    let is_stream = socket.r#type().is_ok_and(|t| t == Type::STREAM);
    let listens = socket.is_listener().unwrap_or(false);
    if !is_stream || !listens {
        return Err(Error::bind(addr, "the descriptor is not a listening stream socket"));
    }
    Ok(socket)
}

impl SocketFile {
    /// Somebody else removes it.
    pub(super) fn disown(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours {
            // Nothing can be done about a failure, and the next start recognises the file as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> ListenAddr {
        "127.0.0.1:0".parse().expect("address")
    }

    #[test]
    fn the_socket_is_a_reuseport_one_with_nodelay() {
        let (listener, _) = acquire(&loopback(), 16).expect("bind");
        assert!(listener.socket.reuse_port().expect("option"));
        assert!(listener.socket.tcp_nodelay().expect("option"));
        assert!(listener.local.starts_with("http://127.0.0.1:"), "{}", listener.local);
    }

    #[test]
    fn a_second_start_is_refused_and_told_who_holds_the_port() {
        let (first, _) = acquire(&loopback(), 16).expect("bind");
        let again = first.local.trim_start_matches("http://").parse().expect("address");
        let error = acquire(&again, 16).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("already in use (held by pid {pid}, ")), "{error}");
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let addr: ListenAddr = format!("unix:{}", path.display()).parse().expect("address");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("stale"));
        let (_live, file) = acquire(&addr, 16).expect("replaces the stale one");
        let error = acquire(&addr, 16).expect_err("taken").to_string();
        assert!(error.contains("already in use (held by pid "), "{error}");
        drop(file);
        assert!(!path.exists());
        std::fs::write(&path, "data").expect("write");
        assert!(acquire(&addr, 16).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "data");
    }
}
