//! Tests of the promises of a pool; those of one topic are in the files beside.

mod leaks;
mod panics;
mod random_callers;
mod submission;
mod task_pool;
mod threads;
mod waiting;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// At normal priority: niced threads may starve on a busy machine.
fn test_config(threads: usize, queue: usize) -> PoolConfig {
    PoolConfig::new().threads(threads).queue(queue).nice(0)
}

fn create_pool(threads: usize, queue: usize) -> Pool {
    Pool::new(test_config(threads, queue))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let bounded = async { tokio::time::timeout(TEST_TIMEOUT, future).await.expect("in time") };
    runtime.expect("runtime").block_on(bounded)
}

/// Holds a job back until it is opened, and reports that the job has started.
struct JobGate {
    started: Receiver<()>,
    release: Sender<()>,
}

fn run_gated_job(pool: &Pool) -> (JobFuture<impl PoolJob<Output = ()>>, JobGate) {
    let ((start, started), (release, released)) = (channel(), channel());
    let job = pool.run(move || {
        let _ = start.send(());
        let _ = released.recv_timeout(TEST_TIMEOUT);
    });
    (job, JobGate { started, release })
}

impl JobGate {
    fn wait_for_start(&self) {
        self.started.recv_timeout(TEST_TIMEOUT).expect("started");
    }

    fn open_gate(&self) {
        let _ = self.release.send(());
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_job_returns_its_result_and_the_first_job_starts_a_thread() {
    let pool = create_pool(2, 4);
    assert_eq!(pool.status().threads, 0);
    let data = vec![7u8; 1 << 20];
    let address = data.as_ptr() as usize;
    let back = block_on(pool.run(move || data)).expect("result");
    assert_eq!(back.as_ptr() as usize, address, "the data was copied");
    let seen = pool.status();
    assert_eq!((seen.threads, seen.capacity, seen.done, seen.running), (1, 4, 1, 0));
    assert_eq!((seen.wait.count(), seen.run.count()), (1, 1));
}

#[test]
fn the_queue_is_first_in_first_out_and_bounded() {
    let pool = create_pool(1, 3);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let (sender, receiver) = channel();
    let jobs: Vec<_> = (0..3)
        .map(|n| {
            let sender = sender.clone();
            pool.run(move || sender.send(n))
        })
        .collect();
    let refused = block_on(pool.run(|| ())).expect_err("no room");
    assert_eq!(refused, PoolError::Full { waiting: 3 });
    assert!(refused.to_string().contains("try again later"), "{refused}");
    assert_eq!(pool.status().depth, 3);
    gate.open_gate();
    block_on(async {
        first.await.expect("done");
        for job in jobs {
            job.await.expect("done").expect("receiver");
        }
    });
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((pool.status().rejected, pool.status().depth), (1, 0));
}

#[test]
fn idle_threads_take_jobs_without_a_queue() {
    let pool = create_pool(2, 0);
    block_on(async {
        for round in 0..200 {
            // The thread counts as idle before its caller sees the result.
            assert_eq!(pool.run(move || round).await, Ok(round));
        }
    });
    let ((_a, first), (_b, second)) = (run_gated_job(&pool), run_gated_job(&pool));
    first.wait_for_start();
    second.wait_for_start();
    assert_eq!(block_on(pool.run(|| ())), Err(PoolError::Full { waiting: 0 }));
    first.open_gate();
    second.open_gate();
}

#[test]
fn dropping_the_future_removes_a_queued_job() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let ran = Arc::new(AtomicBool::new(false));
    let (set, held) = (Arc::clone(&ran), Arc::new(()));
    let kept = Arc::clone(&held);
    let job = pool.run(move || {
        set.store(true, SeqCst);
        drop(kept);
    });
    assert_eq!(pool.status().depth, 1);
    drop(job);
    assert_eq!((pool.status().depth, pool.status().cancelled), (0, 1));
    assert_eq!(Arc::strong_count(&held), 1, "the dropped job kept its data");
    gate.open_gate();
    block_on(first).expect("done");
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    assert!(!ran.load(SeqCst));
}

#[test]
fn dropping_the_future_sets_the_cancel_flag_of_a_running_job() {
    let pool = create_pool(1, 8);
    let (sender, receiver) = channel();
    let job = pool.run(cancellable_job(move |cancel| {
        let _ = sender.send(cancel.is_set());
        wait_until("the flag", || cancel.is_set());
        let _ = sender.send(cancel.is_set());
    }));
    assert_eq!(receiver.recv_timeout(TEST_TIMEOUT), Ok(false));
    drop(job);
    assert_eq!(receiver.recv_timeout(TEST_TIMEOUT), Ok(true));
    assert_eq!((pool.status().cancelled, pool.status().done), (1, 0));
}

#[test]
fn a_deadline_counts_from_submission_or_from_the_start() {
    let short = Duration::from_millis(30);
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    block_on(async {
        let waits = pool.run_within(JobDeadline::FromSubmission(short), || ());
        let patient = pool.run_within(JobDeadline::FromStart(short), || 1);
        let late = waits.await.expect_err("it could not even start");
        assert!(late.to_string().contains("did not end within 30ms of its submission"), "{late}");
        assert_eq!(pool.status().depth, 1, "the late job is still queued");
        gate.open_gate();
        first.await.expect("done");
        assert_eq!(patient.await, Ok(1), "the time in the queue was counted");
        let (sender, receiver) = channel();
        let endless = cancellable_job(move |cancel| {
            wait_until("the flag", || cancel.is_set());
            let _ = sender.send(());
        });
        let late = pool.run_within(JobDeadline::FromStart(short), endless).await;
        assert!(late.expect_err("endless").to_string().contains("of its start"));
        receiver.recv_timeout(TEST_TIMEOUT).expect("cancelled");
    });
    assert_eq!(pool.status().timed_out, 2);
}

#[test]
fn a_job_past_its_deadline_never_starts_even_if_its_future_is_not_polled() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let ran = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ran);
    let job = pool.run_within(JobDeadline::FromSubmission(Duration::ZERO), move || {
        set.store(true, SeqCst);
    });
    gate.open_gate();
    wait_until("the first to end", || pool.status().timed_out == 1);
    assert!(!ran.load(SeqCst));
    block_on(async {
        assert!(matches!(job.await, Err(PoolError::TimedOut { .. })));
        first.await.expect("done");
    });
}

#[test]
fn a_closed_pool_runs_queued_jobs_and_rejects_new_ones() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let second = pool.run(|| 2);
    pool.state().close();
    assert_eq!(block_on(pool.run(|| 3)), Err(PoolError::Closed));
    gate.open_gate();
    block_on(async {
        pool.state().wait_until(PoolState::has_ended).await;
        assert_eq!((first.await, second.await), (Ok(()), Ok(2)));
    });
    assert_eq!(pool.status().closed, 1);
}

#[test]
fn a_job_that_never_ends_delays_a_drain_only_until_its_deadline() {
    let pool = create_pool(1, 8);
    let (stuck, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let waits = pool.run(|| ());
    assert_eq!(block_on(pool.drain(Duration::from_millis(20))), 1);
    assert_eq!(block_on(waits), Err(PoolError::Closed));
    gate.open_gate();
    assert_eq!(block_on(stuck), Ok(()), "the result was lost");
}

#[test]
fn aborting_a_pool_sets_the_cancel_flag_of_running_jobs() {
    let pool = create_pool(1, 8);
    let (sender, receiver) = channel();
    let job = pool.run(cancellable_job(move |cancel| {
        let _ = sender.send(());
        wait_until("the flag", || cancel.is_set());
        "gave up"
    }));
    receiver.recv_timeout(TEST_TIMEOUT).expect("started");
    assert_eq!(pool.state().abort(), 1);
    assert_eq!(block_on(job), Ok("gave up"));
    block_on(pool.state().wait_until(PoolState::has_ended));
}

#[test]
fn an_unused_pool_drains_at_once() {
    assert_eq!(block_on(create_pool(1, 1).drain(TEST_TIMEOUT)), 0);
}

#[test]
fn queued_jobs_run_after_the_last_handle_is_dropped() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let second = pool.run(|| 2);
    drop(pool);
    gate.open_gate();
    assert_eq!(block_on(async { (first.await, second.await) }), (Ok(()), Ok(2)));
}
