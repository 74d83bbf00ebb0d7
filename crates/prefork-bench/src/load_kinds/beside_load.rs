//! Does something to a server while it is under load.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::load::{self, LoadPlan, LoadReport};
use prefork_os::child::signal_child;
use prefork_os::signal::Signal;
use tokio_prefork::Result;

/// Interval for ending a load that should not go on.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(10);

/// Runs a load, and `work` in this thread at the same time. `work` gets a function that says whether the load has ended, or has
/// to because `is_stopped` has returned `true`.
///
/// The report of a load that was stopped, or that a signal has ended, says so (`ended_early`).
///
/// # Errors
/// Those of the load and of `work`.
pub(crate) fn run_beside_load<T>(
    plan: &LoadPlan,
    is_stopped: &mut dyn FnMut() -> bool,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T>,
) -> Result<(LoadReport, T)> {
    let (is_stopped, was_stopped) = (RefCell::new(is_stopped), Cell::new(false));
    let has_to_end = || {
        was_stopped.set(was_stopped.get() || (is_stopped.borrow_mut())());
        was_stopped.get()
    };
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run_load(plan, |_| {}));
        let done = work(&|| load.is_finished() || has_to_end());
        while !load.is_finished() {
            if done.is_err() || has_to_end() {
                // Repeated, because the load may not listen for signals yet.
                interrupt_loads();
            }
            std::thread::park_timeout(INTERRUPT_INTERVAL);
        }
        let report = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((report?, done?))
    })
}

/// Sends SIGINT to this process, which ends every load in it.
pub(crate) fn interrupt_loads() {
    // A process may always signal itself.
    let _ = signal_child(std::process::id(), Signal::SIGINT);
}
