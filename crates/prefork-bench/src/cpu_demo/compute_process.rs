//! A child process of this program that reads numbers from standard input and prints their Fibonacci numbers.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use prefork_os::parent_death::set_parent_death_signal;
use prefork_os::signal::Signal;
use tokio_prefork::{Error, Result};

/// Arguments that start such a process.
pub const COMPUTE_PROCESS_ARGS: [&str; 2] = ["demo", "spare"];

/// Runs in the child: computes one number per input line, until end of file.
///
/// # Errors
/// Standard input or output fails, or a line is not a number.
pub fn run_compute_process(fib: fn(u64) -> u64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let n: u64 = line?.trim().parse().map_err(std::io::Error::other)?;
        writeln!(out, "{}", fib(n))?;
        out.flush()?;
    }
    Ok(())
}

/// A child process that computes; killed when dropped.
pub(crate) struct ComputeProcess {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl ComputeProcess {
    pub(crate) fn start() -> Result<ComputeProcess> {
        let fail = |e| Error::system("start this program as a compute process", e);
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command.args(COMPUTE_PROCESS_ARGS).stdin(Stdio::piped()).stdout(Stdio::piped());
        set_parent_death_signal(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().map_err(fail)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| fail(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(ComputeProcess { child, input, answers: BufReader::new(output).lines() })
    }

    /// Sends a number without waiting for the result.
    pub(crate) fn send_number(&mut self, n: u64) -> Result<()> {
        let line = format!("{n}\n");
        self.input
            .write_all(line.as_bytes())
            .map_err(|e| Error::system("send a number to a process", e))
    }

    /// Waits for the next result.
    pub(crate) fn read_result(&mut self) -> Result<String> {
        let ended = || std::io::ErrorKind::UnexpectedEof.into();
        let line = self.answers.next().unwrap_or_else(|| Err(ended()));
        line.map_err(|e| Error::system("read the result of a process", e))
    }
}

impl Drop for ComputeProcess {
    fn drop(&mut self) {
        // Fails only if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
