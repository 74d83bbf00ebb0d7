//! Stories: what an operator sees of a cluster, told in events and actions. The larger subjects have pages of their own.

mod adoption;
mod handoff;
mod kinds;
mod loops;
mod odds;
mod pairs;
mod rolling;
mod scaling;
mod setbacks;
mod slots;
mod stopping;
mod vacancies;
mod watching;
mod whims;

use std::time::Duration;

use super::sim::{Binary, Deed, Dice, Life, SIGKILL, SIGSEGV, World, code, ms, signal};
use super::{
    Action, ClusterCommand, ClusterPhase, Event, ExitCause, HealthSample, LogEvent, RecycleReason,
    Requester, ScaleChange, ShutdownReason,
};
use crate::identity::{Generation, WorkerId, WorkerTag};
use crate::{MAX_WORKERS, SupervisorConfig};

fn policy(workers: u32) -> SupervisorConfig {
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
    }
}

/// So many workers; those with the ids of `odd` live otherwise than the rest, which serves.
fn cluster(workers: u32, odd: impl Fn(u64) -> Option<Life> + 'static) -> World {
    let fate = move |tag: WorkerTag, _: &mut Dice| odd(tag.id.0).unwrap_or_else(Life::serving);
    World::new(policy(workers), 1, fate).start()
}

/// A cluster whose workers have all served for so long that each has proved itself.
fn proven(workers: u32) -> World {
    let mut world = cluster(workers, |_| None);
    world.run(ms(5_000));
    world
}

/// How each worker ended: its id and the cause.
fn ends(world: &World) -> Vec<(u64, ExitCause)> {
    world.said(|notice| match notice {
        LogEvent::Exited(exit) => Some((exit.worker.id.0, exit.cause)),
        _ => None,
    })
}

fn delays(world: &World) -> Vec<(u32, Duration)> {
    world.said(|notice| match notice {
        LogEvent::BackingOff { failures, delay } => Some((*failures, *delay)),
        _ => None,
    })
}

fn killed(world: &World, worker: u64) -> Vec<Duration> {
    world.times(&Action::Kill(WorkerId(worker)))
}

#[test]
fn all_workers_are_forked_at_once_and_announced_when_all_are_ready() {
    let mut world = cluster(3, |_| None);
    assert_eq!((world.forks(), world.mind.phase), (vec![ms(0); 3], ClusterPhase::Booting));
    world.drive();
    assert_eq!((world.serving(), world.mind.phase), (vec![1, 2, 3], ClusterPhase::Running));
    let ready = |notice: &LogEvent| match notice {
        LogEvent::Ready { worker, after } => Some((worker.pid, *after)),
        _ => None,
    };
    assert_eq!(world.said(ready), [1001, 1002, 1003].map(|pid| (Some(pid), ms(10))));
    let all_ready = Action::Log(LogEvent::AllReady { workers: 3 });
    assert_eq!(world.log.last().map(|last| &last.1), Some(&all_ready));
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    let mut world = proven(3);
    world.end(2, signal(SIGKILL));
    assert_eq!(world.forks()[3..], [ms(5_000)]);
    world.run(ms(10));
    assert_eq!((world.serving(), world.mind.restart_count()), (vec![1, 4, 3], 1));
    let all_ready = Action::Log(LogEvent::AllReady { workers: 3 });
    assert_eq!(world.times(&all_ready), [ms(10)], "said once, at the start");
    let exits = world.said(|notice| match notice {
        LogEvent::Exited(exit) => {
            Some((exit.status, exit.cause, exit.uptime, exit.requests_served))
        }
        _ => None,
    });
    assert_eq!(exits, [(signal(SIGKILL), ExitCause::Unexpected, ms(5_000), 7)]);
}

#[test]
fn a_stop_drains_everybody_and_then_exits() {
    let mut world = proven(2);
    let before = world.log.len();
    world.ask(ClusterCommand::Stop);
    let actions: Vec<Action> = world.log[before..].iter().map(|(_, a)| a.clone()).collect();
    let stopping = LogEvent::Stopping { by: "SIGTERM".to_string(), workers: 2 };
    let (first, second) = (Action::Drain(WorkerId(1)), Action::Drain(WorkerId(2)));
    assert_eq!(actions, [Action::Log(stopping), Action::CloseListeners, first, second]);
    world.drive();
    assert_eq!(ends(&world), [(1, ExitCause::Drained), (2, ExitCause::Drained)]);
    assert_eq!(world.times(&Action::Log(LogEvent::Stopped)), [ms(5_020)]);
    assert_eq!(world.times(&Action::Exit(ShutdownReason::StopRequested)), [ms(5_020)]);
    assert_eq!(world.mind.phase, ClusterPhase::Done);
}

#[test]
fn a_wedged_worker_is_killed_when_its_grace_is_over() {
    let mut world = cluster(2, |id| (id == 1).then(|| Life::serving().wedged()));
    world.run(ms(1_000));
    world.ask(ClusterCommand::Stop);
    world.drive();
    assert_eq!((killed(&world, 1), killed(&world, 2)), (vec![ms(7_000)], vec![]));
    let over = world.said(|notice| match notice {
        LogEvent::DrainTimedOut { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    });
    assert_eq!(over, [(1, ms(5_000))]);
    assert_eq!(ends(&world), [(2, ExitCause::Drained), (1, ExitCause::GracefulTimeout)]);
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn a_second_stop_is_stop_now() {
    let mut world = cluster(1, |_| Some(Life::serving().wedged()));
    world.run(ms(1_000));
    world.ask(ClusterCommand::Stop);
    world.run(ms(100));
    world.ask(ClusterCommand::Stop);
    assert_eq!(killed(&world, 1), [ms(1_100)]);
    let by = "SIGTERM, the second request".to_string();
    let now = LogEvent::StoppingNow { by, workers: 1 };
    assert_eq!(world.times(&Action::Log(now)), [ms(1_100)]);
    world.ask(ClusterCommand::Stop);
    world.ask(ClusterCommand::StopNow);
    world.drive();
    assert_eq!((killed(&world, 1).len(), world.exit), (1, Some(ShutdownReason::StopRequested)));
}

#[test]
fn stop_now_kills_everybody_without_a_drain() {
    let mut world = proven(2);
    world.ask(ClusterCommand::StopNow);
    assert_eq!((killed(&world, 1), killed(&world, 2)), (vec![ms(5_000)], vec![ms(5_000)]));
    world.drive();
    assert!(world.times(&Action::Drain(WorkerId(1))).is_empty());
    assert_eq!(ends(&world), [(1, ExitCause::KilledByStop), (2, ExitCause::KilledByStop)]);
}

#[test]
fn a_stop_before_the_start_exits_at_once() {
    let mut world = World::new(policy(2), 1, |_, _| Life::serving());
    world.ask(ClusterCommand::Stop);
    world.tell(Event::Started);
    assert_eq!((world.exit, world.forks().len()), (Some(ShutdownReason::StopRequested), 0));
}

#[test]
fn a_retiring_worker_is_replaced_while_it_drains() {
    let mut world = cluster(2, |id| (id == 1).then(|| Life::serving().and(3_000, Deed::Retire)));
    world.run(ms(3_000));
    assert_eq!(world.forks()[2..], [ms(3_000)]);
    assert_eq!((world.mind.members.len(), world.mind.restart_count()), (3, 0));
    let retiring = world.said(|notice| match notice {
        LogEvent::Retiring { worker } => Some(worker.slot),
        _ => None,
    });
    world.drive();
    assert_eq!((world.serving(), ends(&world)), (vec![3, 2], vec![(1, ExitCause::Drained)]));
    assert_eq!((retiring.len(), world.mind.restart_count(), delays(&world).len()), (1, 0, 0));
}

#[test]
fn a_retired_worker_that_does_not_finish_is_killed_when_its_grace_is_over() {
    let wedged = Life::serving().and(3_000, Deed::Retire).wedged();
    let mut world = cluster(2, move |id| (id == 1).then(|| wedged.clone()));
    world.drive();
    assert_eq!(
        (killed(&world, 1), ends(&world)),
        (vec![ms(9_000)], vec![(1, ExitCause::GracefulTimeout)])
    );
    assert_eq!((world.serving(), world.mind.restart_count()), (vec![3, 2], 0));
}

#[test]
fn the_end_of_a_retired_worker_concerns_nobody_any_more() {
    let noisy = Life::serving().and(500, Deed::Retire).and(505, Deed::Garble).wedged();
    let mut world = cluster(2, move |id| (id == 1).then(|| noisy.clone()));
    world.drive();
    assert_eq!(ends(&world), [(1, ExitCause::Misbehaved)]);
    // Its replacement was forked long before, so this is no restart, and no crash loop.
    assert_eq!((world.mind.restart_count(), delays(&world).len(), world.forks().len()), (0, 0, 3));
}

#[test]
fn a_closed_channel_without_exit_is_killed_after_a_second() {
    let mute = Life::serving().and(2_000, Deed::CloseChannel);
    let mut world = cluster(2, move |id| (id == 1).then(|| mute.clone()));
    world.drive();
    assert_eq!(killed(&world, 1), [ms(3_000)]);
    assert_eq!((ends(&world), world.serving()), (vec![(1, ExitCause::Misbehaved)], vec![3, 2]));
}

#[test]
fn a_garbled_channel_condemns_only_its_worker() {
    let noisy = Life::serving().and(2_000, Deed::Garble);
    let mut world = cluster(3, move |id| (id == 2).then(|| noisy.clone()));
    world.drive();
    let condemned = world.said(|notice| match notice {
        LogEvent::Misbehaved { worker, reason } => Some((worker.id.0, reason.clone())),
        _ => None,
    });
    assert_eq!(condemned, [(2, "noise".to_string())]);
    assert_eq!((ends(&world), world.serving()), (vec![(2, ExitCause::Misbehaved)], vec![1, 4, 3]));
}

#[test]
fn a_worker_that_ends_in_disorder_after_its_channel_closed_is_replaced_without_a_kill() {
    let ending = Life::serving().and(2_000, Deed::CloseChannel).and(2_500, Deed::End(code(1)));
    let mut world = cluster(1, move |id| (id == 1).then(|| ending.clone()));
    world.drive();
    assert_eq!((killed(&world, 1), ends(&world)), (vec![], vec![(1, ExitCause::Unexpected)]));
    assert_eq!(world.forks(), [ms(0), ms(2_500)]);
}

#[test]
fn a_ready_word_that_arrives_with_a_late_tick_saves_the_worker() {
    let slow = Life::hanging().and(9_000, Deed::SayReady);
    let mut world = cluster(3, move |_| Some(slow.clone()));
    world.stop_primary(ms(60_000));
    world.drive();
    // The deadline had passed for all when the first word was read.
    assert_eq!((world.serving(), ends(&world).len()), (vec![1, 2, 3], 0));
}

#[test]
fn a_drain_that_ended_in_time_is_not_punished_by_a_late_tick() {
    let mut world = proven(3);
    world.ask(ClusterCommand::Stop);
    world.stop_primary(ms(60_000));
    world.drive();
    assert_eq!(ends(&world), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    assert!((1..=3).all(|id| killed(&world, id).is_empty()));
}

#[test]
fn nothing_is_said_or_done_after_the_exit() {
    let mut world = proven(1);
    world.ask(ClusterCommand::StopNow);
    world.drive();
    let said = world.log.len();
    world.ask(ClusterCommand::Stop);
    world.tell(Event::Exited { worker: WorkerId(1), status: code(0), requests_served: 0 });
    world.tell(Event::DeadlineReached);
    assert_eq!((world.log.len(), world.mind.deadline()), (said, None));
}
