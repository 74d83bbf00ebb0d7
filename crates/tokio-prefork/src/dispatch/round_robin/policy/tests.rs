//! The rules one by one, and worlds in which workers die, freeze and take as they like.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn all_take(turn: &mut Turn, ids: std::ops::RangeInclusive<u64>, now: Instant) {
    for id in ids {
        turn.see(WorkerId(id), true, now);
    }
}

fn deal(turn: &mut Turn, count: usize, now: Instant) -> Vec<u64> {
    (0..count).filter_map(|_| turn.next(now)).map(|id| id.0).collect()
}

#[test]
fn turns_are_strict_and_go_on_where_they_stopped() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=3, now);
    assert_eq!(deal(&mut turn, 4, now), [1, 2, 3, 1]);
    assert_eq!(deal(&mut turn, 3, now), [2, 3, 1]);
}

#[test]
fn who_cannot_take_is_passed_over_without_losing_the_order() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=3, now);
    turn.see(WorkerId(2), false, now);
    assert_eq!(deal(&mut turn, 3, now), [1, 3, 1]);
    turn.see(WorkerId(2), true, now);
    assert_eq!(deal(&mut turn, 2, now), [2, 3]);
    turn.forget(WorkerId(1));
    assert_eq!(deal(&mut turn, 2, now), [2, 3]);
}

#[test]
fn a_line_has_an_end() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=2, now);
    assert_eq!(turn.room(now), 2 * BOUND);
    assert_eq!(deal(&mut turn, 100, now).len(), 2 * BOUND);
    assert_eq!((turn.room(now), turn.full().len()), (0, 2));
    turn.told(WorkerId(1), BOUND - 1, now);
    assert_eq!((turn.room(now), deal(&mut turn, 100, now)), (1, vec![1]));
}

#[test]
fn a_full_line_is_waited_for_but_not_for_long() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=2, now);
    deal(&mut turn, 2 * BOUND, now);
    turn.told(WorkerId(2), 1, now);
    assert_eq!(
        (turn.room(now), deal(&mut turn, 100, now)),
        (0, vec![]),
        "it is the other one's turn"
    );
    let later = now + PATIENCE;
    assert_eq!((turn.room(later), deal(&mut turn, 100, later)), (BOUND - 1, vec![2; BOUND - 1]));
}

#[test]
fn what_lies_too_long_is_moved_if_there_is_somebody_and_the_slow_one_is_passed_over_until_it_turns()
{
    let (mut turn, now) = (Turn::default(), Instant::now());
    let (one, two) = (WorkerId(1), WorkerId(2));
    turn.see(one, true, now);
    assert_eq!(turn.next(now), Some(one));
    let late = now + PATIENCE;
    assert_eq!(turn.deadline(now), Some(late));
    assert_eq!(turn.overdue(late), [one]);
    assert!(!turn.is_to_be_moved(one, late), "nobody else is there");
    assert_eq!(turn.deadline(late), Some(late + AGAIN));
    turn.see(two, true, late);
    assert!(turn.is_to_be_moved(one, late));
    turn.taken_back(one);
    assert_eq!(deal(&mut turn, 2, late), [2, 2]);
    assert_eq!(turn.uncertain(), [one]);
    turn.told(one, 1, late);
    // Nobody else can: then it is asked all the same.
    turn.see(two, false, late);
    assert_eq!(deal(&mut turn, 2, late), [1, 1]);
    turn.see(two, true, late);
    turn.told(one, 3, late);
    assert_eq!(deal(&mut turn, 1, late), [2]);
    // The probe is read, and nothing else yet.
    turn.told(one, 2, late);
    assert_eq!(deal(&mut turn, 2, late), [1, 2]);
}

#[test]
fn a_worker_that_takes_one_after_the_other_is_not_slow() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=2, now);
    deal(&mut turn, 4, now);
    let half = now + PATIENCE / 2;
    turn.told(WorkerId(1), 1, half);
    let late = now + PATIENCE;
    assert_eq!(turn.overdue(late), [WorkerId(2)]);
    assert_eq!(turn.deadline(half), Some(late));
}

#[test]
fn what_lies_with_one_that_stopped_taking_is_moved_at_once() {
    let (mut turn, now) = (Turn::default(), Instant::now());
    all_take(&mut turn, 1..=2, now);
    deal(&mut turn, 2, now);
    turn.see(WorkerId(1), false, now);
    assert_eq!(turn.overdue(now), [WorkerId(1)]);
    assert!(turn.is_to_be_moved(WorkerId(1), now));
}

/// A worker of the random worlds.
#[derive(Debug, Default)]
struct Fake {
    line: VecDeque<u32>,
    /// There is a probe before all that.
    probe: bool,
    frozen: bool,
}

impl Fake {
    fn count(&self) -> usize {
        self.line.len() + usize::from(self.probe)
    }
}

/// Connections are numbers; each must be served once, or be somewhere.
#[derive(Debug, Default)]
struct World {
    turn: Turn,
    workers: BTreeMap<u64, Fake>,
    held: VecDeque<u32>,
    accepted: u32,
    served: Vec<u32>,
    next_id: u64,
}

#[derive(Debug, Clone)]
enum Happens {
    Fork,
    Die(usize),
    Freeze(usize),
    Thaw(usize),
    /// So many are taken by one worker.
    Take(usize, usize),
    Arrive(u32),
    Pass(u64),
}

impl World {
    fn worker(&mut self, which: usize) -> Option<(u64, &mut Fake)> {
        let count = self.workers.len().max(1);
        self.workers.iter_mut().nth(which % count).map(|(id, fake)| (*id, fake))
    }

    fn count(&mut self, now: Instant) {
        for id in self.turn.uncertain() {
            self.turn.told(id, self.workers[&id.0].count(), now);
        }
    }

    /// What the primary does in each turn of its loop.
    fn step(&mut self, arriving: u32, now: Instant) {
        for id in self.workers.keys() {
            self.turn.see(WorkerId(*id), true, now);
        }
        for id in self.turn.overdue(now) {
            let Some(fake) = self.workers.get_mut(&id.0) else { panic!("{id:?} is dead") };
            self.turn.told(id, fake.count(), now);
            if self.turn.is_to_be_moved(id, now) {
                fake.line.drain(..).rev().for_each(|one| self.held.push_front(one));
                fake.probe = true;
                self.turn.taken_back(id);
            }
        }
        self.count(now);
        let room = self.turn.room(now).saturating_sub(self.held.len());
        for _ in 0..arriving.min(room as u32) {
            self.accepted += 1;
            self.held.push_back(self.accepted);
        }
        while let Some(one) = self.held.pop_front() {
            self.count(now);
            let Some(id) = self.turn.next(now) else {
                self.held.push_front(one);
                break;
            };
            let line = &mut self.workers.get_mut(&id.0).expect("alive").line;
            line.push_back(one);
            assert!(line.len() <= BOUND);
        }
    }

    fn happens(&mut self, what: &Happens, now: &mut Instant) {
        match *what {
            Happens::Fork => {
                self.next_id += 1;
                self.workers.insert(self.next_id, Fake::default());
            }
            Happens::Die(which) => {
                let Some((id, fake)) = self.worker(which) else { return };
                let rest = std::mem::take(&mut fake.line);
                rest.into_iter().rev().for_each(|one| self.held.push_front(one));
                self.workers.remove(&id);
                self.turn.forget(WorkerId(id));
            }
            Happens::Freeze(which) => {
                self.worker(which).into_iter().for_each(|w| w.1.frozen = true)
            }
            Happens::Thaw(which) => self.worker(which).into_iter().for_each(|w| w.1.frozen = false),
            Happens::Take(which, count) => {
                let Some((_, fake)) = self.worker(which).filter(|(_, fake)| !fake.frozen) else {
                    return;
                };
                fake.probe &= count == 0;
                let count = count.min(fake.line.len());
                let taken: Vec<u32> = fake.line.drain(..count).collect();
                self.served.extend(taken);
            }
            Happens::Arrive(count) => self.step(count, *now),
            Happens::Pass(millis) => *now += Duration::from_millis(millis),
        }
    }

    fn check(&self) {
        let lines = self.workers.values().flat_map(|fake| &fake.line);
        let mut all: Vec<u32> =
            self.served.iter().chain(&self.held).chain(lines).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (1..=self.accepted).collect::<Vec<_>>(), "lost, or there twice");
    }
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        1 => Just(Happens::Fork),
        1 => (0usize..8).prop_map(Happens::Die),
        1 => (0usize..8).prop_map(Happens::Freeze),
        1 => (0usize..8).prop_map(Happens::Thaw),
        6 => (0usize..8, 0usize..6).prop_map(|(which, count)| Happens::Take(which, count)),
        6 => (0u32..40).prop_map(Happens::Arrive),
        3 => (0u64..30).prop_map(Happens::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_each_connection_is_served_once_or_waits_somewhere(
        story in prop::collection::vec(anything(), 0..200),
    ) {
        let (mut world, mut now) = (World::default(), Instant::now());
        for what in &story {
            world.happens(what, &mut now);
            world.check();
        }
        // One healthy worker is enough for all that waits, even beside frozen ones.
        world.happens(&Happens::Fork, &mut now);
        let id = world.next_id;
        for _ in 0..2000 {
            now += PATIENCE;
            world.step(0, now);
            let fake = world.workers.get_mut(&id).expect("alive");
            fake.probe = false;
            let taken: Vec<u32> = fake.line.drain(..).collect();
            world.served.extend(taken);
        }
        world.check();
        prop_assert_eq!(world.served.len() as u32, world.accepted);
    }

    #[test]
    fn healthy_workers_are_never_more_than_one_apart(workers in 1u64..9, bursts: Vec<u8>) {
        let (mut turn, now) = (Turn::default(), Instant::now());
        all_take(&mut turn, 1..=workers, now);
        let mut got = vec![0usize; workers as usize];
        for burst in bursts {
            for _ in 0..burst {
                for id in turn.uncertain() {
                    turn.told(id, 0, now);
                }
                let id = turn.next(now).expect("somebody has room");
                got[id.0 as usize - 1] += 1;
            }
        }
        let (least, most) = (got.iter().min(), got.iter().max());
        prop_assert!(most <= least.map(|n| n + 1).as_ref(), "{:?}", got);
    }
}
