//! Listening sockets that refuse connections for a while, because no worker would accept them.
//!
//! `shutdown(2)` ends the listening of a socket that stays open and bound: clients are refused, and no other program can
//! take the address. `listen(2)` begins it again. A Unix socket cannot listen a second time, so it is bound anew; its
//! file stays until then.
//!
//! Sockets that another process made, or keeps for the next primary, are left alone: they listen on behalf of that
//! process too. What connects there waits, for the next worker or the next primary.

use std::io;
use std::net::{Shutdown, SocketAddr};

use super::{
    BoundAddr, DROP_SYN_FILTER, ListenAddr, Listener, ListenerSet, SocketKeeper, bind_socket,
};
use crate::error::{Error, Result};

impl Listener {
    /// Returns whether this process alone decides that the socket does not listen any more.
    fn may_stop_listening(&self) -> bool {
        self.keeper == SocketKeeper::Primary && !matches!(self.addr, ListenAddr::Fd(_))
    }

    /// Binds the address again that the socket had when it listened: the kernel takes back a port that it chose itself.
    fn bind_again(&self) -> io::Result<()> {
        let Some(local) = self.local_tcp().filter(|_| self.has_chosen_port()) else {
            return Ok(());
        };
        self.socket.set_reuse_address(false)?;
        match self.socket.bind(&local.into()) {
            // Connections of workers that have exited use the port, or other sockets of the reuseport group do.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                self.socket.set_reuse_address(true)?;
                self.socket.bind(&local.into())
            }
            // Only the first socket of a group has asked for any port.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    /// Makes a TCP socket listen again that was shut down, in its reuseport group.
    pub(super) fn listen_again(&self, backlog: u32) -> Result<()> {
        self.bind_again().map_err(|e| {
            Error::system(
                format!("bind the socket at {} again, which was shut down", self.local),
                e,
            )
        })?;
        bind_socket::start_listening(self, backlog)
    }

    fn local_tcp(&self) -> Option<SocketAddr> {
        match self.local {
            BoundAddr::Http(tcp) => Some(tcp),
            BoundAddr::Unix(_) | BoundAddr::Unnamed(_) => None,
        }
    }

    fn has_chosen_port(&self) -> bool {
        matches!(&self.addr, ListenAddr::Tcp(addr) if addr.port() == 0)
    }

    /// Keeps other programs from binding the address, on which nothing listens: with either option they could.
    fn guard_address(&self) -> io::Result<()> {
        if self.is_unix() {
            return Ok(());
        }
        self.socket.set_reuse_port(false)?;
        self.socket.set_reuse_address(false)
    }
}

impl ListenerSet {
    /// Makes the kernel drop new connections to TCP sockets, as the last workers empty the accept queues. Clients repeat
    /// their SYN after a second.
    pub(crate) fn hold_connections(&self) {
        for listener in self.listeners.iter().filter(|one| one.may_stop_listening()) {
            if !listener.is_unix() {
                // Without the filter, a connection that comes after the last accept is reset.
                let _ = listener.socket.attach_filter(&DROP_SYN_FILTER);
            }
        }
    }

    /// Makes the kernel refuse connections, and returns the addresses where it does. Errors are passed to `report`.
    pub(crate) fn refuse_connections(
        &self,
        mut report: impl FnMut(&Listener, &io::Error),
    ) -> Vec<String> {
        let mut refused = Vec::new();
        let ours: Vec<&Listener> =
            self.listeners.iter().filter(|one| one.may_stop_listening()).collect();
        for listener in &ours {
            match listener.socket.shutdown(Shutdown::Both) {
                Ok(()) => refused.push(listener.local.to_string()),
                Err(e) => report(listener, &e),
            }
        }
        // When none of a group listens any more: a member that does would be in the way.
        for step in [Listener::bind_again, Listener::guard_address] {
            for listener in &ours {
                step(listener).unwrap_or_else(|e| report(listener, &e));
            }
        }
        refused.sort_unstable();
        refused.dedup();
        refused
    }

    /// Makes all sockets listen again that do not. Those of `addrs` that cannot are opened anew, for `slots` slots.
    ///
    /// # Errors
    /// A socket cannot be bound again, because another program has its address now.
    pub(crate) fn resume_listening(
        &mut self,
        addrs: &[ListenAddr],
        backlog: u32,
        slots: u32,
    ) -> Result<()> {
        // In the order of the slots: the kernel numbers the sockets of a reuseport group as they begin to listen.
        self.listeners.sort_by_key(|listener| listener.slot);
        let ended =
            |one: &&Listener| one.may_stop_listening() && !bind_socket::is_listening(&one.socket);
        let tcp = || self.listeners.iter().filter(|one| one.may_stop_listening() && !one.is_unix());
        for listener in tcp() {
            // There is none if the filter could not be attached.
            let _ = listener.socket.detach_filter();
        }
        // All before the first one listens: a group forbids members without the options.
        for listener in tcp().filter(ended) {
            let set = listener.socket.set_reuse_address(true);
            set.and_then(|()| listener.socket.set_reuse_port(true)).map_err(|e| {
                Error::system(format!("set the options of the socket at {}", listener.local), e)
            })?;
        }
        for listener in tcp().filter(ended) {
            bind_socket::start_listening(listener, backlog)?;
        }
        let unix: Vec<ListenAddr> =
            self.listeners.iter().filter(ended).map(|one| one.addr.clone()).collect();
        // Closed first: an abstract name is free only then. This removes the files as well.
        self.listeners.retain(|one| !unix.contains(&one.addr));
        self.files.retain(|(addr, _)| !unix.contains(addr));
        self.open_missing_sockets(addrs, backlog, slots).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::super::test_support::open;
    use super::*;

    fn refuse(set: &ListenerSet) -> Vec<String> {
        set.refuse_connections(|listener, e| panic!("{listener:?}: {e}"))
    }

    #[test]
    fn a_tcp_address_refuses_stays_bound_and_accepts_again() {
        for slots in [1, 3] {
            let (mut set, addrs) = open(&["127.0.0.1:0"], slots);
            let local = set.listeners[0].tcp().expect("TCP");
            // A connection that is still open when the socket ends, and keeps the port in use.
            let client = TcpStream::connect(local).expect("connected");
            let accepted: Vec<_> = (set.listeners.iter())
                .filter_map(|one| prefork_os::socket::accept_connection(&one.socket).ok())
                .collect();
            assert_eq!(accepted.len(), 1);
            set.hold_connections();
            assert_eq!(refuse(&set).len(), 1);
            let error = TcpStream::connect(local).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(set.listeners[0].tcp(), Some(local));
            set.resume_listening(&addrs, 16, slots).expect("listening");
            assert_eq!(
                (set.listeners.len(), set.listeners[0].tcp()),
                (slots as usize, Some(local))
            );
            for _ in 0..8 {
                TcpStream::connect(local).expect("connected");
            }
            drop((client, accepted));
        }
    }

    #[test]
    fn no_other_program_can_take_an_address_that_refuses() {
        let free = TcpListener::bind("127.0.0.1:0").expect("bound");
        let text = free.local_addr().expect("an address").to_string();
        drop(free);
        for slots in [1, 3] {
            let (mut set, addrs) = open(&[&text], slots);
            refuse(&set);
            // The standard library sets SO_REUSEADDR.
            let error = TcpListener::bind(&text).expect_err("in use");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            set.resume_listening(&addrs, 16, slots).expect("listening");
            TcpStream::connect(&text).expect("connected");
        }
    }

    #[test]
    fn unix_sockets_refuse_and_are_opened_anew() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut set, addrs) = open(&[&format!("unix:{}", path.display())], 1);
        refuse(&set);
        let error = UnixStream::connect(&path).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(path.exists(), "the file stays");
        set.resume_listening(&addrs, 16, 1).expect("listening");
        UnixStream::connect(&path).expect("connected");
        drop(set);
        assert!(!path.exists(), "the new file is ours");
    }

    #[test]
    fn held_connections_are_accepted_after_all() {
        let (mut set, addrs) = open(&["127.0.0.1:0"], 1);
        let local = set.listeners[0].tcp().expect("TCP");
        set.hold_connections();
        let client = std::thread::spawn(move || TcpStream::connect(local));
        set.resume_listening(&addrs, 16, 1).expect("listening");
        client.join().expect("no panic").expect("connected, if only at the second SYN");
    }

    #[test]
    fn sockets_of_the_service_manager_go_on_listening() {
        let (mut set, addrs) = open(&["127.0.0.1:0"], 1);
        set.listeners[0].keeper = SocketKeeper::ServiceManager;
        let local = set.listeners[0].tcp().expect("TCP");
        set.hold_connections();
        assert!(refuse(&set).is_empty());
        TcpStream::connect(local).expect("connected");
        set.resume_listening(&addrs, 16, 1).expect("nothing to do");
        TcpStream::connect(local).expect("connected");
    }
}
