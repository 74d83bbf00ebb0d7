//! Finds the open descriptors of this process that several processes cannot use at the same time: connected sockets, epoll and
//! io_uring instances. A fork duplicates them.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Type};

use crate::credentials::peer_credentials;
use crate::fd::is_inheritable;

/// An open descriptor that several processes cannot use at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnshareableFd {
    /// The number of the descriptor.
    pub fd: RawFd,
    /// What it is.
    pub kind: UnshareableKind,
    /// Whether it is close-on-exec, as everything that Rust opens. What this process was started with never is.
    pub is_close_on_exec: bool,
    /// The inode of the socket; 0 for other descriptors.
    pub inode: u64,
}

/// What an [`UnshareableFd`] is. Displays as `TCP connection to 10.0.0.5:5432`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnshareableKind {
    /// A TCP connection to this peer.
    Tcp(SocketAddr),
    /// A UDP socket that is connected to this peer.
    Udp(SocketAddr),
    /// A connected Unix stream or sequenced-packet socket.
    Unix(UnixPeer),
    /// A Unix datagram socket that is connected to this peer.
    UnixDatagram(UnixPeer),
    /// An epoll instance that watches this number of descriptors, such as that of an async runtime.
    Epoll(usize),
    /// An io_uring instance.
    IoUring,
}

/// The other end of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixPeer {
    /// A socket with this file.
    Path(PathBuf),
    /// A socket with this abstract name.
    Abstract(String),
    /// A socket without a name, in this process: a pair, as signal handlers and runtimes use it.
    Own,
    /// A socket without a name, in the process with this pid; 0 if it is unknown.
    Process(u32),
}

impl fmt::Display for UnshareableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnshareableKind::Tcp(peer) => write!(f, "TCP connection to {peer}"),
            UnshareableKind::Udp(peer) => write!(f, "UDP socket connected to {peer}"),
            UnshareableKind::Unix(UnixPeer::Own) => {
                f.write_str("pair of Unix sockets, as async runtimes and signal handlers use it")
            }
            UnshareableKind::Unix(peer) => write!(f, "Unix connection to {peer}"),
            UnshareableKind::UnixDatagram(peer) => {
                write!(f, "Unix datagram socket connected to {peer}")
            }
            UnshareableKind::Epoll(1) => {
                f.write_str("epoll instance, as async runtimes use it, with 1 descriptor")
            }
            UnshareableKind::Epoll(watched) => {
                write!(f, "epoll instance, as async runtimes use it, with {watched} descriptors")
            }
            UnshareableKind::IoUring => f.write_str("io_uring instance"),
        }
    }
}

impl fmt::Display for UnixPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnixPeer::Path(path) => path.display().fmt(f),
            UnixPeer::Abstract(name) => write!(f, "@{name}"),
            UnixPeer::Own => f.write_str("this process"),
            UnixPeer::Process(0) => f.write_str("an unknown process"),
            UnixPeer::Process(pid) => write!(f, "pid {pid}"),
        }
    }
}

/// Finds the descriptors from 3 up that several processes cannot use at the same time, except those that are the same sockets
/// as the standard streams. Returns them in order.
///
/// # Errors
///
/// `/proc/self/fd` is not readable.
pub fn find_unshareable_fds() -> io::Result<Vec<UnshareableFd>> {
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    let streams: Vec<u64> = (0..=2).filter_map(socket_inode).collect();
    let found = numbers.into_iter().filter(|fd| *fd >= 3).filter_map(describe_fd);
    Ok(found.filter(|one| one.inode == 0 || !streams.contains(&one.inode)).collect())
}

/// Returns whether process `pid` has the socket with this inode open. False if `/proc` does not show its descriptors.
pub fn process_has_socket(pid: u32, inode: u64) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.any(|target| target.to_str() == Some(&format!("socket:[{inode}]")))
}

/// Returns the inode of socket `fd`; `None` if it is not a socket.
fn socket_inode(fd: RawFd) -> Option<u64> {
    parse_socket_inode(&std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?)
}

fn parse_socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Describes descriptor `fd`; `None` if processes may share it, or if it is closed.
fn describe_fd(fd: RawFd) -> Option<UnshareableFd> {
    let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let inode = parse_socket_inode(&target).unwrap_or(0);
    let kind = match target.to_str()? {
        "anon_inode:[eventpoll]" => UnshareableKind::Epoll(count_watched_fds(fd)),
        "anon_inode:[io_uring]" => UnshareableKind::IoUring,
        _ if inode != 0 => describe_socket(fd)?,
        _ => return None,
    };
    Some(UnshareableFd { fd, kind, is_close_on_exec: !is_inheritable(fd), inode })
}

/// Returns how many descriptors an epoll instance watches.
fn count_watched_fds(epoll: RawFd) -> usize {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
    info.lines().filter(|line| line.starts_with("tfd:")).count()
}

/// Describes a socket; `None` if it is not connected, or of another kind than those that connect to a peer.
fn describe_socket(fd: RawFd) -> Option<UnshareableKind> {
    // SAFETY: the descriptor was open a moment ago and is used for queries only. If another thread closes it meanwhile, they
    // fail or describe the descriptor that has taken its number.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = SockRef::from(&fd);
    let peer = socket.peer_addr().ok()?;
    let is_datagram = socket.r#type().ok()? == Type::DGRAM;
    match socket.domain().ok()? {
        Domain::IPV4 | Domain::IPV6 => {
            let peer = peer.as_socket()?;
            Some(if is_datagram { UnshareableKind::Udp(peer) } else { UnshareableKind::Tcp(peer) })
        }
        Domain::UNIX => {
            let peer = unix_peer(&peer, fd);
            Some(match is_datagram {
                true => UnshareableKind::UnixDatagram(peer),
                false => UnshareableKind::Unix(peer),
            })
        }
        _ => None,
    }
}

fn unix_peer(peer: &SockAddr, fd: BorrowedFd<'_>) -> UnixPeer {
    if let Some(path) = peer.as_pathname() {
        return UnixPeer::Path(path.to_path_buf());
    }
    if let Some(name) = peer.as_abstract_namespace() {
        return UnixPeer::Abstract(String::from_utf8_lossy(name).into_owned());
    }
    match peer_credentials(fd).map_or(0, |peer| peer.pid) {
        pid if pid == std::process::id() => UnixPeer::Own,
        pid => UnixPeer::Process(pid),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// Returns what is said about descriptor `fd`.
    fn found(fd: impl AsFd) -> Option<UnshareableFd> {
        let number = fd.as_fd().as_raw_fd();
        find_unshareable_fds().expect("/proc").into_iter().find(|one| one.fd == number)
    }

    fn found_text(fd: impl AsFd) -> Option<String> {
        found(fd).map(|found| found.kind.to_string())
    }

    #[test]
    fn connections_are_found_with_their_peers_and_listeners_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let stream = TcpStream::connect(addr).expect("connect");
        assert_eq!(found_text(&stream), Some(format!("TCP connection to {addr}")));
        assert!(found(&stream).is_some_and(|one| one.is_close_on_exec && one.inode != 0));
        assert_eq!(found_text(&listener), None);
        let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(found_text(&udp), None);
        udp.connect(addr).expect("connect");
        assert_eq!(found_text(&udp), Some(format!("UDP socket connected to {addr}")));
    }

    #[test]
    fn unix_connections_are_found_with_path_or_pid() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let stream = UnixStream::connect(&path).expect("connect");
        assert_eq!(found_text(&stream), Some(format!("Unix connection to {}", path.display())));
        assert_eq!(found_text(&listener), None);
        let (one, _other) = UnixStream::pair().expect("pair");
        assert_eq!(found(&one).map(|one| one.kind), Some(UnshareableKind::Unix(UnixPeer::Own)));
    }

    #[test]
    fn epoll_instances_are_found_and_files_and_pipes_are_not() {
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)
            .expect("epoll");
        let (reader, _writer) = std::io::pipe().expect("pipe");
        epoll.add(&reader, nix::sys::epoll::EpollEvent::empty()).expect("watch");
        let epoll: OwnedFd = epoll.0;
        assert_eq!(found(&epoll).map(|one| one.kind), Some(UnshareableKind::Epoll(1)));
        assert_eq!(found_text(&reader), None);
        assert_eq!(found_text(std::fs::File::open("/proc/self/stat").expect("file")), None);
    }

    #[test]
    fn sockets_of_another_process_are_recognized() {
        let (one, other) = UnixStream::pair().expect("pair");
        let inode = found(&one).expect("found").inode;
        let mut child = std::process::Command::new("cat");
        let child = child.stdin(OwnedFd::from(one)).stdout(std::process::Stdio::null()).spawn();
        let mut child = child.expect("cat");
        assert!(process_has_socket(child.id(), inode));
        assert!(!process_has_socket(child.id(), inode + 1));
        drop(other);
        child.wait().expect("end");
    }
}
