//! A load that is measured beside one that is only in the way.

use super::POLL_INTERVAL;
use crate::load::{self, LoadPlan, LoadReport};
use prefork_os::child::signal_child;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::Result;

/// Measures `measured` beside `background`, if there is one; and whether a signal ended it early.
pub fn run_concurrent_loads(
    measured: &LoadPlan,
    background: Option<LoadPlan>,
    signals: &mut SignalPipe,
) -> (Result<LoadReport>, bool) {
    std::thread::scope(|scope| {
        // Its figures are nobody's: it is there to be in the way.
        let background_thread = background
            .map(|background| scope.spawn(move || load::run_load(&background, |_| {}).map(drop)));
        let mut was_interrupted = false;
        let report = load::run_load(measured, |_| {
            // One that came before the bench listened for signals has been heard by us alone.
            if !was_interrupted && signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                was_interrupted = true;
                interrupt_all_loads();
            }
        });
        was_interrupted |= report.as_ref().is_ok_and(|report| report.ended_early);
        let Some(background_thread) = background_thread else { return (report, was_interrupted) };
        while (was_interrupted || report.is_err()) && !background_thread.is_finished() {
            // It may not listen yet.
            interrupt_all_loads();
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

/// Tells every load in this process to end.
fn interrupt_all_loads() {
    // We may always signal ourselves.
    let _ = signal_child(std::process::id(), Signal::SIGINT);
}
