//! A load that is measured beside one that is only in the way.

use super::LOOK;
use crate::load::{self, Plan, Report};
use prefork_os::child::signal_child;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::Result;

/// Measures `light` beside `heavy`, if there is one; and whether a signal ended it early.
pub fn beside(
    light: &Plan,
    heavy: Option<Plan>,
    signals: &mut SignalPipe,
) -> (Result<Report>, bool) {
    std::thread::scope(|scope| {
        // Its figures are nobody's: it is there to be in the way.
        let beside = heavy.map(|heavy| scope.spawn(move || load::run(&heavy, |_| {}).map(drop)));
        let mut told = false;
        let report = load::run(light, |_| {
            // One that came before the bench listened for signals has been heard by us alone.
            if !told && signals.read_pending().is_ok_and(|came| !came.is_empty()) {
                told = true;
                repeat_signal();
            }
        });
        told |= report.as_ref().is_ok_and(|report| report.ended_early);
        let Some(beside) = beside else { return (report, told) };
        while (told || report.is_err()) && !beside.is_finished() {
            // It may not listen yet.
            repeat_signal();
            std::thread::sleep(LOOK);
        }
        let report = match beside.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(Err(why)) => report.and(Err(why)),
            Ok(Ok(())) => report,
        };
        (report, told)
    })
}

/// Tells every load in this process to end.
fn repeat_signal() {
    // We may always signal ourselves.
    let _ = signal_child(std::process::id(), Signal::SIGINT);
}
