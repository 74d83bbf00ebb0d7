//! Whether the running program makes progress: its heartbeat, what it says, and its probe.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::http_probe::HttpProbe;
use super::super::notify_socket::Notification;
use super::super::process::{self, ProgramProcess};
use super::super::readiness::Readiness;
use super::Guard;
use crate::channel::WorkerReport;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::worker::LocalWorkerState;
use prefork_os::interval_timer::IntervalTimer;
use prefork_os::process::process_state;
use prefork_os::signal::Signal;

/// The time between two probes of a program that is not ready yet.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a program that is not ready may take to answer a probe.
pub(super) const MAX_PROBE_TIME: Duration = Duration::from_secs(5);
/// The state of a process that a signal has stopped. Under a debugger it is another one.
const STOPPED: char = 'T';

/// After how many measurements in a row that show a closed listening socket the program counts as one that has closed it.
const CLOSED_LOOKS: u32 = 3;
/// After how many the worker is replaced, if it has not ended by then.
const MAX_CLOSED_LOOKS: u32 = 6;

/// How many heartbeats there are for each measurement of what the program uses: one each second.
const BEATS_PER_USAGE: u32 = 10;

/// Returns how long a sign of life of the program counts, which is `WATCHDOG_USEC`. Programs give one in half the time.
///
/// After it the guard's heartbeat stops, and the time until the stall is reported begins.
pub(super) fn watchdog_interval(config: &Config) -> Option<Duration> {
    config.stall_warn.map(|warn| warn * 2).or(config.stall_timeout)
}

impl Guard {
    /// Reads what the program says, for ever.
    pub(super) async fn follow_notifications(self: Rc<Self>) {
        loop {
            let said = self.notify_socket.receive().await;
            self.record_notifications(&said);
        }
    }

    fn record_notifications(&self, said: &[Notification]) {
        for notification in said {
            let now = Instant::now();
            match notification {
                Notification::Watchdog => self.watchdog.borrow_mut().record_sign(now),
                Notification::WatchdogTrigger => self.watchdog.borrow_mut().trigger(now),
                Notification::Status(text) => {
                    let text = crate::text::printable(text);
                    log::debug!("{} {} says: {text}", self.tag(), self.program.name());
                }
                Notification::Ready => {
                    self.has_said_ready.set(true);
                    self.said_ready.notify_one();
                }
                Notification::Stopping => {}
            }
        }
    }

    /// Probes a program with `ready-http` for ever: an answer of any status is a sign of life.
    pub(super) async fn keep_probing(&self) {
        let Readiness::Http(path) = self.program.readiness() else {
            return std::future::pending().await;
        };
        let Ok(probe) = self.create_probe(path) else { return std::future::pending().await };
        let config = &self.state.config;
        let Some(interval) = watchdog_interval(config) else { return std::future::pending().await };
        // An overloaded program answers late. That is no reason to kill it.
        let answer_timeout = config.stall_timeout.unwrap_or(MAX_PROBE_TIME).max(MAX_PROBE_TIME);
        loop {
            tokio::time::sleep((interval / 2).max(PROBE_INTERVAL)).await;
            if probe.ask(answer_timeout).await.is_answered() {
                self.watchdog.borrow_mut().record_sign(Instant::now());
            }
        }
    }

    pub(super) fn create_probe(&self, path: &str) -> Result<HttpProbe> {
        let own = self.listeners.iter().find(|one| !one.is_shared_by_all_workers());
        let probe = own.and_then(|one| HttpProbe::new(one.tcp()?, one.slot.0, path));
        probe.ok_or_else(|| {
            Error::config(format!(
                "ready-http {path} cannot reach one worker: that needs a TCP address with IPv4 and dispatch = reuseport or ip-hash; \
                 give one, or ready = notify"
            ))
        })
    }

    /// Returns why the program counts as frozen, if it does. Not while it drains, which has a deadline of its own.
    fn frozen_reason(&self) -> Option<&'static str> {
        if self.state.drain.current_order().is_some() {
            return None;
        }
        let is_stopped = |process: &ProgramProcess| process_state(process.pid()) == Some(STOPPED);
        if self.process.borrow().as_ref().is_some_and(is_stopped) {
            return Some("a signal has stopped it");
        }
        let is_silent = self.watchdog.borrow().is_frozen(Instant::now());
        is_silent.then(|| match self.program.readiness() {
            Readiness::Http(_) => "its probe (ready-http) gets no answer",
            _ => "it sends no WATCHDOG=1 any more",
        })
    }

    /// Returns whether the program is frozen, and logs when that changes.
    fn check_frozen(&self, was_frozen: bool) -> bool {
        let reason = self.frozen_reason();
        if let Some(reason) = reason.filter(|_| !was_frozen) {
            log::warn!("{} {} is frozen: {reason}", self.tag(), self.program.name());
        }
        reason.is_some()
    }

    /// Replaces the worker if its program has closed a listening socket and lives on: connections would wait there for nothing.
    ///
    /// Without connections it is stopped at once, and its successor gets the sockets with the connections that wait. Else the successor
    /// starts first, with other sockets.
    fn check_listeners(&self, connections: u32) {
        let closed = self.observer.borrow().closed_listener_count();
        let is_serving = self.is_ready.get() && self.state.drain.current_order().is_none();
        if !is_serving || closed <= self.closed_when_ready.get() {
            self.closed_looks.set(0);
            return;
        }
        let looks = self.closed_looks.get() + 1;
        self.closed_looks.set(looks);
        if looks == CLOSED_LOOKS {
            let name = self.program.name();
            log::error!("{} {name} has closed its listening socket, replacing it", self.tag());
            if connections == 0
                && let Some(process) = &*self.process.borrow()
            {
                process.signal(self.program.stop_signal_number());
            }
        }
        if looks >= MAX_CLOSED_LOOKS || (looks >= CLOSED_LOOKS && connections > 0) {
            self.state.begin_own_drain(&WorkerReport::Retiring);
        }
    }

    /// Publishes heartbeats as long as the program is not frozen, reaps orphans, and passes signals on.
    pub(super) async fn run_heartbeat(
        self: Rc<Self>,
        mut timer: IntervalTimer,
        terminate: Arc<AtomicBool>,
        abort: Arc<AtomicBool>,
    ) {
        let state = &self.state;
        let (mut beats, mut is_frozen) = (0u32, false);
        loop {
            let late = timer.tick().await;
            state.worker_page.record_loop_lag(late);
            if beats.is_multiple_of(BEATS_PER_USAGE) {
                let usage = self.observer.borrow_mut().usage();
                state.worker_page.set_program_usage(&usage);
                self.check_listeners(usage.connections);
            }
            beats = beats.wrapping_add(1);
            is_frozen = self.check_frozen(is_frozen);
            if !is_frozen {
                state.worker_page.record_heartbeat(LocalWorkerState::monotonic_ms());
            }
            process::reap_orphans(self.process.borrow().as_ref().map(ProgramProcess::pid));
            if terminate.swap(false, Ordering::Relaxed) {
                log::info!("{} received SIGTERM directly, and drains", self.tag());
                state.begin_own_drain(&WorkerReport::Retiring);
            }
            // The supervisor aborts a stalled worker so that its core dump shows where it hangs.
            if abort.swap(false, Ordering::Relaxed)
                && let Some(process) = &*self.process.borrow()
            {
                process.signal(Signal::SIGABRT);
            }
        }
    }
}
