//! Leader election among the workers: a leadership is held by at most one process at a time.

use std::fmt;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::task::{Context, Poll};

use super::leadership_lock::{LeadershipLock, LeadershipStage, LocalLeadership};
use super::live_processes;
use super::lock_files::{self, LEADERSHIP_LOCK_FILE};
use super::registry::{self, DeclaredState};
use crate::error::{Error, Result};
use prefork_os::byte_range_lock::ByteRangeLocks;

/// A role that at most one live process has at a time: to run the cron jobs, to consume a queue.
///
/// Each worker that is ready to lead waits in [`acquire`](Leadership::acquire). When the leader dies, releases the leadership or is
/// replaced, the kernel wakes one of them. A stopped or stalled leader keeps leading until the watchdog kills it, because it may still
/// continue its work.
///
/// A draining worker should release its leadership, so that another one leads while it finishes requests:
///
/// ```no_run
/// use tokio_prefork::{Cluster, Config, Leadership, Worker};
/// # use hyper::{Request, Response, service::service_fn};
/// # fn run() -> tokio_prefork::Result<()> {
/// let cron = Leadership::new("cron")?;
/// Cluster::new(Config::builder().build()?).serve(move |worker: Worker| async move {
///     let me = worker.clone();
///     tokio::task::spawn_local(async move {
///         tokio::select! {
///             _ = cron.run_as_leader(async { /* every minute ... */ std::future::pending::<()>().await }) => {}
///             () = me.draining() => {}
///         }
///     });
/// #   Ok(service_fn(|_: Request<hyper::body::Incoming>| async {
/// #       Ok::<_, std::convert::Infallible>(Response::new(String::new()))
/// #   }))
/// })
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Leadership(&'static LeadershipLock);

/// Leads until it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard releases the leadership"]
pub struct LeadershipGuard {
    role: Leadership,
    pid: u32,
}

impl Leadership {
    /// Declares a leadership among the workers of this cluster. Call it before the cluster serves.
    ///
    /// The leader keeps leading during an upgrade in place. The workers of the new binary, and the worker of its check, wait for the
    /// same leadership.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, this is a worker process, or memory is short.
    pub fn new(name: &str) -> Result<Leadership> {
        let name = registry::validate_name(name)?;
        let locks = lock_files::get_or_create(LEADERSHIP_LOCK_FILE)?;
        Leadership::register(name, locks, live_processes::leadership_byte(name))
    }

    /// Declares a leadership among all processes of this machine that use the same name and file: several clusters, or a cluster that is restarted.
    ///
    /// The file is created with mode 0600 if it does not exist, and stays empty. It must be on a local file system. Nothing else in this
    /// process may open it, because closing it would release the leadership.
    ///
    /// # Errors
    /// As [`Leadership::new`], or the file cannot be opened.
    pub fn with_lock_file(name: &str, path: impl AsRef<Path>) -> Result<Leadership> {
        let (name, path) = (registry::validate_name(name)?, path.as_ref());
        let locks = ByteRangeLocks::open_file(path).map_err(|e| {
            Error::system(format!("open {} for the leadership {name:?}", path.display()), e)
        })?;
        Leadership::register(name, locks, live_processes::leadership_byte(name))
    }

    fn register(
        name: &'static str,
        locks: &'static ByteRangeLocks,
        byte: u64,
    ) -> Result<Leadership> {
        let role = Leadership(Box::leak(Box::new(LeadershipLock::new(name, locks, byte))));
        registry::register(name, DeclaredState::Leadership(role))?;
        Ok(role)
    }

    /// Waits until this process leads, and leads until the [`LeadershipGuard`] is dropped.
    ///
    /// Within a process, too, only one guard exists at a time. Cancel safe: dropping the future ends the wait. Works with any runtime.
    ///
    /// # Errors
    /// The system refuses the waiting thread, or the lock.
    pub async fn acquire(&self) -> Result<LeadershipGuard> {
        let mut wait = PendingAcquire { role: *self, ticket: None };
        poll_fn(|context| wait.poll(context)).await
    }

    /// Waits until this process leads, runs `work`, and releases the leadership.
    ///
    /// If the worker dies meanwhile, another one starts its work from the beginning.
    ///
    /// # Errors
    /// As [`Leadership::acquire`]; then the work has not started.
    pub async fn run_as_leader<F: Future>(&self, work: F) -> Result<F::Output> {
        let _lead = self.acquire().await?;
        Ok(work.await)
    }

    /// Leads if no process does, without waiting. Returns `None` if there is a leader.
    ///
    /// # Errors
    /// The system refuses the lock.
    pub fn try_acquire(&self) -> Result<Option<LeadershipGuard>> {
        let mut local = self.0.lock_local();
        let is_idle = matches!(local.stage, LeadershipStage::Idle);
        if !is_idle || !self.0.locks.try_lock(self.0.byte).map_err(|e| self.0.lock_error(e))? {
            return Ok(None);
        }
        local.stage = LeadershipStage::Leading;
        Ok(Some(LeadershipGuard { role: *self, pid: local.pid }))
    }

    /// Returns whether this process leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.0.lock_local().stage, LeadershipStage::Leading)
    }

    /// Returns the pid of the leader, as the kernel knows it. `None` without a leader, or if the kernel cannot be asked.
    pub fn leader_pid(&self) -> Option<u32> {
        let local = self.0.lock_local();
        match local.stage {
            LeadershipStage::Leading => Some(local.pid),
            _ => self.0.locks.holder_pid(self.0.byte).ok().flatten(),
        }
    }
}

/// A future of this process that waits for the leadership.
struct PendingAcquire {
    role: Leadership,
    ticket: Option<u64>,
}

impl PendingAcquire {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<LeadershipGuard>> {
        let role = self.role.0;
        let mut local = role.lock_local();
        match local.stage {
            LeadershipStage::Idle => match role.locks.try_lock(role.byte) {
                Ok(true) => return Poll::Ready(Ok(self.start_leading(&mut local))),
                Ok(false) => {
                    self.enqueue(&mut local, context);
                    if let Err(e) = role.start_wait_thread() {
                        self.dequeue(&mut local);
                        return Poll::Ready(Err(role.lock_error(e)));
                    }
                    local.stage = LeadershipStage::WaitingForLock;
                }
                Err(e) => return Poll::Ready(Err(role.lock_error(e))),
            },
            LeadershipStage::Acquired => return Poll::Ready(Ok(self.start_leading(&mut local))),
            LeadershipStage::WaitingForLock | LeadershipStage::Leading => {
                self.enqueue(&mut local, context)
            }
            LeadershipStage::Failed(_) => {
                self.dequeue(&mut local);
                // The next call tries again.
                if let LeadershipStage::Failed(e) =
                    std::mem::replace(&mut local.stage, LeadershipStage::Idle)
                {
                    local.wake_all();
                    return Poll::Ready(Err(role.lock_error(e)));
                }
            }
        }
        Poll::Pending
    }

    fn start_leading(&mut self, local: &mut LocalLeadership) -> LeadershipGuard {
        self.dequeue(local);
        local.stage = LeadershipStage::Leading;
        LeadershipGuard { role: self.role, pid: local.pid }
    }

    fn enqueue(&mut self, local: &mut LocalLeadership, context: &Context<'_>) {
        self.dequeue(local);
        local.next_ticket += 1;
        self.ticket = Some(local.next_ticket);
        local.waiting.push((local.next_ticket, context.waker().clone()));
    }

    fn dequeue(&mut self, local: &mut LocalLeadership) {
        if let Some(ticket) = self.ticket.take() {
            local.waiting.retain(|(other, _)| *other != ticket);
        }
    }
}

impl Drop for PendingAcquire {
    fn drop(&mut self) {
        if self.ticket.is_none() {
            return;
        }
        let mut local = self.role.0.lock_local();
        self.dequeue(&mut local);
        // The lock was acquired for waiting futures, and this was the last of them.
        if matches!(local.stage, LeadershipStage::Acquired) && local.waiting.is_empty() {
            self.role.0.release(&mut local);
        }
    }
}

impl Drop for LeadershipGuard {
    fn drop(&mut self) {
        let mut local = self.role.0.lock_local();
        // In a child of the leader this guard is a copy, which holds no lock.
        if local.pid == self.pid {
            self.role.0.release(&mut local);
        }
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leadership({:?}, leader {:?})", self.0.name, self.leader_pid())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::Leadership;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_guard_at_a_time_leads_within_a_process() {
        let role = Leadership::new("role_one").expect("role");
        assert!(!role.is_leader());
        assert_eq!(role.leader_pid(), None);
        let lead = role.try_acquire().expect("lock").expect("there is a leader");
        assert!(role.is_leader());
        assert_eq!(role.leader_pid(), Some(std::process::id()));
        assert!(role.try_acquire().expect("lock").is_none());
        let mut next = pin!(role.acquire());
        assert!(poll(next.as_mut()).is_pending());
        drop(lead);
        let Poll::Ready(Ok(lead)) = poll(next) else { panic!("it leads now") };
        drop(lead);
        assert!(!role.is_leader());
    }

    #[test]
    fn a_dropped_acquire_does_not_get_the_leadership() {
        let role = Leadership::new("role_gone").expect("role");
        let lead = role.try_acquire().expect("lock").expect("there is a leader");
        {
            let mut gone = pin!(role.acquire());
            assert!(poll(gone.as_mut()).is_pending());
        }
        drop(lead);
        assert!(role.try_acquire().expect("lock").is_some());
    }

    #[test]
    fn a_panic_releases_the_leadership() {
        let role = Leadership::new("role_panic").expect("role");
        let work = || {
            let mut work = pin!(role.run_as_leader(async { panic!("the work panics") }));
            let _ = poll(work.as_mut());
        };
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(!role.is_leader());
    }

    #[test]
    fn run_as_leader_returns_the_output_of_the_work() {
        let role = Leadership::new("role_output").expect("role");
        let Poll::Ready(Ok(7)) = poll(pin!(role.run_as_leader(async { 7 }))) else {
            panic!("no output")
        };
    }

    #[test]
    fn two_leaderships_in_one_file_are_independent() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("roles");
        let one = Leadership::with_lock_file("role_file_one", &path).expect("role");
        let other = Leadership::with_lock_file("role_file_other", &path).expect("role");
        let _one = one.try_acquire().expect("lock").expect("is_idle");
        assert!(other.try_acquire().expect("lock").is_some());
        let error =
            Leadership::with_lock_file("role_file_bad", dir.path()).expect_err("a directory");
        assert!(error.to_string().contains("cannot open "), "{error}");
    }
}
