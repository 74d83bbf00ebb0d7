//! All pairs of events in all states of a cluster and of a worker. `invariants` checks every step.

use std::ops::Range;

use super::*;
use crate::worker_table::WorkerState;

/// Brings a worker into each of its states.
const WORKER_STATES: [fn(&mut Simulator, WorkerId); 9] = [
    |_, _| {},
    |sim, worker| sim.report_event(Event::Forked { worker, pid: 1 }),
    make_ready,
    |sim, worker| {
        make_ready(sim, worker);
        sim.report_event(Event::Retiring { worker });
    },
    |sim, worker| {
        make_ready(sim, worker);
        sim.report_event(Event::ChannelClosed { worker });
    },
    |sim, worker| {
        make_ready(sim, worker);
        sim.report_event(Event::ProtocolError { worker, reason: String::new() });
    },
    |sim, worker| {
        sim.report_event(Event::Forked { worker, pid: 1 });
        sim.run_for(ms(10_000));
    },
    |sim, worker| {
        make_ready(sim, worker);
        sim.report_event(Event::Exited { worker, status: exit_code(1), requests_served: 0 });
    },
    |sim, worker| {
        make_ready(sim, worker);
        sim.perform_step_now(worker.0, WorkerStep::Freeze);
        while !matches!(
            sim.supervisor.workers.get(worker).expect("it exists").state,
            WorkerState::Aborted { .. }
        ) {
            sim.run_step();
        }
    },
];

/// Brings the cluster into each of its states: before any worker was ready, once all were, in a stop, at the end; while
/// the configuration is read, while workers are replaced, while they are rolled back; while a new binary is checked,
/// before its exec, after it, and when one of its own workers serves.
const CLUSTER_STATES: [fn(&mut Simulator); 11] = [
    |_| {},
    |_| {},
    |sim| sim.send_command(ClusterCommand::Stop),
    |sim| sim.send_command(ClusterCommand::StopNow),
    |sim| sim.send_command_with_reply(1, ClusterCommand::Reload),
    |sim| {
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.report_event(Event::ConfigRead { result: Ok(test_config(3)) });
    },
    |sim| {
        sim.send_command_with_reply(1, ClusterCommand::Reload);
        sim.report_event(Event::ConfigRead { result: Ok(test_config(3)) });
        let successors = |sim: &Simulator| {
            sim.supervisor.slots.iter().filter_map(|p| p.successor).collect::<Vec<_>>()
        };
        for successor in successors(sim) {
            make_ready(sim, successor);
        }
        for worker in successors(sim) {
            sim.report_event(Event::ForkFailed { worker, reason: String::new() });
        }
    },
    |sim| sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true }),
    |sim| {
        sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
        sim.report_event(Event::UpgradeCheckPassed);
    },
    restore_after_upgrade,
    |sim| {
        restore_after_upgrade(sim);
        if let Some(successor) = sim.supervisor.slots.iter().find_map(|entry| entry.successor) {
            make_ready(sim, successor);
        }
    },
];

fn restore_after_upgrade(sim: &mut Simulator) {
    sim.send_command_with_reply(1, ClusterCommand::Upgrade { wait: true });
    sim.report_event(Event::UpgradeCheckPassed);
    sim.exec_new_binary(test_config(3), ms(10), 0);
}

fn make_ready(sim: &mut Simulator, worker: WorkerId) {
    sim.report_event(Event::Forked { worker, pid: 1 });
    sim.report_event(Event::Ready { worker });
}

/// Returns a cluster of two workers that do nothing by themselves, with the cluster in state `phase` and the returned
/// worker in state `state`.
fn cluster_in_state(phase: usize, state: usize) -> (Simulator, WorkerId) {
    let year = 365 * 24 * 3600 * 1000;
    let config =
        SupervisorConfig { boot_attempts: 1, stall_timeout: Some(ms(1_000)), ..test_config(2) };
    let mut sim = Simulator::new(config, 1, move |_, _| {
        WorkerScript::never_reporting().never_draining().surviving_abort().with_fork_time(year)
    })
    .start();
    sim.config_file = Box::new(move |config, _| (ms(year), Ok(config.clone())));
    sim.new_binary = Box::new(move |config, _| NewBinary {
        exec: SimulatedExec::new(ms(year), ms(0), Ok(config.clone())),
        check: None,
    });
    let mut worker = WorkerId(1);
    if phase > 0 {
        make_ready(&mut sim, WorkerId(1));
        make_ready(&mut sim, WorkerId(2));
        assert_eq!(sim.supervisor.phase, ClusterPhase::Running);
        sim.run_for(ms(2_000));
        sim.report_event(Event::Exited {
            worker,
            status: exit_by_signal(SIGKILL),
            requests_served: 0,
        });
        worker = WorkerId(3);
    }
    WORKER_STATES[state](&mut sim, worker);
    CLUSTER_STATES[phase](&mut sim);
    (sim, worker)
}

/// Returns every kind of event about this worker. Commands expect a reply by `reply_id`.
fn all_events_for_worker(worker: WorkerId, reply_id: u64) -> Vec<Event> {
    let exits = [exit_code(0), exit_code(1), exit_by_signal(SIGKILL), exit_by_signal(SIGSEGV)];
    let command_event = |command| {
        let by = Requester { name: "a test".to_string(), reply_id: Some(reply_id) };
        Event::CommandReceived { command, by }
    };
    let health_sampled = |memory| {
        let samples = HealthSample {
            worker,
            heartbeat: 7,
            is_sleeping: false,
            requests: 1 << 40,
            memory,
            is_full: false,
            current_request: None,
        };
        Event::HealthSampled { samples: vec![samples] }
    };
    let mut events = vec![
        Event::Started,
        Event::Forked { worker, pid: 2 },
        Event::ForkFailed { worker, reason: String::new() },
        Event::Online { worker },
        Event::ProgramStarted { worker, pid: 3 },
        Event::Ready { worker },
        Event::Disconnecting { worker },
        Event::RestartDecided { worker, decision: RestartDecision::LeaveEmpty },
        command_event(ClusterCommand::Disconnect(worker)),
        Event::BootFailed { worker, reason: String::new() },
        Event::BootAttemptFailed { worker, reason: String::new() },
        Event::Retiring { worker },
        Event::WorkerIdle { worker },
        Event::WorkerUsedUp { worker, reason: RecycleReason::Jobs(1) },
        Event::ChannelClosed { worker },
        Event::ProtocolError { worker, reason: String::new() },
        command_event(ClusterCommand::Stop),
        command_event(ClusterCommand::StopNow),
        command_event(ClusterCommand::Reload),
        command_event(ClusterCommand::Scale(ScaleChange::Up(1))),
        command_event(ClusterCommand::Scale(ScaleChange::Down(1))),
        command_event(ClusterCommand::Upgrade { wait: true }),
        health_sampled(None),
        health_sampled(Some(u64::MAX)),
        Event::ConfigRead { result: Ok(test_config(1)) },
        Event::ConfigRead { result: Err(String::new()) },
        Event::UpgradeCheckPassed,
        Event::UpgradeFailed { reason: String::new() },
        Event::DeadlineReached,
    ];
    events.extend(exits.map(|status| Event::Exited { worker, status, requests_served: 0 }));
    events
}

#[test]
fn any_two_events_in_any_phase_keep_the_invariants() {
    check_all_event_pairs(0..4);
}

#[test]
fn any_two_events_in_any_stage_of_a_reload_keep_the_invariants() {
    check_all_event_pairs(4..7);
}

#[test]
fn any_two_events_in_any_stage_of_an_upgrade_keep_the_invariants() {
    check_all_event_pairs(7..CLUSTER_STATES.len());
}

fn check_all_event_pairs(phases: Range<usize>) {
    let kinds = all_events_for_worker(WorkerId(1), 0).len();
    for (phase, state) in phases.flat_map(|p| (0..WORKER_STATES.len()).map(move |s| (p, s))) {
        for script in 0..kinds.pow(2) {
            let (mut sim, worker) = cluster_in_state(phase, state);
            for (reply_id, index) in [(10, script % kinds), (20, script / kinds)] {
                // Events of the worker, of a successor, and of an unknown worker.
                let successor = sim.supervisor.slots.iter().find_map(|entry| entry.successor);
                let workers = [worker, successor.unwrap_or(worker), WorkerId(99)];
                for (worker, reply_id) in workers.into_iter().zip(reply_id..) {
                    if sim.exit.is_none() {
                        sim.now += ms(300);
                        sim.report_event(
                            all_events_for_worker(worker, reply_id).swap_remove(index),
                        );
                    }
                }
            }
            stop_and_fail_pending_forks(&mut sim);
        }
    }
}

#[test]
fn event_pairs_cover_every_stage_of_a_reload() {
    let name = |phase| {
        let (sim, _) = cluster_in_state(phase, 2);
        format!("{:?}", sim.supervisor.reload.rollout()).split(' ').next().map(str::to_string)
    };
    let stages: Vec<_> = (3..7).filter_map(name).collect();
    assert_eq!(stages, ["None", "Some(ReadingConfig", "Some(Replacing", "Some(RollingBack"]);
}

/// Stops the cluster and lets all pending forks fail.
fn stop_and_fail_pending_forks(sim: &mut Simulator) {
    sim.send_command(ClusterCommand::StopNow);
    let forking: Vec<WorkerId> = sim
        .supervisor
        .workers
        .iter()
        .filter(|record| record.state == WorkerState::Forking)
        .map(|record| record.tag.id)
        .collect();
    for worker in forking {
        sim.report_event(Event::ForkFailed { worker, reason: String::new() });
    }
    sim.run_until_idle_within(100);
    assert!(sim.exit.is_some());
}

#[test]
fn event_pairs_cover_every_worker_state() {
    let name = |state: WorkerState| format!("{state:?}").split(' ').next().map(str::to_string);
    let mut seen: Vec<_> = (0..WORKER_STATES.len())
        .filter_map(|state| {
            let (sim, worker) = cluster_in_state(1, state);
            sim.supervisor.workers.get(worker).map(|worker| name(worker.state))
        })
        .flatten()
        .collect();
    seen.sort();
    seen.dedup();
    let states = ["Aborted", "Booting", "Draining", "Exiting", "Forking", "Killed", "Serving"];
    assert_eq!(seen, states);
}
