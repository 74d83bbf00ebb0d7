//! Users, groups and capabilities: dropping privileges for good, and the credentials of a socket's peer.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Uid};

use super::{libc, syscall_result};
use crate::{OsError, Result};

/// Upper bound of the capability numbers; the kernel rejects numbers that it does not know.
const MAX_CAPABILITIES: libc::c_ulong = 64;

/// The capability sets in `/proc/PID/status` that must be empty.
const CAPABILITY_SET_NAMES: [&str; 4] = ["CapInh", "CapPrm", "CapEff", "CapAmb"];

/// `_LINUX_CAPABILITY_VERSION_3`, in which a set is two 32-bit words.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Switches this process irrevocably to `uid`, `gid` and `groups`, drops all capabilities, and verifies the result.
///
/// A process that is not root only drops its capabilities. Sets no_new_privs in any case. Call it in a process with one
/// thread, such as a newly forked child, because credentials belong to a thread. Set the parent death signal
/// afterwards: the kernel clears it here.
///
/// # Errors
/// A step fails, or the credentials read back differ from those wanted. The process must then exit.
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
        // Workers run as the same user, but must not trace each other or read each other's memory.
        nix::sys::prctl::set_dumpable(false).map_err(|e| failed("forbid tracing", e))?;
    }
    drop_capabilities().map_err(|e| OsError::new("drop all capabilities", e))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("forbid new privileges", e))?;
    verify_dropped(uid, gid, root.then_some(groups))
}

/// Empties the bounding set, so that executing a file with capabilities gains none.
///
/// Stops silently without CAP_SETPCAP; no_new_privs then has the same effect.
fn clear_bounding_set() {
    for capability in 0..MAX_CAPABILITIES {
        // SAFETY: takes numbers and changes only the bounding set; an unknown number is an error.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            return;
        }
    }
}

fn drop_capabilities() -> io::Result<()> {
    let clear_all = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: takes numbers and changes only the ambient set.
    syscall_result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear_all, 0, 0, 0) })?;
    set_thread_capabilities([0, 0])
}

/// Sets the effective and permitted capabilities of the calling thread, and clears the inheritable ones.
fn set_thread_capabilities(words: [u32; 2]) -> io::Result<()> {
    // A pid of 0 means the calling thread.
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let sets =
        words.map(|word| CapabilitySets { effective: word, permitted: word, inheritable: 0 });
    // SAFETY: the kernel reads both structs, which outlive the call and have the layout of this version.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
    syscall_result(result as libc::c_int).map(drop)
}

/// Verifies the credentials and capabilities of this process. Does not compare groups if `groups` is `None`.
fn verify_dropped(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    let wrong = |what: String| {
        OsError::new(
            "drop privileges",
            io::Error::other(format!("{what} although all steps succeeded")),
        )
    };
    let read = |what: &str, e: nix::Error| OsError::new(format!("read back {what}"), e);
    let users = nix::unistd::getresuid().map_err(|e| read("the user", e))?;
    let actual = [users.real, users.effective, users.saved].map(Uid::as_raw);
    if actual != [uid; 3] {
        return Err(wrong(format!("the user is {actual:?}, not {uid}")));
    }
    let group = nix::unistd::getresgid().map_err(|e| read("the group", e))?;
    let actual = [group.real, group.effective, group.saved].map(Gid::as_raw);
    if actual != [gid; 3] {
        return Err(wrong(format!("the group is {actual:?}, not {gid}")));
    }
    if let Some(wanted) = groups {
        let sorted = |mut list: Vec<u32>| {
            list.sort_unstable();
            list.dedup();
            list
        };
        let actual = nix::unistd::getgroups().map_err(|e| read("the groups", e))?;
        let actual = sorted(actual.into_iter().map(Gid::as_raw).collect());
        if actual != sorted(wanted.to_vec()) {
            return Err(wrong(format!("the groups are {actual:?}, not {wanted:?}")));
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|e| OsError::new("read back the capabilities in /proc/self/status", e))?;
    if let Some(privilege) = find_remaining_privilege(&status) {
        return Err(wrong(privilege));
    }
    if uid != 0 && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(wrong("the process can become root again".to_string()));
    }
    Ok(())
}

/// Returns the first privilege left in the text of a `/proc/PID/status`, if any.
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
    CAPABILITY_SET_NAMES.iter().find_map(set).or(privileges)
}

/// Restricts the calling thread to the capabilities whose bits are set in `low` (0 to 31) and `high` (32 to 63).
#[cfg(any(test, feature = "testing"))]
pub fn restrict_thread_capabilities(low: u32, high: u32) -> io::Result<()> {
    set_thread_capabilities([low, high])
}

/// Returns the effective user id of this process.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The process at the other end of a Unix socket, as the kernel recorded it at connect or listen (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; 0 if the process is in a pid namespace that is not visible here.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
}

/// Returns the credentials of the peer of a connected Unix socket.
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

    const UNPRIVILEGED_STATUS: &str = "Name:\tx\nNoNewPrivs:\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
                         CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";

    #[test]
    fn an_unprivileged_status_has_no_remaining_privilege() {
        assert_eq!(find_remaining_privilege(UNPRIVILEGED_STATUS), None);
    }

    #[test]
    fn a_remaining_or_unknown_privilege_is_reported() {
        for (before, after, expected) in [
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
            assert!(UNPRIVILEGED_STATUS.contains(before), "{before}");
            assert_eq!(
                find_remaining_privilege(&UNPRIVILEGED_STATUS.replace(before, after)).as_deref(),
                Some(expected)
            );
        }
    }
}
