//! Stories of reloads that fail: the old generation serves on, and whoever asked is told reason.

use super::rolling::{refusal, reloadable, reloads, unbootable};
use super::*;

#[test]
fn a_reload_whose_config_is_bad_changes_nothing() {
    let mut world = reloadable(policy(2), |_, _| None);
    world.file = Box::new(|_, _| (ms(5), Err("unknown key wokers".to_string())));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.serving(), world.kept()), (vec![1, 2], Some(vec![1])));
    assert_eq!((refusal(&world).as_str(), world.forks().len()), ("unknown key wokers", 2));
    assert_eq!(reloads(&world), ["reloading for control", "failed"]);
}

#[test]
fn a_reload_whose_workers_cannot_boot_leaves_the_old_generation() {
    let mut world = reloadable(policy(3), |_, _| unbootable());
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.serving(), world.kept()), (vec![1, 2, 3], Some(vec![1])));
    assert_eq!(refusal(&world), "worker=4 slot=0 gen=2 pid=1004: no");
    assert_eq!((world.forks().len(), delays(&world).len()), (4, 0), "and no crash loop");
}

#[test]
fn each_way_not_to_come_up_fails_a_reload_at_once_and_is_named() {
    let ways: [(Life, &str); 6] = [
        (Life::hanging(), "was not ready within 10s"),
        (Life::stillborn(), "EAGAIN"),
        (Life::hanging().and(5, Deed::End(code(3))), "exit status: 3"),
        (Life::hanging().and(5, Deed::End(signal(SIGSEGV))), "signal: 11 (SIGSEGV)"),
        (Life::hanging().and(5, Deed::Garble), "noise"),
        (Life::hanging().and(5, Deed::Retire), "retired before it was ready"),
    ];
    for (life, reason) in ways {
        let mut world = reloadable(policy(2), move |_, _| Some(life.clone()));
        world.request(1, ClusterCommand::Reload);
        world.drive();
        assert!(refusal(&world).contains(reason), "{} for {reason}", refusal(&world));
        assert_eq!((world.serving(), world.forks().len()), (vec![1, 2], 3), "{reason}");
    }
}

#[test]
fn when_a_later_successor_fails_the_earlier_ones_are_rolled_back() {
    let mut world = reloadable(policy(3), |_, slot| (slot == 2).then(unbootable).flatten());
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!(world.serving(), [7, 8, 3]);
    assert_eq!((world.generations(), world.kept()), (vec![1, 1, 1], Some(vec![1])));
    assert_eq!(refusal(&world), "worker=6 slot=2 gen=2 pid=1006: no");
    assert_eq!(reloads(&world), ["reloading for control", "back to 1", "failed"]);
}

#[test]
fn a_new_worker_that_dies_young_fails_the_reload_and_is_replaced_by_an_old_one() {
    let fresh = |_, slot| match slot {
        0 => Some(Life::serving().and(15, Deed::End(signal(SIGSEGV)))),
        _ => Some(Life::hanging().and(500, Deed::SayReady)),
    };
    let mut world = reloadable(policy(2), fresh);
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert!(refusal(&world).contains("died young: signal: 11"));
    assert_eq!((world.generations(), delays(&world).len()), (vec![1, 1], 0));
}

#[test]
fn when_going_back_fails_too_what_serves_goes_on_and_the_next_reload_mends_it() {
    let fate = |tag: WorkerTag, _: &mut Dice| {
        let bad = tag.generation == Generation(2) && tag.slot.0 == 1 || (4..6).contains(&tag.id.0);
        if bad { Life::hanging().and(5, Deed::End(code(1))) } else { Life::serving() }
    };
    let mut world = World::new(policy(2), 1, fate).start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert!(
        refusal(&world).contains("and going back failed too: worker=5"),
        "{:?}",
        refusal(&world)
    );
    assert_eq!((world.generations(), world.kept()), (vec![2, 1], Some(vec![1, 2])));
    world.ask(ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.generations(), world.kept()), (vec![3, 3], Some(vec![3])));
}

#[test]
fn kills_from_outside_are_forgiven_until_they_are_too_many() {
    // Each new worker is killed the moment it serves.
    let mut world =
        reloadable(policy(2), |_, _| Some(Life::serving().and(15, Deed::End(signal(SIGKILL)))));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert!(refusal(&world).contains("signal: 9"));
    assert_eq!(world.generations(), [1, 1]);
    let mut world = reloadable(policy(1), |_, _| None);
    world.request(1, ClusterCommand::Reload);
    world.run(ms(6));
    world.end(2, signal(SIGKILL));
    world.drive();
    assert_eq!((world.serving(), world.answers().len()), (vec![3], 1));
    assert!(world.answers()[0].1.is_ok());
}

#[test]
fn a_failed_reload_leaves_the_old_limits_in_force() {
    let mut world = reloadable(policy(1), |_, _| unbootable());
    let before = world.mind.policy.clone();
    world.file =
        Box::new(|_, _| (ms(5), Ok(SupervisorConfig { boot_timeout: ms(1), ..policy(1) })));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!(world.mind.policy, before);
}
