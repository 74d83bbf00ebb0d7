//! Tests of the events of a worker, of disconnected workers, and of vetoed restarts.

use proptest::prelude::*;

use super::random_commands::{
    RandomCommand, random_commands, random_limits, run_command, with_limits_of,
};
use super::random_workers::{random_configs, stop_within_bounds};
use super::*;
use crate::DrainReason;
use crate::worker_identity::Slot;

/// Returns the events of one worker in their order.
fn logged_events_of_worker(sim: &Simulator, id: u64) -> Vec<&'static str> {
    let id = WorkerId(id);
    sim.logged(|event| match event {
        LogEvent::Forked { worker } if worker.id == id => Some("fork"),
        LogEvent::Online { worker } if worker.id == id => Some("online"),
        LogEvent::Ready { worker, .. } if worker.id == id => Some("ready"),
        LogEvent::Disconnected { worker } if worker.id == id => Some("disconnect"),
        LogEvent::Exited(exit) if exit.worker.id == id => Some("exit"),
        LogEvent::Replaced { worker, .. } if *worker == id => Some("replaced"),
        _ => None,
    })
}

fn drain_reasons(sim: &Simulator) -> Vec<(u64, Option<DrainReason>)> {
    sim.logged(|event| match event {
        LogEvent::Exited(exit) => Some((exit.worker.id.0, exit.drain_reason)),
        _ => None,
    })
}

const ALL_WORKER_EVENTS: [&str; 6] = ["fork", "online", "ready", "disconnect", "exit", "replaced"];

#[test]
fn all_events_of_a_crashed_worker_are_logged() {
    let mut sim = start_serving_cluster(2);
    sim.exit_worker_now(2, exit_by_signal(SIGSEGV));
    sim.run_until_idle();
    assert_eq!(logged_events_of_worker(&sim, 2), ALL_WORKER_EVENTS);
    assert_eq!(logged_events_of_worker(&sim, 3), ALL_WORKER_EVENTS[..3]);
    assert_eq!(drain_reasons(&sim), [(2, None)]);
}

#[test]
fn replaced_is_logged_when_the_old_worker_is_gone() {
    let mut sim = start_serving_cluster(1);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(
        (logged_events_of_worker(&sim, 1), logged_events_of_worker(&sim, 2)),
        (ALL_WORKER_EVENTS.to_vec(), ALL_WORKER_EVENTS[..3].to_vec())
    );
    assert_eq!(drain_reasons(&sim), [(1, Some(DrainReason::Reload))]);
}

#[test]
fn no_replacement_is_logged_for_a_worker_that_never_was_ready() {
    let mut sim = start_cluster(1, |id| {
        (id == 1).then(|| {
            WorkerScript::never_reporting().with_step_at(5, WorkerStep::Exit(exit_code(1)))
        })
    });
    sim.run_until_idle();
    assert_eq!(logged_events_of_worker(&sim, 1), ["fork", "disconnect", "exit"]);
    assert_eq!(sim.serving_workers(), [2]);
}

#[test]
fn online_is_logged_once_and_only_for_known_workers() {
    let mut sim = start_cluster(1, |_| {
        Some(WorkerScript::never_reporting().with_step_at(5, WorkerStep::ReportOnline))
    });
    sim.run_for(ms(5));
    assert_eq!(logged_events_of_worker(&sim, 1), ["fork", "online"]);
    sim.perform_step_now(1, WorkerStep::ReportOnline);
    sim.perform_step_now(1, WorkerStep::ReportReady);
    sim.report_event(Event::Online { worker: WorkerId(9) });
    assert_eq!(
        (logged_events_of_worker(&sim, 1), logged_events_of_worker(&sim, 9)),
        (ALL_WORKER_EVENTS[..3].to_vec(), vec![])
    );
}

#[test]
fn the_slot_of_a_disconnected_worker_stays_empty_until_a_scale_command() {
    let mut sim = start_serving_cluster(2);
    sim.send_command_with_reply(1, ClusterCommand::Disconnect(WorkerId(2)));
    assert_eq!(sim.times_of_action(&Action::Drain(WorkerId(2))), [ms(5_000)]);
    sim.run_until_idle();
    assert_eq!(sim.replies().len(), 1);
    assert_eq!((sim.serving_workers(), sim.supervisor.wanted_workers()), (vec![1], 2));
    assert_eq!(sim.supervisor.slots.slots_left_empty(), [Slot(1)]);
    assert_eq!(drain_reasons(&sim), [(2, Some(DrainReason::Disconnect))]);
    assert_eq!(logged_events_of_worker(&sim, 2), ALL_WORKER_EVENTS[..5], "it is not replaced");
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(2)));
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), sim.supervisor.slots.slots_left_empty()),
        (vec![1, 3], vec![])
    );
    assert_eq!((logged_events_of_worker(&sim, 2).len(), sim.supervisor.restart_count()), (5, 0));
}

#[test]
fn a_reload_refills_the_slot_of_a_worker_that_disconnected() {
    let mut sim = start_serving_cluster(2);
    sim.perform_step_now(1, WorkerStep::Disconnect);
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), sim.supervisor.slots.slots_left_empty()),
        (vec![2], vec![Slot(0)])
    );
    assert!(sim.times_of_action(&Action::Drain(WorkerId(1))).is_empty(), "it drains already");
    // The remaining worker is killed and replaced; the slot of the other one stays empty.
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), sim.supervisor.slots.slots_left_empty()),
        (vec![3], vec![Slot(0)])
    );
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_generations(), sim.supervisor.slots.slots_left_empty()),
        (vec![2, 2], vec![])
    );
}

#[test]
fn a_reload_of_workers_that_disconnect_ends() {
    let script = |tag: WorkerTag, _: &mut TestRng| match tag.generation {
        Generation(1) => WorkerScript::ready_after_10_ms(),
        _ => WorkerScript::ready_after_10_ms().with_step_at(20, WorkerStep::Disconnect),
    };
    let mut sim = Simulator::new(test_config(2), 1, script).start();
    sim.run_for(ms(5_000));
    sim.send_command_with_reply(1, ClusterCommand::Reload);
    sim.run_until_idle();
    assert_eq!((sim.fork_times().len(), sim.serving_workers()), (4, vec![]));
    assert!(sim.replies()[0].1.is_ok(), "{:?}", sim.replies());
}

#[test]
fn a_booting_worker_can_be_disconnected() {
    let mut sim = start_cluster(2, |id| (id == 2).then(WorkerScript::never_reporting));
    sim.run_for(ms(100));
    sim.send_command(ClusterCommand::Disconnect(WorkerId(2)));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), sim.supervisor.phase), (vec![1], ClusterPhase::Running));
    assert_eq!(sim.times_of_action(&Action::Log(LogEvent::AllReady { workers: 1 })), [ms(100)]);
    // A worker that is gone, and one that never existed.
    for (reply_id, id) in [(1, 2), (2, 99)] {
        sim.send_command_with_reply(reply_id, ClusterCommand::Disconnect(WorkerId(id)));
    }
    assert!(sim.replies().iter().all(|(_, result)| result.is_err()));
}

#[test]
fn disconnecting_a_worker_kills_its_successor() {
    let config = SupervisorConfig { max_lifetime: Some(ms(4_000)), ..test_config(1) };
    let script = |tag: WorkerTag, _: &mut TestRng| match tag.id.0 {
        1 => WorkerScript::ready_after_10_ms(),
        _ => WorkerScript::never_reporting(),
    };
    let mut sim = Simulator::new(config, 1, script).start();
    sim.run_for(ms(4_500));
    assert_eq!(sim.fork_times().len(), 2);
    sim.send_command(ClusterCommand::Disconnect(WorkerId(1)));
    sim.run_for(ms(1_000));
    assert_eq!(
        (sim.supervisor.workers.len(), sim.supervisor.slots.slots_left_empty()),
        (0, vec![Slot(0)])
    );
    assert_eq!(exit_causes(&sim), [(2, ExitCause::Superseded), (1, ExitCause::Drained)]);
}

/// Starts a cluster whose application confirms restarts and vetoes one in `veto_odds`.
fn cluster_with_confirmed_restarts(workers: u32, veto_odds: u64) -> Simulator {
    let mut sim = Simulator::new(test_config(workers), 1, |_, _| WorkerScript::ready_after_10_ms());
    sim.supervisor.set_confirm_restarts(true);
    sim.restart_veto_odds = veto_odds;
    let mut sim = sim.start();
    sim.run_for(ms(5_000));
    sim
}

#[test]
fn the_application_can_veto_a_restart() {
    for (veto_odds, serving) in [(0, vec![1, 3]), (1, vec![1])] {
        let mut sim = cluster_with_confirmed_restarts(2, veto_odds);
        sim.exit_worker_now(2, exit_by_signal(SIGKILL));
        let is_asked =
            |action: &Action| matches!(action, Action::ConfirmRestart(e) if e.worker.id.0 == 2);
        assert!(sim.log.iter().any(|(_, action)| is_asked(action)));
        assert_eq!(sim.fork_times().len(), 2, "nothing is forked before the answer");
        sim.run_until_idle();
        assert_eq!(
            (sim.serving_workers(), sim.supervisor.slots.slots_left_empty().len()),
            (serving, veto_odds as usize)
        );
        let vetoed = sim.logged(|n| matches!(n, LogEvent::NotRestarted { .. }).then_some(()));
        assert_eq!(vetoed.len(), veto_odds as usize);
        // An unexpected decision changes nothing.
        sim.report_event(Event::RestartDecided {
            worker: WorkerId(1),
            decision: RestartDecision::LeaveEmpty,
        });
        assert_eq!(sim.supervisor.slots.slots_left_empty().len(), veto_odds as usize);
    }
}

#[test]
fn a_restart_decision_after_the_exit_changes_nothing() {
    let mut sim = cluster_with_confirmed_restarts(1, 1);
    sim.report_event(Event::Exited {
        worker: WorkerId(1),
        status: exit_by_signal(SIGKILL),
        requests_served: 0,
    });
    assert!(sim.log.iter().any(|(_, action)| matches!(action, Action::ConfirmRestart(_))));
    // No worker is left, so the decision comes after the exit.
    sim.send_command(ClusterCommand::StopNow);
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
    sim.run_until_idle();
    assert!(matches!(sim.log.last(), Some((_, Action::Exit(_)))), "{:?}", sim.log.last());
}

#[test]
fn restarts_are_not_confirmed_for_drained_workers() {
    let mut sim = cluster_with_confirmed_restarts(2, 1);
    sim.perform_step_now(1, WorkerStep::Retire);
    sim.send_command(ClusterCommand::Reload);
    sim.run_until_idle();
    assert!(!sim.log.iter().any(|(_, action)| matches!(action, Action::ConfirmRestart(_))));
    assert_eq!(sim.serving_generations(), [2, 2]);
}

fn environment_of(sim: &Simulator, slot: Slot) -> &[(String, String)] {
    sim.supervisor.slots.environment_of(slot)
}

#[test]
fn an_added_worker_and_its_replacements_have_the_requested_environment() {
    let mut sim = start_serving_cluster(1);
    let id = sim.supervisor.reserve_worker_id();
    let own = vec![("ROLE".to_string(), "mail".to_string())];
    sim.send_command(ClusterCommand::Scale(ScaleChange::AddWorker(id, own.clone())));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), environment_of(&sim, Slot(1))), (vec![1, id.0], &own[..]));
    assert!(environment_of(&sim, Slot(0)).is_empty());
    sim.exit_worker_now(id.0, exit_by_signal(SIGKILL));
    sim.run_until_idle();
    assert_eq!((sim.serving_workers(), environment_of(&sim, Slot(1))), (vec![1, 3], &own[..]));
    // The environment survives an upgrade, and goes with its slot.
    sim.send_command(ClusterCommand::Upgrade { wait: true });
    sim.run_until_idle();
    assert_eq!((sim.upgrade_count, environment_of(&sim, Slot(1))), (1, &own[..]));
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(1)));
    sim.send_command(ClusterCommand::Scale(ScaleChange::To(2)));
    sim.run_until_idle();
    assert!(environment_of(&sim, Slot(1)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_disconnects_and_vetoes_keep_the_invariants(
        config in random_configs(), limits in random_limits(), seed: u64, random_commands in random_commands(), veto_odds in 0..4u64,
        disconnects in proptest::collection::vec((0..2_000u64, 0..8usize), 1..10), now: bool,
    ) {
        let mut sim = Simulator::new(with_limits_of(config, limits), seed, move |_, rng| {
            let script = WorkerScript::random_script(rng, 9);
            let at = rng.random_below(6_000);
            if rng.random_below(3) == 0 { script.with_step_at(at, WorkerStep::Disconnect) } else { script }
        });
        sim.supervisor.set_confirm_restarts(true);
        sim.restart_veto_odds = veto_odds;
        sim.new_binary = Box::new(NewBinary::random_binary);
        let mut sim = sim.start();
        let random_commands = random_commands.into_iter().map(Some).chain(std::iter::repeat(None));
        for (number, ((wait, which), command)) in disconnects.into_iter().zip(random_commands).enumerate() {
            sim.run_for(ms(wait));
            let worker = sim.supervisor.workers.ids().get(which).copied();
            if sim.exit.is_none() {
                sim.send_command_with_reply(1_000 + number as u64, ClusterCommand::Disconnect(worker.unwrap_or(WorkerId(0))));
                let id = sim.supervisor.reserve_worker_id();
                if which == 0 {
                    sim.send_command(ClusterCommand::Scale(ScaleChange::AddWorker(id, Vec::new())));
                }
            }
            if let Some((wait, command)) = command {
                sim.run_for(ms(wait));
                run_command(&mut sim, number as u64, command);
            }
        }
        run_command(&mut sim, 100, RandomCommand::ScaleUp(1));
        stop_within_bounds(&mut sim, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }
}
