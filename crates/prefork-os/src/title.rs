//! What `ps` and `top` show for this process.

use std::ffi::CString;
use std::io;

use super::{cvt, libc};

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
pub fn set(title: &str) -> io::Result<()> {
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
        if set("prefork: a test").is_ok() {
            let shown = std::fs::read_to_string("/proc/self/cmdline").expect("cmdline");
            assert_eq!(shown.trim_end_matches('\0'), "prefork: a test");
        }
        assert!(std::env::args().next().is_some_and(|arg| !arg.starts_with("prefork: ")));
    }
}
