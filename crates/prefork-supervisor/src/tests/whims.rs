//! Random worlds with an operator of moods: reloads, scales, sleeps and stops in the middle of anything. What is
//! asserted at every step is in `laws`.

use proptest::prelude::*;

use super::kinds::kinds;
use super::odds::{end_in_bounds, policies};
use super::*;

/// What an operator may do in the middle of anything.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whim {
    Reload,
    ScaleTo(u32),
    Up(u32),
    Down(u32),
    /// So many consumers, if there is such a kind.
    Consumers(u32),
    Upgrade,
    /// The primary is stopped for so many milliseconds.
    Sleep(u64),
    /// And all its workers with it.
    Suspend(u64),
}

pub(super) fn whims() -> impl Strategy<Value = Vec<(u64, Whim)>> {
    let whim = prop_oneof![
        6 => Just(Whim::Reload),
        1 => (0..10u32).prop_map(Whim::ScaleTo),
        1 => (1..3u32).prop_map(Whim::Up),
        1 => (1..3u32).prop_map(Whim::Down),
        1 => (0..4u32).prop_map(Whim::Consumers),
        1 => Just(Whim::Upgrade),
        1 => (0..20_000u64).prop_map(Whim::Sleep),
        1 => (0..20_000u64).prop_map(Whim::Suspend),
    ];
    proptest::collection::vec((0..4_000u64, whim), 0..12)
}

/// Every other request waits for its answer.
pub(super) fn obey(world: &mut World, number: u64, whim: Whim) {
    if world.exit.is_some() {
        return;
    }
    let command = match whim {
        Whim::Reload => ClusterCommand::Reload,
        Whim::ScaleTo(workers) => ClusterCommand::Scale(ScaleChange::To(workers)),
        Whim::Up(workers) => ClusterCommand::Scale(ScaleChange::Up(workers)),
        Whim::Down(workers) => ClusterCommand::Scale(ScaleChange::Down(workers)),
        Whim::Consumers(n) => ClusterCommand::ScaleKind("consumer".to_string(), ScaleChange::To(n)),
        Whim::Upgrade => ClusterCommand::Upgrade { wait: true },
        Whim::Sleep(time) => return world.stop_primary(ms(time)),
        Whim::Suspend(time) => return world.suspend(ms(time)),
    };
    if number.is_multiple_of(2) { world.request(number, command) } else { world.ask(command) }
}

pub(super) fn limits() -> impl Strategy<Value = SupervisorConfig> {
    use proptest::option::of;
    let stall = (of(500..3_000u64), of(1..8_000u64));
    let memory = (of(500..3_000u64), of(500..4_000u64));
    let wear = (of(10..2_000u64), of(500..20_000u64));
    ((0..4u32, 0..3u32), stall, memory, wear).prop_map(|(roll, stall, memory, wear)| {
        SupervisorConfig {
            surge: roll.0,
            max_unavailable: roll.1,
            stall_warn: stall.0.map(ms),
            stall_timeout: stall.1.map(ms),
            max_rss: memory.0,
            max_rss_hard: memory.1,
            max_requests: wear.0,
            max_lifetime: wear.1.map(ms),
            ..policy(1)
        }
    })
}

/// The limits of the second with the workers and times of the first.
pub(super) fn restrict(policy: SupervisorConfig, limits: SupervisorConfig) -> SupervisorConfig {
    SupervisorConfig {
        workers: policy.workers,
        boot_timeout: policy.boot_timeout,
        graceful_timeout: policy.graceful_timeout,
        min_uptime: policy.min_uptime,
        boot_attempts: policy.boot_attempts,
        backoff_first: policy.backoff_first,
        backoff_max: policy.backoff_max,
        ..limits
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_of_whatever_workers_the_laws_are_kept(
        policy in policies(), limits in limits(), seed: u64, ready in 0..=10u64, fresh in 0..=10u64,
        whims in whims(), now: bool, kinds in kinds(),
    ) {
        let policy = restrict(policy, limits);
        let mut world = World::new(policy, seed, move |tag, dice| {
            Life::random(dice, if tag.generation.0 % 2 == 1 { ready } else { fresh })
        });
        world.file = Box::new(|policy, dice| {
            let workers = if dice.below(3) == 0 { 1 + dice.below(8) as u32 } else { policy.workers };
            let surge = dice.below(3) as u32;
            let stall_timeout = policy.stall_timeout.filter(|_| dice.below(4) > 0);
            let policy = SupervisorConfig { workers, surge, stall_timeout, ..policy.clone() };
            let result = if dice.below(4) == 0 { Err("no".to_string()) } else { Ok(policy) };
            (dice.millis(100), result)
        });
        world.binary = Box::new(Binary::random);
        let mut world = world.with_kinds(kinds).start();
        for (number, (wait, whim)) in whims.into_iter().enumerate() {
            world.run(ms(wait));
            obey(&mut world, number as u64, whim);
        }
        end_in_bounds(&mut world, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }

    #[test]
    fn every_reload_of_workers_that_do_come_up_is_answered(
        policy in policies(), limits in limits(), seed: u64, whims in whims(),
        bad in proptest::option::of(2..8u64), kinds in kinds(),
    ) {
        let policy = SupervisorConfig { max_rss_hard: None, ..restrict(policy, limits) };
        let mut world = World::new(policy, seed, move |tag, dice| {
            let life = Life::hanging().forked_after(dice.below(20));
            match bad {
                // Not always: where a new image lost old workers, none but these can follow them.
                Some(bad) if tag.generation.0 == bad && dice.below(2) == 0 => {
                    life.and(dice.below(200), Deed::End(code(1)))
                }
                _ => life.and(0, Deed::SayReady).heavy(dice.below(1_000), 0),
            }
        })
        .with_kinds(kinds)
        .start();
        world.binary = Box::new(Binary::random);
        for (number, (wait, whim)) in whims.into_iter().enumerate() {
            world.run(ms(wait));
            obey(&mut world, number as u64, whim);
        }
        // Each reload waits for the boot of each worker, and for its predecessor's predecessor to drain.
        let mut patience = 200;
        while world.is_changing() || world.serving().len() < world.mind.places.len() {
            world.run(ms(1_000));
            patience -= 1;
            prop_assert!(patience > 0, "{:#?}", world.mind);
        }
        prop_assert_eq!(world.serving().len(), world.mind.places.len());
        let generations = world.generations();
        // The old serve on where those of a new image could not replace them all.
        let same = generations.iter().all(|g| *g == world.mind.generation.0);
        prop_assert!(same || world.is_mixed(), "{:#?}", world.mind);
        end_in_bounds(&mut world, ClusterCommand::Stop);
    }
}
