//! Stories of workers that die young: who is forgiven, who waits, and when the cluster gives up.

use super::*;

fn dying(at: u64) -> Life {
    Life::hanging().and(at, Deed::End(code(1)))
}

#[test]
fn five_hundred_kills_of_ready_workers_cause_no_backoff() {
    let mut world = cluster(4, |_| None);
    world.run(ms(20));
    for round in 0..500 {
        let victim = world.serving()[round % 4];
        world.end(victim, signal(SIGKILL));
        world.run(ms(20));
        assert_eq!(world.serving().len(), 4);
    }
    assert_eq!((world.forks().len(), world.mind.restart_count()), (504, 500));
    assert!(delays(&world).is_empty());
}

#[test]
fn a_worker_that_exits_at_boot_is_tried_one_at_a_time_with_growing_delays() {
    let mut world = cluster(8, |_| Some(dying(5)));
    world.drive();
    // Eight, and then one for each further round.
    let forks = world.forks();
    assert_eq!(forks.len(), 8 + 4);
    let gaps: Vec<u128> = forks[7..].windows(2).map(|w| (w[1] - w[0]).as_millis() - 5).collect();
    for (gap, full) in gaps.into_iter().zip([100, 200, 400, 800]) {
        assert!((full * 3 / 4..=full).contains(&gap), "{gap} of {full}");
    }
    assert!(ends(&world).iter().all(|(_, cause)| *cause == ExitCause::BootFailed));
}

#[test]
fn a_cluster_that_cannot_boot_gives_up_and_says_so() {
    let mut world = cluster(2, |_| {
        Some(Life::hanging().and(4, Deed::SayBootFailed).and(5, Deed::End(code(70))))
    });
    world.drive();
    assert_eq!(world.exit, Some(ShutdownReason::WorkersCannotBoot));
    let reason = world.said(|notice| match notice {
        LogEvent::BootFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason, vec!["no"; 2 + 4]);
    let given_up = |notice: &LogEvent| match notice {
        LogEvent::GivingUp { failures } => Some(*failures),
        _ => None,
    };
    assert_eq!((world.said(given_up), delays(&world).len()), (vec![5], 4));
}

#[test]
fn a_failed_boot_is_reported_once_and_condemns_a_worker_that_was_ready() {
    let mut world = cluster(2, |_| None);
    let says = |worker| Event::BootFailed { worker, reason: "no".to_string() };
    world.tell(says(WorkerId(1)));
    world.tell(says(WorkerId(1)));
    let told = |world: &World| {
        world.said(|notice| matches!(notice, LogEvent::BootFailed { .. }).then_some(())).len()
    };
    assert_eq!(told(&world), 1);
    world.run(ms(2_000));
    world.tell(says(WorkerId(2)));
    assert_eq!(told(&world), 1, "it had booted");
    let condemned = |notice: &LogEvent| match notice {
        LogEvent::Misbehaved { worker, .. } => Some(worker.id.0),
        _ => None,
    };
    assert_eq!(world.said(condemned), [2]);
}

#[test]
fn giving_up_kills_the_others_and_a_stop_does_not_change_the_outcome() {
    let mut world = cluster(2, |id| Some(if id == 1 { Life::hanging() } else { dying(5) }));
    while world.mind.phase == ClusterPhase::Booting {
        world.step();
    }
    assert_eq!(world.mind.phase, ClusterPhase::Killing(ShutdownReason::WorkersCannotBoot));
    world.ask(ClusterCommand::StopNow);
    world.drive();
    assert_eq!(killed(&world, 1).len(), 1);
    assert_eq!(world.exit, Some(ShutdownReason::WorkersCannotBoot));
}

#[test]
fn a_cluster_that_had_served_never_gives_up() {
    let mut world = cluster(3, |id| (id > 3).then(|| dying(5)));
    world.run(ms(2_000));
    for id in 1..=3 {
        world.end(id, signal(SIGSEGV));
    }
    world.run(ms(600_000));
    assert_eq!((world.exit, world.serving().len()), (None, 0));
    let (failures, delay) = *delays(&world).last().expect("it cools down");
    assert!(failures > 100 && delay <= ms(2_000) && delay >= ms(1_500));
    assert!(world.forks().len() <= 6 + failures as usize);
}

#[test]
fn a_cluster_that_can_boot_again_is_whole_again_after_one_trial() {
    let mut world = cluster(3, |id| (id <= 6).then(|| dying(5)));
    world.drive();
    assert_eq!(world.serving(), [7, 8, 9]);
    // The others follow as soon as the trial is ready, not one by one.
    let forks = world.forks();
    assert_eq!((forks[7] - forks[6], forks[8] - forks[6]), (ms(10), ms(10)));
    assert_eq!(world.mind.backoff.failures(), 0);
}

#[test]
fn the_boot_timeout_kills_and_counts() {
    let mut world = cluster(1, |id| (id == 1).then(Life::hanging));
    world.drive();
    assert_eq!(killed(&world, 1), [ms(10_000)]);
    let timed_out = world.said(|notice| match notice {
        LogEvent::BootTimedOut { worker, limit } => Some((worker.id.0, *limit)),
        _ => None,
    });
    assert_eq!(
        (timed_out, ends(&world)),
        (vec![(1, ms(10_000))], vec![(1, ExitCause::BootTimeout)])
    );
    assert_eq!((delays(&world).len(), world.serving()), (1, vec![2]));
}

#[test]
fn forks_that_fail_are_tried_again_one_at_a_time() {
    let mut world = cluster(4, |id| (id <= 6).then(Life::stillborn));
    world.run(ms(50));
    assert_eq!((world.forks().len(), world.mind.members.len()), (4, 0));
    world.drive();
    let failed = world.said(|notice| match notice {
        LogEvent::ForkFailed { worker, .. } => Some(worker.pid),
        _ => None,
    });
    assert_eq!((failed, delays(&world).len()), (vec![None; 6], 3));
    assert_eq!(world.serving(), [7, 8, 9, 10]);
}

#[test]
fn a_death_during_the_delay_forks_nothing() {
    let mut world = proven(3);
    world.end(1, signal(SIGKILL));
    world.run(ms(0));
    world.end(4, code(1));
    assert_eq!(delays(&world).len(), 1);
    let forks = world.forks().len();
    world.end(2, signal(SIGKILL));
    world.end(3, code(1));
    assert_eq!((world.forks().len(), delays(&world).len()), (forks, 1));
    world.drive();
    assert_eq!(world.serving().len(), 3);
}

#[test]
fn a_worker_that_gets_ready_during_the_delay_does_not_end_it() {
    // Each dies soon after it was ready, but there is always another that is about to be ready.
    let mut world = cluster(8, |id| {
        Some(
            Life::hanging()
                .and(50 + id % 8 * 7, Deed::SayReady)
                .and(60 + id % 8 * 7, Deed::End(code(1))),
        )
    });
    world.run(ms(60_000));
    // Delays reach 2 s soon; a round forks a trial, and the rest if that was ready.
    assert!(world.forks().len() <= 8 * 45, "{} forks in a minute", world.forks().len());
}

#[test]
fn one_is_tried_at_a_time_whatever_becomes_of_the_first_workers() {
    // Worker 9 is the trial, and slow; of the first eight, each dies a while after the one before.
    let mut world = cluster(8, |id| {
        Some(if id <= 8 { dying(id * 500) } else { Life::hanging().and(5_000, Deed::SayReady) })
    });
    world.run(ms(5_000));
    assert_eq!((world.exit, world.forks().len(), delays(&world).len()), (None, 9, 1));
    world.run(ms(1_000));
    assert_eq!((world.exit, world.forks().len()), (None, 16));
}

#[test]
fn a_few_kills_of_booting_workers_are_forgiven() {
    let mut world = cluster(1, |id| (id <= 4).then(Life::hanging));
    for id in 1..=3 {
        world.end(id, signal(SIGKILL));
        world.run(ms(0));
        assert_eq!((world.forks().len(), delays(&world).len()), (id as usize + 1, 0));
    }
    world.end(4, signal(SIGKILL));
    assert_eq!((world.forks().len(), delays(&world).len()), (4, 1));
}

#[test]
fn kills_are_forgiven_anew_once_a_worker_was_ready() {
    let mut world = cluster(1, |id| (id % 4 != 0).then(Life::hanging));
    for id in 1..12 {
        if id % 4 == 0 {
            world.run(ms(10));
        }
        world.end(id, signal(SIGKILL));
        world.run(ms(0));
    }
    assert_eq!((world.forks().len(), delays(&world).len()), (12, 0));
}

#[test]
fn a_crash_soon_after_ready_cools_down_and_a_late_one_does_not() {
    for (uptime, rounds) in [(900, 1), (1_100, 0)] {
        let mut world = cluster(1, move |id| {
            (id == 1).then(|| Life::serving().and(10 + uptime, Deed::End(signal(SIGSEGV))))
        });
        world.drive();
        assert_eq!((delays(&world).len(), world.serving()), (rounds, vec![2]));
    }
}

#[test]
fn workers_that_retire_before_they_are_ready_are_a_crash_loop_too() {
    let mut world = cluster(2, |_| Some(Life::hanging().and(1, Deed::Retire)));
    world.run(ms(60_000));
    assert_eq!((world.exit, world.forks().len()), (Some(ShutdownReason::WorkersCannotBoot), 2 + 4));
}
