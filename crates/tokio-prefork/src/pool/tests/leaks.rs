//! What every unhappy end of a job leaves behind: nothing. `PREFORK_POOL_ENDS` says how often each is tried.

use super::*;

fn ends() -> u64 {
    std::env::var("PREFORK_POOL_ENDS").map_or(100, |text| text.parse().expect("a number"))
}

/// Threads of this process that are named as those of a pool; other tests have some, too, but not by the hundred.
fn pool_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().filter(|comm| comm.starts_with("pool-")).count()
}

#[test]
fn jobs_that_end_badly_keep_nothing() {
    let (ends, pool, held) = (ends(), pool_of(1, 1), Arc::new(()));
    let holding = || {
        let kept = Arc::clone(&held);
        move || drop(kept)
    };
    for _ in 0..ends {
        let (first, gate) = gated(&pool);
        gate.wait();
        let gone = pool.run(holding());
        let refused = on_runtime(pool.run(holding()));
        assert!(matches!(refused, Err(PoolError::Full { .. })), "{refused:?}");
        drop(gone);
        let late = pool.run_within(JobDeadline::FromSubmission(Duration::ZERO), holding());
        let late = on_runtime(late);
        assert!(matches!(late, Err(PoolError::TimedOut { .. })), "{late:?}");
        gate.open();
        on_runtime(first).expect("done");
    }
    assert_eq!(Arc::strong_count(&held), 1, "jobs that were not run let go of what they held");
    let seen = pool.snapshot();
    let counted = (seen.rejected, seen.cancelled, seen.timed_out, seen.done);
    assert_eq!(counted, (ends, ends, ends, ends));
    assert_eq!((seen.threads, seen.depth, seen.running), (1, 0, 0));
    assert_eq!(on_runtime(pool.drain(LONG)), 0);
}

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn threads_that_panicked_and_pools_that_were_drained_are_gone() {
    let (ends, held, pool) = (ends(), Arc::new(()), pool_of(1, 8));
    for _ in 0..ends {
        let kept = Arc::clone(&held);
        let job = pool.run(move || -> () {
            let _kept = kept;
            panic!("on purpose")
        });
        assert!(matches!(on_runtime(job), Err(PoolError::Panicked { .. })));
    }
    assert_eq!((pool.snapshot().panicked, pool.snapshot().threads), (ends, 1));
    for _ in 0..ends {
        let pool = pool_of(1, 8);
        let (first, gate) = gated(&pool);
        gate.wait();
        let kept = Arc::clone(&held);
        let waits = pool.run(move || drop(kept));
        gate.open();
        assert_eq!(on_runtime(pool.drain(LONG)), 0);
        on_runtime(async { (first.await.expect("ran"), waits.await.expect("ran")) });
    }
    until("all let go", || Arc::strong_count(&held) == 1);
    until("the threads gone", || pool_threads() < 50);
}
