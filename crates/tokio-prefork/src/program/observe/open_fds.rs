//! The open descriptors of a process that matter here: sockets, and what waits for them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// A descriptor of another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFd {
    /// Its number there.
    pub(super) number: i32,
    pub(super) target: FdTarget,
}

/// What a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FdTarget {
    /// A socket, by its inode.
    Socket(u64),
    /// An epoll instance.
    Epoll,
    /// An io_uring instance.
    IoUring,
}

/// Returns the sockets, epoll and io_uring instances that process `pid` has open.
///
/// # Errors
/// The process does not exist, or belongs to another user, or has more rights than this one.
pub(super) fn open_fds(pid: u32) -> io::Result<Vec<OpenFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // The directory ends early if the process exits.
        let Ok(entry) = entry else { break };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // A descriptor that was closed meanwhile has no target.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = parse_target(target.as_os_str().as_bytes());
        if let (Some(number), Some(target)) = (number, target) {
            found.push(OpenFd { number, target });
        }
    }
    Ok(found)
}

fn parse_target(target: &[u8]) -> Option<FdTarget> {
    match target {
        b"anon_inode:[eventpoll]" => Some(FdTarget::Epoll),
        b"anon_inode:[io_uring]" => Some(FdTarget::IoUring),
        _ => {
            let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
            Some(FdTarget::Socket(std::str::from_utf8(inode).ok()?.parse().ok()?))
        }
    }
}

/// Returns the inode of `socket`, by which `/proc` of every process shows it.
pub(super) fn socket_inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(socket)?.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn own_sockets_are_found_by_their_inode() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let inode = socket_inode(&socket).expect("inode");
        let expected = OpenFd { number: socket.as_raw_fd(), target: FdTarget::Socket(inode) };
        assert!(open_fds(std::process::id()).expect("fds").contains(&expected));
        assert!(open_fds(u32::MAX).is_err());
    }

    #[test]
    fn targets_of_other_kinds_are_skipped() {
        assert_eq!(parse_target(b"socket:[812]"), Some(FdTarget::Socket(812)));
        for other in [&b"socket:[]"[..], b"socket:[8", b"pipe:[812]", b"/tmp/socket:[812]", b""] {
            assert_eq!(parse_target(other), None);
        }
    }
}
