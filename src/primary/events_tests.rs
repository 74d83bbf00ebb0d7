//! Why a worker ended, in the words of the public interface.

use std::process::ExitStatus;

use super::*;
use prefork_supervisor::{Slot, WEB};

fn ended(cause: Cause, leave: Option<Leave>, raw: i32) -> WorkerExit {
    let (slot, generation, pid) = (Slot(0), Generation(1), Some(7));
    let worker = WorkerTag { id: WorkerId(1), slot, generation, pid, kind: WEB };
    let status = ExitStatus::from_raw(raw);
    let uptime = Duration::from_secs(1);
    let exit = Exit { worker, status, cause, leave, complaint: None, uptime, served: 3 };
    WorkerExit::new(&exit, || false)
}

#[test]
fn who_was_asked_to_leave_and_did_says_why() {
    for (leave, reason) in [
        (Leave::Stop, Reason::Stopped),
        (Leave::Scale, Reason::ScaledDown),
        (Leave::Reload, Reason::Reloaded),
        (Leave::Retire, Reason::Retired),
        (Leave::Disconnect, Reason::Disconnected),
        (Leave::Recycle(Limit::Requests(9)), Reason::Recycled(Limit::Requests(9))),
    ] {
        let exit = ended(Cause::Asked, Some(leave), 0);
        assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, true));
    }
}

#[test]
fn an_end_that_nobody_asked_for_is_told_by_its_status() {
    for (raw, reason) in [(9, Reason::Killed), (11, Reason::Crashed), (42 << 8, Reason::Exited)] {
        let exit = ended(Cause::Unexpected, None, raw);
        assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, false));
        assert!(exit.code.is_some() != exit.signal.is_some());
    }
    // Killed while it was leaving: both are true.
    let exit = ended(Cause::Asked, Some(Leave::Disconnect), 9);
    assert_eq!((exit.reason, exit.exited_after_disconnect), (Reason::Killed, true));
}

#[test]
fn the_kernel_is_asked_about_memory_only_for_kills_that_are_not_ours() {
    let (slot, generation, pid) = (Slot(0), Generation(1), Some(7));
    let worker = WorkerTag { id: WorkerId(1), slot, generation, pid, kind: WEB };
    let exit = |cause, raw| Exit {
        worker,
        status: ExitStatus::from_raw(raw),
        cause,
        leave: None,
        complaint: None,
        uptime: Duration::ZERO,
        served: 0,
    };
    let reason = |cause, raw| WorkerExit::new(&exit(cause, raw), || true).reason;
    assert_eq!(reason(Cause::Unexpected, 9), Reason::OutOfMemory);
    assert_eq!(reason(Cause::Frozen, 9), Reason::Frozen);
    assert_eq!(reason(Cause::Unexpected, 11), Reason::Crashed);
}
