//! Properties of processes: environment, open file limit and title of this one, and what `/proc` shows of any.

use std::ffi::CString;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{libc, syscall_result};
use crate::Result;
use crate::thread::require_single_thread;

/// Removes from the environment all variables for whose name `should_remove` returns true.
///
/// Used for variables that address this process only, such as those of the service manager: workers must not inherit them.
///
/// # Errors
/// The process has more than one thread: another one could read the environment at the same time.
pub fn remove_env_vars(mut should_remove: impl FnMut(&str) -> bool) -> Result<()> {
    let mut names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    names.retain(|name| name.to_str().is_some_and(&mut should_remove));
    if names.is_empty() {
        return Ok(());
    }
    require_single_thread()?;
    for name in &names {
        // SAFETY: the process has one thread (checked above), so no other one reads the environment now.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Sets environment variables, given as name and value.
///
/// # Errors
/// The process has more than one thread: another one could read the environment at the same time.
///
/// # Panics
/// A name is empty or contains `=`, or a name or value contains NUL.
pub fn set_env_vars(variables: &[(String, String)]) -> Result<()> {
    if variables.is_empty() {
        return Ok(());
    }
    require_single_thread()?;
    for (name, value) in variables {
        // SAFETY: the process has one thread (checked above), so no other one reads the environment now.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Raises the soft limit of open files (RLIMIT_NOFILE) to the hard limit and returns it.
///
/// Each connection needs a descriptor, and the usual soft limit of 1024 exists for programs that use `select`.
pub fn raise_open_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Returns how many files this process may have open (the soft RLIMIT_NOFILE).
pub fn open_file_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Returns the state of process `pid` as in `/proc/PID/stat`: `R`, `S`, `D`, `T`, `Z` and so on. `None` if unreadable.
pub fn process_state(pid: u32) -> Option<char> {
    read_stat_fields(pid)?.chars().next()
}

/// Returns the name of process `pid` as in `/proc/PID/comm`, or `None` if the process does not exist.
///
/// The process may choose any bytes: escape them before printing.
pub fn process_command_name(pid: u32) -> Option<Vec<u8>> {
    let mut name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.truncate(name.trim_ascii_end().len());
    Some(name)
}

/// Returns the start time of process `pid` in clock ticks since boot, or `None` if it does not exist or is a zombie.
///
/// Together with the pid it identifies a process until reboot. It stays the same across an exec.
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    let fields = read_stat_fields(pid)?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(ticks)
}

/// Returns the parent of process `pid`, or `None` if the process does not exist.
pub fn parent_pid(pid: u32) -> Option<u32> {
    read_stat_fields(pid)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What a process uses of memory and CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUsage {
    /// The process id of its parent.
    pub parent: u32,
    /// CPU time of all its threads since it was forked, without its children.
    pub cpu_time: Duration,
    /// Resident memory in bytes, shared pages included.
    pub resident_bytes: u64,
}

/// Reads what process `pid` uses, or `None` if it does not exist.
///
/// Reads `/proc/PID/stat`, which waits for no lock of the process, not even of one that is stuck in a page fault.
pub fn process_usage(pid: u32) -> Option<ProcessUsage> {
    let fields = read_stat_fields(pid)?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Numbered from 1 in proc(5); the first one here is number 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)?.saturating_add(field(15)?);
    Some(ProcessUsage {
        parent: u32::try_from(field(4)?).ok()?,
        cpu_time: Duration::from_millis(ticks.saturating_mul(1000) / clock_ticks_per_second()),
        resident_bytes: field(24)?.saturating_mul(crate::system::page_size()),
    })
}

fn clock_ticks_per_second() -> u64 {
    // SAFETY: sysconf takes a number and only reads.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Returns how many descriptors process `pid` has open; `None` if it does not exist or belongs to another user.
pub fn open_fd_count(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the size of the directory is the number; before, it is 0. A process always has at least one open.
    match std::fs::metadata(&path).ok()?.len() {
        0 => std::fs::read_dir(path).ok().map(|entries| entries.count() as u64),
        count => Some(count),
    }
}

/// Returns whether process `pid` was started with this environment variable. `false` if it does not exist or belongs to another user.
pub fn has_environment_variable(pid: u32, name: &str) -> bool {
    let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    variables.split(|byte| *byte == 0).any(|pair| {
        pair.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
    })
}

/// Returns the children of process `pid`, which has one thread. Empty if it does not exist, or if the kernel does not tell.
pub fn child_pids(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns the fields of `/proc/PID/stat` from the third one, the state. The name before it may contain any bytes.
fn read_stat_fields(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ").map(|(_, fields)| fields.to_string())
}

/// The sub-command of `PR_SET_MM` that sets all fields at once. Unlike the others, it needs no privilege.
const PR_SET_MM_MAP: libc::c_ulong = 14;

/// The addresses of this process, read when its title is set for the first time. They stay the same over forks, so that workers need
/// not read them.
static MEMORY_ADDRESSES: OnceLock<PrctlMmMap> = OnceLock::new();

/// `struct prctl_mm_map`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrctlMmMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Returns the addresses of this process without those that `set_process_title` changes.
fn read_memory_addresses() -> io::Result<PrctlMmMap> {
    let fields = std::fs::read_to_string("/proc/self/stat")?;
    // Field 2 is the name, which may contain any bytes; field 3 follows its closing parenthesis.
    let fields = fields.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let fields: Vec<&str> = fields.collect();
    let field = |number: usize| -> io::Result<u64> {
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        fields.get(number - 3).and_then(|text| text.parse().ok()).ok_or_else(missing)
    };
    Ok(PrctlMmMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: 0,
        start_stack: field(28)?,
        arg_start: 0,
        arg_end: 0,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    })
}

/// Sets the command line that `ps` and `top` show for this process to `title`.
///
/// Points the kernel to other memory and overwrites none, so `std::env::args` stays the same. The short name, by which
/// `pgrep` finds the program, also stays.
///
/// # Errors
/// `title` contains NUL, or the kernel is built without CONFIG_CHECKPOINT_RESTORE.
pub fn set_process_title(title: &str) -> io::Result<()> {
    let text = CString::new(title).map_err(|_| io::ErrorKind::InvalidInput)?;
    let memory = MEMORY_ADDRESSES.get().copied().map_or_else(read_memory_addresses, Ok)?;
    let _ = MEMORY_ADDRESSES.set(memory);
    // Leaked, because the kernel reads it until the process ends. A process sets its title only once or twice.
    let text = text.into_bytes_with_nul().leak();
    let range = text.as_ptr_range();
    let map = PrctlMmMap {
        // SAFETY: sbrk(0) only reads.
        brk: unsafe { libc::sbrk(0) } as u64,
        arg_start: range.start as u64,
        arg_end: range.end as u64,
        ..memory
    };
    // SAFETY: `map` outlives the call and has the size given. The kernel checks every address in it; all but the two of
    // the arguments are its current values.
    syscall_result(unsafe {
        libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<PrctlMmMap>(), 0)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_grows_with_what_a_process_uses() {
        let usage = || process_usage(std::process::id()).expect("usage");
        let before = usage();
        assert_eq!(before.parent, std::os::unix::process::parent_id());
        let block = vec![1u8; 64 << 20];
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while usage().cpu_time <= before.cpu_time {
            assert!(std::time::Instant::now() < deadline, "no CPU time is counted");
        }
        assert!(usage().resident_bytes >= block.len() as u64);
        assert_eq!(process_usage(u32::MAX), None);
    }

    #[test]
    fn the_title_replaces_the_command_line_in_proc() {
        if set_process_title("prefork: a test").is_ok() {
            let shown = std::fs::read_to_string("/proc/self/cmdline").expect("cmdline");
            assert_eq!(shown.trim_end_matches('\0'), "prefork: a test");
        }
        assert!(std::env::args().next().is_some_and(|arg| !arg.starts_with("prefork: ")));
    }
}
