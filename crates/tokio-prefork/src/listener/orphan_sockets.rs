//! Listening sockets that workers of a dead primary still hold.
//!
//! A worker whose event loop is blocked, or that is stopped, does not notice that its primary was killed. It keeps the
//! listening socket until its graceful timeout is over. A restart does not wait for that:
//!
//! - It **duplicates that socket** with pidfd_getfd(2) and listens on it. No queued connection is lost, and the worker may
//!   still finish its request. This needs the right to trace the worker: the same user without a restriction by Yama, or
//!   `CAP_SYS_PTRACE`.
//! - If that is not allowed, or the address has a socket for each slot (the worker would keep its share of new
//!   connections), it waits for [`ORPHAN_RELEASE_TIMEOUT`] and then **kills** the workers that still hold the address.
//!
//! A process counts as an orphan only if the name of its shared memory mapping gives a primary, by pid and start time,
//! that is dead, or if it is a descendant of such a process, as a foreign program is. Workers of a living primary and of other pid
//! namespaces are never touched.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::socket_holders::{self, ListeningSocket, SocketHolder};
use super::{ListenAddr, UnixAddr};
use prefork_os::child::PidFd;
use prefork_os::signal::Signal;
use prefork_os::{credentials, process, shared_memory};

/// How long orphans may take to close an address before they are killed, at the start of a service. A reload does not
/// wait.
const ORPHAN_RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for killed orphans to exit, at the start of a service.
const KILLED_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for killed orphans to exit, at a reload.
const RELOAD_KILLED_EXIT_TIMEOUT: Duration = Duration::from_millis(200);

/// How far above a process its worker is looked for. A foreign program may start others, which start others.
const MAX_ANCESTORS: usize = 16;

/// How often to check whether the address is free.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The result of freeing an address from orphans.
#[derive(Debug)]
pub(super) enum OrphanRelease {
    /// Orphans hold the address; this is a duplicate of their socket.
    SocketTaken(OwnedFd),
    /// Orphans held the address and have exited: it can be bound.
    AddressFree,
    /// Other processes hold the address, or processes that cannot be seen.
    NotOrphaned,
}

/// The processes that hold an address at one moment.
enum AddressHolders {
    None,
    /// Only these orphans, and the inodes of their sockets.
    Orphans(Vec<OrphanWorker>, Vec<u64>),
    /// Processes that are exiting, which closes the address.
    Exiting,
    /// Processes that are not visible in `/proc`.
    Unknown,
    Others,
}

/// A worker whose primary is dead, with its descriptors of an address.
struct OrphanWorker {
    holder: SocketHolder,
    primary: u32,
    process: PidFd,
}

/// Frees the address from workers whose primary is dead. Waits only if `may_wait`.
pub(super) fn release_from_orphans(addr: &ListenAddr, may_wait: bool) -> OrphanRelease {
    let (release, exit) = match may_wait {
        true => (ORPHAN_RELEASE_TIMEOUT, KILLED_EXIT_TIMEOUT),
        false => (Duration::ZERO, RELOAD_KILLED_EXIT_TIMEOUT),
    };
    let began = Instant::now();
    let mut killed_at = None;
    loop {
        match address_holders(addr) {
            AddressHolders::None => return OrphanRelease::AddressFree,
            AddressHolders::Others => return OrphanRelease::NotOrphaned,
            AddressHolders::Orphans(orphans, inodes) => {
                if let Some(socket) = take_orphan_socket(&orphans, addr, &inodes) {
                    log::warn!(
                        "{addr} was still held by {}: took over their socket; they exit within their graceful-timeout",
                        format_orphans(&orphans)
                    );
                    // A stopped worker would never handle the death of its primary.
                    orphans
                        .iter()
                        .for_each(|orphan| drop(orphan.process.send_signal(Signal::SIGCONT)));
                    return OrphanRelease::SocketTaken(socket);
                }
                if killed_at.is_none() && began.elapsed() >= release {
                    if matches!(addr, ListenAddr::Unix(_))
                        && !orphans.iter().all(is_owned_by_our_user)
                    {
                        return OrphanRelease::NotOrphaned;
                    }
                    log::warn!(
                        "{addr} is still held by {}: killing them, as their socket cannot be taken over",
                        format_orphans(&orphans)
                    );
                    // A failure means that the worker has exited.
                    orphans
                        .iter()
                        .for_each(|orphan| drop(orphan.process.send_signal(Signal::SIGKILL)));
                    killed_at = Some(Instant::now());
                }
            }
            AddressHolders::Unknown if killed_at.is_none() && began.elapsed() >= release => {
                return OrphanRelease::NotOrphaned;
            }
            AddressHolders::Exiting if began.elapsed() >= release + exit => {
                return OrphanRelease::NotOrphaned;
            }
            AddressHolders::Exiting | AddressHolders::Unknown => {}
        }
        if killed_at.is_some_and(|at: Instant| at.elapsed() >= exit) {
            return OrphanRelease::NotOrphaned;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

fn address_holders(addr: &ListenAddr) -> AddressHolders {
    let inodes: Vec<u64> = match addr {
        ListenAddr::Tcp(tcp) => {
            let all = socket_holders::listening_sockets_at(*tcp);
            // A socket of another user is not an orphan of this service.
            if all.iter().any(|one| one.uid != credentials::effective_uid()) {
                return AddressHolders::Others;
            }
            all.iter().map(|one| one.inode).collect()
        }
        ListenAddr::Unix(UnixAddr { path, .. }) => socket_holders::unix_listener_inodes(path),
        ListenAddr::Host(_) | ListenAddr::Fd(_) => return AddressHolders::Others,
    };
    if inodes.is_empty() {
        return AddressHolders::None;
    }
    let (mut orphans, mut seen, mut some_end) = (Vec::new(), Vec::new(), false);
    for holder in socket_holders::processes_holding(&inodes) {
        let (pid, sockets) = (holder.pid, holder.sockets.clone());
        match orphan_worker(holder) {
            Some(orphan) => {
                seen.extend(sockets.into_iter().map(|(_, inode)| inode));
                orphans.push(orphan);
            }
            // An exiting process still has descriptors, but no memory mapping that names its primary.
            None if is_exiting_process(pid) => some_end = true,
            // The process may have exited since.
            None if socket_holders::process_holds_any(pid, &inodes) => {
                return AddressHolders::Others;
            }
            None => {}
        }
    }
    match inodes.iter().all(|inode| seen.contains(inode)) {
        _ if some_end => AddressHolders::Exiting,
        true => AddressHolders::Orphans(orphans, inodes),
        false => AddressHolders::Unknown,
    }
}

fn is_exiting_process(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.is_empty())
}

/// Returns the process as an orphan, or `None` if its primary lives or it is not a worker.
fn orphan_worker(holder: SocketHolder) -> Option<OrphanWorker> {
    // A pidfd never refers to another process, even if the pid is used again.
    let process = PidFd::open(holder.pid).ok()?;
    let primary = dead_primary_pid(holder.pid)?;
    // If it exited before the check, the pid may belong to another process now; signals through the pidfd fail then.
    Some(OrphanWorker { holder, primary, process })
}

/// Returns the pid of the dead primary that process `pid` belongs to: as its worker, or as a descendant of one.
fn dead_primary_pid(pid: u32) -> Option<u32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    if namespace(&pid.to_string())? != namespace("self")? {
        return None;
    }
    // The nearest one counts: a program may be a primary itself.
    let ancestors = std::iter::successors(Some(pid), |pid| process::parent_pid(*pid));
    let (worker, (primary, started)) =
        ancestors.take(MAX_ANCESTORS).find_map(|pid| Some((pid, named_primary(pid)?)))?;
    let lives = process::process_start_ticks(primary) == Some(started);
    (!lives && process::parent_pid(worker) != Some(primary)).then_some(primary)
}

/// Returns pid and start time of the primary that the shared memory of a process names.
fn named_primary(pid: u32) -> Option<(u32, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().find_map(shared_memory::parse_primary_of_mapping)
}

/// Returns a duplicate of the orphans' socket if it is the only one, has exactly the address `addr`, and may be
/// duplicated.
fn take_orphan_socket(
    orphans: &[OrphanWorker],
    addr: &ListenAddr,
    inodes: &[u64],
) -> Option<OwnedFd> {
    let [inode] = *inodes else { return None };
    is_socket_of_addr(addr, inode)
        .then(|| orphans.iter().find_map(|orphan| duplicate_socket(orphan, inode)))?
}

/// Returns whether the socket has exactly the address `addr`, not one that overlaps it.
fn is_socket_of_addr(addr: &ListenAddr, inode: u64) -> bool {
    match addr {
        ListenAddr::Tcp(tcp) => {
            let same = |one: &ListeningSocket| one.inode == inode && one.addr == *tcp;
            socket_holders::listening_sockets_at(*tcp).iter().any(same)
        }
        _ => true,
    }
}

/// Duplicates the socket with `inode` from an orphan, if the kernel allows it.
fn duplicate_socket(orphan: &OrphanWorker, inode: u64) -> Option<OwnedFd> {
    let number = orphan.holder.sockets.iter().find(|(_, held)| *held == inode)?.0;
    let socket = orphan.process.duplicate_fd(number).ok()?;
    let taken = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    let same = taken.to_str() == Some(&format!("socket:[{inode}]"));
    // A Unix socket reports the user that made it listen. A TCP socket was looked up in the kernel's table.
    let ours = credentials::peer_credentials(&socket)
        .map_or(true, |peer| peer.uid == credentials::effective_uid());
    (same && ours).then_some(socket)
}

fn is_owned_by_our_user(orphan: &OrphanWorker) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(format!("/proc/{}", orphan.holder.pid)).map(|meta| meta.uid());
    owner.is_ok_and(|uid| uid == credentials::effective_uid())
}

fn format_orphans(orphans: &[OrphanWorker]) -> String {
    let one = |orphan: &OrphanWorker| {
        format!("pid {}, a worker of the dead primary pid {}", orphan.holder.pid, orphan.primary)
    };
    orphans.iter().map(one).collect::<Vec<_>>().join("; ")
}
