//! Stories of scaling: more at once, fewer by draining.

use super::*;

fn scaled(world: &World) -> Vec<(u32, u32)> {
    world.said(|notice| match notice {
        LogEvent::Scaled { from, to, .. } => Some((*from, *to)),
        _ => None,
    })
}

#[test]
fn scaling_up_forks_what_is_missing() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Scale(ScaleChange::Up(2)));
    assert_eq!(world.forks()[2..], [ms(5_000), ms(5_000)]);
    world.drive();
    assert_eq!((world.serving(), scaled(&world)), (vec![1, 2, 3, 4], vec![(2, 4)]));
    assert_eq!(world.answers(), [(1, Ok("4 workers are wanted, 2 were".to_string()))]);
}

#[test]
fn scaling_down_drains() {
    let mut world = proven(3);
    world.request(1, ClusterCommand::Scale(ScaleChange::Down(2)));
    for worker in [2, 3] {
        assert_eq!(world.times(&Action::Drain(WorkerId(worker))), [ms(5_000)]);
    }
    world.drive();
    assert_eq!((world.serving(), world.mind.wanted_workers()), (vec![1], 1));
    assert_eq!(ends(&world), [(2, ExitCause::Drained), (3, ExitCause::Drained)]);
    assert_eq!((world.forks().len(), world.mind.restart_count(), delays(&world).len()), (3, 0, 0));
}

#[test]
fn scaling_up_and_down_as_fast_as_one_can_does_not_pile_up_workers() {
    let mut world = cluster(2, |_| Some(Life::serving().wedged()));
    world.run(ms(5_000));
    for _ in 0..40 {
        world.ask(ClusterCommand::Scale(ScaleChange::Down(1)));
        world.ask(ClusterCommand::Scale(ScaleChange::Up(1)));
        world.run(ms(20));
    }
    assert_eq!(world.mind.members.len(), 3);
    world.drive();
    assert_eq!((world.serving().len(), world.mind.members.len()), (2, 2));
}

#[test]
fn scaling_is_refused_during_a_reload() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Reload);
    world.request(2, ClusterCommand::Scale(ScaleChange::To(4)));
    world.ask(ClusterCommand::Scale(ScaleChange::Up(1)));
    world.drive();
    let reason = "a reload is under way; ask again when it is done".to_string();
    assert_eq!(world.answers()[0], (2, Err(reason.clone())));
    let refused = LogEvent::CommandRefused { by: "SIGTERM".to_string(), reason };
    assert_eq!(world.times(&Action::Log(refused)), [ms(5_000)]);
    assert_eq!(world.generations(), [2, 2]);
}

#[test]
fn nobody_can_scale_to_nothing_or_beyond_the_maximum() {
    let mut world = proven(1);
    for (reply_id, scale) in
        (0..).zip([ScaleChange::To(0), ScaleChange::Down(1), ScaleChange::Up(u32::MAX)])
    {
        world.request(reply_id, ClusterCommand::Scale(scale));
    }
    world.request(9, ClusterCommand::Scale(ScaleChange::To(1)));
    assert_eq!(world.answers().iter().filter(|(_, result)| result.is_err()).count(), 3);
    assert_eq!((world.serving(), scaled(&world)), (vec![1], vec![]));
}

#[test]
fn scaling_down_to_those_that_are_ready_ends_the_boot() {
    let mut world = cluster(2, |id| (id == 2).then(Life::hanging));
    world.run(ms(100));
    assert_eq!(world.mind.phase, ClusterPhase::Booting);
    world.ask(ClusterCommand::Scale(ScaleChange::Down(1)));
    assert_eq!(world.times(&Action::Log(LogEvent::AllReady { workers: 1 })), [ms(100)]);
    world.drive();
    assert_eq!((ends(&world), world.serving()), (vec![(2, ExitCause::Superseded)], vec![1]));
}

#[test]
fn when_the_trial_of_a_crash_loop_is_no_longer_wanted_the_others_are_not_forgotten() {
    // Of two, the second crashes, and is being tried again when it is given up.
    let mut world = cluster(2, |id| match id {
        2 => Some(Life::hanging().and(5, Deed::End(code(1)))),
        3 => Some(Life::hanging()),
        _ => None,
    });
    world.run(ms(5_000));
    assert_eq!(world.serving(), [1]);
    world.ask(ClusterCommand::Scale(ScaleChange::To(1)));
    world.drive();
    assert_eq!(world.mind.backoff.failures(), 0);
    world.end(1, signal(SIGKILL));
    world.drive();
    assert_eq!(world.serving(), [4]);
}

#[test]
fn a_model_of_one_process_is_not_scaled() {
    let one = super::SupervisorConfig { max_workers: 1, ..super::policy(1) };
    let mut world = World::new(one, 1, |_, _| Life::serving()).start();
    world.run(ms(1_000));
    world.ask(ClusterCommand::Scale(ScaleChange::Up(1)));
    world.run(ms(1_000));
    assert_eq!((world.serving(), world.mind.wanted_workers()), (vec![1], 1));
}
