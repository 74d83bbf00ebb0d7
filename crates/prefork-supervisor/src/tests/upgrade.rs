//! Tests of upgrades until the exec: a checked binary takes over, and a failure changes nothing.

use super::reload::{refusal_reason, reload_log};
use super::*;

const UPGRADE_ACTIONS: [Action; 2] = [Action::StartUpgradeCheck, Action::ExecNewBinary];

fn upgrade_failures(sim: &Simulator) -> Vec<String> {
    sim.logged(|event| match event {
        LogEvent::UpgradeFailed { reason } => Some(reason.clone()),
        _ => None,
    })
}

/// Asserts that a failed upgrade of three workers of generation 1 has changed nothing.
fn assert_cluster_unchanged(sim: &Simulator) {
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![1, 2, 3], vec![1; 3]));
    assert_eq!(
        (sim.upgrade_count, sim.is_reloading_or_upgrading(), sim.supervisor.next_deadline()),
        (0, false, None)
    );
    assert_eq!((sim.supervisor.reload.generation(), sim.fork_times().len()), (Generation(1), 3));
}

/// Sets a working new binary with this number of workers. One in `death_odds` workers dies during the exec.
pub(super) fn set_new_binary(sim: &mut Simulator, workers: u32, death_odds: u64) {
    sim.new_binary = Box::new(move |config, _| {
        let mut binary = NewBinary::working_binary(config);
        binary.exec.result = Ok(SupervisorConfig { workers, ..config.clone() });
        binary.exec.death_odds = death_odds;
        binary
    });
}

/// Runs until the new binary has started.
pub(super) fn run_until_upgraded(sim: &mut Simulator) {
    let images = sim.upgrade_count;
    while sim.upgrade_count == images {
        assert!(sim.run_step(), "the new binary never started");
    }
}

#[test]
fn an_upgrade_replaces_the_binary_and_all_workers() {
    let mut sim = start_serving_cluster(3);
    sim.send_command_with_reply(6, ClusterCommand::Upgrade { wait: true });
    sim.send_command_with_reply(7, ClusterCommand::Upgrade { wait: false });
    run_until_upgraded(&mut sim);
    let done = "the new binary passed its check and takes over now".to_string();
    assert_eq!(sim.replies(), [(7, Ok(done))]);
    assert_eq!((sim.upgrade_actions(), sim.upgrade_count), (UPGRADE_ACTIONS.to_vec(), 1));
    // The old workers serve until they are replaced.
    assert_eq!(
        (sim.serving_workers(), sim.supervisor.phase),
        (vec![1, 2, 3], ClusterPhase::Running)
    );
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.serving_generations()), (vec![4, 5, 6], vec![2; 3]));
    let served = "upgraded: 3 workers of generation 2 serve".to_string();
    assert_eq!(
        sim.replies().last(),
        Some(&(6, Ok(served))),
        "waiting requesters get their reply now"
    );
    assert_eq!(exit_causes(&sim), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    assert_eq!(
        (reload_log(&sim), sim.kept_generations()),
        (vec!["3 of 2".to_string()], Some(vec![2]))
    );
    assert!(upgrade_failures(&sim).is_empty() && sim.supervisor.restart_count() == 0);
}

#[test]
fn several_upgrades_follow_each_other() {
    let mut sim = start_serving_cluster(2);
    for number in 1..=4 {
        sim.send_command_with_reply(number, ClusterCommand::Upgrade { wait: true });
        sim.run_until_idle();
        assert_eq!(sim.serving_generations(), [1 + number; 2]);
    }
    assert_eq!((sim.upgrade_count, sim.serving_workers()), (4, vec![9, 10]));
}

#[test]
fn a_failed_upgrade_check_changes_nothing() {
    let mut sim = start_serving_cluster(3);
    sim.new_binary = Box::new(|config, _| NewBinary {
        check: Some((ms(30), Err("it is of another libc".to_string()))),
        ..NewBinary::working_binary(config)
    });
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!(refusal_reason(&sim), "it is of another libc");
    assert_eq!(upgrade_failures(&sim), ["it is of another libc"]);
    assert_eq!(sim.upgrade_actions(), [Action::StartUpgradeCheck]);
    assert_cluster_unchanged(&sim);
}

#[test]
fn a_new_binary_that_hangs_is_stopped_at_the_check_deadline() {
    let mut sim = start_serving_cluster(3);
    sim.new_binary =
        Box::new(|config, _| NewBinary { check: None, ..NewBinary::working_binary(config) });
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    // The boot timeout, and five seconds to load the binary.
    assert_eq!(sim.times_of_action(&Action::StopUpgradeCheck), [ms(5_000 + 10_000 + 5_000)]);
    assert!(refusal_reason(&sim).contains("not ready in time"), "{}", refusal_reason(&sim));
    assert_eq!((upgrade_failures(&sim).len(), sim.upgrade_actions().len()), (1, 2));
    assert_cluster_unchanged(&sim);
    // Another upgrade may follow.
    sim.new_binary = Box::new(|config, _| NewBinary::working_binary(config));
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!((sim.serving_generations(), sim.upgrade_count), (vec![2; 3], 1));
}

#[test]
fn an_upgrade_check_result_sent_in_time_but_read_late_counts() {
    let mut sim = start_serving_cluster(3);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.stop_primary_for(ms(60_000));
    sim.run_until_idle();
    assert_eq!(
        (sim.upgrade_actions(), sim.serving_generations()),
        (UPGRADE_ACTIONS.to_vec(), vec![2; 3])
    );
    // It counts if another event is reported before it.
    let mut sim = start_serving_cluster(3);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.now += ms(60_000);
    sim.report_event(Event::Retiring { worker: WorkerId(2) });
    assert!(sim.replies().is_empty());
    sim.report_event(Event::UpgradeCheckPassed);
    sim.run_until_idle();
    assert_eq!((sim.upgrade_actions(), sim.upgrade_count), (UPGRADE_ACTIONS.to_vec(), 1));
}

#[test]
fn an_upgrade_check_result_after_its_timeout_is_ignored() {
    for verdict in
        [Event::UpgradeCheckPassed, Event::UpgradeFailed { reason: "killed".to_string() }]
    {
        let mut sim = start_serving_cluster(3);
        sim.new_binary =
            Box::new(|config, _| NewBinary { check: None, ..NewBinary::working_binary(config) });
        sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
        sim.run_for(ms(15_000));
        assert_eq!(sim.replies().len(), 1);
        sim.report_event(verdict);
        sim.run_until_idle();
        assert_eq!((upgrade_failures(&sim).len(), sim.upgrade_actions().len()), (1, 2));
        assert_cluster_unchanged(&sim);
    }
}

#[test]
fn an_exec_that_fails_changes_nothing() {
    let mut sim = start_serving_cluster(3);
    sim.new_binary = Box::new(|config, _| NewBinary {
        exec: SimulatedExec::new(ms(5), ms(0), Err("EACCES".to_string())),
        ..NewBinary::working_binary(config)
    });
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_for(ms(52));
    // The check has passed and the exec is to come: a command that does not wait is answered now.
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.send_command_with_reply(3, ClusterCommand::Upgrade { wait: false });
    sim.report_event(Event::UpgradeCheckPassed);
    assert_eq!(sim.replies().len(), 1);
    sim.run_until_idle();
    assert_eq!(
        (upgrade_failures(&sim), sim.upgrade_actions()),
        (vec!["EACCES".into()], UPGRADE_ACTIONS.to_vec())
    );
    assert_cluster_unchanged(&sim);
}

#[test]
fn upgrade_commands_during_a_check_share_its_result() {
    for fit in [true, false] {
        let mut sim = start_serving_cluster(2);
        let verdict = if fit { Ok(()) } else { Err("unfit".to_string()) };
        sim.new_binary = Box::new(move |config, _| NewBinary {
            check: Some((ms(100), verdict.clone())),
            ..NewBinary::working_binary(config)
        });
        for reply_id in 0..5 {
            sim.send_command_with_reply(reply_id, ClusterCommand::Upgrade { wait: true });
            sim.send_command(ClusterCommand::Upgrade { wait: true });
            sim.run_for(ms(10));
        }
        sim.run_until_idle();
        assert_eq!(sim.times_of_action(&Action::StartUpgradeCheck), [ms(5_000)]);
        let answers = sim.replies().into_iter().map(|(reply_id, reply)| (reply_id, reply.is_ok()));
        assert_eq!(answers.collect::<Vec<_>>(), (0..5).map(|t| (t, fit)).collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_cancels_an_upgrade_check() {
    // During the check, while it hangs, and between the check and the exec.
    for (after, hangs) in [(0, false), (49, false), (12_000, true), (52, false)] {
        for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
            let mut sim = start_serving_cluster(3);
            sim.new_binary = Box::new(move |config, _| NewBinary {
                check: Some((ms(50), Ok(()))).filter(|_| !hangs),
                exec: SimulatedExec::new(ms(5), ms(20), Ok(config.clone())),
            });
            sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
            sim.run_for(ms(after));
            sim.send_command_with_reply(2, command);
            assert_eq!(sim.times_of_action(&Action::StopUpgradeCheck), [ms(5_000 + after)]);
            sim.send_command_with_reply(3, ClusterCommand::Upgrade { wait: true });
            sim.run_until_idle();
            assert_eq!((sim.exit, sim.upgrade_count), (Some(ShutdownReason::StopRequested), 0));
            assert_eq!((sim.replies().len(), upgrade_failures(&sim).len()), (3, 2));
        }
    }
}

#[test]
fn upgrade_commands_during_a_reload_cause_one_upgrade() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    for reply_id in 2..6 {
        sim.send_command_with_reply(reply_id, ClusterCommand::Upgrade { wait: reply_id > 2 });
        sim.run_for(ms(7));
    }
    sim.send_command(ClusterCommand::Upgrade { wait: false });
    sim.run_until_idle();
    let answers = sim.replies().into_iter().map(|(reply_id, reply)| (reply_id, reply.is_ok()));
    let expected: Vec<_> = (1..6).map(|reply_id| (reply_id, true)).collect();
    assert_eq!((answers.collect::<Vec<_>>(), sim.upgrade_count), (expected, 1));
    assert_eq!(sim.serving_generations(), [3, 3]);
}

#[test]
fn a_stop_refuses_a_queued_upgrade() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.send_command_with_reply(2, ClusterCommand::Upgrade { wait: true });
    sim.send_command_with_reply(3, ClusterCommand::Stop);
    sim.run_until_idle();
    let refused: Vec<u64> =
        sim.replies().into_iter().filter(|(_, reply)| reply.is_err()).map(|(t, _)| t).collect();
    assert_eq!((refused.contains(&2), sim.upgrade_count), (true, 0), "{refused:?}");
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn an_upgrade_is_refused_before_all_have_been_ready() {
    let mut sim = start_cluster(2, |_| None);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    assert!(refusal_reason(&sim).contains("not all been ready"));
    assert!(sim.upgrade_actions().is_empty());
}

#[test]
fn commands_during_an_upgrade_are_refused_done_or_queued() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.send_command_with_reply(2, ClusterCommand::Reload);
    assert!(refusal_reason(&sim).contains("an upgrade is under way"));
    sim.send_command_with_reply(3, ClusterCommand::Scale(ScaleChange::Up(1)));
    assert!(sim.replies()[1].1.is_ok());
    set_new_binary(&mut sim, 2, 0);
    run_until_upgraded(&mut sim);
    // The rollout after the upgrade counts as a reload.
    sim.send_command_with_reply(4, ClusterCommand::Reload);
    sim.send_command_with_reply(5, ClusterCommand::Upgrade { wait: true });
    sim.send_command_with_reply(6, ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.run_until_idle();
    let answers: Vec<_> = sim.replies().into_iter().map(|(t, reply)| (t, reply.is_ok())).collect();
    // The second upgrade waits for the first one and for the reload.
    let expected = [(2, false), (3, true), (6, false), (1, true), (4, true), (5, true)];
    assert_eq!(answers, expected);
    assert_eq!(
        (sim.upgrade_count, sim.serving_generations()),
        (2, vec![4, 4, 4]),
        "the number stays as scaled"
    );
}
