//! Whether a process waits for connections on a socket: in an event loop, or in a blocked thread.

use std::fs;
use std::os::unix::fs::FileExt;

use nix::libc;

use super::open_fds::{FdTarget, OpenFd};
use super::process_tree::thread_ids;

/// The most bytes that are read of an array of `poll` or a set of `select`.
const MAX_ARGUMENT_BYTES: usize = 64 << 10;
/// The most threads of one process that are looked at.
const MAX_THREADS: usize = 1024;

/// How a process waits for connections on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitKind {
    /// An epoll instance watches the socket.
    Epoll,
    /// A thread is blocked in `accept`.
    Accept,
    /// A thread is blocked in `poll` or `select` with the socket.
    Poll,
    /// An io_uring instance has an accept in progress. The kernel does not show of which socket.
    IoUring,
}

/// Returns how process `pid` waits for connections on the socket with `inode`, of which `fds` shows that it is open there.
/// `None` if it does not.
pub(super) fn find_wait(pid: u32, fds: &[OpenFd], inode: u64) -> Option<WaitKind> {
    let info = |fd: &OpenFd| fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.number));
    let mut epolls = fds.iter().filter(|fd| fd.target == FdTarget::Epoll).map(info);
    if epolls.any(|info| info.is_ok_and(|info| epoll_watches(&info, inode))) {
        return Some(WaitKind::Epoll);
    }
    let is_ours = |fd: &&OpenFd| fd.target == FdTarget::Socket(inode);
    let numbers: Vec<i32> = fds.iter().filter(is_ours).map(|fd| fd.number).collect();
    let threads = thread_ids(pid).into_iter().take(MAX_THREADS);
    let mut calls = threads.filter_map(|thread| read_system_call(pid, thread));
    if let Some(kind) = calls.find_map(|call| call.waits_for(pid, &numbers)) {
        return Some(kind);
    }
    let mut rings = fds.iter().filter(|fd| fd.target == FdTarget::IoUring).map(info);
    let accepts = rings.any(|info| info.is_ok_and(|info| io_uring_accepts(&info)));
    accepts.then_some(WaitKind::IoUring)
}

/// Returns whether an epoll instance watches the socket with `inode` for connections, from its `/proc/PID/fdinfo/N`.
///
/// A line is `tfd:        8 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8`. The device is that of all sockets.
fn epoll_watches(info: &str, inode: u64) -> bool {
    let hex_after = |line: &str, key: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = words.find_map(|word| word.strip_prefix(key))?;
        let digits = if word.is_empty() { words.next()? } else { word };
        u64::from_str_radix(digits, 16).ok()
    };
    info.lines().filter(|line| line.starts_with("tfd:")).any(|line| {
        let reads = hex_after(line, "events:")
            .is_some_and(|events| events & (libc::EPOLLIN | libc::EPOLLRDNORM) as u64 != 0);
        reads && hex_after(line, "ino:") == Some(inode)
    })
}

/// Returns whether an io_uring instance has an accept in progress, from its `/proc/PID/fdinfo/N`.
fn io_uring_accepts(info: &str) -> bool {
    const IORING_OP_ACCEPT: &str = "op=13,";
    let requests = info.split_once("PollList:").map(|(_, rest)| rest).unwrap_or_default();
    requests.lines().any(|line| line.trim_start().starts_with(IORING_OP_ACCEPT))
}

/// The system call in which a thread is blocked, with its first five arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SystemCall {
    number: libc::c_long,
    arguments: [u64; 5],
}

fn read_system_call(pid: u32, thread: u32) -> Option<SystemCall> {
    parse_system_call(&fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).ok()?)
}

/// Parses `/proc/PID/task/TID/syscall`: `running`, or a number (-1 outside of a system call) and hexadecimal arguments.
fn parse_system_call(text: &str) -> Option<SystemCall> {
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
    let mut arguments = [0; 5];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(SystemCall { number, arguments })
}

impl SystemCall {
    /// Returns how the call waits for one of the descriptors `numbers` of process `pid`. `None` if it does not.
    fn waits_for(&self, pid: u32, numbers: &[i32]) -> Option<WaitKind> {
        let [first, second, ..] = self.arguments;
        if matches!(self.number, libc::SYS_accept | libc::SYS_accept4) {
            // The kernel takes the lower half of the register.
            return numbers.contains(&(first as i32)).then_some(WaitKind::Accept);
        }
        let is_watched = if is_poll(self.number) {
            let array = read_memory(pid, first, second.saturating_mul(8))?;
            numbers.iter().any(|number| poll_array_has(&array, *number))
        } else if is_select(self.number) {
            let set = read_memory(pid, second, first.div_ceil(64).saturating_mul(8))?;
            numbers.iter().any(|number| select_set_has(&set, *number))
        } else {
            false
        };
        is_watched.then_some(WaitKind::Poll)
    }
}

fn is_poll(number: libc::c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_poll {
        return true;
    }
    number == libc::SYS_ppoll
}

fn is_select(number: libc::c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_select {
        return true;
    }
    number == libc::SYS_pselect6
}

/// Returns whether an array of `struct pollfd` asks for connections of descriptor `number`.
fn poll_array_has(array: &[u8], number: i32) -> bool {
    array.chunks_exact(8).any(|entry| {
        let fd = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let events = i16::from_ne_bytes([entry[4], entry[5]]);
        fd == number && events & (libc::POLLIN | libc::POLLRDNORM) != 0
    })
}

/// Returns whether an `fd_set`, an array of machine words, has descriptor `number`.
fn select_set_has(set: &[u8], number: i32) -> bool {
    let Ok(number) = usize::try_from(number) else { return false };
    let Some(word) = set.chunks_exact(8).nth(number / 64) else { return false };
    let word = u64::from_ne_bytes(std::array::from_fn(|at| word[at]));
    word >> (number % 64) & 1 == 1
}

/// Reads the memory of another process.
fn read_memory(pid: u32, address: u64, length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok()?.min(MAX_ARGUMENT_BYTES);
    let mut bytes = vec![0; length];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoll_instance_watches_a_socket_only_for_reading() {
        let line = |events: &str| {
            format!("pos:\t0\ntfd:        8 events: {events} data: 8  pos:0 ino:c12 sdev:8\n")
        };
        assert!(epoll_watches(&line("80002001"), 0xc12));
        assert!(epoll_watches(&line("       19"), 0xc12));
        assert!(!epoll_watches(&line("80002001"), 0xc13));
        // Only for writing, and disarmed after a one-shot event.
        assert!(!epoll_watches(&line("4"), 0xc12) && !epoll_watches(&line("40000000"), 0xc12));
        assert!(!epoll_watches("ino:c12 events: 1", 0xc12));
    }

    #[test]
    fn an_accept_of_io_uring_is_in_its_list_of_polls() {
        let info =
            |list: &str| format!("SqMask:\t0x7\nUserBufs:\t0\nPollList:\n{list}CqOverflowList:\n");
        assert!(io_uring_accepts(&info("  op=6, task_works=0\n  op=13, task_works=0\n")));
        assert!(!io_uring_accepts(&info("  op=6, task_works=0\n")));
        assert!(!io_uring_accepts(&info("  op=130, task_works=0\n")));
        assert!(!io_uring_accepts("op=13,"));
    }

    #[test]
    fn only_a_blocked_call_has_a_number() {
        let call = parse_system_call("288 0x3 0x0 0x0 0x80000 0x0 0x0 0x7ffd5 0x7f0b\n");
        let call = call.expect("a call");
        assert_eq!((call.number, call.arguments), (288, [3, 0, 0, 0x80000, 0]));
        for text in ["running\n", "-1 0x7ffd5 0x7f0b\n", "", "288 0x3", "288 3 0 0 0 0"] {
            assert_eq!(parse_system_call(text), None, "{text}");
        }
    }

    #[test]
    fn descriptors_are_found_in_poll_arrays_and_select_sets() {
        let mut array = Vec::new();
        for (fd, events) in [(7i32, libc::POLLOUT), (9, libc::POLLIN)] {
            array.extend(fd.to_ne_bytes());
            array.extend(events.to_ne_bytes());
            array.extend([0; 2]);
        }
        assert!(poll_array_has(&array, 9) && !poll_array_has(&array, 7));
        assert!(!poll_array_has(&array[..9], 9), "cut off");
        let mut set = [0u8; 16];
        set[..8].copy_from_slice(&(1u64 << 5).to_ne_bytes());
        set[8..].copy_from_slice(&(1u64 << 1).to_ne_bytes());
        let found: Vec<i32> = (-1..200).filter(|number| select_set_has(&set, *number)).collect();
        assert_eq!(found, [5, 65]);
    }
}
