//! Environment variables that run all tests under another dispatch policy or concurrency model.

use std::process::Command;

/// Returns the model of `PREFORK_TEST_MODEL`, unless it is the default.
pub fn model_override() -> Option<String> {
    std::env::var("PREFORK_TEST_MODEL").ok().filter(|model| model != "prefork")
}

/// Sets the dispatch policy of `PREFORK_TEST_DISPATCH`, if there is one.
pub fn apply_dispatch_override(command: &mut Command) {
    std::env::var_os("PREFORK_TEST_DISPATCH").map(|policy| command.env("PREFORK_DISPATCH", policy));
}
