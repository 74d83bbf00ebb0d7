//! Tests of crash loops: which exits count, how long the back-off waits, and when the cluster gives up.

use super::*;

fn crashing_after(at: u64) -> WorkerScript {
    WorkerScript::never_reporting().with_step_at(at, WorkerStep::Exit(exit_code(1)))
}

#[test]
fn kills_of_ready_workers_cause_no_backoff() {
    let mut sim = start_cluster(4, |_| None);
    sim.run_for(ms(20));
    for round in 0..500 {
        let victim = sim.serving_workers()[round % 4];
        sim.exit_worker_now(victim, exit_by_signal(SIGKILL));
        sim.run_for(ms(20));
        assert_eq!(sim.serving_workers().len(), 4);
    }
    assert_eq!((sim.fork_times().len(), sim.supervisor.restart_count()), (504, 500));
    assert!(logged_backoffs(&sim).is_empty());
}

#[test]
fn failing_boots_are_retried_one_at_a_time_with_growing_delays() {
    let mut sim = start_cluster(8, |_| Some(crashing_after(5)));
    sim.run_until_idle();
    // Eight forks, then one for each further round.
    let forks = sim.fork_times();
    assert_eq!(forks.len(), 8 + 4);
    let gaps: Vec<u128> = forks[7..].windows(2).map(|w| (w[1] - w[0]).as_millis() - 5).collect();
    for (gap, full) in gaps.into_iter().zip([100, 200, 400, 800]) {
        assert!((full * 3 / 4..=full).contains(&gap), "{gap} of {full}");
    }
    assert!(exit_causes(&sim).iter().all(|(_, cause)| *cause == ExitCause::BootFailed));
}

/// Reports a failed boot after 4 ms and exits 1 ms later.
fn reporting_a_boot_error() -> WorkerScript {
    WorkerScript::never_reporting()
        .with_step_at(4, WorkerStep::ReportBootFailed)
        .with_step_at(5, WorkerStep::Exit(exit_code(70)))
}

/// Returns the rounds after which the cluster gave up, and why.
fn logged_give_up(sim: &Simulator) -> Vec<(u32, String)> {
    sim.logged(|event| match event {
        LogEvent::GivingUp { failures, reason } => Some((*failures, reason.clone())),
        _ => None,
    })
}

#[test]
fn a_cluster_that_never_boots_gives_up() {
    let mut sim = start_cluster(2, |_| Some(crashing_after(5)));
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::WorkersCannotBoot));
    let given_up = logged_give_up(&sim);
    let [(5, reason)] = &given_up[..] else { panic!("{given_up:?}") };
    assert!(reason.contains("worker=6") && reason.contains("ended before"), "{reason}");
    assert_eq!(sim.supervisor.boot_failure(), Some(&reason[..]));
    assert_eq!(logged_backoffs(&sim).len(), 4);
}

#[test]
fn a_boot_error_that_a_worker_reports_ends_a_cluster_that_never_served() {
    let mut sim = start_cluster(2, |id| {
        Some(if id == 1 { reporting_a_boot_error() } else { WorkerScript::never_reporting() })
    });
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::WorkersCannotBoot));
    assert_eq!(logged_give_up(&sim), [(1, "no".to_string())]);
    assert_eq!((sim.supervisor.boot_failure(), sim.fork_times().len()), (Some("no"), 2));
    // It ended by itself; the other one was killed.
    assert_eq!(exit_causes(&sim), [(1, ExitCause::BootFailed), (2, ExitCause::KilledByStop)]);
    assert!(logged_backoffs(&sim).is_empty());
}

#[test]
fn a_program_that_fails_to_start_is_tried_again_although_its_guard_reports_why() {
    let mut sim = start_cluster(1, |_| Some(WorkerScript::never_reporting()));
    let (id, reason) = (WorkerId(1), "no database".to_string());
    sim.report_event(Event::ProgramStarted { worker: id, pid: 4711 });
    sim.report_event(Event::BootAttemptFailed { worker: id, reason: reason.clone() });
    let failed = |event: &LogEvent| match event {
        LogEvent::BootFailed { worker, reason } => Some((worker.pid, reason.clone())),
        _ => None,
    };
    assert_eq!(sim.logged(failed), [(Some(4711), reason)], "the program stands for its worker");
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    sim.run_for(ms(1_000));
    assert!(sim.fork_times().len() > 1 && sim.exit.is_none(), "it is tried again");
}

#[test]
fn a_boot_error_of_a_worker_that_then_hangs_ends_the_cluster_at_the_boot_timeout() {
    let mut sim = start_cluster(1, |_| {
        Some(WorkerScript::never_reporting().with_step_at(4, WorkerStep::ReportBootFailed))
    });
    sim.run_until_idle();
    assert_eq!((sim.exit, sim.fork_times().len()), (Some(ShutdownReason::WorkersCannotBoot), 1));
    assert_eq!(logged_give_up(&sim), [(1, "no".to_string())]);
}

#[test]
fn boot_errors_are_retried_once_a_worker_was_ready() {
    let mut sim = start_cluster(2, |id| (3..=8).contains(&id).then(reporting_a_boot_error));
    sim.run_for(ms(20));
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    sim.run_for(ms(600_000));
    assert_eq!((sim.exit, sim.serving_workers().len()), (None, 2));
    assert!(logged_give_up(&sim).is_empty() && sim.supervisor.boot_failure().is_none());
}

#[test]
fn a_boot_failure_is_logged_once_and_kills_a_worker_that_was_ready() {
    let mut sim = start_cluster(2, |_| None);
    let boot_failed = |worker| Event::BootFailed { worker, reason: "no".to_string() };
    sim.report_event(boot_failed(WorkerId(1)));
    sim.report_event(boot_failed(WorkerId(1)));
    let logged = |sim: &Simulator| {
        sim.logged(|event| matches!(event, LogEvent::BootFailed { .. }).then_some(())).len()
    };
    assert_eq!(logged(&sim), 1);
    sim.run_for(ms(2_000));
    sim.report_event(boot_failed(WorkerId(2)));
    assert_eq!(logged(&sim), 1, "it had booted");
    let condemned = |event: &LogEvent| match event {
        LogEvent::Misbehaved { worker, .. } => Some(worker.id.0),
        _ => None,
    };
    assert_eq!(sim.logged(condemned), [2]);
}

#[test]
fn giving_up_kills_all_workers_and_a_stop_does_not_change_the_reason() {
    let mut sim = start_cluster(2, |id| {
        Some(if id == 1 { WorkerScript::never_reporting() } else { crashing_after(5) })
    });
    while sim.supervisor.phase == ClusterPhase::Booting {
        sim.run_step();
    }
    assert_eq!(sim.supervisor.phase, ClusterPhase::Killing(ShutdownReason::WorkersCannotBoot));
    sim.send_command(ClusterCommand::StopNow);
    sim.run_until_idle();
    assert_eq!(kill_times(&sim, 1).len(), 1);
    assert_eq!(sim.exit, Some(ShutdownReason::WorkersCannotBoot));
}

#[test]
fn a_cluster_that_once_served_never_gives_up() {
    let mut sim = start_cluster(3, |id| (id > 3).then(|| crashing_after(5)));
    sim.run_for(ms(2_000));
    for id in 1..=3 {
        sim.exit_worker_now(id, exit_by_signal(SIGSEGV));
    }
    sim.run_for(ms(600_000));
    assert_eq!((sim.exit, sim.serving_workers().len()), (None, 0));
    let (failures, delay) = *logged_backoffs(&sim).last().expect("it backs off");
    assert!(failures > 100 && delay <= ms(2_000) && delay >= ms(1_500));
    assert!(sim.fork_times().len() <= 6 + failures as usize);
}

#[test]
fn after_a_crash_loop_the_probe_is_followed_by_all_other_workers() {
    let mut sim = start_cluster(3, |id| (id <= 6).then(|| crashing_after(5)));
    sim.run_until_idle();
    assert_eq!(sim.serving_workers(), [7, 8, 9]);
    // The others are forked as soon as the probe is ready, not one by one.
    let forks = sim.fork_times();
    assert_eq!((forks[7] - forks[6], forks[8] - forks[6]), (ms(10), ms(10)));
    assert_eq!(sim.supervisor.backoff.failures(), 0);
}

#[test]
fn a_worker_that_exceeds_the_boot_timeout_is_killed_and_backs_off() {
    let mut sim = start_cluster(1, |id| (id == 1).then(WorkerScript::never_reporting));
    sim.run_until_idle();
    assert_eq!(kill_times(&sim, 1), [ms(10_000)]);
    let timed_out = sim.logged(|event| match event {
        LogEvent::BootTimedOut { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    });
    assert_eq!(
        (timed_out, exit_causes(&sim)),
        (vec![(1, ms(10_000))], vec![(1, ExitCause::BootTimeout)])
    );
    assert_eq!((logged_backoffs(&sim).len(), sim.serving_workers()), (1, vec![2]));
}

#[test]
fn failing_forks_are_retried_one_at_a_time() {
    let mut sim = start_cluster(4, |id| (id <= 6).then(WorkerScript::failing_fork));
    sim.run_for(ms(50));
    assert_eq!((sim.fork_times().len(), sim.supervisor.workers.len()), (4, 0));
    sim.run_until_idle();
    let failed = sim.logged(|event| match event {
        LogEvent::ForkFailed { worker, .. } => Some(worker.pid),
        _ => None,
    });
    assert_eq!((failed, logged_backoffs(&sim).len()), (vec![None; 6], 3));
    assert_eq!(sim.serving_workers(), [7, 8, 9, 10]);
}

#[test]
fn a_crash_during_the_backoff_delay_forks_nothing() {
    let mut sim = start_serving_cluster(3);
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    sim.run_for(ms(0));
    sim.exit_worker_now(4, exit_code(1));
    assert_eq!(logged_backoffs(&sim).len(), 1);
    let forks = sim.fork_times().len();
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    sim.exit_worker_now(3, exit_code(1));
    assert_eq!((sim.fork_times().len(), logged_backoffs(&sim).len()), (forks, 1));
    sim.run_until_idle();
    assert_eq!(sim.serving_workers().len(), 3);
}

#[test]
fn a_worker_that_gets_ready_does_not_end_the_backoff_delay() {
    // Each crashes soon after READY, but there is always another one about to be ready.
    let mut sim = start_cluster(8, |id| {
        Some(
            WorkerScript::never_reporting()
                .with_step_at(50 + id % 8 * 7, WorkerStep::ReportReady)
                .with_step_at(60 + id % 8 * 7, WorkerStep::Exit(exit_code(1))),
        )
    });
    sim.run_for(ms(60_000));
    // Delays soon reach 2 s; a round forks a probe, and the others if the probe was ready.
    assert!(sim.fork_times().len() <= 8 * 45, "{} forks in a minute", sim.fork_times().len());
}

#[test]
fn crashes_of_other_workers_do_not_replace_the_probe() {
    // Worker 9 is the probe, and slow; the first eight crash one after the other.
    let mut sim = start_cluster(8, |id| {
        Some(if id <= 8 {
            crashing_after(id * 500)
        } else {
            WorkerScript::never_reporting().with_step_at(5_000, WorkerStep::ReportReady)
        })
    });
    sim.run_for(ms(5_000));
    assert_eq!((sim.exit, sim.fork_times().len(), logged_backoffs(&sim).len()), (None, 9, 1));
    sim.run_for(ms(1_000));
    assert_eq!((sim.exit, sim.fork_times().len()), (None, 16));
}

#[test]
fn a_few_kills_of_booting_workers_do_not_back_off() {
    let mut sim = start_cluster(1, |id| (id <= 4).then(WorkerScript::never_reporting));
    for id in 1..=3 {
        sim.exit_worker_now(id, exit_by_signal(SIGKILL));
        sim.run_for(ms(0));
        assert_eq!((sim.fork_times().len(), logged_backoffs(&sim).len()), (id as usize + 1, 0));
    }
    sim.exit_worker_now(4, exit_by_signal(SIGKILL));
    assert_eq!((sim.fork_times().len(), logged_backoffs(&sim).len()), (4, 1));
}

#[test]
fn a_ready_worker_resets_the_count_of_forgiven_kills() {
    let mut sim = start_cluster(1, |id| (id % 4 != 0).then(WorkerScript::never_reporting));
    for id in 1..12 {
        if id % 4 == 0 {
            sim.run_for(ms(10));
        }
        sim.exit_worker_now(id, exit_by_signal(SIGKILL));
        sim.run_for(ms(0));
    }
    assert_eq!((sim.fork_times().len(), logged_backoffs(&sim).len()), (12, 0));
}

#[test]
fn a_crash_before_min_uptime_backs_off_and_a_later_one_does_not() {
    for (uptime, rounds) in [(900, 1), (1_100, 0)] {
        let mut sim = start_cluster(1, move |id| {
            (id == 1).then(|| {
                WorkerScript::ready_after_10_ms()
                    .with_step_at(10 + uptime, WorkerStep::Exit(exit_by_signal(SIGSEGV)))
            })
        });
        sim.run_until_idle();
        assert_eq!((logged_backoffs(&sim).len(), sim.serving_workers()), (rounds, vec![2]));
    }
}

#[test]
fn workers_that_retire_before_ready_back_off() {
    let mut sim = start_cluster(2, |_| {
        Some(WorkerScript::never_reporting().with_step_at(1, WorkerStep::Retire))
    });
    sim.run_for(ms(60_000));
    assert_eq!(
        (sim.exit, sim.fork_times().len()),
        (Some(ShutdownReason::WorkersCannotBoot), 2 + 4)
    );
}
