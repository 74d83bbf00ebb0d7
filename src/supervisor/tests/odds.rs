//! All pairs of what the cluster may be in and what may happen to it, and random worlds. What is asserted
//! at every step of these is in `laws`.

use proptest::prelude::*;

use super::super::{State, Supervisor};
use super::*;

/// The states a worker can be brought into.
const STATES: [fn(&mut World, WorkerId); 8] = [
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
        world.tell(Event::Garbled { worker, why: String::new() });
    },
    |world, worker| {
        world.tell(Event::Forked { worker, pid: 1 });
        world.run(ms(10_000));
    },
    |world, worker| {
        serve(world, worker);
        world.tell(Event::Exited { worker, status: code(1), served: 0 });
    },
];

fn serve(world: &mut World, worker: WorkerId) {
    world.tell(Event::Forked { worker, pid: 1 });
    world.tell(Event::Ready { worker });
}

/// Two workers in the hands of the test: their forks take a year and they do nothing by themselves. The
/// first is in the given state; the phase is left before any worker was ready, once all were, in a stop, or
/// at the end.
fn situation(phase: usize, state: usize) -> (World, WorkerId) {
    let year = 365 * 24 * 3600 * 1000;
    let policy = Policy { boot_attempts: 1, ..policy(2) };
    let mut world =
        World::new(policy, 1, move |_, _| Life::hanging().wedged().forked_after(year)).start();
    let mut worker = WorkerId(1);
    if phase > 0 {
        serve(&mut world, WorkerId(1));
        serve(&mut world, WorkerId(2));
        assert_eq!(world.mind.phase, Phase::Running);
        world.run(ms(2_000));
        world.tell(Event::Exited { worker, status: signal(SIGKILL), served: 0 });
        worker = WorkerId(3);
    }
    STATES[state](&mut world, worker);
    match phase {
        0 | 1 => {}
        2 => world.ask(Intent::Stop),
        _ => world.ask(Intent::StopNow),
    }
    (world, worker)
}

fn events(worker: WorkerId) -> Vec<Event> {
    let exits = [code(0), code(1), signal(SIGKILL), signal(SIGSEGV)];
    let asked = |intent| Event::Asked { intent, by: Asker::nameless("a test") };
    let mut events = vec![
        Event::Started,
        Event::Forked { worker, pid: 2 },
        Event::ForkFailed { worker, why: String::new() },
        Event::Ready { worker },
        Event::BootFailed { worker, why: String::new() },
        Event::Retiring { worker },
        Event::ChannelClosed { worker },
        Event::Garbled { worker, why: String::new() },
        asked(Intent::Stop),
        asked(Intent::StopNow),
        Event::DeadlineReached,
    ];
    events.extend(exits.map(|status| Event::Exited { worker, status, served: 0 }));
    events
}

#[test]
fn any_two_events_in_any_situation_keep_the_laws_and_the_cluster_can_still_stop() {
    let kinds = events(WorkerId(1)).len();
    for (phase, state) in (0..4).flat_map(|p| (0..STATES.len()).map(move |s| (p, s))) {
        for script in 0..kinds.pow(2) {
            let (mut world, worker) = situation(phase, state);
            for index in [script % kinds, script / kinds] {
                // Words of the worker itself, and of one that nobody knows.
                world.tell(events(worker)[index].clone());
                world.tell(events(WorkerId(99))[index].clone());
            }
            end(&mut world);
        }
    }
}

/// Asks for an end and answers whatever is still open.
fn end(world: &mut World) {
    world.ask(Intent::StopNow);
    let forking: Vec<WorkerId> = world
        .mind
        .members
        .iter()
        .filter(|(_, member)| member.state == State::Forking)
        .map(|(id, _)| *id)
        .collect();
    for worker in forking {
        world.tell(Event::ForkFailed { worker, why: String::new() });
    }
    world.drive_bounded(100);
    assert!(world.exit.is_some());
}

#[test]
fn every_state_of_a_worker_is_among_the_situations() {
    let name = |state: State| format!("{state:?}").split(' ').next().map(str::to_string);
    let mut seen: Vec<_> = (0..STATES.len())
        .filter_map(|state| {
            let (world, worker) = situation(1, state);
            world.mind.members.get(&worker).map(|member| name(member.state))
        })
        .flatten()
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["Booting", "Draining", "Forking", "Killed", "Leaving", "Serving"]);
}

pub(super) fn policies() -> impl Strategy<Value = Policy> {
    let times = (1..5_000u64, 0..5_000u64, 0..3_000u64, 1..500u64, 1..20u64);
    (1..=8u32, 1..=6u32, times).prop_map(|(workers, boot_attempts, times)| {
        let (boot, graceful, uptime, first, factor) = times;
        Policy {
            workers,
            boot_timeout: ms(boot),
            graceful_timeout: ms(graceful),
            min_uptime: ms(uptime),
            boot_attempts,
            backoff_first: ms(first),
            backoff_max: ms(first * factor),
            ..policy(workers)
        }
    })
}

/// Steps it takes at most to end: each worker has a few words left and an exit, and there are some looks.
const STEPS_TO_END: usize = 60;

pub(super) fn end_in_bounds(world: &mut World, intent: Intent) {
    world.ask(intent);
    let members = world.mind.members.len();
    world.drive_bounded(STEPS_TO_END * (members + 1));
    assert!(world.exit.is_some(), "{:#?}", world.mind);
    let last = world.log.last().map(|(_, action)| action.clone());
    assert!(matches!(last, Some(Action::Exit(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_worlds_keep_the_laws_and_end_when_asked(
        policy in policies(), seed: u64, ready in 0..=10u64, stop in 0..30_000u64, now: bool,
        late in proptest::option::of((0..20_000u64, 0..20_000u64)),
    ) {
        let mut world = World::new(policy, seed, move |_, dice| Life::random(dice, ready)).start();
        if let Some((at, time)) = late {
            world.run(ms(at));
            world.stop_primary(ms(time));
        }
        world.run(ms(stop));
        end_in_bounds(&mut world, if now { Intent::StopNow } else { Intent::Stop });
    }

    #[test]
    fn a_request_may_come_in_the_middle_of_anything(
        policy in policies(), seed: u64, stops in proptest::collection::vec(0..5_000u64, 1..4),
    ) {
        let mut world = World::new(policy, seed, |_, dice| Life::random(dice, 8));
        for at in stops {
            world.ask_in(ms(at), if at % 4 == 0 { Intent::StopNow } else { Intent::Stop });
        }
        let mut world = world.start();
        world.drive();
        prop_assert!(world.exit.is_some());
    }

    #[test]
    fn a_cluster_that_never_boots_gives_up_after_a_bounded_number_of_forks(
        policy in policies(), seed: u64,
    ) {
        let (workers, attempts) = (policy.workers as usize, policy.boot_attempts as usize);
        let mut world = World::new(policy, seed, |_, dice| Life::random(dice, 0)).start();
        world.drive();
        prop_assert_eq!(world.exit, Some(Outcome::WorkersCannotBoot));
        // One fork a round after the first, and one for each kill that is forgiven.
        prop_assert!(world.forks().len() < workers + attempts + 3, "{}", world.forks().len());
    }

    #[test]
    fn when_the_crashes_end_the_cluster_is_whole_again(
        policy in policies(), seed: u64, bad in 1..60u64,
    ) {
        let mut dice = Dice(seed);
        let wanted = policy.workers as usize;
        let policy = Policy { boot_attempts: 1000, ..policy };
        let mut world = World::new(policy, seed, move |tag, _| match tag.id.0 {
            id if id <= bad => Life::random(&mut dice, 5),
            _ => Life::hanging().and(0, Deed::SayReady),
        })
        .start();
        world.drive();
        prop_assert_eq!(world.exit, None);
        prop_assert_eq!(world.serving().len(), wanted);
        prop_assert_eq!((world.mind.backoff.failures(), world.mind.deadline()), (0, None));
        prop_assert_eq!(world.mind.members.len(), wanted);
    }
}

#[test]
fn a_seed_means_the_same_world_for_ever() {
    let story = |seed| {
        let mut world = World::new(policy(4), seed, |_, dice| Life::random(dice, 9)).start();
        world.run(ms(20_000));
        end_in_bounds(&mut world, Intent::Stop);
        format!("{:?}", world.log)
    };
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
    assert!(!Supervisor::new(policy(1), 1).stopping());
}
