//! Random worlds. What is asserted at every step of these is in `laws`.

use proptest::prelude::*;

use super::super::Supervisor;
use super::*;

pub(super) fn policies() -> impl Strategy<Value = SupervisorConfig> {
    let times = (1..5_000u64, 0..5_000u64, 0..3_000u64, 1..500u64, 1..20u64);
    (1..=8u32, 1..=6u32, times).prop_map(|(workers, boot_attempts, times)| {
        let (boot, graceful, uptime, first, factor) = times;
        SupervisorConfig {
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

pub(super) fn end_in_bounds(world: &mut World, command: ClusterCommand) {
    world.ask(command);
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
        end_in_bounds(&mut world, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }

    #[test]
    fn a_request_may_come_in_the_middle_of_anything(
        policy in policies(), seed: u64, stops in proptest::collection::vec(0..5_000u64, 1..4),
    ) {
        let mut world = World::new(policy, seed, |_, dice| Life::random(dice, 8));
        for at in stops {
            world.ask_in(ms(at), if at % 4 == 0 { ClusterCommand::StopNow } else { ClusterCommand::Stop });
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
        prop_assert_eq!(world.exit, Some(ShutdownReason::WorkersCannotBoot));
        // One fork a round after the first, and one for each kill that is forgiven.
        prop_assert!(world.forks().len() < workers + attempts + 3, "{}", world.forks().len());
    }

    #[test]
    fn when_the_crashes_end_the_cluster_is_whole_again(
        policy in policies(), seed: u64, bad in 1..60u64,
    ) {
        let mut dice = Dice(seed);
        let wanted = policy.workers as usize;
        let policy = SupervisorConfig { boot_attempts: 1000, ..policy };
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
        end_in_bounds(&mut world, ClusterCommand::Stop);
        format!("{:?}", world.log)
    };
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
    assert!(!Supervisor::new(policy(1), 1).is_stopping());
}
