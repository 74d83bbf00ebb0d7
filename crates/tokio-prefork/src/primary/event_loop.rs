//! The primary's event loop for the application: hooks at the start, timers, and descriptors of its own.
//!
//! They run in the primary's only thread, between two events, like every other hook. The loop waits for them with the
//! poll(2) that it waits with anyway.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Primary;
use super::primary_handle::PrimaryHandle;
use super::timers::{TimerId, Timers};
use super::watched_fds::{FdWatchId, SourceWithHook, WatchedFds};
use crate::error::{BoxError, Error, Result};

/// The callback of a timer.
enum TimerCallback {
    Once(Box<dyn FnOnce(&mut PrimaryHandle<'_>)>),
    Repeating(Box<dyn FnMut(&mut PrimaryHandle<'_>)>),
}

/// The timer or the descriptor whose callback runs.
#[derive(Clone, Copy)]
enum CurrentCallback {
    Timer(TimerId),
    FdWatch(FdWatchId),
}

/// The application's timers and descriptors in the primary.
#[derive(Default)]
pub(super) struct EventLoop {
    current: Option<CurrentCallback>,
    timers: Timers<TimerCallback>,
    watched_fds: WatchedFds,
}

impl EventLoop {
    /// Returns when to stop waiting: when the next timer is due, or a descriptor is polled again after a pause.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.timers.next_due().into_iter().chain(self.watched_fds.next_deadline(now)).min()
    }

    /// Returns whether the application waits for nothing in the primary.
    pub(super) fn is_empty(&self) -> bool {
        self.timers.is_empty() && self.watched_fds.is_empty()
    }

    pub(super) fn watched_fds(&self) -> &WatchedFds {
        &self.watched_fds
    }

    /// Drops everything in a forked worker: descriptors are closed, callbacks leaked, as what they own is the primary's.
    pub(super) fn close_in_worker(&mut self) {
        self.watched_fds.close_in_worker();
        std::mem::forget(std::mem::take(&mut self.timers));
    }
}

impl Primary {
    /// Calls the hooks `on_start`, in their order.
    ///
    /// # Errors
    /// A hook fails or panics. After an upgrade the old image is gone, so this is only logged.
    pub(super) fn run_start_hooks(&mut self, is_upgrade: bool) -> Result<()> {
        for hook in self.hooks.take_start_hooks() {
            let result = self.call_application(&"the hook on_start", &"the start", hook);
            let result = result.unwrap_or_else(|| Err("it panicked".into()));
            match result.map_err(|cause| Error::application("the hook on_start failed", cause)) {
                Ok(()) => {}
                Err(error) if is_upgrade => self.event_log.log_start_hook_error(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Calls the callbacks of the timers that are due, each once.
    pub(super) fn run_due_timers(&mut self) {
        let now = Instant::now();
        for id in self.event_loop.timers.due_timers(now) {
            let Some(callback) = self.event_loop.timers.start_callback(now, id) else { continue };
            let function = format_args!("the function of timer {id}");
            self.event_loop.current = Some(CurrentCallback::Timer(id));
            match callback {
                TimerCallback::Once(call) => {
                    self.call_application(&function, &"its time", call);
                }
                TimerCallback::Repeating(mut call) => {
                    self.call_application(&function, &"its time", &mut call);
                    self.event_loop.timers.finish_callback(id, TimerCallback::Repeating(call));
                }
            }
            self.event_loop.current = None;
        }
    }

    /// Calls the hooks of readable descriptors, each once.
    pub(super) fn read_watched_fds(&mut self, ready: &[FdWatchId]) {
        for id in ready {
            let Some(mut hook) = self.event_loop.watched_fds.start_call(*id) else { continue };
            let function = format_args!("the hook of descriptor {id}");
            self.event_loop.current = Some(CurrentCallback::FdWatch(*id));
            self.call_application(&function, &"data to read", |handle| hook.call(handle));
            self.event_loop.current = None;
            if self.event_loop.watched_fds.finish_call(Instant::now(), *id, hook) {
                self.event_log.log_unread_descriptor(*id);
            }
        }
    }
}

/// Timers and descriptors in the primary's event loop.
impl PrimaryHandle<'_> {
    /// Calls `callback` in the primary once, `delay` from now: Node's `setTimeout`.
    ///
    /// It runs between two events, in the primary's only thread, under the rules of
    /// [`Cluster::on_event`](crate::Cluster::on_event): it should return at once. It runs at its time or later, by a
    /// millisecond on an idle machine. There is no thread behind it; the primary's wait ends when a timer is due.
    ///
    /// Workers do not inherit timers. An upgrade in place drops them: the new image sets its own in
    /// [`Cluster::on_start`](crate::Cluster::on_start). They run during a graceful stop too, until the last worker has
    /// exited.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_prefork::{Cluster, ClusterEvent, Config};
    /// # fn run(config: Config) {
    /// // Kills a worker that has not exited two seconds after it was disconnected.
    /// let cluster = Cluster::new(config).on_event(|primary, event| {
    ///     if let ClusterEvent::Disconnect { worker, .. } = event {
    ///         let id = worker.id;
    ///         primary.after(Duration::from_secs(2), move |primary| {
    ///             if primary.workers().iter().any(|one| one.worker.id == id) {
    ///                 let _ = primary.kill(id, 9);
    ///             }
    ///         });
    ///     }
    /// });
    /// # }
    /// ```
    pub fn after(
        &mut self,
        delay: Duration,
        callback: impl FnOnce(&mut PrimaryHandle<'_>) + 'static,
    ) -> TimerId {
        let callback = TimerCallback::Once(Box::new(callback));
        self.primary.event_loop.timers.add_once(Instant::now(), delay, callback)
    }

    /// Calls `callback` in the primary each `interval`, for the first time after one: Node's `setInterval`. The shortest
    /// interval is 1 ms.
    ///
    /// The same rules hold as for [`after`](PrimaryHandle::after). A callback that comes late is called once for all the
    /// times that it has missed. If it panics, which is logged, it is called again at its next time.
    pub fn every(
        &mut self,
        interval: Duration,
        callback: impl FnMut(&mut PrimaryHandle<'_>) + 'static,
    ) -> TimerId {
        let callback = TimerCallback::Repeating(Box::new(callback));
        self.primary.event_loop.timers.add_repeating(Instant::now(), interval, callback)
    }

    /// Cancels a timer, and returns whether it would have run otherwise.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.primary.event_loop.timers.cancel(timer)
    }

    /// Watches `source`, a socket, pipe or inotify descriptor of the application, and calls `hook` in the primary
    /// whenever it can be read, has ended or has failed.
    ///
    /// The primary owns `source` from here on and passes it to each call. It is set to non-blocking: read or accept until
    /// [`WouldBlock`](std::io::ErrorKind::WouldBlock), as the hook is called again for what is left. At the end of a
    /// stream end it, by [`cancel_current`](PrimaryHandle::cancel_current). A hook that leaves its source readable 1000 times in a row
    /// is named in the log, and called less and less often, down to once a second, until the source is drained.
    ///
    /// The rules of [`Cluster::on_event`](crate::Cluster::on_event) hold for `hook`. Each worker drops its copy of
    /// `source` at its fork, and so does an upgrade in place: the new image watches its own in
    /// [`Cluster::on_start`](crate::Cluster::on_start), which can be the same one by
    /// [`inherit_socket`](crate::inherit_socket).
    ///
    /// ```no_run
    /// # use std::io::Write;
    /// # use std::os::unix::net::UnixListener;
    /// # use tokio_prefork::{Cluster, Config};
    /// # fn run(config: Config) {
    /// // An admin socket: writes one line about each worker to whoever connects.
    /// let cluster = Cluster::new(config).on_start(|primary| {
    ///     let admin = UnixListener::bind("admin.sock")?;
    ///     primary.on_readable(admin, |primary, admin| {
    ///         while let Ok((mut client, _)) = admin.accept() {
    ///             for worker in primary.workers() {
    ///                 let _ = writeln!(client, "{} {}", worker.worker, worker.state);
    ///             }
    ///         }
    ///     })?;
    ///     Ok(())
    /// });
    /// # }
    /// ```
    ///
    /// # Errors
    /// The descriptor cannot be set to non-blocking or close-on-exec.
    pub fn on_readable<S: AsFd + 'static>(
        &mut self,
        source: S,
        hook: impl FnMut(&mut PrimaryHandle<'_>, &mut S) + 'static,
    ) -> Result<FdWatchId> {
        prefork_os::fd::set_nonblocking(&source)
            .and_then(|()| prefork_os::fd::set_inheritable(&source, false))
            .map_err(|e| Error::system("watch a descriptor of the application", e))?;
        Ok(self.primary.event_loop.watched_fds.add(Box::new(SourceWithHook { source, hook })))
    }

    /// Stops watching a descriptor and closes it, and returns whether it was watched.
    pub fn unwatch(&mut self, watch: FdWatchId) -> bool {
        self.primary.event_loop.watched_fds.remove(watch)
    }

    /// Ends the repeating timer or the watched descriptor whose callback calls this, after the callback has returned.
    ///
    /// Returns whether there was something to end: not in a hook of another kind, nor in a callback of
    /// [`after`](PrimaryHandle::after).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_prefork::{Cluster, Config};
    /// # fn run(config: Config) {
    /// let mut left = 3;
    /// let cluster = Cluster::new(config).every(Duration::from_secs(1), move |primary| {
    ///     left -= 1;
    ///     if left == 0 {
    ///         primary.cancel_current();
    ///     }
    /// });
    /// # }
    /// ```
    pub fn cancel_current(&mut self) -> bool {
        match self.primary.event_loop.current {
            Some(CurrentCallback::Timer(id)) => self.cancel_timer(id),
            Some(CurrentCallback::FdWatch(id)) => self.unwatch(id),
            None => false,
        }
    }

    /// Stops the cluster like [`stop`](PrimaryHandle::stop), and makes `serve` return this error when the last worker
    /// has exited: what an uncaught error does in Node's primary.
    ///
    /// The first error counts. An [`Error`] of the library keeps its kind and so its exit status; any other becomes an
    /// [`ErrorKind::Application`](crate::ErrorKind::Application) error, whose status is 70.
    pub fn stop_with(&mut self, error: impl Into<BoxError>) {
        let error = match error.into().downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => {
                Error::application("a hook of the primary has stopped the cluster", other)
            }
        };
        self.primary.stop_error.get_or_insert(error);
        self.stop();
    }

    /// Returns how often this primary has been upgraded in place: 0 in the first image.
    pub fn upgrade_count(&self) -> u64 {
        self.primary.upgrade.upgrade_count
    }
}
