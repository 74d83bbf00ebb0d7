//! What `/proc` says about the threads of a worker: their names, their states and which signals they handle and block.
//!
//! These files can be read without the right to trace the process, except `wchan`. Reading them does not wait for the worker.

use std::fs;
use std::path::PathBuf;

use prefork_os::stack_capture::MAX_CAPTURED_THREADS;

/// Returns up to [`MAX_CAPTURED_THREADS`] threads of a process, the first one of the process first.
pub(super) fn thread_ids(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    ids.take(MAX_CAPTURED_THREADS).collect()
}

/// Returns whether a process handles `signal`. Without a handler, the signal would end it.
pub(super) fn handles_signal(pid: u32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| has_signal(&status, "SigCgt:", signal))
}

/// Returns whether `signal` is in the set of signals that the line `field` of a status file shows.
fn has_signal(status: &str, field: &str, signal: i32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix(field));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (signal - 1) & 1 == 1)
}

/// The files of one thread.
pub(super) struct ThreadFiles {
    directory: PathBuf,
}

impl ThreadFiles {
    pub(super) fn new(pid: u32, thread: u32) -> ThreadFiles {
        ThreadFiles { directory: format!("/proc/{pid}/task/{thread}").into() }
    }

    fn read(&self, name: &str) -> Option<String> {
        let bytes = fs::read(self.directory.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_string())
    }

    pub(super) fn name(&self) -> String {
        self.read("comm").unwrap_or_default()
    }

    pub(super) fn blocks_signal(&self, signal: i32) -> bool {
        self.read("status").is_some_and(|status| has_signal(&status, "SigBlk:", signal))
    }

    /// Returns the state letter of the thread; `None` if it has ended.
    pub(super) fn state(&self) -> Option<char> {
        // The name of the program, which may contain anything, ends at the last parenthesis.
        let stat = self.read("stat")?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    /// Says why the thread has not answered a signal that it neither ignores nor has lost.
    pub(super) fn describe_silence(&self, signal: i32, waited_ms: u128) -> String {
        match self.state() {
            None => "the thread has ended".to_string(),
            Some('T') => {
                "stopped by a signal (SIGSTOP or SIGTSTP); kill -CONT continues it".to_string()
            }
            Some('t') => "stopped by a debugger".to_string(),
            Some('Z' | 'X') => "the thread is exiting".to_string(),
            Some('D') => {
                let place = self.read("wchan").filter(|place| !place.is_empty() && place != "0");
                let place = place.map(|place| format!(" in {place}")).unwrap_or_default();
                format!(
                    "in uninterruptible sleep{place}: it waits for a disk, a file system or a child of vfork"
                )
            }
            Some(_) if self.blocks_signal(signal) => format!("it blocks signal {signal}"),
            Some(state) => format!(
                "no answer within {waited_ms} ms (state {state}): the machine may be overloaded"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_signal_sets_of_status_files() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigCgt:\t0800000000000440\n";
        assert!(has_signal(status, "SigCgt:", 60) && has_signal(status, "SigCgt:", 7));
        assert!(!has_signal(status, "SigCgt:", 59) && !has_signal(status, "SigBlk:", 60));
        assert!(!has_signal("", "SigCgt:", 60) && !has_signal("SigCgt:\tzz", "SigCgt:", 60));
    }

    #[test]
    fn finds_this_thread_with_its_name_and_state() {
        let named = std::thread::Builder::new().name("a ) b (".to_string());
        let thread = named.spawn(|| {
            let thread = nix::unistd::gettid().as_raw() as u32;
            assert!(thread_ids(std::process::id()).contains(&thread));
            let files = ThreadFiles::new(std::process::id(), thread);
            (files.name(), files.state())
        });
        let found = thread.expect("thread").join().expect("joined");
        assert_eq!(found, ("a ) b (".to_string(), Some('R')));
        assert_eq!(ThreadFiles::new(std::process::id(), u32::MAX).state(), None);
    }
}
