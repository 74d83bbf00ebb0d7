//! Stories of reloads: the new generation is proved before the old one leaves, and what fails changes nothing.

use super::*;

/// A proven cluster of generation 1; workers of other generations live as `fresh` says, by generation and slot.
pub(super) fn reloadable(
    policy: SupervisorConfig,
    fresh: impl Fn(u64, u32) -> Option<Life> + 'static,
) -> World {
    let fate = move |tag: WorkerTag, _: &mut Dice| {
        let odd = (tag.generation.0 > 1).then(|| fresh(tag.generation.0, tag.slot.0)).flatten();
        odd.unwrap_or_else(Life::serving)
    };
    let mut world = World::new(policy, 1, fate).start();
    world.run(ms(5_000));
    world
}

pub(super) fn unbootable() -> Option<Life> {
    Some(Life::hanging().and(4, Deed::SayBootFailed).and(5, Deed::End(code(70))))
}

pub(super) fn reloads(world: &World) -> Vec<String> {
    world.said(|notice| match notice {
        LogEvent::Reloading { by } => Some(format!("reloading for {by}")),
        LogEvent::Reloaded { generation, workers, .. } => {
            Some(format!("{workers} of {generation}"))
        }
        LogEvent::RollingBack { to } => Some(format!("back to {to}")),
        LogEvent::ReloadFailed { .. } => Some("failed".to_string()),
        _ => None,
    })
}

/// Why the only request was refused.
pub(super) fn refusal(world: &World) -> String {
    let [(_, Err(reason))] = &world.answers()[..] else { panic!("{:?}", world.answers()) };
    reason.clone()
}

#[test]
fn a_reload_replaces_every_worker_and_answers() {
    let mut world = reloadable(policy(3), |_, _| None);
    world.request(7, ClusterCommand::Reload);
    assert_eq!(world.times(&Action::ReadConfig(Generation(2))), [ms(5_000)]);
    // One at a time, and each is drained at the moment when its successor is ready.
    world.run(ms(16));
    assert_eq!(world.times(&Action::Drain(WorkerId(1))), [ms(5_015)]);
    assert_eq!((world.serving(), world.answers()), (vec![4, 2, 3], vec![]));
    world.drive();
    assert_eq!((world.serving(), world.generations()), (vec![4, 5, 6], vec![2, 2, 2]));
    assert_eq!(ends(&world), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    let done = "reloaded: 3 workers of generation 2 serve".to_string();
    assert_eq!((world.answers(), world.kept()), (vec![(7, Ok(done))], Some(vec![2])));
    assert_eq!(reloads(&world), ["reloading for control", "3 of 2"]);
    assert_eq!((world.mind.restart_count(), delays(&world).len()), (0, 0));
    // Who dies now comes back in the new generation.
    world.end(5, signal(SIGKILL));
    world.drive();
    assert_eq!(world.generations(), [2, 2, 2]);
}

#[test]
fn a_storm_of_reloads_is_two_reloads() {
    let mut world = reloadable(policy(2), |_, _| None);
    for reply_id in 0..50 {
        if reply_id % 2 == 0 {
            world.request(reply_id, ClusterCommand::Reload)
        } else {
            world.ask(ClusterCommand::Reload)
        }
        world.run(ms(reply_id % 5 / 4));
    }
    world.drive();
    assert_eq!(world.generations(), [3, 3]);
    assert_eq!(reloads(&world).iter().filter(|said| said.starts_with("reloading")).count(), 2);
    let tickets: Vec<u64> = world.answers().into_iter().map(|(reply_id, _)| reply_id).collect();
    assert_eq!(tickets, (0..50).step_by(2).collect::<Vec<_>>());
    assert!(world.answers().iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn a_reload_during_a_crash_loop_mends_it() {
    let fate = |tag: WorkerTag, _: &mut Dice| match (tag.generation.0, tag.id.0) {
        (1, 4..) => Life::hanging().and(5, Deed::End(code(1))),
        _ => Life::serving(),
    };
    let mut world = World::new(policy(3), 1, fate).start();
    world.run(ms(5_000));
    for worker in 1..=3 {
        world.end(worker, signal(SIGSEGV));
    }
    world.run(ms(20_000));
    assert_eq!(world.serving().len(), 0);
    let asked = world.now;
    world.request(1, ClusterCommand::Reload);
    while world.answers().is_empty() {
        world.step();
    }
    // It does not wait for the crash loop's delay.
    assert!(world.now - asked < ms(100) && world.answers()[0].1.is_ok());
    assert_eq!(world.generations(), [2, 2, 2]);
    world.drive();
    assert_eq!((world.mind.backoff.failures(), world.mind.deadline()), (0, None), "forgotten");
}

#[test]
fn a_reload_before_the_first_worker_is_ready_brings_the_cluster_up() {
    let fate = |tag: WorkerTag, _: &mut Dice| match tag.generation.0 {
        1 => Life::hanging(),
        _ => Life::serving(),
    };
    let mut world = World::new(policy(2), 1, fate).start();
    world.run(ms(1_000));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.generations(), world.mind.phase), (vec![2, 2], ClusterPhase::Running));
    assert_eq!(ends(&world), [(1, ExitCause::Superseded), (2, ExitCause::Superseded)]);
    assert_eq!(world.times(&Action::Log(LogEvent::AllReady { workers: 2 })).len(), 1);
}

#[test]
fn surge_and_max_unavailable_are_kept() {
    // The numbers of workers that boot, and that serve, once the reload is under way.
    let cases = [
        (1, 0, (1, 4)),
        (2, 0, (2, 4)),
        (0, 1, (1, 3)),
        (1, 1, (2, 3)),
        (9, 9, (4, 4)),
        (0, 0, (1, 4)),
    ];
    for (surge, max_unavailable, expected) in cases {
        let policy = SupervisorConfig { surge, max_unavailable, ..policy(4) };
        let mut world = reloadable(policy, |_, _| None);
        world.request(1, ClusterCommand::Reload);
        world.run(ms(10));
        let boots = world.mind.members.values().filter(|m| m.ready.is_none()).count();
        assert_eq!((boots, world.serving().len()), expected, "{surge} and {max_unavailable}");
        while world.answers().is_empty() {
            world.step();
            assert!(world.serving().len() >= 4 - max_unavailable.min(4) as usize);
        }
        assert_eq!(world.generations(), [2; 4]);
    }
}

#[test]
fn a_slot_whose_predecessor_still_drains_is_not_reloaded_before_it_is_gone() {
    let mut world = World::new(policy(1), 1, |tag, _| {
        if tag.id.0 == 1 { Life::serving().wedged() } else { Life::serving() }
    })
    .start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.run(ms(1_000));
    world.request(2, ClusterCommand::Reload);
    world.drive();
    // Worker 1 is killed six seconds after its drain began.
    assert_eq!(world.forks(), [ms(0), ms(5_005), ms(11_016)]);
    assert_eq!((world.answers().len(), world.generations()), (2, vec![3]));
}

#[test]
fn a_reload_may_change_the_number_of_workers_when_it_has_succeeded() {
    for (workers, scaled) in [(4, vec![2; 4]), (1, vec![2])] {
        let mut world = reloadable(policy(2), |_, _| None);
        world.file = Box::new(move |_, _| (ms(5), Ok(policy(workers))));
        world.request(1, ClusterCommand::Reload);
        world.drive();
        assert_eq!((world.generations(), world.mind.wanted_workers()), (scaled, workers));
        let mut world = reloadable(policy(2), |_, _| unbootable());
        world.file = Box::new(move |_, _| (ms(5), Ok(policy(workers))));
        world.request(1, ClusterCommand::Reload);
        world.drive();
        assert_eq!((world.generations(), world.mind.wanted_workers()), (vec![1, 1], 2));
    }
}

#[test]
fn stop_wins_over_reload() {
    for after in [0, 5, 6, 12, 15, 20, 26, 40] {
        for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
            let mut world = reloadable(policy(2), |_, slot| (slot == 1).then(unbootable).flatten());
            world.request(1, ClusterCommand::Reload);
            world.request(2, ClusterCommand::Reload);
            world.run(ms(after));
            world.request(3, command);
            world.request(4, ClusterCommand::Reload);
            world.drive();
            assert_eq!(world.exit, Some(ShutdownReason::StopRequested), "after {after} ms");
            let refused = |reply_id| {
                let stopping = Err("the cluster is stopping".to_string());
                world.answers().contains(&(reply_id, stopping))
            };
            assert!(refused(4) && (refused(1) || after >= 26), "{:?}", world.answers());
            assert_eq!(world.answers().len(), 4);
        }
    }
}
