//! What the primary tells: one line for each thing worth telling, to the log and to the ledger.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use log::Level;

use super::event_format::{Line, count, error, info, line, warn};
use crate::config::Dispatch;
use crate::control::{Ledger, Reply};
use crate::log_output;
use crate::text::HumanDuration;
use crate::text::{Printable, printable};
use prefork_os::signal::Signal;
use prefork_supervisor::LogEvent;
use prefork_supervisor::{Slot, WorkerTag};

/// The only one in the primary who logs, and the keeper of the ledger.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) ledger: Ledger,
    /// Lines missing in the log that the ledger tells of.
    missing: u64,
    /// When the ledger may tell of more of them.
    next_missing: Option<Instant>,
}

impl EventLog {
    /// A journal whose events are numbered after `last`, that of the image before this one.
    pub(super) fn resume_after(last: u64) -> EventLog {
        let mut journal = EventLog::default();
        journal.ledger.resume_after(last);
        journal
    }

    /// One line for one notice.
    pub(super) fn record(&mut self, notice: &LogEvent) {
        self.tell(line(notice));
    }

    /// Tells of lines that are missing in the log: the ledger at once, as it has room, and the log as soon as it has.
    /// Returns when to call this again.
    pub(super) fn tell_missing(&mut self, now: Instant) -> Option<Duration> {
        let missing = log_output::dropped_lines();
        let is_due = self.next_missing.is_none_or(|next| next <= now);
        if missing > self.missing && is_due {
            let text = log_output::describe_dropped(missing - self.missing);
            self.ledger.append(Level::Warn, text);
            self.missing = missing;
            self.next_missing = Some(now + log_output::RETRY_INTERVAL);
        }
        let is_behind = missing > self.missing;
        log_output::retry().or(is_behind.then_some(log_output::RETRY_INTERVAL))
    }

    /// With so many workers of the image before, if there was one.
    pub(super) fn begins(
        &mut self,
        heirs: Option<usize>,
        wanted: u32,
        by: Dispatch,
        at: &[String],
    ) {
        match heirs {
            None => self.starting(wanted, by, at),
            Some(heirs) => self.succeeding(heirs, by, at),
        }
    }

    fn starting(&mut self, workers: u32, by: Dispatch, locals: &[String]) {
        let version = env!("CARGO_PKG_VERSION");
        let pid = std::process::id();
        let workers = count(workers.into(), "worker");
        self.tell(info(format!("prefork {version}: primary pid={pid}, {workers}{}", unusual(by))));
        self.tell(info(format!("listening on {}", locals.join(", "))));
    }

    fn succeeding(&mut self, workers: usize, by: Dispatch, locals: &[String]) {
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

    /// What a new binary printed before it was given up, if anything: it may say where it hangs.
    pub(super) fn proof_printed(&mut self, text: &str) {
        if !text.is_empty() {
            self.tell(warn(format!("the new binary printed before it was killed: {text}")));
        }
    }

    pub(super) fn cannot_hand_slot(&mut self, worker: WorkerTag, slot: Slot, why: &dyn Display) {
        log::debug!("{worker} cannot be told about slot {slot} ({why}): tried again");
    }

    /// What chooses among the slots, and whether it is the best of its policy.
    pub(super) fn kernel_selector_started(&mut self, text: String, best: bool) {
        self.tell(if best { info(text) } else { warn(text) });
    }

    pub(super) fn kernel_selector_failed(&mut self, why: &dyn Display) {
        self.tell(error(format!("{why}; the kernel's hash chooses meanwhile")));
    }

    pub(super) fn takes_a_restart(&mut self, key: &str) {
        self.tell(warn(format!("{key} has changed in the configuration: that takes a restart")));
    }

    pub(super) fn opened(&mut self, local: &str) {
        self.tell(info(format!("listening on {local}, too")));
    }

    pub(super) fn reopened(&mut self, local: &str) {
        self.tell(warn(format!(
            "nobody could reach {local} any more (its file was removed, or its socket shut down): opened it again"
        )));
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
        log::debug!("control socket at {}", Printable(path.display()));
    }

    pub(super) fn no_control(&mut self) {
        log::debug!(
            "no control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; --control PATH makes one"
        );
    }

    pub(super) fn control_opened(&mut self, path: &Path) {
        self.tell(info(format!("control socket opened at {}", path.display())));
    }

    pub(super) fn pid_file_written(&mut self, path: &Path) {
        self.tell(info(format!("pid file written anew: {}", path.display())));
    }

    pub(super) fn no_pid_file(&mut self, why: &dyn Display) {
        self.tell(error(format!("{why}; going on without a pid file until the next reload")));
    }

    pub(super) fn control_failed(&mut self, why: &dyn Display) {
        self.tell(warn(format!("no control socket: {why} (--control off to do without)")));
    }

    pub(super) fn unheard(&mut self, reply: &Reply) {
        log::debug!("nobody waits any more for the answer {reply:?}");
    }

    pub(super) fn cannot_notify(&mut self, why: &dyn Display) {
        self.tell(warn(format!(
            "the service manager at NOTIFY_SOCKET cannot be told anything: {why}"
        )));
    }

    pub(super) fn job_overdue(&mut self, worker: WorkerTag) {
        self.tell(warn(format!("{worker} is killed: its isolated job was not done in time")));
    }

    pub(super) fn panicked(&mut self, function: &dyn Display, at: &dyn Display, why: &str) {
        self.tell(error(format!("{function} panicked at {at}: {why}")));
    }

    pub(super) fn was_slow(&mut self, function: &dyn Display, at: &dyn Display, took: Duration) {
        self.tell(warn(format!(
            "{function} took {} at {at}: nothing is supervised meanwhile",
            HumanDuration(took)
        )));
    }

    pub(super) fn hook_asks_too_much(&mut self) {
        self.tell(warn("hooks ask for more than can be done: this is not done".to_string()));
    }

    /// To the log and to the ledger, from where events are read. Names, paths and what workers said are in the text.
    pub(super) fn tell(&mut self, (level, text): Line) {
        let text = printable(&text).into_owned();
        log::log!(level, "{text}");
        // Details are for whoever debugs; what is kept for operators is what they were told.
        if level <= Level::Info {
            self.ledger.append(level, text);
        }
    }
}

pub(super) fn no_title(why: &dyn Display) {
    log::debug!("cannot set the process title: {why}");
}

/// The dispatch policy, where it is not the default.
fn unusual(dispatch: Dispatch) -> String {
    match dispatch == Dispatch::default() {
        true => String::new(),
        false => format!(", dispatch={dispatch}"),
    }
}

pub(super) fn lost_connections(count: u64, why: &str) {
    log::warn!("closed {count} connections so far that were to be handed over: {why}");
}

pub(crate) fn lost_newcomers(count: u64, why: &str) {
    log::warn!("closed {count} new connections so far that nobody had begun to serve: {why}");
}

pub(crate) fn accept_fails(local: &str, why: &dyn Display) {
    log::error!(
        "cannot accept on {local}: {why}; trying again each second (if the socket was shut down, a reload opens it again; \
         if a seccomp filter or a security module forbids accept4, allow it)"
    );
}

pub(crate) fn accepts_again(local: &str) {
    log::info!("accepting on {local} again");
}

pub(crate) fn cannot_accept(local: &str, why: &dyn Display) {
    log::error!(
        "cannot accept on {}: {why}; trying again ten times a second (raise LimitNOFILE?)",
        Printable(local)
    );
}
