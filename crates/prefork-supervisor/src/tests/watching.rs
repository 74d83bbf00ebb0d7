//! Stories of the watch: loops that do not turn, and workers that are worn.

use super::*;

fn watched(workers: u32) -> SupervisorConfig {
    SupervisorConfig {
        stall_warn: Some(ms(1_000)),
        stall_timeout: Some(ms(30_000)),
        ..policy(workers)
    }
}

/// A cluster that has served for five seconds; each worker lives as `odd` says, by its number.
fn watch(policy: SupervisorConfig, odd: impl Fn(u64) -> Option<Life> + 'static) -> World {
    let fate = move |tag: WorkerTag, _: &mut Dice| odd(tag.id.0).unwrap_or_else(Life::serving);
    let mut world = World::new(policy, 1, fate).start();
    world.run(ms(5_000));
    world
}

fn stalls(world: &World) -> Vec<(&'static str, u64, Duration)> {
    world.said(|notice| match notice {
        LogEvent::Stalled { worker, stalled_for, .. } => {
            Some(("stalled", worker.id.0, *stalled_for))
        }
        LogEvent::Recovered { worker, stalled_for } => {
            Some(("recovered", worker.id.0, *stalled_for))
        }
        LogEvent::StallTimedOut { worker, stalled_for, .. } => {
            Some(("frozen", worker.id.0, *stalled_for))
        }
        _ => None,
    })
}

fn recycled(world: &World) -> Vec<(u64, RecycleReason)> {
    world.said(|notice| match notice {
        LogEvent::Recycling { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    })
}

#[test]
fn a_frozen_worker_is_named_then_aborted_then_killed() {
    let mut world = watch(watched(2), |id| (id == 1).then(|| Life::serving().stopped()));
    world.make(1, Deed::Freeze);
    world.run(ms(60_000));
    let timeout = ms(30_000);
    assert_eq!(stalls(&world), [("stalled", 1, ms(1_000)), ("frozen", 1, timeout)]);
    let named = world.said(|notice| match notice {
        LogEvent::Stalled { current_request, .. }
        | LogEvent::StallTimedOut { current_request, .. } => current_request.clone(),
        _ => None,
    });
    assert_eq!(named, ["GET /fib/50"; 2]);
    let aborted = world.times(&Action::Abort(WorkerId(1)));
    assert_eq!(aborted, [ms(35_000)]);
    // A process that is stopped does not dump core; the kill cannot be ignored.
    assert_eq!(killed(&world, 1), [aborted[0] + ms(2_000)]);
    assert_eq!((ends(&world), world.serving()), (vec![(1, ExitCause::Stalled)], vec![3, 2]));
    assert_eq!((world.mind.restart_count(), delays(&world).len()), (1, 0));
}

#[test]
fn a_frozen_worker_that_dumps_core_is_not_killed() {
    let mut world = watch(watched(1), |_| None);
    world.make(1, Deed::Freeze);
    world.run(ms(60_000));
    assert_eq!((killed(&world, 1), ends(&world)), (vec![], vec![(1, ExitCause::Stalled)]));
    assert_eq!(world.serving(), [2]);
}

#[test]
fn a_worker_that_turns_again_is_spared_and_said_to() {
    let mut world = watch(watched(1), |_| None);
    world.make(1, Deed::Freeze);
    world.run(ms(29_000));
    world.make(1, Deed::Thaw);
    world.run(ms(60_000));
    assert_eq!(stalls(&world), [("stalled", 1, ms(1_000)), ("recovered", 1, ms(29_000))]);
    assert_eq!((world.serving(), ends(&world).len()), (vec![1], 0));
}

#[test]
fn a_worker_that_freezes_while_it_drains_is_aborted_too() {
    let policy = SupervisorConfig { graceful_timeout: ms(3_600_000), ..watched(1) };
    let mut world = watch(policy, |_| Some(Life::serving().wedged()));
    world.ask(ClusterCommand::Stop);
    world.make(1, Deed::Freeze);
    world.run(ms(60_000));
    assert_eq!(
        (ends(&world), world.exit),
        (vec![(1, ExitCause::Stalled)], Some(ShutdownReason::StopRequested))
    );
}

#[test]
fn a_stopped_primary_kills_nobody() {
    for timeout in [1, 500, 1_000, 30_000] {
        let policy = SupervisorConfig { stall_timeout: Some(ms(timeout)), ..watched(3) };
        for (asleep, all) in [(700, true), (60_000, false), (60_000, true), (86_400_000, true)] {
            let mut world = watch(policy.clone(), |_| None);
            if all && (timeout > 500 || asleep > 1_000) {
                // The whole container stops; the workers' first beat comes after our first look.
                world.suspend(ms(asleep));
            } else {
                world.stop_primary(ms(asleep));
            }
            world.run(ms(asleep + 60_000));
            let dead = ends(&world);
            assert_eq!((world.serving(), dead), (vec![1, 2, 3], vec![]), "{timeout} {asleep}");
        }
    }
}

#[test]
fn a_primary_that_is_stopped_now_and_then_still_finds_the_frozen() {
    let mut world = watch(watched(2), |_| None);
    world.make(2, Deed::Freeze);
    for _ in 0..20 {
        world.stop_primary(ms(3_000));
        world.run(ms(5_000));
    }
    assert_eq!((ends(&world), world.serving()), (vec![(2, ExitCause::Stalled)], vec![1, 3]));
}

#[test]
fn nobody_is_looked_at_when_there_is_nothing_to_look_for_and_a_reload_can_change_that() {
    let mut world = watch(policy(1), |_| None);
    world.run(ms(600_000));
    let looks = |world: &World| world.times(&Action::SampleHealth { with_memory: false }).len();
    assert_eq!((looks(&world), world.mind.deadline()), (0, None));
    world.file = Box::new(|_, _| (ms(5), Ok(watched(1))));
    world.ask(ClusterCommand::Reload);
    world.run(ms(5_100));
    assert_eq!(looks(&world), 10);
    world.file =
        Box::new(|_, _| (ms(5), Ok(SupervisorConfig { max_rss: Some(1 << 30), ..policy(1) })));
    world.ask(ClusterCommand::Reload);
    world.run(ms(5_100));
    assert!(world.times(&Action::SampleHealth { with_memory: true }).len() >= 10);
    world.file = Box::new(|_, _| (ms(5), Ok(policy(1))));
    world.ask(ClusterCommand::Reload);
    world.drive();
    assert_eq!(world.mind.deadline(), None);
}

#[test]
fn recycling_is_one_at_a_time_and_jittered() {
    let policy = SupervisorConfig { max_requests: Some(10_000), ..policy(8) };
    let mut world = watch(policy, |_| None);
    // At 100 a second, between 80 and 100 seconds; `laws` sees to it that it is one at a time.
    world.run(ms(70_000));
    assert_eq!(recycled(&world), []);
    world.run(ms(30_000));
    let worn = recycled(&world);
    let mut workers: Vec<u64> = worn.iter().map(|(worker, _)| *worker).collect();
    workers.sort_unstable();
    assert_eq!(workers, [1, 2, 3, 4, 5, 6, 7, 8]);
    let counts: Vec<u64> = worn
        .iter()
        .map(|(_, limit)| match limit {
            RecycleReason::Requests(count) => *count,
            _ => 0,
        })
        .collect();
    assert!(counts.iter().all(|count| (8_000..=10_100).contains(count)), "{counts:?}");
    assert!(counts.windows(2).all(|pair| pair[0] + 50 <= pair[1]), "apart: {counts:?}");
    assert!(ends(&world).iter().all(|(_, cause)| *cause == ExitCause::Drained));
    assert_eq!((world.serving().len(), world.mind.restart_count()), (8, 0));
}

#[test]
fn a_worker_that_grows_is_recycled_and_one_that_is_old_too() {
    let policy =
        SupervisorConfig { max_rss: Some(2_000), max_lifetime: Some(ms(100_000)), ..policy(2) };
    let mut world = watch(policy, |id| (id == 1).then(|| Life::serving().heavy(1_000, 100)));
    while recycled(&world).len() < 2 {
        world.step();
    }
    world.run(ms(1_000));
    let worn = recycled(&world);
    assert!(matches!(worn[0], (1, RecycleReason::Memory(2_001..=2_100))), "{worn:?}");
    let (_, RecycleReason::Lifetime(age)) = worn[1] else { panic!("{worn:?}") };
    assert!(age >= ms(80_000) && age <= ms(100_500), "{age:?}");
    assert_eq!((worn.len(), world.serving().len(), ends(&world).len()), (2, 2, 2));
}

#[test]
fn a_worn_worker_serves_on_when_its_successor_does_not_come_up() {
    let policy = SupervisorConfig { max_lifetime: Some(ms(10_000)), ..policy(2) };
    let mut world =
        watch(policy, |id| (id > 2).then(|| Life::hanging().and(5, Deed::End(code(1)))));
    world.run(ms(55_000));
    assert_eq!((world.serving(), delays(&world).len()), (vec![1, 2], 0));
    // One try in ten seconds.
    assert!((4..=7).contains(&world.forks()[2..].len()), "{:?}", world.forks());
}

#[test]
fn a_limit_that_fresh_workers_exceed_does_not_replace_them_as_fast_as_they_boot() {
    let policy = SupervisorConfig { max_rss: Some(500), min_uptime: ms(10_000), ..policy(1) };
    let mut world = watch(policy, |_| None);
    world.run(ms(95_000));
    assert!((5..=10).contains(&world.forks().len()), "{:?}", world.forks());
}

#[test]
fn a_reload_does_not_fail_for_a_single_replacement_that_does() {
    let limits = SupervisorConfig { max_lifetime: Some(ms(5_500)), ..policy(1) };
    let hangs = |id| (id == 2).then(|| Life::hanging().and(300, Deed::End(code(1))));
    let mut world = watch(limits, hangs);
    while recycled(&world).is_empty() {
        world.step();
    }
    world.request(1, ClusterCommand::Reload);
    world.run(ms(1_000));
    assert_eq!((world.generations(), world.answers().len()), (vec![2], 1));
    assert!(world.answers()[0].1.is_ok());
    assert_eq!(ends(&world)[0], (2, ExitCause::Superseded));
}

#[test]
fn hard_memory_limit_kills() {
    let policy = SupervisorConfig { max_rss_hard: Some(3_000), ..policy(2) };
    let mut world = watch(policy, |id| (id == 2).then(|| Life::serving().heavy(1_000, 200)));
    world.run(ms(20_000));
    let over = world.said(|notice| match notice {
        LogEvent::MemoryLimitExceeded { worker, memory, limit } => {
            Some((worker.id.0, *memory, *limit))
        }
        _ => None,
    });
    assert!(matches!(over[..], [(2, 3_001..=3_100, 3_000)]), "{over:?}");
    assert_eq!((ends(&world), world.serving()), (vec![(2, ExitCause::MemoryLimit)], vec![1, 3]));
    assert_eq!(delays(&world).len(), 0);
}

#[test]
fn workers_that_are_over_the_hard_limit_from_the_start_are_a_crash_loop() {
    let policy = SupervisorConfig { max_rss_hard: Some(500), ..policy(2) };
    let mut world = watch(policy, |_| None);
    world.run(ms(60_000));
    assert!(delays(&world).len() > 10 && world.forks().len() < 80, "{}", world.forks().len());
}
