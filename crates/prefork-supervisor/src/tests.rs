//! Tests of the supervisor in a simulated cluster, as an operator sees it. Larger subjects have files of their own.

mod crash_loop;
mod demand;
mod disconnect;
mod empty_cluster;
mod event_pairs;
mod failed_reload;
mod forked_workers;
mod health;
mod orphan_sockets;
mod random_commands;
mod random_workers;
mod reload;
mod scaling;
mod stop;
mod upgrade;
mod upgrade_restore;
mod worker_kinds;

use std::time::Duration;

use crate::simulator::{
    NewBinary, SIGKILL, SIGSEGV, SimulatedExec, Simulator, TestRng, WorkerScript, WorkerStep,
    exit_by_signal, exit_code, ms,
};
use crate::supervisor::ClusterPhase;
use crate::worker_identity::{Generation, WorkerId, WorkerTag};
use crate::{
    Action, ClusterCommand, Event, ExitCause, HealthSample, LogEvent, MAX_WORKERS, RecycleReason,
    RefusedCommand, Requester, RestartDecision, ScaleChange, ShutdownReason, SupervisorConfig,
};

pub(crate) fn test_config(workers: u32) -> SupervisorConfig {
    SupervisorConfig {
        workers,
        boot_timeout: ms(10_000),
        graceful_timeout: ms(5_000),
        drain_delay: Duration::ZERO,
        min_uptime: ms(1_000),
        boot_attempts: 5,
        backoff_first: ms(100),
        backoff_max: ms(2_000),
        surge: 1,
        max_unavailable: 0,
        max_requests: None,
        max_rss: None,
        max_rss_hard: None,
        max_lifetime: None,
        stall_warn: None,
        stall_timeout: None,
        max_workers: MAX_WORKERS,
        has_socket_per_slot: false,
        can_adopt_sockets: true,
    }
}

/// Starts a cluster whose workers serve, except those for whose id `script_for` returns another script.
fn start_cluster(
    workers: u32,
    script_for: impl Fn(u64) -> Option<WorkerScript> + 'static,
) -> Simulator {
    let choose_script = move |tag: WorkerTag, _: &mut TestRng| {
        script_for(tag.id.0).unwrap_or_else(WorkerScript::ready_after_10_ms)
    };
    Simulator::new(test_config(workers), 1, choose_script).start()
}

/// Starts a cluster and lets its workers serve for longer than `min_uptime`.
fn start_serving_cluster(workers: u32) -> Simulator {
    let mut sim = start_cluster(workers, |_| None);
    sim.run_for(ms(5_000));
    sim
}

/// Returns the id of each worker that exited, and the cause.
fn exit_causes(sim: &Simulator) -> Vec<(u64, ExitCause)> {
    sim.logged(|event| match event {
        LogEvent::Exited(exit) => Some((exit.worker.id.0, exit.cause)),
        _ => None,
    })
}

fn logged_backoffs(sim: &Simulator) -> Vec<(u32, Duration)> {
    sim.logged(|event| match event {
        LogEvent::BackingOff { failures, delay } => Some((*failures, *delay)),
        _ => None,
    })
}

/// Returns the refused commands whose requesters expected no reply.
fn refusals(sim: &Simulator) -> Vec<RefusedCommand> {
    sim.logged(|event| match event {
        LogEvent::CommandRefused { command, .. } => Some(*command),
        _ => None,
    })
}

fn kill_times(sim: &Simulator, worker: u64) -> Vec<Duration> {
    sim.times_of_action(&Action::Kill(WorkerId(worker)))
}

#[test]
fn all_ready_is_logged_when_every_worker_is_ready() {
    let mut sim = start_cluster(3, |_| None);
    assert_eq!((sim.fork_times(), sim.supervisor.phase), (vec![ms(0); 3], ClusterPhase::Booting));
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), sim.supervisor.phase),
        (vec![1, 2, 3], ClusterPhase::Running)
    );
    let ready = |event: &LogEvent| match event {
        LogEvent::Ready { worker, after } => Some((worker.pid, *after)),
        _ => None,
    };
    assert_eq!(sim.logged(ready), [1001, 1002, 1003].map(|pid| (Some(pid), ms(10))));
    let all_ready = Action::Log(LogEvent::AllReady { workers: 3 });
    assert_eq!(sim.log.last().map(|last| &last.1), Some(&all_ready));
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    let mut sim = start_serving_cluster(3);
    sim.exit_worker_now(2, exit_by_signal(SIGKILL));
    assert_eq!(sim.fork_times()[3..], [ms(5_000)]);
    sim.run_for(ms(10));
    assert_eq!((sim.serving_workers(), sim.supervisor.restart_count()), (vec![1, 4, 3], 1));
    let all_ready = Action::Log(LogEvent::AllReady { workers: 3 });
    assert_eq!(sim.times_of_action(&all_ready), [ms(10)], "logged once, at the start");
    let exits = sim.logged(|event| match event {
        LogEvent::Exited(exit) => {
            Some((exit.status, exit.cause, exit.uptime, exit.requests_served))
        }
        _ => None,
    });
    assert_eq!(exits, [(exit_by_signal(SIGKILL), ExitCause::Unexpected, ms(5_000), 7)]);
}

#[test]
fn a_stop_drains_all_workers_and_exits() {
    let mut sim = start_serving_cluster(2);
    let before = sim.log.len();
    sim.send_command(ClusterCommand::Stop);
    let actions: Vec<Action> = sim.log[before..].iter().map(|(_, a)| a.clone()).collect();
    let stopping = LogEvent::Stopping { by: "SIGTERM".to_string(), workers: 2 };
    let (first, second) = (Action::Drain(WorkerId(1)), Action::Drain(WorkerId(2)));
    assert_eq!(actions, [Action::Log(stopping), Action::CloseListeners, first, second]);
    sim.run_until_idle();
    assert_eq!(exit_causes(&sim), [(1, ExitCause::Drained), (2, ExitCause::Drained)]);
    assert_eq!(sim.times_of_action(&Action::Log(LogEvent::Stopped)), [ms(5_020)]);
    assert_eq!(sim.times_of_action(&Action::Exit(ShutdownReason::StopRequested)), [ms(5_020)]);
    assert_eq!(sim.supervisor.phase, ClusterPhase::Done);
}

#[test]
fn a_worker_that_never_drains_is_killed_at_the_graceful_timeout() {
    let mut sim = start_cluster(2, |id| {
        (id == 1).then(|| WorkerScript::ready_after_10_ms().never_draining())
    });
    sim.run_for(ms(1_000));
    sim.send_command(ClusterCommand::Stop);
    sim.run_until_idle();
    assert_eq!((kill_times(&sim, 1), kill_times(&sim, 2)), (vec![ms(7_000)], vec![]));
    let over = sim.logged(|event| match event {
        LogEvent::DrainTimedOut { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    });
    assert_eq!(over, [(1, ms(5_000))]);
    assert_eq!(exit_causes(&sim), [(2, ExitCause::Drained), (1, ExitCause::GracefulTimeout)]);
    assert_eq!(sim.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn a_second_stop_kills_all_workers() {
    let mut sim = start_cluster(1, |_| Some(WorkerScript::ready_after_10_ms().never_draining()));
    sim.run_for(ms(1_000));
    sim.send_command(ClusterCommand::Stop);
    sim.run_for(ms(100));
    sim.send_command(ClusterCommand::Stop);
    assert_eq!(kill_times(&sim, 1), [ms(1_100)]);
    let by = "SIGTERM, the second request".to_string();
    let now = LogEvent::StoppingNow { by, workers: 1 };
    assert_eq!(sim.times_of_action(&Action::Log(now)), [ms(1_100)]);
    sim.send_command(ClusterCommand::Stop);
    sim.send_command(ClusterCommand::StopNow);
    sim.run_until_idle();
    assert_eq!((kill_times(&sim, 1).len(), sim.exit), (1, Some(ShutdownReason::StopRequested)));
}

#[test]
fn stop_now_kills_all_workers_without_a_drain() {
    let mut sim = start_serving_cluster(2);
    sim.send_command(ClusterCommand::StopNow);
    assert_eq!((kill_times(&sim, 1), kill_times(&sim, 2)), (vec![ms(5_000)], vec![ms(5_000)]));
    sim.run_until_idle();
    assert!(sim.times_of_action(&Action::Drain(WorkerId(1))).is_empty());
    assert_eq!(exit_causes(&sim), [(1, ExitCause::KilledByStop), (2, ExitCause::KilledByStop)]);
}

#[test]
fn a_stop_before_the_start_exits_at_once() {
    let mut sim = Simulator::new(test_config(2), 1, |_, _| WorkerScript::ready_after_10_ms());
    sim.send_command(ClusterCommand::Stop);
    sim.report_event(Event::Started);
    assert_eq!((sim.exit, sim.fork_times().len()), (Some(ShutdownReason::StopRequested), 0));
}

#[test]
fn a_retiring_worker_is_replaced_while_it_drains() {
    let mut sim = start_cluster(2, |id| {
        (id == 1).then(|| WorkerScript::ready_after_10_ms().with_step_at(3_000, WorkerStep::Retire))
    });
    sim.run_for(ms(3_000));
    assert_eq!(sim.fork_times()[2..], [ms(3_000)]);
    assert_eq!((sim.supervisor.workers.len(), sim.supervisor.restart_count()), (3, 0));
    let retiring = sim.logged(|event| match event {
        LogEvent::Retiring { worker } => Some(worker.slot),
        _ => None,
    });
    sim.run_until_idle();
    assert_eq!(
        (sim.serving_workers(), exit_causes(&sim)),
        (vec![3, 2], vec![(1, ExitCause::Drained)])
    );
    assert_eq!(
        (retiring.len(), sim.supervisor.restart_count(), logged_backoffs(&sim).len()),
        (1, 0, 0)
    );
}

#[test]
fn a_retired_worker_is_killed_at_the_graceful_timeout() {
    let wedged =
        WorkerScript::ready_after_10_ms().with_step_at(3_000, WorkerStep::Retire).never_draining();
    let mut sim = start_cluster(2, move |id| (id == 1).then(|| wedged.clone()));
    sim.run_until_idle();
    assert_eq!(
        (kill_times(&sim, 1), exit_causes(&sim)),
        (vec![ms(9_000)], vec![(1, ExitCause::GracefulTimeout)])
    );
    assert_eq!((sim.serving_workers(), sim.supervisor.restart_count()), (vec![3, 2], 0));
}

#[test]
fn a_crash_of_a_retired_worker_is_no_restart() {
    let noisy = WorkerScript::ready_after_10_ms()
        .with_step_at(500, WorkerStep::Retire)
        .with_step_at(505, WorkerStep::BreakProtocol)
        .never_draining();
    let mut sim = start_cluster(2, move |id| (id == 1).then(|| noisy.clone()));
    sim.run_until_idle();
    assert_eq!(exit_causes(&sim), [(1, ExitCause::Misbehaved)]);
    // Its replacement was forked before, so this is neither a restart nor a crash loop.
    assert_eq!(
        (sim.supervisor.restart_count(), logged_backoffs(&sim).len(), sim.fork_times().len()),
        (0, 0, 3)
    );
}

#[test]
fn a_worker_that_closed_its_channel_is_killed_after_a_second() {
    let mute = WorkerScript::ready_after_10_ms().with_step_at(2_000, WorkerStep::CloseChannel);
    let mut sim = start_cluster(2, move |id| (id == 1).then(|| mute.clone()));
    sim.run_until_idle();
    assert_eq!(kill_times(&sim, 1), [ms(3_000)]);
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(1, ExitCause::Misbehaved)], vec![3, 2])
    );
}

#[test]
fn a_protocol_error_kills_only_its_worker() {
    let noisy = WorkerScript::ready_after_10_ms().with_step_at(2_000, WorkerStep::BreakProtocol);
    let mut sim = start_cluster(3, move |id| (id == 2).then(|| noisy.clone()));
    sim.run_until_idle();
    let condemned = sim.logged(|event| match event {
        LogEvent::Misbehaved { worker, reason } => Some((worker.id.0, reason.clone())),
        _ => None,
    });
    assert_eq!(condemned, [(2, "noise".to_string())]);
    assert_eq!(
        (exit_causes(&sim), sim.serving_workers()),
        (vec![(2, ExitCause::Misbehaved)], vec![1, 4, 3])
    );
}

#[test]
fn a_worker_that_crashes_after_closing_its_channel_is_not_killed() {
    let ending = WorkerScript::ready_after_10_ms()
        .with_step_at(2_000, WorkerStep::CloseChannel)
        .with_step_at(2_500, WorkerStep::Exit(exit_code(1)));
    let mut sim = start_cluster(1, move |id| (id == 1).then(|| ending.clone()));
    sim.run_until_idle();
    assert_eq!(
        (kill_times(&sim, 1), exit_causes(&sim)),
        (vec![], vec![(1, ExitCause::Unexpected)])
    );
    assert_eq!(sim.fork_times(), [ms(0), ms(2_500)]);
}

#[test]
fn a_ready_report_sent_in_time_but_read_late_counts() {
    let slow = WorkerScript::never_reporting().with_step_at(9_000, WorkerStep::ReportReady);
    let mut sim = start_cluster(3, move |_| Some(slow.clone()));
    sim.stop_primary_for(ms(60_000));
    sim.run_until_idle();
    // All boot deadlines had passed when the first READY was read.
    assert_eq!((sim.serving_workers(), exit_causes(&sim).len()), (vec![1, 2, 3], 0));
}

#[test]
fn a_worker_that_drained_in_time_is_not_killed_after_the_primary_was_stopped() {
    let mut sim = start_serving_cluster(3);
    sim.send_command(ClusterCommand::Stop);
    sim.stop_primary_for(ms(60_000));
    sim.run_until_idle();
    assert_eq!(exit_causes(&sim), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    assert!((1..=3).all(|id| kill_times(&sim, id).is_empty()));
}

#[test]
fn no_action_follows_the_exit() {
    let mut sim = start_serving_cluster(1);
    sim.send_command(ClusterCommand::StopNow);
    sim.run_until_idle();
    let logged = sim.log.len();
    sim.send_command(ClusterCommand::Stop);
    sim.report_event(Event::Exited {
        worker: WorkerId(1),
        status: exit_code(0),
        requests_served: 0,
    });
    sim.report_event(Event::DeadlineReached);
    assert_eq!((sim.log.len(), sim.supervisor.next_deadline()), (logged, None));
}
