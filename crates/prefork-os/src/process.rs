//! One process: its limits, its environment, its title, and what `/proc` shows of others.

use std::ffi::CString;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{cvt, libc};
use crate::Result;
use crate::thread::require_single_thread;

/// Removes variables that speak to this process alone (the service manager's, above all) from the
/// environment of a worker and of everything it starts.
///
/// # Errors
/// The process has more than one thread, so that another one might read the environment meanwhile.
pub fn remove_env_vars(mut unwanted: impl FnMut(&str) -> bool) -> Result<()> {
    let mut names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    names.retain(|name| name.to_str().is_some_and(&mut unwanted));
    if names.is_empty() {
        return Ok(());
    }
    require_single_thread()?;
    for name in &names {
        // SAFETY: the process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Adds variables to the environment, or replaces those with the same names. Names are not empty and have no `=`;
/// nothing has a NUL in it.
///
/// # Errors
/// The process has more than one thread, so that another one might read the environment meanwhile.
pub fn set_env_vars(variables: &[(String, String)]) -> Result<()> {
    if variables.is_empty() {
        return Ok(());
    }
    require_single_thread()?;
    for (name, value) in variables {
        // SAFETY: the process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Raises the soft limit on open files to the hard one and returns it. Descriptors are connections here, and
/// the usual soft limit of 1024 exists for programs that use `select`.
pub fn raise_open_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many files this process may have open.
pub fn open_file_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// The state of a process as `/proc` shows it: `R`, `S`, `D`, `T` and so on; `None` if it cannot be read.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have blanks and brackets in it.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Returns the name of a process as `/proc/PID/comm` shows it, if the process exists. The process chose these bytes: escape
/// them before they reach a terminal or a log.
pub fn process_command_name(pid: u32) -> Option<Vec<u8>> {
    let mut name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.truncate(name.trim_ascii_end().len());
    Some(name)
}

/// When process `pid` was started, in clock ticks since the machine was: with the pid it names one process for ever, also
/// over an exec. `None` if there is none, or only what is left of a dead one (a zombie).
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(ticks)
}

/// The parent of process `pid`.
pub fn parent_pid(pid: u32) -> Option<u32> {
    stat_fields(pid)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// `/proc/PID/stat` from the state on; the name before it may contain anything.
fn stat_fields(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ").map(|(_, fields)| fields.to_string())
}

/// `PR_SET_MM` and its sub-command that takes all fields at once; unlike the others it needs no privilege.
const PR_SET_MM_MAP: libc::c_ulong = 14;

/// As in `linux/prctl.h`.
#[repr(C)]
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

/// Shows `title` as command line. The short name stays, so that `pgrep` finds the program by it; and so does the
/// program's own view of its arguments: the kernel is pointed to other memory, none is overwritten.
///
/// # Errors
/// The kernel may be built without CHECKPOINT_RESTORE.
pub fn set_process_title(title: &str) -> io::Result<()> {
    let text = CString::new(title).map_err(|_| io::ErrorKind::InvalidInput)?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Field 2 is a name that may contain anything; what follows its last parenthesis starts with field 3.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let field = |number: usize| -> io::Result<u64> {
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        fields.get(number - 3).and_then(|text| text.parse().ok()).ok_or_else(missing)
    };
    // Leaked: the kernel reads it as long as the process lives. A title is set once or twice in a life.
    let text = text.into_bytes_with_nul().leak();
    let range = text.as_ptr_range();
    let map = PrctlMmMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        // SAFETY: sbrk(0) changes nothing.
        brk: unsafe { libc::sbrk(0) } as u64,
        start_stack: field(28)?,
        arg_start: range.start as u64,
        arg_end: range.end as u64,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: `map` lives over the call and has the size that is said; the kernel checks every address in it,
    // and all but the two of the arguments are those it has itself.
    cvt(unsafe {
        libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<PrctlMmMap>(), 0)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_is_what_ps_shows() {
        if set_process_title("prefork: a test").is_ok() {
            let shown = std::fs::read_to_string("/proc/self/cmdline").expect("cmdline");
            assert_eq!(shown.trim_end_matches('\0'), "prefork: a test");
        }
        assert!(std::env::args().next().is_some_and(|arg| !arg.starts_with("prefork: ")));
    }
}
