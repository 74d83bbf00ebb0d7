//! The connections of a program: the sockets that its processes have accepted from the inherited listening sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use prefork_os::child::PidFd;
use prefork_os::socket::{accept_queue, is_unix_stream};
use prefork_os::socket_diagnosis::list_tcp_connections;
use prefork_os::socket_name::{SocketName, local_name};
use prefork_os::tcp_activity::{TcpActivity, TcpState, tcp_activity};

use super::InheritedListener;
use super::open_fds::{FdTarget, open_fds, socket_inode};

/// A connection of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProgramConnection {
    /// The inode of its socket, which identifies it as long as it is open.
    pub(crate) inode: u64,
    /// A process that has it open; others may share it.
    pid: u32,
    /// The number of its descriptor there.
    fd: i32,
    /// What has happened on it. `None` for a Unix socket, or if it could not be read.
    pub(crate) activity: Option<TcpActivity>,
}

#[cfg(test)]
impl ProgramConnection {
    /// Returns a connection that no process has.
    pub(crate) fn simulated(inode: u64, activity: Option<TcpActivity>) -> ProgramConnection {
        ProgramConnection { inode, pid: u32::MAX, fd: -1, activity }
    }
}

/// How much could be seen of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// All, and they can be half-closed.
    Full,
    /// All, but their sockets cannot be copied (`pidfd_getfd`), and so not be half-closed.
    ReadOnly,
    /// Some or all processes of the program hide their descriptors, so there may be more connections.
    Partial,
}

/// The outcome of [`ConnectionFinder::half_close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfClose {
    /// The program reads the end of the stream now.
    Done,
    /// Something has happened on the connection since the look, or it is gone. Nothing was done.
    Changed,
    /// The socket cannot be copied.
    NotPermitted,
}

/// Finds the connections of processes and remembers what their sockets are.
#[derive(Debug, Default)]
pub(super) struct ConnectionFinder {
    processes: BTreeMap<u32, PidFd>,
    /// By inode, whether a socket was accepted from a listener. The local address of a socket that was accepted never changes.
    accepted: BTreeMap<u64, bool>,
    /// The inodes of the listeners that no process had open in the last look. Empty if some hide what they have.
    closed_listeners: BTreeSet<u64>,
}

/// What a scan has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionScan {
    pub(crate) connections: Vec<ProgramConnection>,
    pub(crate) visibility: Visibility,
}

impl ConnectionFinder {
    /// Finds the connections that processes `pids` have accepted from `listeners`, each once, with their activity.
    pub(super) fn scan(&mut self, pids: &[u32], listeners: &[InheritedListener]) -> ConnectionScan {
        let (sockets, visibility) = self.find_sockets(pids, listeners);
        self.inspect_all(sockets.into_values(), listeners, visibility)
    }

    /// Counts the connections that [`scan`](Self::scan) would find. Copies only sockets that it has not seen before.
    pub(super) fn count(&mut self, pids: &[u32], listeners: &[InheritedListener]) -> usize {
        let (sockets, visibility) = self.find_sockets(pids, listeners);
        let (known, new): (BTreeMap<_, _>, BTreeMap<_, _>) =
            sockets.into_iter().partition(|(inode, _)| self.accepted.contains_key(inode));
        let known = known.keys().filter(|inode| self.accepted.get(inode) == Some(&true)).count();
        known + self.inspect_all(new.into_values(), listeners, visibility).connections.len()
    }

    /// Returns the inodes of the listeners that no process had open in the last look.
    pub(super) fn closed_listeners(&self) -> &BTreeSet<u64> {
        &self.closed_listeners
    }

    /// Finds the sockets of processes `pids` other than `listeners`, by inode, and forgets what was known of others.
    fn find_sockets(
        &mut self,
        pids: &[u32],
        listeners: &[InheritedListener],
    ) -> (BTreeMap<u64, ProgramConnection>, Visibility) {
        self.processes.retain(|pid, _| pids.contains(pid));
        let mut sockets: BTreeMap<u64, ProgramConnection> = BTreeMap::new();
        let mut visibility = Visibility::Full;
        for &pid in pids {
            match open_fds(pid) {
                Ok(fds) => {
                    for (fd, target) in fds.into_iter().map(|fd| (fd.number, fd.target)) {
                        let FdTarget::Socket(inode) = target else { continue };
                        let found = ProgramConnection { inode, pid, fd, activity: None };
                        sockets.entry(inode).or_insert(found);
                    }
                }
                // A zombie has no descriptors, and a process that has exited no directory.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !is_zombie(pid) => {
                    visibility = Visibility::Partial;
                }
                Err(_) => {}
            }
        }
        self.closed_listeners.clear();
        for listener in listeners {
            if sockets.remove(&listener.inode).is_none() && visibility == Visibility::Full {
                self.closed_listeners.insert(listener.inode);
            }
        }
        self.accepted.retain(|inode, _| sockets.contains_key(inode));
        (sockets, visibility)
    }

    /// Reads the activity of those of `sockets` that are connections.
    fn inspect_all(
        &mut self,
        sockets: impl Iterator<Item = ProgramConnection>,
        listeners: &[InheritedListener],
        mut visibility: Visibility,
    ) -> ConnectionScan {
        let mut connections = Vec::new();
        let mut uncopyable = Vec::new();
        for mut connection in sockets {
            match self.inspect(&connection, listeners) {
                Ok(Some(activity)) => {
                    connection.activity = activity;
                    connections.push(connection);
                }
                Ok(None) => {}
                Err(e) if is_not_permitted(&e) => uncopyable.push(connection),
                // The descriptor or the process is gone, or this process is out of descriptors for a moment.
                Err(_) => {}
            }
        }
        if !uncopyable.is_empty() {
            visibility = match list_uncopyable(uncopyable, listeners) {
                Ok(listed) if visibility == Visibility::Full => {
                    connections.extend(listed);
                    Visibility::ReadOnly
                }
                Ok(listed) => {
                    connections.extend(listed);
                    visibility
                }
                Err(_) => Visibility::Partial,
            };
        }
        ConnectionScan { connections, visibility }
    }

    /// Returns the activity of a socket, or `None` if it was not accepted from a listener.
    fn inspect(
        &mut self,
        socket: &ProgramConnection,
        listeners: &[InheritedListener],
    ) -> io::Result<Option<Option<TcpActivity>>> {
        if self.accepted.get(&socket.inode) == Some(&false) {
            return Ok(None);
        }
        let copy = self.copy(socket)?;
        let accepted = match self.accepted.get(&socket.inode) {
            Some(accepted) => *accepted,
            None => {
                let accepted = is_accepted(&copy, listeners);
                self.accepted.insert(socket.inode, accepted);
                accepted
            }
        };
        Ok(accepted.then(|| tcp_activity(&copy).ok()))
    }

    /// Copies the descriptor of a connection. Drop the copy at once: the connection stays open as long as it lives.
    fn copy(&mut self, socket: &ProgramConnection) -> io::Result<OwnedFd> {
        use std::collections::btree_map::Entry;
        let process = match self.processes.entry(socket.pid) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(PidFd::open(socket.pid)?),
        };
        let copy = process.duplicate_fd(socket.fd).inspect_err(|e| {
            // Another process may have the pid now.
            if e.raw_os_error() == Some(libc::ESRCH) {
                self.processes.remove(&socket.pid);
            }
        })?;
        // The program may have closed it and opened another file under the same number.
        if socket_inode(&copy)? != socket.inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(copy)
    }

    /// Makes the program read the end of the stream, if nothing has happened on the connection since the look.
    ///
    /// What arrives in the moment between this look and the program's close is lost, as at each end of a kept connection.
    pub(super) fn half_close(&mut self, connection: &ProgramConnection) -> HalfClose {
        let copy = match self.copy(connection) {
            Ok(copy) => copy,
            Err(e) if is_not_permitted(&e) => return HalfClose::NotPermitted,
            Err(_) => return HalfClose::Changed,
        };
        let (Ok(now), Some(then)) = (tcp_activity(&copy), connection.activity) else {
            return HalfClose::Changed;
        };
        let is_same = now.unread_bytes == 0
            && now.received_bytes == then.received_bytes
            && now.sent_bytes == then.sent_bytes
            && now.state == TcpState::Established;
        if !is_same {
            return HalfClose::Changed;
        }
        match socket2::SockRef::from(&copy).shutdown(std::net::Shutdown::Read) {
            Ok(()) => HalfClose::Done,
            Err(_) => HalfClose::Changed,
        }
    }
}

/// Returns whether `socket` has the local address of one of `listeners`, and does not listen itself.
fn is_accepted(socket: &OwnedFd, listeners: &[InheritedListener]) -> bool {
    let Ok(name) = local_name(socket) else { return false };
    if !listeners.iter().any(|listener| is_local_name_of(&name, &listener.name)) {
        return false;
    }
    // A UDP socket may have the same port.
    let is_stream = is_unix_stream(socket).is_ok();
    let listens = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::AcceptConn);
    is_stream && listens == Ok(false)
}

/// Returns whether a connection that was accepted on `listener` can have the local name `name`.
fn is_local_name_of(name: &SocketName, listener: &SocketName) -> bool {
    let canonical = |addr: &SocketAddr| (addr.ip().to_canonical(), addr.port());
    match (name, listener) {
        (SocketName::Tcp(name), SocketName::Tcp(listener)) => {
            let (ip, port) = canonical(name);
            let (listener_ip, listener_port) = canonical(listener);
            port == listener_port && (ip == listener_ip || listener_ip.is_unspecified())
        }
        (SocketName::Unix(Some(name)), SocketName::Unix(Some(listener))) => name == listener,
        _ => false,
    }
}

/// Lists those of `sockets` that are connections of the ports of `listeners`, as `sock_diag` shows them.
fn list_uncopyable(
    sockets: Vec<ProgramConnection>,
    listeners: &[InheritedListener],
) -> io::Result<Vec<ProgramConnection>> {
    let mut ports: Vec<u16> = listeners.iter().filter_map(InheritedListener::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut activities = BTreeMap::new();
    for port in ports {
        let listed = list_tcp_connections(port)?;
        activities.extend(listed.into_iter().map(|one| (one.inode, one.activity)));
    }
    let with_activity = sockets.into_iter().filter_map(|socket| {
        let activity = *activities.get(&socket.inode)?;
        Some(ProgramConnection { activity: Some(activity), ..socket })
    });
    Ok(with_activity.collect())
}

/// Returns whether `pidfd_getfd` is refused: by Yama, a seccomp filter, or for a process with more rights than this one.
fn is_not_permitted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

fn is_zombie(pid: u32) -> bool {
    matches!(prefork_os::process::process_state(pid), None | Some('Z' | 'X'))
}

impl InheritedListener {
    /// Describes `socket`, of which this process has a copy.
    pub(super) fn new(socket: OwnedFd) -> io::Result<InheritedListener> {
        let inode = socket_inode(socket.as_fd())?;
        let name = local_name(&socket)?;
        Ok(InheritedListener { socket, inode, name })
    }

    /// Returns how many connections wait to be accepted. 0 for a Unix socket, which does not tell.
    pub(super) fn queued_connections(&self) -> u32 {
        accept_queue(&self.socket).map_or(0, |queue| queue.depth)
    }

    /// Returns its port. `None` for a Unix socket.
    pub(super) fn port(&self) -> Option<u16> {
        match &self.name {
            SocketName::Tcp(addr) => Some(addr.port()),
            SocketName::Unix(_) => None,
        }
    }
}
