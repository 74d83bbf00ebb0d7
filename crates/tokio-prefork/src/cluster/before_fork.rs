//! What the application does once before the first worker is forked, in child processes that are gone by then.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;

use prefork_os::child::{ForkResult, PidFd};
use prefork_os::poll::{WatchedFd, poll_fds};

use super::Cluster;
use crate::error::{BoxError, Error, Result, exit, text_of_chain};
use crate::text::{panic_text, printable};

/// A function of the application that runs before the first fork.
pub(super) type BeforeFork = Box<dyn FnOnce() -> Result<(), BoxError>>;

impl Cluster {
    /// Runs `run` once before the first worker is forked: the place for database migrations and other preparations that need
    /// an async runtime, threads or connections, all of which must not exist in a process that forks.
    ///
    /// It runs in a child process, after the addresses are bound and before [`Cluster::preload`]. So what it leaves in memory
    /// is lost, and nothing it opens reaches the workers. The start waits for it without a limit, and a signal that ends the
    /// primary ends it, too. Several functions run one after the other.
    ///
    /// An upgrade in place runs it in the check of the new binary, before anything is replaced: a failure leaves the old
    /// binary serving. A reload does not run it, nor does a respawn.
    ///
    /// ```no_run
    /// # async fn migrate() -> Result<(), tokio_prefork::BoxError> { Ok(()) }
    /// use axum::Router;
    /// use tokio_prefork::{Cluster, Config};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// Cluster::new(config)
    ///     .before_fork(|| tokio::runtime::Runtime::new()?.block_on(migrate()))
    ///     .serve(|_| async { Ok(Router::new()) })
    /// # }
    /// ```
    ///
    /// # Errors
    /// An error or a panic of `run` ends the start: [`Cluster::serve`] returns its text.
    pub fn before_fork(mut self, run: impl FnOnce() -> Result<(), BoxError> + 'static) -> Cluster {
        self.before_fork.push(Box::new(run));
        self
    }
}

/// Runs each function in a child process of its own, and waits for it.
pub(super) fn run_all(functions: Vec<BeforeFork>) -> Result<()> {
    functions.into_iter().try_for_each(run_in_child)
}

fn run_in_child(run: BeforeFork) -> Result<()> {
    let failed = |e: io::Error| Error::system("run the function of before_fork in a child", e);
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    // A process that the function leaves behind may keep the pipe open.
    prefork_os::fd::set_nonblocking(&reader).map_err(failed)?;
    let parent = std::process::id();
    match prefork_os::child::fork_process()? {
        ForkResult::Parent(pid) => {
            drop(writer);
            let status = wait_for_child(pid).map_err(failed)?;
            let mut text = Vec::new();
            // The child has written all it had to say, so this does not wait.
            let _ = reader.read_to_end(&mut text);
            check_outcome(status, &String::from_utf8_lossy(&text))
        }
        ForkResult::Child => {
            drop(reader);
            let is_tied =
                matches!(prefork_os::parent_death::kill_on_parent_death(parent), Ok(true));
            let status = if is_tied { run_and_report(run, writer) } else { exit::FAILURE };
            prefork_os::child::exit_without_cleanup(status)
        }
    }
}

/// Runs the function, in the child. Writes the text of its error to `report`, and returns the exit status.
fn run_and_report(run: BeforeFork, mut report: io::PipeWriter) -> u8 {
    let text = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return exit::OK,
        Ok(Err(error)) => text_of_chain(&*error),
        Err(panic) => format!("it panicked: {}", panic_text(&*panic)),
    };
    // Cut by `printable` to less than a pipe takes, so this does not wait. Without a reader the parent is gone.
    let _ = report.write_all(printable(&text).as_bytes());
    exit::SOFTWARE
}

fn check_outcome(status: ExitStatus, text: &str) -> Result<()> {
    let failed = |why: String| Err(Error::application("before_fork failed", why));
    match (status.success(), text) {
        (_, text) if !text.is_empty() => failed(text.to_string()),
        (true, _) => Ok(()),
        (false, _) => failed(format!("its process ended early ({status})")),
    }
}

/// Waits until the child has exited, and reaps it.
fn wait_for_child(pid: u32) -> io::Result<ExitStatus> {
    let child = PidFd::open(pid)?;
    loop {
        if let Some(status) = prefork_os::child::reap_child(pid)? {
            return Ok(status);
        }
        // Returns early when a signal arrives.
        poll_fds(&[WatchedFd::readable(child.as_fd())], None)?;
    }
}
