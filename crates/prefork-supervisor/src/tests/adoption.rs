//! Stories of a new image and the workers that it finds.

use super::super::WorkerState;
use super::handoff::{fit, until_adopted};
use super::rolling::{reloadable, reloads, unbootable};
use super::*;

#[test]
fn workers_that_die_in_the_exec_window_are_replaced() {
    let mut world = proven(4);
    fit(&mut world, 4, 2);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    until_adopted(&mut world);
    let dead = 4 - world.serving().len();
    world.drive();
    assert!((1..4).contains(&world.mind.restart_count()), "{dead}");
    assert_eq!(world.generations(), [2; 4]);
    // And where nobody is left.
    let mut world = proven(4);
    fit(&mut world, 4, 1);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!((world.generations(), world.mind.restart_count()), (vec![2; 4], 4));
    assert_eq!(ends(&world).len(), 4);
}

#[test]
fn an_adopted_cluster_whose_new_workers_cannot_boot_keeps_the_old_ones() {
    let mut world = reloadable(policy(3), |generation, _| (generation == 2).then(unbootable)?);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!((world.serving(), world.generations()), (vec![1, 2, 3], vec![1; 3]));
    assert_eq!((reloads(&world), world.images), (vec!["failed".to_string()], 1));
    // A worker that dies now can only be followed by one of the new image: it is tried for ever, and never ends us.
    world.end(2, signal(SIGSEGV));
    world.run(ms(60_000));
    assert_eq!((world.serving(), world.exit), (vec![1, 3], None));
    assert!(delays(&world).len() > 10);
    // Until a reload, or another upgrade, brings what does boot.
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!(world.generations(), [3; 3]);
}

#[test]
fn what_an_adoption_has_brought_stays_if_the_rest_of_it_fails() {
    let mut world = reloadable(policy(3), |generation, slot| {
        (generation == 2 && slot == 2).then(unbootable).flatten()
    });
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.drive();
    // There is no binary of before that could fork what was before.
    assert_eq!((world.serving(), world.generations()), (vec![4, 5, 3], vec![2, 2, 1]));
    assert_eq!(reloads(&world), ["failed"]);
    let mut kept = world.kept().unwrap_or_default();
    kept.sort_unstable();
    assert_eq!(kept, [1, 2]);
    // Who dies comes back as what there is now, and a reload makes them equal.
    world.end(4, signal(SIGKILL));
    world.drive();
    assert_eq!(world.generations(), [2, 2, 1]);
    world.request(2, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.generations(), world.kept()), (vec![3; 3], Some(vec![3])));
}

#[test]
fn a_generation_that_was_tried_in_vain_is_not_tried_again_under_its_number() {
    // A reload that failed leaves everybody of generation 1, and number 2 is used up.
    let mut world = reloadable(policy(2), |generation, _| (generation == 2).then(unbootable)?);
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!(world.generations(), [1, 1]);
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!(world.generations(), [3, 3]);
}

#[test]
fn workers_of_a_reload_that_could_not_be_undone_are_replaced_as_well() {
    // Slot 0 goes to generation 2, slot 1 does not, and slot 0 cannot go back: generations 2 and 1 serve.
    let fate = |tag: WorkerTag, _: &mut Dice| match (tag.generation.0, tag.slot.0, tag.id.0) {
        (2, 1, _) | (1, _, 3..) => unbootable().unwrap_or_else(Life::hanging),
        _ => Life::serving(),
    };
    let mut world = World::new(policy(2), 1, fate).start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.serving(), world.generations()), (vec![3, 2], vec![2, 1]));
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!(world.generations(), [3, 3]);
}

#[test]
fn a_new_configuration_may_want_another_number_of_workers() {
    for (workers, all) in [(5, vec![2; 5]), (1, vec![2])] {
        let mut world = proven(3);
        fit(&mut world, workers, 0);
        world.request(1, ClusterCommand::Upgrade { wait: true });
        until_adopted(&mut world);
        // Not before the new ones have shown that they serve.
        assert_eq!(world.mind.wanted_workers(), 3);
        world.drive();
        assert_eq!((world.generations(), world.mind.wanted_workers()), (all, workers));
        // If they do not, it stays what it was.
        let mut world = reloadable(policy(3), |_, _| unbootable());
        fit(&mut world, workers, 0);
        world.request(1, ClusterCommand::Upgrade { wait: true });
        world.drive();
        assert_eq!((world.generations(), world.mind.wanted_workers()), (vec![1; 3], 3));
    }
}

#[test]
fn those_that_leave_boot_or_are_killed_in_that_moment_are_seen_to_their_end() {
    // 1 drains and never finishes, 2 has closed its channel and lives on, 3 is being killed, 4 serves; 5 to 7, in the
    // places of the first three, boot for ever.
    let fate = |tag: WorkerTag, _: &mut Dice| match (tag.generation.0, tag.id.0) {
        (1, 1 | 2) => Life::serving().wedged(),
        (1, 5..) => Life::hanging().wedged(),
        _ => Life::serving(),
    };
    let mut world = World::new(policy(4), 1, fate).start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.run(ms(49));
    world.make(1, Deed::Retire);
    world.make(2, Deed::CloseChannel);
    world.tell(Event::ProtocolError { worker: WorkerId(3), reason: "noise".to_string() });
    world.end(3, signal(SIGKILL));
    until_adopted(&mut world);
    assert_eq!(world.serving(), [4]);
    let serves = |state: WorkerState| matches!(state, WorkerState::Serving);
    let others = world.mind.members.values().filter(|m| m.tag.id.0 < 7 && !serves(m.state));
    assert!(others.count() >= 3 && world.leaving().contains(&1), "{:?}", world.leaving());
    let adopted = world.now;
    world.drive();
    assert_eq!((world.generations(), world.mind.members.len()), (vec![2; 4], 4));
    // Not later than the graceful timeout, counted anew.
    assert!(world.now - adopted < ms(2 * 6_000 + 1_000), "{:?}", world.now - adopted);
}

#[test]
fn a_stop_in_the_first_moment_of_a_new_image_ends_all() {
    for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
        let mut world = proven(3);
        fit(&mut world, 3, 3);
        world.request(1, ClusterCommand::Upgrade { wait: true });
        until_adopted(&mut world);
        world.request(2, command);
        world.drive();
        assert_eq!((world.exit, world.answers().len()), (Some(ShutdownReason::StopRequested), 2));
    }
}
