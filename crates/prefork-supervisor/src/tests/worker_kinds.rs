//! Tests of clusters with several worker kinds.

use proptest::prelude::*;

use super::upgrade::run_until_upgraded;
use super::*;
use crate::worker_identity::Slot;
use crate::{RecycleLimits, WorkerKindConfig, WorkerRange};

pub(super) fn kind_config(name: &'static str, workers: u32) -> WorkerKindConfig {
    WorkerKindConfig {
        name,
        workers,
        demand_range: None,
        limits: RecycleLimits::default(),
        is_kept_by_reload: false,
    }
}

/// Returns kinds for random clusters, often none.
pub(super) fn random_kinds() -> impl Strategy<Value = Vec<WorkerKindConfig>> {
    let limits = proptest::option::of(500..20_000u64);
    let more_crons = proptest::option::of(0..5u32);
    let is_kept = proptest::bool::ANY;
    let rules = (0..3u32, 0..3u32, more_crons, limits, is_kept);
    let rules = rules.prop_map(|(consumers, crons, more, age, is_kept_by_reload)| {
        let limits = RecycleLimits { max_lifetime: age.map(ms), ..RecycleLimits::default() };
        let demand_range = more.map(|more| WorkerRange { min: crons, max: crons + more });
        vec![
            WorkerKindConfig { limits, ..kind_config("consumer", consumers) },
            WorkerKindConfig { demand_range, is_kept_by_reload, ..kind_config("cron", crons) },
        ]
    });
    prop_oneof![1 => Just(Vec::new()), 1 => rules]
}

/// Starts a cluster with two `web` workers and these kinds.
pub(super) fn cluster_with_kinds(others: &[WorkerKindConfig]) -> Simulator {
    let sim = Simulator::new(test_config(2), 1, |_, _| WorkerScript::ready_after_10_ms());
    sim.with_kinds(others.to_vec()).start()
}

/// Returns slot and kind of the workers that serve.
pub(super) fn serving_slots(sim: &Simulator) -> Vec<(u32, &'static str)> {
    let workers = sim.serving_workers().into_iter();
    let tags = workers.filter_map(|id| Some(sim.supervisor.workers.get(WorkerId(id))?.tag));
    tags.map(|tag| (tag.slot.0, tag.kind)).collect()
}

pub(super) fn scale_kind_command(kind: &str, workers: u32) -> ClusterCommand {
    ClusterCommand::ScaleKind(kind.to_string(), ScaleChange::To(workers))
}

#[test]
fn each_kind_has_its_own_slots_and_all_ready_waits_for_all_kinds() {
    let mut sim = cluster_with_kinds(&[kind_config("consumer", 2), kind_config("cron", 1)]);
    sim.run_until_idle();
    let others = [(1024, "consumer"), (1025, "consumer"), (2048, "cron")];
    assert_eq!(serving_slots(&sim), [&[(0, "web"), (1, "web")], &others[..]].concat());
    assert_eq!(sim.times_of_action(&Action::Log(LogEvent::AllReady { workers: 5 })), [ms(10)]);
    assert_eq!(
        (sim.supervisor.wanted_workers(), sim.supervisor.wanted_by_kind()[1]),
        (2, ("cron", 1))
    );
}

#[test]
fn a_replacement_has_the_kind_of_its_predecessor() {
    let mut sim = cluster_with_kinds(&[kind_config("consumer", 1)]);
    sim.run_for(ms(5_000));
    sim.exit_worker_now(3, exit_by_signal(SIGKILL));
    sim.run_for(ms(10));
    assert_eq!(serving_slots(&sim).last(), Some(&(1024, "consumer")));
    assert_eq!((sim.serving_workers(), sim.supervisor.restart_count()), (vec![1, 2, 4], 1));
}

#[test]
fn scaling_one_kind_does_not_change_the_others() {
    let mut sim = cluster_with_kinds(&[kind_config("consumer", 1), kind_config("cron", 1)]);
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Scale(ScaleChange::Up(1)));
    sim.send_command_with_reply(2, scale_kind_command("consumer", 2));
    sim.run_for(ms(1_000));
    assert_eq!(sim.serving_workers(), [1, 2, 5, 3, 6, 4]);
    sim.send_command_with_reply(3, scale_kind_command("consumer", 0));
    sim.send_command_with_reply(4, ClusterCommand::Scale(ScaleChange::Down(2)));
    sim.run_for(ms(6_000));
    assert_eq!(
        (sim.serving_workers(), serving_slots(&sim)),
        (vec![1, 4], vec![(0, "web"), (2048, "cron")])
    );
    sim.send_command_with_reply(5, scale_kind_command("consumer", 1));
    sim.send_command_with_reply(6, scale_kind_command("unknown", 1));
    sim.send_command_with_reply(7, scale_kind_command("web", 2));
    sim.send_command_with_reply(8, scale_kind_command("cron", MAX_WORKERS));
    sim.run_for(ms(1_000));
    let last: Vec<_> = sim.replies().into_iter().filter(|(reply_id, _)| *reply_id > 4).collect();
    let refused = |reason: &str| Err(reason.to_string());
    assert_eq!(
        last,
        [
            (5, Ok("scaled from 0 to 1 workers of kind consumer".to_string())),
            (6, refused("this cluster has no workers of kind \"unknown\"")),
            (7, Ok("scaled from 1 to 2 workers".to_string())),
            (8, refused("cannot scale to 1024 workers of kind cron: ask for 0 to 1023")),
        ]
    );
    let slots: Vec<u32> = serving_slots(&sim).iter().map(|one| one.0).collect();
    assert_eq!(slots, [0, 1, 1024, 2048]);
}

#[test]
fn a_reload_replaces_workers_of_every_kind() {
    let mut sim = cluster_with_kinds(&[kind_config("consumer", 1)]);
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    let done = "reloaded: 3 workers of generation 2 serve".to_string();
    assert_eq!((sim.serving_workers(), sim.replies()), (vec![4, 5, 6], vec![(1, Ok(done))]));
}

#[test]
fn a_reload_leaves_the_workers_of_a_kind_alone_that_is_kept() {
    let watcher = WorkerKindConfig { is_kept_by_reload: true, ..kind_config("watcher", 1) };
    let mut sim = cluster_with_kinds(&[watcher, kind_config("consumer", 1)]);
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.replies()[0].1.is_ok()), (vec![5, 6, 3, 7], true));
    // What replaces it after a crash has the configuration in force.
    sim.exit_worker_now(3, exit_by_signal(SIGKILL));
    sim.run_for(ms(10));
    assert_eq!(sim.serving_workers(), [5, 6, 8, 7]);
    let generation = |id| sim.supervisor.workers.get(WorkerId(id)).expect("there").tag.generation;
    assert_eq!([5, 8].map(|id| generation(id).0), [2, 2]);
}

#[test]
fn a_reload_does_not_wait_for_a_kept_kind_that_cannot_boot() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match tag.kind {
        "watcher" => {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        }
        _ => WorkerScript::ready_after_10_ms(),
    };
    let watcher = WorkerKindConfig { is_kept_by_reload: true, ..kind_config("watcher", 1) };
    let mut sim =
        Simulator::new(test_config(1), 1, choose_script).with_kinds(vec![watcher]).start();
    sim.run_for(ms(1_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_for(ms(1_000));
    assert!(sim.replies()[0].1.is_ok(), "{:?}", sim.replies());
}

#[test]
fn an_upgrade_replaces_the_workers_of_a_kept_kind() {
    let watcher = WorkerKindConfig { is_kept_by_reload: true, ..kind_config("watcher", 1) };
    let mut sim = cluster_with_kinds(&[watcher]);
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    sim.run_until_idle();
    assert_eq!(sim.serving_workers(), [4, 5, 6]);
}

#[test]
fn a_reload_fails_if_a_worker_of_another_kind_cannot_boot() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match (tag.generation.0, tag.kind) {
        (2, "consumer") => {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        }
        _ => WorkerScript::ready_after_10_ms(),
    };
    let mut sim = Simulator::new(test_config(1), 1, choose_script)
        .with_kinds(vec![kind_config("consumer", 1)])
        .start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_for(ms(10_000));
    assert!(sim.replies()[0].1.is_err(), "{:?}", sim.replies());
    assert!(sim.serving_generations().iter().all(|generation| *generation == 1));
}

#[test]
fn each_kind_has_its_own_recycling_limits() {
    let limits = RecycleLimits { max_lifetime: Some(ms(3_000)), ..RecycleLimits::default() };
    let mut sim = cluster_with_kinds(&[WorkerKindConfig { limits, ..kind_config("consumer", 1) }]);
    sim.run_for(ms(4_000));
    let recycled = sim.logged(|event| match event {
        LogEvent::Recycling { worker, limit: RecycleReason::Lifetime(_) } => Some(worker.slot.0),
        _ => None,
    });
    assert_eq!((recycled, sim.serving_workers()), (vec![1024], vec![1, 2, 4]));
}

#[test]
fn workers_of_other_kinds_adopt_no_slots() {
    let config = SupervisorConfig { has_socket_per_slot: true, ..test_config(2) };
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match tag.id.0 {
        // Their replacements hang, so that no `web` worker serves.
        4.. => WorkerScript::never_reporting(),
        _ => WorkerScript::ready_after_10_ms(),
    };
    let mut sim = Simulator::new(config, 1, choose_script)
        .with_kinds(vec![kind_config("consumer", 1)])
        .start();
    sim.run_for(ms(5_000));
    sim.exit_worker_now(1, exit_by_signal(SIGSEGV));
    sim.exit_worker_now(2, exit_by_signal(SIGSEGV));
    sim.run_for(ms(1_000));
    let consumer = |action: &Action| match action {
        Action::AdoptSlot { worker, .. } => *worker == WorkerId(3),
        Action::SetDispatchTarget { slot, worker } => {
            *slot == Slot(1024) || *worker == Some(WorkerId(3))
        }
        _ => false,
    };
    assert_eq!(sim.log.iter().filter(|(_, action)| consumer(action)).count(), 0);
}

#[test]
fn a_crash_in_a_risky_job_causes_no_backoff() {
    let dies = |at| {
        WorkerScript::ready_after_10_ms()
            .with_step_at(at, WorkerStep::Exit(exit_by_signal(SIGSEGV)))
    };
    let works = dies(30).with_step_at(20, WorkerStep::StartRiskyJob);
    let mut sim = start_cluster(2, move |id| (id == 2).then(|| works.clone()));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), logged_backoffs(&sim).len()), (vec![1, 3], 0));
    let mut sim = start_cluster(2, move |id| (id == 2).then(|| dies(30)));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), logged_backoffs(&sim).len()), (vec![1, 3], 1));
}

#[test]
fn an_upgrade_drains_workers_of_removed_kinds() {
    let mut sim = cluster_with_kinds(&[kind_config("old", 1), kind_config("consumer", 1)]);
    sim.run_for(ms(5_000));
    sim.kinds = vec![kind_config("new", 1), kind_config("consumer", 2)];
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(&mut sim);
    sim.run_until_idle();
    let others = [(2048, "consumer"), (2049, "consumer"), (3072, "new")];
    assert_eq!(serving_slots(&sim), [&[(0, "web"), (1, "web")], &others[..]].concat());
    assert!(exit_causes(&sim).contains(&(3, ExitCause::Drained)), "{:?}", exit_causes(&sim));
    let replaced = sim.logged(|event| match event {
        LogEvent::Replaced { worker, by } => Some((worker.0, by.slot.0)),
        _ => None,
    });
    assert!(replaced.contains(&(4, 2048)) && !replaced.iter().any(|one| one.0 == 3));
}
