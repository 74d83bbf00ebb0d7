//! The boot of a program: what makes it ready, and why it is not.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::super::http_probe::ProbeResult;
use super::super::observe::ListenerUse;
use super::super::readiness::Readiness;
use super::liveness::{MAX_PROBE_TIME, PROBE_INTERVAL};
use super::{Guard, GuardExit};
use crate::channel::WorkerReport;
use crate::error::{Error, ErrorKind, Result};
use crate::status::WorkerState;
use crate::text::HumanDuration;

/// How often to look whether the program is ready.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// After how many looks in a row without any process that has an inherited socket open it counts as closed. One look may miss a
/// process that loses its parent in that moment.
const CLOSED_LOOKS: u32 = 25;
/// As [`CLOSED_LOOKS`], as long as the program listens on no other address either: it may say more about it later.
const CLOSED_LOOKS_BEFORE_LISTENING: u32 = 150;
/// After how many looks a program that listens elsewhere is named in the log. It may use its sockets later: an address for metrics
/// or a debugger often comes first.
const LOOKS_BEFORE_HINT: u32 = 100;
/// How long before the boot timeout the guard itself gives up, to report why.
const BOOT_REPORT_TIME: Duration = Duration::from_millis(300);

/// Why the guard stops waiting until the program is ready.
pub(super) enum BootOutcome {
    /// What decided.
    Ready(&'static str),
    Exited(ExitStatus),
    /// It was not ready in time.
    TimedOut(Error),
    /// It cannot become ready.
    Failed(Error),
    /// The worker is told to drain before it is ready.
    Drained,
}

impl Guard {
    pub(super) async fn wait_until_ready(&self) -> BootOutcome {
        let boot_timeout = self.state.config.boot_timeout;
        let give_up = boot_timeout.saturating_sub(BOOT_REPORT_TIME).max(boot_timeout / 2);
        tokio::select! {
            biased;
            () = self.state.drain.wait_started() => BootOutcome::Drained,
            by = self.decide_readiness() => by.map_or_else(BootOutcome::Failed, BootOutcome::Ready),
            status = self.wait_for_exit() => BootOutcome::Exited(status),
            () = tokio::time::sleep(give_up) => self.give_up(give_up),
        }
    }

    /// Returns why the program is not ready in time. One that listens elsewhere does so at the next attempt, too.
    fn give_up(&self, waited: Duration) -> BootOutcome {
        let error = self.not_ready_error(waited);
        let can_listen = self.program.readiness().accepts_listening();
        let unused = self.observer.borrow().explain_unused_listener();
        match unused.filter(|one| can_listen && !one.listens_on.is_empty()) {
            Some(_) => BootOutcome::Failed(error),
            None => BootOutcome::TimedOut(error),
        }
    }

    /// Waits until what decides says that the program is ready, and returns what that was.
    pub(super) async fn decide_readiness(&self) -> Result<&'static str> {
        match self.program.readiness() {
            Readiness::After(time) => {
                tokio::time::sleep(*time).await;
                Ok("ready-after")
            }
            Readiness::Http(path) => {
                let probe = self.create_probe(path)?;
                loop {
                    let found = probe.ask(MAX_PROBE_TIME).await;
                    if found.is_ready() {
                        break;
                    }
                    self.last_probe.set(Some(found));
                    tokio::time::sleep(PROBE_INTERVAL).await;
                }
                self.watchdog.borrow_mut().record_sign(Instant::now());
                Ok("ready-http")
            }
            readiness => {
                let by_notification = readiness.accepts_notification();
                let by_listening = readiness.accepts_listening();
                tokio::select! {
                    () = self.wait_for_notification(), if by_notification => Ok("READY=1"),
                    () = self.wait_for_node_ready(), if by_notification => Ok("process.send('ready')"),
                    seen = self.wait_until_listening(), if by_listening => seen.map(|()| "listening"),
                }
            }
        }
    }

    /// Waits until the program has said `READY=1`.
    pub(super) async fn wait_for_notification(&self) {
        while !self.has_said_ready.get() {
            self.said_ready.notified().await;
        }
    }

    /// Waits until a Node program says that it is ready as it would say it to PM2.
    pub(super) async fn wait_for_node_ready(&self) {
        match self.shim.get() {
            Some(shim) => shim.wait_for_ready().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the kernel shows that the program waits for connections on each of its sockets, or has accepted one.
    ///
    /// # Errors
    /// No process of the program has one of them open any more, so it never will.
    pub(super) async fn wait_until_listening(&self) -> Result<()> {
        let (mut looks, mut closed_looks) = (0u32, 0u32);
        loop {
            tokio::time::sleep(READY_CHECK_INTERVAL).await;
            let uses = self.observer.borrow().listener_uses();
            if uses.iter().all(ListenerUse::is_accepting) {
                return Ok(());
            }
            looks = looks.saturating_add(1);
            closed_looks = if uses.contains(&ListenerUse::Closed) { closed_looks + 1 } else { 0 };
            if looks != LOOKS_BEFORE_HINT && closed_looks < CLOSED_LOOKS {
                continue;
            }
            let Some(unused) = self.observer.borrow().explain_unused_listener() else { continue };
            let listens_elsewhere = !unused.listens_on.is_empty();
            // Without any process the exit of the program decides.
            if unused.listener_use == ListenerUse::Closed
                && closed_looks >= CLOSED_LOOKS
                && (listens_elsewhere || closed_looks >= CLOSED_LOOKS_BEFORE_LISTENING)
            {
                return Err(Error::application("the program cannot be ready", unused.to_string()));
            }
            if listens_elsewhere && looks == LOOKS_BEFORE_HINT {
                log::warn!("{} is not ready: {unused}", self.tag());
            }
        }
    }

    pub(super) fn report_ready(&self, by: &str) -> Result<()> {
        let state = &self.state;
        self.closed_when_ready.set(self.observer.borrow_mut().count_closed_listeners());
        self.is_ready.set(true);
        state.worker_page.set_state(WorkerState::Serving);
        state.worker_page.set_accepting(true);
        state.shared.messages.finish_boot();
        log::info!("{} {} is ready; decided_by={by}", self.tag(), self.program.name());
        state.channel.send(&WorkerReport::Ready).map_err(|e| {
            Error::system(format!("report to the primary that {} is ready", state.tag), e)
        })
    }

    /// Reports to the primary that the program has ended or was not ready in time: what it needs may be there at the next attempt.
    pub(super) fn report_failed_attempt(&self, reason: &str) {
        // If sending fails, the primary learns it from the exit status.
        let _ = self.state.channel.send(&WorkerReport::BootAttemptFailed(reason.to_string()));
    }

    /// Reports a failed boot to the primary, and returns the exit status.
    pub(super) fn report_boot_failure(&self, reason: &str) -> GuardExit {
        // If sending fails, the primary learns it from the exit status.
        let _ = self.state.channel.send(&WorkerReport::BootFailed(reason.to_string()));
        GuardExit::Status(ErrorKind::WorkersCannotBoot.exit_status())
    }

    /// Describes the exit of a program that was not ready.
    pub(super) fn describe_boot_exit(&self, status: ExitStatus) -> String {
        let name = self.program.name();
        let left = prefork_os::process::child_pids(std::process::id());
        match (status.code(), left.first()) {
            (Some(0), Some(pid)) => format!(
                "{name} exited with status 0 before it was ready, and left pid {pid} running: it seems to go to the background; make it \
                 stay in the foreground (its option is often --no-daemon, --foreground or 'daemon off')"
            ),
            (Some(0), None) => format!(
                "{name} exited with status 0 before it was ready: it has to serve until it is told to stop"
            ),
            // With the script for Node it does not bind by itself.
            (Some(code), _) if self.shim.get().is_some() => {
                format!("{name} exited with status {code} before it was ready")
            }
            (Some(code), _) => format!(
                "{name} exited with status {code} before it was ready; if its address was in use, it has to use the socket that it \
                 inherits as descriptor 3 ({{fd}} in its arguments)"
            ),
            (None, _) => format!("{name} was ended before it was ready: {status}"),
        }
    }

    pub(super) fn not_ready_error(&self, waited: Duration) -> Error {
        let name = self.program.name();
        let waited = HumanDuration(waited);
        let wanted = match self.program.readiness() {
            Readiness::Notify => {
                "it has not sent READY=1 to NOTIFY_SOCKET (ready = notify)".to_string()
            }
            Readiness::Http(path) => match self.last_probe.get() {
                Some(ProbeResult::Status(status)) => format!(
                    "GET {path} is answered with status {status}, not with one from 200 to 399 (ready-http)"
                ),
                _ => format!("GET {path} gets no answer (ready-http)"),
            },
            _ => match self.observer.borrow().explain_unused_listener() {
                Some(unused) => unused.to_string(),
                None => "READY=1 or a wait for connections is missing".to_string(),
            },
        };
        Error::application(format!("{name} is not ready after {waited}"), wanted)
    }
}
