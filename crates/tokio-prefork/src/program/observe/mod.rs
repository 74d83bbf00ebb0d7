//! What the kernel shows of a program without its help: its processes, whether it waits for connections on the sockets that
//! it was given, its connections, and what it uses.
//!
//! All of it is a series of moments: processes, descriptors and connections come and go while they are read. A decision that
//! cannot be taken back needs several looks in a row.

mod connections;
mod listening_sockets;
mod open_fds;
mod process_tree;
mod signal_handling;
mod socket_waits;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use prefork_os::process::process_command_name;
use prefork_os::signal::Signal;
use prefork_os::socket_diagnosis::list_tcp_connections;
use prefork_os::socket_name::SocketName;
use prefork_os::tcp_activity::TcpState;

use connections::ConnectionFinder;
use listening_sockets::listening_addresses;
use open_fds::{FdTarget, OpenFd, open_fds};
use socket_waits::find_wait;
use usage::UsageMeter;

pub(crate) use connections::{ConnectionScan, HalfClose, ProgramConnection, Visibility};
pub(crate) use process_tree::descendants;
pub(crate) use signal_handling::SignalHandling;
pub(crate) use socket_waits::WaitKind;
pub(crate) use usage::ProgramUsage;

/// The number of the first listening socket in the program, as with systemd; the others follow.
const FIRST_LISTENER_FD: usize = 3;

/// A listening socket that a program inherits.
#[derive(Debug)]
struct InheritedListener {
    /// This process's copy.
    socket: OwnedFd,
    inode: u64,
    name: SocketName,
}

/// What the processes of a program do with an inherited listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerUse {
    /// A process waits for connections on it.
    Waiting {
        /// The process.
        pid: u32,
        /// How it waits.
        kind: WaitKind,
    },
    /// None waits on it at the moment, but one has a connection that was accepted from it: it is too busy to wait.
    Serving {
        /// A process that has it open.
        pid: u32,
    },
    /// A process has it open, and none waits on it at the moment.
    Open {
        /// A process that has it open.
        pid: u32,
    },
    /// No process has it open.
    Closed,
    /// No process with it was found, but some hide their descriptors from this one.
    Hidden,
}

impl ListenerUse {
    /// Returns whether the program takes connections from the socket.
    pub(crate) fn is_accepting(&self) -> bool {
        matches!(self, ListenerUse::Waiting { .. } | ListenerUse::Serving { .. })
    }
}

/// Observes a program: all descendants of this process, and the listening sockets that they inherit.
#[derive(Debug)]
pub(crate) struct ProgramObserver {
    /// The process whose descendants are observed, with itself if it is another one than this.
    root: u32,
    listeners: Vec<InheritedListener>,
    finder: ConnectionFinder,
    meter: UsageMeter,
}

impl ProgramObserver {
    /// Observes the descendants of this process, which inherit `listeners`. Keeps copies of them.
    ///
    /// # Errors
    /// A descriptor is not a socket, or there is none left for its copy.
    pub(crate) fn new<'a>(
        listeners: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<ProgramObserver> {
        ProgramObserver::with_root(std::process::id(), listeners)
    }

    fn with_root<'a>(
        root: u32,
        listeners: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<ProgramObserver> {
        let listeners = listeners.into_iter();
        let listeners = listeners.map(|fd| InheritedListener::new(fd.try_clone_to_owned()?));
        Ok(ProgramObserver {
            root,
            listeners: listeners.collect::<io::Result<_>>()?,
            finder: ConnectionFinder::default(),
            meter: UsageMeter::default(),
        })
    }

    /// Returns the pids of the program: all descendants of this process. Includes zombies.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let own = (self.root != std::process::id()).then_some(self.root);
        own.into_iter().chain(descendants(self.root)).collect()
    }

    /// Returns what the program does with each inherited listening socket, in their order.
    pub(crate) fn listener_uses(&self) -> Vec<ListenerUse> {
        let mut processes = Vec::new();
        let mut hides = false;
        let pids = self.pids();
        for &pid in &pids {
            match open_fds(pid) {
                Ok(fds) => processes.push((pid, fds)),
                Err(e) => hides |= e.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        let unseen = if hides { ListenerUse::Hidden } else { ListenerUse::Closed };
        let use_of = |listener: &InheritedListener| match find_use(&processes, listener.inode) {
            Some(ListenerUse::Open { pid }) if has_accepted(&pids, listener) => {
                ListenerUse::Serving { pid }
            }
            found => found.unwrap_or(unseen),
        };
        self.listeners.iter().map(use_of).collect()
    }

    /// Returns what the program does instead of accepting from the sockets that it was given. `None` if it accepts from all of them.
    pub(crate) fn explain_unused_listener(&self) -> Option<UnusedListener> {
        let uses = self.listener_uses();
        let at = uses.iter().position(|one| !one.is_accepting())?;
        let (listener_use, listener) = (*uses.get(at)?, self.listeners.get(at)?);
        let own = self.own_listening_sockets();
        let pid = match listener_use {
            ListenerUse::Open { pid } => Some(pid),
            _ => own.first().map(|(pid, _)| *pid).or_else(|| self.pids().first().copied()),
        };
        Some(UnusedListener {
            address: listener.name.clone(),
            fd: FIRST_LISTENER_FD + at,
            listener_use,
            process: pid.map(|pid| (pid, process_command_name(pid).unwrap_or_default())),
            listens_on: own.into_iter().map(|(_, addr)| addr).collect(),
        })
    }

    /// Returns the addresses of listening TCP sockets that processes of the program have opened themselves.
    fn own_listening_sockets(&self) -> Vec<(u32, SocketAddr)> {
        let mut found: Vec<(u32, SocketAddr)> = Vec::new();
        for pid in self.pids() {
            let Ok(fds) = open_fds(pid) else { continue };
            let addresses = listening_addresses(pid);
            for OpenFd { target, .. } in fds {
                let FdTarget::Socket(inode) = target else { continue };
                let Some(addr) = addresses.get(&inode) else { continue };
                let is_inherited = self.listeners.iter().any(|one| one.inode == inode);
                if !is_inherited && !found.iter().any(|(_, other)| other == addr) {
                    found.push((pid, *addr));
                }
            }
        }
        found
    }

    /// Returns what the processes that have an inherited socket open do with `signal`: what the first of them does that is not
    /// prepared for it.
    pub(crate) fn signal_handling(&self, signal: Signal) -> SignalHandling {
        let has_listener = |pid: &u32| {
            let fds = open_fds(*pid).unwrap_or_default();
            let inodes = fds.iter().filter_map(|fd| match fd.target {
                FdTarget::Socket(inode) => Some(inode),
                _ => None,
            });
            inodes.into_iter().any(|inode| self.listeners.iter().any(|one| one.inode == inode))
        };
        let pids = self.pids().into_iter().filter(has_listener);
        let handling = pids.map(|pid| signal_handling::signal_handling(pid, signal));
        handling.min().unwrap_or(SignalHandling::Unknown)
    }

    /// Returns how many connections wait in the accept queues of the inherited TCP sockets.
    fn queued_connections(&self) -> u32 {
        self.listeners.iter().map(InheritedListener::queued_connections).sum()
    }

    /// Returns how many connections wait in the accept queues of the inherited TCP sockets that the program had open in the last look.
    /// It accepts no others any more.
    pub(crate) fn acceptable_connections(&self) -> u32 {
        let closed = self.finder.closed_listeners();
        let open = self.listeners.iter().filter(|one| !closed.contains(&one.inode));
        open.map(InheritedListener::queued_connections).sum()
    }

    /// Looks, and returns how many of the inherited sockets no process of the program has open.
    pub(crate) fn count_closed_listeners(&mut self) -> usize {
        self.connections();
        self.closed_listener_count()
    }

    /// Returns how many of the inherited sockets no process of the program had open in the last look. 0 if some hide what they have.
    pub(crate) fn closed_listener_count(&self) -> usize {
        self.finder.closed_listeners().len()
    }

    /// Returns the clients whose TCP handshakes with a port of the program, or of another worker with this port, are in
    /// progress. Empty if the kernel does not list them.
    pub(crate) fn clients_in_handshake(&self) -> BTreeSet<SocketAddr> {
        let ports: BTreeSet<u16> =
            self.listeners.iter().filter_map(InheritedListener::port).collect();
        let listed = ports.into_iter().filter_map(|port| list_tcp_connections(port).ok()).flatten();
        let in_handshake = listed.filter(|one| one.activity.state == TcpState::Handshake);
        in_handshake.map(|one| one.peer).collect()
    }

    /// Finds the connections of the program, each once, with their activity.
    pub(crate) fn connections(&mut self) -> ConnectionScan {
        self.finder.scan(&self.pids(), &self.listeners)
    }

    /// Makes the program read the end of the stream of `connection`, unless something has happened on it since it was read.
    pub(crate) fn half_close(&mut self, connection: &ProgramConnection) -> HalfClose {
        self.finder.half_close(connection)
    }

    /// Measures what the program uses.
    pub(crate) fn usage(&mut self) -> ProgramUsage {
        let pids = self.pids();
        let queued = self.queued_connections();
        let connections = self.finder.count(&pids, &self.listeners);
        let totals = self.meter.measure(&pids);
        ProgramUsage {
            processes: totals.processes,
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            queued,
            resident_bytes: totals.resident_bytes,
            cpu_time: totals.cpu_time,
        }
    }
}

/// Returns whether a process has a connection that was accepted from `listener`.
fn has_accepted(pids: &[u32], listener: &InheritedListener) -> bool {
    let scan = ConnectionFinder::default().scan(pids, std::slice::from_ref(listener));
    !scan.connections.is_empty()
}

/// Returns what `processes` do with the socket with `inode`. `None` if none of them has it open.
fn find_use(processes: &[(u32, Vec<OpenFd>)], inode: u64) -> Option<ListenerUse> {
    let has_it = |fds: &[OpenFd]| fds.iter().any(|fd| fd.target == FdTarget::Socket(inode));
    let mut owner = None;
    for (pid, fds) in processes.iter().filter(|(_, fds)| has_it(fds)) {
        if let Some(kind) = find_wait(*pid, fds, inode) {
            return Some(ListenerUse::Waiting { pid: *pid, kind });
        }
        owner.get_or_insert(ListenerUse::Open { pid: *pid });
    }
    owner
}

/// An inherited listening socket that a program does not wait on, and what it does instead.
///
/// Displays as a clause such as `python3 (pid 812) does not use the socket for 127.0.0.1:3000: it listens on 0.0.0.0:8000`, and
/// what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnusedListener {
    address: SocketName,
    /// The number of its descriptor in the program.
    fd: usize,
    /// What it does with the socket.
    pub(crate) listener_use: ListenerUse,
    /// The process to name, with its command name.
    process: Option<(u32, Vec<u8>)>,
    /// The addresses of listening sockets that the program has opened itself.
    pub(crate) listens_on: Vec<SocketAddr>,
}

impl fmt::Display for UnusedListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "{} (pid {pid})", name.escape_ascii())?,
            None => f.write_str("the program")?,
        }
        let name = DisplayName(&self.address);
        match self.listener_use {
            _ if !self.listens_on.is_empty() => {
                write!(f, " does not use the socket for {name}: it listens on ")?;
                for (at, addr) in self.listens_on.iter().enumerate() {
                    write!(f, "{}{addr}", if at == 0 { "" } else { ", " })?;
                }
            }
            ListenerUse::Closed => write!(f, " has closed the socket for {name}")?,
            ListenerUse::Hidden => {
                return f.write_str(
                    " hides its descriptors, as it has other rights than prefork; give ready = notify, ready-http or ready-after",
                );
            }
            ListenerUse::Open { .. }
            | ListenerUse::Serving { .. }
            | ListenerUse::Waiting { .. } => {
                write!(f, " does not wait for connections on the socket for {name}")?;
            }
        }
        let fd = self.fd;
        write!(
            f,
            "; make it listen on descriptor {fd} ({{fd}} in its arguments stands for the first)"
        )
    }
}

struct DisplayName<'a>(&'a SocketName);

impl fmt::Display for DisplayName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SocketName::Tcp(addr) => addr.fmt(f),
            SocketName::Unix(Some(path)) => write!(f, "unix:{}", path.escape_ascii()),
            SocketName::Unix(None) => f.write_str("an unnamed Unix socket"),
        }
    }
}
