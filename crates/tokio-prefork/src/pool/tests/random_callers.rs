//! Tests with random callers on a small pool: every job ends in exactly one way, and the counters add up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::task::Poll;

use proptest::prelude::*;

use super::*;
use crate::status::PoolStatus;

/// What a caller does with one job.
#[derive(Debug, Clone, Copy)]
enum CallerAction {
    Await,
    Panic,
    /// Drops the future at once, most likely while the job is queued.
    Drop,
    /// Polls the future this often, then drops it: queued, running or ended.
    DropAfterPolls(u8),
    /// Waits with a deadline in microseconds, counted from the start if true.
    Within(u16, bool),
    /// Lets the job run without a caller.
    Detach,
    /// Waits for room in the queue, with a priority.
    WhenRoom(Priority),
    /// Takes the job back if it is refused.
    TryRun,
    /// Runs a job that waits for another job of the same pool on its thread.
    Nested,
}

fn random_caller_actions() -> impl Strategy<Value = Vec<CallerAction>> {
    let priority = prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)];
    let action = prop_oneof![
        4 => Just(CallerAction::Await),
        1 => Just(CallerAction::Panic),
        1 => Just(CallerAction::Drop),
        3 => (0u8..8).prop_map(CallerAction::DropAfterPolls),
        3 => (any::<bool>(), 0u16..3000).prop_map(|(start, us)| CallerAction::Within(us, start)),
        1 => Just(CallerAction::Detach),
        2 => priority.prop_map(CallerAction::WhenRoom),
        1 => Just(CallerAction::TryRun),
        1 => Just(CallerAction::Nested),
    ];
    prop::collection::vec(action, 1..120)
}

/// How often a job has begun.
type Begins = Arc<AtomicU32>;

/// The results that callers received.
#[derive(Debug, Default, Clone)]
struct CallerResults {
    done: u64,
    rejected: u64,
    timed_out: u64,
    panicked: u64,
    closed: u64,
    /// Futures that were dropped before their result was read, and detached ones.
    unread: u64,
    /// Every job, and whether its caller was told that it had not begun.
    jobs: Vec<(Begins, bool)>,
}

impl CallerResults {
    fn count_result(&mut self, outcome: &Result<u64, PoolError>, expected: u64, begins: Begins) {
        let has_begun = outcome.as_ref().map_or_else(PoolError::has_begun, |_| true);
        // A job whose deadline has just passed may be about to begin its first line.
        if has_begun && !matches!(outcome, Err(PoolError::TimedOut { .. })) {
            assert_eq!(begins.load(SeqCst), 1, "{outcome:?}");
        }
        self.jobs.push((begins, !has_begun));
        match outcome {
            Ok(n) => {
                assert_eq!(*n, expected, "the result of another job");
                self.done += 1;
            }
            Err(PoolError::Full { .. } | PoolError::WouldDeadlock { .. }) => self.rejected += 1,
            Err(PoolError::TimedOut { .. }) => self.timed_out += 1,
            Err(PoolError::Panicked { .. }) => self.panicked += 1,
            Err(PoolError::Closed) => self.closed += 1,
            Err(e) => panic!("{e}"),
        }
    }

    fn count_unread(&mut self, begins: Begins) {
        self.unread += 1;
        self.jobs.push((begins, false));
    }

    fn verdicts(&self) -> u64 {
        self.done + self.rejected + self.timed_out + self.panicked + self.closed + self.unread
    }

    fn add(&mut self, other: CallerResults) {
        self.done += other.done;
        self.rejected += other.rejected;
        self.timed_out += other.timed_out;
        self.panicked += other.panicked;
        self.closed += other.closed;
        self.unread += other.unread;
        self.jobs.extend(other.jobs);
    }
}

fn create_job(n: u64, action: CallerAction, begins: &Begins) -> impl PoolJob<Output = u64> + use<> {
    let begins = Arc::clone(begins);
    cancellable_job(move |cancel: &CancelFlag<'_>| {
        begins.fetch_add(1, SeqCst);
        if matches!(action, CallerAction::Panic) {
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

async fn perform_action(pool: &Pool, n: u64, action: CallerAction, seen: &mut CallerResults) {
    let begins = Begins::default();
    let job = create_job(n, action, &begins);
    let result = match action {
        CallerAction::Await | CallerAction::Panic => pool.run(job).await,
        CallerAction::Drop => {
            drop(pool.run(job));
            return seen.count_unread(begins);
        }
        CallerAction::DropAfterPolls(polls) => {
            let mut job = pool.run(job);
            for _ in 0..polls {
                let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut job).poll(cx)));
                if let Poll::Ready(outcome) = polled.await {
                    return seen.count_result(&outcome, n, begins);
                }
                tokio::task::yield_now().await;
            }
            drop(job);
            return seen.count_unread(begins);
        }
        CallerAction::Within(us, from_start) => {
            let span = Duration::from_micros(us.into());
            let deadline = match from_start {
                true => JobDeadline::FromStart(span),
                false => JobDeadline::FromSubmission(span),
            };
            pool.run_within(deadline, job).await
        }
        CallerAction::Detach => match pool.run(job).detach() {
            Ok(()) => return seen.count_unread(begins),
            Err(refused) => Err(refused),
        },
        CallerAction::WhenRoom(priority) => pool.job(job).priority(priority).when_room().await,
        CallerAction::TryRun => match pool.try_run(job) {
            Ok(job) => job.await,
            Err(refused) => {
                drop(refused.job);
                Err(refused.error)
            }
        },
        CallerAction::Nested => {
            drop(job);
            return perform_nested_action(pool, n, seen).await;
        }
    };
    seen.count_result(&result, n, begins);
}

/// Runs a job that waits for another job of the same pool. Both have a verdict.
async fn perform_nested_action(pool: &Pool, n: u64, seen: &mut CallerResults) {
    let (outer_begins, inner_begins) = (Begins::default(), Begins::default());
    let (outer, own) = (Arc::clone(&outer_begins), pool.clone());
    let inner_job = create_job(n, CallerAction::Nested, &inner_begins);
    let (sender, receiver) = channel();
    let job = pool.run(move || {
        outer.fetch_add(1, SeqCst);
        let _ = sender.send(own.run(inner_job).wait());
        n
    });
    let result = job.await;
    if let Ok(inner) = receiver.try_recv() {
        seen.count_result(&inner, n, inner_begins);
    }
    seen.count_result(&result, n, outer_begins);
}

/// Performs all actions concurrently on one event loop, as in a worker. Closes the pool before action `close_at`.
fn run_simulation(
    actions: &[CallerAction],
    config: PoolConfig,
    close_at: usize,
) -> SimulationResult {
    let pool = Pool::new(config);
    let seen = block_on(async {
        let local = tokio::task::LocalSet::new();
        let mut callers = Vec::new();
        for (n, action) in actions.iter().copied().enumerate() {
            let pool = pool.clone();
            callers.push(local.spawn_local(async move {
                if n == close_at {
                    pool.state().close();
                }
                let mut seen = CallerResults::default();
                perform_action(&pool, n as u64, action, &mut seen).await;
                seen
            }));
        }
        local.await;
        let mut total = Vec::new();
        for caller in callers {
            total.push(caller.await.expect("no panic"));
        }
        total
    });
    let still_running = block_on(pool.drain(TEST_TIMEOUT));
    let unread_futures = pool.state().unread_results();
    SimulationResult { seen, still_running, unread_futures, counted: pool.status() }
}

struct SimulationResult {
    seen: Vec<CallerResults>,
    still_running: usize,
    unread_futures: usize,
    counted: PoolStatus,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_job_begins_at_most_once_and_has_exactly_one_verdict(
        actions in random_caller_actions(),
        threads in 1usize..4,
        queue in 0usize..40,
        newest_first in any::<bool>(),
        idle_us in prop::option::of(1u64..500),
        close_at in 0usize..400,
    ) {
        let config = test_config(threads, queue)
            .newest_first(newest_first)
            .idle_timeout(idle_us.map(Duration::from_micros));
        let SimulationResult { seen, still_running, unread_futures, counted } =
            run_simulation(&actions, config, close_at);
        prop_assert_eq!((still_running, unread_futures), (0, 0));
        let mut sums = CallerResults::default();
        for one in seen {
            prop_assert_eq!(one.verdicts(), one.jobs.len() as u64);
            sums.add(one);
        }
        for (begins, is_told_unbegun) in &sums.jobs {
            let most = u32::from(!is_told_unbegun);
            prop_assert!(begins.load(SeqCst) <= most, "a job began {} times", begins.load(SeqCst));
        }
        let c = counted;
        let ends = c.done + c.rejected + c.timed_out + c.cancelled + c.panicked + c.closed;
        prop_assert_eq!(ends, sums.jobs.len() as u64);
        // Only what was dropped unread can have been counted as anything but what its caller saw.
        let unread = (c.done - sums.done) + (c.rejected - sums.rejected)
            + (c.panicked - sums.panicked) + (c.closed - sums.closed) + c.cancelled;
        prop_assert_eq!(unread, sums.unread);
        prop_assert_eq!(c.timed_out, sums.timed_out);
        prop_assert_eq!((c.depth, c.running), (0, 0));
        prop_assert_eq!(c.wait.count(), c.run.count());
    }
}

#[test]
fn callers_on_many_threads_get_their_own_results() {
    let pool = create_pool(2, 16);
    let callers: Vec<_> = (0..4u64)
        .map(|caller| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                block_on(async {
                    let mut seen = CallerResults::default();
                    for round in 0..500u64 {
                        let n = caller * 1_000_000 + round;
                        let action = match round % 5 {
                            0 => CallerAction::Drop,
                            1 => CallerAction::DropAfterPolls(2),
                            2 => CallerAction::Within(200, round % 2 == 0),
                            _ => CallerAction::Await,
                        };
                        perform_action(&pool, n, action, &mut seen).await;
                    }
                })
            })
        })
        .collect();
    let bad = callers.into_iter().filter_map(|caller| caller.join().err()).count();
    assert_eq!(bad, 0);
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    let c = pool.status();
    assert_eq!(c.done + c.rejected + c.timed_out + c.cancelled + c.panicked + c.closed, 2000);
}

#[test]
fn ten_thousand_jobs_of_each_outcome_leak_nothing() {
    let held = Arc::new(());
    let pool = create_pool(2, 64);
    let job = |action| {
        let held = Arc::clone(&held);
        let inner = create_job(0, action, &Begins::default());
        cancellable_job(move |cancel: &CancelFlag<'_>| {
            let _held = held;
            inner.run(cancel)
        })
    };
    block_on(async {
        for _ in 0..10_000 {
            assert_eq!(pool.run(job(CallerAction::Await)).await, Ok(0));
            drop(pool.run(job(CallerAction::Await)));
            let zero = JobDeadline::FromSubmission(Duration::ZERO);
            let timed_out = pool.run_within(zero, job(CallerAction::Await)).await;
            assert!(matches!(timed_out, Err(PoolError::TimedOut { .. })), "{timed_out:?}");
        }
    });
    let threads = || std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let named = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default()
    };
    block_on(async {
        for _ in 0..10_000 {
            let panicked = pool.run(job(CallerAction::Panic)).await;
            assert!(matches!(panicked, Err(PoolError::Panicked { .. })), "{panicked:?}");
        }
    });
    let unwound = catch_unwind(AssertUnwindSafe(|| block_on(pool.drain(TEST_TIMEOUT))));
    assert_eq!(unwound.ok(), Some(0));
    assert_eq!(Arc::strong_count(&held), 1, "a job was leaked");
    // Other tests have pools of their own; ten thousand threads would stand out.
    let still_running = threads().filter(|entry| named(entry).starts_with("pool-")).count();
    assert!(still_running < 200, "{still_running} threads");
}
