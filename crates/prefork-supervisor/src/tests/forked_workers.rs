//! Tests of workers that the program adds, of their variables, and of replacements that it puts off.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::upgrade::run_until_upgraded;
use super::*;
use crate::Supervisor;
use crate::worker_identity::Slot;
use crate::{RecycleLimits, WorkerKindConfig};

/// Returns a scale change that adds a worker with this role, and the worker's id.
fn add_role(sim: &mut Simulator, role: &str) -> (WorkerId, ScaleChange) {
    let id = sim.supervisor.reserve_worker_id();
    (id, ScaleChange::AddWorker(id, vec![("ROLE".to_string(), role.to_string())]))
}

/// Adds a `web` worker with this role and returns its id.
fn fork_role(sim: &mut Simulator, role: &str) -> WorkerId {
    let (id, change) = add_role(sim, role);
    sim.send_command(ClusterCommand::Scale(change));
    id
}

/// Returns the role of each worker that serves, in the order of the slots.
fn serving_roles(sim: &Simulator) -> Vec<String> {
    let workers = sim.serving_workers().into_iter().map(WorkerId);
    let tags = workers.filter_map(|id| Some(sim.supervisor.workers.get(id)?.tag));
    let roles = tags.map(|tag| {
        let variable = sim.supervisor.worker_environment(tag).first();
        variable.map_or(String::new(), |(_, role)| role.clone())
    });
    roles.collect()
}

fn with_configured_workers(sim: &mut Simulator, workers: u32) {
    sim.config_file =
        Box::new(move |config, _| (ms(5), Ok(SupervisorConfig { workers, ..config.clone() })));
    sim.new_binary = Box::new(move |config, _| {
        NewBinary::working_binary(&SupervisorConfig { workers, ..config.clone() })
    });
}

fn scaled(sim: &Simulator) -> Vec<(u32, u32)> {
    sim.logged(|event| match event {
        LogEvent::Scaled { from, to, .. } => Some((*from, *to)),
        _ => None,
    })
}

#[test]
fn workers_added_by_the_program_keep_their_roles_over_reloads() {
    let mut sim = start_serving_cluster(1);
    fork_role(&mut sim, "mail");
    fork_role(&mut sim, "cron");
    sim.run_until_idle();
    for generation in 2..4 {
        sim.send_command(ClusterCommand::Reload);
        sim.run_until_idle();
        assert_eq!(sim.serving_generations(), [generation; 3]);
        assert_eq!(serving_roles(&sim), ["", "mail", "cron"]);
    }
    assert_eq!(scaled(&sim), [(1, 2), (2, 3)]);
}

#[test]
fn workers_added_by_the_program_come_on_top_of_a_changed_number() {
    let mut sim = start_serving_cluster(3);
    fork_role(&mut sim, "mail");
    fork_role(&mut sim, "cron");
    sim.run_until_idle();
    with_configured_workers(&mut sim, 4);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["", "", "", "mail", "cron", ""]);
    with_configured_workers(&mut sim, 1);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    let mut roles = serving_roles(&sim);
    roles.sort();
    assert_eq!(
        (roles, sim.serving_generations()),
        (["", "cron", "mail"].map(String::from).to_vec(), vec![3; 3])
    );
}

#[test]
fn a_failed_reload_leaves_roles_where_they_were() {
    let mut sim =
        Simulator::new(test_config(3), 1, |tag, _| match (tag.generation.0, tag.slot.0) {
            (2, 4) => {
                WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
            }
            _ => WorkerScript::ready_after_10_ms(),
        })
        .start();
    sim.run_for(ms(5_000));
    fork_role(&mut sim, "mail");
    fork_role(&mut sim, "cron");
    sim.run_for(ms(1_000));
    with_configured_workers(&mut sim, 1);
    sim.send_command(ClusterCommand::Reload);
    // All slots but the last have been taken over by then, and are rolled back.
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["", "", "", "mail", "cron"]);
    assert_eq!(sim.serving_generations(), [1; 5]);
    assert_eq!(sim.supervisor.configured_workers, 3);
}

#[test]
fn workers_added_by_the_program_survive_an_upgrade() {
    let mut sim = start_serving_cluster(1);
    fork_role(&mut sim, "mail");
    sim.run_until_idle();
    sim.send_command(ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    sim.run_until_idle();
    assert_eq!(
        (serving_roles(&sim), sim.serving_generations()),
        (vec![String::new(), "mail".to_string()], vec![2; 2])
    );
    with_configured_workers(&mut sim, 2);
    sim.send_command(ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["", "mail", ""]);
}

#[test]
fn added_workers_of_another_kind_survive_an_upgrade() {
    let kind = WorkerKindConfig {
        name: "consumer",
        workers: 1,
        demand_range: None,
        limits: RecycleLimits::default(),
        is_kept_by_reload: false,
    };
    let mut sim = Simulator::new(test_config(1), 1, |_, _| WorkerScript::ready_after_10_ms())
        .with_kinds(vec![kind.clone()])
        .start();
    sim.run_for(ms(5_000));
    let (_, change) = add_role(&mut sim, "mail");
    sim.send_command(ClusterCommand::ScaleKind("consumer".to_string(), change));
    sim.run_until_idle();
    sim.kinds = vec![WorkerKindConfig { workers: 2, ..kind }];
    sim.send_command(ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["", "", "mail", ""]);
    assert_eq!(sim.supervisor.wanted_by_kind(), [("consumer", 3)]);
}

#[test]
fn a_worker_added_during_a_reload_is_forked_after_it() {
    let mut sim = start_serving_cluster(1);
    sim.send_command(ClusterCommand::Reload);
    let worker = fork_role(&mut sim, "mail");
    assert_eq!(sim.fork_times().len(), 1);
    sim.run_until_idle();
    assert_eq!(
        (serving_roles(&sim), refusals(&sim)),
        (vec![String::new(), "mail".to_string()], vec![])
    );
    assert!(sim.serving_workers().contains(&worker.0));
}

#[test]
fn a_worker_that_will_not_be_forked_is_refused() {
    // The first slot crashes at once, so that the added worker waits for the back-off.
    let crash = WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)));
    let mut sim = start_cluster(1, move |_| Some(crash.clone()));
    sim.run_for(ms(10));
    let scaled_away = fork_role(&mut sim, "mail");
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    assert_eq!(refusals(&sim), [RefusedCommand::Fork(scaled_away)]);
    let stopped = fork_role(&mut sim, "mail");
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!(refusals(&sim)[1..], [RefusedCommand::Fork(stopped)]);
}

#[test]
fn an_added_worker_takes_over_the_slot_of_one_that_has_left() {
    let mut sim = start_serving_cluster(1);
    for round in 0..5 {
        let worker = fork_role(&mut sim, &round.to_string());
        sim.run_for(ms(1_000));
        assert_eq!(serving_roles(&sim), ["".to_string(), round.to_string()]);
        sim.send_command(ClusterCommand::Disconnect(worker));
        sim.run_for(ms(1_000));
        assert_eq!(sim.serving_workers(), [1]);
    }
    assert_eq!((scaled(&sim), sim.supervisor.wanted_workers()), (vec![(1, 2)], 2));
}

#[test]
fn declared_variables_hold_for_the_first_worker_and_for_slots_added_later() {
    let of_slot = |slot: u32| (Slot(slot), vec![("ROLE".to_string(), format!("slot {slot}"))]);
    let declared: BTreeMap<_, _> = [of_slot(0), of_slot(2)].into();
    let mut sim = Simulator::new(test_config(1), 1, |_, _| WorkerScript::ready_after_10_ms());
    sim.supervisor = Supervisor::new(test_config(1), 1).with_slot_environments(declared);
    let mut sim = sim.start();
    sim.run_until_idle();
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(3)));
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["slot 0", "", "slot 2"]);
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    fork_role(&mut sim, "mail");
    fork_role(&mut sim, "cron");
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(serving_roles(&sim), ["slot 0", "mail", "cron"]);
}

#[test]
fn a_cluster_without_workers_forks_what_the_program_adds() {
    let mut sim = start_cluster(0, |_| None);
    sim.run_until_idle();
    assert_eq!((sim.fork_times().len(), sim.supervisor.phase), (0, ClusterPhase::Booting));
    let worker = fork_role(&mut sim, "mail");
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), serving_roles(&sim)),
        (vec![worker.0], vec!["mail".to_string()])
    );
    assert_eq!(sim.supervisor.phase, ClusterPhase::Running);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(sim.serving_generations(), [2]);
}

/// Starts a cluster whose application puts each replacement off.
fn cluster_with_delayed_restarts(workers: u32, delay: Duration) -> Simulator {
    let mut sim = start_cluster(workers, |_| None);
    sim.supervisor.set_confirm_restarts(true);
    sim.restart_delay = Some(delay);
    sim.run_for(ms(5_000));
    sim
}

#[test]
fn a_replacement_can_be_put_off() {
    let mut sim = cluster_with_delayed_restarts(2, ms(3_000));
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    sim.run_for(ms(2_999));
    assert_eq!((sim.fork_times().len(), sim.serving_workers()), (2, vec![1]));
    sim.run_until_idle();
    assert_eq!((sim.fork_times()[2], sim.serving_workers()), (ms(8_000), vec![1, 3]));
    let delayed = sim.logged(|event| match event {
        LogEvent::RestartDelayed { worker, delay } => Some((worker.id.0, *delay)),
        _ => None,
    });
    assert_eq!(delayed, [(2, ms(3_000))]);
}

#[test]
fn a_delay_is_never_shorter_than_the_backoff() {
    let mut sim = start_cluster(2, |id| {
        (id > 1).then(|| {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        })
    });
    sim.supervisor.set_confirm_restarts(true);
    sim.restart_delay = Some(ms(1));
    sim.run_for(ms(10_000));
    let forks = sim.fork_times().len();
    assert!(forks < 20, "{forks} forks in 10 s");
}

#[test]
fn a_reload_or_a_scale_command_ends_the_delay() {
    for command in [ClusterCommand::Reload, ClusterCommand::Scale(ScaleChange::To(2))] {
        let mut sim = cluster_with_delayed_restarts(2, Duration::MAX);
        sim.exit_worker_now(2, exit_by_signal(SIGKILL));
        sim.run_for(ms(100_000));
        assert_eq!(sim.serving_workers(), [1]);
        sim.send_command(command);
        sim.run_for(ms(1_000));
        assert_eq!(sim.serving_workers().len(), 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn roles_are_never_lost_by_random_reloads_and_upgrades(
        seed: u64, workers in 0..4u32,
        steps in proptest::collection::vec((0..4u32, 0..5u32, 0..2_000u64), 1..12),
    ) {
        let mut sim = Simulator::new(test_config(workers), seed, |_, rng| match rng.random_below(12) {
            0 => WorkerScript::failing_fork(),
            1 => WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1))),
            _ => WorkerScript::ready_after_10_ms(),
        }).start();
        let mut roles = Vec::new();
        for (step, configured, pause) in steps {
            match step {
                0 => {
                    roles.push(roles.len().to_string());
                    fork_role(&mut sim, roles.last().expect("pushed"));
                }
                1 => {
                    with_configured_workers(&mut sim, configured);
                    sim.send_command(ClusterCommand::Reload);
                }
                2 => {
                    with_configured_workers(&mut sim, configured);
                    sim.send_command(ClusterCommand::Upgrade { wait: true });
                }
                _ => sim.send_command(ClusterCommand::Reload),
            }
            sim.run_for(ms(pause));
            if sim.exit.is_some() {
                return Ok(());
            }
        }
        sim.run_for(ms(200_000));
        if sim.exit.is_none() {
            let mut kept: Vec<String> = sim.supervisor.slots.iter()
                .filter(|entry| entry.is_forked)
                .map(|entry| entry.environment[0].1.clone()).collect();
            kept.sort();
            roles.sort();
            prop_assert_eq!(kept, roles);
        }
    }
}
