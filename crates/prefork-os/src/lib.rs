//! Safe wrappers of the Linux system calls that the workspace needs. All `unsafe` code of the workspace is here; the other
//! crates forbid it.
//!
//! Functions take and return std types, make no policy decisions and write no logs. Every `unsafe` block states the
//! invariant that makes it sound. Calls that nix or socket2 wrap safely may also be made directly by other crates.

pub mod allocator;
pub mod async_fd;
pub mod bpf;
pub mod broadcast_event;
pub mod byte_range_lock;
pub mod child;
pub mod cpu_time;
pub mod credentials;
pub mod exec;
pub mod fd;
pub mod fd_passing;
pub mod futex;
pub mod interval_timer;
pub mod locked_memory;
pub mod nonblocking_writer;
pub mod parent_death;
pub mod poll;
pub mod process;
#[cfg(feature = "process-entry")]
pub mod process_entry;
pub mod process_group;
pub mod program_start;
pub mod readiness_set;
pub mod resource_limits;
pub mod secret_pages;
pub mod shared_listener;
pub mod shared_memory;
pub mod shared_segment;
pub mod signal;
pub mod socket;
pub mod socket_diagnosis;
pub mod socket_name;
#[cfg(feature = "stack-traces")]
pub mod stack_capture;
pub mod system;
pub mod tcp_activity;
pub mod thread;
pub mod unix_path;
pub mod unshareable_fds;
pub mod wall_clock;

use std::{fmt, io};

/// An operation that failed, with its cause. Displays as `cannot OPERATION: CAUSE`.
#[derive(Debug)]
pub struct OsError {
    /// The operation as a verb phrase that follows "cannot", such as `drop all capabilities`.
    pub operation: String,
    /// The error of the system call that failed.
    pub source: io::Error,
}

/// The result of an operation that makes several system calls.
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

/// Converts the C convention of -1 and errno to a `Result`.
fn syscall_result(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

use nix::libc;
