//! Stories of workers of several kinds in one cluster.

use proptest::prelude::*;

use super::super::{RecycleLimits, WorkerKindConfig};
use super::handoff::until_adopted;
use super::*;
use crate::identity::Slot;

fn kind(name: &'static str, workers: u32) -> WorkerKindConfig {
    WorkerKindConfig { name, workers, limits: RecycleLimits::default() }
}

/// Kinds for random worlds, often none.
pub(super) fn kinds() -> impl Strategy<Value = Vec<WorkerKindConfig>> {
    let limits = proptest::option::of(500..20_000u64);
    let rules = (0..3u32, 0..3u32, limits).prop_map(|(consumers, crons, age)| {
        let limits = RecycleLimits { max_lifetime: age.map(ms), ..RecycleLimits::default() };
        vec![WorkerKindConfig { limits, ..kind("consumer", consumers) }, kind("cron", crons)]
    });
    prop_oneof![1 => Just(Vec::new()), 1 => rules]
}

/// Two that serve and the others.
fn mixed(others: &[WorkerKindConfig]) -> World {
    let world = World::new(policy(2), 1, |_, _| Life::serving());
    world.with_kinds(others.to_vec()).start()
}

/// Slot and kind of those that serve.
fn serving(world: &World) -> Vec<(u32, &'static str)> {
    let members = world.serving().into_iter().map(|id| &world.mind.members[&WorkerId(id)]);
    members.map(|member| (member.tag.slot.0, member.tag.kind)).collect()
}

fn scale(kind: &str, workers: u32) -> ClusterCommand {
    ClusterCommand::ScaleKind(kind.to_string(), ScaleChange::To(workers))
}

#[test]
fn each_kind_has_slots_of_its_own_and_all_are_waited_for() {
    let mut world = mixed(&[kind("consumer", 2), kind("cron", 1)]);
    world.drive();
    let others = [(1024, "consumer"), (1025, "consumer"), (2048, "cron")];
    assert_eq!(serving(&world), [&[(0, "web"), (1, "web")], &others[..]].concat());
    assert_eq!(world.times(&Action::Log(LogEvent::AllReady { workers: 5 })), [ms(10)]);
    assert_eq!((world.mind.wanted_workers(), world.mind.wanted_of_kinds()[1]), (2, ("cron", 1)));
}

#[test]
fn one_that_dies_is_replaced_by_one_of_its_kind() {
    let mut world = mixed(&[kind("consumer", 1)]);
    world.run(ms(5_000));
    world.end(3, signal(SIGKILL));
    world.run(ms(10));
    assert_eq!(serving(&world).last(), Some(&(1024, "consumer")));
    assert_eq!((world.serving(), world.mind.restart_count()), (vec![1, 2, 4], 1));
}

#[test]
fn one_kind_is_scaled_and_the_others_keep_their_slots_and_workers() {
    let mut world = mixed(&[kind("consumer", 1), kind("cron", 1)]);
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Scale(ScaleChange::Up(1)));
    world.request(2, scale("consumer", 2));
    world.run(ms(1_000));
    assert_eq!(world.serving(), [1, 2, 5, 3, 6, 4]);
    world.request(3, scale("consumer", 0));
    world.request(4, ClusterCommand::Scale(ScaleChange::Down(2)));
    world.run(ms(6_000));
    assert_eq!((world.serving(), serving(&world)), (vec![1, 4], vec![(0, "web"), (2048, "cron")]));
    world.request(5, scale("consumer", 1));
    world.request(6, scale("nobody", 1));
    world.request(7, scale("web", 2));
    world.request(8, scale("cron", MAX_WORKERS));
    world.run(ms(1_000));
    let last: Vec<_> = world.answers().into_iter().filter(|(reply_id, _)| *reply_id > 4).collect();
    let refused = |reason: &str| Err(reason.to_string());
    assert_eq!(
        last,
        [
            (5, Ok("1 workers of kind consumer are wanted, 0 were".to_string())),
            (6, refused("there are no workers of kind \"nobody\" in this cluster")),
            (7, Ok("2 workers are wanted, 1 were".to_string())),
            (8, refused("1024 workers of kind cron are too many: ask for 0 to 1023")),
        ]
    );
    let slots: Vec<u32> = serving(&world).iter().map(|one| one.0).collect();
    assert_eq!(slots, [0, 1, 1024, 2048]);
}

#[test]
fn a_reload_rolls_every_kind() {
    let mut world = mixed(&[kind("consumer", 1)]);
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    let done = "reloaded: 3 workers of generation 2 serve".to_string();
    assert_eq!((world.serving(), world.answers()), (vec![4, 5, 6], vec![(1, Ok(done))]));
}

#[test]
fn a_reload_fails_if_one_of_another_kind_cannot_boot() {
    let fate = |tag: WorkerTag, _: &mut Dice| match (tag.generation.0, tag.kind) {
        (2, "consumer") => Life::hanging().and(5, Deed::End(code(1))),
        _ => Life::serving(),
    };
    let mut world = World::new(policy(1), 1, fate).with_kinds(vec![kind("consumer", 1)]).start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.run(ms(10_000));
    assert!(world.answers()[0].1.is_err(), "{:?}", world.answers());
    assert!(world.generations().iter().all(|generation| *generation == 1));
}

#[test]
fn each_kind_has_limits_of_its_own() {
    let limits = RecycleLimits { max_lifetime: Some(ms(3_000)), ..RecycleLimits::default() };
    let mut world = mixed(&[WorkerKindConfig { limits, ..kind("consumer", 1) }]);
    world.run(ms(4_000));
    let recycled = world.said(|notice| match notice {
        LogEvent::Recycling { worker, limit: RecycleReason::Lifetime(_) } => Some(worker.slot.0),
        _ => None,
    });
    assert_eq!((recycled, world.serving()), (vec![1024], vec![1, 2, 4]));
}

#[test]
fn sockets_of_slots_are_for_those_that_serve() {
    let policy = SupervisorConfig { has_socket_per_slot: true, ..policy(2) };
    let fate = |tag: WorkerTag, _: &mut Dice| match tag.id.0 {
        // Their replacements hang: nobody is left to serve.
        4.. => Life::hanging(),
        _ => Life::serving(),
    };
    let mut world = World::new(policy, 1, fate).with_kinds(vec![kind("consumer", 1)]).start();
    world.run(ms(5_000));
    world.end(1, signal(SIGSEGV));
    world.end(2, signal(SIGSEGV));
    world.run(ms(1_000));
    let consumer = |action: &Action| match action {
        Action::AdoptSlot { worker, .. } => *worker == WorkerId(3),
        Action::SetDispatchTarget { slot, worker } => {
            *slot == Slot(1024) || *worker == Some(WorkerId(3))
        }
        _ => false,
    };
    assert_eq!(world.log.iter().filter(|(_, action)| consumer(action)).count(), 0);
}

#[test]
fn one_that_dies_of_its_work_is_no_crash_loop() {
    let dies = |at| Life::serving().and(at, Deed::End(signal(SIGSEGV)));
    let works = dies(30).and(20, Deed::Work);
    let mut world = cluster(2, move |id| (id == 2).then(|| works.clone()));
    world.drive();
    assert_eq!((world.serving(), delays(&world).len()), (vec![1, 3], 0));
    let mut world = cluster(2, move |id| (id == 2).then(|| dies(30)));
    world.drive();
    assert_eq!((world.serving(), delays(&world).len()), (vec![1, 3], 1));
}

#[test]
fn a_new_image_knows_kinds_by_their_names_and_lets_those_leave_that_it_has_not() {
    let mut world = mixed(&[kind("old", 1), kind("consumer", 1)]);
    world.run(ms(5_000));
    world.kinds = vec![kind("new", 1), kind("consumer", 2)];
    world.request(1, ClusterCommand::Upgrade { wait: true });
    until_adopted(&mut world);
    world.drive();
    let others = [(2048, "consumer"), (2049, "consumer"), (3072, "new")];
    assert_eq!(serving(&world), [&[(0, "web"), (1, "web")], &others[..]].concat());
    assert!(ends(&world).contains(&(3, ExitCause::Drained)), "{:?}", ends(&world));
    let replaced = world.said(|notice| match notice {
        LogEvent::Replaced { worker, by } => Some((worker.0, by.slot.0)),
        _ => None,
    });
    assert!(replaced.contains(&(4, 2048)) && !replaced.iter().any(|one| one.0 == 3));
}
