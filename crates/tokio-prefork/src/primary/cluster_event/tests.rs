//! Why a worker ended, in the words of the public interface.

use std::process::ExitStatus;

use super::*;
use prefork_supervisor::{Slot, WEB_KIND};

fn ended(cause: ExitCause, drain_reason: Option<DrainReason>, raw: i32) -> WorkerExit {
    let (slot, generation, pid) = (Slot(0), Generation(1), Some(7));
    let worker = WorkerTag { id: WorkerId(1), slot, generation, pid, kind: WEB_KIND };
    let status = ExitStatus::from_raw(raw);
    let uptime = Duration::from_secs(1);
    let exit =
        ExitReport { worker, status, cause, drain_reason, error: None, uptime, requests_served: 3 };
    WorkerExit::new(&exit, || false)
}

#[test]
fn who_was_asked_to_leave_and_did_says_why() {
    for (leave, reason) in [
        (DrainReason::Stop, Reason::Stopped),
        (DrainReason::Scale, Reason::ScaledDown),
        (DrainReason::Reload, Reason::Reloaded),
        (DrainReason::Retire, Reason::Retired),
        (DrainReason::Disconnect, Reason::Disconnected),
        (
            DrainReason::Recycle(RecycleReason::Requests(9)),
            Reason::Recycled(RecycleReason::Requests(9)),
        ),
    ] {
        let exit = ended(ExitCause::Drained, Some(leave), 0);
        assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, true));
    }
}

#[test]
fn an_end_that_nobody_asked_for_is_told_by_its_status() {
    for (raw, reason) in [(9, Reason::Killed), (11, Reason::Crashed), (42 << 8, Reason::Exited)] {
        let exit = ended(ExitCause::Unexpected, None, raw);
        assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, false));
        assert!(exit.code.is_some() != exit.signal.is_some());
    }
    // Killed while it was leaving: both are true.
    let exit = ended(ExitCause::Drained, Some(DrainReason::Disconnect), 9);
    assert_eq!((exit.reason, exit.exited_after_disconnect), (Reason::Killed, true));
}

#[test]
fn the_kernel_is_asked_about_memory_only_for_kills_that_are_not_ours() {
    let (slot, generation, pid) = (Slot(0), Generation(1), Some(7));
    let worker = WorkerTag { id: WorkerId(1), slot, generation, pid, kind: WEB_KIND };
    let exit = |cause, raw| ExitReport {
        worker,
        status: ExitStatus::from_raw(raw),
        cause,
        drain_reason: None,
        error: None,
        uptime: Duration::ZERO,
        requests_served: 0,
    };
    let reason = |cause, raw| WorkerExit::new(&exit(cause, raw), || true).reason;
    assert_eq!(reason(ExitCause::Unexpected, 9), Reason::OutOfMemory);
    assert_eq!(reason(ExitCause::Stalled, 9), Reason::Frozen);
    assert_eq!(reason(ExitCause::Unexpected, 11), Reason::Crashed);
}
