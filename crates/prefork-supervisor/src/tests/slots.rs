//! Stories of sockets that each slot has of its own: whose worker does not accept is served by a sibling.

mod steering;

use proptest::prelude::*;

use super::kinds::kinds;
use super::odds::{end_in_bounds, policies};
use super::rolling::unbootable;
use super::whims::{limits, obey, restrict, whims};
use super::*;
use crate::identity::Slot;

fn slotted(workers: u32) -> SupervisorConfig {
    SupervisorConfig { has_socket_per_slot: true, ..policy(workers) }
}

/// So many workers that have proved themselves, with a socket each.
fn siblings(workers: u32) -> World {
    let mut world = World::new(slotted(workers), 1, |_, _| Life::serving()).start();
    world.run(ms(5_000));
    world.log.clear();
    world
}

/// Which slot is adopted by whom.
fn adopted(world: &World) -> Vec<(u32, u64)> {
    world.mind.slot_adopters().map(|(slot, worker)| (slot.0, worker.0)).collect()
}

/// Everything that was done about adoption.
fn steps(world: &World) -> Vec<(Duration, Action)> {
    let ours =
        |action: &Action| matches!(action, Action::AdoptSlot { .. } | Action::ReleaseSlot { .. });
    world.log.iter().filter(|(_, action)| ours(action)).cloned().collect()
}

fn adopt(worker: u64, slot: u32) -> Action {
    Action::AdoptSlot { worker: WorkerId(worker), slot: Slot(slot) }
}

fn release(worker: u64, slot: u32) -> Action {
    Action::ReleaseSlot { worker: WorkerId(worker), slot: Slot(slot) }
}

#[test]
fn while_a_worker_is_replaced_a_sibling_serves_its_slot() {
    let mut world = siblings(3);
    world.end(2, signal(SIGKILL));
    assert_eq!(adopted(&world), [(1, 1)]);
    world.run(ms(100));
    assert_eq!(world.serving(), [1, 4, 3]);
    assert_eq!(steps(&world), [(ms(5_000), adopt(1, 1)), (ms(5_010), release(1, 1))]);
}

#[test]
fn the_first_worker_that_serves_has_all_slots_until_the_others_do() {
    let life = |tag: WorkerTag, _: &mut Dice| match tag.slot.0 {
        1 => Life::hanging().and(50, Deed::SayReady),
        _ => Life::hanging().and(100, Deed::SayReady),
    };
    let mut world = World::new(slotted(3), 1, life).start();
    world.run(ms(60));
    assert_eq!(adopted(&world), [(0, 2), (2, 2)]);
    world.run(ms(60));
    assert_eq!(adopted(&world), []);
}

#[test]
fn in_a_crash_loop_siblings_serve_and_the_next_one_takes_over_when_one_leaves() {
    let life = |tag: WorkerTag, _: &mut Dice| match tag.id.0 {
        1..=3 => Life::serving(),
        _ => unbootable().expect("a life"),
    };
    let mut world = World::new(slotted(3), 1, life).start();
    world.run(ms(5_000));
    world.end(3, signal(SIGSEGV));
    world.run(ms(20_000));
    assert_eq!(adopted(&world), [(2, 1)]);
    world.end(1, signal(SIGKILL));
    assert_eq!(adopted(&world), [(0, 2), (2, 2)]);
    world.make(2, Deed::Retire);
    assert_eq!(adopted(&world), [], "nobody is left");
    end_in_bounds(&mut world, ClusterCommand::Stop);
}

#[test]
fn who_stands_still_is_relieved_within_half_a_second_until_it_turns_again() {
    let mut world = siblings(2);
    let frozen = world.now + ms(37);
    world.run(ms(37));
    world.make(1, Deed::Freeze);
    world.run(ms(463));
    let (at, step) = steps(&world).pop().expect("a sibling");
    assert_eq!((step, adopted(&world)), (adopt(2, 0), vec![(0, 2)]));
    assert!(at >= ms(5_300) && world.now - frozen <= ms(500), "{at:?}");
    world.make(1, Deed::Thaw);
    world.run(ms(250));
    assert_eq!(adopted(&world), []);
    // Where all stand still nobody can be asked; the first that turns serves all.
    world.make(1, Deed::Freeze);
    world.make(2, Deed::Freeze);
    world.run(ms(2_000));
    world.make(2, Deed::Thaw);
    world.run(ms(250));
    assert_eq!(adopted(&world), [(0, 2)]);
}

#[test]
fn who_is_stopped_by_a_signal_is_relieved_at_once() {
    let mut world = siblings(2);
    world.make(1, Deed::Stop);
    assert_eq!(adopted(&world), [(0, 2)]);
    // Its beat is seen to stand still as well, and it is not late any more when it turns again.
    world.run(ms(2_000));
    world.make(1, Deed::Continue);
    world.run(ms(250));
    assert_eq!(adopted(&world), []);
}

#[test]
fn a_primary_that_slept_does_not_take_it_for_the_workers_sleep() {
    let mut world = siblings(3);
    world.suspend(ms(5_000));
    world.run(ms(6_000));
    assert_eq!(steps(&world), []);
}

#[test]
fn who_has_all_the_connections_it_may_have_is_relieved_too() {
    let mut world = siblings(2);
    world.make(2, Deed::Fill);
    world.run(ms(200));
    assert_eq!(adopted(&world), [(1, 1)]);
    world.make(2, Deed::Empty);
    world.run(ms(200));
    assert_eq!(adopted(&world), []);
}

#[test]
fn slots_that_are_given_up_stay_served_and_are_spread() {
    let mut world = siblings(6);
    world.ask(ClusterCommand::Scale(ScaleChange::To(2)));
    world.run(ms(1_000));
    assert_eq!(adopted(&world), [(2, 1), (3, 2), (4, 1), (5, 2)]);
    world.end(1, signal(SIGKILL));
    assert_eq!(world.mind.slot_adopters().filter(|(_, w)| w.0 == 2).count(), 5);
    world.run(ms(100));
    assert_eq!(world.serving(), [7, 2]);
    assert_eq!(world.mind.slot_adopters().filter(|(_, w)| w.0 == 2).count(), 2);
    world.log.clear();
    // The same sockets serve when there are more again: only two are new.
    world.deafness = 0;
    while world.mind.wanted_workers() < 6 {
        world.ask(ClusterCommand::Scale(ScaleChange::To(6)));
        world.run(ms(1_000));
    }
    let opened = world.log.iter().filter(|(_, a)| *a == Action::OpenSockets { slots: 6 }).count();
    assert!(opened > 0, "{:?}", world.log);
    assert_eq!((adopted(&world), world.mind.adoption.sockets), (vec![], 6));
}

#[test]
fn more_workers_wait_for_their_sockets_and_are_refused_without() {
    let mut world = siblings(2);
    world.request(1, ClusterCommand::Scale(ScaleChange::Up(1)));
    world.request(2, ClusterCommand::Scale(ScaleChange::Up(1)));
    assert_eq!((world.mind.wanted_workers(), world.answers().len()), (2, 0));
    let reason = "cannot bind".to_string();
    world.tell(Event::SocketsOpened { slots: 3, result: Err(reason.clone()) });
    assert_eq!(world.answers(), [(1, Err(reason))]);
    world.tell(Event::SocketsOpened { slots: 3, result: Ok(()) });
    assert_eq!((world.mind.wanted_workers(), world.answers().len()), (3, 2));
    // A stop refuses whoever waits.
    world.request(3, ClusterCommand::Scale(ScaleChange::Up(1)));
    world.request(4, ClusterCommand::Stop);
    world.drive();
    let third = world.answers().into_iter().find(|(reply_id, _)| *reply_id == 3);
    assert_eq!(third, Some((3, Err("the cluster is stopping".to_string()))));
}

#[test]
fn a_reload_changes_the_policy_and_old_sockets_stay_served() {
    let mut world = World::new(policy(3), 1, |_, _| Life::serving()).start();
    world.run(ms(5_000));
    assert_eq!(steps(&world), []);
    world.file = Box::new(|policy, _| {
        (ms(5), Ok(SupervisorConfig { has_socket_per_slot: true, ..policy.clone() }))
    });
    world.request(1, ClusterCommand::Reload);
    // The workers of before share the first socket; the new ones are served by them until their own are there.
    world.run(ms(5));
    assert_eq!(adopted(&world), [(1, 1), (2, 2)]);
    world.run(ms(1_000));
    assert_eq!((world.generations(), adopted(&world)), (vec![2; 3], vec![]));
    world.file = Box::new(|policy, _| {
        (ms(5), Ok(SupervisorConfig { has_socket_per_slot: false, ..policy.clone() }))
    });
    world.request(2, ClusterCommand::Reload);
    world.run(ms(1_000));
    assert_eq!(world.generations(), [3; 3]);
    let adopters: std::collections::BTreeSet<u64> = adopted(&world).iter().map(|a| a.1).collect();
    assert_eq!((adopted(&world).len(), adopters.len()), (2, 2));
}

#[test]
fn whoever_cannot_be_told_is_passed_by_and_told_later() {
    let mut world = siblings(3);
    world.end(3, signal(SIGKILL));
    assert_eq!(adopted(&world), [(2, 1)]);
    world.tell(Event::AdoptSlotFailed { worker: WorkerId(1), slot: Slot(2) });
    assert_eq!(adopted(&world), [(2, 2)]);
    world.run(ms(10));
    assert_eq!(adopted(&world), []);
    world.tell(Event::ReleaseSlotFailed { worker: WorkerId(2), slot: Slot(2) });
    world.run(ms(300));
    let told = |step| steps(&world).iter().filter(|(_, action)| *action == step).count();
    // Of several sockets one may have reached worker 1.
    assert_eq!((told(release(1, 2)), told(release(2, 2))), (1, 2));
}

#[test]
fn a_new_image_goes_on_with_who_serves_what() {
    let mut world = siblings(4);
    world.ask(ClusterCommand::Scale(ScaleChange::To(2)));
    world.run(ms(1_000));
    assert_eq!(adopted(&world), [(2, 1), (3, 2)]);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.run(ms(69));
    assert_eq!((world.images, adopted(&world)), (1, vec![(2, 1), (3, 2)]));
    world.run(ms(1_000));
    assert_eq!((world.images, world.generations()), (1, vec![2, 2]));
    let adopters: std::collections::BTreeSet<u64> = adopted(&world).iter().map(|a| a.1).collect();
    assert_eq!((adopted(&world).len(), adopters.len()), (2, 2));
}

#[test]
fn in_a_stop_everybody_keeps_what_it_has_to_empty() {
    let mut world = siblings(3);
    world.ask(ClusterCommand::Scale(ScaleChange::To(1)));
    world.run(ms(1_000));
    world.log.clear();
    world.ask(ClusterCommand::Stop);
    world.drive();
    assert_eq!((steps(&world), world.exit), (vec![], Some(ShutdownReason::StopRequested)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nobody_waits_where_somebody_could_serve(
        policy in policies(), limits in limits(), seed: u64, ready in 0..=10u64, slots: bool,
        deafness in 0..6u64, whims in whims(), now: bool, kinds in kinds(),
    ) {
        let policy = SupervisorConfig { has_socket_per_slot: slots, ..restrict(policy, limits) };
        let mut world = World::new(policy, seed, move |_, dice| {
            let at = dice.below(4_000);
            Life::random(dice, ready).and(at, Deed::Fill).and(2 * at, Deed::Empty)
        });
        world.deafness = deafness;
        world.file = Box::new(|policy, dice| {
            let workers = if dice.below(3) == 0 { 1 + dice.below(8) as u32 } else { policy.workers };
            let has_socket_per_slot = dice.below(3) > 0;
            let policy = SupervisorConfig { workers, has_socket_per_slot, ..policy.clone() };
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
}
