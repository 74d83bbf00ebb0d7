//! Tests that jobs without a result leak nothing. `PREFORK_POOL_ENDS` sets how often each case is repeated (default 100).

use super::*;

fn leak_test_iterations() -> u64 {
    std::env::var("PREFORK_POOL_ENDS").map_or(100, |text| text.parse().expect("a number"))
}

/// Counts the pool threads of this process. Other tests have some too, but not hundreds.
fn count_pool_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().filter(|comm| comm.starts_with("pool-")).count()
}

#[test]
fn jobs_without_a_result_are_freed() {
    let (iterations, pool, held) = (leak_test_iterations(), create_pool(1, 1), Arc::new(()));
    let holding = || {
        let clone = Arc::clone(&held);
        move || drop(clone)
    };
    for _ in 0..iterations {
        let (first, gate) = run_gated_job(&pool);
        gate.wait_for_start();
        let gone = pool.run(holding());
        let refused = block_on(pool.run(holding()));
        assert!(matches!(refused, Err(PoolError::Full { .. })), "{refused:?}");
        drop(gone);
        let late = pool.run_within(JobDeadline::FromSubmission(Duration::ZERO), holding());
        let late = block_on(late);
        assert!(matches!(late, Err(PoolError::TimedOut { .. })), "{late:?}");
        gate.open_gate();
        block_on(first).expect("done");
    }
    assert_eq!(Arc::strong_count(&held), 1, "jobs that were not run kept their data");
    let seen = pool.status();
    let counted = (seen.rejected, seen.cancelled, seen.timed_out, seen.done);
    assert_eq!(counted, (iterations, iterations, iterations, iterations));
    assert_eq!((seen.threads, seen.depth, seen.running), (1, 0, 0));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn threads_end_after_a_panic_and_after_a_drain() {
    let (iterations, held, pool) = (leak_test_iterations(), Arc::new(()), create_pool(1, 8));
    for _ in 0..iterations {
        let clone = Arc::clone(&held);
        let job = pool.run(move || -> () {
            let _kept = clone;
            panic!("on purpose")
        });
        assert!(matches!(block_on(job), Err(PoolError::Panicked { .. })));
    }
    assert_eq!((pool.status().panicked, pool.status().threads), (iterations, 1));
    for _ in 0..iterations {
        let pool = create_pool(1, 8);
        let (first, gate) = run_gated_job(&pool);
        gate.wait_for_start();
        let clone = Arc::clone(&held);
        let waits = pool.run(move || drop(clone));
        gate.open_gate();
        assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
        block_on(async { (first.await.expect("ran"), waits.await.expect("ran")) });
    }
    wait_until("the jobs to be freed", || Arc::strong_count(&held) == 1);
    wait_until("the threads to end", || count_pool_threads() < 50);
}
