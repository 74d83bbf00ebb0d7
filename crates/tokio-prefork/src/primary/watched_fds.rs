//! The descriptors of the application that the primary's event loop watches, and their hooks.
//!
//! poll(2) reports a descriptor for as long as it is readable. If its hook does not read, the loop would call it without
//! an end and use a whole processor; so the calls of such a hook are spaced out until the descriptor is drained.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::primary_handle::PrimaryHandle;
use prefork_os::poll::{WatchedFd, poll_fds};

/// How often in a row a hook may leave its descriptor readable before its calls are spaced out.
const MAX_CALLS_WITHOUT_DRAINING: u32 = 1000;

/// The pause after the first such call. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause between two calls of a hook that does not read.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Identifies a descriptor of [`PrimaryHandle::on_readable`](crate::PrimaryHandle::on_readable), to cancel it.
///
/// An id is never used again in the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdWatchId(u64);

impl fmt::Display for FdWatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A descriptor with the hook that reads it.
pub(super) trait ReadableHook {
    fn as_fd(&self) -> BorrowedFd<'_>;

    fn call(&mut self, primary: &mut PrimaryHandle<'_>);

    /// Closes the descriptor in a forked worker, and leaks the hook: what it owns is the primary's.
    fn close_in_worker(self: Box<Self>);
}

/// The source and the hook of one call of `on_readable`.
pub(super) struct SourceWithHook<S, F> {
    pub(super) source: S,
    pub(super) hook: F,
}

impl<S, F> ReadableHook for SourceWithHook<S, F>
where
    S: AsFd + 'static,
    F: FnMut(&mut PrimaryHandle<'_>, &mut S) + 'static,
{
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    fn call(&mut self, primary: &mut PrimaryHandle<'_>) {
        (self.hook)(primary, &mut self.source);
    }

    fn close_in_worker(self: Box<Self>) {
        let SourceWithHook { source, hook } = *self;
        drop(source);
        std::mem::forget(hook);
    }
}

/// One watched descriptor.
struct FdWatch {
    /// `None` while the hook runs.
    hook: Option<Box<dyn ReadableHook>>,
    /// How often in a row the hook has left the descriptor readable.
    calls_without_draining: u32,
    /// The descriptor is not polled before this time.
    paused_until: Option<Instant>,
}

/// All watched descriptors of the application.
#[derive(Default)]
pub(super) struct WatchedFds {
    last_id: u64,
    watches: BTreeMap<FdWatchId, FdWatch>,
}

impl WatchedFds {
    pub(super) fn add(&mut self, hook: Box<dyn ReadableHook>) -> FdWatchId {
        self.last_id += 1;
        let id = FdWatchId(self.last_id);
        let watch = FdWatch { hook: Some(hook), calls_without_draining: 0, paused_until: None };
        self.watches.insert(id, watch);
        id
    }

    /// Removes a descriptor and closes it, and returns whether it was watched.
    pub(super) fn remove(&mut self, id: FdWatchId) -> bool {
        self.watches.remove(&id).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Returns the descriptors to poll.
    pub(super) fn poll_sources(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (FdWatchId, WatchedFd<'_>)> {
        let active =
            self.watches.iter().filter(move |one| one.1.paused_until.is_none_or(|at| at <= now));
        active.filter_map(|(id, watch)| {
            let hook = watch.hook.as_ref()?;
            Some((*id, WatchedFd::readable(hook.as_fd())))
        })
    }

    /// Returns when the next pause ends.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.watches.values().filter_map(|watch| watch.paused_until).filter(|at| *at > now).min()
    }

    /// Takes a hook in order to run it. Returns `None` if it was removed meanwhile.
    pub(super) fn start_call(&mut self, id: FdWatchId) -> Option<Box<dyn ReadableHook>> {
        self.watches.get_mut(&id)?.hook.take()
    }

    /// Returns a hook after it has run. Returns whether its calls are spaced out from now on.
    ///
    /// A hook that has removed its own descriptor is dropped.
    pub(super) fn finish_call(
        &mut self,
        now: Instant,
        id: FdWatchId,
        hook: Box<dyn ReadableHook>,
    ) -> bool {
        let Some(watch) = self.watches.get_mut(&id) else { return false };
        let is_readable = is_readable_now(hook.as_fd());
        watch.hook = Some(hook);
        if !is_readable {
            (watch.calls_without_draining, watch.paused_until) = (0, None);
            return false;
        }
        watch.calls_without_draining = watch.calls_without_draining.saturating_add(1);
        watch.paused_until = pause_after(watch.calls_without_draining).map(|pause| now + pause);
        watch.calls_without_draining == MAX_CALLS_WITHOUT_DRAINING
    }

    /// Closes all descriptors in a forked worker.
    pub(super) fn close_in_worker(&mut self) {
        let hooks = std::mem::take(&mut self.watches).into_values();
        hooks.filter_map(|watch| watch.hook).for_each(|hook| hook.close_in_worker());
    }
}

/// Returns how long to wait before the next call of a hook that has left its descriptor readable `calls` times.
fn pause_after(calls: u32) -> Option<Duration> {
    let doublings = calls.checked_sub(MAX_CALLS_WITHOUT_DRAINING)?.min(16);
    Some(FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE))
}

/// Returns whether poll(2) would report the descriptor at once, an error or the end of the stream included.
fn is_readable_now(fd: BorrowedFd<'_>) -> bool {
    let ready = poll_fds(&[WatchedFd::readable(fd)], Some(Duration::ZERO));
    ready.is_ok_and(|ready| ready[0])
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn watch_pair(watched: &mut WatchedFds) -> (FdWatchId, UnixStream) {
        let (own, peer) = UnixStream::pair().expect("a pair");
        own.set_nonblocking(true).expect("non-blocking");
        let hook = |_: &mut PrimaryHandle<'_>, _: &mut UnixStream| {};
        (watched.add(Box::new(SourceWithHook { source: own, hook })), peer)
    }

    #[test]
    fn a_hook_that_never_reads_is_called_less_and_less_often() {
        let (mut watched, mut now) = (WatchedFds::default(), Instant::now());
        let (id, mut peer) = watch_pair(&mut watched);
        peer.write_all(b"unread").expect("written");
        let start = now;
        let mut slowed_down = 0;
        for _ in 0..MAX_CALLS_WITHOUT_DRAINING + 20 {
            now = watched.next_deadline(now).unwrap_or(now);
            assert_eq!(watched.poll_sources(now).count(), 1);
            let hook = watched.start_call(id).expect("watched");
            slowed_down += usize::from(watched.finish_call(now, id, hook));
        }
        assert_eq!(slowed_down, 1, "reported once");
        assert_eq!(watched.poll_sources(now).count(), 0);
        assert!(now - start > MAX_PAUSE * 5, "{:?}", now - start);
    }

    #[test]
    fn a_drained_descriptor_is_polled_again_at_once() {
        let (mut watched, now) = (WatchedFds::default(), Instant::now());
        let (id, mut peer) = watch_pair(&mut watched);
        peer.write_all(b"x").expect("written");
        for _ in 0..MAX_CALLS_WITHOUT_DRAINING {
            let hook = watched.start_call(id).expect("watched");
            watched.finish_call(now, id, hook);
        }
        assert!(watched.next_deadline(now).is_some());
        let hook = watched.start_call(id).expect("watched");
        let copy = hook.as_fd().try_clone_to_owned().expect("a copy");
        assert_eq!(UnixStream::from(copy).read(&mut [0; 8]).expect("read"), 1);
        assert!(!watched.finish_call(now, id, hook));
        assert_eq!((watched.poll_sources(now).count(), watched.next_deadline(now)), (1, None));
    }

    #[test]
    fn a_removed_descriptor_is_closed_even_if_its_own_hook_removes_it() {
        let (mut watched, now) = (WatchedFds::default(), Instant::now());
        let (first, mut first_peer) = watch_pair(&mut watched);
        let (second, mut second_peer) = watch_pair(&mut watched);
        assert!(watched.remove(first) && !watched.remove(first));
        assert_eq!(first_peer.read(&mut [0]).expect("end"), 0);
        let hook = watched.start_call(second).expect("watched");
        assert!(watched.remove(second));
        watched.finish_call(now, second, hook);
        assert_eq!(second_peer.read(&mut [0]).expect("end"), 0);
        assert!(watched.is_empty());
    }

    #[test]
    fn a_worker_closes_the_descriptors_and_keeps_what_the_hooks_own() {
        struct DropFlag(std::rc::Rc<std::cell::Cell<bool>>);
        impl Drop for DropFlag {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let is_dropped = std::rc::Rc::new(std::cell::Cell::new(false));
        let (own, mut peer) = UnixStream::pair().expect("a pair");
        let flag = DropFlag(is_dropped.clone());
        let hook = move |_: &mut PrimaryHandle<'_>, _: &mut UnixStream| flag.0.set(false);
        let mut watched = WatchedFds::default();
        watched.add(Box::new(SourceWithHook { source: own, hook }));
        watched.close_in_worker();
        assert_eq!(peer.read(&mut [0]).expect("end"), 0);
        assert!(!is_dropped.get());
    }
}
