//! Tests of kinds whose number of workers follows the demand, and of workers that are used up.

use super::upgrade::run_until_upgraded;
use super::worker_kinds::{cluster_with_kinds, kind_config, scale_kind_command, serving_slots};
use super::*;
use crate::{DrainReason, WorkerKindConfig, WorkerRange};

/// Returns the kind `thumbnails` with `min` to `max` workers.
fn ranged_kind(min: u32, max: u32) -> WorkerKindConfig {
    let demand_range = Some(WorkerRange { min, max });
    WorkerKindConfig { demand_range, ..kind_config("thumbnails", min) }
}

/// Starts two `web` workers, ids 1 and 2, and `min` others, and lets them serve.
fn ranged_cluster(min: u32, max: u32) -> Simulator {
    let mut sim = cluster_with_kinds(&[ranged_kind(min, max)]);
    sim.run_for(ms(5_000));
    sim
}

fn need_workers(sim: &mut Simulator, workers: u32) {
    sim.report_event(Event::WorkersNeeded { kind: "thumbnails", workers });
    sim.run_for(ms(100));
}

/// Reports that the worker in the `n`th slot of the kind is idle, and returns whether it ends.
fn report_idle(sim: &mut Simulator, n: usize) -> bool {
    let mut slots = sim.supervisor.slots.iter().filter(|entry| entry.kind == "thumbnails");
    let worker = slots.nth(n).and_then(|entry| entry.holder).expect("it serves");
    let before = sim.times_of_action(&Action::Drain(worker)).len();
    sim.report_event(Event::WorkerIdle { worker });
    let ends = sim.times_of_action(&Action::Drain(worker)).len() > before;
    sim.run_for(ms(100));
    ends
}

/// Executes a new binary with these kinds, and runs until its workers serve.
fn upgrade_to(sim: &mut Simulator, kind: WorkerKindConfig) {
    sim.kinds = vec![kind];
    sim.send_command(ClusterCommand::Upgrade { wait: true });
    run_until_upgraded(sim);
    sim.run_until_idle();
}

fn wanted(sim: &Simulator) -> u32 {
    sim.supervisor.wanted_of_kind("thumbnails").expect("the kind is declared")
}

fn scale_log(sim: &Simulator) -> Vec<(String, u32, u32)> {
    sim.logged(|event| match event {
        LogEvent::Scaled { by, from, to, .. } => Some((by.clone(), *from, *to)),
        _ => None,
    })
}

#[test]
fn workers_start_on_demand_up_to_the_maximum() {
    let mut sim = ranged_cluster(0, 3);
    assert_eq!(serving_slots(&sim), [(0, "web"), (1, "web")]);
    sim.report_event(Event::WorkersNeeded { kind: "thumbnails", workers: 1 });
    assert_eq!(sim.fork_times().last(), Some(&ms(5_000)), "forked at once");
    need_workers(&mut sim, 9);
    assert_eq!((wanted(&sim), serving_slots(&sim).len()), (3, 5));
    // What is needed less does not end a worker: only its idle timeout does.
    need_workers(&mut sim, 1);
    need_workers(&mut sim, 0);
    assert_eq!(wanted(&sim), 3);
    sim.report_event(Event::WorkersNeeded { kind: "web", workers: 9 });
    sim.report_event(Event::WorkersNeeded { kind: "unknown", workers: 9 });
    assert_eq!(sim.supervisor.wanted_workers(), 2);
}

#[test]
fn idle_workers_end_from_the_last_slot_and_down_to_the_minimum() {
    let mut sim = ranged_cluster(1, 3);
    need_workers(&mut sim, 3);
    assert!(!report_idle(&mut sim, 0), "not the last slot");
    assert!(report_idle(&mut sim, 2) && report_idle(&mut sim, 1));
    assert!(!report_idle(&mut sim, 0), "the minimum");
    assert_eq!((wanted(&sim), sim.supervisor.restart_count()), (1, 0));
    let expected = [("waiting jobs", 1, 3), ("the idle timeout", 3, 2), ("the idle timeout", 2, 1)];
    assert_eq!(scale_log(&sim), expected.map(|(by, from, to)| (by.to_string(), from, to)));
    let reasons = sim.logged(|event| match event {
        LogEvent::Exited(exit) => exit.drain_reason,
        _ => None,
    });
    assert_eq!(reasons, [DrainReason::Scale, DrainReason::Scale]);
    need_workers(&mut sim, 2);
    assert_eq!(serving_slots(&sim).last(), Some(&(1025, "thumbnails")));
}

#[test]
fn a_number_outside_of_the_range_is_refused() {
    let mut sim = ranged_cluster(1, 3);
    for (reply_id, (to, is_accepted)) in [(0, false), (4, false), (3, true)].into_iter().enumerate()
    {
        sim.send_command_with_reply(reply_id as u64, scale_kind_command("thumbnails", to));
        let (_, reply) = sim.replies().pop().expect("a reply");
        assert_eq!(reply.is_ok(), is_accepted, "{reply:?}");
    }
    sim.run_for(ms(100));
    assert_eq!(wanted(&sim), 3);
    assert!(report_idle(&mut sim, 2), "what was started by hand ends by the idle timeout too");
}

#[test]
fn workers_start_during_a_reload_and_none_ends_in_it() {
    let mut sim = ranged_cluster(1, 3);
    let before = sim.config_file.as_mut()(&sim.supervisor.config.clone(), &mut TestRng(1)).1;
    sim.config_file = Box::new(move |_, _| (ms(1_000), before.clone()));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    need_workers(&mut sim, 2);
    assert_eq!(serving_slots(&sim).len(), 4, "before the configuration is read");
    assert!(!report_idle(&mut sim, 1));
    sim.run_for(ms(890));
    sim.report_event(Event::WorkersNeeded { kind: "thumbnails", workers: 3 });
    sim.run_for(ms(2_000));
    assert_eq!(sim.serving_generations(), [2; 5]);
    assert!(report_idle(&mut sim, 2));
    assert_eq!(wanted(&sim), 2);
}

#[test]
fn an_upgrade_keeps_the_number_within_the_new_range() {
    let mut sim = ranged_cluster(1, 4);
    need_workers(&mut sim, 4);
    upgrade_to(&mut sim, ranged_kind(1, 4));
    assert_eq!((wanted(&sim), serving_slots(&sim).len()), (4, 6));
    upgrade_to(&mut sim, ranged_kind(0, 2));
    assert_eq!((wanted(&sim), serving_slots(&sim).len()), (2, 4));
    // A fixed number replaces what the demand was.
    upgrade_to(&mut sim, kind_config("thumbnails", 1));
    assert_eq!((wanted(&sim), serving_slots(&sim).len()), (1, 3));
}

#[test]
fn a_used_up_worker_is_replaced_at_once_and_without_a_back_off() {
    let mut sim = ranged_cluster(1, 1);
    for round in 0..50 {
        let worker = WorkerId(3 + round);
        assert!(sim.supervisor.is_serving(worker));
        sim.report_event(Event::WorkerUsedUp { worker, reason: RecycleReason::Jobs(1) });
        assert_eq!(sim.fork_times().last(), Some(&(ms(5_000) + ms(30 * round))), "forked at once");
        sim.run_for(ms(30));
    }
    assert_eq!((logged_backoffs(&sim).len(), sim.supervisor.restart_count()), (0, 0));
    assert!(exit_causes(&sim).iter().all(|(_, cause)| *cause == ExitCause::Drained));
    sim.report_event(Event::WorkerUsedUp { worker: WorkerId(3), reason: RecycleReason::Jobs(1) });
    assert!(sim.supervisor.is_serving(WorkerId(53)), "an unknown worker changes nothing");
}

#[test]
fn a_crash_loop_of_others_does_not_delay_the_replacement_of_a_used_up_worker() {
    let choose_script = |tag: WorkerTag, _: &mut TestRng| match tag.slot.is_web() && tag.id.0 > 2 {
        true => WorkerScript::never_reporting().with_step_at(1, WorkerStep::Exit(exit_code(1))),
        false => WorkerScript::ready_after_10_ms(),
    };
    let sim = Simulator::new(test_config(2), 1, choose_script);
    let mut sim = sim.with_kinds(vec![ranged_kind(1, 1)]).start();
    sim.run_for(ms(5_000));
    sim.exit_worker_now(1, exit_by_signal(SIGSEGV));
    sim.run_for(ms(20_000));
    assert!(logged_backoffs(&sim).len() > 3);
    let worker = WorkerId(3);
    sim.report_event(Event::WorkerUsedUp { worker, reason: RecycleReason::Jobs(1) });
    sim.run_for(ms(30));
    assert_eq!(serving_slots(&sim), [(1, "web"), (1024, "thumbnails")]);
}

#[test]
fn no_worker_is_added_or_kept_in_a_stop() {
    let mut sim = ranged_cluster(1, 3);
    sim.send_command(ClusterCommand::Stop);
    need_workers(&mut sim, 3);
    sim.run_until_idle();
    assert_eq!((sim.fork_times().len(), sim.exit), (3, Some(ShutdownReason::StopRequested)));
}
