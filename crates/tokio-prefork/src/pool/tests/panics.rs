//! Jobs, results and wakers that panic.

use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};

use super::*;

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn a_panic_is_named_and_costs_a_thread_that_is_replaced() {
    let pool = pool_of(1, 8);
    let thread = || pool.run(|| std::thread::current().id());
    let before = on_runtime(thread()).expect("id");
    let error = on_runtime(pool.run(|| -> () { panic!("on purpose") })).expect_err("panic");
    let text = error.to_string();
    assert!(text.contains("a_panic_is_named") && text.contains("panicked: on purpose"), "{text}");
    let after = on_runtime(thread()).expect("id");
    assert_ne!(before, after, "nobody knows what a panic leaves in a thread");
    assert_eq!((pool.snapshot().panicked, pool.snapshot().done), (1, 2));
    assert_eq!(on_runtime(pool.drain(LONG)), 0, "no thread too many or too few is counted");
}

/// Panics when it is dropped.
struct Mine;

impl Mine {
    fn touch(&self) {}
}

impl Drop for Mine {
    #[expect(clippy::panic, reason = "panics are what is tested")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn what_panics_when_it_is_dropped_harms_nobody() {
    let pool = pool_of(1, 8);
    // In the thread, at the end of the job.
    let mine = Mine;
    let ended = on_runtime(pool.run(move || mine.touch()));
    assert!(matches!(ended, Err(PoolError::Panicked { .. })), "{ended:?}");
    // As the payload of a panic.
    let ended = on_runtime(pool.run(|| -> () { std::panic::panic_any(Mine) }));
    assert!(matches!(ended, Err(PoolError::Panicked { .. })), "{ended:?}");
    // In the caller, as a job that did not begin, and as a result that nobody wanted.
    let (first, gate) = gated(&pool);
    gate.wait();
    let mine = Mine;
    drop(pool.run(move || mine.touch()));
    let unwanted = pool.run(|| Mine);
    let ((begin, begun), (go, gone)) = (channel(), channel());
    let abandoned = pool.run(move || {
        let _ = begin.send(());
        let _: Result<(), _> = gone.recv_timeout(LONG);
        Mine
    });
    gate.open();
    on_runtime(first).expect("done");
    begun.recv_timeout(LONG).expect("begun");
    drop(unwanted);
    drop(abandoned);
    let _ = go.send(());
    assert_eq!(on_runtime(pool.run(|| 5)), Ok(5));
    assert_eq!(on_runtime(pool.drain(LONG)), 0);
}

/// Panics when it is woken.
struct Cross(AtomicUsize);

impl Wake for Cross {
    #[expect(clippy::panic, reason = "panics are what is tested")]
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
        panic!("woken");
    }
}

#[test]
fn a_waker_that_panics_harms_nobody() {
    let pool = pool_of(1, 8);
    let (job, gate) = gated(&pool);
    let cross = Arc::new(Cross(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&cross));
    let mut job = pin!(job);
    assert!(job.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open();
    until("the call", || cross.0.load(SeqCst) == 1);
    assert_eq!(job.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
    assert_eq!(on_runtime(pool.run(|| 5)), Ok(5));
}
