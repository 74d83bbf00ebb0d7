//! Explains failures: the first error of each kind, and what to do about it.

use serde::Serialize;

use crate::load::request_failure::RequestFailure;

/// The first failure of a kind.
#[derive(Debug, Clone, Serialize)]
pub struct FailureNote {
    /// Name of the failure, as in `failures`.
    pub failure: &'static str,
    /// What went wrong.
    pub message: String,
    /// What to do about it; `None` if the message says all.
    pub advice: Option<&'static str>,
}

impl FailureNote {
    pub(crate) fn from_errors(errors: &[(RequestFailure, String)]) -> Vec<FailureNote> {
        let note = |(kind, message): &(RequestFailure, String)| FailureNote {
            failure: kind.key(),
            message: message.clone(),
            advice: kind.advice(),
        };
        errors.iter().map(note).collect()
    }

    /// Returns message and advice in one line.
    pub(crate) fn describe(&self) -> String {
        match self.advice {
            Some(advice) => format!("{}; {advice}", self.message),
            None => self.message.clone(),
        }
    }
}
