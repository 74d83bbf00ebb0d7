//! Stories of what is told of each worker, of workers that leave for good, and of those that are not replaced. That each
//! worker has its events once and in order is asserted at every step of all worlds, by `laws`.

use proptest::prelude::*;

use super::odds::{end_in_bounds, policies};
use super::whims::{Whim, limits, obey, restrict, whims};
use super::*;
use crate::DrainReason;
use crate::identity::Slot;

/// What was told of one worker, in its order.
fn life_of(world: &World, id: u64) -> Vec<&'static str> {
    let id = WorkerId(id);
    world.said(|notice| match notice {
        LogEvent::Forked { worker } if worker.id == id => Some("fork"),
        LogEvent::Online { worker } if worker.id == id => Some("online"),
        LogEvent::Ready { worker, .. } if worker.id == id => Some("ready"),
        LogEvent::Disconnected { worker } if worker.id == id => Some("disconnect"),
        LogEvent::Exited(exit) if exit.worker.id == id => Some("exit"),
        LogEvent::Replaced { worker, .. } if *worker == id => Some("replaced"),
        _ => None,
    })
}

fn leaves(world: &World) -> Vec<(u64, Option<DrainReason>)> {
    world.said(|notice| match notice {
        LogEvent::Exited(exit) => Some((exit.worker.id.0, exit.drain_reason)),
        _ => None,
    })
}

const WHOLE: [&str; 6] = ["fork", "online", "ready", "disconnect", "exit", "replaced"];

#[test]
fn a_worker_that_crashes_is_told_from_its_fork_to_its_replacement() {
    let mut world = proven(2);
    world.end(2, signal(SIGSEGV));
    world.drive();
    assert_eq!(life_of(&world, 2), WHOLE);
    assert_eq!(life_of(&world, 3), WHOLE[..3]);
    assert_eq!(leaves(&world), [(2, None)]);
}

#[test]
fn a_worker_is_replaced_when_it_is_gone_not_when_its_successor_is_ready() {
    let mut world = proven(1);
    world.ask(ClusterCommand::Reload);
    world.drive();
    assert_eq!((life_of(&world, 1), life_of(&world, 2)), (WHOLE.to_vec(), WHOLE[..3].to_vec()));
    assert_eq!(leaves(&world), [(1, Some(DrainReason::Reload))]);
}

#[test]
fn a_worker_that_dies_before_it_serves_is_not_replaced_but_tried_again() {
    let mut world = cluster(1, |id| (id == 1).then(|| Life::hanging().and(5, Deed::End(code(1)))));
    world.drive();
    assert_eq!(life_of(&world, 1), ["fork", "disconnect", "exit"]);
    assert_eq!(world.serving(), [2]);
}

#[test]
fn that_a_worker_runs_is_said_once_and_never_of_strangers() {
    let mut world = cluster(1, |_| Some(Life::hanging().and(5, Deed::SayOnline)));
    world.run(ms(5));
    assert_eq!(life_of(&world, 1), ["fork", "online"]);
    world.make(1, Deed::SayOnline);
    world.make(1, Deed::SayReady);
    world.tell(Event::Online { worker: WorkerId(9) });
    assert_eq!((life_of(&world, 1), life_of(&world, 9)), (WHOLE[..3].to_vec(), vec![]));
}

#[test]
fn who_is_disconnected_drains_and_its_slot_stays_empty_until_somebody_scales() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Disconnect(WorkerId(2)));
    assert_eq!(world.times(&Action::Drain(WorkerId(2))), [ms(5_000)]);
    world.drive();
    assert_eq!(world.answers().len(), 1);
    assert_eq!((world.serving(), world.mind.wanted_workers()), (vec![1], 2));
    assert_eq!(world.mind.vacant(), [Slot(1)]);
    assert_eq!(leaves(&world), [(2, Some(DrainReason::Disconnect))]);
    assert_eq!(life_of(&world, 2), WHOLE[..5], "nobody replaces it");
    world.ask(ClusterCommand::Scale(ScaleChange::To(2)));
    world.drive();
    assert_eq!((world.serving(), world.mind.vacant()), (vec![1, 3], vec![]));
    assert_eq!((life_of(&world, 2).len(), world.mind.restart_count()), (5, 0));
}

#[test]
fn who_leaves_for_good_by_itself_is_made_up_for_by_a_reload() {
    let mut world = proven(2);
    world.make(1, Deed::Disconnect);
    world.drive();
    assert_eq!((world.serving(), world.mind.vacant()), (vec![2], vec![Slot(0)]));
    assert!(world.times(&Action::Drain(WorkerId(1))).is_empty(), "it drains already");
    // The one that is left is killed: it is replaced, the other is not.
    world.end(2, signal(SIGKILL));
    world.drive();
    assert_eq!((world.serving(), world.mind.vacant()), (vec![3], vec![Slot(0)]));
    world.ask(ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.generations(), world.mind.vacant()), (vec![2, 2], vec![]));
}

#[test]
fn workers_that_always_leave_for_good_are_not_forked_again_and_again_by_a_reload() {
    let life = |tag: WorkerTag, _: &mut Dice| match tag.generation {
        Generation(1) => Life::serving(),
        _ => Life::serving().and(20, Deed::Disconnect),
    };
    let mut world = World::new(policy(2), 1, life).start();
    world.run(ms(5_000));
    world.request(1, ClusterCommand::Reload);
    world.drive();
    assert_eq!((world.forks().len(), world.serving()), (4, vec![]));
    assert!(world.answers()[0].1.is_ok(), "{:?}", world.answers());
}

#[test]
fn a_worker_that_boots_can_be_disconnected_too() {
    let mut world = cluster(2, |id| (id == 2).then(Life::hanging));
    world.run(ms(100));
    world.ask(ClusterCommand::Disconnect(WorkerId(2)));
    world.drive();
    assert_eq!((world.serving(), world.mind.phase), (vec![1], ClusterPhase::Running));
    assert_eq!(world.times(&Action::Log(LogEvent::AllReady { workers: 1 })), [ms(100)]);
    // Nobody, and somebody who is gone.
    for (reply_id, id) in [(1, 2), (2, 99)] {
        world.request(reply_id, ClusterCommand::Disconnect(WorkerId(id)));
    }
    assert!(world.answers().iter().all(|(_, result)| result.is_err()));
}

#[test]
fn who_succeeds_a_worn_worker_is_not_wanted_when_that_one_leaves_for_good() {
    let policy = SupervisorConfig { max_lifetime: Some(ms(4_000)), ..policy(1) };
    let life = |tag: WorkerTag, _: &mut Dice| match tag.id.0 {
        1 => Life::serving(),
        _ => Life::hanging(),
    };
    let mut world = World::new(policy, 1, life).start();
    world.run(ms(4_500));
    assert_eq!(world.forks().len(), 2);
    world.ask(ClusterCommand::Disconnect(WorkerId(1)));
    world.run(ms(1_000));
    assert_eq!((world.mind.members.len(), world.mind.vacant()), (0, vec![Slot(0)]));
    assert_eq!(ends(&world), [(2, ExitCause::Superseded), (1, ExitCause::Drained)]);
}

/// The application is asked, and wants one of so many not to be replaced.
fn asking(workers: u32, vetoes: u64) -> World {
    let mut world = World::new(policy(workers), 1, |_, _| Life::serving());
    world.mind.set_confirm_restarts(true);
    world.vetoes = vetoes;
    let mut world = world.start();
    world.run(ms(5_000));
    world
}

#[test]
fn the_application_decides_who_is_replaced() {
    for (vetoes, serving) in [(0, vec![1, 3]), (1, vec![1])] {
        let mut world = asking(2, vetoes);
        world.end(2, signal(SIGKILL));
        let asked =
            |action: &Action| matches!(action, Action::ConfirmRestart(e) if e.worker.id.0 == 2);
        assert!(world.log.iter().any(|(_, action)| asked(action)));
        assert_eq!(world.forks().len(), 2, "nothing is forked before the answer");
        world.drive();
        assert_eq!((world.serving(), world.mind.vacant().len()), (serving, vetoes as usize));
        let said = world.said(|n| matches!(n, LogEvent::NotRestarted { .. }).then_some(()));
        assert_eq!(said.len(), vetoes as usize);
        // An answer that nobody waits for changes nothing.
        world.tell(Event::RestartDecided { worker: WorkerId(1), restart: false });
        assert_eq!(world.mind.vacant().len(), vetoes as usize);
    }
}

#[test]
fn an_answer_after_the_end_changes_nothing() {
    let mut world = asking(1, 1);
    world.tell(Event::Exited { worker: WorkerId(1), status: signal(SIGKILL), requests_served: 0 });
    assert!(world.log.iter().any(|(_, action)| matches!(action, Action::ConfirmRestart(_))));
    // There is nobody to wait for: the answer comes when all is over.
    world.ask(ClusterCommand::StopNow);
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
    world.drive();
    assert!(matches!(world.log.last(), Some((_, Action::Exit(_)))), "{:?}", world.log.last());
}

#[test]
fn nobody_is_asked_about_workers_that_leave_as_they_were_to() {
    let mut world = asking(2, 1);
    world.make(1, Deed::Retire);
    world.ask(ClusterCommand::Reload);
    world.drive();
    assert!(!world.log.iter().any(|(_, action)| matches!(action, Action::ConfirmRestart(_))));
    assert_eq!(world.generations(), [2, 2]);
}

#[test]
fn one_more_worker_has_its_number_and_its_variables_and_so_has_who_replaces_it() {
    let mut world = proven(1);
    let id = world.mind.reserve_worker_id();
    let own = vec![("ROLE".to_string(), "mail".to_string())];
    world.ask(ClusterCommand::Scale(ScaleChange::AddWorker(id, own.clone())));
    world.drive();
    assert_eq!((world.serving(), world.mind.slot_environment(Slot(1))), (vec![1, id.0], &own[..]));
    assert!(world.mind.slot_environment(Slot(0)).is_empty());
    world.end(id.0, signal(SIGKILL));
    world.drive();
    assert_eq!((world.serving(), world.mind.slot_environment(Slot(1))), (vec![1, 3], &own[..]));
    // It survives an upgrade, and goes with its slot.
    world.ask(ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!((world.images, world.mind.slot_environment(Slot(1))), (1, &own[..]));
    world.ask(ClusterCommand::Scale(ScaleChange::To(1)));
    world.ask(ClusterCommand::Scale(ScaleChange::To(2)));
    world.drive();
    assert!(world.mind.slot_environment(Slot(1)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn workers_may_leave_for_good_and_not_be_replaced_in_the_middle_of_anything(
        policy in policies(), limits in limits(), seed: u64, whims in whims(), vetoes in 0..4u64,
        disconnects in proptest::collection::vec((0..2_000u64, 0..8usize), 1..10), now: bool,
    ) {
        let mut world = World::new(restrict(policy, limits), seed, move |_, dice| {
            let life = Life::random(dice, 9);
            let at = dice.below(6_000);
            if dice.below(3) == 0 { life.and(at, Deed::Disconnect) } else { life }
        });
        world.mind.set_confirm_restarts(true);
        world.vetoes = vetoes;
        world.binary = Box::new(Binary::random);
        let mut world = world.start();
        let whims = whims.into_iter().map(Some).chain(std::iter::repeat(None));
        for (number, ((wait, which), whim)) in disconnects.into_iter().zip(whims).enumerate() {
            world.run(ms(wait));
            let member = world.mind.members.keys().nth(which).copied();
            if world.exit.is_none() {
                world.request(1_000 + number as u64, ClusterCommand::Disconnect(member.unwrap_or(WorkerId(0))));
                let id = world.mind.reserve_worker_id();
                if which == 0 {
                    world.ask(ClusterCommand::Scale(ScaleChange::AddWorker(id, Vec::new())));
                }
            }
            if let Some((wait, whim)) = whim {
                world.run(ms(wait));
                obey(&mut world, number as u64, whim);
            }
        }
        obey(&mut world, 100, Whim::Up(1));
        end_in_bounds(&mut world, if now { ClusterCommand::StopNow } else { ClusterCommand::Stop });
    }
}
