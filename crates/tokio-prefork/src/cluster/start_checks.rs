//! What must hold before a cluster starts: no async runtime, and one thread.

use crate::error::{Error, Result};

/// Checks that this process may fork workers.
///
/// # Errors
/// A tokio runtime is entered, or the process has more than one thread.
pub(super) fn check_can_fork_workers() -> Result<()> {
    check_outside_of_runtime()?;
    check_single_thread("cannot start the cluster")
}

/// Checks that the calling thread is not inside a tokio runtime, as it is under `#[tokio::main]`.
fn check_outside_of_runtime() -> Result<()> {
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return Ok(()) };
    let flavor = format!("{:?}", handle.runtime_flavor());
    Err(Error::application(
        "cannot start the cluster",
        format!(
            "it was called inside a tokio runtime ({flavor}), and a process that runs tokio cannot be forked safely; call \
             serve from a plain `fn main()` without #[tokio::main], and do async work in the function given to serve, \
             which runs inside each worker's runtime"
        ),
    ))
}

/// Checks that the process has one thread. The error names the others.
pub(super) fn check_single_thread(operation: &str) -> Result<()> {
    prefork_os::thread::require_single_thread().map_err(|e| Error::application(operation, e.source))
}
