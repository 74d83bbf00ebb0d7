//! Limits that the kernel enforces on one process: memory, open files and core dumps (setrlimit).
//!
//! Each limit is soft and hard at once, so that the process cannot raise it. Programs that it starts inherit the limits,
//! and each program has them for itself.

use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{libc, syscall_result};

/// The memory of a process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Memory that is in RAM, including what it shares with other processes (`VmRSS`).
    pub resident: u64,
    /// Private writable memory, resident or not, without the main stack (`VmData`): what RLIMIT_DATA counts.
    pub data: u64,
    /// All mappings (`VmSize`): what RLIMIT_AS counts.
    pub address_space: u64,
}

impl ProcessMemory {
    /// Reads the memory of process `pid` from `/proc`.
    ///
    /// # Errors
    /// The process does not exist, has exited, or `/proc` is not mounted.
    pub fn of_process(pid: u32) -> io::Result<ProcessMemory> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        parse_status(&status).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Reads the memory of this process.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn of_this_process() -> io::Result<ProcessMemory> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        parse_status(&status).ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// Returns the resident memory of process `pid` in bytes, or `None` if it does not exist.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * crate::system::page_size())
}

fn parse_status(status: &str) -> Option<ProcessMemory> {
    let bytes = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        Some(kib * 1024)
    };
    Some(ProcessMemory {
        resident: bytes("VmRSS")?,
        data: bytes("VmData")?,
        address_space: bytes("VmSize")?,
    })
}

/// Limits private writable memory (RLIMIT_DATA): heap, thread stacks and private mappings, resident or only reserved.
///
/// An allocation beyond it fails. Shared mappings, files that are only read, and the main stack do not count.
///
/// # Errors
/// The hard limit of this process is lower already, and it may not raise it.
pub fn limit_data(bytes: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?)
}

/// Returns the hard limit of private writable memory in bytes, or `None` if it is unlimited.
pub fn data_limit() -> io::Result<Option<u64>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    Ok((hard != nix::sys::resource::RLIM_INFINITY).then_some(hard))
}

/// Limits all mappings (RLIMIT_AS): private and shared memory, files, and addresses that are only reserved.
///
/// # Errors
/// The hard limit of this process is lower already, and it may not raise it.
pub fn limit_address_space(bytes: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_AS, bytes, bytes)?)
}

/// Limits the number of open descriptors (RLIMIT_NOFILE): the next one beyond it fails with EMFILE.
///
/// # Errors
/// The hard limit of this process is lower already, and it may not raise it.
pub fn limit_open_files(files: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, files, files)?)
}

/// Disables core dumps of this process, both those to files and those to a program.
///
/// PR_SET_DUMPABLE is not used: it would make root the owner of the files in `/proc/self`, so that the process could not
/// open some of its own, and debuggers could not attach.
pub fn disable_core_dumps() -> io::Result<()> {
    // A dump to a program ignores the limit, except for the value 1. In a file that leaves no room for a core either,
    // but tools show it as a limit, so it is used only where a program receives dumps.
    let pattern = std::fs::read("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let limit = u64::from(pattern.starts_with(b"|"));
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, limit.min(hard), limit.min(hard))?)
}

/// The word that is set when this process aborts because an allocation failed.
static FAILED_ALLOCATION: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// The size of a page, for the handler of SIGABRT.
static PAGE_BYTES: AtomicU64 = AtomicU64::new(4096);

/// Sets `word`, which another process may read, to 1 if this process aborts because a limit makes an allocation fail.
///
/// Rust aborts then, and the exit status alone does not tell why. An allocation is taken to have failed if the thread that
/// aborts has the error ENOMEM, or if less than an eighth of a limit is left. A handler of SIGABRT that the program
/// installs later replaces this one.
pub fn record_failed_allocation(word: &'static AtomicU64) -> io::Result<()> {
    PAGE_BYTES.store(crate::system::page_size(), Ordering::Relaxed);
    FAILED_ALLOCATION.store(std::ptr::from_ref(word).cast_mut(), Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is valid: empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle_abort as *const () as libc::sighandler_t;
    // The default action is back when the handler runs, and ends the process when it returns.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: `action` is initialised, and `handle_abort` calls only async-signal-safe functions.
    syscall_result(unsafe {
        libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut())
    })?;
    Ok(())
}

/// Handles SIGABRT: records a failed allocation, then lets the signal end the process.
extern "C" fn handle_abort(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let has_no_memory = Errno::last() == Errno::ENOMEM || is_memory_used_up();
    // SAFETY: the kernel passes a valid siginfo.
    let sender = unsafe { (*info).si_pid() };
    // SAFETY: getpid is async-signal-safe and cannot fail.
    let is_own = sender == unsafe { libc::getpid() };
    let word = FAILED_ALLOCATION.load(Ordering::Relaxed);
    if is_own && has_no_memory && !word.is_null() {
        // SAFETY: the pointer is that of a reference with a static lifetime.
        unsafe { (*word).store(1, Ordering::Relaxed) };
    }
    // SAFETY: raise is async-signal-safe. The signal stays blocked until the handler returns.
    unsafe { libc::raise(signal) };
}

/// Returns whether less than an eighth of a limit of memory is left. Async-signal-safe.
fn is_memory_used_up() -> bool {
    let mut text = [0; 256];
    // SAFETY: open, read and close are async-signal-safe; the path ends with NUL, and the buffer has the length given.
    let length = unsafe {
        let fd = libc::open(c"/proc/self/statm".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let length = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        length
    };
    let text = text.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    let mut pages = text.split(|byte| *byte == b' ').map(|word| {
        word.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit.saturating_sub(b'0')))
    });
    let (address_space, data) = (pages.next().unwrap_or(0), pages.nth(4).unwrap_or(0));
    let limits = [(libc::RLIMIT_AS, address_space), (libc::RLIMIT_DATA, data)];
    limits.into_iter().any(|(resource, pages)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit writes one rlimit. Linux makes it a plain system call, which is async-signal-safe.
        let has_limit = unsafe { libc::getrlimit(resource, &raw mut limit) } == 0
            && limit.rlim_cur != libc::RLIM_INFINITY;
        has_limit
            && pages.saturating_mul(PAGE_BYTES.load(Ordering::Relaxed)) >= limit.rlim_cur / 8 * 7
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_process_is_read_from_proc() {
        let own = ProcessMemory::of_this_process().expect("own");
        assert!(own.resident > 0 && own.data > 0 && own.address_space >= own.data, "{own:?}");
        let block = vec![1u8; 64 << 20];
        let after = ProcessMemory::of_process(std::process::id()).expect("by pid");
        assert!(after.data >= own.data + (60 << 20), "{own:?} {after:?}");
        assert!(
            resident_bytes(std::process::id()).is_some_and(|bytes| bytes >= block.len() as u64)
        );
        assert!(ProcessMemory::of_process(u32::MAX).is_err() && resident_bytes(u32::MAX).is_none());
        assert_eq!(parse_status("VmRSS:\t 1 kB\nVmData: 2 kB\n"), None);
    }
}
