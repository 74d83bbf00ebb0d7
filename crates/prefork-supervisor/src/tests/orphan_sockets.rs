//! Tests of slots with sockets of their own: a sibling accepts for a worker that cannot.

use proptest::prelude::*;

use super::random_commands::{random_commands, random_limits, run_command, with_limits_of};
use super::random_workers::{random_configs, stop_within_bounds};
use super::reload::failing_boot;
use super::worker_kinds::random_kinds;
use super::*;
use crate::worker_identity::Slot;

fn slot_socket_config(workers: u32) -> SupervisorConfig {
    SupervisorConfig { has_socket_per_slot: true, ..test_config(workers) }
}

/// Starts a cluster of workers with a socket each, and lets them serve for longer than `min_uptime`.
fn start_cluster_with_slot_sockets(workers: u32) -> Simulator {
    let mut sim =
        Simulator::new(slot_socket_config(workers), 1, |_, _| WorkerScript::ready_after_10_ms())
            .start();
    sim.run_for(ms(5_000));
    sim.log.clear();
    sim
}

/// Returns which slot is adopted by which worker.
fn adopters(sim: &Simulator) -> Vec<(u32, u64)> {
    sim.supervisor.slot_adopters().map(|(slot, worker)| (slot.0, worker.0)).collect()
}

/// Returns the actions that adopt and release slots, with their times.
fn adoption_actions(sim: &Simulator) -> Vec<(Duration, Action)> {
    let ours =
        |action: &Action| matches!(action, Action::AdoptSlot { .. } | Action::ReleaseSlot { .. });
    sim.log.iter().filter(|(_, action)| ours(action)).cloned().collect()
}

fn adopt_action(worker: u64, slot: u32) -> Action {
    Action::AdoptSlot { worker: WorkerId(worker), slot: Slot(slot) }
}

fn release_action(worker: u64, slot: u32) -> Action {
    Action::ReleaseSlot { worker: WorkerId(worker), slot: Slot(slot) }
}

#[test]
fn a_sibling_adopts_the_slot_until_the_replacement_is_ready() {
    let mut sim = start_cluster_with_slot_sockets(3);
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    assert_eq!(adopters(&sim), [(1, 1)]);
    sim.run_for(ms(100));
    assert_eq!(sim.serving_workers(), [1, 4, 3]);
    assert_eq!(
        adoption_actions(&sim),
        [(ms(5_000), adopt_action(1, 1)), (ms(5_010), release_action(1, 1))]
    );
}

#[test]
fn the_first_ready_worker_adopts_all_other_slots() {
    let script = |tag: WorkerTag, _: &mut TestRng| match tag.slot.0 {
        1 => WorkerScript::never_reporting().with_step_at(50, WorkerStep::ReportReady),
        _ => WorkerScript::never_reporting().with_step_at(100, WorkerStep::ReportReady),
    };
    let mut sim = Simulator::new(slot_socket_config(3), 1, script).start();
    sim.run_for(ms(60));
    assert_eq!(adopters(&sim), [(0, 2), (2, 2)]);
    sim.run_for(ms(60));
    assert_eq!(adopters(&sim), []);
}

#[test]
fn siblings_adopt_the_slots_of_a_crash_loop() {
    let script = |tag: WorkerTag, _: &mut TestRng| match tag.id.0 {
        1..=3 => WorkerScript::ready_after_10_ms(),
        _ => failing_boot().expect("a script"),
    };
    let mut sim = Simulator::new(slot_socket_config(3), 1, script).start();
    sim.run_for(ms(5_000));
    sim.exit_worker_now(3, exit_by_signal(SIGSEGV));
    sim.run_for(ms(20_000));
    assert_eq!(adopters(&sim), [(2, 1)]);
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    assert_eq!(adopters(&sim), [(0, 2), (2, 2)]);
    sim.perform_step_now(2, WorkerStep::Retire);
    assert_eq!(adopters(&sim), [], "no worker is left");
    stop_within_bounds(&mut sim, ClusterCommand::Stop);
}

#[test]
fn a_sibling_adopts_the_slot_of_a_frozen_worker_within_half_a_second() {
    let mut sim = start_cluster_with_slot_sockets(2);
    let frozen = sim.now + ms(37);
    sim.run_for(ms(37));
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.run_for(ms(463));
    let (at, step) = adoption_actions(&sim).pop().expect("a sibling");
    assert_eq!((step, adopters(&sim)), (adopt_action(2, 0), vec![(0, 2)]));
    assert!(at >= ms(5_300) && sim.now - frozen <= ms(500), "{at:?}");
    sim.perform_step_now(1, WorkerStep::Thaw);
    sim.run_for(ms(250));
    assert_eq!(adopters(&sim), []);
    // If all workers are frozen, none can adopt; the first one to recover adopts all slots.
    sim.perform_step_now(1, WorkerStep::Freeze);
    sim.perform_step_now(2, WorkerStep::Freeze);
    sim.run_for(ms(2_000));
    sim.perform_step_now(2, WorkerStep::Thaw);
    sim.run_for(ms(250));
    assert_eq!(adopters(&sim), [(0, 2)]);
}

#[test]
fn a_sibling_adopts_the_slot_of_a_worker_stopped_by_a_signal() {
    let mut sim = start_cluster_with_slot_sockets(2);
    sim.perform_step_now(1, WorkerStep::StopBySignal);
    assert_eq!(adopters(&sim), [(0, 2)]);
    // Its heartbeat stalls as well, and is no longer late when the worker continues.
    sim.run_for(ms(2_000));
    sim.perform_step_now(1, WorkerStep::ContinueBySignal);
    sim.run_for(ms(250));
    assert_eq!(adopters(&sim), []);
}

#[test]
fn suspending_the_whole_container_adopts_no_slots() {
    let mut sim = start_cluster_with_slot_sockets(3);
    sim.suspend_all_for(ms(5_000));
    sim.run_for(ms(6_000));
    assert_eq!(adoption_actions(&sim), []);
}

#[test]
fn a_sibling_adopts_the_slot_of_a_full_worker() {
    let mut sim = start_cluster_with_slot_sockets(2);
    sim.perform_step_now(2, WorkerStep::BecomeFull);
    sim.run_for(ms(200));
    assert_eq!(adopters(&sim), [(1, 1)]);
    sim.perform_step_now(2, WorkerStep::BecomeEmpty);
    sim.run_for(ms(200));
    assert_eq!(adopters(&sim), []);
}

#[test]
fn sockets_of_removed_slots_stay_adopted_and_balanced() {
    let mut sim = start_cluster_with_slot_sockets(6);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(2)));
    sim.run_for(ms(1_000));
    assert_eq!(adopters(&sim), [(2, 1), (3, 2), (4, 1), (5, 2)]);
    sim.exit_worker_now(1, exit_by_signal(SIGKILL));
    assert_eq!(sim.supervisor.slot_adopters().filter(|(_, w)| w.0 == 2).count(), 5);
    sim.run_for(ms(100));
    assert_eq!(sim.serving_workers(), [7, 2]);
    assert_eq!(sim.supervisor.slot_adopters().filter(|(_, w)| w.0 == 2).count(), 2);
    sim.log.clear();
    // The same sockets are used again when there are more workers.
    sim.full_channel_odds = 0;
    while sim.supervisor.wanted_workers() < 6 {
        sim.send_command(ClusterCommand::Scale(ScaleChange::To(6)));
        sim.run_for(ms(1_000));
    }
    let opened = sim.log.iter().filter(|(_, a)| *a == Action::OpenSockets { slots: 6 }).count();
    assert!(opened > 0, "{:?}", sim.log);
    assert_eq!((adopters(&sim), sim.supervisor.orphan_sockets.socket_slots()), (vec![], 6));
}

#[test]
fn scaling_up_waits_for_sockets_and_is_refused_without_them() {
    let mut sim = start_cluster_with_slot_sockets(2);
    sim.send_command_with_reply(1, ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.send_command_with_reply(2, ClusterCommand::Scale(ScaleChange::Up(1)));
    assert_eq!((sim.supervisor.wanted_workers(), sim.replies().len()), (2, 0));
    let reason = "cannot bind".to_string();
    sim.report_event(Event::SocketsOpened { slots: 3, result: Err(reason.clone()) });
    assert_eq!(sim.replies(), [(1, Err(reason))]);
    sim.report_event(Event::SocketsOpened { slots: 3, result: Ok(()) });
    assert_eq!((sim.supervisor.wanted_workers(), sim.replies().len()), (3, 2));
    // A stop refuses waiting commands.
    sim.send_command_with_reply(3, ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.send_command_with_reply(4, ClusterCommand::Stop);
    sim.run_until_idle();
    let third = sim.replies().into_iter().find(|(reply_id, _)| *reply_id == 3);
    assert_eq!(third, Some((3, Err("the cluster is stopping".to_string()))));
}

#[test]
fn a_reload_can_turn_slot_sockets_on_and_off() {
    let mut sim =
        Simulator::new(test_config(3), 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    sim.run_for(ms(5_000));
    assert_eq!(adoption_actions(&sim), []);
    sim.config_file = Box::new(|config, _| {
        (ms(5), Ok(SupervisorConfig { has_socket_per_slot: true, ..config.clone() }))
    });
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    // The old workers share the first socket, and adopt the other slots until the new workers are ready.
    sim.run_for(ms(5));
    assert_eq!(adopters(&sim), [(1, 1), (2, 2)]);
    sim.run_for(ms(1_000));
    assert_eq!((sim.serving_generations(), adopters(&sim)), (vec![2; 3], vec![]));
    sim.config_file = Box::new(|config, _| {
        (ms(5), Ok(SupervisorConfig { has_socket_per_slot: false, ..config.clone() }))
    });
    sim.send_command_with_reply(2, ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    assert_eq!(sim.serving_generations(), [3; 3]);
    let used: std::collections::BTreeSet<u64> = adopters(&sim).iter().map(|a| a.1).collect();
    assert_eq!((adopters(&sim).len(), used.len()), (2, 2));
}

#[test]
fn slot_adoption_is_retried_after_a_full_channel() {
    let mut sim = start_cluster_with_slot_sockets(3);
    sim.exit_worker_now(3, exit_by_signal(SIGKILL));
    assert_eq!(adopters(&sim), [(2, 1)]);
    sim.report_event(Event::AdoptSlotFailed { worker: WorkerId(1), slot: Slot(2) });
    assert_eq!(adopters(&sim), [(2, 2)]);
    sim.run_for(ms(10));
    assert_eq!(adopters(&sim), []);
    sim.report_event(Event::ReleaseSlotFailed { worker: WorkerId(2), slot: Slot(2) });
    sim.run_for(ms(300));
    let logged = |step| adoption_actions(&sim).iter().filter(|(_, action)| *action == step).count();
    // If the slot has several sockets, one may have reached worker 1.
    assert_eq!((logged(release_action(1, 2)), logged(release_action(2, 2))), (1, 2));
}

#[test]
fn an_upgrade_keeps_the_slot_adopters() {
    let mut sim = start_cluster_with_slot_sockets(4);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(2)));
    sim.run_for(ms(1_000));
    assert_eq!(adopters(&sim), [(2, 1), (3, 2)]);
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.run_for(ms(69));
    assert_eq!((sim.upgrade_count, adopters(&sim)), (1, vec![(2, 1), (3, 2)]));
    sim.run_for(ms(1_000));
    assert_eq!((sim.upgrade_count, sim.serving_generations()), (1, vec![2, 2]));
    let used: std::collections::BTreeSet<u64> = adopters(&sim).iter().map(|a| a.1).collect();
    assert_eq!((adopters(&sim).len(), used.len()), (2, 2));
}

#[test]
fn slot_adopters_do_not_change_during_a_stop() {
    let mut sim = start_cluster_with_slot_sockets(3);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.run_for(ms(1_000));
    sim.log.clear();
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!((adoption_actions(&sim), sim.exit), (vec![], Some(ShutdownReason::StopRequested)));
}

/// Returns the announced dispatch targets since the last call, by slot.
fn dispatch_log(sim: &mut Simulator) -> Vec<(u32, Option<u64>)> {
    let targets = sim.log.iter().filter_map(|(_, action)| match action {
        Action::SetDispatchTarget { slot, worker } => Some((slot.0, worker.map(|worker| worker.0))),
        _ => None,
    });
    let targets = targets.collect();
    sim.log.clear();
    targets
}

#[test]
fn connections_are_dispatched_to_workers_that_accept() {
    let mut sim =
        Simulator::new(slot_socket_config(2), 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    assert_eq!(dispatch_log(&mut sim), []);
    sim.run_for(ms(5_000));
    assert_eq!(dispatch_log(&mut sim), [(0, Some(1)), (1, Some(2))]);
    // A worker dies and is replaced.
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    assert_eq!(dispatch_log(&mut sim), [(1, None)]);
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(1, Some(3))]);
    // A frozen worker, and one at its connection limit.
    for (step, back) in
        [(WorkerStep::Freeze, WorkerStep::Thaw), (WorkerStep::BecomeFull, WorkerStep::BecomeEmpty)]
    {
        sim.perform_step_now(1, step);
        sim.run_for(ms(500));
        assert_eq!(dispatch_log(&mut sim), [(0, None)]);
        sim.perform_step_now(1, back);
        sim.run_for(ms(500));
        assert_eq!(dispatch_log(&mut sim), [(0, Some(1))]);
    }
    // A stop by a signal is known at once.
    for (step, steered) in
        [(WorkerStep::StopBySignal, None), (WorkerStep::ContinueBySignal, Some(1))]
    {
        sim.perform_step_now(1, step);
        assert_eq!(dispatch_log(&mut sim), [(0, steered)]);
    }
    // A successor takes over without a gap; a worker that retires accepts no more.
    sim.send_command(ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(0, Some(4)), (1, Some(5))]);
    sim.perform_step_now(4, WorkerStep::Retire);
    assert_eq!(dispatch_log(&mut sim), [(0, None)]);
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(0, Some(6))]);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(1, None)]);
    // During a stop each worker empties its own queue.
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!(dispatch_log(&mut sim), []);
}

/// Starts a cluster of workers that cannot adopt sockets, and lets them serve for longer than `min_uptime`.
fn start_cluster_without_adoption(workers: u32) -> Simulator {
    let config = SupervisorConfig { can_adopt_sockets: false, ..slot_socket_config(workers) };
    let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
    sim.run_for(ms(5_000));
    sim.log.clear();
    sim
}

#[test]
fn no_slot_is_adopted_by_workers_that_cannot() {
    let mut sim = start_cluster_without_adoption(3);
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    assert_eq!(dispatch_log(&mut sim), [(1, None)]);
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(1, Some(4))]);
    sim.perform_step_now(1, WorkerStep::StopBySignal);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.run_for(ms(1_000));
    assert_eq!((adoption_actions(&sim), adopters(&sim)), (vec![], vec![]));
    assert_eq!(dispatch_log(&mut sim), [(0, None), (1, None), (2, None)]);
}

#[test]
fn connections_are_dispatched_away_before_a_worker_drains() {
    for can_adopt_sockets in [true, false] {
        let config = SupervisorConfig { can_adopt_sockets, ..slot_socket_config(2) };
        let mut sim = Simulator::new(config, 1, |_, _| WorkerScript::ready_after_10_ms()).start();
        sim.run_for(ms(5_000));
        sim.log.clear();
        sim.send_command(ClusterCommand::Reload);
        sim.run_for(ms(1_000));
        let order = sim.log.iter().filter_map(|(_, action)| match action {
            Action::SetDispatchTarget { worker, .. } => Some(("to", worker.map(|id| id.0))),
            Action::Drain(worker) => Some(("drain", Some(worker.0))),
            _ => None,
        });
        let order: Vec<_> = order.collect();
        let expected = [("to", 3), ("drain", 1), ("to", 4), ("drain", 2)];
        assert_eq!(order, expected.map(|(what, worker)| (what, Some(worker))));
    }
}

#[test]
fn a_reload_from_one_shared_socket_dispatches_to_the_workers_of_both_generations() {
    let config = SupervisorConfig { can_adopt_sockets: false, ..test_config(2) };
    let mut sim = Simulator::new(config, 1, |tag, _| match tag.id.0 {
        4 => WorkerScript::never_reporting(),
        _ => WorkerScript::ready_after_10_ms(),
    });
    sim = sim.start();
    sim.run_for(ms(5_000));
    assert_eq!(dispatch_log(&mut sim), [], "one socket needs no target");
    sim.config_file = Box::new(|config, _| {
        (ms(5), Ok(SupervisorConfig { has_socket_per_slot: true, ..config.clone() }))
    });
    sim.send_command(ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    assert_eq!(dispatch_log(&mut sim), [(0, Some(1)), (1, Some(2)), (0, Some(3))]);
}

#[test]
fn sockets_without_adopters_are_looked_at_even_for_one_worker_without_limits() {
    let sim = start_cluster_without_adoption(1);
    let next = sim.supervisor.next_deadline().expect("a sample");
    assert!(next - sim.now <= ms(500));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_with_slot_sockets_keep_the_invariants(
        config in random_configs(), limits in random_limits(), seed: u64, ready in 0..=10u64, slots: bool,
        full_channels in 0..6u64, random_commands in random_commands(), now: bool, kinds in random_kinds(),
        can_adopt_sockets: bool,
    ) {
        let config = SupervisorConfig { has_socket_per_slot: slots, can_adopt_sockets, ..with_limits_of(config, limits) };
        let mut sim = Simulator::new(config, seed, move |_, rng| {
            let at = rng.random_below(4_000);
            WorkerScript::random_script(rng, ready)
                .with_step_at(at, WorkerStep::BecomeFull)
                .with_step_at(2 * at, WorkerStep::BecomeEmpty)
        });
        sim.full_channel_odds = full_channels;
        sim.config_file = Box::new(|config, rng| {
            let workers = if rng.random_below(3) == 0 { 1 + rng.random_below(8) as u32 } else { config.workers };
            let has_socket_per_slot = rng.random_below(3) > 0;
            let config = SupervisorConfig { workers, has_socket_per_slot, ..config.clone() };
            let result = if rng.random_below(4) == 0 { Err("no".to_string()) } else { Ok(config) };
            (rng.random_millis(100), result)
        });
        sim.new_binary = Box::new(NewBinary::random_binary);
        let mut sim = sim.with_kinds(kinds).start();
        for (number, (wait, command)) in random_commands.into_iter().enumerate() {
            sim.run_for(ms(wait));
            run_command(&mut sim, number as u64, command);
        }
        stop_within_bounds(&mut sim, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }
}
