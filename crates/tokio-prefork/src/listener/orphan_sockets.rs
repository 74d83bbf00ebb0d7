//! Listening sockets that workers of a dead primary still hold.
//!
//! A worker that computes on its loop, or is stopped, does not see that its primary was killed, and keeps the listening
//! socket until its grace time is over. A restart does not wait for that:
//!
//! - It **takes that very socket** with pidfd_getfd(2) and listens on it. No queued connection is lost, and the worker
//!   may still finish its request. This needs the right to trace the worker: the same user without a restriction by
//!   Yama, or `CAP_SYS_PTRACE`.
//! - Where that is not allowed, or the address has a socket for each slot (the worker would go on getting its share of new
//!   connections), it waits for [`ORPHAN_RELEASE_TIMEOUT`] and then **ends** the workers that still hold the address.
//!
//! A worker is an orphan of ours only if the memory that it maps names a primary, by pid and start time, that is dead: a
//! worker of a living primary is never touched, whatever its program, nor is one of another pid namespace.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::socket_holders::{self, Holder, Listening};
use super::{ListenAddr, UnixAddr};
use prefork_os::child::PidFd;
use prefork_os::signal::Signal;
use prefork_os::{credentials, process, shared_memory};

/// How long orphans may take to let go of an address by themselves before they are ended, when a service starts. A reload
/// does not wait.
const ORPHAN_RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the kernel may take to end killed ones, when a service starts.
const KILLED_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same at a reload.
const KILLED_EXIT_TIMEOUT_OF_RELOAD: Duration = Duration::from_millis(200);

/// How often to look whether they are gone.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// What became of an address that is in use.
#[derive(Debug)]
pub(super) enum Freed {
    /// Orphans held it, and this is their socket.
    Taken(OwnedFd),
    /// Orphans held it and are gone: it can be bound.
    Gone,
    /// Others hold it, or nobody knows who.
    No,
}

/// Who holds an address at one moment.
enum Holders {
    Nobody,
    /// These, and nobody else; the sockets are the second.
    Orphans(Vec<Orphan>, Vec<u64>),
    /// Processes that end, and let go of it by that.
    Ending,
    /// Processes that cannot be seen.
    Unknown,
    Others,
}

/// A worker whose primary is dead, with the descriptors that it has of an address.
struct Orphan {
    holder: Holder,
    primary: u32,
    process: PidFd,
}

/// Frees the address from workers whose primary is dead. Waits only if it `may_wait`.
pub(super) fn free(addr: &ListenAddr, may_wait: bool) -> Freed {
    let (release, exit) = match may_wait {
        true => (ORPHAN_RELEASE_TIMEOUT, KILLED_EXIT_TIMEOUT),
        false => (Duration::ZERO, KILLED_EXIT_TIMEOUT_OF_RELOAD),
    };
    let began = Instant::now();
    let mut killed_at = None;
    loop {
        match holders(addr) {
            Holders::Nobody => return Freed::Gone,
            Holders::Others => return Freed::No,
            Holders::Orphans(orphans, inodes) => {
                if let Some(socket) = take_from(&orphans, addr, &inodes) {
                    log::warn!(
                        "{addr} was still held by {}: took over their socket; they end by themselves within their \
                         graceful-timeout",
                        describe(&orphans)
                    );
                    // One that was stopped after the death of its primary had woken it sleeps for ever otherwise.
                    orphans
                        .iter()
                        .for_each(|orphan| drop(orphan.process.send_signal(Signal::SIGCONT)));
                    return Freed::Taken(socket);
                }
                if killed_at.is_none() && began.elapsed() >= release {
                    if matches!(addr, ListenAddr::Unix(_)) && !orphans.iter().all(is_of_our_user) {
                        return Freed::No;
                    }
                    log::warn!(
                        "{addr} is still held by {}: ending them, as their socket cannot be taken over",
                        describe(&orphans)
                    );
                    // One that is gone by now is what was wanted.
                    orphans
                        .iter()
                        .for_each(|orphan| drop(orphan.process.send_signal(Signal::SIGKILL)));
                    killed_at = Some(Instant::now());
                }
            }
            Holders::Unknown if killed_at.is_none() && began.elapsed() >= release => {
                return Freed::No;
            }
            Holders::Ending if began.elapsed() >= release + exit => return Freed::No,
            Holders::Ending | Holders::Unknown => {}
        }
        if killed_at.is_some_and(|at: Instant| at.elapsed() >= exit) {
            return Freed::No;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

fn holders(addr: &ListenAddr) -> Holders {
    let inodes: Vec<u64> = match addr {
        ListenAddr::Tcp(tcp) => {
            let all = socket_holders::listening(*tcp);
            // What another user's process made is not ours, whoever holds it now.
            if all.iter().any(|one| one.uid != credentials::effective_uid()) {
                return Holders::Others;
            }
            all.iter().map(|one| one.inode).collect()
        }
        ListenAddr::Unix(UnixAddr { path, .. }) => socket_holders::unix_inodes(path),
        ListenAddr::Host(_) | ListenAddr::Fd(_) => return Holders::Others,
    };
    if inodes.is_empty() {
        return Holders::Nobody;
    }
    let (mut orphans, mut seen, mut some_end) = (Vec::new(), Vec::new(), false);
    for holder in socket_holders::holders_of(&inodes) {
        let (pid, sockets) = (holder.pid, holder.sockets.clone());
        match orphan(holder) {
            Some(orphan) => {
                seen.extend(sockets.into_iter().map(|(_, inode)| inode));
                orphans.push(orphan);
            }
            // A process that ends has no memory from which its primary could be told, but still its descriptors.
            None if has_no_memory(pid) => some_end = true,
            // It may have ended meanwhile.
            None if socket_holders::holds_any(pid, &inodes) => return Holders::Others,
            None => {}
        }
    }
    match inodes.iter().all(|inode| seen.contains(inode)) {
        _ if some_end => Holders::Ending,
        true => Holders::Orphans(orphans, inodes),
        false => Holders::Unknown,
    }
}

fn has_no_memory(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.is_empty())
}

/// `None` if its primary lives, or it is no worker.
fn orphan(holder: Holder) -> Option<Orphan> {
    // From here on no other process can be mistaken for it.
    let process = PidFd::open(holder.pid).ok()?;
    let primary = dead_primary_of(holder.pid)?;
    // If it has ended since, the pid may be that of another process by now; then signals fail.
    Some(Orphan { holder, primary, process })
}

/// The pid of the primary that forked process `pid`, if it is dead.
fn dead_primary_of(pid: u32) -> Option<u32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    if namespace(&pid.to_string())? != namespace("self")? {
        return None;
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let (primary, started) = maps.lines().find_map(shared_memory::parse_primary_of_mapping)?;
    let lives = process::process_start_ticks(primary) == Some(started);
    (!lives && process::parent_pid(pid) != Some(primary)).then_some(primary)
}

/// Their socket, if there is one, it is the one that `addr` would be, and one of them lets us have it.
fn take_from(orphans: &[Orphan], addr: &ListenAddr, inodes: &[u64]) -> Option<OwnedFd> {
    let [inode] = *inodes else { return None };
    is_exactly(addr, inode).then(|| orphans.iter().find_map(|orphan| take(orphan, inode)))?
}

/// Whether it is the very socket that `addr` would be, and not one that merely collides with it.
fn is_exactly(addr: &ListenAddr, inode: u64) -> bool {
    match addr {
        ListenAddr::Tcp(tcp) => {
            let same = |one: &Listening| one.inode == inode && one.addr == *tcp;
            socket_holders::listening(*tcp).iter().any(same)
        }
        _ => true,
    }
}

/// The socket with `inode`, if we may have it.
fn take(orphan: &Orphan, inode: u64) -> Option<OwnedFd> {
    let number = orphan.holder.sockets.iter().find(|(_, held)| *held == inode)?.0;
    let socket = orphan.process.duplicate_fd(number).ok()?;
    let taken = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    let same = taken.to_str() == Some(&format!("socket:[{inode}]"));
    // Whose process made it listen; a TCP socket does not say, and was looked up in the kernel's table.
    let ours = credentials::peer_credentials(&socket)
        .map_or(true, |peer| peer.uid == credentials::effective_uid());
    (same && ours).then_some(socket)
}

fn is_of_our_user(orphan: &Orphan) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(format!("/proc/{}", orphan.holder.pid)).map(|meta| meta.uid());
    owner.is_ok_and(|uid| uid == credentials::effective_uid())
}

fn describe(orphans: &[Orphan]) -> String {
    let one = |orphan: &Orphan| {
        format!("pid {}, a worker of the dead primary pid {}", orphan.holder.pid, orphan.primary)
    };
    orphans.iter().map(one).collect::<Vec<_>>().join("; ")
}
