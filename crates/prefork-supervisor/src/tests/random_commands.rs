//! Random clusters with an operator that sends random commands at any time. `invariants` checks every step.

use proptest::prelude::*;

use super::random_workers::{random_configs, stop_within_bounds};
use super::worker_kinds::random_kinds;
use super::*;

/// A random command, or a stop of the primary.
#[derive(Debug, Clone, Copy)]
pub(super) enum RandomCommand {
    Reload,
    ScaleTo(u32),
    ScaleUp(u32),
    ScaleDown(u32),
    /// Scales the kind `consumer`, which may not exist.
    ScaleConsumers(u32),
    /// Adds a `web` worker.
    AddWorker,
    /// Adds a worker of the kind `consumer`, which may not exist.
    AddConsumer,
    Upgrade,
    /// Jobs wait, so that this many workers of the kind `cron` would be busy.
    NeedCrons(u32),
    /// The worker of the kind `cron` in this slot has nothing to do.
    IdleCron(u32),
    /// The worker in the slot with this index has reached a limit between two jobs.
    UseUp(usize),
    /// Stops the primary for this many milliseconds.
    StopPrimary(u64),
    /// Stops the primary and its workers for this many milliseconds.
    SuspendAll(u64),
}

pub(super) fn random_commands() -> impl Strategy<Value = Vec<(u64, RandomCommand)>> {
    let command = prop_oneof![
        6 => Just(RandomCommand::Reload),
        1 => (0..10u32).prop_map(RandomCommand::ScaleTo),
        1 => (1..3u32).prop_map(RandomCommand::ScaleUp),
        1 => (1..3u32).prop_map(RandomCommand::ScaleDown),
        1 => (0..4u32).prop_map(RandomCommand::ScaleConsumers),
        1 => Just(RandomCommand::AddWorker),
        1 => Just(RandomCommand::AddConsumer),
        1 => Just(RandomCommand::Upgrade),
        2 => (0..9u32).prop_map(RandomCommand::NeedCrons),
        2 => (0..6u32).prop_map(RandomCommand::IdleCron),
        1 => (0..12usize).prop_map(RandomCommand::UseUp),
        1 => (0..20_000u64).prop_map(RandomCommand::StopPrimary),
        1 => (0..20_000u64).prop_map(RandomCommand::SuspendAll),
    ];
    proptest::collection::vec((0..4_000u64, command), 0..12)
}

/// Returns the change that adds a worker with a variable of its own.
pub(super) fn add_worker(sim: &mut Simulator) -> ScaleChange {
    let id = sim.supervisor.reserve_worker_id();
    ScaleChange::AddWorker(id, vec![("ROLE".to_string(), id.to_string())])
}

/// Sends the command. Every other one expects a reply.
pub(super) fn run_command(sim: &mut Simulator, number: u64, command: RandomCommand) {
    if sim.exit.is_some() {
        return;
    }
    let command = match command {
        RandomCommand::Reload => ClusterCommand::Reload,
        RandomCommand::ScaleTo(workers) => ClusterCommand::Scale(ScaleChange::To(workers)),
        RandomCommand::ScaleUp(workers) => ClusterCommand::Scale(ScaleChange::Up(workers)),
        RandomCommand::ScaleDown(workers) => ClusterCommand::Scale(ScaleChange::Down(workers)),
        RandomCommand::ScaleConsumers(n) => {
            ClusterCommand::ScaleKind("consumer".to_string(), ScaleChange::To(n))
        }
        RandomCommand::AddWorker => {
            let command = ClusterCommand::Scale(add_worker(sim));
            return sim.send_command(command);
        }
        RandomCommand::AddConsumer => {
            let command = ClusterCommand::ScaleKind("consumer".to_string(), add_worker(sim));
            return sim.send_command(command);
        }
        RandomCommand::Upgrade => ClusterCommand::Upgrade { wait: true },
        RandomCommand::NeedCrons(workers) => {
            return sim.report_event(Event::WorkersNeeded { kind: "cron", workers });
        }
        RandomCommand::IdleCron(n) => {
            let mut slots = sim.supervisor.slots.iter().filter(|entry| entry.kind == "cron");
            let worker = slots.nth(n as usize).and_then(|entry| entry.holder);
            return worker
                .into_iter()
                .for_each(|worker| sim.report_event(Event::WorkerIdle { worker }));
        }
        RandomCommand::UseUp(index) => {
            let holder = sim.supervisor.slots.iter().nth(index).and_then(|entry| entry.holder);
            let reason = RecycleReason::Jobs(1);
            return holder.into_iter().for_each(|worker| {
                sim.report_event(Event::WorkerUsedUp { worker, reason });
            });
        }
        RandomCommand::StopPrimary(time) => return sim.stop_primary_for(ms(time)),
        RandomCommand::SuspendAll(time) => return sim.suspend_all_for(ms(time)),
    };
    if number.is_multiple_of(2) {
        sim.send_command_with_reply(number, command)
    } else {
        sim.send_command(command)
    }
}

pub(super) fn random_limits() -> impl Strategy<Value = SupervisorConfig> {
    use proptest::option::of;
    let stall = (of(500..3_000u64), of(1..8_000u64));
    let memory = (of(500..3_000u64), of(500..4_000u64));
    let recycle = (of(10..2_000u64), of(500..20_000u64));
    ((0..4u32, 0..3u32), stall, memory, recycle).prop_map(|(rollout, stall, memory, recycle)| {
        SupervisorConfig {
            surge: rollout.0,
            max_unavailable: rollout.1,
            stall_warn: stall.0.map(ms),
            stall_timeout: stall.1.map(ms),
            max_rss: memory.0,
            max_rss_hard: memory.1,
            max_requests: recycle.0,
            max_lifetime: recycle.1.map(ms),
            ..test_config(1)
        }
    })
}

/// Returns `limits` with the number of workers and the times of `config`.
pub(super) fn with_limits_of(
    config: SupervisorConfig,
    limits: SupervisorConfig,
) -> SupervisorConfig {
    SupervisorConfig {
        workers: config.workers,
        boot_timeout: config.boot_timeout,
        graceful_timeout: config.graceful_timeout,
        min_uptime: config.min_uptime,
        boot_attempts: config.boot_attempts,
        backoff_first: config.backoff_first,
        backoff_max: config.backoff_max,
        ..limits
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_keep_the_invariants(
        config in random_configs(), limits in random_limits(), seed: u64, ready in 0..=10u64, later_ready in 0..=10u64,
        random_commands in random_commands(), now: bool, kinds in random_kinds(),
    ) {
        let config = with_limits_of(config, limits);
        let mut sim = Simulator::new(config, seed, move |tag, rng| {
            WorkerScript::random_script(rng, if tag.generation.0 % 2 == 1 { ready } else { later_ready })
        });
        sim.config_file = Box::new(|config, rng| {
            let workers = if rng.random_below(3) == 0 { 1 + rng.random_below(8) as u32 } else { config.workers };
            let surge = rng.random_below(3) as u32;
            let stall_timeout = config.stall_timeout.filter(|_| rng.random_below(4) > 0);
            let config = SupervisorConfig { workers, surge, stall_timeout, ..config.clone() };
            let result = if rng.random_below(4) == 0 { Err("no".to_string()) } else { Ok(config) };
            (rng.random_millis(100), result)
        });
        sim.new_binary = Box::new(NewBinary::random_binary);
        let mut sim = sim.with_kinds(kinds).start();
        for (number, (wait, command)) in random_commands.into_iter().enumerate() {
            sim.run_for(ms(wait));
            run_command(&mut sim, number as u64, command);
        }
        stop_within_bounds(&mut sim, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }

    #[test]
    fn random_reloads_of_working_workers_all_get_replies(
        config in random_configs(), limits in random_limits(), seed: u64, random_commands in random_commands(),
        bad in proptest::option::of(2..8u64), kinds in random_kinds(),
    ) {
        let config = SupervisorConfig { max_rss_hard: None, ..with_limits_of(config, limits) };
        let mut sim = Simulator::new(config, seed, move |tag, rng| {
            let script = WorkerScript::never_reporting().with_fork_time(rng.random_below(20));
            match bad {
                // Not in every run: after an upgrade, lost workers can only be replaced by these.
                Some(bad) if tag.generation.0 == bad && rng.random_below(2) == 0 => {
                    script.with_step_at(rng.random_below(200), WorkerStep::Exit(exit_code(1)))
                }
                _ => script.with_step_at(0, WorkerStep::ReportReady).with_memory(rng.random_below(1_000), 0),
            }
        })
        .with_kinds(kinds)
        .start();
        sim.new_binary = Box::new(NewBinary::random_binary);
        for (number, (wait, command)) in random_commands.into_iter().enumerate() {
            sim.run_for(ms(wait));
            run_command(&mut sim, number as u64, command);
        }
        // A reload waits for the boot of each worker, and for an earlier worker of its slot to drain.
        let mut rounds_left = 200;
        while sim.is_reloading_or_upgrading() || sim.serving_workers().len() < sim.supervisor.slots.len() {
            sim.run_for(ms(1_000));
            rounds_left -= 1;
            prop_assert!(rounds_left > 0, "{:#?}", sim.supervisor);
        }
        prop_assert_eq!(sim.serving_workers().len(), sim.supervisor.slots.len());
        let generations = sim.serving_generations();
        // Old workers keep serving where those of a new binary could not replace them all.
        let same = generations.iter().all(|g| *g == sim.supervisor.reload.generation().0);
        prop_assert!(same || sim.allows_mixed_generations(), "{:#?}", sim.supervisor);
        stop_within_bounds(&mut sim, ClusterCommand::Stop);
    }
}
