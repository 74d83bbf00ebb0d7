//! Tests of upgrades after the exec: what the new binary does with the old binary's workers.

use super::reload::{failing_boot, reload_log, start_cluster_for_reload};
use super::upgrade::{run_until_upgraded, set_new_binary};
use super::*;
use crate::worker_table::WorkerState;

#[test]
fn workers_that_die_during_the_exec_are_replaced() {
    let mut sim = start_serving_cluster(4);
    set_new_binary(&mut sim, 4, 2);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    let dead = 4 - sim.serving_workers().len();
    sim.run_until_idle();
    assert!((1..4).contains(&sim.supervisor.restart_count()), "{dead}");
    assert_eq!(sim.serving_generations(), [2; 4]);
    // All workers die.
    let mut sim = start_serving_cluster(4);
    set_new_binary(&mut sim, 4, 1);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), sim.supervisor.restart_count()), (vec![2; 4], 4));
    assert_eq!(exit_causes(&sim).len(), 4);
}

#[test]
fn after_an_upgrade_old_workers_keep_serving_if_new_ones_cannot_boot() {
    let mut sim = start_cluster_for_reload(test_config(3), |generation, _| {
        (generation == 2).then(failing_boot)?
    });
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![1, 2, 3], vec![1; 3]));
    assert_eq!((reload_log(&sim), sim.upgrade_count), (vec!["failed".to_string()], 1));
    // A worker that dies now can only be replaced by one of the new binary. That is retried for ever.
    sim.exit_worker_now(2, exit_by_signal(SIGSEGV));
    sim.run_for(ms(60_000));
    assert_eq!((sim.serving_workers(), sim.exit), (vec![1, 3], None));
    assert!(logged_backoffs(&sim).len() > 10);
    // Another upgrade brings workers that boot.
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [3; 3]);
}

#[test]
fn after_an_upgrade_ready_workers_stay_if_others_cannot_boot() {
    let mut sim = start_cluster_for_reload(test_config(3), |generation, slot| {
        (generation == 2 && slot == 2).then(failing_boot).flatten()
    });
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    // The old binary is gone and cannot fork workers of the old generation.
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![4, 5, 3], vec![2, 2, 1]));
    assert_eq!(reload_log(&sim), ["failed"]);
    let mut kept = sim.kept_generations().unwrap_or_default();
    kept.sort_unstable();
    assert_eq!(kept, [1, 2]);
    // A worker that dies is replaced by one of the new generation, and a reload replaces the rest.
    sim.exit_worker_now(4, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [2, 2, 1]);
    sim.send_command_with_reply(2, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), sim.kept_generations()), (vec![3; 3], Some(vec![3])));
}

#[test]
fn generation_numbers_of_failed_reloads_are_not_reused() {
    // After a failed reload all workers are of generation 1, and number 2 is used up.
    let mut sim = start_cluster_for_reload(test_config(2), |generation, _| {
        (generation == 2).then(failing_boot)?
    });
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [1, 1]);
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [3, 3]);
}

#[test]
fn an_upgrade_replaces_workers_of_a_failed_rollback() {
    // Slot 0 goes to generation 2, slot 1 does not, and slot 0 cannot be rolled back: generations 2 and 1 serve.
    let choose_script =
        |tag: WorkerTag, _: &mut TestRng| match (tag.generation.0, tag.slot.0, tag.id.0) {
            (2, 1, _) | (1, _, 3..) => failing_boot().unwrap_or_else(WorkerScript::never_reporting),
            _ => WorkerScript::ready_after_10_ms(),
        };
    let mut sim = Simulator::new(test_config(2), 1, choose_script).start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![3, 2], vec![2, 1]));
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [3, 3]);
}

#[test]
fn an_upgrade_changes_the_number_of_workers_when_it_has_succeeded() {
    for (workers, all) in [(5, vec![2; 5]), (1, vec![2])] {
        let mut sim = start_serving_cluster(3);
        set_new_binary(&mut sim, workers, 0);
        sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
        run_until_upgraded(&mut sim);
        // The number does not change before the new workers serve.
        assert_eq!(sim.supervisor.wanted_workers(), 3);
        sim.run_until_idle();
        assert_eq!((sim.serving_generations(), sim.supervisor.wanted_workers()), (all, workers));
        // If the new workers cannot boot, the number stays as it was.
        let mut sim = start_cluster_for_reload(test_config(3), |_, _| failing_boot());
        set_new_binary(&mut sim, workers, 0);
        sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
        sim.run_until_idle();
        assert_eq!((sim.serving_generations(), sim.supervisor.wanted_workers()), (vec![1; 3], 3));
    }
}

#[test]
fn draining_booting_and_killed_workers_end_after_an_upgrade() {
    // Worker 1 drains and never finishes, 2 has closed its channel and lives on, 3 is being killed, 4 serves; 5 to 7,
    // in the slots of the first three, boot for ever.
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match (tag.generation.0, tag.id.0) {
        (1, 1 | 2) => WorkerScript::ready_after_10_ms().never_draining(),
        (1, 5..) => WorkerScript::never_reporting().never_draining(),
        _ => WorkerScript::ready_after_10_ms(),
    };
    let mut sim = Simulator::new(test_config(4), 1, choose_script).start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_for(ms(49));
    sim.perform_step_now(1, WorkerStep::Retire);
    sim.perform_step_now(2, WorkerStep::CloseChannel);
    sim.report_event(Event::ProtocolError { worker: WorkerId(3), reason: "noise".to_string() });
    sim.exit_worker_now(3, exit_by_signal(SIGKILL));
    run_until_upgraded(&mut sim);
    assert_eq!(sim.serving_workers(), [4]);
    let serves = |state: WorkerState| matches!(state, WorkerState::Serving);
    let others = sim.supervisor.workers.iter().filter(|m| m.tag.id.0 < 7 && !serves(m.state));
    assert!(
        others.count() >= 3 && sim.draining_workers().contains(&1),
        "{:?}",
        sim.draining_workers()
    );
    let adopted = sim.now;
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), sim.supervisor.workers.len()), (vec![2; 4], 4));
    // At most one graceful timeout later, counted from the upgrade.
    assert!(sim.now - adopted < ms(2 * 6_000 + 1_000), "{:?}", sim.now - adopted);
}

#[test]
fn a_stop_right_after_an_upgrade_stops_all_workers() {
    for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
        let mut sim = start_serving_cluster(3);
        set_new_binary(&mut sim, 3, 3);
        sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
        run_until_upgraded(&mut sim);
        sim.send_command_with_reply(2, command);
        sim.run_until_idle();
        assert_eq!((sim.exit, sim.replies().len()), (Some(ShutdownReason::StopRequested), 2));
    }
}
