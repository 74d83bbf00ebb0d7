//! Tests of threads: they start on demand, end when idle, and have the configured size and priority.

use std::collections::BTreeSet;

use super::*;

/// Returns the names of the threads that run `count` jobs at the same time.
fn names_of_busy_threads(pool: &Pool, count: usize) -> BTreeSet<String> {
    let barrier = Arc::new(std::sync::Barrier::new(count));
    let jobs: Vec<_> = (0..count)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            pool.run(move || {
                barrier.wait();
                std::thread::current().name().unwrap_or_default().to_string()
            })
        })
        .collect();
    jobs.into_iter().map(|job| block_on(job).expect("a name")).collect()
}

#[test]
fn threads_start_on_demand_up_to_the_configured_number() {
    let pool = create_pool(3, 16);
    for _ in 0..20 {
        block_on(pool.run(|| ())).expect("done");
    }
    assert_eq!(pool.status().threads, 1, "one idle thread is enough for one job at a time");
    let (_first, first) = run_gated_job(&pool);
    let (_second, second) = run_gated_job(&pool);
    assert_eq!(pool.status().threads, 2);
    let waiting: Vec<_> = (0..8).map(|_| pool.run(|| ())).collect();
    assert_eq!(pool.status().threads, 3);
    first.open_gate();
    second.open_gate();
    waiting.into_iter().for_each(|job| block_on(job).expect("done"));
}

#[test]
fn the_first_job_starts_the_minimum_of_threads() {
    let pool = Pool::new(test_config(4, 16).min_threads(3));
    assert_eq!(pool.status().threads, 0);
    block_on(pool.run(|| ())).expect("done");
    assert_eq!(pool.status().threads, 3);
}

#[test]
fn idle_threads_end_down_to_the_minimum_and_start_again() {
    let config = test_config(3, 16).min_threads(1).idle_timeout(Duration::from_millis(5));
    let pool = Pool::new(config);
    for _ in 0..3 {
        assert_eq!(names_of_busy_threads(&pool, 3).len(), 3);
        wait_until("idle threads to end", || pool.status().threads == 1);
    }
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

#[test]
fn a_job_that_arrives_as_its_thread_times_out_is_run() {
    let pool = Pool::new(test_config(1, 16).idle_timeout(Duration::from_micros(50)));
    block_on(async {
        for round in 0..2000u64 {
            assert_eq!(pool.run(move || round).await, Ok(round));
            let pause = Instant::now() + Duration::from_micros(round % 120);
            while Instant::now() < pause {
                std::hint::spin_loop();
            }
        }
    });
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    assert_eq!(pool.status().done, 2000);
}

#[test]
fn threads_have_distinct_names() {
    let pool = create_pool(3, 16);
    let names = names_of_busy_threads(&pool, 3);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["pool-0", "pool-1", "pool-2"]);
}

#[test]
fn threads_have_the_configured_stack_size() {
    // Deeper than the default stack of 2 MiB.
    fn use_stack(depth: usize) -> usize {
        let frame = std::hint::black_box([0u8; 1024]);
        if depth == 0 { usize::from(frame[0]) } else { use_stack(depth - 1) + 1 }
    }
    let pool = Pool::new(test_config(1, 4).stack_bytes(64 << 20));
    assert_eq!(block_on(pool.run(|| use_stack(16_000))), Ok(16_000));
}

#[test]
fn threads_have_the_configured_nice_value() {
    let nice = |nice| {
        let pool = Pool::new(test_config(1, 4).nice(nice));
        block_on(pool.run(|| prefork_os::thread::thread_niceness().expect("nice"))).expect("result")
    };
    let own = prefork_os::thread::thread_niceness().expect("nice");
    assert_eq!(nice(19), 19);
    let after = prefork_os::thread::thread_niceness().expect("nice");
    assert_eq!(after, own, "the priority of the caller changed");
}

#[test]
fn a_pool_without_any_thread_refuses_its_jobs() {
    // More address space than there is.
    let pool = Pool::new(test_config(2, 4).stack_bytes(1 << 50));
    let ran = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ran);
    let error = block_on(pool.run(move || set.store(true, SeqCst))).expect_err("no thread");
    assert!(matches!(error, PoolError::NoThread { .. }) && !error.has_begun(), "{error}");
    let refused = pool.try_run(|| 5).expect_err("no thread");
    assert_eq!((refused.job)(), 5);
    assert!(!ran.load(SeqCst));
    let seen = pool.status();
    assert_eq!((seen.rejected, seen.depth, seen.threads), (2, 0, 0));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
}

#[test]
fn utilisation_is_worked_out_when_the_status_is_read() {
    let pool = create_pool(1, 4);
    let busy = pool.run(|| {
        let end = Instant::now() + Duration::from_millis(1100);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    });
    block_on(busy).expect("done");
    let utilisation = pool.status().utilisation;
    assert!(utilisation > 50, "{utilisation} %");
}
