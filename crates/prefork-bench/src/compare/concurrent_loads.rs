//! Measures one load while a second one runs in the background.

use super::POLL_INTERVAL;
use crate::load::{self, LoadPlan, LoadReport};
use crate::load_kinds::interrupt_loads;
use prefork_os::signal::SignalPipe;
use tokio_prefork::Result;

/// Runs `measured` with `background`, if any, at the same time. Returns its report, and whether a signal
/// ended it early.
pub(crate) fn run_concurrent_loads(
    measured: &LoadPlan,
    background: Option<LoadPlan>,
    signals: &mut SignalPipe,
) -> (Result<LoadReport>, bool) {
    std::thread::scope(|scope| {
        // The report of the background load is not used.
        let background_thread = background
            .map(|background| scope.spawn(move || load::run_load(&background, |_| {}).map(drop)));
        let mut was_interrupted = false;
        let report = load::run_load(measured, |_| {
            // Only this pipe saw a signal from before the load installed its own: pass it on.
            if !was_interrupted && signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                was_interrupted = true;
                interrupt_loads();
            }
        });
        was_interrupted |= report.as_ref().is_ok_and(|report| report.ended_early);
        let Some(background_thread) = background_thread else { return (report, was_interrupted) };
        while (was_interrupted || report.is_err()) && !background_thread.is_finished() {
            // Repeated, because the background load may not listen for signals yet.
            interrupt_loads();
            std::thread::sleep(POLL_INTERVAL);
        }
        let report = match background_thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(Err(why)) => report.and(Err(why)),
            Ok(Ok(())) => report,
        };
        (report, was_interrupted)
    })
}
