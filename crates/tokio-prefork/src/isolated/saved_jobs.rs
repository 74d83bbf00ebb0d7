//! The jobs of a pool in the primary when it is upgraded: what crosses the exec, and how the new image continues.
//!
//! The processes of the old image go on with their jobs, and report to the new one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::job_scheduler::{IsolatedJobScheduler, PlannedEnd, RunningJob, add_limit};
use super::pool_counts::IsolatedJobCounts;
use super::room_waiters::RoomWaiter;
use super::waiting_jobs::{JobKey, WaitingJob};
use super::{IsolatedJobId, JobOutcome, JobPayload, Priority};
use prefork_os::fd::take_inherited_fd;
use prefork_supervisor::{Slot, WorkerId};

/// The format of saved jobs, and of the messages of isolated jobs that old and new processes exchange.
pub(crate) const ISOLATED_JOBS_FORMAT: u32 = 1;

/// All pools of an old image.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedIsolatedJobs {
    pub(crate) pools: Vec<SavedPool>,
    /// Replies that the queues of their callers had no room for.
    pub(crate) unsent_replies: Vec<(u64, SavedPayload)>,
}

/// One pool of an old image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedPool {
    pub(crate) name: String,
    last_id: IsolatedJobId,
    counts: IsolatedJobCounts,
    waiting: Vec<SavedJob>,
    running: Vec<SavedRunningJob>,
    idle: Vec<u64>,
    /// The jobs that wait for room; `true` if the place is granted.
    room_waiters: Vec<(SavedJob, bool)>,
}

/// A job without its place. Times are in milliseconds: before the exec if they have passed, else after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedJob {
    caller: u64,
    token: u64,
    priority: Priority,
    is_detached: bool,
    submitted_before_ms: u64,
    /// `None` without a limit.
    deadline_in_ms: Option<u64>,
    failed_starts: u32,
    size: usize,
    input: SavedPayload,
}

/// A job that was given to a process.
#[derive(Debug, Serialize, Deserialize)]
struct SavedRunningJob {
    worker: u64,
    id: IsolatedJobId,
    job: SavedJob,
    started_before_ms: u64,
    deadline_in_ms: u64,
    end: PlannedEnd,
}

/// An encoded value, and the number of its descriptor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedPayload {
    bytes: Vec<u8>,
    fd: Option<i32>,
}

impl SavedIsolatedJobs {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        postcard::to_stdvec(self).map_err(|e| e.to_string())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SavedIsolatedJobs, String> {
        postcard::from_bytes(bytes).map_err(|e| e.to_string())
    }
}

impl SavedPayload {
    /// Saves a value. Its descriptor has to stay open over the exec, so it goes to `fds`.
    pub(crate) fn save<'a>(payload: &'a JobPayload, fds: &mut Vec<BorrowedFd<'a>>) -> SavedPayload {
        let fd = payload.attached.as_ref().map(|fd| fd.as_fd());
        fds.extend(fd);
        SavedPayload { bytes: payload.bytes.to_vec(), fd: fd.map(|fd| fd.as_raw_fd()) }
    }

    /// Creates a saved value from its parts.
    pub(crate) fn new(bytes: &[u8], fd: Option<i32>) -> SavedPayload {
        SavedPayload { bytes: bytes.to_vec(), fd }
    }

    /// Returns the value, in the new image. Without its descriptor if that did not get here.
    pub(crate) fn restore(self) -> JobPayload {
        let attached = self.fd.and_then(|fd| take_inherited_fd(fd).ok());
        JobPayload { bytes: self.bytes.into(), attached: attached.map(Arc::new) }
    }
}

impl SavedJob {
    fn save<'a>(job: &'a WaitingJob, now: Instant, fds: &mut Vec<BorrowedFd<'a>>) -> SavedJob {
        SavedJob {
            caller: job.key.caller.0,
            token: job.key.token,
            priority: job.priority,
            is_detached: job.is_detached,
            submitted_before_ms: millis(now.saturating_duration_since(job.submitted)),
            deadline_in_ms: Some(millis(job.deadline.saturating_duration_since(now))),
            failed_starts: job.failed_starts,
            size: job.input.size(),
            input: SavedPayload::save(&job.input, fds),
        }
    }

    fn save_waiter(waiter: &RoomWaiter, now: Instant) -> SavedJob {
        let deadline = waiter.deadline.map(|at| millis(at.saturating_duration_since(now)));
        SavedJob {
            caller: waiter.key.caller.0,
            token: waiter.key.token,
            priority: waiter.priority,
            is_detached: waiter.is_detached,
            submitted_before_ms: millis(now.saturating_duration_since(waiter.submitted)),
            deadline_in_ms: deadline,
            failed_starts: 0,
            size: waiter.size,
            input: SavedPayload::default(),
        }
    }

    fn key(&self) -> JobKey {
        JobKey { caller: WorkerId(self.caller), token: self.token }
    }

    fn restore_waiter(&self, now: Instant) -> RoomWaiter {
        RoomWaiter {
            key: self.key(),
            priority: self.priority,
            is_detached: self.is_detached,
            size: self.size,
            submitted: before(now, self.submitted_before_ms),
            deadline: self.deadline_in_ms.map(|ms| add_limit(now, Duration::from_millis(ms))),
        }
    }

    fn restore(self, now: Instant) -> WaitingJob {
        let RoomWaiter { key, priority, is_detached, submitted, deadline, .. } =
            self.restore_waiter(now);
        WaitingJob {
            key,
            priority,
            is_detached,
            submitted,
            deadline: deadline.unwrap_or(now),
            failed_starts: self.failed_starts,
            input: self.input.restore(),
        }
    }
}

impl SavedPool {
    /// Returns the outcomes of all jobs that somebody waits for, if the new image cannot continue them.
    pub(crate) fn into_outcomes(self) -> Vec<(JobKey, JobOutcome)> {
        let waiting =
            self.waiting.into_iter().chain(self.room_waiters.into_iter().map(|one| one.0));
        let waiting = waiting.map(|job| (job, JobOutcome::Closed));
        let running = self.running.into_iter().filter(|one| one.end != PlannedEnd::Settled);
        let running = running.map(|one| (one.job, JobOutcome::PrimaryGone));
        let waited_for = waiting.chain(running).filter(|(job, _)| !job.is_detached);
        waited_for.map(|(job, outcome)| (job.key(), outcome)).collect()
    }
}

impl IsolatedJobScheduler {
    /// Saves all jobs for the new image. The descriptors that they need go to `fds`.
    pub(crate) fn save<'a>(
        &'a self,
        name: &str,
        now: Instant,
        fds: &mut Vec<BorrowedFd<'a>>,
    ) -> SavedPool {
        let waiting = self.waiting.iter().map(|job| SavedJob::save(job, now, fds)).collect();
        let running = self.running.iter().map(|(worker, running)| SavedRunningJob {
            worker: worker.0,
            id: running.id,
            job: SavedJob::save(&running.job, now, fds),
            started_before_ms: millis(now.saturating_duration_since(running.started)),
            deadline_in_ms: millis(running.deadline.saturating_duration_since(now)),
            end: running.end,
        });
        let running = running.collect();
        let granted = self.room_waiters.granted.values().map(|(waiter, _)| (waiter, true));
        let room_waiters = granted.chain(self.room_waiters.waiting.iter().map(|one| (one, false)));
        SavedPool {
            name: name.to_string(),
            last_id: self.last_id,
            counts: self.counts.clone(),
            waiting,
            running,
            idle: self.processes.idle_by_slot().into_iter().map(|worker| worker.0).collect(),
            room_waiters: room_waiters
                .map(|(waiter, is_granted)| (SavedJob::save_waiter(waiter, now), is_granted))
                .collect(),
        }
    }

    /// Continues with the jobs of the previous image. Workers below `inherited_below` are its own: their programs may differ from this
    /// one, so they run each other's jobs only.
    pub(crate) fn restore(&mut self, saved: SavedPool, inherited_below: WorkerId, now: Instant) {
        self.inherited_below = inherited_below;
        self.last_id = saved.last_id;
        self.counts = saved.counts;
        // Their slots are not known, and do not count: they are about to be replaced.
        for worker in saved.idle.into_iter().map(WorkerId) {
            self.processes.add(worker, Slot::default(), None, now);
        }
        for job in saved.waiting {
            self.waiting.push_back(job.restore(now));
        }
        for one in saved.running {
            let running = RunningJob {
                id: one.id,
                started: before(now, one.started_before_ms),
                deadline: add_limit(now, Duration::from_millis(one.deadline_in_ms)),
                end: one.end,
                job: one.job.restore(now),
            };
            let worker = WorkerId(one.worker);
            self.processes.add(worker, Slot::default(), None, now);
            self.processes.make_busy(worker);
            self.running.insert(worker, running);
        }
        for (waiter, is_granted) in saved.room_waiters {
            let waiter = waiter.restore_waiter(now);
            match is_granted {
                true => self.room_waiters.restore_granted(waiter, add_limit(now, self.limit)),
                false => self.room_waiters.push(waiter),
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time `ms` ago, or now if the clock does not reach back that far.
fn before(now: Instant, ms: u64) -> Instant {
    now.checked_sub(Duration::from_millis(ms)).unwrap_or(now)
}
