//! The system calls of the workspace behind safe functions: every `unsafe` block is in this crate, and all others
//! forbid it.
//!
//! Takes and returns std types, decides nothing and logs nothing. Every `unsafe` block states the invariant that makes it
//! sound. Code that nix or socket2 can express without `unsafe` may be here or elsewhere.

pub mod beats;
pub mod bpf;
pub mod byte_range_lock;
pub mod child;
pub mod credentials;
pub mod exec;
pub mod fd;
pub mod fd_passing;
pub mod nonblocking_writer;
pub mod parent_death;
pub mod poll;
pub mod process;
pub mod readiness;
pub mod shared_memory;
pub mod signal;
pub mod socket;
pub mod system;
pub mod thread;

use std::{fmt, io};

/// A failed operation: what was tried, and the cause. Displays as `cannot OPERATION: CAUSE`.
#[derive(Debug)]
pub struct OsError {
    /// What was tried, as a verb phrase that follows "cannot": `drop all capabilities`.
    pub operation: String,
    /// Why it failed.
    pub source: io::Error,
}

/// The result of an operation of several system calls.
pub type Result<T, E = OsError> = std::result::Result<T, E>;

impl OsError {
    fn new(operation: impl Into<String>, source: impl Into<io::Error>) -> OsError {
        OsError { operation: operation.into(), source: source.into() }
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.source)
    }
}

impl std::error::Error for OsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Turns the C convention of -1 and errno into a `Result`.
fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

use nix::libc;
