//! Waiting until another process changes a word of shared memory, without polling and without blocking an event loop.
//!
//! A process that waits has one thread, which sleeps in the kernel on one word of the whole cluster: the *change epoch* (a futex
//! without the private bit). One word for all, because a thread can sleep on one only before Linux 5.16. The thread starts with the
//! first wait and ends when nothing has waited for 10 s, in the process that will fork workers at once. It never keeps the process alive. An eventfd would need a descriptor for
//! each process in every process, including those that are forked later.
//!
//! A change is cheap while nobody waits: each word has a second one, `armed`, which is zero then. Who waits first arms the word and
//! then reads it; who changes it first changes it and then reads `armed`. All four are sequentially consistent, so at least one of the
//! two sees the other. A process that finds the word armed increments the epoch, wakes all sleeping threads, and only then disarms.
//!
//! **Death between change and wake-up.** The word stays armed, so the next change wakes. Without one, the primary does, when it reaps
//! the process ([`wake_after_exit`]). A process that is not its child is noticed within [`RECHECK_INTERVAL`].
//!
//! **Death of a waiting process.** Its arms cost one superfluous wake-up.

mod change_epoch;
#[cfg(test)]
mod tests;
mod waiters;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub(super) use change_epoch::ChangeEpoch;
pub(crate) use change_epoch::wake_after_exit;
use waiters::lock_local_waiters;
pub(super) use waiters::{LockRequest, WakeOrder};

/// How often a sleeping thread looks at its words again without having been woken.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);

/// A word whose changes can be waited for. Every change must be followed by [`notify`](WaitableWord::notify).
#[derive(Clone, Copy)]
pub(super) struct WaitableWord {
    value: &'static AtomicU64,
    /// Zero, or one more than the change epoch at which a process last began to wait.
    armed: &'static AtomicU64,
    /// The number of exited processes, if an exit counts as a change.
    exits: Option<&'static AtomicU64>,
}

impl WaitableWord {
    pub(super) fn new(value: &'static AtomicU64, armed: &'static AtomicU64) -> WaitableWord {
        WaitableWord { value, armed, exits: None }
    }

    /// Like [`new`](WaitableWord::new), for a counter of changes: the exit of a process counts as one, too.
    pub(super) fn with_exits(
        value: &'static AtomicU64,
        armed: &'static AtomicU64,
        epoch: &ChangeEpoch,
    ) -> WaitableWord {
        WaitableWord { value, armed, exits: Some(epoch.exits) }
    }

    pub(super) fn load(self) -> u64 {
        // Both only grow if there are two, so the sum changes with each of them.
        let exits = self.exits.map_or(0, |exits| exits.load(SeqCst));
        self.value.load(SeqCst).wrapping_add(exits)
    }

    /// Wakes those that wait, if there are any. Call it after a change that is sequentially consistent (`SeqCst`).
    pub(super) fn notify(self) {
        let armed = self.armed.load(SeqCst);
        if armed != 0 {
            self.wake_and_disarm(armed);
        }
    }

    #[cold]
    fn wake_and_disarm(self, armed: u64) {
        change_epoch::advance();
        // Only after the wake-up, so that a process that is killed or stopped before leaves the word armed. Who has armed it again
        // since the epoch advanced has stored a larger value.
        let _ = self.armed.compare_exchange(armed, 0, SeqCst, SeqCst);
    }

    /// Asks for a wake-up at the next change. Read the word afterwards: an earlier change causes none.
    fn arm(self) {
        self.armed.fetch_max(change_epoch::current() + 1, SeqCst);
    }

    /// The identity of the word in this process.
    fn address(self) -> usize {
        self.value.as_ptr().addr()
    }

    /// Calls `attempt` with the value of the word until it returns something: at once and after each change.
    ///
    /// Dropping the future ends the wait. Works with any runtime.
    pub(super) async fn wait<T>(
        self,
        order: WakeOrder,
        attempt: impl FnMut(u64) -> Option<T>,
    ) -> T {
        let mut wait = PendingWait { word: self, order, attempt, ticket: None };
        poll_fn(|context| wait.poll(context)).await
    }
}

/// A wait of this process. In the queue while it has a ticket.
struct PendingWait<F> {
    word: WaitableWord,
    order: WakeOrder,
    attempt: F,
    ticket: Option<u64>,
}

impl<F> PendingWait<F> {
    fn poll<T>(&mut self, context: &Context<'_>) -> Poll<T>
    where
        F: FnMut(u64) -> Option<T>,
    {
        let value = self.word.load();
        let may_attempt = match &self.order {
            WakeOrder::ByRange(request) => {
                !lock_local_waiters().is_preceded(self.word, self.ticket, request)
            }
            WakeOrder::Together | WakeOrder::OneByOne => true,
        };
        // No lock is held: `attempt` is code of the application.
        if may_attempt && let Some(done) = (self.attempt)(value) {
            return Poll::Ready(done);
        }
        let seen = may_attempt.then_some(value);
        let (ticket, wakers) =
            lock_local_waiters().enqueue(self.word, self.ticket, self.order, seen, context.waker());
        self.ticket = Some(ticket);
        wakers.wake_all();
        Poll::Pending
    }
}

impl<F> Drop for PendingWait<F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let wakers = lock_local_waiters().remove(self.word, ticket, self.order);
            wakers.wake_all();
        }
    }
}

/// Blocks the calling thread until the future is done, for at most `timeout`. Returns `None` if that passes.
pub(super) fn block_on<T>(future: impl Future<Output = T>, timeout: Duration) -> Option<T> {
    struct ThreadWaker(Thread);
    impl Wake for ThreadWaker {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    // No deadline if it is beyond the range of the clock.
    let deadline = Instant::now().checked_add(timeout);
    let waker = Waker::from(Arc::new(ThreadWaker(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => std::thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}
