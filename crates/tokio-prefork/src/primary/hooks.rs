//! What the application wants to know in the primary, and how it is told: between two events, when everything that
//! followed from the first is done. A hook that panics is contained; one that is slow is named.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::Primary;
use super::cluster_event::{ClusterEvent, WorkerExit};
use super::primary_handle::PrimaryHandle;
use crate::text::panic_text;
use prefork_supervisor::{Event, ExitReport, LogEvent};

/// Nothing is supervised while a function of the application runs. One that takes longer is named in the log.
const SLOW: Duration = Duration::from_millis(100);

/// Whether a worker that ended unasked is replaced; see [`Cluster::on_restart`](crate::Cluster::on_restart).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It is, as always; in a crash loop, after a while.
    Yes,
    /// It is not: its slot stays empty until the next reload, or until somebody scales.
    No,
}

type OnEvent = Box<dyn FnMut(&mut PrimaryHandle<'_>, &ClusterEvent)>;
type OnRestart = Box<dyn FnMut(&WorkerExit) -> Restart>;

/// Functions of the application that run in the primary.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_event: Vec<OnEvent>,
    pub(crate) on_restart: Option<OnRestart>,
}

impl Primary {
    /// Takes note of what is worth telling the application.
    pub(super) fn note(&mut self, notice: &LogEvent) {
        if self.hooks.on_event.is_empty() {
            return;
        }
        let news = match notice {
            LogEvent::Forked { worker } => ClusterEvent::Fork { worker: *worker },
            LogEvent::Online { worker } => ClusterEvent::Online { worker: *worker },
            LogEvent::Ready { worker, .. } => {
                let web = worker.slot.is_web();
                let addresses = if web { self.listeners.bound_addrs() } else { Vec::new() };
                ClusterEvent::Listening { worker: *worker, addresses }
            }
            LogEvent::Disconnected { worker } => ClusterEvent::Disconnect { worker: *worker },
            LogEvent::Exited(exit) => ClusterEvent::Exit(self.judge(exit)),
            LogEvent::Replaced { worker, by } => {
                ClusterEvent::Replaced { worker: *worker, by: *by }
            }
            LogEvent::Reloaded { generation, workers, .. } => {
                ClusterEvent::Reloaded { generation: *generation, workers: *workers }
            }
            LogEvent::ReloadFailed { reason } => ClusterEvent::ReloadFailed { why: reason.clone() },
            LogEvent::Scaled { kind, from, to, .. } => {
                ClusterEvent::Scaled { kind, from: *from, to: *to }
            }
            LogEvent::Stopping { .. }
            | LogEvent::StoppingNow { .. }
            | LogEvent::GivingUp { .. } => {
                if std::mem::replace(&mut self.stopping_told, true) {
                    return;
                }
                ClusterEvent::Stopping
            }
            _ => return,
        };
        self.news.push_back(news);
    }

    /// The same verdict for both hooks: a kill by the kernel explains one death.
    fn judge(&mut self, exit: &ExitReport) -> WorkerExit {
        if let Some(known) = self.judged.take_if(|known| known.worker == exit.worker) {
            return known;
        }
        let oom = &mut self.oom_kills;
        let verdict = WorkerExit::new(exit, || oom.explain());
        self.judged = Some(verdict.clone());
        verdict
    }

    /// Tells the application what has happened, in its order.
    pub(super) fn tell_hooks(&mut self) {
        while let Some(news) = self.news.pop_front() {
            // A hook sees the primary without its hooks: none can run inside another.
            let mut hooks = std::mem::take(&mut self.hooks.on_event);
            for hook in &mut hooks {
                self.call_out(&"the hook on_event", &news, |handle| hook(handle, &news));
            }
            self.hooks.on_event = hooks;
        }
    }

    /// Asks the application whether the worker is to be replaced. If it cannot say, it is.
    pub(super) fn ask_restart(&mut self, exit: &ExitReport) {
        let verdict = self.judge(exit);
        let mut restart = Restart::Yes;
        if let Some(mut hook) = self.hooks.on_restart.take() {
            let told = self.call_out(&"the hook on_restart", &exit.worker, |_| hook(&verdict));
            self.hooks.on_restart = Some(hook);
            restart = told.unwrap_or(Restart::Yes);
        }
        let (worker, restart) = (exit.worker.id, restart == Restart::Yes);
        self.pending_events.push_back(Event::RestartDecided { worker, restart });
    }

    /// Calls a function of the application, named `function` in the log. `None` if it panicked.
    pub(super) fn call_out<T>(
        &mut self,
        function: &dyn Display,
        at: &dyn Display,
        call: impl FnOnce(&mut PrimaryHandle<'_>) -> T,
    ) -> Option<T> {
        let began = Instant::now();
        let mut handle = PrimaryHandle { primary: self };
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut handle)));
        let took = began.elapsed();
        if let Err(panic) = &called {
            self.event_log.panicked(function, at, &panic_text(&**panic));
        }
        if took > SLOW {
            self.event_log.was_slow(function, at, took);
        }
        called.ok()
    }
}
