//! Formats the supervisor's events as log lines. Pure.

use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use log::Level;

use crate::text::{Count, HumanDuration};
use prefork_os::signal::Signal;
use prefork_supervisor::{ExitCause, ExitReport, LogEvent, RecycleReason, WEB_KIND};

/// A log line and its level.
pub(super) type LogLine = (Level, String);

fn debug_line(text: String) -> LogLine {
    (Level::Debug, text)
}

pub(super) fn info_line(text: String) -> LogLine {
    (Level::Info, text)
}

pub(super) fn warn_line(text: String) -> LogLine {
    (Level::Warn, text)
}

pub(super) fn error_line(text: String) -> LogLine {
    (Level::Error, text)
}

/// Formats an event as a log line.
pub(super) fn format_event(event: &LogEvent) -> LogLine {
    match event {
        LogEvent::Forked { worker } => debug_line(format!("{worker} forked")),
        LogEvent::Online { worker } => debug_line(format!("{worker} online")),
        LogEvent::Ready { worker, after } => {
            info_line(format!("{worker} ready after {}", HumanDuration(*after)))
        }
        LogEvent::Disconnected { worker } => debug_line(format!("{worker} closed its channel")),
        LogEvent::Replaced { worker, by } => {
            debug_line(format!("{by} has replaced worker={worker}"))
        }
        LogEvent::AllReady { workers } => info_line(format!(
            "all {workers} workers serve; stop with Ctrl-C or kill -TERM {}",
            std::process::id()
        )),
        LogEvent::ForkFailed { worker, reason } => {
            error_line(format!("{worker} could not be forked: {reason}"))
        }
        LogEvent::BootFailed { worker, reason } => {
            error_line(format!("{worker} cannot boot: {reason}"))
        }
        LogEvent::BootTimedOut { worker, limit } => error_line(format!(
            "{worker} was not ready within {} (boot-timeout), killing it",
            HumanDuration(*limit)
        )),
        LogEvent::Exited(exit) => format_exit(exit),
        LogEvent::NotRestarted { worker } => warn_line(format!(
            "{worker} is not replaced, as on_restart decided: its slot stays empty until the next reload or scale"
        )),
        LogEvent::RestartDelayed { worker, delay } => warn_line(format!(
            "{worker} is replaced in {}, as on_restart decided",
            HumanDuration(*delay)
        )),
        LogEvent::Disconnecting { worker } => {
            info_line(format!("{worker} drains and leaves for good: its slot stays empty"))
        }
        LogEvent::Retiring { worker } => info_line(format!("{worker} retires and is replaced")),
        LogEvent::Recycling { worker, limit } => {
            info_line(format!("{worker} is replaced: {}", format_recycle_reason(*limit)))
        }
        LogEvent::DrainTimedOut { worker, limit } => warn_line(format!(
            "{worker} did not finish within {} (graceful-timeout), killing it",
            HumanDuration(*limit)
        )),
        LogEvent::MemoryLimitExceeded { worker, memory, limit } => error_line(format!(
            "{worker} uses {}, more than {} (max-rss-hard), killing it",
            HumanBytes(*memory),
            HumanBytes(*limit)
        )),
        LogEvent::Misbehaved { worker, reason } => {
            error_line(format!("{worker} broke the protocol, killing it: {reason}"))
        }
        LogEvent::Stalled { worker, stalled_for, current_request } => warn_line(format!(
            "{worker} has made no progress for {}{}",
            HumanDuration(*stalled_for),
            format_current_request(current_request)
        )),
        LogEvent::Recovered { worker, stalled_for } => info_line(format!(
            "{worker} makes progress again after {}",
            HumanDuration(*stalled_for)
        )),
        LogEvent::StallTimedOut { worker, stalled_for, current_request } => error_line(format!(
            "{worker} stalled for {}{} (stall-timeout), killing it",
            HumanDuration(*stalled_for),
            format_current_request(current_request)
        )),
        LogEvent::BackingOff { failures, delay } => warn_line(format!(
            "crash loop: {failures} workers in a row exited early: next try in {}",
            HumanDuration(*delay)
        )),
        LogEvent::GivingUp { failures, reason } => error_line(format!(
            "giving up: no worker has ever been ready: attempts={failures} reason={reason:?}"
        )),
        LogEvent::Reloading { by } => info_line(format!("reloading ({by})")),
        LogEvent::Reloaded { generation, workers, is_upgrade } => {
            let verb = if *is_upgrade { "upgraded" } else { "reloaded" };
            info_line(format!("{verb}: {workers} workers of generation {generation} serve"))
        }
        LogEvent::ReloadFailed { reason } => {
            error_line(format!("reload failed, the old workers keep serving: {reason}"))
        }
        LogEvent::RollingBack { to } => warn_line(format!("rolling back to generation {to}")),
        LogEvent::UpgradeQueued { by } => {
            info_line(format!("upgrade ({by}): waiting for the end of the reload under way"))
        }
        LogEvent::UpgradeChecking { by } => {
            info_line(format!("upgrade ({by}): checking the new binary"))
        }
        LogEvent::UpgradeExecuting => {
            info_line("upgrade: the new binary passed its check, executing it".to_string())
        }
        LogEvent::UpgradeFailed { reason } => {
            error_line(format!("upgrade failed, nothing has changed: {reason}"))
        }
        LogEvent::Scaled { by, kind, from, to } => {
            let of = if *kind == WEB_KIND { String::new() } else { format!(" of kind {kind}") };
            info_line(format!("scaled from {from} to {to} workers{of} ({by})"))
        }
        LogEvent::CommandRefused { by, command, reason } => {
            warn_line(format!("{command} refused ({by}): {reason}"))
        }
        LogEvent::StopDelayed { by, delay } => info_line(format!(
            "stopping ({by}): not ready any more, accepting for another {} (drain-delay)",
            HumanDuration(*delay)
        )),
        LogEvent::Stopping { by, workers } => {
            info_line(format!("stopping ({by}): draining {}", Count(*workers as u64, "worker")))
        }
        LogEvent::StoppingNow { by, workers } => {
            info_line(format!("stopping now ({by}): killing {}", Count(*workers as u64, "worker")))
        }
        LogEvent::Empty => warn_line("no web worker is left, and none will be forked".to_string()),
        LogEvent::Stopped => info_line("stopped".to_string()),
    }
}

/// Formats the exit of a worker: how it ended, its uptime and how many requests it had served.
/// Formats the exit of an isolated process that was killed because of its job.
pub(super) fn format_killed_with_job(exit: &ExitReport) -> LogLine {
    info_line(format!("{} was killed with its job ({})", exit.worker, format_life(exit)))
}

fn format_life(exit: &ExitReport) -> String {
    let uptime = HumanDuration(exit.uptime);
    match exit.requests_served {
        // Also of a foreign program, whose requests nobody counts.
        0 => format!("up {uptime}"),
        count => format!("up {uptime}, {}", Count(count, "request")),
    }
}

fn format_exit(exit: &ExitReport) -> LogLine {
    let ExitReport { worker, status, cause, .. } = exit;
    let (how, life) = (format_exit_status(*status), format_life(exit));
    match cause {
        ExitCause::Drained if status.success() => {
            info_line(format!("{worker} drained and exited ({life})"))
        }
        ExitCause::Drained => error_line(format!("{worker} died while draining: {how} ({life})")),
        ExitCause::KilledByStop | ExitCause::GracefulTimeout => {
            warn_line(format!("{worker} was killed by the primary ({life})"))
        }
        ExitCause::BootTimeout => error_line(format!("{worker} was killed: never ready ({life})")),
        ExitCause::Misbehaved => {
            error_line(format!("{worker} was killed: broke the protocol ({life})"))
        }
        ExitCause::Stalled => error_line(format!("{worker} was killed: stalled ({how}; {life})")),
        ExitCause::MemoryLimit => {
            error_line(format!("{worker} was killed: too much memory ({life})"))
        }
        ExitCause::Superseded => info_line(format!("{worker} was killed: superseded ({life})")),
        ExitCause::BootFailed => {
            error_line(format!("{worker} died before it was ready: {how} ({life})"))
        }
        ExitCause::Unexpected => error_line(format!("{worker} died: {how} ({life})")),
    }
}

fn format_recycle_reason(reason: RecycleReason) -> String {
    match reason {
        RecycleReason::Requests(n) => format!("it has answered {n} requests (max-requests)"),
        RecycleReason::Memory(bytes) => format!("it uses {} (max-rss)", HumanBytes(bytes)),
        RecycleReason::Jobs(n) => format!("it has run {} (max_jobs)", Count(n, "job")),
        RecycleReason::Lifetime(age) => format!("it is {} old (max-lifetime)", HumanDuration(age)),
    }
}

fn format_current_request(request: &Option<String>) -> String {
    request.as_ref().map(|request| format!(" in {request}")).unwrap_or_default()
}

/// Displays a number of bytes in MiB.
struct HumanBytes(u64);

impl Display for HumanBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

pub(super) fn format_exit_status(status: ExitStatus) -> String {
    let core = if status.core_dumped() { ", core dumped" } else { "" };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {}{core}", signal.as_str()),
            Err(_) => format!("killed by signal {number}{core}"),
        },
        (None, None) => "unknown status".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_exit_codes_and_signal_names() {
        assert_eq!(format_exit_status(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(format_exit_status(ExitStatus::from_raw(9)), "killed by SIGKILL");
        let segfault = ExitStatus::from_raw(11 | 0x80);
        assert_eq!(format_exit_status(segfault), "killed by SIGSEGV, core dumped");
    }
}
