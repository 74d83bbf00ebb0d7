//! How a listening socket becomes ours, and stays the primary's for its whole life.
//!
//! Workers only inherit: the death of any of them loses no queued connection and refuses none. A listener's
//! identity is its content, what the operator wrote as address; a descriptor number is a detail.

mod addr;
mod bind;
mod holder;

use std::os::fd::{AsRawFd, RawFd};

use socket2::Socket;

use crate::error::Result;
use crate::socket_file::SocketFile;
pub use addr::ListenAddr;

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
    files: Vec<SocketFile>,
}

impl ListenerSet {
    /// Binds or takes over every address; all of them or none.
    pub(crate) fn acquire(addrs: &[ListenAddr], backlog: u32) -> Result<ListenerSet> {
        let mut set = ListenerSet::default();
        for addr in addrs {
            let (listener, file) = bind::acquire(addr, backlog)?;
            set.listeners.push(listener);
            set.files.extend(file);
        }
        Ok(set)
    }

    /// In a freshly forked worker: the sockets, without the duty to remove files.
    pub(crate) fn take_listeners(&mut self) -> Vec<Listener> {
        std::mem::take(&mut self.listeners)
    }

    /// The addresses as the kernel has them.
    pub(crate) fn locals(&self) -> Vec<String> {
        self.listeners.iter().map(|l| l.local.clone()).collect()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
