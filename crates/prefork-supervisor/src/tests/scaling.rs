//! Tests of scaling.

use super::*;

fn scale_log(sim: &Simulator) -> Vec<(u32, u32)> {
    sim.logged(|event| match event {
        LogEvent::Scaled { from, to, .. } => Some((*from, *to)),
        _ => None,
    })
}

#[test]
fn scaling_up_forks_the_missing_workers() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Scale(ScaleChange::Up(2)));
    assert_eq!(sim.fork_times()[2..], [ms(5_000), ms(5_000)]);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), scale_log(&sim)), (vec![1, 2, 3, 4], vec![(2, 4)]));
    assert_eq!(sim.replies(), [(1, Ok("scaled from 2 to 4 workers".to_string()))]);
}

#[test]
fn scaling_down_drains_surplus_workers() {
    let mut sim = start_serving_cluster(3);
    sim.send_command_with_reply(1, ClusterCommand::Scale(ScaleChange::Down(2)));
    for worker in [2, 3] {
        assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(worker))), [ms(5_000)]);
    }
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.supervisor.wanted_workers()), (vec![1], 1));
    assert_eq!(exit_causes(&sim), [(2, ExitCause::Drained), (3, ExitCause::Drained)]);
    assert_eq!(
        (sim.fork_times().len(), sim.supervisor.restart_count(), logged_backoffs(&sim).len()),
        (3, 0, 0)
    );
}

#[test]
fn fast_scaling_up_and_down_does_not_pile_up_workers() {
    let mut sim = start_cluster(2, |_| Some(WorkerScript::ready_after_10_ms().never_draining()));
    sim.run_for(ms(5_000));
    for _ in 0..40 {
        sim.send_command(ClusterCommand::Scale(ScaleChange::Down(1)));
        sim.send_command(ClusterCommand::Scale(ScaleChange::Up(1)));
        sim.run_for(ms(20));
    }
    assert_eq!(sim.supervisor.workers.len(), 3);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers().len(), sim.supervisor.workers.len()), (2, 2));
}

#[test]
fn scaling_is_refused_during_a_reload() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.send_command_with_reply(2, ClusterCommand::Scale(ScaleChange::To(4)));
    sim.run_until_idle();
    let reason = "a reload is under way; ask again when it is done".to_string();
    assert_eq!(sim.replies()[0], (2, Err(reason)));
    assert_eq!(sim.serving_generations(), [2, 2]);
}

#[test]
fn scaling_without_a_reply_waits_for_the_end_of_a_reload() {
    let mut sim = start_serving_cluster(2);
    sim.send_command(ClusterCommand::Reload);
    sim.send_command(ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.send_command(ClusterCommand::Scale(ScaleChange::Up(2)));
    assert_eq!(scale_log(&sim), []);
    sim.run_until_idle();
    assert_eq!((scale_log(&sim), sim.serving_generations()), (vec![(2, 3), (3, 5)], vec![2; 5]));
}

#[test]
fn scaling_that_waits_for_a_reload_is_refused_by_a_stop() {
    let mut sim = start_serving_cluster(2);
    sim.send_command(ClusterCommand::Reload);
    sim.send_command(ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!(refusals(&sim), [RefusedCommand::Scale, RefusedCommand::Reload]);
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn nothing_is_scaled_in_the_drain_delay() {
    let config = SupervisorConfig { drain_delay: ms(1_000), ..test_config(2) };
    let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    sim.run_for(ms(5_000));
    sim.send_command(ClusterCommand::Stop);
    for kind in ["web", "consumer"] {
        let command = ClusterCommand::ScaleKind(kind.to_string(), ScaleChange::To(3));
        sim.send_command_with_reply(kind.len() as u64, command);
    }
    let reason = "the cluster is stopping".to_string();
    assert_eq!(sim.replies(), [(3, Err(reason.clone())), (8, Err(reason))]);
    assert_eq!(scale_log(&sim), []);
}

#[test]
fn a_reload_keeps_the_scaled_number_unless_the_configured_number_has_changed() {
    let mut sim = start_serving_cluster(2);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(4)));
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [2; 4]);
    sim.config_file =
        Box::new(|config, _| (ms(5), Ok(SupervisorConfig { workers: 3, ..config.clone() })));
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [3; 3]);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), scale_log(&sim)), (vec![4; 3], vec![(2, 4), (4, 3)]));
}

#[test]
fn scaling_is_refused_outside_of_one_to_max_workers() {
    let mut sim = start_serving_cluster(1);
    for (reply_id, scale) in
        (0..).zip([ScaleChange::Down(1), ScaleChange::Down(2), ScaleChange::Up(u32::MAX)])
    {
        sim.send_command_with_reply(reply_id, ClusterCommand::Scale(scale));
    }
    sim.send_command_with_reply(9, ClusterCommand::Scale(ScaleChange::To(1)));
    assert_eq!(sim.replies().iter().filter(|(_, result)| result.is_err()).count(), 3);
    assert_eq!((sim.serving_workers(), scale_log(&sim)), (vec![1], vec![]));
}

#[test]
fn scaling_down_to_the_ready_workers_logs_all_ready() {
    let mut sim = start_cluster(2, |id| (id == 2).then(WorkerScript::never_reporting));
    sim.run_for(ms(100));
    assert_eq!(sim.supervisor.phase, ClusterPhase::Booting);
    sim.send_command(ClusterCommand::Scale(ScaleChange::Down(1)));
    assert_eq!(sim.times_of_action(&Action::Log(LogEvent::AllReady { workers: 1 })), [ms(100)]);
    sim.run_until_idle();
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(2, ExitCause::Superseded)], vec![1])
    );
}

#[test]
fn scaling_down_the_probe_worker_does_not_block_other_forks() {
    // The second of two workers crashes, and is the probe when its slot is scaled away.
    let mut sim = start_cluster(2, |id| match id {
        2 => Some(WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))),
        3 => Some(WorkerScript::never_reporting()),
        _ => None,
    });
    sim.run_for(ms(5_000));
    assert_eq!(sim.serving_workers(), [1]);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.run_until_idle();
    assert_eq!(sim.supervisor.backoff.failures(), 0);
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!(sim.serving_workers(), [4]);
}

#[test]
fn a_single_process_model_is_not_scaled() {
    let one = super::SupervisorConfig { max_workers: 1, ..super::test_config(1) };
    let mut sim = Simulator::new(one, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    sim.run_for(ms(1_000));
    sim.send_command(ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.run_for(ms(1_000));
    assert_eq!((sim.serving_workers(), sim.supervisor.wanted_workers()), (vec![1], 1));
}
