//! Stories of upgrades in place: what is proved takes over and rolls, and what fails changes nothing.

use super::rolling::{refusal, reloads};
use super::*;

const UPGRADE: [Action; 2] = [Action::StartUpgradeCheck, Action::ExecNewBinary];

fn failures(world: &World) -> Vec<String> {
    world.said(|notice| match notice {
        LogEvent::UpgradeFailed { reason } => Some(reason.clone()),
        _ => None,
    })
}

/// Nothing is different from what it was before the upgrade of three workers of generation 1.
fn unchanged(world: &World) {
    assert_eq!((world.serving(), world.generations()), (vec![1, 2, 3], vec![1; 3]));
    assert_eq!((world.images, world.is_changing(), world.mind.deadline()), (0, false, None));
    assert_eq!((world.mind.generation, world.forks().len()), (Generation(1), 3));
}

/// A new binary that is fit, whose configuration wants so many workers, and whose exec is so deadly.
pub(super) fn fit(world: &mut World, workers: u32, toll: u64) {
    world.binary = Box::new(move |policy, _| {
        let (wait, time, _) = Binary::fit(policy).exec;
        let exec = (wait, time, Ok(SupervisorConfig { workers, ..policy.clone() }));
        Binary { exec, toll, ..Binary::fit(policy) }
    });
}

/// Goes on to the moment when the new image has begun.
pub(super) fn until_adopted(world: &mut World) {
    let images = world.images;
    while world.images == images {
        assert!(world.step(), "the new image never began");
    }
}

#[test]
fn an_upgrade_that_is_proved_takes_over_and_rolls() {
    let mut world = proven(3);
    world.request(6, ClusterCommand::Upgrade { wait: true });
    world.request(7, ClusterCommand::Upgrade { wait: false });
    until_adopted(&mut world);
    let done = "the new binary is fit and takes over now".to_string();
    assert_eq!(world.answers(), [(7, Ok(done))]);
    assert_eq!((world.upgrade_steps(), world.images), (UPGRADE.to_vec(), 1));
    // The old ones serve until each is replaced.
    assert_eq!((world.serving(), world.mind.phase), (vec![1, 2, 3], ClusterPhase::Running));
    world.drive();
    assert_eq!((world.serving(), world.generations()), (vec![4, 5, 6], vec![2; 3]));
    let served = "upgraded: 3 workers of generation 2 serve".to_string();
    assert_eq!(world.answers().last(), Some(&(6, Ok(served))), "whoever waits is told then");
    assert_eq!(ends(&world), [1, 2, 3].map(|id| (id, ExitCause::Drained)));
    assert_eq!((reloads(&world), world.kept()), (vec!["3 of 2".to_string()], Some(vec![2])));
    assert!(failures(&world).is_empty() && world.mind.restart_count() == 0);
}

#[test]
fn an_upgrade_follows_an_upgrade() {
    let mut world = proven(2);
    for number in 1..=4 {
        world.request(number, ClusterCommand::Upgrade { wait: true });
        world.drive();
        assert_eq!(world.generations(), [1 + number; 2]);
    }
    assert_eq!((world.images, world.serving()), (4, vec![9, 10]));
}

#[test]
fn a_binary_that_is_unfit_changes_nothing() {
    let mut world = proven(3);
    world.binary = Box::new(|policy, _| Binary {
        proof: Some((ms(30), Err("it is of another libc".to_string()))),
        ..Binary::fit(policy)
    });
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!(refusal(&world), "it is of another libc");
    assert_eq!(failures(&world), ["it is of another libc"]);
    assert_eq!(world.upgrade_steps(), [Action::StartUpgradeCheck]);
    unchanged(&world);
}

#[test]
fn a_binary_that_hangs_is_stopped_at_its_deadline() {
    let mut world = proven(3);
    world.binary = Box::new(|policy, _| Binary { proof: None, ..Binary::fit(policy) });
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.drive();
    // boot-timeout, and five seconds for all that comes before a worker boots.
    assert_eq!(world.times(&Action::StopUpgradeCheck), [ms(5_000 + 10_000 + 5_000)]);
    assert!(refusal(&world).contains("not ready in time"), "{}", refusal(&world));
    assert_eq!((failures(&world).len(), world.upgrade_steps().len()), (1, 2));
    unchanged(&world);
    // And another may be tried.
    world.binary = Box::new(|policy, _| Binary::fit(policy));
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.drive();
    assert_eq!((world.generations(), world.images), (vec![2; 3], 1));
}

#[test]
fn a_verdict_that_waited_while_the_primary_slept_counts() {
    let mut world = proven(3);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.stop_primary(ms(60_000));
    world.drive();
    assert_eq!((world.upgrade_steps(), world.generations()), (UPGRADE.to_vec(), vec![2; 3]));
    // Also if something else is heard before it.
    let mut world = proven(3);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.now += ms(60_000);
    world.tell(Event::Retiring { worker: WorkerId(2) });
    assert!(world.answers().is_empty());
    world.tell(Event::UpgradeCheckPassed);
    world.drive();
    assert_eq!((world.upgrade_steps(), world.images), (UPGRADE.to_vec(), 1));
}

#[test]
fn a_verdict_that_comes_after_the_proof_was_stopped_is_nobodys() {
    for verdict in
        [Event::UpgradeCheckPassed, Event::UpgradeFailed { reason: "killed".to_string() }]
    {
        let mut world = proven(3);
        world.binary = Box::new(|policy, _| Binary { proof: None, ..Binary::fit(policy) });
        world.request(1, ClusterCommand::Upgrade { wait: true });
        world.run(ms(15_000));
        assert_eq!(world.answers().len(), 1);
        world.tell(verdict);
        world.drive();
        assert_eq!((failures(&world).len(), world.upgrade_steps().len()), (1, 2));
        unchanged(&world);
    }
}

#[test]
fn an_exec_that_fails_changes_nothing() {
    let mut world = proven(3);
    world.binary = Box::new(|policy, _| Binary {
        exec: (ms(5), ms(0), Err("EACCES".to_string())),
        ..Binary::fit(policy)
    });
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.run(ms(52));
    // Proved and not yet executed: whoever asks now and does not wait is answered now, and another verdict changes nothing.
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.request(3, ClusterCommand::Upgrade { wait: false });
    world.tell(Event::UpgradeCheckPassed);
    assert_eq!(world.answers().len(), 1);
    world.drive();
    assert_eq!(
        (failures(&world), world.upgrade_steps()),
        (vec!["EACCES".into()], UPGRADE.to_vec())
    );
    unchanged(&world);
}

#[test]
fn all_who_ask_during_a_proof_are_served_by_it() {
    for fit in [true, false] {
        let mut world = proven(2);
        let verdict = if fit { Ok(()) } else { Err("unfit".to_string()) };
        world.binary = Box::new(move |policy, _| Binary {
            proof: Some((ms(100), verdict.clone())),
            ..Binary::fit(policy)
        });
        for reply_id in 0..5 {
            world.request(reply_id, ClusterCommand::Upgrade { wait: true });
            world.ask(ClusterCommand::Upgrade { wait: true });
            world.run(ms(10));
        }
        world.drive();
        assert_eq!(world.times(&Action::StartUpgradeCheck), [ms(5_000)]);
        let answers = world.answers().into_iter().map(|(reply_id, said)| (reply_id, said.is_ok()));
        assert_eq!(answers.collect::<Vec<_>>(), (0..5).map(|t| (t, fit)).collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_overtakes_a_proof() {
    // While it is proved, while it hangs, and between its proof and the exec.
    for (after, hangs) in [(0, false), (49, false), (12_000, true), (52, false)] {
        for command in [ClusterCommand::Stop, ClusterCommand::StopNow] {
            let mut world = proven(3);
            world.binary = Box::new(move |policy, _| Binary {
                proof: Some((ms(50), Ok(()))).filter(|_| !hangs),
                exec: (ms(5), ms(20), Ok(policy.clone())),
                toll: 0,
            });
            world.request(1, ClusterCommand::Upgrade { wait: true });
            world.run(ms(after));
            world.request(2, command);
            assert_eq!(world.times(&Action::StopUpgradeCheck), [ms(5_000 + after)]);
            world.request(3, ClusterCommand::Upgrade { wait: true });
            world.drive();
            assert_eq!((world.exit, world.images), (Some(ShutdownReason::StopRequested), 0));
            assert_eq!((world.answers().len(), failures(&world).len()), (3, 2));
        }
    }
}

#[test]
fn upgrades_that_are_asked_for_during_a_reload_are_one_after_it() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Reload);
    for reply_id in 2..6 {
        world.request(reply_id, ClusterCommand::Upgrade { wait: reply_id > 2 });
        world.run(ms(7));
    }
    world.ask(ClusterCommand::Upgrade { wait: false });
    world.drive();
    let answers = world.answers().into_iter().map(|(reply_id, said)| (reply_id, said.is_ok()));
    let expected: Vec<_> = (1..6).map(|reply_id| (reply_id, true)).collect();
    assert_eq!((answers.collect::<Vec<_>>(), world.images), (expected, 1));
    assert_eq!(world.generations(), [3, 3]);
}

#[test]
fn an_upgrade_that_waits_for_a_reload_is_refused_by_a_stop() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Reload);
    world.request(2, ClusterCommand::Upgrade { wait: true });
    world.request(3, ClusterCommand::Stop);
    world.drive();
    let refused: Vec<u64> =
        world.answers().into_iter().filter(|(_, said)| said.is_err()).map(|(t, _)| t).collect();
    assert_eq!((refused.contains(&2), world.images), (true, 0), "{refused:?}");
    assert_eq!(world.exit, Some(ShutdownReason::StopRequested));
}

#[test]
fn an_upgrade_is_refused_before_all_have_been_ready() {
    let mut world = cluster(2, |_| None);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    assert!(refusal(&world).contains("not all been ready"));
    assert!(world.upgrade_steps().is_empty());
}

#[test]
fn what_is_asked_during_an_upgrade_is_refused_done_or_queued() {
    let mut world = proven(2);
    world.request(1, ClusterCommand::Upgrade { wait: true });
    world.request(2, ClusterCommand::Reload);
    assert!(refusal(&world).contains("an upgrade is under way"));
    world.request(3, ClusterCommand::Scale(ScaleChange::Up(1)));
    assert!(world.answers()[1].1.is_ok());
    fit(&mut world, 2, 0);
    until_adopted(&mut world);
    // The new workers are rolled in: that is a reload like any other.
    world.request(4, ClusterCommand::Reload);
    world.request(5, ClusterCommand::Upgrade { wait: true });
    world.request(6, ClusterCommand::Scale(ScaleChange::Up(1)));
    world.drive();
    let answers: Vec<_> = world.answers().into_iter().map(|(t, said)| (t, said.is_ok())).collect();
    // The second upgrade waits for the first one and the reload.
    let expected = [(2, false), (3, true), (6, false), (1, true), (4, true), (5, true)];
    assert_eq!(answers, expected);
    assert_eq!((world.images, world.generations()), (2, vec![4, 4]), "as the configuration says");
}
