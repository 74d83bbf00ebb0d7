//! The only log lines of the primary: one for each thing worth telling.

use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::identity::WorkerTag;
use crate::supervisor::{Cause, Exit, Notice};
use crate::sys::signal::Signal;

pub(super) fn starting(workers: u32, locals: &[String]) {
    let version = env!("CARGO_PKG_VERSION");
    let pid = std::process::id();
    let plural = if workers == 1 { "worker" } else { "workers" };
    log::info!("prefork {version}: primary pid={pid}, {workers} {plural}");
    log::info!("listening on {}", locals.join(", "));
}

/// One line for one notice.
pub(super) fn record(notice: &Notice) {
    match notice {
        Notice::Ready { worker, after } => log::info!("{worker} ready after {}", Span(*after)),
        Notice::AllReady { workers } => {
            log::info!(
                "all {workers} workers serve; stop with Ctrl-C or kill -TERM {}",
                std::process::id()
            );
        }
        Notice::ForkFailed { worker, why } => log::error!("{worker} could not be forked: {why}"),
        Notice::BootFailed { worker, why } => log::error!("{worker} cannot boot: {why}"),
        Notice::BootTimedOut { worker, limit } => {
            log::error!(
                "{worker} was not ready within {} (boot-timeout), killing it",
                Span(*limit)
            );
        }
        Notice::Retiring { worker } => log::info!("{worker} retires and is replaced"),
        Notice::Condemned { worker, why } => {
            log::error!("{worker} is not to be trusted ({why}), killing it")
        }
        Notice::GraceOver { worker, limit } => log::warn!(
            "{worker} did not finish within {} (graceful-timeout), killing it",
            Span(*limit)
        ),
        Notice::Exited(exit) => exited(exit),
        Notice::CoolingDown { failures, delay } => {
            log::warn!("workers die young ({failures} in a row): next try in {}", Span(*delay))
        }
        Notice::GivingUp { failures } => log::error!(
            "giving up: no worker ever became ready in {failures} tries (boot-attempts); the lines above say why"
        ),
        Notice::Stopping { by, workers } => {
            log::info!("stopping ({by}): {workers} workers finish what is open");
        }
        Notice::StoppingNow { by, workers } => {
            log::info!("stopping now ({by}): killing {workers} workers")
        }
        Notice::Stopped => log::info!("stopped"),
    }
}

/// The death of a worker, once: who, how, how old, how much work, and what follows from it.
fn exited(exit: &Exit) {
    let Exit { worker, status, cause, uptime, served } = exit;
    let how = how(*status);
    let life = format!("up {}, {served} requests", Span(*uptime));
    match cause {
        Cause::Asked if status.success() => log::info!("{worker} left as asked ({life})"),
        Cause::Asked => log::error!("{worker} died while it was leaving: {how} ({life})"),
        Cause::Stopped => log::warn!("{worker} was killed by the primary ({life})"),
        Cause::BootTimeout => log::error!("{worker} was killed: never ready ({life})"),
        Cause::Condemned => log::error!("{worker} was killed for what it said ({life})"),
        Cause::BeforeReady => log::error!("{worker} died before it was ready: {how} ({life})"),
        Cause::Unexpected => log::error!("{worker} died: {how} ({life})"),
    }
}

pub(super) fn ignored(signal: Signal) {
    log::debug!("{} ignored", signal.as_str());
}

pub(super) fn cannot_reap(worker: WorkerTag, why: &dyn Display) {
    log::error!("{worker} cannot be waited for: {why}");
}

pub(super) fn cannot_kill(worker: WorkerTag, why: &dyn Display) {
    log::error!("{worker} cannot be killed: {why}");
}

pub(super) fn cannot_tell(worker: WorkerTag, why: &dyn Display) {
    log::warn!("{worker} does not listen ({why}): it will be killed at its deadline");
}

pub(super) fn lost_connections(count: u64, why: &str) {
    log::warn!("closed {count} connections so far that were to be handed over: {why}");
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

/// A duration as people read it: `4 ms`, `2.5 s`, `3 min`.
struct Span(Duration);

impl Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            s if s < 0.01 => write!(f, "{:.1} ms", s * 1000.0),
            s if s < 1.0 => write!(f, "{:.0} ms", s * 1000.0),
            s if s < 120.0 => write!(f, "{} s", (s * 10.0).round() / 10.0),
            s if s < 7200.0 => write!(f, "{:.0} min", s / 60.0),
            s => write!(f, "{:.0} h", s / 3600.0),
        }
    }
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

    #[test]
    fn spans_are_readable() {
        let span = |ms| Span(Duration::from_millis(ms)).to_string();
        assert_eq!(
            [span(4), span(2500), span(30_000), span(180_000), span(7_200_000)],
            ["4.0 ms", "2.5 s", "30 s", "3 min", "2 h"]
        );
    }
}
