//! The futures of this process that wait for words of shared memory, and the thread that wakes them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use prefork_os::futex::FutexWait;

use super::{RECHECK_INTERVAL, WaitableWord, change_epoch};

/// Stack size of the thread, which wakes futures but does not run them.
const WAIT_THREAD_STACK_BYTES: usize = 128 << 10;

/// Which of several futures that wait for the same word are woken by a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shared) enum WakeOrder {
    /// All of them.
    Together,
    /// The first one; the next one when that has looked at the word.
    OneByOne,
    /// Those that are not behind a future whose request conflicts with theirs.
    ByRange(LockRequest),
}

/// A request for a lock on a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shared) struct LockRequest {
    pub(in crate::shared) start: u64,
    /// One past the last byte.
    pub(in crate::shared) end: u64,
    /// Excludes all other locks, not only exclusive ones.
    pub(in crate::shared) is_exclusive: bool,
}

impl LockRequest {
    /// Returns whether the two cannot be held at the same time.
    pub(in crate::shared) fn conflicts_with(&self, other: &LockRequest) -> bool {
        (self.is_exclusive || other.is_exclusive)
            && self.start.max(other.start) < self.end.min(other.end)
    }

    /// Returns whether whatever conflicts with `other` conflicts with this one.
    fn covers(&self, other: &LockRequest) -> bool {
        self.start <= other.start
            && self.end >= other.end
            && (self.is_exclusive || !other.is_exclusive)
    }
}

/// All waiting futures of this process.
pub(super) struct LocalWaiters {
    /// The process that they belong to. A fork copies them, but not the thread, so a child starts anew.
    pid: u32,
    /// By the address of the word.
    groups: BTreeMap<usize, WaitGroup>,
    next_ticket: u64,
    has_thread: bool,
}

/// The futures that wait for one word, each kind in the order of arrival.
struct WaitGroup {
    word: WaitableWord,
    together: BTreeMap<u64, Waiter>,
    one_by_one: BTreeMap<u64, Waiter>,
    by_range: BTreeMap<u64, (LockRequest, Waiter)>,
    /// How many of `one_by_one` were woken and have not looked yet.
    looking: usize,
    /// The value for which every future was woken whose turn it was.
    handled: Option<u64>,
}

struct Waiter {
    /// The value that the future has looked at; `None` if it has to look in any case.
    seen: Option<u64>,
    /// `None` after it was woken, until it has looked.
    waker: Option<Waker>,
}

/// Wakers that are called and dropped when the lock is released again: both may run other code, which may wait.
#[must_use]
#[derive(Default)]
pub(super) struct Wakers {
    ready: Vec<Waker>,
    dropped: Option<Waker>,
}

static LOCAL_WAITERS: Mutex<LocalWaiters> = Mutex::new(LocalWaiters::new(0, 0));

/// Locks the state of this process; empties it in a child, which inherited the state of its parent.
pub(super) fn lock_local_waiters() -> MutexGuard<'static, LocalWaiters> {
    // No code panics with the lock held, except that of a foreign waker that is cloned, before anything has changed.
    let mut local = LOCAL_WAITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if local.pid != pid {
        let empty = LocalWaiters::new(pid, local.next_ticket);
        // Forgotten, because the runtimes of the wakers are those of the parent.
        std::mem::forget(std::mem::replace(&mut *local, empty));
    }
    local
}

impl Wakers {
    pub(super) fn wake_all(self) {
        self.ready.into_iter().for_each(Waker::wake);
        drop(self.dropped);
    }
}

impl LocalWaiters {
    /// Tickets continue after those of the parent, whose futures a child may still drop.
    const fn new(pid: u32, next_ticket: u64) -> LocalWaiters {
        LocalWaiters { pid, groups: BTreeMap::new(), next_ticket, has_thread: false }
    }

    /// Returns whether a future that came earlier waits for a conflicting lock.
    pub(super) fn is_preceded(
        &self,
        word: WaitableWord,
        ticket: Option<u64>,
        request: &LockRequest,
    ) -> bool {
        let group = self.groups.get(&word.address());
        group.is_some_and(|group| group.is_preceded(ticket.unwrap_or(u64::MAX), request))
    }

    /// Adds a future that has looked at the value `seen`, or renews it if it has a ticket. Returns its ticket.
    pub(super) fn enqueue(
        &mut self,
        word: WaitableWord,
        ticket: Option<u64>,
        order: WakeOrder,
        seen: Option<u64>,
        waker: &Waker,
    ) -> (u64, Wakers) {
        let ticket = ticket.unwrap_or_else(|| {
            self.next_ticket += 1;
            self.next_ticket
        });
        let group = self.groups.entry(word.address()).or_insert_with(|| WaitGroup::new(word));
        let mut wakers = Wakers::default();
        let waiter = Waiter { seen, waker: Some(waker.clone()) };
        let was_looking = group.insert(ticket, order, waiter, &mut wakers);
        // The thread may sleep in an earlier epoch. Whoever changes the word from here on begins a new one.
        word.arm();
        let value = word.load();
        if was_looking {
            group.take_next_one(value, &mut wakers.ready);
        } else {
            wakers.ready.extend(group.take_if_ready(ticket, order, value));
        }
        if !self.has_thread {
            match start_wait_thread() {
                Ok(()) => self.has_thread = true,
                // The system has no thread left now: the future tries again at once.
                Err(_) => wakers.ready.push(waker.clone()),
            }
        }
        (ticket, wakers)
    }

    /// Removes a future, which may let the next one look at the word.
    pub(super) fn remove(&mut self, word: WaitableWord, ticket: u64, order: WakeOrder) -> Wakers {
        let mut wakers = Wakers::default();
        // Without a group this is a copy in a child.
        let Some(group) = self.groups.get_mut(&word.address()) else { return wakers };
        let was_looking = group.remove(ticket, order, &mut wakers);
        match order {
            WakeOrder::OneByOne if was_looking => {
                group.take_next_one(word.load(), &mut wakers.ready);
            }
            WakeOrder::ByRange(request) => {
                group.take_ranges_behind(ticket, &request, word.load(), &mut wakers.ready);
            }
            WakeOrder::Together | WakeOrder::OneByOne => {}
        }
        if group.is_empty() {
            self.groups.remove(&word.address());
        }
        if self.groups.is_empty() && self.has_thread && !is_thread_kept() {
            change_epoch::advance();
        }
        wakers
    }

    #[cfg(test)]
    pub(super) fn has_waiters_for(&self, word: WaitableWord) -> bool {
        self.groups.contains_key(&word.address())
    }

    /// Returns the wakers of all futures that have to look at their word.
    fn take_all_ready(&mut self, is_recheck: bool) -> Wakers {
        let mut wakers = Wakers::default();
        for group in self.groups.values_mut() {
            group.word.arm();
            let value = group.word.load();
            if is_recheck {
                // Some lock may have a dead holder whose exit nobody has announced.
                group.by_range.values_mut().for_each(|(_, waiter)| waiter.seen = None);
            }
            if is_recheck || group.handled != Some(value) {
                group.take_ready(value, &mut wakers.ready);
                group.handled = Some(value);
            }
        }
        wakers
    }
}

impl WaitGroup {
    fn new(word: WaitableWord) -> WaitGroup {
        WaitGroup {
            word,
            together: BTreeMap::new(),
            one_by_one: BTreeMap::new(),
            by_range: BTreeMap::new(),
            looking: 0,
            handled: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.together.is_empty() && self.one_by_one.is_empty() && self.by_range.is_empty()
    }

    /// Adds or renews a future. Returns whether it was looking as the only one.
    fn insert(
        &mut self,
        ticket: u64,
        order: WakeOrder,
        waiter: Waiter,
        wakers: &mut Wakers,
    ) -> bool {
        let was_looking = self.remove(ticket, order, wakers);
        if self.handled != waiter.seen {
            // The word may have that value again when the thread looks.
            self.handled = None;
        }
        match order {
            WakeOrder::Together => drop(self.together.insert(ticket, waiter)),
            WakeOrder::OneByOne => drop(self.one_by_one.insert(ticket, waiter)),
            WakeOrder::ByRange(request) => drop(self.by_range.insert(ticket, (request, waiter))),
        }
        was_looking
    }

    /// Removes a future if it is there. Returns whether it was looking as the only one.
    fn remove(&mut self, ticket: u64, order: WakeOrder, wakers: &mut Wakers) -> bool {
        let removed = match order {
            WakeOrder::Together => self.together.remove(&ticket),
            WakeOrder::OneByOne => self.one_by_one.remove(&ticket),
            WakeOrder::ByRange(_) => self.by_range.remove(&ticket).map(|(_, waiter)| waiter),
        };
        let Some(removed) = removed else { return false };
        let was_looking = order == WakeOrder::OneByOne && removed.waker.is_none();
        self.looking -= usize::from(was_looking);
        wakers.dropped = removed.waker;
        was_looking
    }

    /// Takes the wakers of the futures that have not looked at `value` and whose turn it is.
    fn take_ready(&mut self, value: u64, wakers: &mut Vec<Waker>) {
        wakers.extend(self.together.values_mut().filter_map(|waiter| waiter.take_if_unseen(value)));
        self.take_next_one(value, wakers);
        self.take_ranges(value, wakers);
    }

    /// Takes the waker of the first future that looks alone, unless another one is looking.
    fn take_next_one(&mut self, value: u64, wakers: &mut Vec<Waker>) {
        if self.looking == 0 {
            let next = self.one_by_one.values_mut().find_map(|one| one.take_if_unseen(value));
            self.looking += usize::from(next.is_some());
            wakers.extend(next);
        }
    }

    /// Takes the wakers of the futures that wait for locks and are not behind a conflicting request.
    fn take_ranges(&mut self, value: u64, wakers: &mut Vec<Waker>) {
        // Without those that another one covers.
        let mut earlier: Vec<LockRequest> = Vec::new();
        for (request, waiter) in self.by_range.values_mut() {
            if !earlier.iter().any(|other| other.conflicts_with(request)) {
                wakers.extend(waiter.take_if_unseen(value));
            }
            if !earlier.iter().any(|other| other.covers(request)) {
                earlier.push(*request);
            }
        }
    }

    /// Takes the wakers of the futures that were only behind a request that is gone now.
    fn take_ranges_behind(
        &mut self,
        ticket: u64,
        gone: &LockRequest,
        value: u64,
        wakers: &mut Vec<Waker>,
    ) {
        let mut behind = Vec::new();
        for (other, (request, _)) in self.by_range.range(ticket..) {
            if request.conflicts_with(gone) {
                behind.push(*other);
                if request.is_exclusive && request.covers(gone) {
                    // All further ones that were behind it are behind this one.
                    break;
                }
            }
        }
        for ticket in behind {
            let Some((request, _)) = self.by_range.get(&ticket) else { continue };
            wakers.extend(self.take_if_ready(ticket, WakeOrder::ByRange(*request), value));
        }
    }

    /// Takes the waker of one future if it has not looked at `value` and is not behind a conflicting request.
    fn take_if_ready(&mut self, ticket: u64, order: WakeOrder, value: u64) -> Option<Waker> {
        match order {
            WakeOrder::Together => self.together.get_mut(&ticket)?.take_if_unseen(value),
            WakeOrder::OneByOne => {
                let waker = self.one_by_one.get_mut(&ticket)?.take_if_unseen(value)?;
                self.looking += 1;
                Some(waker)
            }
            WakeOrder::ByRange(request) if self.is_preceded(ticket, &request) => None,
            WakeOrder::ByRange(_) => self.by_range.get_mut(&ticket)?.1.take_if_unseen(value),
        }
    }

    /// Returns whether a future with a smaller ticket waits for a conflicting lock.
    fn is_preceded(&self, ticket: u64, request: &LockRequest) -> bool {
        self.by_range.range(..ticket).any(|(_, (other, _))| other.conflicts_with(request))
    }
}

impl Waiter {
    fn take_if_unseen(&mut self, value: u64) -> Option<Waker> {
        if self.seen == Some(value) { None } else { self.waker.take() }
    }
}

/// Returns whether the thread stays for a while when nothing waits. Not before the fork, which needs a process with one thread.
fn is_thread_kept() -> bool {
    prefork_os::parent_death::is_worker_process()
}

fn start_wait_thread() -> std::io::Result<()> {
    let thread = std::thread::Builder::new()
        .name("shared-wait".to_string())
        .stack_size(WAIT_THREAD_STACK_BYTES);
    thread.spawn(wait_for_changes).map(drop)
}

/// Wakes the futures of this process when their words change. Ends when nothing has waited for a while.
fn wait_for_changes() {
    // The event loop handles the signals of the process. Without the mask, some would only interrupt this thread.
    let _ = prefork_os::thread::block_signals_in_thread();
    let mut outcome = FutexWait::Woken;
    loop {
        // Read before the words: a change after this look begins a later epoch, and the kernel does not let the thread sleep.
        let epoch = change_epoch::current();
        let mut local = lock_local_waiters();
        let is_recheck = outcome == FutexWait::TimedOut;
        if local.groups.is_empty() && (is_recheck || !is_thread_kept()) {
            local.has_thread = false;
            return;
        }
        let wakers = local.take_all_ready(is_recheck);
        drop(local);
        wakers.wake_all();
        outcome = change_epoch::sleep_in(epoch, RECHECK_INTERVAL);
    }
}
