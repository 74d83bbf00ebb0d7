//! Random callers against a small pool: every job ends in exactly one way, and the counts add up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use proptest::prelude::*;

use super::*;
use crate::scoreboard::PoolSnapshot;

/// What a caller does with one job.
#[derive(Debug, Clone, Copy)]
enum Act {
    Await,
    Panic,
    /// Drops it at once, most likely while it waits.
    Drop,
    /// Looks at it so often, then drops it: waiting, running or done.
    DropLater(u8),
    /// Microseconds from submission, or from the start.
    Within(u16, bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => Just(Act::Await),
        1 => Just(Act::Panic),
        1 => Just(Act::Drop),
        3 => (0u8..8).prop_map(Act::DropLater),
        3 => (any::<bool>(), 0u16..3000).prop_map(|(start, us)| Act::Within(us, start)),
    ];
    prop::collection::vec(act, 1..120)
}

/// What the callers saw.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Seen {
    done: u64,
    full: u64,
    late: u64,
    panicked: u64,
    closed: u64,
    /// Dropped before the outcome was read: cancelled, or ended in some way that nobody looked at.
    dropped: u64,
}

impl Seen {
    fn note(&mut self, outcome: &Result<u64, PoolError>, expected: u64) {
        match outcome {
            Ok(n) => {
                assert_eq!(*n, expected, "somebody else's result");
                self.done += 1;
            }
            Err(PoolError::Full { .. }) => self.full += 1,
            Err(PoolError::TimedOut { .. }) => self.late += 1,
            Err(PoolError::Panicked { .. }) => self.panicked += 1,
            Err(PoolError::Closed) => self.closed += 1,
            Err(e @ PoolError::NoThread { .. }) => panic!("{e}"),
        }
    }
}

fn task(n: u64, act: Act) -> impl PoolJob<Output = u64> {
    cancellable_job(move |cancel: &CancelFlag<'_>| {
        if matches!(act, Act::Panic) {
            // No message, as there would be thousands.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        let end = Instant::now() + Duration::from_micros(n % 7 * 50);
        while Instant::now() < end && !cancel.is_set() {
            std::hint::spin_loop();
        }
        n
    })
}

async fn perform(pool: &Pool, n: u64, act: Act, seen: &mut Seen) {
    match act {
        Act::Await | Act::Panic => seen.note(&pool.run(task(n, act)).await, n),
        Act::Drop => {
            drop(pool.run(task(n, act)));
            seen.dropped += 1;
        }
        Act::DropLater(looks) => {
            let mut job = pool.run(task(n, act));
            for _ in 0..looks {
                let looked = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut job).poll(cx)));
                if let Poll::Ready(outcome) = looked.await {
                    return seen.note(&outcome, n);
                }
                tokio::task::yield_now().await;
            }
            drop(job);
            seen.dropped += 1;
        }
        Act::Within(us, from_start) => {
            let span = Duration::from_micros(us.into());
            let deadline = match from_start {
                true => JobDeadline::FromStart(span),
                false => JobDeadline::FromSubmission(span),
            };
            seen.note(&pool.run_within(deadline, task(n, act)).await, n);
        }
    }
}

/// All acts at the same time from one event loop, as in a worker; the pool is closed at `close_at`, if ever.
fn storm(acts: &[Act], threads: usize, queue: usize, newest: bool, close_at: usize) -> Storm {
    let config = PoolConfig { threads, queue, newest_first: newest, ..PoolConfig::default() };
    let pool = Pool::new(config);
    let seen = on_runtime(async {
        let local = tokio::task::LocalSet::new();
        let mut callers = Vec::new();
        for (n, act) in acts.iter().copied().enumerate() {
            let pool = pool.clone();
            callers.push(local.spawn_local(async move {
                if n == close_at {
                    pool.close();
                }
                let mut seen = Seen::default();
                perform(&pool, n as u64, act, &mut seen).await;
                seen
            }));
        }
        local.await;
        let mut all = Vec::new();
        for caller in callers {
            all.push(caller.await.expect("a caller does not panic"));
        }
        all
    });
    let left = on_runtime(pool.drain(LONG));
    Storm { seen, left, counted: pool.snapshot() }
}

struct Storm {
    seen: Vec<Seen>,
    left: usize,
    counted: PoolSnapshot,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_in_exactly_one_way(
        acts in acts(),
        threads in 1usize..4,
        queue in 0usize..40,
        newest in any::<bool>(),
        close_at in 0usize..400,
    ) {
        let Storm { seen, left, counted } = storm(&acts, threads, queue, newest, close_at);
        prop_assert_eq!(left, 0);
        let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
        for one in &seen {
            let all = one.done + one.full + one.late + one.panicked + one.closed + one.dropped;
            prop_assert_eq!(all, 1);
        }
        let c = counted;
        let ends = c.done + c.rejected + c.timed_out + c.cancelled + c.panicked + c.closed;
        prop_assert_eq!(ends, acts.len() as u64);
        // Only what was dropped unread can have been counted as anything but what its caller saw.
        let unread = (c.done - sum(|s| s.done)) + (c.rejected - sum(|s| s.full))
            + (c.panicked - sum(|s| s.panicked)) + (c.closed - sum(|s| s.closed)) + c.cancelled;
        prop_assert_eq!(unread, sum(|s| s.dropped));
        prop_assert_eq!(c.timed_out, sum(|s| s.late));
        prop_assert_eq!((c.depth, c.running), (0, 0));
        prop_assert_eq!(c.wait.iter().sum::<u64>(), c.run.iter().sum::<u64>());
    }
}

#[test]
fn callers_on_many_threads_get_their_own_results() {
    let pool = pool_of(2, 16);
    let callers: Vec<_> = (0..4u64)
        .map(|caller| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                on_runtime(async {
                    let mut seen = Seen::default();
                    for turn in 0..500u64 {
                        let n = caller * 1_000_000 + turn;
                        let act = match turn % 5 {
                            0 => Act::Drop,
                            1 => Act::DropLater(2),
                            2 => Act::Within(200, turn % 2 == 0),
                            _ => Act::Await,
                        };
                        perform(&pool, n, act, &mut seen).await;
                    }
                })
            })
        })
        .collect();
    let bad = callers.into_iter().filter_map(|caller| caller.join().err()).count();
    assert_eq!(bad, 0);
    assert_eq!(on_runtime(pool.drain(LONG)), 0);
    let c = pool.snapshot();
    assert_eq!(c.done + c.rejected + c.timed_out + c.cancelled + c.panicked + c.closed, 2000);
}

#[test]
fn ten_thousand_of_each_leave_nothing_behind() {
    let held = Arc::new(());
    let pool = pool_of(2, 64);
    let job = |act| {
        let held = Arc::clone(&held);
        let inner = task(0, act);
        cancellable_job(move |cancel: &CancelFlag<'_>| {
            let _held = held;
            inner.run(cancel)
        })
    };
    on_runtime(async {
        for _ in 0..10_000 {
            assert_eq!(pool.run(job(Act::Await)).await, Ok(0));
            drop(pool.run(job(Act::Await)));
            let zero = JobDeadline::FromSubmission(Duration::ZERO);
            let late = pool.run_within(zero, job(Act::Await)).await;
            assert!(matches!(late, Err(PoolError::TimedOut { .. })), "{late:?}");
        }
    });
    let threads = || std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let named = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default()
    };
    on_runtime(async {
        for _ in 0..10_000 {
            let panicked = pool.run(job(Act::Panic)).await;
            assert!(matches!(panicked, Err(PoolError::Panicked { .. })), "{panicked:?}");
        }
    });
    let unwound = catch_unwind(AssertUnwindSafe(|| on_runtime(pool.drain(LONG))));
    assert_eq!(unwound.ok(), Some(0));
    assert_eq!(Arc::strong_count(&held), 1, "all jobs are dropped");
    // Other tests have pools of their own; ten thousand threads would stand out.
    let left = threads().filter(|entry| named(entry).starts_with("pool-")).count();
    assert!(left < 200, "{left} threads");
}
