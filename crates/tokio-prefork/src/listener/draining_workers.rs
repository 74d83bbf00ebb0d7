//! Listening sockets that an earlier reload closed and that draining workers of this service still hold.
//!
//! A reload that goes back to an address shortly after another one left it would find it in use, by this service itself.
//! A draining worker closes its sockets within a few round trips, unless a request computes on its event loop.

use std::time::{Duration, Instant};

use super::socket_holders;
use prefork_os::process;

/// How long a reload waits for draining workers to close an address. The primary does nothing else meanwhile.
const OWN_RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often to look whether they have closed it.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// What became of the sockets in the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// Somebody else holds one, or nobody knows who does.
    NotOurs,
    /// Nobody holds them any more.
    Released,
    /// This worker of ours still does.
    HeldBy(u32),
}

/// Waits until workers of this process have closed the sockets whose inodes `in_the_way` returns.
pub(super) fn await_release(in_the_way: impl Fn() -> Vec<u64>) -> Release {
    let began = Instant::now();
    loop {
        let inodes = in_the_way();
        if inodes.is_empty() {
            return Release::Released;
        }
        let holders = socket_holders::holders_of(&inodes);
        let is_ours = |pid: u32| process::parent_pid(pid) == Some(std::process::id());
        let strange = holders.iter().find(|one| !is_ours(one.pid));
        // One that has ended since is nobody's.
        if strange.is_some_and(|one| socket_holders::holds_any(one.pid, &inodes)) {
            return Release::NotOurs;
        }
        if began.elapsed() >= OWN_RELEASE_TIMEOUT {
            return holders.first().map_or(Release::NotOurs, |one| Release::HeldBy(one.pid));
        }
        // Without any holder the kernel is about to close it, or the holder cannot be seen.
        if holders.is_empty() && began.elapsed() >= OWN_RELEASE_TIMEOUT / 10 {
            return Release::NotOurs;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// What an error says of an address that is held by worker `pid`.
pub(super) fn describe(pid: u32) -> String {
    format!(
        "worker pid {pid} of this service, which finishes its requests, still has the socket that a reload closed: reload \
         again when it has left, within its graceful-timeout"
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A child of this process that holds a listening socket, and the inode of that.
    fn holding_child(program: &str) -> (Child, u64) {
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
    fn a_socket_that_a_child_keeps_is_told_with_its_pid() {
        let (mut child, inode) = holding_child("sleep");
        let outcome = await_release(|| vec![inode]);
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(outcome, Release::HeldBy(child.id()));
    }

    #[test]
    fn a_socket_that_a_child_closes_is_waited_for() {
        let (mut child, inode) = holding_child("sleep");
        let looks = std::cell::Cell::new(0);
        let outcome = await_release(|| {
            looks.set(looks.get() + 1);
            if looks.get() == 3 {
                child_ends(&child);
            }
            if looks.get() < 4 { vec![inode] } else { Vec::new() }
        });
        child.wait().expect("wait");
        assert_eq!(outcome, Release::Released);
    }

    fn child_ends(child: &Child) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    }

    #[test]
    fn a_socket_of_this_process_or_of_nobody_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("link");
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        let inode: u64 = inode.expect("a socket").parse().expect("inode");
        assert_eq!(await_release(|| vec![inode]), Release::NotOurs);
        assert_eq!(await_release(|| vec![u64::MAX]), Release::NotOurs);
    }
}
