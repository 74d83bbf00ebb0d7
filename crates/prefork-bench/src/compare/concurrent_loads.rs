//! Measures one load while others run in the background.

use super::POLL_INTERVAL;
use crate::load::{self, LoadPlan, LoadProgress, LoadReport};
use crate::load_kinds::interrupt_loads;
use prefork_os::signal::SignalPipe;
use tokio_prefork::Result;

/// Runs `measured` and the loads in the background at the same time. Returns its report, theirs, and whether a signal
/// ended it early.
pub(crate) fn run_concurrent_loads(
    measured: &LoadPlan,
    background: &[LoadPlan],
    signals: &mut SignalPipe,
    mut on_progress: impl FnMut(LoadProgress),
) -> (Result<LoadReport>, Vec<LoadReport>, bool) {
    std::thread::scope(|scope| {
        let background: Vec<_> = background
            .iter()
            .map(|plan| scope.spawn(move || load::run_load(plan, |_| {})))
            .collect();
        let mut was_interrupted = false;
        let mut report = load::run_load(measured, |progress| {
            on_progress(progress);
            // Only this pipe saw a signal from before the load installed its own: pass it on.
            if !was_interrupted && signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                was_interrupted = true;
                interrupt_loads();
            }
        });
        was_interrupted |= report.as_ref().is_ok_and(|report| report.ended_early);
        let mut reports = Vec::new();
        for thread in background {
            while (was_interrupted || report.is_err()) && !thread.is_finished() {
                // Repeated, because the background load may not listen for signals yet.
                interrupt_loads();
                std::thread::sleep(POLL_INTERVAL);
            }
            match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(Err(why)) => report = report.and(Err(why)),
                Ok(Ok(background)) => reports.push(background),
            }
        }
        (report, reports, was_interrupted)
    })
}
