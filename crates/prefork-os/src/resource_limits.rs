//! Limits that the kernel enforces on one process: memory, open files and core dumps (setrlimit).
//!
//! Each limit is soft and hard at once, so that the process cannot raise it. Programs that it starts inherit the limits,
//! and each program has them for itself.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

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
