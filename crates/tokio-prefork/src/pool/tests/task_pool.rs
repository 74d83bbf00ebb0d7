//! Tests of pools whose threads have a state.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::thread::ThreadId;

use super::*;

/// A state that is not `Send`, and records where it was made and dropped.
struct TestState {
    tasks: Rc<Cell<u32>>,
    made_on: ThreadId,
    drops: Arc<Mutex<Vec<bool>>>,
}

impl Drop for TestState {
    fn drop(&mut self) {
        let is_same = std::thread::current().id() == self.made_on;
        self.drops.lock().expect("no panic").push(is_same);
    }
}

type Drops = Arc<Mutex<Vec<bool>>>;

fn make_state(drops: &Drops) -> TestState {
    let made_on = std::thread::current().id();
    TestState { tasks: Rc::default(), made_on, drops: Arc::clone(drops) }
}

#[test]
fn each_thread_makes_its_state_once_before_the_pool_is_ready_and_drops_it_at_the_end() {
    let (made, drops) = (Arc::new(AtomicUsize::new(0)), Drops::default());
    let (counted, dropped) = (Arc::clone(&made), Arc::clone(&drops));
    let init = move || {
        counted.fetch_add(1, SeqCst);
        Ok(make_state(&dropped))
    };
    let pool = TaskPool::new(test_config(2, 64), init, |state: &mut TestState, n: u32| {
        assert_eq!(state.made_on, std::thread::current().id());
        state.tasks.set(state.tasks.get() + 1);
        if n == 0 { Err("zero") } else { Ok(state.tasks.get()) }
    })
    .expect("ready");
    assert_eq!((made.load(SeqCst), pool.status().threads), (2, 2));
    let tasks: Vec<u32> = (0..20).map(|_| pool.run(1).wait().expect("done")).collect();
    assert!(*tasks.iter().max().expect("tasks") >= 10, "the state did not last: {tasks:?}");
    assert_eq!(block_on(pool.run(0)), Err(TaskError::Failed("zero")));
    assert_eq!(block_on(pool.run_when_room(1)).map(|_| ()), Ok(()));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    assert_eq!(*drops.lock().expect("no panic"), [true, true]);
    assert_eq!(made.load(SeqCst), 2);
    assert_eq!(block_on(pool.run(1)), Err(TaskError::Pool(PoolError::Closed)));
    let refused = pool.try_run(7).expect_err("closed");
    assert_eq!((refused.job, refused.error), (7, PoolError::Closed));
}

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn a_panic_replaces_the_thread_and_its_state() {
    let drops = Drops::default();
    let dropped = Arc::clone(&drops);
    let init = move || Ok(make_state(&dropped));
    let pool = TaskPool::new(test_config(1, 8), init, |state: &mut TestState, panics: bool| {
        state.tasks.set(state.tasks.get() + 1);
        if panics {
            panic!("on purpose");
        }
        Ok::<_, String>(state.tasks.get())
    })
    .expect("ready");
    assert_eq!((pool.run(false).wait(), pool.run(false).wait()), (Ok(1), Ok(2)));
    let line = "task_pool.rs:";
    match pool.run(true).wait() {
        Err(TaskError::Pool(PoolError::Panicked { job, message, location })) => {
            assert!(job.contains("a_panic_replaces"), "{job}");
            assert_eq!(message, "on purpose");
            assert!(location.is_some_and(|location| location.contains(line)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.run(false).wait(), Ok(1), "the state is the old one");
    assert_eq!(*drops.lock().expect("no panic"), [true]);
}

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn an_init_that_fails_or_panics_is_an_error_of_the_creation() {
    let create = |init: fn() -> Result<u32, crate::BoxError>| {
        TaskPool::new(test_config(2, 8), init, |n: &mut u32, (): ()| Ok::<_, String>(*n))
    };
    let error = create(|| Err("no model".into())).expect_err("failed").to_string();
    assert!(error.contains("no model"), "{error}");
    let error = create(|| panic!("broken model")).expect_err("panicked").to_string();
    assert!(error.contains("broken model") && error.contains("task_pool.rs:"), "{error}");
    assert_eq!(create(|| Ok(5)).expect("ready").run(()).wait(), Ok(5));
}

#[test]
fn an_init_that_fails_later_ends_the_queued_tasks_and_is_tried_again() {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let init = move || match is_broken.load(SeqCst) {
        true => Err("the connection is refused".into()),
        false => Ok(()),
    };
    let pool = TaskPool::new(test_config(1, 8), init, |(): &mut (), panics: bool| {
        if panics {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        Ok::<_, String>(5)
    })
    .expect("ready");
    broken.store(true, SeqCst);
    let panicked = pool.run(true).wait();
    assert!(matches!(panicked, Err(TaskError::Pool(PoolError::Panicked { .. }))), "{panicked:?}");
    let refused = pool.run(false).wait().expect_err("no thread has a state");
    assert!(refused.to_string().contains("the connection is refused"), "{refused}");
    assert!(!refused.has_begun());
    broken.store(false, SeqCst);
    wait_until("a new thread", || pool.run(false).wait() == Ok(5));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

#[test]
fn a_state_whose_drop_panics_does_not_harm_the_pool() {
    struct PanicOnDrop;
    impl Drop for PanicOnDrop {
        #[expect(clippy::panic, reason = "panics are what is tested")]
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let work = |_: &mut PanicOnDrop, n: u32| Ok::<_, String>(n);
    let pool = TaskPool::new(test_config(2, 8), || Ok(PanicOnDrop), work).expect("ready");
    assert_eq!(pool.run(5).wait(), Ok(5));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

#[test]
fn fewer_threads_start_with_the_pool_if_so_configured() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let init = move || Ok(counted.fetch_add(1, SeqCst));
    let config = test_config(3, 8).min_threads(1).idle_timeout(Duration::from_millis(5));
    let barrier = std::sync::Barrier::new(3);
    let pool = TaskPool::new(config, init, move |_: &mut usize, (): ()| {
        barrier.wait();
        Ok::<_, String>(())
    })
    .expect("ready");
    assert_eq!(made.load(SeqCst), 1);
    let tasks: Vec<_> = (0..3).map(|_| pool.run(())).collect();
    tasks.into_iter().for_each(|task| task.wait().expect("done"));
    assert_eq!(made.load(SeqCst), 3);
    wait_until("idle threads to end", || pool.status().threads == 1);
}
