//! Commands whose standard output is full or closed.

use std::fs::OpenOptions;
use std::process::{Output, Stdio};

use crate::support;

/// Runs `prefork ARGS` with this standard output.
fn run_with_stdout(args: &[&str], out: impl Into<Stdio>) -> Output {
    let mut command = support::prefork();
    command.args(args).stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
    command.output().expect("run")
}

/// Commands that print and end by themselves.
const PRINTING_COMMANDS: [&[&str]; 5] =
    [&["--help"], &["--version"], &["help", "serve"], &["check"], &["completions", "bash"]];

#[test]
fn a_closed_standard_output_is_not_an_error() {
    for args in PRINTING_COMMANDS {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let ended = run_with_stdout(args, writer);
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), errors.as_ref()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    for args in PRINTING_COMMANDS {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("open");
        let ended = run_with_stdout(args, full);
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(71), "{args:?}: {errors}");
        assert!(errors.contains("No space left"), "{args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}
