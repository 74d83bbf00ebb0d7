//! Tests of reloads that fail: the old generation keeps serving, and the requester learns the reason.

use super::reload::{failing_boot, refusal_reason, reload_log, start_cluster_for_reload};
use super::*;

#[test]
fn a_reload_with_a_bad_config_changes_nothing() {
    let mut sim = start_cluster_for_reload(test_config(2), |_, _| None);
    sim.config_file = Box::new(|_, _| (ms(5), Err("unknown key wokers".to_string())));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.kept_generations()), (vec![1, 2], Some(vec![1])));
    assert_eq!((refusal_reason(&sim).as_str(), sim.fork_times().len()), ("unknown key wokers", 2));
    assert_eq!(reload_log(&sim), ["reloading for control", "failed"]);
}

#[test]
fn a_reload_whose_workers_cannot_boot_keeps_the_old_generation() {
    let mut sim = start_cluster_for_reload(test_config(3), |_, _| failing_boot());
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.kept_generations()), (vec![1, 2, 3], Some(vec![1])));
    assert_eq!(refusal_reason(&sim), "worker=4 slot=0 gen=2 pid=1004: no");
    assert_eq!((sim.fork_times().len(), logged_backoffs(&sim).len()), (4, 0), "and no crash loop");
}

#[test]
fn every_kind_of_boot_failure_fails_a_reload_and_names_the_reason() {
    let ways: [(WorkerScript, &str); 6] = [
        (WorkerScript::never_reporting(), "was not ready within 10s"),
        (WorkerScript::failing_fork(), "EAGAIN"),
        (
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(3))),
            "exit status: 3",
        ),
        (
            WorkerScript::never_reporting()
                .with_step_at(5, WorkerStep::Exit(exit_by_signal(SIGSEGV))),
            "signal: 11 (SIGSEGV)",
        ),
        (WorkerScript::never_reporting().with_step_at(5, WorkerStep::BreakProtocol), "noise"),
        (
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Retire),
            "retired before it was ready",
        ),
    ];
    for (script, reason) in ways {
        let mut sim = start_cluster_for_reload(test_config(2), move |_, _| Some(script.clone()));
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.run_until_idle();
        assert!(refusal_reason(&sim).contains(reason), "{} for {reason}", refusal_reason(&sim));
        assert_eq!((sim.serving_workers(), sim.fork_times().len()), (vec![1, 2], 3), "{reason}");
    }
}

#[test]
fn a_failed_successor_rolls_back_the_earlier_ones() {
    let mut sim = start_cluster_for_reload(test_config(3), |_, slot| {
        (slot == 2).then(failing_boot).flatten()
    });
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_workers(), [7, 8, 3]);
    assert_eq!((sim.serving_generations(), sim.kept_generations()), (vec![1, 1, 1], Some(vec![1])));
    assert_eq!(refusal_reason(&sim), "worker=6 slot=2 gen=2 pid=1006: no");
    assert_eq!(reload_log(&sim), ["reloading for control", "back to 1", "failed"]);
}

#[test]
fn a_new_worker_that_crashes_early_fails_the_reload() {
    let script_for = |_, slot| match slot {
        0 => Some(
            WorkerScript::ready_after_10_ms()
                .with_step_at(15, WorkerStep::Exit(exit_by_signal(SIGSEGV))),
        ),
        _ => Some(WorkerScript::never_reporting().with_step_at(500, WorkerStep::ReportReady)),
    };
    let mut sim = start_cluster_for_reload(test_config(2), script_for);
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert!(refusal_reason(&sim).contains("crashed early: signal: 11"));
    assert_eq!((sim.serving_generations(), logged_backoffs(&sim).len()), (vec![1, 1], 0));
}

#[test]
fn a_failed_rollback_is_repaired_by_the_next_reload() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| {
        let bad = tag.generation == Generation(2) && tag.slot.0 == 1 || (4..6).contains(&tag.id.0);
        if bad {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        } else {
            WorkerScript::ready_after_10_ms()
        }
    };
    let mut sim = Simulator::new(test_config(2), 1, choose_script).start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert!(
        refusal_reason(&sim).contains("rolling back failed too: worker=5"),
        "{:?}",
        refusal_reason(&sim)
    );
    assert_eq!((sim.serving_generations(), sim.kept_generations()), (vec![2, 1], Some(vec![1, 2])));
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), sim.kept_generations()), (vec![3, 3], Some(vec![3])));
}

#[test]
fn a_reload_forgives_a_few_kills_from_outside() {
    // Each new worker is killed as soon as it serves.
    let mut sim = start_cluster_for_reload(test_config(2), |_, _| {
        Some(
            WorkerScript::ready_after_10_ms()
                .with_step_at(15, WorkerStep::Exit(exit_by_signal(SIGKILL))),
        )
    });
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert!(refusal_reason(&sim).contains("signal: 9"));
    assert_eq!(sim.serving_generations(), [1, 1]);
    let mut sim = start_cluster_for_reload(test_config(1), |_, _| None);
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_for(ms(6));
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.replies().len()), (vec![3], 1));
    assert!(sim.replies()[0].1.is_ok());
}

#[test]
fn a_failed_reload_restores_the_old_config() {
    let mut sim = start_cluster_for_reload(test_config(1), |_, _| failing_boot());
    let before = sim.supervisor.config.clone();
    sim.config_file =
        Box::new(|_, _| (ms(5), Ok(SupervisorConfig { boot_timeout: ms(1), ..test_config(1) })));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.supervisor.config, before);
}
