//! Runs the command that builds the program, and passes on what it prints.

use std::io::{self, IsTerminal, PipeReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cargo_command::{self, CargoBuild};
use super::messages::BuildReport;
use super::project_dir;

/// How much of the end of a build's output is kept for the browser.
const MAX_OUTPUT_BYTES: usize = 128 << 10;

/// How long to wait, after the end of the build's process, for the end of its output: a process that it has left behind may keep the
/// pipe open.
const OUTPUT_END_TIMEOUT: Duration = Duration::from_millis(500);

/// How a program is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BuildStep {
    /// A command of the shell.
    Shell(String),
    /// `cargo build`, which says where the program is.
    Cargo(CargoBuild),
}

/// The end of what a build has printed.
#[derive(Debug, Default)]
struct KeptOutput(Vec<u8>);

impl KeptOutput {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Cut rarely, as it moves the rest.
        if self.0.len() > 2 * MAX_OUTPUT_BYTES {
            self.0.drain(..self.0.len() - MAX_OUTPUT_BYTES);
        }
    }

    fn text(&self) -> String {
        let from = self.0.len().saturating_sub(MAX_OUTPUT_BYTES);
        String::from_utf8_lossy(&self.0[from..]).into_owned()
    }
}

/// Where the output of a build goes: to this process's standard error, and its end to the browser.
#[derive(Debug, Clone, Default)]
pub(crate) struct BuildOutput(Arc<Mutex<KeptOutput>>);

impl BuildOutput {
    pub(crate) fn write(&self, bytes: &[u8]) {
        // A terminal that is gone must not end the build.
        let _ = io::stderr().lock().write_all(bytes);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

/// Runs a build to its end. Blocks the thread.
pub(crate) fn run_build(step: &BuildStep) -> BuildReport {
    let output = BuildOutput::default();
    let result = match step {
        BuildStep::Shell(line) => run_shell(line, &output).map(|()| None),
        BuildStep::Cargo(build) => cargo_command::run_cargo_build(build, &output).map(Some),
    };
    let (failure, program) = match result {
        Ok(program) => (None, program),
        Err(failure) => (Some(failure), None),
    };
    BuildReport { failure, output: output.text(), program }
}

fn run_shell(line: &str, output: &BuildOutput) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]);
    let failed = |e: io::Error| format!("cannot run {line:?}: {e}");
    let (reader, writer) = io::pipe().map_err(failed)?;
    command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let printed = pass_output_on(reader, output);
    let status = run_to_end(command).map_err(failed)?;
    wait_for_output(&printed);
    check_status(status)
}

/// Starts a command without input and waits for its end. The command's descriptors are closed here when it has started.
pub(crate) fn run_to_end(mut command: Command) -> io::Result<ExitStatus> {
    if let Some(dir) = project_dir() {
        // By its path: the directory may have been deleted and made again.
        command.current_dir(dir);
    }
    let mut child = command.stdin(Stdio::null()).spawn()?;
    // Its pipes must end with the child.
    drop(command);
    child.wait()
}

/// Copies what arrives to the output, in a thread.
pub(crate) fn pass_output_on(mut reader: PipeReader, output: &BuildOutput) -> JoinHandle<()> {
    let output = output.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            output.write(&buffer[..read]);
        }
    })
}

/// Waits until a thread has copied the rest of the output, up to a limit.
pub(crate) fn wait_for_output<T>(thread: &JoinHandle<T>) {
    let deadline = Instant::now() + OUTPUT_END_TIMEOUT;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Returns why a build with this exit status failed.
pub(crate) fn check_status(status: ExitStatus) -> Result<(), String> {
    match status.success() {
        true => Ok(()),
        // "exit status: 101", or the signal.
        false => Err(status.to_string()),
    }
}

/// Returns whether programs that print to a pipe should use colours, as it is shown in a terminal.
pub(crate) fn wants_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> BuildReport {
        run_build(&BuildStep::Shell(line.to_string()))
    }

    #[test]
    fn a_build_reports_its_output_and_why_it_failed() {
        let good = shell("echo out; echo err >&2");
        assert_eq!((good.failure, good.output.as_str()), (None, "out\nerr\n"));
        let bad = shell("echo wrong >&2; exit 3");
        assert_eq!(bad.failure.as_deref(), Some("exit status: 3"));
        assert_eq!(bad.output, "wrong\n");
        let killed = shell("kill -9 $$").failure.expect("failed");
        assert!(killed.starts_with("signal: 9"), "{killed}");
    }

    #[test]
    fn the_input_of_a_build_is_empty_and_a_process_that_it_leaves_behind_is_not_waited_for() {
        let started = Instant::now();
        let report = shell("cat; sleep 30 & echo $!");
        assert_eq!(report.failure, None);
        assert!(started.elapsed() < Duration::from_secs(20));
        let pid = report.output.trim().parse().expect("a pid");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("left behind");
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let mut kept = KeptOutput::default();
        for n in 0..100_000 {
            kept.push(format!("line {n}\n").as_bytes());
        }
        let text = kept.text();
        assert!(text.len() == MAX_OUTPUT_BYTES && text.ends_with("line 99999\n"));
    }
}
