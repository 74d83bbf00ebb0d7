//! All pairs of what the cluster may be in and what may happen to it. What is asserted at every step of these
//! is in `laws`.

use std::ops::Range;

use super::super::WorkerState;
use super::*;

/// The states a worker can be brought into.
const STATES: [fn(&mut World, WorkerId); 9] = [
    |_, _| {},
    |world, worker| world.tell(Event::Forked { worker, pid: 1 }),
    serve,
    |world, worker| {
        serve(world, worker);
        world.tell(Event::Retiring { worker });
    },
    |world, worker| {
        serve(world, worker);
        world.tell(Event::ChannelClosed { worker });
    },
    |world, worker| {
        serve(world, worker);
        world.tell(Event::ProtocolError { worker, reason: String::new() });
    },
    |world, worker| {
        world.tell(Event::Forked { worker, pid: 1 });
        world.run(ms(10_000));
    },
    |world, worker| {
        serve(world, worker);
        world.tell(Event::Exited { worker, status: code(1), requests_served: 0 });
    },
    |world, worker| {
        serve(world, worker);
        world.make(worker.0, Deed::Freeze);
        while !matches!(world.mind.members[&worker].state, WorkerState::Aborted { .. }) {
            world.step();
        }
    },
];

/// The phases and reloads the cluster can be brought into: left before any worker was ready, once all were, in a
/// stop, at the end; while the configuration is read, while workers are replaced, while they are brought back; while
/// a new binary is proved, before it takes over, after that, and when one of its own workers serves.
const PHASES: [fn(&mut World); 11] = [
    |_| {},
    |_| {},
    |world| world.ask(ClusterCommand::Stop),
    |world| world.ask(ClusterCommand::StopNow),
    |world| world.request(1, ClusterCommand::Reload),
    |world| {
        world.request(1, ClusterCommand::Reload);
        world.tell(Event::ConfigRead { result: Ok(policy(3)) });
    },
    |world| {
        world.request(1, ClusterCommand::Reload);
        world.tell(Event::ConfigRead { result: Ok(policy(3)) });
        let successors = |world: &World| {
            world.mind.places.iter().filter_map(|p| p.successor).collect::<Vec<_>>()
        };
        for successor in successors(world) {
            serve(world, successor);
        }
        for worker in successors(world) {
            world.tell(Event::ForkFailed { worker, reason: String::new() });
        }
    },
    |world| world.request(1, ClusterCommand::Upgrade { wait: true }),
    |world| {
        world.request(1, ClusterCommand::Upgrade { wait: true });
        world.tell(Event::UpgradeCheckPassed);
    },
    adopt,
    |world| {
        adopt(world);
        if let Some(successor) = world.mind.places.iter().find_map(|place| place.successor) {
            serve(world, successor);
        }
    },
];

fn adopt(world: &mut World) {
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.tell(Event::UpgradeCheckPassed);
    world.become_new(policy(3), ms(10), 0);
}

fn serve(world: &mut World, worker: WorkerId) {
    world.tell(Event::Forked { worker, pid: 1 });
    world.tell(Event::Ready { worker });
}

/// Two workers in the hands of the test: their forks take a year and they do nothing by themselves. The
/// first is in the given state, and so is the cluster.
fn situation(phase: usize, state: usize) -> (World, WorkerId) {
    let year = 365 * 24 * 3600 * 1000;
    let policy = SupervisorConfig { boot_attempts: 1, stall_timeout: Some(ms(1_000)), ..policy(2) };
    let mut world =
        World::new(policy, 1, move |_, _| Life::hanging().wedged().stopped().forked_after(year))
            .start();
    world.file = Box::new(move |policy, _| (ms(year), Ok(policy.clone())));
    world.binary = Box::new(move |policy, _| Binary {
        exec: (ms(year), ms(0), Ok(policy.clone())),
        proof: None,
        toll: 0,
    });
    let mut worker = WorkerId(1);
    if phase > 0 {
        serve(&mut world, WorkerId(1));
        serve(&mut world, WorkerId(2));
        assert_eq!(world.mind.phase, ClusterPhase::Running);
        world.run(ms(2_000));
        world.tell(Event::Exited { worker, status: signal(SIGKILL), requests_served: 0 });
        worker = WorkerId(3);
    }
    STATES[state](&mut world, worker);
    PHASES[phase](&mut world);
    (world, worker)
}

/// What may be told of the worker; requests wait for an answer by `reply_id`.
fn events(worker: WorkerId, reply_id: u64) -> Vec<Event> {
    let exits = [code(0), code(1), signal(SIGKILL), signal(SIGSEGV)];
    let asked = |command| {
        let by = Requester { name: "a test".to_string(), reply_id: Some(reply_id) };
        Event::CommandReceived { command, by }
    };
    let seen = |memory| {
        let samples = HealthSample {
            worker,
            heartbeat: 7,
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
        Event::Ready { worker },
        Event::Disconnecting { worker },
        Event::RestartDecided { worker, restart: false },
        asked(ClusterCommand::Disconnect(worker)),
        Event::BootFailed { worker, reason: String::new() },
        Event::Retiring { worker },
        Event::ChannelClosed { worker },
        Event::ProtocolError { worker, reason: String::new() },
        asked(ClusterCommand::Stop),
        asked(ClusterCommand::StopNow),
        asked(ClusterCommand::Reload),
        asked(ClusterCommand::Scale(ScaleChange::Up(1))),
        asked(ClusterCommand::Scale(ScaleChange::Down(1))),
        asked(ClusterCommand::Upgrade { wait: true }),
        seen(None),
        seen(Some(u64::MAX)),
        Event::ConfigRead { result: Ok(policy(1)) },
        Event::ConfigRead { result: Err(String::new()) },
        Event::UpgradeCheckPassed,
        Event::UpgradeFailed { reason: String::new() },
        Event::DeadlineReached,
    ];
    events.extend(exits.map(|status| Event::Exited { worker, status, requests_served: 0 }));
    events
}

#[test]
fn any_two_events_in_any_situation_keep_the_laws_and_the_cluster_can_still_stop() {
    any_two_events(0..4);
}

#[test]
fn any_two_events_in_any_stage_of_a_reload_keep_the_laws_and_the_cluster_can_still_stop() {
    any_two_events(4..7);
}

#[test]
fn any_two_events_in_any_stage_of_an_upgrade_keep_the_laws_and_the_cluster_can_still_stop() {
    any_two_events(7..PHASES.len());
}

fn any_two_events(phases: Range<usize>) {
    let kinds = events(WorkerId(1), 0).len();
    for (phase, state) in phases.flat_map(|p| (0..STATES.len()).map(move |s| (p, s))) {
        for script in 0..kinds.pow(2) {
            let (mut world, worker) = situation(phase, state);
            for (reply_id, index) in [(10, script % kinds), (20, script / kinds)] {
                // Words of the worker itself, of one that is to succeed one, and of one that nobody knows.
                let successor = world.mind.places.iter().find_map(|place| place.successor);
                let workers = [worker, successor.unwrap_or(worker), WorkerId(99)];
                for (worker, reply_id) in workers.into_iter().zip(reply_id..) {
                    if world.exit.is_none() {
                        world.now += ms(300);
                        world.tell(events(worker, reply_id).swap_remove(index));
                    }
                }
            }
            end(&mut world);
        }
    }
}

#[test]
fn every_stage_of_a_reload_is_among_the_situations() {
    let name = |phase| {
        let (world, _) = situation(phase, 2);
        format!("{:?}", world.mind.roll).split(' ').next().map(str::to_string)
    };
    let stages: Vec<_> = (3..7).filter_map(name).collect();
    assert_eq!(stages, ["None", "Some(Reading", "Some(Rolling", "Some(Back"]);
}

/// Asks for an end and answers whatever is still open.
fn end(world: &mut World) {
    world.ask(ClusterCommand::StopNow);
    let forking: Vec<WorkerId> = world
        .mind
        .members
        .iter()
        .filter(|(_, member)| member.state == WorkerState::Forking)
        .map(|(id, _)| *id)
        .collect();
    for worker in forking {
        world.tell(Event::ForkFailed { worker, reason: String::new() });
    }
    world.drive_bounded(100);
    assert!(world.exit.is_some());
}

#[test]
fn every_state_of_a_worker_is_among_the_situations() {
    let name = |state: WorkerState| format!("{state:?}").split(' ').next().map(str::to_string);
    let mut seen: Vec<_> = (0..STATES.len())
        .filter_map(|state| {
            let (world, worker) = situation(1, state);
            world.mind.members.get(&worker).map(|member| name(member.state))
        })
        .flatten()
        .collect();
    seen.sort();
    seen.dedup();
    let states = ["Aborted", "Booting", "Draining", "Exiting", "Forking", "Killed", "Serving"];
    assert_eq!(seen, states);
}
