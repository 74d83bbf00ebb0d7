//! Stories of who is said to take the connections of a slot.

use super::super::*;
use super::slotted;

/// What was said about who takes which slot's connections.
fn steering(world: &mut World) -> Vec<(u32, Option<u64>)> {
    let said = world.log.iter().filter_map(|(_, action)| match action {
        Action::SetDispatchTarget { slot, worker } => Some((slot.0, worker.map(|worker| worker.0))),
        _ => None,
    });
    let said = said.collect();
    world.log.clear();
    said
}

#[test]
fn connections_are_steered_to_workers_that_take_them() {
    let mut world = World::new(slotted(2), 1, |_, _| Life::serving()).start();
    assert_eq!(steering(&mut world), []);
    world.run(ms(5_000));
    assert_eq!(steering(&mut world), [(0, Some(1)), (1, Some(2))]);
    // Dead, and replaced.
    world.end(2, signal(SIGKILL));
    assert_eq!(steering(&mut world), [(1, None)]);
    world.run(ms(1_000));
    assert_eq!(steering(&mut world), [(1, Some(3))]);
    // A loop that stands still, and a worker that has all it may have.
    for (deed, back) in [(Deed::Freeze, Deed::Thaw), (Deed::Fill, Deed::Empty)] {
        world.make(1, deed);
        world.run(ms(500));
        assert_eq!(steering(&mut world), [(0, None)]);
        world.make(1, back);
        world.run(ms(500));
        assert_eq!(steering(&mut world), [(0, Some(1))]);
    }
    // A signal that stops it is known at once.
    for (deed, steered) in [(Deed::Stop, None), (Deed::Continue, Some(1))] {
        world.make(1, deed);
        assert_eq!(steering(&mut world), [(0, steered)]);
    }
    // A successor takes over without a gap; who retires does not take any more.
    world.ask(ClusterCommand::Reload);
    world.run(ms(1_000));
    assert_eq!(steering(&mut world), [(0, Some(4)), (1, Some(5))]);
    world.make(4, Deed::Retire);
    assert_eq!(steering(&mut world), [(0, None)]);
    world.run(ms(1_000));
    assert_eq!(steering(&mut world), [(0, Some(6))]);
    world.ask(ClusterCommand::Scale(ScaleChange::To(1)));
    world.run(ms(1_000));
    assert_eq!(steering(&mut world), [(1, None)]);
    // In a stop each empties its own queue.
    world.ask(ClusterCommand::Stop);
    world.drive();
    assert_eq!(steering(&mut world), []);
}
