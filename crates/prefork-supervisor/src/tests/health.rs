//! Tests of stalls, memory limits and recycling.

use std::time::Instant;

use super::*;
use crate::Supervisor;

fn stall_config(workers: u32) -> SupervisorConfig {
    SupervisorConfig {
        stall_warn: Some(ms(1_000)),
        stall_timeout: Some(ms(30_000)),
        ..test_config(workers)
    }
}

/// Starts a cluster and lets it serve for five seconds. `script_for` gives some workers another script by their id.
fn start_cluster_for_health_checks(
    config: SupervisorConfig,
    script_for: impl Fn(u64) -> Option<WorkerScript> + 'static,
) -> Simulator {
    let choose_script = move |tag: WorkerTag, _: &mut TestRng| {
        script_for(tag.id.0).unwrap_or_else(WorkerScript::ready_after_10_ms)
    };
    let mut sim = Simulator::new(config, 1, choose_script).start();
    sim.run_for(ms(5_000));
    sim
}

fn stall_log(sim: &Simulator) -> Vec<(&'static str, u64, Duration)> {
    sim.logged(|event| match event {
        LogEvent::Stalled { worker, stalled_for, .. } => {
            Some(("stalled", worker.id.0, *stalled_for))
        }
        LogEvent::Recovered { worker, stalled_for } => {
            Some(("recovered", worker.id.0, *stalled_for))
        }
        LogEvent::StallTimedOut { worker, stalled_for, .. } => {
            Some(("frozen", worker.id.0, *stalled_for))
        }
        _ => None,
    })
}

fn recycle_log(sim: &Simulator) -> Vec<(u64, RecycleReason)> {
    sim.logged(|event| match event {
        LogEvent::Recycling { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    })
}

#[test]
fn a_stalled_worker_is_logged_then_aborted_then_killed() {
    let mut sim = start_cluster_for_health_checks(stall_config(2), |id| {
        (id == 1).then(|| WorkerScript::ready_after_10_ms().surviving_abort())
    });
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.run_for(ms(60_000));
    let timeout = ms(30_000);
    assert_eq!(stall_log(&sim), [("stalled", 1, ms(1_000)), ("frozen", 1, timeout)]);
    let named = sim.logged(|event| match event {
        LogEvent::Stalled { current_request, .. }
        | LogEvent::StallTimedOut { current_request, .. } => current_request.clone(),
        _ => None,
    });
    assert_eq!(named, ["GET /fib/50"; 2]);
    let aborted = sim.times_of_action(&Action::Abort(WorkerId(1)));
    assert_eq!(aborted, [ms(35_000)]);
    // A stopped process does not dump core, but SIGKILL ends it.
    assert_eq!(kill_times(&sim, 1), [aborted[0] + ms(2_000)]);
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(1, ExitCause::Stalled)], vec![3, 2])
    );
    assert_eq!((sim.supervisor.restart_count(), logged_backoffs(&sim).len()), (1, 0));
}

#[test]
fn a_stalled_worker_that_dies_of_sigabrt_is_not_killed() {
    let mut sim = start_cluster_for_health_checks(stall_config(1), |_| None);
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.run_for(ms(60_000));
    assert_eq!((kill_times(&sim, 1), exit_causes(&sim)), (vec![], vec![(1, ExitCause::Stalled)]));
    assert_eq!(sim.serving_workers(), [2]);
}

#[test]
fn a_stalled_worker_that_recovers_is_not_aborted() {
    let mut sim = start_cluster_for_health_checks(stall_config(1), |_| None);
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.run_for(ms(29_000));
    sim.perform_step_now(1, WorkerStep::Thaw);
    sim.run_for(ms(60_000));
    assert_eq!(stall_log(&sim), [("stalled", 1, ms(1_000)), ("recovered", 1, ms(29_000))]);
    assert_eq!((sim.serving_workers(), exit_causes(&sim).len()), (vec![1], 0));
}

#[test]
fn a_draining_worker_that_stalls_is_aborted() {
    let config = SupervisorConfig { graceful_timeout: ms(3_600_000), ..stall_config(1) };
    let mut sim = start_cluster_for_health_checks(config, |_| {
        Some(WorkerScript::ready_after_10_ms().never_draining())
    });
    sim.send_command(ClusterCommand::Stop);
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.run_for(ms(60_000));
    assert_eq!(
        (exit_causes(&sim), sim.exit),
        (vec![(1, ExitCause::Stalled)], Some(ShutdownReason::StopRequested))
    );
}

#[test]
fn a_primary_that_was_stopped_kills_no_worker() {
    for timeout in [1, 500, 1_000, 30_000] {
        let config = SupervisorConfig { stall_timeout: Some(ms(timeout)), ..stall_config(3) };
        for (asleep, all) in [(700, true), (60_000, false), (60_000, true), (86_400_000, true)] {
            let mut sim = start_cluster_for_health_checks(config.clone(), |_| None);
            if all && (timeout > 500 || asleep > 1_000) {
                // The whole container is suspended; the first heartbeat comes after the first sample.
                sim.suspend_all_for(ms(asleep));
            } else {
                sim.stop_primary_for(ms(asleep));
            }
            sim.run_for(ms(asleep + 60_000));
            let dead = exit_causes(&sim);
            assert_eq!(
                (sim.serving_workers(), dead),
                (vec![1, 2, 3], vec![]),
                "{timeout} {asleep}"
            );
        }
    }
}

#[test]
fn a_primary_that_is_stopped_repeatedly_still_detects_stalls() {
    let mut sim = start_cluster_for_health_checks(stall_config(2), |_| None);
    sim.perform_step_now(2, WorkerStep::Freeze);
    for _ in 0..20 {
        sim.stop_primary_for(ms(3_000));
        sim.run_for(ms(5_000));
    }
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(2, ExitCause::Stalled)], vec![1, 3])
    );
}

#[test]
fn health_is_sampled_only_while_limits_are_configured() {
    let mut sim = start_cluster_for_health_checks(test_config(1), |_| None);
    sim.run_for(ms(600_000));
    let health_samples =
        |sim: &Simulator| sim.times_of_action(&Action::SampleHealth { with_memory: false }).len();
    assert_eq!((health_samples(&sim), sim.supervisor.next_deadline()), (0, None));
    sim.config_file = Box::new(|_, _| (ms(5), Ok(stall_config(1))));
    sim.send_command(ClusterCommand::Reload);
    sim.run_for(ms(5_100));
    assert_eq!(health_samples(&sim), 10);
    sim.config_file =
        Box::new(|_, _| (ms(5), Ok(SupervisorConfig { max_rss: Some(1 << 30), ..test_config(1) })));
    sim.send_command(ClusterCommand::Reload);
    sim.run_for(ms(5_100));
    assert!(sim.times_of_action(&Action::SampleHealth { with_memory: true }).len() >= 10);
    sim.config_file = Box::new(|_, _| (ms(5), Ok(test_config(1))));
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.supervisor.next_deadline(), None);
}

#[test]
fn workers_are_recycled_one_at_a_time_with_jitter() {
    let config = SupervisorConfig { max_requests: Some(10_000), ..test_config(8) };
    let mut sim = start_cluster_for_health_checks(config, |_| None);
    // At 100 requests a second, between 80 and 100 seconds. `invariants` checks that it is one at a time.
    sim.run_for(ms(70_000));
    assert_eq!(recycle_log(&sim), []);
    sim.run_for(ms(30_000));
    let recycled = recycle_log(&sim);
    let mut workers: Vec<u64> = recycled.iter().map(|(worker, _)| *worker).collect();
    workers.sort_unstable();
    assert_eq!(workers, [1, 2, 3, 4, 5, 6, 7, 8]);
    let counts: Vec<u64> = recycled
        .iter()
        .map(|(_, limit)| match limit {
            RecycleReason::Requests(count) => *count,
            _ => 0,
        })
        .collect();
    assert!(counts.iter().all(|count| (8_000..=10_100).contains(count)), "{counts:?}");
    assert!(counts.windows(2).all(|pair| pair[0] + 50 <= pair[1]), "apart: {counts:?}");
    assert!(exit_causes(&sim).iter().all(|(_, cause)| *cause == ExitCause::Drained));
    assert_eq!((sim.serving_workers().len(), sim.supervisor.restart_count()), (8, 0));
}

#[test]
fn workers_are_recycled_by_memory_and_by_age() {
    let config = SupervisorConfig {
        max_rss: Some(2_000),
        max_lifetime: Some(ms(100_000)),
        ..test_config(2)
    };
    let mut sim = start_cluster_for_health_checks(config, |id| {
        (id == 1).then(|| WorkerScript::ready_after_10_ms().with_memory(1_000, 100))
    });
    while recycle_log(&sim).len() < 2 {
        sim.run_step();
    }
    sim.run_for(ms(1_000));
    let recycled = recycle_log(&sim);
    assert!(matches!(recycled[0], (1, RecycleReason::Memory(2_001..=2_100))), "{recycled:?}");
    let (_, RecycleReason::Lifetime(age)) = recycled[1] else { panic!("{recycled:?}") };
    assert!(age >= ms(80_000) && age <= ms(100_500), "{age:?}");
    assert_eq!((recycled.len(), sim.serving_workers().len(), exit_causes(&sim).len()), (2, 2, 2));
}

#[test]
fn a_worker_over_its_limit_keeps_serving_if_its_successor_fails() {
    let config = SupervisorConfig { max_lifetime: Some(ms(10_000)), ..test_config(2) };
    let mut sim = start_cluster_for_health_checks(config, |id| {
        (id > 2).then(|| {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        })
    });
    sim.run_for(ms(55_000));
    assert_eq!((sim.serving_workers(), logged_backoffs(&sim).len()), (vec![1, 2], 0));
    // One attempt in ten seconds.
    assert!((4..=7).contains(&sim.fork_times()[2..].len()), "{:?}", sim.fork_times());
}

#[test]
fn workers_over_the_memory_limit_from_the_start_are_recycled_after_min_uptime() {
    let config = SupervisorConfig { max_rss: Some(500), min_uptime: ms(10_000), ..test_config(1) };
    let mut sim = start_cluster_for_health_checks(config, |_| None);
    sim.run_for(ms(95_000));
    assert!((5..=10).contains(&sim.fork_times().len()), "{:?}", sim.fork_times());
}

#[test]
fn a_failed_recycling_does_not_fail_a_reload() {
    let limits = SupervisorConfig { max_lifetime: Some(ms(5_500)), ..test_config(1) };
    let hangs = |id| {
        (id == 2).then(|| {
            WorkerScript::never_reporting().with_step_at(300, WorkerStep::Exit(exit_code(1)))
        })
    };
    let mut sim = start_cluster_for_health_checks(limits, hangs);
    while recycle_log(&sim).is_empty() {
        sim.run_step();
    }
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    assert_eq!((sim.serving_generations(), sim.replies().len()), (vec![2], 1));
    assert!(sim.replies()[0].1.is_ok());
    assert_eq!(exit_causes(&sim)[0], (2, ExitCause::Superseded));
}

#[test]
fn a_worker_over_the_hard_memory_limit_is_killed() {
    let config = SupervisorConfig { max_rss_hard: Some(3_000), ..test_config(2) };
    let mut sim = start_cluster_for_health_checks(config, |id| {
        (id == 2).then(|| WorkerScript::ready_after_10_ms().with_memory(1_000, 200))
    });
    sim.run_for(ms(20_000));
    let over = sim.logged(|event| match event {
        LogEvent::MemoryLimitExceeded { worker, memory, limit } => {
            Some((worker.id.0, *memory, *limit))
        }
        _ => None,
    });
    assert!(matches!(over[..], [(2, 3_001..=3_100, 3_000)]), "{over:?}");
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(2, ExitCause::MemoryLimit)], vec![1, 3])
    );
    assert_eq!(logged_backoffs(&sim).len(), 0);
}

#[test]
fn workers_over_the_hard_memory_limit_from_the_start_back_off() {
    let config = SupervisorConfig { max_rss_hard: Some(500), ..test_config(2) };
    let mut sim = start_cluster_for_health_checks(config, |_| None);
    sim.run_for(ms(60_000));
    assert!(
        logged_backoffs(&sim).len() > 10 && sim.fork_times().len() < 80,
        "{}",
        sim.fork_times().len()
    );
}

#[test]
fn a_worker_that_does_not_react_to_sigterm_is_replaced_at_once_and_killed_in_time() {
    let mut sim = start_serving_cluster(2);
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.report_event(Event::TerminationSent { worker: WorkerId(1) });
    sim.run_for(ms(100));
    assert_eq!(sim.serving_workers(), [3, 2]);
    sim.run_until_idle();
    // After the graceful timeout of 5 s and the margin.
    assert_eq!(kill_times(&sim, 1), [ms(11_000)]);
    assert_eq!(exit_causes(&sim), [(1, ExitCause::GracefulTimeout)]);
}

#[test]
fn a_worker_that_reacts_to_sigterm_retires_once() {
    let mut sim = start_serving_cluster(1);
    sim.report_event(Event::TerminationSent { worker: WorkerId(1) });
    sim.perform_step_now(1, WorkerStep::Retire);
    sim.run_until_idle();
    let retired = sim.logged(|event| matches!(event, LogEvent::Retiring { .. }).then_some(()));
    assert_eq!((retired.len(), sim.serving_workers()), (1, vec![2]));
    assert_eq!(exit_causes(&sim), [(1, ExitCause::Drained)]);
}

#[test]
fn a_sleeping_worker_has_not_stalled_until_its_next_heartbeat_is_late() {
    let mut supervisor = Supervisor::new(stall_config(1), 1);
    let start = Instant::now();
    let worker = WorkerId(1);
    for event in [Event::Started, Event::Forked { worker, pid: 2 }, Event::Ready { worker }] {
        let _ = supervisor.handle(start, event);
    }
    let mut first_stall = |sleeps_until: u64| {
        (1..100).find(|n| {
            let now = start + ms(n * 500);
            let _ = supervisor.handle(now, Event::DeadlineReached);
            let sample = HealthSample {
                worker,
                heartbeat: 7,
                is_sleeping: n * 500 < sleeps_until,
                requests: 0,
                memory: None,
                is_full: false,
                current_request: None,
            };
            let actions = supervisor.handle(now, Event::HealthSampled { samples: vec![sample] });
            let stalls = |action: &Action| {
                matches!(action, Action::Log(LogEvent::Stalled { stalled_for, .. }) if *stalled_for == ms(1_000))
            };
            actions.iter().any(stalls)
        })
    };
    // Samples at 10.0 and 10.5 s find the same heartbeat as the last one in the sleep, at 9.5 s.
    assert_eq!(first_stall(10_000).map(|n| n * 500), Some(10_500));
}
