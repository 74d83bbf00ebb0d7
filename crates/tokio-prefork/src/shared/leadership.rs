//! One process does it, and if that dies, another: what the application sees of a role. How it works:
//! `leadership_lock.rs`.

use std::fmt;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::task::{Context, Poll};

use super::leadership_lock::{Here, Role, State};
use super::live_processes::{self, Members};
use super::registry::{self, Thing};
use crate::error::{Error, Result};
use prefork_os::byte_range_lock::ByteRangeLocks;

/// A role that exactly one live process of the cluster has: to run the cron jobs, to consume a queue.
///
/// Each worker that is ready to take the role waits in [`acquire`](Leadership::acquire). When the leader dies,
/// resigns or is replaced, the kernel wakes one of them. A leader that is frozen or stopped still leads, until
/// the watchdog kills it: what does not die may yet go on with its work.
///
/// A worker that drains should resign, so that another leads while it still finishes requests:
///
/// ```no_run
/// use tokio_prefork::{Cluster, Config, Leadership, Worker};
/// # use hyper::{Request, Response, service::service_fn};
/// # fn run() -> tokio_prefork::Result<std::process::ExitCode> {
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
pub struct Leadership(&'static Role);

/// Leads until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it resigns"]
pub struct LeadershipGuard {
    role: Leadership,
    pid: u32,
}

impl Leadership {
    /// Declares a role among the workers of this cluster, before it serves. An upgrade to a new binary begins
    /// anew: the worker that proves it, and the new ones while old ones finish, know nothing of the old
    /// leader, so two may lead for a while. See [`with_lock_file`](Leadership::with_lock_file) if that must not be.
    ///
    /// # Errors
    /// The name is taken or no name for a metric, this is a worker, or the system refuses memory for it.
    pub fn new(name: &str) -> Result<Leadership> {
        let name = registry::name(name)?;
        let (locks, byte) = Members::get()?.role(name);
        Leadership::declare(name, locks, byte)
    }

    /// Declares a role among all processes of this machine that use the same name in the same file, over
    /// upgrades too. The file is made if need be (mode 0600) and stays empty. It must be on a local file
    /// system, and nothing else in this process may open it: closing it again would let go of the role.
    ///
    /// # Errors
    /// As [`Leadership::new`], or the file cannot be had.
    pub fn with_lock_file(name: &str, path: impl AsRef<Path>) -> Result<Leadership> {
        let (name, path) = (registry::name(name)?, path.as_ref());
        let locks = ByteRangeLocks::open_file(path).map_err(|e| {
            Error::system(format!("open {} for the role {name:?}", path.display()), e)
        })?;
        Leadership::declare(name, locks, live_processes::role_byte(name))
    }

    fn declare(
        name: &'static str,
        locks: &'static ByteRangeLocks,
        byte: u64,
    ) -> Result<Leadership> {
        let role = Leadership(Box::leak(Box::new(Role::new(name, locks, byte))));
        registry::declare(name, Thing::Role(role))?;
        Ok(role)
    }

    /// Waits until this process has the role, and leads until the [`LeadershipGuard`] is dropped. Within a process too,
    /// one at a time leads. Can be dropped at any time, then it no longer waits. Needs no runtime in
    /// particular.
    ///
    /// # Errors
    /// The system refuses the thread that waits, or the lock.
    pub async fn acquire(&self) -> Result<LeadershipGuard> {
        let mut wait = Wait { role: *self, number: None };
        poll_fn(|context| wait.poll(context)).await
    }

    /// Waits until this process has the role, does the work, and resigns. If the worker dies in between,
    /// another begins from the start.
    ///
    /// # Errors
    /// As [`Leadership::acquire`]; then the work was not begun.
    pub async fn run_as_leader<F: Future>(&self, work: F) -> Result<F::Output> {
        let _lead = self.acquire().await?;
        Ok(work.await)
    }

    /// Leads if nobody does, without waiting.
    ///
    /// # Errors
    /// The system refuses the lock.
    pub fn try_acquire(&self) -> Result<Option<LeadershipGuard>> {
        let mut here = self.0.here();
        let free = matches!(here.state, State::Idle);
        if !free || !self.0.locks.try_lock(self.0.byte).map_err(|e| self.0.refused(e))? {
            return Ok(None);
        }
        here.state = State::Led;
        Ok(Some(LeadershipGuard { role: *self, pid: here.pid }))
    }

    /// Whether this process leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.0.here().state, State::Led)
    }

    /// The process that leads, if one does, as the kernel knows it. `None` also if the kernel cannot be asked.
    pub fn leader_pid(&self) -> Option<u32> {
        let here = self.0.here();
        match here.state {
            State::Led => Some(here.pid),
            _ => self.0.locks.holder_pid(self.0.byte).ok().flatten(),
        }
    }
}

/// Somebody who waits in this process.
struct Wait {
    role: Leadership,
    number: Option<u64>,
}

impl Wait {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Result<LeadershipGuard>> {
        let role = self.role.0;
        let mut here = role.here();
        match here.state {
            State::Idle => match role.locks.try_lock(role.byte) {
                Ok(true) => return Poll::Ready(Ok(self.take(&mut here))),
                Ok(false) => {
                    self.wait(&mut here, context);
                    if let Err(e) = role.sleep() {
                        self.leave(&mut here);
                        return Poll::Ready(Err(role.refused(e)));
                    }
                    here.state = State::Asleep;
                }
                Err(e) => return Poll::Ready(Err(role.refused(e))),
            },
            State::Offered => return Poll::Ready(Ok(self.take(&mut here))),
            State::Asleep | State::Led => self.wait(&mut here, context),
            State::Failed(_) => {
                self.leave(&mut here);
                // The next one who asks tries again.
                if let State::Failed(e) = std::mem::replace(&mut here.state, State::Idle) {
                    here.wake_all();
                    return Poll::Ready(Err(role.refused(e)));
                }
            }
        }
        Poll::Pending
    }

    fn take(&mut self, here: &mut Here) -> LeadershipGuard {
        self.leave(here);
        here.state = State::Led;
        LeadershipGuard { role: self.role, pid: here.pid }
    }

    fn wait(&mut self, here: &mut Here, context: &Context<'_>) {
        self.leave(here);
        here.next += 1;
        self.number = Some(here.next);
        here.waiting.push((here.next, context.waker().clone()));
    }

    fn leave(&mut self, here: &mut Here) {
        if let Some(number) = self.number.take() {
            here.waiting.retain(|(other, _)| *other != number);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.number.is_none() {
            return;
        }
        let mut here = self.role.0.here();
        self.leave(&mut here);
        // It was offered to those who waited, and the last of them has gone.
        if matches!(here.state, State::Offered) && here.waiting.is_empty() {
            self.role.0.let_go(&mut here);
        }
    }
}

impl Drop for LeadershipGuard {
    fn drop(&mut self) {
        let mut here = self.role.0.here();
        // In a child of the leader this is a copy, which leads nothing.
        if here.pid == self.pid {
            self.role.0.let_go(&mut here);
        }
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leadership({:?}, led by {:?})", self.0.name, self.leader_pid())
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
    fn one_at_a_time_leads_within_a_process() {
        let role = Leadership::new("role_one").expect("role");
        assert!(!role.is_leader());
        assert_eq!(role.leader_pid(), None);
        let lead = role.try_acquire().expect("lock").expect("nobody leads");
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
    fn who_no_longer_waits_gets_nothing() {
        let role = Leadership::new("role_gone").expect("role");
        let lead = role.try_acquire().expect("lock").expect("nobody leads");
        {
            let mut gone = pin!(role.acquire());
            assert!(poll(gone.as_mut()).is_pending());
        }
        drop(lead);
        assert!(role.try_acquire().expect("lock").is_some());
    }

    #[test]
    fn work_that_panics_resigns() {
        let role = Leadership::new("role_panic").expect("role");
        let work = || {
            let mut work = pin!(role.run_as_leader(async { panic!("the work panics") }));
            let _ = poll(work.as_mut());
        };
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(!role.is_leader());
    }

    #[test]
    fn run_once_gives_what_the_work_gave() {
        let role = Leadership::new("role_output").expect("role");
        let Poll::Ready(Ok(7)) = poll(pin!(role.run_as_leader(async { 7 }))) else {
            panic!("no output")
        };
    }

    #[test]
    fn two_roles_of_one_file_do_not_meet() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("roles");
        let one = Leadership::with_lock_file("role_file_one", &path).expect("role");
        let other = Leadership::with_lock_file("role_file_other", &path).expect("role");
        let _one = one.try_acquire().expect("lock").expect("free");
        assert!(other.try_acquire().expect("lock").is_some());
        let error =
            Leadership::with_lock_file("role_file_bad", dir.path()).expect_err("a directory");
        assert!(error.to_string().contains("cannot open "), "{error}");
    }
}
