//! How each thing that happens is told: a notice to a line. Pure.

use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use log::Level;

use crate::text::HumanDuration;
use prefork_os::signal::Signal;
use prefork_supervisor::{ExitCause, ExitReport, LogEvent, RecycleReason};
use prefork_supervisor::{WEB_KIND, WorkerTag};

/// A line, and how bad it is.
pub(super) type Line = (Level, String);

fn debug(text: String) -> Line {
    (Level::Debug, text)
}

pub(super) fn info(text: String) -> Line {
    (Level::Info, text)
}

pub(super) fn warn(text: String) -> Line {
    (Level::Warn, text)
}

pub(super) fn error(text: String) -> Line {
    (Level::Error, text)
}

/// How a notice is told.
pub(super) fn line(notice: &LogEvent) -> Line {
    match notice {
        LogEvent::Forked { worker } => debug(format!("{worker} forked")),
        LogEvent::Online { worker } => debug(format!("{worker} runs")),
        LogEvent::Disconnected { worker } => debug(format!("{worker} closed its channel")),
        LogEvent::Replaced { worker, by } => debug(format!("{by} has replaced worker={worker}")),
        LogEvent::Disconnecting { worker } => {
            info(format!("{worker} finishes and leaves for good; its slot stays empty"))
        }
        LogEvent::NotRestarted { worker } => not_restarted(worker),
        LogEvent::Ready { worker, after } => {
            info(format!("{worker} ready after {}", HumanDuration(*after)))
        }
        LogEvent::AllReady { workers } => info(format!(
            "all {workers} workers serve; stop with Ctrl-C or kill -TERM {}",
            std::process::id()
        )),
        LogEvent::ForkFailed { worker, reason } => {
            error(format!("{worker} could not be forked: {reason}"))
        }
        LogEvent::BootFailed { worker, reason } => error(format!("{worker} cannot boot: {reason}")),
        LogEvent::BootTimedOut { worker, limit } => boot_timed_out(worker, limit),
        LogEvent::Retiring { worker } => info(format!("{worker} retires and is replaced")),
        LogEvent::Misbehaved { worker, reason } => {
            error(format!("{worker} is condemned, killed: {reason}"))
        }
        LogEvent::DrainTimedOut { worker, limit } => grace_over(worker, limit),
        LogEvent::Exited(exit) => exited(exit),
        LogEvent::Reloading { by } => info(format!("reloading ({by})")),
        LogEvent::Reloaded { generation, workers, is_upgrade } => {
            let verb = if *is_upgrade { "upgraded" } else { "reloaded" };
            info(format!("{verb}: {workers} workers of generation {generation} serve"))
        }
        LogEvent::ReloadFailed { reason } => {
            error(format!("reload failed, the old workers serve on: {reason}"))
        }
        LogEvent::RollingBack { to } => warn(format!("rolling back to generation {to}")),
        LogEvent::UpgradeQueued { by } => upgrade_waits(by),
        LogEvent::UpgradeChecking { by } => info(format!("upgrade ({by}): trying the new binary")),
        LogEvent::UpgradeExecuting => {
            info("the new binary is fit: this process becomes it".to_string())
        }
        LogEvent::UpgradeFailed { reason } => {
            error(format!("upgrade failed, nothing has changed: {reason}"))
        }
        LogEvent::Scaled { by, kind, from, to } => {
            let of = if *kind == WEB_KIND { String::new() } else { format!(" of kind {kind}") };
            info(format!("{to} workers{of} wanted, {from} were ({by})"))
        }
        LogEvent::CommandRefused { by, reason } => warn(format!("{by} refused: {reason}")),
        LogEvent::Recycling { worker, limit } => {
            info(format!("{worker} is replaced: {}", reached(*limit)))
        }
        LogEvent::MemoryLimitExceeded { worker, memory, limit } => {
            over_memory(worker, memory, limit)
        }
        LogEvent::Stalled { worker, stalled_for, current_request } => {
            stalled(worker, stalled_for, current_request)
        }
        LogEvent::Recovered { worker, stalled_for } => info(format!(
            "{worker} turns its event loop again after {}",
            HumanDuration(*stalled_for)
        )),
        LogEvent::StallTimedOut { worker, stalled_for, current_request } => error(format!(
            "{worker} frozen for {}{}, killing it",
            HumanDuration(*stalled_for),
            in_(current_request)
        )),
        LogEvent::BackingOff { failures, delay } => warn(format!(
            "workers die young ({failures} in a row): next try in {}",
            HumanDuration(*delay)
        )),
        LogEvent::GivingUp { failures } => error(format!(
            "giving up: no worker ever became ready in {failures} tries (boot-attempts); the lines above say why"
        )),
        LogEvent::StopDelayed { by, delay } => departing(by, HumanDuration(*delay)),
        LogEvent::Stopping { by, workers } => info(format!(
            "stopping ({by}): {} to finish what is open",
            count(*workers as u64, "worker")
        )),
        LogEvent::StoppingNow { by, workers } => {
            info(format!("stopping now ({by}): killing {}", count(*workers as u64, "worker")))
        }
        LogEvent::Stopped => info("stopped".to_string()),
    }
}

fn departing(by: &str, delay: HumanDuration) -> Line {
    info(format!("stopping ({by}): not ready any more, accepting for {delay} yet (drain-delay)"))
}

fn not_restarted(worker: &WorkerTag) -> Line {
    warn(format!(
        "{worker} is not replaced, as the application wants it (on_restart): its slot stays empty until the next \
             reload or scale"
    ))
}

fn over_memory(worker: &WorkerTag, memory: &u64, limit: &u64) -> Line {
    error(format!(
        "{worker} uses {}, more than {} (max-rss-hard), killing it",
        Bytes(*memory),
        Bytes(*limit)
    ))
}

fn stalled(worker: &WorkerTag, since: &Duration, serving: &Option<String>) -> Line {
    warn(format!(
        "{worker} has not turned its event loop for {}{}",
        HumanDuration(*since),
        in_(serving)
    ))
}

fn boot_timed_out(worker: &WorkerTag, limit: &Duration) -> Line {
    error(format!(
        "{worker} was not ready within {} (boot-timeout), killing it",
        HumanDuration(*limit)
    ))
}

fn grace_over(worker: &WorkerTag, limit: &Duration) -> Line {
    warn(format!(
        "{worker} did not finish within {} (graceful-timeout), killing it",
        HumanDuration(*limit)
    ))
}

/// The death of a worker, once: who, how, how old, how much work, and what follows from it.
fn exited(exit: &ExitReport) -> Line {
    let ExitReport { worker, status, cause, uptime, requests_served, .. } = exit;
    let how = how(*status);
    let life = format!("up {}, {}", HumanDuration(*uptime), count(*requests_served, "request"));
    match cause {
        ExitCause::Drained if status.success() => info(format!("{worker} left as asked ({life})")),
        ExitCause::Drained => error(format!("{worker} died while it was leaving: {how} ({life})")),
        ExitCause::KilledByStop | ExitCause::GracefulTimeout => {
            warn(format!("{worker} was killed by the primary ({life})"))
        }
        ExitCause::BootTimeout => error(format!("{worker} was killed: never ready ({life})")),
        ExitCause::Misbehaved => error(format!("{worker} was killed for what it said ({life})")),
        ExitCause::Stalled => error(format!("{worker} was killed: frozen ({how}; {life})")),
        ExitCause::MemoryLimit => error(format!("{worker} was killed: too much memory ({life})")),
        ExitCause::Superseded => info(format!("{worker} was killed: not wanted any more ({life})")),
        ExitCause::BootFailed => {
            error(format!("{worker} died before it was ready: {how} ({life})"))
        }
        ExitCause::Unexpected => error(format!("{worker} died: {how} ({life})")),
    }
}

/// `1 request`, `2 requests`.
pub(super) fn count(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

fn reached(limit: RecycleReason) -> String {
    match limit {
        RecycleReason::Requests(n) => format!("it has answered {n} requests (max-requests)"),
        RecycleReason::Memory(bytes) => format!("it uses {} (max-rss)", Bytes(bytes)),
        RecycleReason::Lifetime(age) => format!("it is {} old (max-lifetime)", HumanDuration(age)),
    }
}

fn in_(serving: &Option<String>) -> String {
    serving.as_ref().map(|request| format!(" in {request}")).unwrap_or_default()
}

/// A number of bytes as people read it.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

fn how(status: ExitStatus) -> String {
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

fn upgrade_waits(by: &str) -> Line {
    info(format!("upgrade ({by}): waits for the end of the reload under way"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_is_told_by_name() {
        assert_eq!(how(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(how(ExitStatus::from_raw(9)), "killed by SIGKILL");
        assert_eq!(how(ExitStatus::from_raw(11 | 0x80)), "killed by SIGSEGV, core dumped");
    }
}
