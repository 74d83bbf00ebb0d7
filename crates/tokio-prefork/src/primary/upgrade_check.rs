//! The check of a new binary, in its own process: forks one worker, waits until it is ready, and kills it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{PrimaryChannelEnd, ReceivedReport, WorkerReport};
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::error::{Error, Result, exit};
use crate::log_output::ProcessRole;
use crate::messages::MessageLimits;
use crate::scoreboard::{Scoreboard, WorkerPages};
use crate::worker_init::{MessageEndInit, WorkerEntry, WorkerInit};
use prefork_os::child::{ForkResult, exit_without_cleanup, fork_process, reap_child, signal_child};
use prefork_os::fd_passing::create_seqpacket_pair;
use prefork_os::poll::WatchedFd;
use prefork_os::signal::Signal;
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

/// The tag of the worker that the check forks. It has no listening socket.
const UPGRADE_CHECK_WORKER_TAG: WorkerTag = WorkerTag {
    id: WorkerId(0),
    slot: Slot(0),
    generation: Generation(0),
    pid: None,
    kind: WEB_KIND,
};

/// Checks that a worker of this program becomes ready under `config`.
///
/// # Errors
/// The worker cannot boot, is not ready within `boot-timeout`, or the system refuses something.
pub(crate) fn check_worker_boots(config: Config, worker_entry: &WorkerEntry) -> Result<()> {
    let worker_pages = config.scoreboard_page_count();
    let mut scoreboard =
        Scoreboard::create(worker_pages).map_err(|e| Error::system("create a scoreboard", e))?;
    let pages = scoreboard.allocate_pages(UPGRADE_CHECK_WORKER_TAG, worker_pages);
    let pages = pages.ok_or_else(|| Error::internal("no worker page for the check's worker"))?;
    let boot_timeout = config.boot_timeout;
    let (own_end, worker_end) =
        create_seqpacket_pair().map_err(|e| Error::system("create a channel", e))?;
    let check_pid = std::process::id();
    let certificates = config.tls_certificates.clone();
    let _keys = certificates.keep_over_fork()?;
    match fork_process()? {
        ForkResult::Parent(pid) => {
            drop(worker_end);
            // Open until the worker is killed: a closed channel would make the worker drain and log it.
            let channel = PrimaryChannelEnd::new(own_end);
            let result = wait_until_ready(&channel, boot_timeout);
            let _ = signal_child(pid, Signal::SIGKILL);
            while matches!(reap_child(pid), Ok(None)) {
                std::thread::yield_now();
            }
            result
        }
        ForkResult::Child => {
            crate::worker::set_worker_process();
            let pid = Some(std::process::id());
            ProcessRole::Worker(WorkerTag { pid, ..UPGRADE_CHECK_WORKER_TAG }).set();
            drop(own_end);
            let run = || -> Result<u8> {
                let init = become_check_worker(config, scoreboard, pages, worker_end, check_pid)?;
                Ok(init.map_or(exit::OK, worker_entry))
            };
            exit_without_cleanup(run().unwrap_or_else(|e| {
                log::error!("the worker of the upgrade check cannot start: {e}");
                e.exit_status()
            }))
        }
    }
}

/// Turns the forked child into the check's worker. Returns `None` if the check has ended already.
fn become_check_worker(
    config: Config,
    mut scoreboard: Scoreboard,
    pages: WorkerPages,
    channel: OwnedFd,
    check_pid: u32,
) -> Result<Option<WorkerInit>> {
    let failed = |what: &'static str| move |e: io::Error| Error::system(what, e);
    if let Some(credentials) = config.credentials() {
        credentials.drop_privileges()?;
    }
    // The worker serves no client, so it needs no time to drain when the check is stopped.
    let is_alive = prefork_os::parent_death::kill_on_parent_death(check_pid)
        .map_err(failed("set the parent death signal of the worker"))?;
    if !is_alive {
        return Ok(None);
    }
    let terminate = prefork_os::signal::register_signal_flag(Signal::SIGTERM)
        .map_err(failed("catch SIGTERM in the worker"))?;
    let board = scoreboard.reader(&[]);
    let worker_pages = scoreboard
        .keep_only_own_pages(pages)
        .map_err(failed("keep only the worker's own scoreboard pages"))?;
    // Its connections are those of no client, so the protocols over TLS do not matter.
    let tls = config.make_worker_tls(false, None)?;
    Ok(Some(WorkerInit {
        tag: UPGRADE_CHECK_WORKER_TAG,
        kinds: Vec::new(),
        listeners: Vec::new(),
        channel,
        queue: None,
        messages: MessageEndInit::Channel(None, MessageLimits::default()),
        worker_pages,
        pools: None,
        load_page: LoadPage::default(),
        board,
        config: Arc::new(config),
        tls,
        access_log: None,
        terminate,
    }))
}

fn wait_until_ready(channel: &PrimaryChannelEnd, boot_timeout: Duration) -> Result<()> {
    let failed = |reason: &str| {
        let reason = format!("the worker of the upgrade check did not become ready: {reason}");
        Err(Error::workers_cannot_boot(reason))
    };
    let mut boot_error = None;
    loop {
        match channel.receive() {
            ReceivedReport::Report(WorkerReport::Ready) => return Ok(()),
            ReceivedReport::Report(
                WorkerReport::BootFailed(reason) | WorkerReport::BootAttemptFailed(reason),
            ) => boot_error = Some(reason),
            // The check's worker has no sockets to adopt.
            ReceivedReport::Report(
                WorkerReport::Online
                | WorkerReport::ProgramStarted { .. }
                | WorkerReport::AdoptSlotFailed(_),
            ) => {}
            ReceivedReport::Report(WorkerReport::HandOverConnection(_))
            | ReceivedReport::HandedOverConnection(..)
            | ReceivedReport::LostConnection => {
                return failed("it hands over connections");
            }
            ReceivedReport::Report(WorkerReport::Disconnecting) => return failed("it disconnects"),
            ReceivedReport::Report(WorkerReport::Retiring) => return failed("it retires"),
            ReceivedReport::Invalid(reason) => return failed(&reason),
            ReceivedReport::Closed => return failed(boot_error.as_deref().unwrap_or("it exited")),
            ReceivedReport::Empty => {
                // A signal may end the wait early; the primary that has started the check has its own deadline.
                let watched = [WatchedFd::readable(channel.as_fd())];
                let ready = prefork_os::poll::poll_fds(&watched, Some(boot_timeout))
                    .map_err(|e| Error::system("wait for the worker of the upgrade check", e))?;
                if !ready[0] {
                    return failed("boot-timeout has passed");
                }
            }
        }
    }
}
