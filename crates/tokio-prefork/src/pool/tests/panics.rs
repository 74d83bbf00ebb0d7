//! Tests of jobs, results and wakers that panic.

use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};

use super::*;

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn a_panic_names_the_job_and_replaces_its_thread() {
    let pool = create_pool(1, 8);
    let thread = || pool.run(|| std::thread::current().id());
    let before = block_on(thread()).expect("id");
    let line = line!() + 1;
    let error = block_on(pool.run(|| -> () { panic!("on purpose") })).expect_err("panic");
    let text = error.to_string();
    assert!(text.contains("a_panic_names") && text.contains(": on purpose"), "{text}");
    assert!(text.contains(&format!("panics.rs:{line}:")), "{text}");
    let after = block_on(thread()).expect("id");
    assert_ne!(before, after, "the thread was not replaced");
    assert_eq!((pool.status().panicked, pool.status().done), (1, 2));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0, "the thread count is wrong");
}

/// Panics when it is dropped.
struct PanicOnDrop;

impl PanicOnDrop {
    fn hold_reference(&self) {}
}

impl Drop for PanicOnDrop {
    #[expect(clippy::panic, reason = "panics are what is tested")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn a_destructor_that_panics_does_not_harm_the_pool() {
    let pool = create_pool(1, 8);
    // On the thread, when the job ends.
    let panic_on_drop = PanicOnDrop;
    let ended = block_on(pool.run(move || panic_on_drop.hold_reference()));
    assert!(matches!(ended, Err(PoolError::Panicked { .. })), "{ended:?}");
    // As a panic payload.
    let ended = block_on(pool.run(|| -> () { std::panic::panic_any(PanicOnDrop) }));
    assert!(matches!(ended, Err(PoolError::Panicked { .. })), "{ended:?}");
    // In the caller, as a job that did not start, and as a result that is not read.
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let panic_on_drop = PanicOnDrop;
    drop(pool.run(move || panic_on_drop.hold_reference()));
    let unwanted = pool.run(|| PanicOnDrop);
    let ((start, started), (release, released)) = (channel(), channel());
    let abandoned = pool.run(move || {
        let _ = start.send(());
        let _: Result<(), _> = released.recv_timeout(TEST_TIMEOUT);
        PanicOnDrop
    });
    gate.open_gate();
    block_on(first).expect("done");
    started.recv_timeout(TEST_TIMEOUT).expect("started");
    drop(unwanted);
    drop(abandoned);
    let _ = release.send(());
    assert_eq!(block_on(pool.run(|| 5)), Ok(5));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

/// Panics when it is woken.
struct PanicOnWake(AtomicUsize);

impl Wake for PanicOnWake {
    #[expect(clippy::panic, reason = "panics are what is tested")]
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
        panic!("woken");
    }
}

#[test]
fn a_waker_that_panics_does_not_harm_the_pool() {
    let pool = create_pool(1, 8);
    let (job, gate) = run_gated_job(&pool);
    let panic_on_wake = Arc::new(PanicOnWake(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&panic_on_wake));
    let mut job = pin!(job);
    assert!(job.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open_gate();
    wait_until("the call", || panic_on_wake.0.load(SeqCst) == 1);
    assert_eq!(job.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
    assert_eq!(block_on(pool.run(|| 5)), Ok(5));
}
