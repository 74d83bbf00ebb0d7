//! What the application wants to know in the primary, and how it is told: between two events, when everything that
//! followed from the first is done. A hook that panics is contained; one that is slow is named.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::Primary;
use super::events::{ClusterEvent, WorkerExit};
use super::handle::PrimaryHandle;
use crate::supervisor::{Event, Exit, Notice};

/// Nothing is supervised while a hook runs. One that takes longer is named in the log.
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
    pub(super) fn note(&mut self, notice: &Notice) {
        if self.hooks.on_event.is_empty() {
            return;
        }
        let news = match notice {
            Notice::Forked { worker } => ClusterEvent::Fork { worker: *worker },
            Notice::Online { worker } => ClusterEvent::Online { worker: *worker },
            Notice::Ready { worker, .. } => {
                let addresses = self.listeners.addresses();
                ClusterEvent::Listening { worker: *worker, addresses }
            }
            Notice::Disconnected { worker } => ClusterEvent::Disconnect { worker: *worker },
            Notice::Exited(exit) => ClusterEvent::Exit(self.judge(exit)),
            Notice::Replaced { worker, by } => ClusterEvent::Replaced { worker: *worker, by: *by },
            Notice::Reloaded { generation, workers } => {
                ClusterEvent::Reloaded { generation: *generation, workers: *workers }
            }
            Notice::ReloadFailed { why } => ClusterEvent::ReloadFailed { why: why.clone() },
            Notice::Scaled { from, to, .. } => ClusterEvent::Scaled { from: *from, to: *to },
            Notice::Stopping { .. } | Notice::StoppingNow { .. } | Notice::GivingUp { .. } => {
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
    fn judge(&mut self, exit: &Exit) -> WorkerExit {
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
                let began = Instant::now();
                let mut handle = PrimaryHandle { primary: self };
                let told = catch_unwind(AssertUnwindSafe(|| hook(&mut handle, &news)));
                self.hook_returned("on_event", &news, began, told.err());
            }
            self.hooks.on_event = hooks;
        }
    }

    /// Asks the application whether the worker is to be replaced. If it cannot say, it is.
    pub(super) fn ask_restart(&mut self, exit: &Exit) {
        let verdict = self.judge(exit);
        let mut restart = Restart::Yes;
        if let Some(mut hook) = self.hooks.on_restart.take() {
            let began = Instant::now();
            let told = catch_unwind(AssertUnwindSafe(|| hook(&verdict)));
            self.hooks.on_restart = Some(hook);
            restart = told.as_ref().map_or(Restart::Yes, |restart| *restart);
            self.hook_returned("on_restart", &exit.worker, began, told.err());
        }
        let (worker, restart) = (exit.worker.id, restart == Restart::Yes);
        self.queue.push_back(Event::RestartDecided { worker, restart });
    }

    fn hook_returned(
        &mut self,
        hook: &str,
        at: &dyn Display,
        began: Instant,
        panic: Option<Box<dyn Any + Send>>,
    ) {
        if let Some(panic) = panic {
            self.journal.hook_panicked(hook, at, said(&*panic));
        }
        let took = began.elapsed();
        if took > SLOW {
            self.journal.hook_was_slow(hook, at, took);
        }
    }
}

/// What a panic said, where it said a text.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}
