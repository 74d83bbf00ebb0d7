//! Why a test cluster did not start.

use std::fmt;
use std::process::ExitStatus;

use crate::error::Error;

/// How many lines of the log are shown.
const LOG_LINES_SHOWN: usize = 40;

/// Why a [`TestCluster`](super::TestCluster) did not start. Its text has the end of the cluster's log.
pub struct StartError {
    pub(super) reason: String,
    pub(super) exit_status: Option<ExitStatus>,
    pub(super) log: String,
}

impl StartError {
    /// Returns the exit status of the primary, if it has exited: 78 for a wrong configuration, 70 if no worker boots; see
    /// [`exit`](crate::exit).
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.exit_status
    }

    /// Returns what the processes of the cluster have written to standard output and standard error.
    pub fn log(&self) -> &str {
        &self.log
    }
}

/// Returns the last lines of `log`, with a line before them.
pub(super) fn end_of_log(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    match &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
        [] => "its log is empty".to_string(),
        shown => format!("the end of its log:\n{}", shown.join("\n")),
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start the test cluster: {}; {}", self.reason, end_of_log(&self.log))
    }
}

impl fmt::Debug for StartError {
    /// Writes the same text as `Display`, because it is what a test shows that unwraps the error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StartError {}

impl From<Error> for StartError {
    fn from(error: Error) -> StartError {
        StartError { reason: error.to_string(), exit_status: None, log: String::new() }
    }
}
