//! The skin: the only room with `unsafe` and the only one that names libc. Plain functions with std types
//! on the outside, no policy inside, no log lines.
//!
//! Every `unsafe` block states the invariant that makes it sound, not the implementation detail that
//! happens to. What can be said with nix or socket2 without `unsafe` is said so, here or elsewhere.
#![expect(unsafe_code, reason = "this is the one room that may touch the kernel by hand")]

pub(crate) mod beats;
pub(crate) mod bpf;
pub(crate) mod byte_lock;
pub(crate) mod connection;
pub(crate) mod credentials;
pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod forked_fds;
pub(crate) mod output;
pub(crate) mod pass;
pub(crate) mod peer;
pub(crate) mod pidfd;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod shm;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod tcp_info;
pub(crate) mod thread;
pub(crate) mod title;
pub(crate) mod wait;
pub(crate) mod words;

use std::io;

/// Turns the C convention of -1 and errno into a `Result`.
fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

use nix::libc;
