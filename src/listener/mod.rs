//! How a listening socket becomes ours, and stays the primary's for its whole life.
//!
//! Workers only inherit: the death of any of them loses no queued connection and refuses none. A listener's
//! identity is its content, what the operator wrote as address; a descriptor number is a detail.

mod addr;
mod bind;
mod holder;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{SockFilter, Socket};

use crate::error::Result;
use crate::socket_file::SocketFile;
pub use addr::ListenAddr;
pub(crate) use holder::holders;

/// One listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    /// As the operator wrote it.
    pub(crate) addr: ListenAddr,
    /// As the kernel has it: with the real port where 0 was asked for.
    pub(crate) local: String,
    /// Non-blocking, close-on-exec, listening.
    pub(crate) socket: Socket,
}

/// All listening sockets of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ListenerSet {
    pub(crate) listeners: Vec<Listener>,
    /// Files of Unix sockets we made, removed when the primary drops this. Never crosses into a worker.
    files: Vec<(ListenAddr, SocketFile)>,
}

/// Lets every TCP segment pass but a SYN without ACK: byte 13 of the header holds the flags.
/// `ldb [13]; and #0x12; jeq #0x02, drop, pass; drop: ret #0; pass: ret #-1`.
const NO_NEWCOMERS: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

impl Listener {
    /// Nobody can queue here any more; who is in the queue stays in it. Without this, a connection that is
    /// made between a worker's last look at the queue and its close would be reset. A SYN that is dropped now
    /// is repeated after a second, and refused then. A socket that somebody passed to us goes on listening.
    fn refuse_newcomers(&self) {
        // Where that is refused, a rare reset remains.
        let _ = match self.addr {
            ListenAddr::Tcp(_) => self.socket.attach_filter(&NO_NEWCOMERS),
            ListenAddr::Unix(_) | ListenAddr::Fd(_) => Ok(()),
        };
    }
}

impl ListenerSet {
    /// Takes over a socket that another image of process `owner` listened on.
    pub(crate) fn inherit(&mut self, addr: ListenAddr, fd: OwnedFd, owner: u32) -> Result<()> {
        let (listener, file) = bind::inherit(&addr, fd, owner)?;
        self.files.extend(file.map(|file| (addr, file)));
        self.listeners.push(listener);
        Ok(())
    }

    /// Opens those of `addrs` that are not open yet, all of them or none; returns their names.
    pub(crate) fn open_missing(
        &mut self,
        addrs: &[ListenAddr],
        backlog: u32,
    ) -> Result<Vec<String>> {
        let mut opened = Vec::new();
        for addr in addrs.iter().filter(|addr| !self.has(addr)) {
            opened.push(bind::acquire(addr, backlog)?);
        }
        let names = opened.iter().map(|(listener, _)| listener.local.clone()).collect();
        for (listener, file) in opened {
            self.files.extend(file.map(|file| (listener.addr.clone(), file)));
            self.listeners.push(listener);
        }
        Ok(names)
    }

    /// Closes our share in all sockets that are not among `named`; returns their names. What workers hold of
    /// them they close when they have emptied the queue.
    pub(crate) fn close_unnamed(&mut self, named: &[&ListenAddr]) -> Vec<String> {
        self.files.retain(|(addr, _)| named.contains(&addr));
        let closed = self.listeners.extract_if(.., |listener| !named.contains(&&listener.addr));
        closed.inspect(Listener::refuse_newcomers).map(|listener| listener.local).collect()
    }

    /// Ends our share in every socket, for ever; the workers empty the queues and end theirs.
    pub(crate) fn close_all(&mut self) {
        self.listeners.drain(..).for_each(|listener| listener.refuse_newcomers());
    }

    /// In a freshly forked worker: the sockets that its configuration names, without the duty to remove
    /// files; the others are closed.
    pub(crate) fn take_named(&mut self, named: &[ListenAddr]) -> Vec<Listener> {
        let mut taken = std::mem::take(&mut self.listeners);
        taken.retain(|listener| named.contains(&listener.addr));
        taken
    }

    fn has(&self, addr: &ListenAddr) -> bool {
        self.listeners.iter().any(|listener| listener.addr == *addr)
    }

    /// The addresses as the kernel has them.
    pub(crate) fn locals(&self) -> Vec<String> {
        self.listeners.iter().map(|l| l.local.clone()).collect()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
