//! Tests of stops: which workers are killed and which drain, and the drain delay.

use super::*;

#[test]
fn a_stop_kills_workers_that_boot_and_drains_those_that_serve() {
    let mut sim = start_cluster(2, |id| (id == 1).then(WorkerScript::never_reporting));
    sim.run_for(ms(1_000));
    sim.send_command(ClusterCommand::Stop);
    assert_eq!((kill_times(&sim, 1), kill_times(&sim, 2)), (vec![ms(1_000)], vec![]));
    assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(2))), [ms(1_000)]);
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn a_fork_that_returns_after_a_stop_is_killed() {
    let mut sim = start_cluster(1, |_| Some(WorkerScript::ready_after_10_ms().with_fork_time(500)));
    sim.send_command(ClusterCommand::Stop);
    assert_eq!((sim.supervisor.phase, sim.exit), (ClusterPhase::Stopping, None));
    sim.run_until_idle();
    assert_eq!(kill_times(&sim, 1), [ms(500)]);
    assert_eq!(
        (exit_causes(&sim), sim.exit),
        (vec![(1, ExitCause::KilledByStop)], Some(ShutdownReason::StopRequested))
    );
}

#[test]
fn a_fork_that_fails_after_a_stop_is_not_retried() {
    let mut sim = start_cluster(1, |_| Some(WorkerScript::failing_fork().with_fork_time(500)));
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!((sim.exit, sim.fork_times().len()), (Some(ShutdownReason::StopRequested), 1));
}

/// Starts a cluster with a drain delay of three seconds, and lets its workers serve.
fn cluster_with_drain_delay(workers: u32) -> Simulator {
    let config = SupervisorConfig { drain_delay: ms(3_000), ..test_config(workers) };
    let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    sim.run_for(ms(5_000));
    sim
}

fn stop_delays(sim: &Simulator) -> Vec<Duration> {
    sim.logged(|event| match event {
        LogEvent::StopDelayed { delay, .. } => Some(*delay),
        _ => None,
    })
}

#[test]
fn a_stop_waits_for_the_drain_delay() {
    let mut sim = cluster_with_drain_delay(2);
    sim.send_command(ClusterCommand::Stop);
    assert!(sim.supervisor.is_stop_requested() && !sim.supervisor.is_stopping());
    assert_eq!((stop_delays(&sim), sim.supervisor.view().phase), (vec![ms(3_000)], "stopping"));
    sim.run_for(ms(2_999));
    assert_eq!(
        (sim.serving_workers(), sim.times_of_action(&Action::CloseListeners)),
        (vec![1, 2], vec![])
    );
    sim.run_until_idle();
    assert_eq!(sim.times_of_action(&Action::CloseListeners), [ms(8_000)]);
    assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(1))), [ms(8_000)]);
    assert_eq!((sim.exit, sim.fork_times().len()), (Some(ShutdownReason::StopRequested), 2));
}

#[test]
fn a_second_stop_skips_the_drain_delay_and_kills_no_worker() {
    let mut sim = cluster_with_drain_delay(1);
    sim.send_command(ClusterCommand::Stop);
    sim.run_for(ms(50));
    sim.send_command(ClusterCommand::Stop);
    assert!(!sim.supervisor.is_stopping(), "two that come together are one");
    sim.run_for(ms(950));
    sim.send_command(ClusterCommand::Stop);
    assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(1))), [ms(6_000)]);
    sim.run_for(ms(0));
    assert_eq!(kill_times(&sim, 1), []);
}

#[test]
fn stop_now_skips_the_drain_delay() {
    let mut sim = cluster_with_drain_delay(1);
    sim.send_command(ClusterCommand::Stop);
    sim.run_for(ms(200));
    sim.send_command(ClusterCommand::StopNow);
    assert_eq!(kill_times(&sim, 1), [ms(5_200)]);
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn the_drain_delay_allows_restarts_but_no_other_change() {
    let mut sim = cluster_with_drain_delay(2);
    sim.send_command(ClusterCommand::Stop);
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    sim.run_for(ms(100));
    assert_eq!(sim.serving_workers(), [3, 2]);
    for (reply_id, command) in [
        (1, ClusterCommand::Reload),
        (2, ClusterCommand::Scale(ScaleChange::Up(1))),
        (3, ClusterCommand::Upgrade { wait: true }),
        (4, ClusterCommand::Disconnect(WorkerId(2))),
    ] {
        sim.send_command_with_reply(reply_id, command);
        let refused = Err("the cluster is stopping".to_string());
        assert_eq!(
            sim.times_of_action(&Action::Reply { reply_id, result: refused }).len(),
            1,
            "{reply_id}"
        );
    }
    sim.send_command(ClusterCommand::Reload);
    let refusals = sim.logged(|event| match event {
        LogEvent::CommandRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(refusals, ["the cluster is stopping"]);
    sim.run_until_idle();
    assert_eq!(
        (sim.exit, sim.supervisor.is_stop_requested()),
        (Some(ShutdownReason::StopRequested), true)
    );
}

#[test]
fn a_delayed_stop_cancels_an_upgrade_check() {
    let mut sim = cluster_with_drain_delay(1);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.send_command(ClusterCommand::Stop);
    assert_eq!(sim.times_of_action(&Action::StopUpgradeCheck).len(), 1);
    sim.run_until_idle();
    assert_eq!((sim.exit, sim.upgrade_count), (Some(ShutdownReason::StopRequested), 0));
}

#[test]
fn without_serving_workers_a_stop_skips_the_drain_delay() {
    let config = SupervisorConfig { drain_delay: ms(3_000), ..test_config(1) };
    let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::never_reporting()).start();
    sim.send_command(ClusterCommand::Stop);
    assert_eq!((stop_delays(&sim), sim.supervisor.phase), (vec![], ClusterPhase::Stopping));
    sim.run_until_idle();
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}
