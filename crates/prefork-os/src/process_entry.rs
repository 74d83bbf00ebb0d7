//! Runs a function of this program in a new process of it, in place of `main`.
//!
//! The new process executes the same file. A function in `.init_array`, which the C library calls before `main`, finds
//! the variable that [`ProcessEntry::command`] has set, and calls the function. So the process has one thread, whatever
//! the threads of the process that started it, and none of the code of `main` has run.

use std::io;
use std::mem::size_of;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;

/// The variable that selects the function: distance to [`enter_requested_function`], device and inode of the program.
const ENTRY_VARIABLE: &str = "PREFORK_PROCESS_ENTRY";

/// The exit status after a panic, as that of a Rust program whose `main` panics.
const PANIC_STATUS: i32 = 101;

/// The exit status when the variable does not fit this program.
const INVALID_ENTRY_STATUS: i32 = 70;

/// A function of this program that a new process of it can run in place of `main`.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEntry {
    /// The distance from [`enter_requested_function`] in bytes. Unlike the address, it is the same in every process.
    distance: usize,
}

impl ProcessEntry {
    /// Returns the entry for `function`, whose result is the exit status of the process.
    ///
    /// Does not compile if `function` captures variables: they do not exist in another process.
    ///
    /// # Errors
    ///
    /// `/proc/self/maps` is not readable, or the function is in another shared library than this crate.
    pub fn new<F>(function: F) -> io::Result<ProcessEntry>
    where
        F: FnOnce() -> u8 + 'static,
    {
        const { require_no_captures::<F>() };
        // `enter_function` creates this value again, so it must not be dropped here.
        std::mem::forget(function);
        let address = enter_function::<F> as fn() -> u8 as usize;
        if mapped_file(address)? != mapped_file(anchor_address())? {
            return Err(io::Error::other(
                "the function is in another shared library than prefork-os",
            ));
        }
        Ok(ProcessEntry { distance: address.wrapping_sub(anchor_address()) })
    }

    /// Returns a command that runs the function in a new process of this program, with this process's environment.
    ///
    /// # Errors
    ///
    /// `/proc/self/exe` is not readable.
    pub fn command(self) -> io::Result<Command> {
        let (device, inode) = running_program()?;
        let path = std::env::current_exe()?;
        // A build may have put another file there.
        let is_same = std::fs::metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == (device, inode));
        let mut command =
            Command::new(if is_same { path.clone() } else { PathBuf::from("/proc/self/exe") });
        command.arg0(path);
        command.env(ENTRY_VARIABLE, format!("{:x},{device:x},{inode:x}", self.distance));
        Ok(command)
    }
}

/// Does not compile in a `const` block if functions of type `F` capture variables.
pub const fn require_no_captures<F>() {
    assert!(
        size_of::<F>() == 0,
        "the function runs in another process, where the variables that it captures do not exist: give a closure that \
         captures nothing, or the name of a function, and pass values in another way"
    );
}

/// Returns whether `name` is the variable that makes a process of this program run a function in place of `main`.
pub fn is_entry_variable(name: &str) -> bool {
    name == ENTRY_VARIABLE
}

fn anchor_address() -> usize {
    enter_requested_function as extern "C" fn() as usize
}

/// Returns device and inode of the program that this process executes.
fn running_program() -> io::Result<(u64, u64)> {
    let meta = std::fs::metadata("/proc/self/exe")?;
    Ok((meta.dev(), meta.ino()))
}

/// Returns device and inode, as text, of the file that is mapped at `address`.
fn mapped_file(address: usize) -> io::Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let file = maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let from = usize::from_str_radix(from, 16).ok()?;
        let to = usize::from_str_radix(to, 16).ok()?;
        let (device, inode) = (fields.nth(2)?, fields.next()?);
        (from..to).contains(&address).then(|| format!("{device} {inode}"))
    });
    file.ok_or_else(|| io::Error::other("a function of this program is not in /proc/self/maps"))
}

/// Calls the function of type `F`.
fn enter_function<F>() -> u8
where
    F: FnOnce() -> u8 + 'static,
{
    // SAFETY: `ProcessEntry::new` has checked that `F` has no bytes, so any well-aligned non-null pointer can be read. A value of it existed where
    // `ProcessEntry::new` was called, the only place that refers to this function, and was not dropped there.
    let function = unsafe { std::ptr::NonNull::<F>::dangling().as_ptr().read() };
    function()
}

// The C library calls the functions in this section once, before `main`, on the only thread.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTER_REQUESTED_FUNCTION: extern "C" fn() = enter_requested_function;

/// Runs the function that the environment requests, and exits. Returns without one, so that `main` runs.
extern "C" fn enter_requested_function() {
    let Some(requested) = std::env::var_os(ENTRY_VARIABLE) else { return };
    let entry = requested.to_str().and_then(parse_request);
    let Some(distance) = entry else {
        eprintln!("error: {ENTRY_VARIABLE} is for another program than this one; unset it");
        std::process::exit(INVALID_ENTRY_STATUS);
    };
    let address = anchor_address().wrapping_add(distance) as *const ();
    // SAFETY: this process executes the file that the sender of the request executed (see `parse_request`), and there
    // `enter_function` of some `F`, a `fn() -> u8`, was at this distance in the same mapped file.
    let enter = unsafe { std::mem::transmute::<*const (), fn() -> u8>(address) };
    let status = catch_unwind(AssertUnwindSafe(enter)).map_or(PANIC_STATUS, i32::from);
    std::process::exit(status);
}

/// Returns the distance of the requested function; `None` if the request is for another program than this one.
fn parse_request(text: &str) -> Option<usize> {
    let mut numbers = text.split(',');
    let distance = usize::from_str_radix(numbers.next()?, 16).ok()?;
    let mut number = || u64::from_str_radix(numbers.next()?, 16).ok();
    let program = (number()?, number()?);
    (running_program().ok()? == program).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_runs_in_a_new_process_with_one_thread() {
        let entry = ProcessEntry::new(|| {
            crate::thread::require_single_thread().expect("one thread");
            println!("{} {}", std::process::id(), std::env::args().count());
            42
        });
        let mut command = entry.expect("entry").command().expect("command");
        let output = command.output().expect("start");
        assert_eq!(output.status.code(), Some(42), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        let pid: u32 = text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
        assert_ne!(pid, std::process::id());
    }

    #[test]
    fn a_panic_of_the_function_is_status_101() {
        let entry = ProcessEntry::new(|| panic!("on purpose")).expect("entry");
        let output = entry.command().expect("command").output().expect("start");
        assert_eq!(output.status.code(), Some(PANIC_STATUS), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{output:?}");
    }

    #[test]
    fn a_request_for_another_program_is_refused() {
        let mut command = ProcessEntry::new(|| 0).expect("entry").command().expect("command");
        let output = command.env(ENTRY_VARIABLE, "0,1,1").output().expect("start");
        assert_eq!(output.status.code(), Some(INVALID_ENTRY_STATUS), "{output:?}");
    }
}
