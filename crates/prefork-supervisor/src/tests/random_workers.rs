//! Clusters of workers that behave randomly. `invariants` checks every step.

use proptest::prelude::*;

use super::*;
use crate::supervisor::Supervisor;

pub(super) fn random_configs() -> impl Strategy<Value = SupervisorConfig> {
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
            ..test_config(workers)
        }
    })
}

/// Maximum number of simulator steps per worker until a cluster has stopped: its remaining script, its exit, and some
/// health samples.
const MAX_STEPS_PER_WORKER: usize = 60;

pub(super) fn stop_within_bounds(sim: &mut Simulator, command: ClusterCommand) {
    sim.send_command(command);
    let workers = sim.supervisor.workers.len();
    sim.run_until_idle_within(MAX_STEPS_PER_WORKER * (workers + 1));
    assert!(sim.exit.is_some(), "{:#?}", sim.supervisor);
    let last = sim.log.last().map(|(_, action)| action.clone());
    assert!(matches!(last, Some(Action::Exit(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_keep_the_invariants_and_stop(
        config in random_configs(), seed: u64, ready in 0..=10u64, stop in 0..30_000u64, now: bool,
        late in proptest::option::of((0..20_000u64, 0..20_000u64)),
    ) {
        let mut sim = Simulator::new(config, seed, move |_, rng| WorkerScript::random_script(rng, ready)).start();
        if let Some((at, time)) = late {
            sim.run_for(ms(at));
            sim.stop_primary_for(ms(time));
        }
        sim.run_for(ms(stop));
        stop_within_bounds(&mut sim, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }

    #[test]
    fn random_clusters_stop_at_any_time(
        config in random_configs(), seed: u64, stops in proptest::collection::vec(0..5_000u64, 1..4),
    ) {
        let mut sim = Simulator::new(config, seed, |_, rng| WorkerScript::random_script(rng, 8));
        for at in stops {
            sim.send_command_after(ms(at), if at % 4 == 0 { ClusterCommand::StopNow } else { ClusterCommand::Stop });
        }
        let mut sim = sim.start();
        sim.run_until_idle();
        prop_assert!(sim.exit.is_some());
    }

    #[test]
    fn giving_up_takes_a_bounded_number_of_forks(
        config in random_configs(), seed: u64,
    ) {
        let (workers, attempts) = (config.workers as usize, config.boot_attempts as usize);
        let mut sim = Simulator::new(config, seed, |_, rng| WorkerScript::random_script(rng, 0)).start();
        sim.run_until_idle();
        prop_assert_eq!(sim.exit, Some(ShutdownReason::WorkersCannotBoot));
        // One fork for each round after the first, and one for each forgiven kill.
        prop_assert!(sim.fork_times().len() < workers + attempts + 3, "{}", sim.fork_times().len());
    }

    #[test]
    fn when_crashes_end_all_workers_serve_again(
        config in random_configs(), seed: u64, bad in 1..60u64,
    ) {
        let mut rng = TestRng(seed);
        let wanted = config.workers as usize;
        let config = SupervisorConfig { boot_attempts: 1000, ..config };
        let mut sim = Simulator::new(config, seed, move |tag, _| match tag.id.0 {
            id if id <= bad => WorkerScript::random_script(&mut rng, 5),
            _ => WorkerScript::never_reporting().with_step_at(0, WorkerStep::ReportReady),
        })
        .start();
        sim.run_until_idle();
        if sim.exit.is_some() {
            // Before any worker was ready, one reported why it cannot boot: that ends the cluster at once.
            let boot_errors = sim.logged(|event| matches!(event, LogEvent::BootFailed { .. }).then_some(()));
            let ready = sim.logged(|event| matches!(event, LogEvent::Ready { .. }).then_some(()));
            prop_assert!(!boot_errors.is_empty() && ready.is_empty());
            return Ok(());
        }
        prop_assert_eq!(sim.serving_workers().len(), wanted);
        prop_assert_eq!((sim.supervisor.backoff.failures(), sim.supervisor.next_deadline()), (0, None));
        prop_assert_eq!(sim.supervisor.workers.len(), wanted);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let log_of = |seed| {
        let mut sim =
            Simulator::new(test_config(4), seed, |_, rng| WorkerScript::random_script(rng, 9))
                .start();
        sim.run_for(ms(20_000));
        stop_within_bounds(&mut sim, ClusterCommand::Stop);
        format!("{:?}", sim.log)
    };
    assert_eq!(log_of(7), log_of(7));
    assert_ne!(log_of(7), log_of(8));
    assert!(!Supervisor::new(test_config(1), 1).is_stopping());
}
