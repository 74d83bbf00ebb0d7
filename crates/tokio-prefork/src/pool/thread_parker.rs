//! Lets a thread without an async runtime wait for a future.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

/// Puts the thread that created it to sleep until its waker is called.
pub(super) struct ThreadParker(Arc<ThreadWaker>);

struct ThreadWaker {
    thread: Thread,
    is_woken: AtomicBool,
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl ThreadParker {
    pub(super) fn new() -> ThreadParker {
        let thread = std::thread::current();
        ThreadParker(Arc::new(ThreadWaker { thread, is_woken: AtomicBool::new(false) }))
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.0))
    }

    /// Sleeps until the waker is called, at the latest until `deadline`.
    pub(super) fn park(&self, deadline: Option<Instant>) {
        while !self.0.is_woken.swap(false, Ordering::Acquire) {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => std::thread::park(),
                Some(left) if left.is_zero() => return,
                Some(left) => std::thread::park_timeout(left),
            }
        }
    }
}

/// Runs a future on the calling thread, which sleeps while the future waits.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let parker = ThreadParker::new();
    let waker = parker.waker();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        parker.park(None);
    }
}
