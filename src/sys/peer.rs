//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// Who is at the other end of a Unix socket, by the kernel's word: whoever connected it, or made it listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// 0 if the process is not visible from here (another pid namespace).
    pub(crate) pid: u32,
    pub(crate) uid: u32,
}

/// Who is at the other end of `socket`.
pub(crate) fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Peer { pid: u32::try_from(credentials.pid()).unwrap_or(0), uid: credentials.uid() })
}

impl Peer {
    /// `pid 812, nginx`, if it still exists.
    pub(crate) fn process(self) -> Option<String> {
        super::process::describe(self.pid)
    }
}
