//! The rules one by one, and a simulation in which workers die, freeze and take connections at random.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn add_workers(policy: &mut RoundRobinPolicy, ids: std::ops::RangeInclusive<u64>, now: Instant) {
    for id in ids {
        policy.update_worker(WorkerId(id), true, now);
    }
}

fn choose_workers(policy: &mut RoundRobinPolicy, count: usize, now: Instant) -> Vec<u64> {
    (0..count).filter_map(|_| policy.choose_next(now)).map(|id| id.0).collect()
}

#[test]
fn workers_are_chosen_in_strict_order() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=3, now);
    assert_eq!(choose_workers(&mut policy, 4, now), [1, 2, 3, 1]);
    assert_eq!(choose_workers(&mut policy, 3, now), [2, 3, 1]);
}

#[test]
fn a_worker_that_cannot_take_is_skipped_and_the_order_is_kept() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=3, now);
    policy.update_worker(WorkerId(2), false, now);
    assert_eq!(choose_workers(&mut policy, 3, now), [1, 3, 1]);
    policy.update_worker(WorkerId(2), true, now);
    assert_eq!(choose_workers(&mut policy, 2, now), [2, 3]);
    policy.remove_worker(WorkerId(1));
    assert_eq!(choose_workers(&mut policy, 2, now), [2, 3]);
}

#[test]
fn a_queue_has_a_bound() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=2, now);
    assert_eq!(policy.free_capacity(now), 2 * MAX_QUEUED_PER_WORKER);
    assert_eq!(choose_workers(&mut policy, 100, now).len(), 2 * MAX_QUEUED_PER_WORKER);
    assert_eq!((policy.free_capacity(now), policy.full_workers().len()), (0, 2));
    policy.set_queue_length(WorkerId(1), MAX_QUEUED_PER_WORKER - 1, now);
    assert_eq!((policy.free_capacity(now), choose_workers(&mut policy, 100, now)), (1, vec![1]));
}

#[test]
fn a_full_queue_is_waited_for_up_to_the_take_timeout() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=2, now);
    choose_workers(&mut policy, 2 * MAX_QUEUED_PER_WORKER, now);
    policy.set_queue_length(WorkerId(2), 1, now);
    assert_eq!(
        (policy.free_capacity(now), choose_workers(&mut policy, 100, now)),
        (0, vec![]),
        "the full worker is next"
    );
    let later = now + QUEUED_CONNECTION_TIMEOUT;
    assert_eq!(
        (policy.free_capacity(later), choose_workers(&mut policy, 100, later)),
        (MAX_QUEUED_PER_WORKER - 1, vec![2; MAX_QUEUED_PER_WORKER - 1])
    );
}

#[test]
fn overdue_connections_move_and_the_slow_worker_is_skipped_until_it_reads_the_probe() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    let (one, two) = (WorkerId(1), WorkerId(2));
    policy.update_worker(one, true, now);
    assert_eq!(policy.choose_next(now), Some(one));
    let late = now + QUEUED_CONNECTION_TIMEOUT;
    assert_eq!(policy.next_deadline(now), Some(late));
    assert_eq!(policy.overdue_workers(late), [one]);
    assert!(!policy.should_move_connections(one, late), "no other worker is there");
    assert_eq!(policy.next_deadline(late), Some(late + MOVE_RETRY_INTERVAL));
    policy.update_worker(two, true, late);
    assert!(policy.should_move_connections(one, late));
    policy.record_reclaimed(one);
    assert_eq!(choose_workers(&mut policy, 2, late), [2, 2]);
    assert_eq!(policy.uncounted_workers(), [one]);
    policy.set_queue_length(one, 1, late);
    // No other worker can take connections: the slow one is chosen.
    policy.update_worker(two, false, late);
    assert_eq!(choose_workers(&mut policy, 2, late), [1, 1]);
    policy.update_worker(two, true, late);
    policy.set_queue_length(one, 3, late);
    assert_eq!(choose_workers(&mut policy, 1, late), [2]);
    // The probe is read, and nothing else yet.
    policy.set_queue_length(one, 2, late);
    assert_eq!(choose_workers(&mut policy, 2, late), [1, 2]);
}

#[test]
fn a_worker_that_keeps_taking_is_not_slow() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=2, now);
    choose_workers(&mut policy, 4, now);
    let half = now + QUEUED_CONNECTION_TIMEOUT / 2;
    policy.set_queue_length(WorkerId(1), 1, half);
    let late = now + QUEUED_CONNECTION_TIMEOUT;
    assert_eq!(policy.overdue_workers(late), [WorkerId(2)]);
    assert_eq!(policy.next_deadline(half), Some(late));
}

#[test]
fn connections_of_a_worker_that_stopped_taking_move_at_once() {
    let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
    add_workers(&mut policy, 1..=2, now);
    choose_workers(&mut policy, 2, now);
    policy.update_worker(WorkerId(1), false, now);
    assert_eq!(policy.overdue_workers(now), [WorkerId(1)]);
    assert!(policy.should_move_connections(WorkerId(1), now));
}

/// A worker of the simulation.
#[derive(Debug, Default)]
struct SimulatedWorker {
    queue: VecDeque<u32>,
    /// Whether the queue begins with a probe.
    probe: bool,
    frozen: bool,
}

impl SimulatedWorker {
    fn count(&self) -> usize {
        self.queue.len() + usize::from(self.probe)
    }
}

/// The primary and its workers. Connections are numbers; each is served once or still queued.
#[derive(Debug, Default)]
struct Simulation {
    policy: RoundRobinPolicy,
    workers: BTreeMap<u64, SimulatedWorker>,
    held: VecDeque<u32>,
    accepted: u32,
    served: Vec<u32>,
    next_id: u64,
}

#[derive(Debug, Clone)]
enum SimulationEvent {
    Fork,
    Die(usize),
    Freeze(usize),
    Thaw(usize),
    /// One worker takes this many connections.
    Take(usize, usize),
    Arrive(u32),
    Pass(u64),
}

impl Simulation {
    fn worker(&mut self, which: usize) -> Option<(u64, &mut SimulatedWorker)> {
        let count = self.workers.len().max(1);
        self.workers.iter_mut().nth(which % count).map(|(id, worker)| (*id, worker))
    }

    fn count(&mut self, now: Instant) {
        for id in self.policy.uncounted_workers() {
            self.policy.set_queue_length(id, self.workers[&id.0].count(), now);
        }
    }

    /// Does what the primary does in each iteration of its loop.
    fn step(&mut self, arriving: u32, now: Instant) {
        for id in self.workers.keys() {
            self.policy.update_worker(WorkerId(*id), true, now);
        }
        for id in self.policy.overdue_workers(now) {
            let Some(worker) = self.workers.get_mut(&id.0) else { panic!("{id:?} is dead") };
            self.policy.set_queue_length(id, worker.count(), now);
            if self.policy.should_move_connections(id, now) {
                worker.queue.drain(..).rev().for_each(|one| self.held.push_front(one));
                worker.probe = true;
                self.policy.record_reclaimed(id);
            }
        }
        self.count(now);
        let room = self.policy.free_capacity(now).saturating_sub(self.held.len());
        for _ in 0..arriving.min(room as u32) {
            self.accepted += 1;
            self.held.push_back(self.accepted);
        }
        while let Some(one) = self.held.pop_front() {
            self.count(now);
            let Some(id) = self.policy.choose_next(now) else {
                self.held.push_front(one);
                break;
            };
            let queue = &mut self.workers.get_mut(&id.0).expect("alive").queue;
            queue.push_back(one);
            assert!(queue.len() <= MAX_QUEUED_PER_WORKER);
        }
    }

    fn apply(&mut self, what: &SimulationEvent, now: &mut Instant) {
        match *what {
            SimulationEvent::Fork => {
                self.next_id += 1;
                self.workers.insert(self.next_id, SimulatedWorker::default());
            }
            SimulationEvent::Die(which) => {
                let Some((id, worker)) = self.worker(which) else { return };
                let rest = std::mem::take(&mut worker.queue);
                rest.into_iter().rev().for_each(|one| self.held.push_front(one));
                self.workers.remove(&id);
                self.policy.remove_worker(WorkerId(id));
            }
            SimulationEvent::Freeze(which) => {
                self.worker(which).into_iter().for_each(|w| w.1.frozen = true)
            }
            SimulationEvent::Thaw(which) => {
                self.worker(which).into_iter().for_each(|w| w.1.frozen = false)
            }
            SimulationEvent::Take(which, count) => {
                let Some((_, worker)) = self.worker(which).filter(|(_, worker)| !worker.frozen)
                else {
                    return;
                };
                worker.probe &= count == 0;
                let count = count.min(worker.queue.len());
                let taken: Vec<u32> = worker.queue.drain(..count).collect();
                self.served.extend(taken);
            }
            SimulationEvent::Arrive(count) => self.step(count, *now),
            SimulationEvent::Pass(millis) => *now += Duration::from_millis(millis),
        }
    }

    fn check(&self) {
        let queues = self.workers.values().flat_map(|worker| &worker.queue);
        let mut all: Vec<u32> =
            self.served.iter().chain(&self.held).chain(queues).copied().collect();
        all.sort_unstable();
        assert_eq!(
            all,
            (1..=self.accepted).collect::<Vec<_>>(),
            "a connection is lost or duplicated"
        );
    }
}

fn any_event() -> impl Strategy<Value = SimulationEvent> {
    prop_oneof![
        1 => Just(SimulationEvent::Fork),
        1 => (0usize..8).prop_map(SimulationEvent::Die),
        1 => (0usize..8).prop_map(SimulationEvent::Freeze),
        1 => (0usize..8).prop_map(SimulationEvent::Thaw),
        6 => (0usize..8, 0usize..6).prop_map(|(which, count)| SimulationEvent::Take(which, count)),
        6 => (0u32..40).prop_map(SimulationEvent::Arrive),
        3 => (0u64..30).prop_map(SimulationEvent::Pass),
    ]
}

proptest! {
    #[test]
    fn each_connection_is_served_once_or_still_queued(
        events in prop::collection::vec(any_event(), 0..200),
    ) {
        let (mut simulation, mut now) = (Simulation::default(), Instant::now());
        for what in &events {
            simulation.apply(what, &mut now);
            simulation.check();
        }
        // One healthy worker serves all queued connections, even if others are frozen.
        simulation.apply(&SimulationEvent::Fork, &mut now);
        let id = simulation.next_id;
        for _ in 0..2000 {
            now += QUEUED_CONNECTION_TIMEOUT;
            simulation.step(0, now);
            let worker = simulation.workers.get_mut(&id).expect("alive");
            worker.probe = false;
            let taken: Vec<u32> = worker.queue.drain(..).collect();
            simulation.served.extend(taken);
        }
        simulation.check();
        prop_assert_eq!(simulation.served.len() as u32, simulation.accepted);
    }

    #[test]
    fn healthy_workers_get_equal_shares_to_within_one(workers in 1u64..9, bursts: Vec<u8>) {
        let (mut policy, now) = (RoundRobinPolicy::default(), Instant::now());
        add_workers(&mut policy, 1..=workers, now);
        let mut got = vec![0usize; workers as usize];
        for burst in bursts {
            for _ in 0..burst {
                for id in policy.uncounted_workers() {
                    policy.set_queue_length(id, 0, now);
                }
                let id = policy.choose_next(now).expect("a worker has room");
                got[id.0 as usize - 1] += 1;
            }
        }
        let (least, most) = (got.iter().min(), got.iter().max());
        prop_assert!(most <= least.map(|n| n + 1).as_ref(), "{:?}", got);
    }
}
