//! The application's hooks in the primary: which events they are told, and how they are called.
//!
//! Hooks run between two events, when everything that followed from the first is done. A panic is contained; a slow
//! hook is named in the log.

use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::Primary;
use super::cluster_event::{ClusterEvent, WorkerExit};
use super::oom_kills::OomKillCounter;
use super::primary_handle::PrimaryHandle;
use crate::error::BoxError;
use crate::listener::ListenAddr;
use crate::text::panic_text;
use prefork_supervisor::{Event, ExitReport, LogEvent, RefusedCommand, RestartDecision, WorkerTag};

/// How long an application hook may run before the log names it. Meanwhile nothing is supervised.
const SLOW_CALL_THRESHOLD: Duration = Duration::from_millis(100);

/// How many events may wait for the hooks before refusals are only logged.
const MAX_QUEUED_REFUSALS: usize = 1024;

type OnEvent = Box<dyn FnMut(&mut PrimaryHandle<'_>, &ClusterEvent)>;
type OnStart = Box<dyn FnOnce(&mut PrimaryHandle<'_>) -> Result<(), BoxError>>;
type OnRestart = Box<dyn FnMut(&WorkerExit) -> RestartDecision>;

/// Functions of the application that run in the primary.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_start: Vec<OnStart>,
    pub(crate) on_event: Vec<OnEvent>,
    pub(crate) on_restart: Option<OnRestart>,
}

/// The hooks, and the events that are queued for them.
pub(super) struct HookQueue {
    hooks: Hooks,
    /// Queued events, oldest first.
    undelivered: VecDeque<ClusterEvent>,
    /// The exit that was classified last.
    last_exit: Option<WorkerExit>,
    oom_kills: OomKillCounter,
    has_reported_stop: bool,
}

impl HookQueue {
    pub(super) fn new(hooks: Hooks) -> HookQueue {
        HookQueue {
            hooks,
            undelivered: VecDeque::new(),
            last_exit: None,
            oom_kills: OomKillCounter::of_this_process(),
            has_reported_stop: false,
        }
    }

    /// Takes the hooks that run once, at the start.
    pub(super) fn take_start_hooks(&mut self) -> Vec<OnStart> {
        std::mem::take(&mut self.hooks.on_start)
    }

    /// Queues the cluster event of a log event, if it has one and there is a hook. `addresses_of` returns the addresses
    /// that a worker serves.
    pub(super) fn queue_cluster_event(
        &mut self,
        event: &LogEvent,
        addresses_of: impl FnOnce(&WorkerTag) -> Vec<ListenAddr>,
    ) {
        if self.hooks.on_event.is_empty() {
            return;
        }
        let cluster_event = match event {
            LogEvent::Forked { worker } => ClusterEvent::Fork { worker: *worker },
            LogEvent::Online { worker } => ClusterEvent::Online { worker: *worker },
            LogEvent::Ready { worker, .. } => {
                let is_web = worker.slot.is_web();
                let addresses = if is_web { addresses_of(worker) } else { Vec::new() };
                ClusterEvent::Listening { worker: *worker, addresses }
            }
            LogEvent::Disconnected { worker } => ClusterEvent::Disconnect { worker: *worker },
            LogEvent::Exited(exit) => ClusterEvent::Exit(self.classify_exit(exit)),
            LogEvent::Replaced { worker, by } => {
                ClusterEvent::Replaced { worker: *worker, by: *by }
            }
            LogEvent::ForkFailed { worker, reason } => {
                ClusterEvent::ForkFailed { worker: *worker, reason: reason.clone() }
            }
            LogEvent::CommandRefused { command, reason, .. } => {
                ClusterEvent::Refused { command: *command, reason: reason.clone() }
            }
            LogEvent::Reloaded { generation, workers, .. } => {
                ClusterEvent::Reloaded { generation: *generation, workers: *workers }
            }
            LogEvent::ReloadFailed { reason } => {
                ClusterEvent::ReloadFailed { reason: reason.clone() }
            }
            LogEvent::Scaled { kind, from, to, .. } => {
                ClusterEvent::Scaled { kind, from: *from, to: *to }
            }
            LogEvent::Empty => ClusterEvent::Empty,
            LogEvent::Stopping { .. }
            | LogEvent::StoppingNow { .. }
            | LogEvent::GivingUp { .. } => {
                if std::mem::replace(&mut self.has_reported_stop, true) {
                    return;
                }
                ClusterEvent::Stopping
            }
            _ => return,
        };
        self.undelivered.push_back(cluster_event);
    }

    /// Queues the refusal of a command that found no room. Beyond a bound it is only logged: a hook may answer each
    /// refusal with further commands.
    pub(super) fn queue_refusal(&mut self, command: RefusedCommand, reason: &str) {
        if !self.hooks.on_event.is_empty() && self.undelivered.len() < MAX_QUEUED_REFUSALS {
            self.undelivered
                .push_back(ClusterEvent::Refused { command, reason: reason.to_string() });
        }
    }

    /// Returns why a worker exited. All calls for one worker give the same answer, as a kill by the kernel is attributed once.
    pub(super) fn classify_exit(&mut self, exit: &ExitReport) -> WorkerExit {
        if let Some(known) = self.last_exit.as_ref().filter(|known| known.worker == exit.worker) {
            return known.clone();
        }
        let oom_kills = &mut self.oom_kills;
        let worker_exit = WorkerExit::new(exit, || oom_kills.attribute_kill());
        self.last_exit = Some(worker_exit.clone());
        worker_exit
    }
}

impl Primary {
    /// Calls the `on_event` hooks with the queued events, in their order.
    pub(super) fn run_event_hooks(&mut self) {
        // Refusals that the hooks cause now have their turn after the next event; commands are pending then.
        for _ in 0..self.hooks.undelivered.len() {
            let Some(event) = self.hooks.undelivered.pop_front() else { return };
            // Removed while they run: no hook can run inside another.
            let mut hooks = std::mem::take(&mut self.hooks.hooks.on_event);
            for hook in &mut hooks {
                self.call_application(&"the hook on_event", &event, |handle| hook(handle, &event));
            }
            self.hooks.hooks.on_event = hooks;
        }
    }

    /// Asks the `on_restart` hook whether a worker is replaced. Without an answer it is.
    pub(super) fn confirm_restart(&mut self, exit: &ExitReport) {
        let worker_exit = self.hooks.classify_exit(exit);
        let mut decision = None;
        if let Some(mut hook) = self.hooks.hooks.on_restart.take() {
            decision =
                self.call_application(&"the hook on_restart", &exit.worker, |_| hook(&worker_exit));
            self.hooks.hooks.on_restart = Some(hook);
        }
        let decision = decision.unwrap_or(RestartDecision::Restart);
        let worker = exit.worker.id;
        self.pending_events.push_back(Event::RestartDecided { worker, decision });
    }

    /// Calls a function of the application, named `function` in the log. Returns `None` if it panicked.
    pub(super) fn call_application<T>(
        &mut self,
        function: &dyn Display,
        occasion: &dyn Display,
        call: impl FnOnce(&mut PrimaryHandle<'_>) -> T,
    ) -> Option<T> {
        let started = Instant::now();
        let mut handle = PrimaryHandle { primary: self };
        let result = catch_unwind(AssertUnwindSafe(|| call(&mut handle)));
        let took = started.elapsed();
        if let Err(panic) = &result {
            self.event_log.log_application_panic(function, occasion, &panic_text(&**panic));
        }
        if took > SLOW_CALL_THRESHOLD {
            self.event_log.log_slow_application_call(function, occasion, took);
        }
        result.ok()
    }
}
