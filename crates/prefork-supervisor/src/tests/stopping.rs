//! Stops: who is killed and who drains, and the delay in which balancers are told.

use super::*;

#[test]
fn a_stop_kills_workers_that_boot_and_drains_those_that_serve() {
    let mut world = cluster(2, |id| (id == 1).then(Life::hanging));
    world.run(ms(1_000));
    world.ask(ClusterCommand::Stop);
    assert_eq!((killed(&world, 1), killed(&world, 2)), (vec![ms(1_000)], vec![]));
    assert_eq!(world.times(&Action::Drain(WorkerId(2))), [ms(1_000)]);
    world.drive();
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn a_fork_that_comes_back_after_the_stop_is_killed() {
    let mut world = cluster(1, |_| Some(Life::serving().forked_after(500)));
    world.ask(ClusterCommand::Stop);
    assert_eq!((world.mind.phase, world.exit), (ClusterPhase::Stopping, None));
    world.drive();
    assert_eq!(killed(&world, 1), [ms(500)]);
    assert_eq!(
        (ends(&world), world.exit),
        (vec![(1, ExitCause::KilledByStop)], Some(ShutdownReason::StopRequested))
    );
}

#[test]
fn a_fork_that_fails_after_the_stop_is_not_missed() {
    let mut world = cluster(1, |_| Some(Life::stillborn().forked_after(500)));
    world.ask(ClusterCommand::Stop);
    world.drive();
    assert_eq!((world.exit, world.forks().len()), (Some(ShutdownReason::StopRequested), 1));
}

/// A cluster of so many proven workers that accepts for three seconds more when it is told to stop.
fn slow_to_leave(workers: u32) -> World {
    let policy = SupervisorConfig { drain_delay: ms(3_000), ..policy(workers) };
    let mut world = World::new(policy, 1, |_, _| Life::serving()).start();
    world.run(ms(5_000));
    world
}

fn departures(world: &World) -> Vec<Duration> {
    world.said(|notice| match notice {
        LogEvent::StopDelayed { delay, .. } => Some(*delay),
        _ => None,
    })
}

#[test]
fn a_stop_waits_for_balancers_to_notice() {
    let mut world = slow_to_leave(2);
    world.ask(ClusterCommand::Stop);
    assert!(world.mind.is_stop_requested() && !world.mind.is_stopping());
    assert_eq!((departures(&world), world.mind.view().phase), (vec![ms(3_000)], "stopping"));
    world.run(ms(2_999));
    assert_eq!((world.serving(), world.times(&Action::CloseListeners)), (vec![1, 2], vec![]));
    world.drive();
    assert_eq!(world.times(&Action::CloseListeners), [ms(8_000)]);
    assert_eq!(world.times(&Action::Drain(WorkerId(1))), [ms(8_000)]);
    assert_eq!((world.exit, world.forks().len()), (Some(ShutdownReason::StopRequested), 2));
}

#[test]
fn a_second_request_does_not_wait_and_kills_nobody() {
    let mut world = slow_to_leave(1);
    world.ask(ClusterCommand::Stop);
    world.run(ms(50));
    world.ask(ClusterCommand::Stop);
    assert!(!world.mind.is_stopping(), "two that come together are one");
    world.run(ms(950));
    world.ask(ClusterCommand::Stop);
    assert_eq!(world.times(&Action::Drain(WorkerId(1))), [ms(6_000)]);
    world.run(ms(0));
    assert_eq!(killed(&world, 1), []);
}

#[test]
fn a_stop_at_once_is_at_once() {
    let mut world = slow_to_leave(1);
    world.ask(ClusterCommand::Stop);
    world.run(ms(200));
    world.ask(ClusterCommand::StopNow);
    assert_eq!(killed(&world, 1), [ms(5_200)]);
    world.drive();
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn who_dies_in_the_delay_is_replaced_and_nothing_new_is_begun() {
    let mut world = slow_to_leave(2);
    world.ask(ClusterCommand::Stop);
    world.end(1, signal(SIGKILL));
    world.run(ms(100));
    assert_eq!(world.serving(), [3, 2]);
    for (reply_id, command) in [
        (1, ClusterCommand::Reload),
        (2, ClusterCommand::Scale(ScaleChange::Up(1))),
        (3, ClusterCommand::Upgrade { wait: true }),
        (4, ClusterCommand::Disconnect(WorkerId(2))),
    ] {
        world.request(reply_id, command);
        let refused = Err("the cluster is stopping".to_string());
        assert_eq!(
            world.times(&Action::Reply { reply_id, result: refused }).len(),
            1,
            "{reply_id}"
        );
    }
    world.ask(ClusterCommand::Reload);
    let refusals = world.said(|notice| match notice {
        LogEvent::CommandRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(refusals, ["the cluster is stopping"]);
    world.drive();
    assert_eq!(
        (world.exit, world.mind.is_stop_requested()),
        (Some(ShutdownReason::StopRequested), true)
    );
}

#[test]
fn an_upgrade_that_is_being_proved_is_given_up_by_a_stop_that_waits() {
    let mut world = slow_to_leave(1);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.ask(ClusterCommand::Stop);
    assert_eq!(world.times(&Action::StopUpgradeCheck).len(), 1);
    world.drive();
    assert_eq!((world.exit, world.images), (Some(ShutdownReason::StopRequested), 0));
}

#[test]
fn where_nobody_serves_a_stop_waits_for_nobody() {
    let policy = SupervisorConfig { drain_delay: ms(3_000), ..policy(1) };
    let mut world = World::new(policy, 1, |_, _| Life::hanging()).start();
    world.ask(ClusterCommand::Stop);
    assert_eq!((departures(&world), world.mind.phase), (vec![], ClusterPhase::Stopping));
    world.drive();
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
}
