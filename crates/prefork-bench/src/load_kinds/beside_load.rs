//! Does something to a server while it is under load.

use std::time::Duration;

use crate::load::{self, LoadPlan, LoadReport};
use prefork_os::child::signal_child;
use prefork_os::signal::Signal;
use tokio_prefork::Result;

/// Interval for ending a load that should not go on.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(10);

/// Runs a load, and `work` in this thread at the same time. `work` gets a function that says whether the load has ended.
///
/// Ends the load early if `work` returns no value. Returns `None` then, or if a signal has ended the load.
///
/// # Errors
/// Those of the load and of `work`.
pub(crate) fn run_beside_load<T>(
    plan: &LoadPlan,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<Option<T>>,
) -> Result<Option<(LoadReport, T)>> {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run_load(plan, |_| {}));
        let done = work(&|| load.is_finished());
        while !matches!(done, Ok(Some(_))) && !load.is_finished() {
            // Repeated, because the load may not listen for signals yet.
            interrupt_loads();
            std::thread::park_timeout(INTERRUPT_INTERVAL);
        }
        let report = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (report, done) = (report?, done?);
        Ok(done.filter(|_| !report.ended_early).map(|done| (report, done)))
    })
}

/// Sends SIGINT to this process, which ends every load in it.
pub(crate) fn interrupt_loads() {
    // A process may always signal itself.
    let _ = signal_child(std::process::id(), Signal::SIGINT);
}
