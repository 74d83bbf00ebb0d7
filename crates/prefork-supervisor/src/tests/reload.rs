//! Tests of reloads: a new worker is ready before the old one drains.

use super::*;

/// Starts a cluster and lets it serve. `script_for` gives workers of later generations another script, by generation
/// and slot.
pub(super) fn start_cluster_for_reload(
    config: SupervisorConfig,
    script_for: impl Fn(u64, u32) -> Option<WorkerScript> + 'static,
) -> Simulator {
    let choose_script = move |tag: WorkerTag, _: &mut TestRng| {
        let script_for =
            (tag.generation.0 > 1).then(|| script_for(tag.generation.0, tag.slot.0)).flatten();
        script_for.unwrap_or_else(WorkerScript::ready_after_10_ms)
    };
    let mut sim = Simulator::new(config, 1, choose_script).start();
    sim.run_for(ms(5_000));
    sim
}

pub(super) fn failing_boot() -> Option<WorkerScript> {
    Some(
        WorkerScript::never_reporting()
            .with_step_at(4, WorkerStep::ReportBootFailed)
            .with_step_at(5, WorkerStep::Exit(exit_code(70))),
    )
}

pub(super) fn reload_log(sim: &Simulator) -> Vec<String> {
    sim.logged(|event| match event {
        LogEvent::Reloading { by } => Some(format!("reloading for {by}")),
        LogEvent::Reloaded { generation, workers, .. } => {
            Some(format!("{workers} of {generation}"))
        }
        LogEvent::RollingBack { to } => Some(format!("back to {to}")),
        LogEvent::ReloadFailed { .. } => Some("failed".to_string()),
        _ => None,
    })
}

/// Returns why the only command was refused.
pub(super) fn refusal_reason(sim: &Simulator) -> String {
    let [(_, Err(reason))] = &sim.replies()[..] else { panic!("{:?}", sim.replies()) };
    reason.clone()
}

#[test]
fn a_reload_replaces_every_worker_and_replies() {
    let mut sim = start_cluster_for_reload(test_config(3), |_, _| None);
    sim.send_command_with_reply(7, ClusterCommand::Reload);
    assert_eq!(sim.times_of_action(&Action::ReadConfig(Generation(2))), [ms(5_000)]);
    // One at a time, and each drains as soon as its successor is ready.
    sim.run_for(ms(16));
    assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(1))), [ms(5_015)]);
    assert_eq!((sim.serving_workers(), sim.replies()), (vec![4, 2, 3], vec![]));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![4, 5, 6], vec![2, 2, 2]));
    assert_eq!(exit_causes(&sim), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    let done = "reloaded: 3 workers of generation 2 serve".to_string();
    assert_eq!((sim.replies(), sim.kept_generations()), (vec![(7, Ok(done))], Some(vec![2])));
    assert_eq!(reload_log(&sim), ["reloading for control", "3 of 2"]);
    assert_eq!((sim.supervisor.restart_count(), logged_backoffs(&sim).len()), (0, 0));
    // A worker that dies now is replaced by one of the new generation.
    sim.exit_worker_now(5, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [2, 2, 2]);
}

#[test]
fn many_reload_commands_cause_two_reloads() {
    let mut sim = start_cluster_for_reload(test_config(2), |_, _| None);
    for reply_id in 0..50 {
        if reply_id % 2 == 0 {
            sim.send_command_with_reply(reply_id, ClusterCommand::Reload)
        } else {
            sim.send_command(ClusterCommand::Reload)
        }
        sim.run_for(ms(reply_id % 5 / 4));
    }
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [3, 3]);
    assert_eq!(reload_log(&sim).iter().filter(|reply| reply.starts_with("reloading")).count(), 2);
    let tickets: Vec<u64> = sim.replies().into_iter().map(|(reply_id, _)| reply_id).collect();
    assert_eq!(tickets, (0..50).step_by(2).collect::<Vec<_>>());
    assert!(sim.replies().iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn a_reload_ends_a_crash_loop() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match (tag.generation.0, tag.id.0) {
        (1, 4..) => WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1))),
        _ => WorkerScript::ready_after_10_ms(),
    };
    let mut sim = Simulator::new(test_config(3), 1, choose_script).start();
    sim.run_for(ms(5_000));
    for worker in 1..=3 {
        sim.exit_worker_now(worker, exit_by_signal(SIGSEGV));
    }
    sim.run_for(ms(20_000));
    assert_eq!(sim.serving_workers().len(), 0);
    let asked = sim.now;
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    while sim.replies().is_empty() {
        sim.run_step();
    }
    // It does not wait for the back-off delay.
    assert!(sim.now - asked < ms(100) && sim.replies()[0].1.is_ok());
    assert_eq!(sim.serving_generations(), [2, 2, 2]);
    sim.run_until_idle();
    assert_eq!(
        (sim.supervisor.backoff.failures(), sim.supervisor.next_deadline()),
        (0, None),
        "forgotten"
    );
}

#[test]
fn a_reload_during_boot_replaces_hanging_workers() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match tag.generation.0 {
        1 => WorkerScript::never_reporting(),
        _ => WorkerScript::ready_after_10_ms(),
    };
    let mut sim = Simulator::new(test_config(2), 1, choose_script).start();
    sim.run_for(ms(1_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_generations(), sim.supervisor.phase),
        (vec![2, 2], ClusterPhase::Running)
    );
    assert_eq!(exit_causes(&sim), [(1, ExitCause::Superseded), (2, ExitCause::Superseded)]);
    assert_eq!(sim.times_of_action(&Action::Log(LogEvent::AllReady { workers: 2 })).len(), 1);
}

#[test]
fn a_reload_respects_surge_and_max_unavailable() {
    // Surge, max_unavailable, and the numbers of booting and of serving workers once the reload is under way.
    let cases = [
        (1, 0, (1, 4)),
        (2, 0, (2, 4)),
        (0, 1, (1, 3)),
        (1, 1, (2, 3)),
        (9, 9, (4, 4)),
        (0, 0, (1, 4)),
    ];
    for (surge, max_unavailable, expected) in cases {
        let config = SupervisorConfig { surge, max_unavailable, ..test_config(4) };
        let mut sim = start_cluster_for_reload(config, |_, _| None);
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.run_for(ms(10));
        let boots = sim.supervisor.workers.iter().filter(|m| m.ready_at.is_none()).count();
        assert_eq!((boots, sim.serving_workers().len()), expected, "{surge} and {max_unavailable}");
        while sim.replies().is_empty() {
            sim.run_step();
            assert!(sim.serving_workers().len() >= 4 - max_unavailable.min(4) as usize);
        }
        assert_eq!(sim.serving_generations(), [2; 4]);
    }
}

#[test]
fn a_slot_is_not_reloaded_while_its_last_worker_still_drains() {
    let mut sim = Simulator::new(test_config(1), 1, |tag, _| {
        if tag.id.0 == 1 {
            WorkerScript::ready_after_10_ms().never_draining()
        } else {
            WorkerScript::ready_after_10_ms()
        }
    })
    .start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    sim.send_command_with_reply(2, ClusterCommand::Reload);
    sim.run_until_idle();
    // Worker 1 is killed six seconds after its drain began.
    assert_eq!(sim.fork_times(), [ms(0), ms(5_005), ms(11_016)]);
    assert_eq!((sim.replies().len(), sim.serving_generations()), (2, vec![3]));
}

#[test]
fn a_reload_changes_the_number_of_workers_when_it_has_succeeded() {
    for (workers, scaled) in [(4, vec![2; 4]), (1, vec![2])] {
        let mut sim = start_cluster_for_reload(test_config(2), |_, _| None);
        sim.config_file = Box::new(move |_, _| (ms(5), Ok(test_config(workers))));
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.run_until_idle();
        assert_eq!((sim.serving_generations(), sim.supervisor.wanted_workers()), (scaled, workers));
        let mut sim = start_cluster_for_reload(test_config(2), |_, _| failing_boot());
        sim.config_file = Box::new(move |_, _| (ms(5), Ok(test_config(workers))));
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.run_until_idle();
        assert_eq!((sim.serving_generations(), sim.supervisor.wanted_workers()), (vec![1, 1], 2));
    }
}

#[test]
fn a_stop_cancels_a_reload() {
    for after in [0, 5, 6, 12, 15, 20, 26, 40] {
        for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
            let mut sim = start_cluster_for_reload(test_config(2), |_, slot| {
                (slot == 1).then(failing_boot).flatten()
            });
            sim.send_command_with_reply(1, ClusterCommand::Reload);
            sim.send_command_with_reply(2, ClusterCommand::Reload);
            sim.run_for(ms(after));
            sim.send_command_with_reply(3, command);
            sim.send_command_with_reply(4, ClusterCommand::Reload);
            sim.run_until_idle();
            assert_eq!(sim.exit, Some(ShutdownReason::StopRequested), "after {after} ms");
            let refused = |reply_id| {
                let stopping = Err("the cluster is stopping".to_string());
                sim.replies().contains(&(reply_id, stopping))
            };
            assert!(refused(4) && (refused(1) || after >= 26), "{:?}", sim.replies());
            assert_eq!(sim.replies().len(), 4);
        }
    }
}
