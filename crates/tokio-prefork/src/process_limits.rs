//! What the kernel enforces on the worker processes of one kind: memory, open files, core dumps and the process group.

use crate::error::{Error, Result};
use prefork_os::process_group::become_group_leader;
use prefork_os::resource_limits::{
    ProcessMemory, data_limit, disable_core_dumps, limit_address_space, limit_data,
    limit_open_files,
};
use prefork_supervisor::WorkerTag;

/// The limits of a process, set in the child before any code of the application.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessLimits {
    /// Whether the process leads a process group of its own, which is killed as a whole.
    pub(crate) has_own_group: bool,
    /// Private writable memory in bytes.
    pub(crate) max_data: Option<u64>,
    /// All mappings in bytes.
    pub(crate) max_address_space: Option<u64>,
    /// Resident memory in bytes. The kernel has no such limit: private memory is limited so that it fits.
    pub(crate) max_rss: Option<u64>,
    /// Private memory that is reserved but hardly used, such as thread stacks: added to what `max_rss` allows.
    pub(crate) reserved_bytes: u64,
    pub(crate) open_files: Option<u64>,
    pub(crate) has_no_core_dumps: bool,
}

impl ProcessLimits {
    /// Puts this process, a freshly forked child, into its process group. Call it before anything else.
    pub(crate) fn enter_process_group(&self, tag: WorkerTag) -> Result<()> {
        if !self.has_own_group {
            return Ok(());
        }
        become_group_leader()
            .map_err(|e| Error::system(format!("create a process group for {tag}"), e))
    }

    /// Sets the limits of this process, a freshly forked child of the process `primary`.
    ///
    /// # Errors
    /// The process exceeds a limit already, or a hard limit that it inherited is lower.
    pub(crate) fn apply(&self, primary: u32) -> Result<()> {
        if self.has_no_core_dumps {
            disable_core_dumps().map_err(|e| Error::system("disable core dumps", e))?;
        }
        if let Some(files) = self.open_files {
            limit_open_files(files)
                .map_err(|e| Error::system(format!("limit the open files to {files}"), e))?;
        }
        if let Some(bytes) = self.max_address_space {
            let used = read_memory()?.address_space;
            check_room("max_address_space_bytes", bytes, used)?;
            limit_address_space(bytes).map_err(|e| {
                Error::system(format!("limit the address space to {bytes} bytes"), e)
            })?;
        }
        if let Some(bytes) = self.data_limit(primary)? {
            limit_data(bytes)
                .map_err(|e| Error::system(format!("limit the memory to {bytes} bytes"), e))?;
        }
        Ok(())
    }

    /// Returns the limit of private writable memory, if there is one.
    fn data_limit(&self, primary: u32) -> Result<Option<u64>> {
        if self.max_data.is_none() && self.max_rss.is_none() {
            return Ok(None);
        }
        let own = read_memory()?;
        if let Some(bytes) = self.max_data {
            check_room("max_data_bytes", bytes, own.data)?;
        }
        let of_rss = match self.max_rss {
            Some(max_rss) => {
                // The child has not touched all the code yet that its parent has in memory.
                let of_primary = ProcessMemory::of_process(primary).map_or(0, |one| one.resident);
                let resident = own.resident.max(of_primary);
                check_room("max_rss", max_rss, resident)?;
                Some((max_rss - resident).saturating_add(own.data + self.reserved_bytes))
            }
            None => None,
        };
        let inherited = data_limit().map_err(|e| Error::system("read the limit of memory", e))?;
        Ok(self.max_data.into_iter().chain(of_rss).chain(inherited).min())
    }
}

fn read_memory() -> Result<ProcessMemory> {
    ProcessMemory::of_this_process()
        .map_err(|e| Error::system("read the memory of this process in /proc/self/status", e))
}

/// Checks that the process uses less than the limit.
fn check_room(setting: &str, limit: u64, used: u64) -> Result<()> {
    if used < limit {
        return Ok(());
    }
    Err(Error::config(format!(
        "{setting} of {limit} bytes is too low: the process uses {used} bytes before its first job"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_what_the_process_uses_is_an_error_that_names_both() {
        let own = std::process::id();
        for limits in [
            ProcessLimits { max_rss: Some(1 << 20), ..ProcessLimits::default() },
            ProcessLimits { max_data: Some(4096), ..ProcessLimits::default() },
        ] {
            let error = limits.data_limit(own).expect_err("too low").to_string();
            assert!(error.contains("is too low: the process uses "), "{error}");
        }
    }

    #[test]
    fn the_memory_limit_leaves_what_max_rss_leaves() {
        let own = std::process::id();
        let limit = |max_rss, reserved_bytes| {
            let limits = ProcessLimits {
                max_rss: Some(max_rss),
                reserved_bytes,
                ..ProcessLimits::default()
            };
            limits.data_limit(own).expect("read").expect("a limit")
        };
        let memory = read_memory().expect("own");
        let room = limit(memory.resident + (512 << 20), 0);
        // Other tests run in the same process.
        let expected = memory.data + (512 << 20);
        assert!(room.abs_diff(expected) < 256 << 20, "{room} {expected}");
        assert_eq!(ProcessLimits::default().data_limit(own).expect("none"), None);
        let lower = ProcessLimits {
            max_rss: Some(1 << 50),
            max_data: Some(1 << 45),
            ..ProcessLimits::default()
        };
        assert_eq!(lower.data_limit(own).expect("read"), Some(1 << 45));
    }
}
