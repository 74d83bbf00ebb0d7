use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use super::*;
use crate::shared::memory::{self, PieceLayout};

/// Longer than any test waits, and shorter than [`RECHECK_INTERVAL`]: a lost wake-up is a timeout.
const LONG: Duration = Duration::from_secs(9);

fn create_word() -> WaitableWord {
    ChangeEpoch::get_or_create().expect("epoch");
    let layout = PieceLayout { kind: "test", layout: "1", words: 2 };
    let words = memory::allocate("wait test", layout).expect("words").words;
    WaitableWord::new(&words[0], &words[1])
}

impl WaitableWord {
    fn set(self, value: u64) {
        self.value.store(value, SeqCst);
        self.notify();
    }
}

/// Counts its wake-ups.
#[derive(Default)]
struct CountedWakes(AtomicUsize);

impl Wake for CountedWakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl CountedWakes {
    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    #[track_caller]
    fn wait_for_first(&self) {
        self.wait_for(1);
    }

    #[track_caller]
    fn wait_for(&self, wakes: usize) {
        let started = Instant::now();
        while self.count() < wakes {
            assert!(started.elapsed() < LONG, "not woken");
            std::thread::yield_now();
        }
    }
}

/// A future with wakes of its own.
struct Waits<F: Future> {
    future: Option<std::pin::Pin<Box<F>>>,
    wakes: Arc<CountedWakes>,
}

impl<F: Future> Waits<F> {
    fn new(future: F) -> Waits<F> {
        Waits { future: Some(Box::pin(future)), wakes: Arc::default() }
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(self.wakes.clone());
        let future = self.future.as_mut().expect("not dropped");
        future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// Waits until the word is not zero, in the order of tickets.
fn wait_in_turn(word: WaitableWord) -> Waits<impl Future<Output = u64>> {
    Waits::new(word.wait(WakeOrder::OneByOne, |value| (value != 0).then_some(value)))
}

#[test]
fn no_wake_up_is_lost_between_two_threads_that_wait_for_each_other() {
    let word = create_word();
    let take_turns = |parity: u64| {
        for _ in 0..1000 {
            let mine = |value: u64| (value % 2 == parity).then_some(value);
            let value = block_on(word.wait(WakeOrder::Together, mine), LONG).expect("a turn");
            word.set(value + 1);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| take_turns(1));
        take_turns(0);
    });
    assert_eq!(word.load(), 2000);
}

#[test]
fn a_change_whose_author_died_before_the_wake_up_is_seen_after_its_exit() {
    let word = create_word();
    std::thread::scope(|scope| {
        let wait = word.wait(WakeOrder::Together, |value| (value != 0).then_some(value));
        let waits = scope.spawn(|| block_on(wait, LONG));
        while word.armed.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        word.value.store(5, SeqCst);
        wake_after_exit();
        assert_eq!(waits.join().expect("thread"), Some(5));
    });
}

#[test]
fn a_word_that_nobody_waits_for_begins_no_epoch() {
    let word = create_word();
    word.set(1);
    assert_eq!(word.armed.load(SeqCst), 0);
    let mut waits = Waits::new(word.wait(WakeOrder::Together, |value| (value == 2).then_some(())));
    assert!(waits.poll().is_pending());
    let armed = word.armed.load(SeqCst);
    assert!(armed > 0);
    word.set(2);
    waits.wakes.wait_for_first();
    assert!(waits.poll().is_ready());
    assert!(change_epoch::current() >= armed);
}

#[test]
fn a_value_that_returns_is_not_missed_by_a_later_wait_for_it() {
    let word = create_word();
    let differs = |from: u64| word.wait(WakeOrder::Together, move |v| (v != from).then_some(v));
    let mut first = Waits::new(differs(0));
    assert!(first.poll().is_pending());
    // The thread has handled the value 0. The second future has seen 1, and waits for the return to 0.
    word.value.store(1, SeqCst);
    let mut second = Waits::new(differs(1));
    assert!(second.poll().is_pending());
    word.set(0);
    second.wakes.wait_for_first();
    assert_eq!(second.poll(), Poll::Ready(0));
}

#[test]
fn one_waiter_at_a_time_looks_and_a_dropped_one_passes_its_turn_on() {
    let word = create_word();
    let mut all = [wait_in_turn(word), wait_in_turn(word), wait_in_turn(word)];
    assert!(all.iter_mut().all(|one| one.poll().is_pending()));
    word.set(1);
    all[0].wakes.wait_for_first();
    assert_eq!([all[1].wakes.count(), all[2].wakes.count()], [0, 0]);
    all[0].future = None;
    assert_eq!([all[1].wakes.count(), all[2].wakes.count()], [1, 0]);
    // The second one looks too late.
    word.set(0);
    assert!(all[1].poll().is_pending());
    word.set(1);
    all[1].wakes.wait_for(2);
    assert_eq!(all[2].wakes.count(), 0);
    assert_eq!(all[1].poll(), Poll::Ready(1));
    all[2].wakes.wait_for_first();
}

#[test]
fn ten_thousand_waiters_are_woken_and_those_that_leave_are_forgotten() {
    let word = create_word();
    let create = || Waits::new(word.wait(WakeOrder::Together, |v| (v != 0).then_some(v)));
    let mut all: Vec<_> = (0..10_000).map(|_| create()).collect();
    assert!(all.iter_mut().all(|one| one.poll().is_pending()));
    let gone: Vec<_> = all.drain(..1000).map(|one| one.wakes).collect();
    word.set(1);
    for one in &mut all {
        one.wakes.wait_for_first();
        assert_eq!(one.poll(), Poll::Ready(1));
    }
    drop(all);
    assert!(gone.iter().all(|wakes| wakes.count() == 0));
    assert!(!lock_local_waiters().has_waiters_for(word));
}

#[test]
fn ten_thousand_waiters_in_turn_take_one_permit_each() {
    let word = create_word();
    let take = || {
        let attempt = |_| word.value.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).ok();
        Waits::new(word.wait(WakeOrder::OneByOne, attempt))
    };
    let mut all: Vec<_> = (0..10_000).map(|_| take()).collect();
    assert!(all.iter_mut().all(|one| one.poll().is_pending()));
    word.set(10_000);
    for one in &mut all {
        one.wakes.wait_for_first();
        assert!(one.poll().is_ready());
        one.future = None;
    }
    assert_eq!(word.load(), 0);
}

#[test]
fn a_request_for_a_lock_waits_behind_earlier_ones_that_conflict() {
    let word = create_word();
    let request = |start, end, is_exclusive| {
        let order = WakeOrder::ByRange(LockRequest { start, end, is_exclusive });
        Waits::new(word.wait(order, |value| (value != 0).then_some(())))
    };
    let mut all = [
        request(0, 10, false),
        request(0, 10, false),
        request(5, 20, true),
        request(0, 6, false),
        request(20, 30, true),
    ];
    assert!(all.iter_mut().all(|one| one.poll().is_pending()));
    word.set(1);
    for first in [0, 1, 4] {
        all[first].wakes.wait_for_first();
    }
    let counts = |all: &[Waits<_>]| all.iter().map(|one| one.wakes.count()).collect::<Vec<_>>();
    assert_eq!(counts(&all), [1, 1, 0, 0, 1]);
    assert!(all[3].poll().is_pending(), "it passed an earlier request");
    assert!(all[0].poll().is_ready());
    assert_eq!(counts(&all)[2..], [0, 0, 1], "another one that conflicts is still there");
    assert!(all[1].poll().is_ready());
    assert_eq!(counts(&all)[2..], [1, 0, 1]);
    all[2].future = None;
    assert_eq!(counts(&all)[2..], [1, 1, 1]);
}
