use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use super::range_locks::HeldRange;
use super::*;

/// Shorter than the interval in which waiting threads look again unasked: a lost wake-up is a timeout.
const LONG: Duration = Duration::from_secs(9);

fn declare(name: &str, len: usize) -> SharedBytes {
    SharedBytes::new(name, len).expect("declared")
}

fn lock(bytes: SharedBytes, range: Range<usize>) -> SharedBytesGuard {
    bytes.try_lock(range).expect("not poisoned").expect("not locked")
}

fn request(range: Range<u64>, is_exclusive: bool) -> LockRequest {
    LockRequest { start: range.start, end: range.end, is_exclusive }
}

#[test]
fn overlapping_ranges_exclude_each_other_and_neighbours_do_not() {
    let bytes = declare("bytes_ranges", 100);
    let middle = lock(bytes, 10..20);
    for range in [0..11, 19..30, 12..13, 0..100, 10..20] {
        assert!(bytes.try_lock(range.clone()).expect("locks").is_none(), "{range:?}");
        assert!(bytes.try_lock_shared(range.clone()).expect("locks").is_none(), "{range:?}");
    }
    let neighbours = [lock(bytes, 0..10), lock(bytes, 20..100), lock(bytes, 15..15)];
    assert_eq!(bytes.lock_counts(), (4, 0));
    drop(middle);
    assert_eq!(lock(bytes, 10..20).range(), 10..20);
    drop(neighbours);
    assert_eq!(lock(bytes, 0..100).len(), 100);
    assert_eq!(bytes.lock_counts(), (0, 0));
}

#[test]
fn readers_share_a_range_and_keep_writers_out() {
    let bytes = declare("bytes_readers", 8);
    bytes.write_at(0, b"12345678");
    let readers = [(); 2].map(|()| bytes.try_lock_shared(..).expect("locks").expect("shared"));
    assert!(bytes.try_lock(3..4).expect("locks").is_none());
    for reader in readers {
        assert_eq!(reader.to_vec(), b"12345678");
    }
    assert!(bytes.try_lock(3..4).expect("locks").is_some());
}

#[test]
fn a_guard_reads_and_writes_relative_to_its_range_and_not_beyond() {
    let bytes = declare("bytes_guard", 20);
    let mut guard = lock(bytes, 5..15);
    guard.write(1, b"abc");
    guard.fill(b'.');
    guard.write(8, b"yz");
    let mut two = [0; 2];
    guard.read(7, &mut two);
    assert_eq!((&two, &guard.to_vec()[..]), (b".y", &b"........yz"[..]));
    let beyond = catch_unwind(AssertUnwindSafe(|| guard.write(9, b"yz")));
    assert!(beyond.is_err());
    let mut all = [0; 20];
    bytes.read_at(0, &mut all);
    assert_eq!(&all, b"\0\0\0\0\0........yz\0\0\0\0\0");
    assert!(catch_unwind(|| bytes.read_at(19, &mut [0; 2])).is_err());
    assert!(catch_unwind(|| bytes.write_at(usize::MAX, &[0; 2])).is_err());
    assert!(catch_unwind(|| bytes.try_lock(15..21)).is_err());
    assert!(SharedBytes::new("bytes_empty", 0).is_err());
}

#[test]
fn a_waiting_lock_is_granted_when_the_guard_is_dropped_and_times_out_before() {
    let bytes = declare("bytes_wait", 64);
    let guard = lock(bytes, 0..10);
    assert!(bytes.lock_blocking(5..6, Duration::from_millis(1)).expect("not poisoned").is_none());
    std::thread::scope(|scope| {
        let waits: Vec<_> = [0..10, 5..20, 0..64]
            .map(|range| {
                scope.spawn(move || bytes.lock_blocking(range, LONG).map(|guard| guard.is_some()))
            })
            .into_iter()
            .collect();
        drop(guard);
        for one in waits {
            assert!(one.join().expect("thread").expect("not poisoned"), "not granted");
        }
    });
}

/// Increments the number in eight bytes under their lock, which is kept over an await.
async fn increment_number(bytes: SharedBytes, range: Range<usize>) {
    let mut guard = bytes.lock(range).await.expect("not poisoned");
    let number = u64::from_le_bytes(guard.to_vec().try_into().expect("eight"));
    tokio::task::yield_now().await;
    guard.write(0, &(number + 1).to_le_bytes());
}

#[test]
fn many_tasks_that_change_a_range_lose_no_change() {
    let bytes = declare("bytes_tasks", 64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("runtime");
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            runtime.spawn(async move {
                for _ in 0..20 {
                    increment_number(bytes, 3..11).await;
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).expect("task");
    }
    assert_eq!(lock(bytes, 3..11).to_vec(), 1000_u64.to_le_bytes());
}

#[test]
fn a_thousand_tasks_that_wait_for_one_range_get_it_one_after_the_other() {
    let bytes = declare("bytes_queue", 8);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let guard = lock(bytes, 0..8);
    let tasks: Vec<_> = (0..1000).map(|_| runtime.spawn(increment_number(bytes, 0..8))).collect();
    runtime.block_on(async {
        tokio::task::yield_now().await;
        drop(guard);
        for task in tasks {
            task.await.expect("task");
        }
    });
    assert_eq!(lock(bytes, 0..8).to_vec(), 1000_u64.to_le_bytes());
}

#[test]
fn a_panic_poisons_the_range_until_somebody_clears_it() {
    let bytes = declare("bytes_panic", 64);
    let panics = || {
        let _guard = lock(bytes, 8..16);
        panic!("in the middle of a change");
    };
    assert!(catch_unwind(panics).is_err());
    assert_eq!(lock(bytes, 16..64).poisoned_range(), None);
    assert_eq!(bytes.lock_counts(), (0, 1));
    let Err(LockError::Poisoned(reader)) = bytes.try_lock_shared(..) else { panic!("not told") };
    assert_eq!(reader.poisoned_range(), Some(8..16));
    drop(reader);
    for _ in 0..2 {
        // Not cleared, so the next one is told again.
        let Err(LockError::Poisoned(guard)) = bytes.try_lock(4..40) else { panic!("not told") };
        assert_eq!(guard.poisoned_range(), Some(8..16));
    }
    let Err(LockError::Poisoned(mut half)) = bytes.try_lock(0..12) else { panic!("not told") };
    half.clear_poison();
    drop(half);
    let told = bytes.try_lock(..).expect_err("the other half");
    let mut rest = told.into_guard().expect("locked");
    assert_eq!(rest.poisoned_range(), Some(12..16));
    rest.clear_poison();
    drop(rest);
    assert!(!lock(bytes, 0..64).is_poisoned());
}

#[test]
fn the_error_of_a_poisoned_range_says_what_to_do_and_keeps_it_poisoned() {
    let bytes = declare("bytes_error", 8);
    let panics = catch_unwind(|| {
        let _guard = lock(bytes, 0..8);
        panic!("now");
    });
    assert!(panics.is_err());
    let lock_again = || -> Result<()> {
        bytes.try_lock(..)?;
        Ok(())
    };
    let error = lock_again().expect_err("poisoned").to_string();
    assert!(error.contains("clear_poison"), "{error}");
    assert!(bytes.try_lock(..).is_err());
}

#[test]
fn an_atomic_can_be_waited_for() {
    let bytes = declare("bytes_atomic", 20);
    assert_eq!(bytes.atomics().len(), 3);
    assert_eq!(bytes.wait_while_blocking(2, 0, Duration::ZERO), None);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| bytes.wait_while_blocking(2, 0, LONG));
        bytes.atomics()[1].store(1, SeqCst);
        bytes.notify_all();
        bytes.atomics()[2].store(7, SeqCst);
        bytes.notify_all();
        assert_eq!(waits.join().expect("thread"), Some(7));
    });
}

/// Locks a range as a process that is dead by now.
fn lock_and_die(bytes: SharedBytes, request: LockRequest) {
    let LockAttempt::Locked(held) = bytes.0.locks.try_lock(request) else { panic!("locked") };
    bytes.0.locks.give_to_dead_process(&held);
}

#[test]
fn a_dead_writer_poisons_its_range_and_a_dead_reader_leaves_nothing() {
    let bytes = declare("bytes_dead", 100);
    lock_and_die(bytes, request(10..20, true));
    lock_and_die(bytes, request(30..40, false));
    assert_eq!(bytes.lock_counts(), (0, 1));
    let Err(LockError::Poisoned(mut guard)) = bytes.try_lock(..) else { panic!("not told") };
    assert_eq!(guard.poisoned_range(), Some(10..20));
    guard.clear_poison();
    drop(guard);
    assert!(!lock(bytes, 0..100).is_poisoned());
}

#[test]
fn ranges_of_dead_processes_never_fill_the_table() {
    let bytes = declare("bytes_full", 10_000);
    for at in 0..2000 {
        lock_and_die(bytes, request(at..at + 1, at % 2 == 0));
    }
    assert!(bytes.try_lock(5000..6000).expect("not poisoned").is_some());
    let told = bytes.try_lock(..).expect_err("poisoned");
    let poisoned = told.into_guard().expect("locked").poisoned_range().expect("poisoned");
    assert_eq!(poisoned, 0..1999);
}

#[test]
fn locks_beyond_the_size_of_the_table_wait() {
    let bytes = declare("bytes_many", 1000);
    let mut held: Vec<_> = (0..512).map(|at| lock(bytes, at..at + 1)).collect();
    assert!(bytes.try_lock(600..601).expect("not poisoned").is_none());
    held.pop();
    assert!(bytes.try_lock(600..601).expect("not poisoned").is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Lock(Range<u64>, bool),
    Release(usize),
    Die(usize),
    /// Repairs what is poisoned in the range.
    Clear(Range<u64>),
}

fn steps() -> impl Strategy<Value = Step> {
    let range = (0..32_u64, 0..12_u64).prop_map(|(start, len)| start..(start + len).min(32));
    prop_oneof![
        3 => (range.clone(), any::<bool>()).prop_map(|(range, exclusive)| Step::Lock(range, exclusive)),
        2 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Die),
        1 => range.prop_map(Step::Clear),
    ]
}

/// What each byte is, kept in the simplest way.
#[derive(Default)]
struct Model {
    held: Vec<(LockRequest, HeldRange)>,
    poisoned: [bool; 32],
}

impl Model {
    fn is_free(&self, request: &LockRequest) -> bool {
        !self.held.iter().any(|(other, _)| other.conflicts_with(request))
    }

    fn has_poison(&self, range: Range<u64>) -> bool {
        range.into_iter().any(|at| self.poisoned[at as usize])
    }

    fn set_poisoned(&mut self, range: Range<u64>, is_poisoned: bool) {
        range.into_iter().for_each(|at| self.poisoned[at as usize] = is_poisoned);
    }
}

fn take_step(locks: &RangeLocks, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Lock(range, is_exclusive) => {
            let wanted = request(range.clone(), is_exclusive);
            match locks.try_lock(wanted) {
                LockAttempt::Locked(held) => {
                    prop_assert!(model.is_free(&wanted), "{:?}", wanted);
                    prop_assert_eq!(held.poisoned.is_some(), model.has_poison(range));
                    model.held.push((wanted, held));
                }
                LockAttempt::Unavailable => prop_assert!(!model.is_free(&wanted), "{:?}", wanted),
                LockAttempt::TooManyProcesses => prop_assert!(false),
            }
        }
        Step::Release(which) if !model.held.is_empty() => {
            let (_, held) = model.held.swap_remove(which % model.held.len());
            if held.is_exclusive()
                && let Some(poisoned) = held.poisoned.clone()
            {
                // From the first poisoned byte to the last, all are.
                model.set_poisoned(poisoned, true);
            }
            locks.release(&held, false);
        }
        Step::Die(which) if !model.held.is_empty() => {
            let (request, held) = model.held.swap_remove(which % model.held.len());
            locks.give_to_dead_process(&held);
            if request.is_exclusive {
                model.set_poisoned(request.start..request.end, true);
            }
        }
        Step::Clear(range) => {
            if let LockAttempt::Locked(mut held) = locks.try_lock(request(range.clone(), true)) {
                held.poisoned = None;
                model.set_poisoned(range, false);
                locks.release(&held, false);
            }
        }
        Step::Release(_) | Step::Die(_) => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn locks_and_poison_are_those_of_a_model_with_a_state_per_byte(
        all in prop::collection::vec(steps(), 1..60)
    ) {
        static BYTES: std::sync::OnceLock<SharedBytes> = std::sync::OnceLock::new();
        let bytes = BYTES.get_or_init(|| declare("bytes_model", 32));
        let locks = &bytes.0.locks;
        let mut model = Model::default();
        for step in all {
            take_step(locks, &mut model, step)?;
        }
        // Leave the block as it was, for the next case.
        model.held.iter().for_each(|(_, held)| locks.release(held, false));
        let LockAttempt::Locked(mut held) = locks.try_lock(request(0..32, true)) else {
            return Err(TestCaseError::fail("a lock is left"));
        };
        held.poisoned = None;
        locks.release(&held, false);
    }
}
