//! What the callers and the threads of a pool share: the queue, who is busy, and the threads themselves.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::job_queue::{Place, Queue};
use super::job_state::{Entry, contained};
use super::{PoolConfig, PoolError};
use crate::scoreboard::{Ending, PoolMeter};

/// A pool, seen from within.
pub(super) struct Shared {
    crew: Mutex<Crew>,
    /// Rung for each new job, and for all at the end.
    work: Condvar,
    /// Rung by the last thread that ends.
    over: Notify,
    /// Everything that runs is asked to give up.
    pub(super) ending: AtomicBool,
    pub(super) meter: PoolMeter,
    /// How the process is called in the log.
    pub(super) owner: String,
    config: PoolConfig,
    epoch: Instant,
}

/// What the lock protects. It is held for a few instructions, never while anything of the application runs.
struct Crew {
    queue: Queue<Arc<dyn Entry>>,
    /// Threads that live.
    alive: usize,
    /// Threads that have taken a job and are not done with it.
    busy: usize,
    /// Threads that sleep until there is work.
    asleep: usize,
    /// How many of these were rung for and have not come yet: they need not be rung for again.
    rung: usize,
    /// Nothing more is taken.
    closed: bool,
}

/// A thread's hold on a job it has taken; dropped, the thread counts as idle.
pub(super) struct Busy<'a>(&'a Shared);

impl<'a> Busy<'a> {
    pub(super) fn shared(&self) -> &'a Shared {
        self.0
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().busy -= 1;
    }
}

/// Why a job was not taken.
pub(super) struct Refusal {
    pub(super) why: PoolError,
    pub(super) ending: Ending,
}

impl Shared {
    pub(super) fn new(config: PoolConfig, owner: String, meter: PoolMeter) -> Shared {
        let queue = Queue::new(config.queue, config.newest_first);
        Shared {
            crew: Mutex::new(Crew { queue, alive: 0, busy: 0, asleep: 0, rung: 0, closed: false }),
            work: Condvar::new(),
            over: Notify::new(),
            ending: AtomicBool::new(false),
            meter,
            owner,
            config,
            epoch: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Crew> {
        // Nothing in here panics half way.
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds of this pool's life.
    pub(super) fn us_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// Puts a job into the queue. The first one starts the threads.
    pub(super) fn submit(self: &Arc<Shared>, entry: Arc<dyn Entry>) -> Result<Place, Refusal> {
        let mut crew = self.lock();
        if crew.closed {
            return Err(Refusal { why: PoolError::Closed, ending: Ending::Closed });
        }
        if crew.alive == 0 {
            self.start(&mut crew).map_err(|e| {
                let why = PoolError::NoThread { why: e.to_string() };
                Refusal { why, ending: Ending::Rejected }
            })?;
        }
        let idle = crew.alive.saturating_sub(crew.busy);
        let waiting = crew.queue.len();
        let pushed = crew.queue.push(entry, idle);
        self.meter.depth(crew.queue.len());
        let wake = pushed.is_ok() && crew.asleep > crew.rung;
        crew.rung += usize::from(wake);
        drop(crew);
        // The entry is dropped without the lock; its caller still has it.
        let full = |_| Refusal { why: PoolError::Full { waiting }, ending: Ending::Rejected };
        let place = pushed.map_err(full)?;
        if wake {
            self.work.notify_one();
        }
        Ok(place)
    }

    /// The job at this place will not be run.
    pub(super) fn withdraw(&self, place: Place) {
        let removed = {
            let mut crew = self.lock();
            let removed = crew.queue.remove(place);
            self.meter.depth(crew.queue.len());
            removed
        };
        drop(removed);
    }

    /// Takes no more jobs. What waits is still run, then the threads end.
    pub(super) fn close(&self) {
        let mut crew = self.lock();
        crew.closed = true;
        let nobody = crew.alive == 0;
        drop(crew);
        self.work.notify_all();
        if nobody {
            self.over.notify_waiters();
        }
    }

    /// Takes no more jobs, drops what waits and asks what runs to give up. Returns how many still run.
    pub(super) fn end(&self) -> usize {
        self.ending.store(true, Ordering::Relaxed);
        let (waiting, busy) = {
            let mut crew = self.lock();
            crew.closed = true;
            let waiting = crew.queue.take_all();
            self.meter.depth(0);
            (waiting, crew.busy)
        };
        self.close();
        waiting.iter().for_each(|entry| entry.close(&self.meter));
        busy
    }

    fn is_over(&self) -> bool {
        let crew = self.lock();
        crew.closed && crew.alive == 0
    }

    /// Resolves when it is closed and all threads have ended.
    pub(super) async fn ended(&self) {
        loop {
            let over = self.over.notified();
            let mut over = std::pin::pin!(over);
            // From here on no ring is missed.
            over.as_mut().enable();
            if self.is_over() {
                return;
            }
            over.await;
        }
    }
}

/// The threads.
impl Shared {
    /// Starts all threads. Fewer than wanted are better than none, which is an error.
    fn start(self: &Arc<Shared>, crew: &mut Crew) -> io::Result<()> {
        for number in 0..self.config.threads.max(1) {
            match self.spawn(number) {
                Ok(()) => crew.alive += 1,
                Err(e) if crew.alive == 0 => return Err(e),
                Err(e) => {
                    let (owner, wanted) = (&self.owner, self.config.threads);
                    log::warn!("{owner} has {number} threads in its pool, not {wanted}: {e}");
                    break;
                }
            }
        }
        self.meter.started(crew.alive, self.config.queue);
        Ok(())
    }

    fn spawn(self: &Arc<Shared>, number: usize) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("pool-{number}"));
        // Detached: a job that never ends must not keep the process from ending. `alive` counts them.
        thread.spawn(move || shared.live(number)).map(drop)
    }

    /// A thread's life.
    fn live(self: Arc<Shared>, number: usize) {
        if let Err(e) = prefork_os::thread::block_signals_in_thread() {
            log::warn!("{} cannot block signals in pool-{number}: {e}", self.owner);
        }
        if let Err(e) = prefork_os::thread::set_thread_niceness(self.config.nice) {
            log::warn!("{} cannot lower the priority of pool-{number}: {e}", self.owner);
        }
        while let Some(entry) = self.next() {
            let busy = Busy(&self);
            let healthy = catch_unwind(AssertUnwindSafe(|| entry.run(busy))).unwrap_or(false);
            contained(|| drop(entry));
            if !healthy && self.replace(number) {
                return;
            }
        }
        let last = {
            let mut crew = self.lock();
            crew.alive -= 1;
            crew.alive == 0
        };
        if last {
            self.over.notify_waiters();
        }
    }

    /// The next job, which counts as taken; `None` when there will be no more.
    fn next(&self) -> Option<Arc<dyn Entry>> {
        let mut crew = self.lock();
        loop {
            if let Some(entry) = crew.queue.pop() {
                crew.busy += 1;
                self.meter.depth(crew.queue.len());
                return Some(entry);
            }
            if crew.closed {
                return None;
            }
            crew.asleep += 1;
            crew = self.work.wait(crew).unwrap_or_else(PoisonError::into_inner);
            crew.asleep -= 1;
            // One that comes unrung takes the place of one that was rung for: that one finds nothing, and sleeps again.
            crew.rung = crew.rung.saturating_sub(1);
        }
    }

    /// Starts a fresh thread in place of one whose job panicked, as nobody knows what that left behind in its
    /// thread-local state. `false` if that cannot be: the old one goes on.
    fn replace(self: &Arc<Shared>, number: usize) -> bool {
        match self.spawn(number) {
            Ok(()) => true,
            Err(e) => {
                log::warn!("{} cannot replace pool-{number}, which goes on: {e}", self.owner);
                false
            }
        }
    }
}
