//! Isolated pools in a program that is no cluster.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;

use crate::support::{command, process};

/// A running program with isolated pools, and its pipes.
struct PoolProgram {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl PoolProgram {
    fn spawn(args: &[&str]) -> PoolProgram {
        let mut command = Command::new(command::test_programs());
        command.arg("program-pools").args(["--bind", "127.0.0.1:0"]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        PoolProgram { child, commands, answers }
    }

    fn start() -> PoolProgram {
        let mut program = PoolProgram::spawn(&[]);
        assert_eq!(program.read(), "started");
        program
    }

    fn send(&mut self, command: &str) {
        let commands = self.commands.as_mut().expect("its input");
        writeln!(commands, "{command}").expect("a command");
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_string()
    }

    fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.read()
    }

    fn primary(&mut self) -> u32 {
        let line = self.ask("primary");
        line.strip_prefix("primary ").and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    /// Waits for the end, and returns the exit status and standard error.
    fn finish(mut self) -> (ExitStatus, String) {
        drop(self.commands.take());
        let output = self.child.wait_with_output().expect("its end");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn a_program_runs_isolated_jobs_with_a_state_and_stops_its_processes() {
    let mut program = PoolProgram::start();
    assert_eq!(program.ask("square 12"), "144 is job 1");
    assert_eq!(program.ask("square 3"), "9 is job 2");
    let own = program.child.id().to_string();
    assert_ne!(program.ask("pid"), format!("pid {own}"));
    assert!(program.ask("exit 3").contains("exit status 3"), "the job died");
    assert_eq!(program.ask("square 2"), "4 is job 1");
    assert!(program.ask("panic enough").contains("enough"));
    assert!(program.ask("unknown").contains("no such job"));
    let primary = program.primary();
    let mut processes = process::children(primary);
    assert!(!processes.is_empty());
    processes.push(primary);
    assert_eq!(program.ask("stop"), "stopped");
    assert_eq!(program.read(), "has begun false");
    process::wait_ended(&processes);
    assert!(program.finish().0.success());
}

#[test]
fn a_value_that_panics_ends_only_its_job_and_not_the_process() {
    let mut program = PoolProgram::start();
    let pid = program.ask("value pid");
    for value in ["return encode", "return drop", "payload", "decode"] {
        let error = program.ask(&format!("value {value}"));
        assert!(error.contains("panicked"), "{value}: {error}");
        assert_eq!(program.ask("value pid"), pid, "{value}");
    }
    assert_eq!(program.ask("value return it"), "it");
    assert_eq!(program.ask("stop"), "stopped");
    program.read();
    assert!(program.finish().0.success());
}

#[test]
fn a_program_reads_the_figures_of_its_pools() {
    let mut program = PoolProgram::start();
    for command in ["square 12", "square 3", "exit 3", "unknown"] {
        program.ask(command);
    }
    let figures: serde_json::Value = serde_json::from_str(&program.ask("status")).expect("JSON");
    let counts = ["submitted", "done", "died", "failed"].map(|name| figures[name].as_u64());
    assert_eq!(counts, [4, 2, 1, 1].map(Some), "{figures}");
    assert_eq!(figures["run"]["count"], 4, "{figures}");
    assert_eq!(program.ask("stop"), "stopped");
    program.read();
    assert!(program.finish().0.success());
}

#[test]
fn the_processes_end_with_a_killed_program_also_in_the_middle_of_a_job() {
    let mut program = PoolProgram::start();
    let primary = program.primary();
    let mut processes = process::children(primary);
    processes.push(primary);
    assert_eq!(program.ask("sleep 600000"), "begun");
    program.child.kill().expect("kill");
    process::wait_ended(&processes);
    assert!(!program.finish().0.success());
}

#[test]
fn a_job_whose_primary_is_killed_may_have_begun() {
    let mut program = PoolProgram::start();
    let primary = program.primary();
    let processes = process::children(primary);
    assert_eq!(program.ask("sleep 1500"), "begun");
    process::send_signal(primary, Signal::SIGKILL);
    assert!(program.read().contains("primary is gone"), "the job may have begun");
    assert!(program.ask("square 2").contains("cannot run an isolated job"));
    process::wait_ended(&processes);
    let (status, errors) = program.finish();
    assert!(!status.success() && errors.contains("primary"), "{errors}");
}

#[test]
fn pools_that_cannot_boot_or_come_after_a_thread_are_errors() {
    // Whichever pool is the first to boot.
    for _ in 0..5 {
        let (status, errors) = PoolProgram::spawn(&["boot=no"]).finish();
        assert!(!status.success() && errors.contains("the model is missing"), "{errors}");
    }
    let (status, errors) = PoolProgram::spawn(&["threads=1"]).finish();
    assert!(!status.success() && errors.contains("threads"), "{errors}");
}

#[test]
fn signals_of_a_terminal_and_upgrades_do_not_reach_the_pools() {
    let mut program = PoolProgram::start();
    let primary = program.primary();
    process::send_signal(primary, Signal::SIGUSR2);
    process::send_signal(primary, Signal::SIGHUP);
    assert_eq!(program.ask("square 5").split(' ').next(), Some("25"));
    assert_eq!(program.ask("stop"), "stopped");
    assert!(program.finish().0.success());
}
