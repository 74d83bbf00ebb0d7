//! Runs of the tests under another dispatch policy or concurrency model than the default.

use std::process::Command;

/// The model that `PREFORK_UNDER_MODEL` names, if it is not the default one.
pub fn model() -> Option<String> {
    std::env::var("PREFORK_UNDER_MODEL").ok().filter(|model| model != "prefork")
}

/// Gives the command the policy that `PREFORK_UNDER` names, if it names one.
pub fn set_policy(command: &mut Command) {
    std::env::var_os("PREFORK_UNDER").map(|policy| command.env("PREFORK_DISPATCH", policy));
}
