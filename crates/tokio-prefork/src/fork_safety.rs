//! Warns of descriptors that workers must not share: connections and runtimes that the program opened before it serves.
//!
//! A fork duplicates every open descriptor. When several workers use one connection, each may read the answer that another
//! one waits for. See the page *Fork safety* of the documentation.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::systemd::activation_fd_numbers;
use crate::text::printable;
use crate::upgrade;
use prefork_os::unshareable_fds::{
    UnixPeer, UnshareableFd, UnshareableKind, find_unshareable_fds, process_has_socket,
};

/// How many descriptors are named one by one.
const MAX_NAMED_FDS: usize = 16;

/// Where daemons listen for log messages. Each is one datagram, so that several processes can send on one socket.
const LOG_SOCKET_PATHS: [&str; 4] =
    ["/run/systemd/journal/", "/dev/log", "/var/run/syslog", "/run/syslog"];

/// A descriptor that workers must not share, from [`find_unsafe_fds`]. Displays as
/// `fd=7 TCP connection to 10.0.0.5:5432`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnsafeFd {
    /// The number of the descriptor.
    pub fd: i32,
    /// What it is: `TCP connection to 10.0.0.5:5432`.
    pub description: String,
}

impl fmt::Display for UnsafeFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd={} {}", self.fd, self.description)
    }
}

impl From<UnshareableFd> for UnsafeFd {
    fn from(found: UnshareableFd) -> UnsafeFd {
        let description = printable(&found.kind.to_string()).to_string();
        UnsafeFd { fd: found.fd, description }
    }
}

/// Finds the open descriptors of this process that workers must not share: connected sockets, epoll and io_uring instances.
///
/// [`Cluster::serve`](crate::Cluster::serve) and its siblings log a warning for each of them before they fork. Call this in a
/// test, or before `serve`, to treat them as errors. Sockets that the process was started with do not count if its parent has
/// them too or if systemd passed them, nor do connections to the system's log daemons. Empty if `/proc` is not readable.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
///
/// let database = TcpListener::bind("127.0.0.1:0")?;
/// let addr = database.local_addr()?;
/// let connection = TcpStream::connect(addr)?;
/// let found = tokio_prefork::fork_safety::find_unsafe_fds();
/// assert!(found.iter().any(|one| one.description == format!("TCP connection to {addr}")));
/// # drop(connection);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn find_unsafe_fds() -> Vec<UnsafeFd> {
    let found = find_unshareable_fds().unwrap_or_default();
    // If the variables are malformed, the start fails with that error.
    let passed = activation_fd_numbers().unwrap_or_default();
    let is_opened_here = |one: &UnshareableFd| {
        one.is_close_on_exec || !(passed.contains(&one.fd) || is_inherited_socket(one))
    };
    let unsafe_fds =
        found.into_iter().filter(|one| is_opened_here(one) && !is_log_socket(&one.kind));
    unsafe_fds.map(UnsafeFd::from).collect()
}

/// Warns of the descriptors that workers must not share, before the library has opened any.
pub(crate) fn warn_of_unsafe_fds() {
    warn_of(&find_unsafe_fds());
}

/// Runs `open`, and warns of the descriptors that it has left open and that workers must not share.
pub(crate) fn warn_of_fds_left_open_by<T>(open: impl FnOnce() -> T) -> T {
    let before: BTreeSet<i32> = find_unsafe_fds().into_iter().map(|one| one.fd).collect();
    let outcome = open();
    let mut left_open = find_unsafe_fds();
    left_open.retain(|one| !before.contains(&one.fd));
    warn_of(&left_open);
    outcome
}

fn warn_of(found: &[UnsafeFd]) {
    for one in found.iter().take(MAX_NAMED_FDS) {
        log::warn!(
            "opened before the fork, so all workers would share it: {one}; open it in the function that runs in the worker, \
             or close it before the cluster serves (see \"Fork safety\" in the documentation)"
        );
    }
    if found.len() > MAX_NAMED_FDS {
        log::warn!(
            "opened before the fork, so all workers would share them: {} more descriptors",
            found.len() - MAX_NAMED_FDS
        );
    }
}

/// Returns whether a socket without close-on-exec is one that this process was started with: its parent has it, or it came
/// from the previous image.
fn is_inherited_socket(one: &UnshareableFd) -> bool {
    let parent = || prefork_os::process::parent_pid(std::process::id());
    upgrade::is_started_by_upgrade()
        || (one.inode != 0 && parent().is_some_and(|pid| process_has_socket(pid, one.inode)))
}

fn is_log_socket(kind: &UnshareableKind) -> bool {
    match kind {
        UnshareableKind::UnixDatagram(UnixPeer::Path(path)) => LOG_SOCKET_PATHS
            .iter()
            .any(|known| path.as_os_str().as_bytes().starts_with(known.as_bytes())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn datagram_sockets_of_log_daemons_are_no_reason_to_warn() {
        let to = |path: &str| UnixPeer::Path(PathBuf::from(path));
        for path in ["/dev/log", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log"] {
            assert!(is_log_socket(&UnshareableKind::UnixDatagram(to(path))), "{path}");
            assert!(!is_log_socket(&UnshareableKind::Unix(to(path))), "{path}");
        }
        assert!(!is_log_socket(&UnshareableKind::UnixDatagram(to("/run/app.sock"))));
    }
}
