//! What the primary tells: one line for each thing worth telling, to the log and to the ledger.

use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use log::Level;

use crate::config::Dispatch;
use crate::control::{Ledger, Reply};
use crate::identity::{Slot, WorkerTag};
use crate::span::Span;
use crate::supervisor::{Cause, Exit, Limit, Notice};
use crate::sys::signal::Signal;

/// A line, and how bad it is.
type Line = (Level, String);

/// The only one in the primary who logs, and the keeper of the ledger.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) ledger: Ledger,
}

impl Journal {
    /// One line for one notice.
    pub(super) fn record(&mut self, notice: &Notice) {
        self.tell(line(notice));
    }

    pub(super) fn starting(&mut self, workers: u32, by: Dispatch, locals: &[String]) {
        let version = env!("CARGO_PKG_VERSION");
        let pid = std::process::id();
        let workers = count(workers.into(), "worker");
        self.tell(info(format!("prefork {version}: primary pid={pid}, {workers}{}", unusual(by))));
        self.tell(info(format!("listening on {}", locals.join(", "))));
    }

    pub(super) fn succeeding(&mut self, workers: usize, by: Dispatch, locals: &[String]) {
        let version = env!("CARGO_PKG_VERSION");
        let pid = std::process::id();
        let workers = count(workers as u64, "worker");
        self.tell(info(format!(
            "prefork {version}: primary pid={pid}, took over {workers}{}",
            unusual(by)
        )));
        self.tell(info(format!("listening on {}", locals.join(", "))));
    }

    pub(super) fn ignored(&mut self, signal: Signal) {
        log::debug!("{} ignored", signal.as_str());
    }

    pub(super) fn cannot_reap(&mut self, worker: WorkerTag, why: &dyn Display) {
        self.tell(error(format!("{worker} cannot be waited for: {why}")));
    }

    pub(super) fn cannot_signal(&mut self, worker: WorkerTag, signal: Signal, why: &dyn Display) {
        self.tell(error(format!("{worker} cannot be sent {}: {why}", signal.as_str())));
    }

    pub(super) fn log_reopened(&mut self, path: &Path) {
        self.tell(info(format!("log reopened: {}", path.display())));
    }

    pub(super) fn log_stays(&mut self, why: &dyn Display) {
        self.tell(error(format!("the log goes on in the old file: {why}")));
    }

    pub(super) fn cannot_hand_slot(&mut self, worker: WorkerTag, slot: Slot, why: &dyn Display) {
        log::debug!("{worker} cannot be told about slot {slot} ({why}): tried again");
    }

    pub(super) fn takes_a_restart(&mut self, key: &str) {
        self.tell(warn(format!("{key} has changed in the configuration: that takes a restart")));
    }

    pub(super) fn opened(&mut self, local: &str) {
        self.tell(info(format!("listening on {local}, too")));
    }

    pub(super) fn closed(&mut self, local: &str) {
        self.tell(info(format!("not listening on {local} any more")));
    }

    pub(super) fn cannot_tell(&mut self, worker: WorkerTag, why: &dyn Display) {
        self.tell(warn(format!(
            "{worker} does not listen ({why}): it will be killed at its deadline"
        )));
    }

    pub(super) fn control_at(&mut self, path: &Path) {
        log::debug!("control socket at {}", path.display());
    }

    pub(super) fn no_control(&mut self) {
        log::debug!(
            "no control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; --control PATH makes one"
        );
    }

    pub(super) fn control_failed(&mut self, why: &dyn Display) {
        self.tell(warn(format!("no control socket: {why} (--control off to do without)")));
    }

    pub(super) fn unheard(&mut self, reply: &Reply) {
        log::debug!("nobody waits any more for the answer {reply:?}");
    }

    pub(super) fn tell(&mut self, (level, text): Line) {
        log::log!(level, "{text}");
        self.ledger.append(level, text);
    }
}

pub(super) fn no_title(why: &dyn Display) {
    log::debug!("cannot set the process title: {why}");
}

fn info(text: String) -> Line {
    (Level::Info, text)
}

pub(super) fn warn(text: String) -> Line {
    (Level::Warn, text)
}

pub(super) fn error(text: String) -> Line {
    (Level::Error, text)
}

/// How a notice is told.
fn line(notice: &Notice) -> Line {
    match notice {
        Notice::Ready { worker, after } => info(format!("{worker} ready after {}", Span(*after))),
        Notice::AllReady { workers } => info(format!(
            "all {workers} workers serve; stop with Ctrl-C or kill -TERM {}",
            std::process::id()
        )),
        Notice::ForkFailed { worker, why } => error(format!("{worker} could not be forked: {why}")),
        Notice::BootFailed { worker, why } => error(format!("{worker} cannot boot: {why}")),
        Notice::BootTimedOut { worker, limit } => error(format!(
            "{worker} was not ready within {} (boot-timeout), killing it",
            Span(*limit)
        )),
        Notice::Retiring { worker } => info(format!("{worker} retires and is replaced")),
        Notice::Condemned { worker, why } => error(format!("{worker} is condemned, killed: {why}")),
        Notice::GraceOver { worker, limit } => warn(format!(
            "{worker} did not finish within {} (graceful-timeout), killing it",
            Span(*limit)
        )),
        Notice::Exited(exit) => exited(exit),
        Notice::Reloading { by } => info(format!("reloading ({by})")),
        Notice::Reloaded { generation, workers } => {
            info(format!("reloaded: {workers} workers of generation {generation} serve"))
        }
        Notice::ReloadFailed { why } => {
            error(format!("reload failed, the old workers serve on: {why}"))
        }
        Notice::RollingBack { to } => warn(format!("rolling back to generation {to}")),
        Notice::Proving { by } => info(format!("upgrade ({by}): trying the new binary")),
        Notice::TakingOver => info("the new binary is fit: this process becomes it".to_string()),
        Notice::UpgradeFailed { why } => {
            error(format!("upgrade failed, nothing has changed: {why}"))
        }
        Notice::Scaled { by, from, to } => info(format!("{to} workers wanted, {from} were ({by})")),
        Notice::Refused { by, why } => warn(format!("{by} refused: {why}")),
        Notice::Recycling { worker, limit } => {
            info(format!("{worker} is replaced: {}", reached(*limit)))
        }
        Notice::OverMemory { worker, memory, limit } => error(format!(
            "{worker} uses {}, more than {} (max-rss-hard), killing it",
            Bytes(*memory),
            Bytes(*limit)
        )),
        Notice::Stalled { worker, since, serving } => warn(format!(
            "{worker} has not turned its event loop for {}{}",
            Span(*since),
            in_(serving)
        )),
        Notice::Recovered { worker, after } => {
            info(format!("{worker} turns its event loop again after {}", Span(*after)))
        }
        Notice::Frozen { worker, since, serving } => {
            error(format!("{worker} frozen for {}{}, killing it", Span(*since), in_(serving)))
        }
        Notice::CoolingDown { failures, delay } => {
            warn(format!("workers die young ({failures} in a row): next try in {}", Span(*delay)))
        }
        Notice::GivingUp { failures } => error(format!(
            "giving up: no worker ever became ready in {failures} tries (boot-attempts); the lines above say why"
        )),
        Notice::Stopping { by, workers } => info(format!(
            "stopping ({by}): {} to finish what is open",
            count(*workers as u64, "worker")
        )),
        Notice::StoppingNow { by, workers } => {
            info(format!("stopping now ({by}): killing {}", count(*workers as u64, "worker")))
        }
        Notice::Stopped => info("stopped".to_string()),
    }
}

/// The death of a worker, once: who, how, how old, how much work, and what follows from it.
fn exited(exit: &Exit) -> Line {
    let Exit { worker, status, cause, uptime, served } = exit;
    let how = how(*status);
    let life = format!("up {}, {}", Span(*uptime), count(*served, "request"));
    match cause {
        Cause::Asked if status.success() => info(format!("{worker} left as asked ({life})")),
        Cause::Asked => error(format!("{worker} died while it was leaving: {how} ({life})")),
        Cause::Stopped => warn(format!("{worker} was killed by the primary ({life})")),
        Cause::BootTimeout => error(format!("{worker} was killed: never ready ({life})")),
        Cause::Condemned => error(format!("{worker} was killed for what it said ({life})")),
        Cause::Frozen => error(format!("{worker} was killed: frozen ({how}; {life})")),
        Cause::Memory => error(format!("{worker} was killed: too much memory ({life})")),
        Cause::Superseded => info(format!("{worker} was killed: not wanted any more ({life})")),
        Cause::BeforeReady => error(format!("{worker} died before it was ready: {how} ({life})")),
        Cause::Unexpected => error(format!("{worker} died: {how} ({life})")),
    }
}

/// `1 request`, `2 requests`.
fn count(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

fn reached(limit: Limit) -> String {
    match limit {
        Limit::Requests(n) => format!("it has answered {n} requests (max-requests)"),
        Limit::Memory(bytes) => format!("it uses {} (max-rss)", Bytes(bytes)),
        Limit::Lifetime(age) => format!("it is {} old (max-lifetime)", Span(age)),
    }
}

/// The dispatch policy, where it is not the default.
fn unusual(dispatch: Dispatch) -> String {
    match dispatch == Dispatch::default() {
        true => String::new(),
        false => format!(", dispatch={dispatch}"),
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
