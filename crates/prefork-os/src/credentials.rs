//! Who a process runs as, and giving up rights for good.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Uid};

use super::{cvt, libc};
use crate::{OsError, Result};

/// Capabilities have fewer numbers than this; the kernel says where they end.
const MAX_CAPABILITIES: libc::c_ulong = 64;

/// The capability sets of a process in `/proc/self/status`; what can be gained by them is nothing if all are empty.
const CAPABILITY_SETS: [&str; 4] = ["CapInh", "CapPrm", "CapEff", "CapAmb"];

/// `_LINUX_CAPABILITY_VERSION_3`, whose sets are two times 32 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// As in `linux/capability.h`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// As in `linux/capability.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Makes this process run as `uid`, `gid` and `groups` and nothing else, without capabilities and without a way to
/// gain any, and looks whether it is so. The kernel forgets PDEATHSIG over it: set that afterwards.
///
/// Call it only in a process with one thread, as a freshly forked child is: rights are a thread's own.
///
/// # Errors
/// The system refuses a step, or the outcome is not as asked. Then the process must end.
pub fn drop_privileges(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let failed = |what: &str, e: nix::Error| OsError::new(what, io::Error::from(e));
    let root = nix::unistd::geteuid().is_root();
    if root {
        clear_bounding_set();
        let list: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&list).map_err(|e| failed("set the groups (CAP_SETGID)", e))?;
        let gid = Gid::from_raw(gid);
        nix::unistd::setresgid(gid, gid, gid)
            .map_err(|e| failed(&format!("become group {gid} (CAP_SETGID)"), e))?;
        let uid = Uid::from_raw(uid);
        nix::unistd::setresuid(uid, uid, uid)
            .map_err(|e| failed(&format!("become user {uid} (CAP_SETUID)"), e))?;
        // Siblings run as the same user: they must not trace each other, or read each other's memory.
        nix::sys::prctl::set_dumpable(false).map_err(|e| failed("forbid tracing", e))?;
    }
    drop_capabilities().map_err(|e| OsError::new("drop all capabilities", e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("forbid new privileges", e))?;
    verify_dropped(uid, gid, root.then_some(groups))
}

/// What an exec could gain is nothing any more, even of a file with capabilities. That takes CAP_SETPCAP; without it
/// no_new_privs has to do.
fn clear_bounding_set() {
    for capability in 0..MAX_CAPABILITIES {
        // SAFETY: takes a number and changes nothing but the set; a wrong number is an error.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            return;
        }
    }
}

fn drop_capabilities() -> io::Result<()> {
    let clear_all = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: takes numbers and changes nothing but the set.
    cvt(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear_all, 0, 0, 0) })?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [CapabilitySets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: both live over the call and are laid out as this version of the call has it.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) };
    cvt(done as libc::c_int)?;
    Ok(())
}

/// Reads back what was asked for. `groups` are compared only where they could be set.
fn verify_dropped(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    let wrong = |what: String| {
        OsError::new("give up privileges", io::Error::other(format!("{what} after all was done")))
    };
    let read = |what: &str, e: nix::Error| OsError::new(format!("read back {what}"), e);
    let users = nix::unistd::getresuid().map_err(|e| read("the user", e))?;
    let is = [users.real, users.effective, users.saved].map(Uid::as_raw);
    if is != [uid; 3] {
        return Err(wrong(format!("the user is {is:?}, not {uid}")));
    }
    let group = nix::unistd::getresgid().map_err(|e| read("the group", e))?;
    let is = [group.real, group.effective, group.saved].map(Gid::as_raw);
    if is != [gid; 3] {
        return Err(wrong(format!("the group is {is:?}, not {gid}")));
    }
    if let Some(wanted) = groups {
        let sorted = |mut list: Vec<u32>| {
            list.sort_unstable();
            list.dedup();
            list
        };
        let is = nix::unistd::getgroups().map_err(|e| read("the groups", e))?;
        let is = sorted(is.into_iter().map(Gid::as_raw).collect());
        if is != sorted(wanted.to_vec()) {
            return Err(wrong(format!("the groups are {is:?}, not {wanted:?}")));
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|e| OsError::new("read back the capabilities in /proc/self/status", e))?;
    if let Some(left) = find_remaining_privilege(&status) {
        return Err(wrong(left));
    }
    if uid != 0 && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(wrong("root can be had again".to_string()));
    }
    Ok(())
}

/// What a process with this `/proc/PID/status` may do that it should not, if anything. Pure.
fn find_remaining_privilege(status: &str) -> Option<String> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let set = |name: &&str| match field(name).map(|bits| u64::from_str_radix(bits, 16)) {
        Some(Ok(0)) => None,
        Some(_) | None => Some(format!("{name} is {}", field(name).unwrap_or("unknown"))),
    };
    let privileges = match field("NoNewPrivs") {
        Some("1") => None,
        _ => Some("new privileges can be gained".to_string()),
    };
    CAPABILITY_SETS.iter().find_map(set).or(privileges)
}

/// Leaves the calling thread, and no other, only those capabilities whose bits are set in these two words.
#[cfg(any(test, feature = "testing"))]
pub fn restrict_thread_capabilities(low: u32, high: u32) -> io::Result<()> {
    // _LINUX_CAPABILITY_VERSION_3, and the calling thread; then effective, permitted, inheritable, twice.
    let header: [u32; 2] = [0x2008_0522, 0];
    let kept = [low, low, 0, high, high, 0];
    // SAFETY: a header, and two sets of three words, as this version has; both are only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const kept) };
    cvt(result as libc::c_int).map(drop)
}

/// The user as whom this process acts.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Who is at the other end of a Unix socket, by the kernel's word: whoever connected it, or made it listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// 0 if the process is not visible from here (another pid namespace).
    pub pid: u32,
    pub uid: u32,
}

/// Who is at the other end of `socket`.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials {
        pid: u32::try_from(credentials.pid()).unwrap_or(0),
        uid: credentials.uid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "Name:\tx\nNoNewPrivs:\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
                         CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";

    #[test]
    fn a_clean_status_leaves_nothing() {
        assert_eq!(find_remaining_privilege(CLEAN), None);
    }

    #[test]
    fn whatever_is_left_or_cannot_be_known_is_told() {
        for (before, after, told) in [
            (
                "CapEff:\t0000000000000000",
                "CapEff:\t0000000000000400",
                "CapEff is 0000000000000400",
            ),
            (
                "CapInh:\t0000000000000000",
                "CapInh:\t0000000000000001",
                "CapInh is 0000000000000001",
            ),
            ("CapAmb:\t0000000000000000\n", "", "CapAmb is unknown"),
            ("CapPrm:\t0000000000000000", "CapPrm:\tnothing", "CapPrm is nothing"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "new privileges can be gained"),
            ("NoNewPrivs:\t1\n", "", "new privileges can be gained"),
        ] {
            assert!(CLEAN.contains(before), "{before}");
            assert_eq!(
                find_remaining_privilege(&CLEAN.replace(before, after)).as_deref(),
                Some(told)
            );
        }
    }
}
