//! What a process does with a signal, as far as `/proc` shows it.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use prefork_os::signal::Signal;

/// Runtimes that install a handler for every stop signal of their own, also if the program has none. It exits at once then.
const RUNTIMES_WITH_HANDLERS: [&[u8]; 6] = [b"node", b"bun", b"deno", b"ruby", b"java", b"mono"];
/// Signals that no program handles but one of Go, whose runtime installs handlers for nearly all signals.
const SIGNALS_OF_GO: [i32; 3] = [23, 27, 30];

/// What a process does with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SignalHandling {
    /// It has no handler: the signal ends the process at once.
    Ends,
    /// There is a handler, which may be that of the language's runtime, which ends the process, too.
    Unknown,
    /// The program has a handler of its own, or ignores the signal.
    Handled,
}

/// Returns what process `pid` does with `signal`. [`SignalHandling::Unknown`] if it is not readable.
pub(super) fn signal_handling(pid: u32, signal: Signal) -> SignalHandling {
    let Ok(status) = fs::read(format!("/proc/{pid}/status")) else {
        return SignalHandling::Unknown;
    };
    let status = String::from_utf8_lossy(&status);
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = executable.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    parse_handling(&status, name, signal as i32)
}

fn parse_handling(status: &str, executable: &[u8], signal: i32) -> SignalHandling {
    let set = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let (Some(caught), Some(ignored)) = (set("SigCgt:"), set("SigIgn:")) else {
        return SignalHandling::Unknown;
    };
    let has = |set: u64, signal: i32| set >> (signal - 1) & 1 == 1;
    if has(ignored, signal) {
        return SignalHandling::Handled;
    }
    if !has(caught, signal) {
        return SignalHandling::Ends;
    }
    let is_runtime = RUNTIMES_WITH_HANDLERS.iter().any(|name| executable.starts_with(name));
    match is_runtime || SIGNALS_OF_GO.iter().all(|signal| has(caught, *signal)) {
        true => SignalHandling::Unknown,
        false => SignalHandling::Handled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_of_a_runtime_are_no_handlers_of_the_program() {
        let handling = |caught: u64, ignored: u64, executable: &[u8]| {
            let status = format!("Name:\tx\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n");
            parse_handling(&status, executable, 15)
        };
        let term = 1 << 14;
        assert_eq!(handling(0, 0, b"python3.11"), SignalHandling::Ends);
        assert_eq!(handling(!term, 0, b"server"), SignalHandling::Ends);
        assert_eq!(handling(term, 0, b"python3.11"), SignalHandling::Handled);
        assert_eq!(handling(0, term, b"python3.11"), SignalHandling::Handled);
        assert_eq!(handling(term, 0, b"node"), SignalHandling::Unknown);
        assert_eq!(handling(0xffff_ffff_7fc1_feff, 0, b"server"), SignalHandling::Unknown, "Go");
        assert_eq!(parse_handling("", b"x", 15), SignalHandling::Unknown);
    }

    #[test]
    fn a_program_without_handlers_ends() {
        let mut cat = std::process::Command::new("cat");
        let mut cat = cat.stdin(std::process::Stdio::piped()).spawn().expect("cat");
        assert_eq!(signal_handling(cat.id(), Signal::SIGTERM), SignalHandling::Ends);
        drop(cat.stdin.take());
        cat.wait().expect("reaped");
        assert_eq!(signal_handling(u32::MAX, Signal::SIGTERM), SignalHandling::Unknown);
    }
}
