//! A program that measures jobs: its start, the lines it prints, and its end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::killpg;
use nix::unistd::Pid;

use super::program_plan::{ProgramCosts, ProgramPlan};
use super::way_programs::WayProgram;
use prefork_os::parent_death::set_parent_death_signal;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::text::printable;

/// How often signals are looked for while a program measures.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a program may take, besides the time for its samples.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(120);
/// Figures of a program, each of which takes the budget of the plan.
const MAX_FIGURES: u32 = 6;
/// Bytes of standard error kept for an error message.
const MAX_ERROR_OUTPUT: u64 = 64 * 1024;

/// Why a program has no figures.
#[derive(Debug)]
pub(super) enum ProgramError {
    /// It did not start, failed, or took too long.
    Failed(String),
    /// A signal to this process came first.
    Interrupted,
}

impl ProgramError {
    fn new(why: impl std::fmt::Display) -> ProgramError {
        ProgramError::Failed(why.to_string())
    }
}

/// Runs a program, and returns its figures.
pub(super) fn run_for_costs(
    program: &WayProgram,
    plan: &ProgramPlan,
    signals: &mut SignalPipe,
) -> Result<ProgramCosts, ProgramError> {
    let mut running = MeasuredProgram::start(program, plan)?;
    match running.next_line(signals)? {
        Some((line, _)) => serde_json::from_str(&line)
            .map_err(|e| ProgramError::new(format_args!("it printed {line:.80}: {e}"))),
        None => Err(running.describe_exit()),
    }
}

/// A running program; dropping it kills it, and the processes of its process group.
#[derive(Debug)]
pub(super) struct MeasuredProgram {
    child: Child,
    lines: Receiver<(String, Instant)>,
    errors: Receiver<String>,
    deadline: Instant,
}

impl MeasuredProgram {
    pub(super) fn start(
        program: &WayProgram,
        plan: &ProgramPlan,
    ) -> Result<MeasuredProgram, ProgramError> {
        // A job that aborts leaves no core dump behind. This process has no use for one either.
        let (_, hard) =
            nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).map_err(ProgramError::new)?;
        setrlimit(Resource::RLIMIT_CORE, 0, hard).map_err(ProgramError::new)?;
        let plan_text = serde_json::to_string(plan).map_err(ProgramError::new)?;
        let mut command = program.build_command();
        command.arg(plan_text);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Pools of processes may outlive their main process, so all of them are killed.
        command.process_group(0);
        set_parent_death_signal(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().map_err(|e| {
            ProgramError::new(format_args!("cannot start {:?}: {e}", command.get_program()))
        })?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            // Ends with the last process that holds the other end of the pipe.
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send((line, Instant::now()));
                }
            });
        }
        let (sender, errors) = channel();
        if let Some(mut stderr) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stderr.by_ref().take(MAX_ERROR_OUTPUT).read_to_end(&mut text);
                let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
                // A full pipe would stop the program.
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            });
        }
        let budget = Duration::from_millis(plan.budget_ms) * MAX_FIGURES;
        let deadline = Instant::now() + PROGRAM_TIMEOUT + budget;
        Ok(MeasuredProgram { child, lines, errors, deadline })
    }

    /// Waits for the next line, and returns when it came; `None` after the end of the output.
    pub(super) fn next_line(
        &mut self,
        signals: &mut SignalPipe,
    ) -> Result<Option<(String, Instant)>, ProgramError> {
        loop {
            if signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                return Err(ProgramError::Interrupted);
            }
            match self.lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if Instant::now() > self.deadline => {
                    return Err(ProgramError::new("it did not end in time"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits for the end of the program after its output has ended.
    pub(super) fn wait(&mut self) -> Result<ExitStatus, ProgramError> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() > self.deadline => {
                    return Err(ProgramError::new("it closed its output and did not end"));
                }
                Ok(None) => std::thread::sleep(Duration::from_micros(100)),
                Err(e) => return Err(ProgramError::new(e)),
            }
        }
    }

    /// Returns an error for a program that ended without its figures.
    pub(super) fn describe_exit(&mut self) -> ProgramError {
        let status = match self.wait() {
            Ok(status) => status,
            Err(error) => return error,
        };
        let output = self.errors.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        // Node prints the error first and then where it came from, Python the other way round.
        let is_error = |line: &&str| line.contains("Error");
        let line = output.lines().find(is_error).or_else(|| output.lines().last());
        let said: String = printable(line.unwrap_or_default()).chars().take(200).collect();
        ProgramError::new(format_args!("it ended with {status}: {said}"))
    }
}

impl Drop for MeasuredProgram {
    fn drop(&mut self) {
        // Before its main process is waited for, as the number of the group may be used again after that.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
