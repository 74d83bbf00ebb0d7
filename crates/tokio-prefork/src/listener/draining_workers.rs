//! Listening sockets that an earlier reload closed and that draining workers of this service still hold.
//!
//! A reload that returns to an address shortly after another reload left it finds the address in use by this service
//! itself. A draining worker closes its sockets within milliseconds, unless a request blocks its event loop.

use std::time::{Duration, Instant};

use super::socket_holders;
use prefork_os::process;

/// How long a reload waits for draining workers to close an address. It blocks the primary.
pub(super) const DRAINING_WORKER_RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often to check whether they have closed it.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// How far above a process this primary is looked for: a worker may run a foreign program, which starts others.
const MAX_ANCESTORS: usize = 16;

/// The result of waiting for workers to close their sockets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CloseOutcome {
    /// Another process holds a socket, or a process that cannot be seen.
    NotOurs,
    /// All sockets are closed.
    Closed,
    /// The worker with this pid still holds a socket.
    HeldBy(u32),
}

/// Waits until workers of this primary have closed the sockets whose inodes `in_the_way` returns.
pub(super) fn wait_until_workers_close(
    in_the_way: impl Fn() -> Vec<u64>,
    timeout: Duration,
) -> CloseOutcome {
    let began = Instant::now();
    loop {
        let inodes = in_the_way();
        if inodes.is_empty() {
            return CloseOutcome::Closed;
        }
        let holders = socket_holders::processes_holding(&inodes);
        // A worker, or what it has started.
        let is_ours = |pid: u32| {
            let ancestors =
                std::iter::successors(process::parent_pid(pid), |pid| process::parent_pid(*pid));
            ancestors.take(MAX_ANCESTORS).any(|pid| pid == std::process::id())
        };
        let strange = holders.iter().find(|one| !is_ours(one.pid));
        // A process that has exited meanwhile holds no socket.
        if strange.is_some_and(|one| socket_holders::process_holds_any(one.pid, &inodes)) {
            return CloseOutcome::NotOurs;
        }
        if began.elapsed() >= timeout {
            return holders
                .first()
                .map_or(CloseOutcome::NotOurs, |one| CloseOutcome::HeldBy(one.pid));
        }
        // No visible holder: the kernel is about to close the socket, or its holder cannot be seen.
        if holders.is_empty() && began.elapsed() >= timeout / 10 {
            return CloseOutcome::NotOurs;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// Returns the error text for an address that worker `pid` still holds.
pub(super) fn held_by_worker_error(pid: u32) -> String {
    format!(
        "worker pid={pid} of this service is draining and still holds the socket that a reload closed: reload again when it \
         has exited, at most graceful-timeout from now"
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Spawns a child that holds a listening socket. Returns the child and the inode of the socket.
    fn spawn_child_with_listener(program: &str) -> (Child, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("link");
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        let inode = inode.expect("a socket").parse().expect("inode");
        let child = Command::new(program)
            .stdin(OwnedFd::from(listener))
            .arg("3600")
            .stdout(Stdio::null())
            .spawn()
            .expect("spawn");
        (child, inode)
    }

    #[test]
    fn a_worker_that_keeps_its_socket_is_reported_by_pid() {
        let (mut child, inode) = spawn_child_with_listener("sleep");
        let outcome = wait_until_workers_close(|| vec![inode], DRAINING_WORKER_RELEASE_TIMEOUT);
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(outcome, CloseOutcome::HeldBy(child.id()));
    }

    #[test]
    fn the_wait_ends_when_the_worker_closes_its_socket() {
        let (mut child, inode) = spawn_child_with_listener("sleep");
        let checks = std::cell::Cell::new(0);
        let outcome = wait_until_workers_close(
            || {
                checks.set(checks.get() + 1);
                if checks.get() == 3 {
                    kill_child(&child);
                }
                if checks.get() < 4 { vec![inode] } else { Vec::new() }
            },
            // Far longer than the child needs to exit.
            Duration::from_secs(600),
        );
        child.wait().expect("wait");
        assert_eq!(outcome, CloseOutcome::Closed);
    }

    fn kill_child(child: &Child) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    }

    #[test]
    fn a_socket_of_this_process_or_without_a_holder_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("link");
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        let inode: u64 = inode.expect("a socket").parse().expect("inode");
        assert_eq!(
            wait_until_workers_close(|| vec![inode], DRAINING_WORKER_RELEASE_TIMEOUT),
            CloseOutcome::NotOurs
        );
        assert_eq!(
            wait_until_workers_close(|| vec![u64::MAX], DRAINING_WORKER_RELEASE_TIMEOUT),
            CloseOutcome::NotOurs
        );
    }
}
