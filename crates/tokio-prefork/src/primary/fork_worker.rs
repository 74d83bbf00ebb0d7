//! The choreography of a fork. In order: signals held back, channel made, fork; then the child gives up
//! everything that is the primary's, its rights first, takes what is its own, lets signals in again, and never comes
//! back.
//!
//! What if the primary dies in between? The child asks who its parent is after it told the kernel to signal
//! it (`kill_after_parent_death`), so it cannot miss the death. What if a signal comes? It is held back until the child has
//! its own handlers; the primary's pipe is never written by a child.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::handover_relay::HandoverRelay;
use super::{Primary, WorkerProcess};
use crate::channel::PrimaryEnd;
use crate::config::Config;
use crate::dispatch::round_robin::Dealer;
use crate::dispatch::round_robin::Queue;
use crate::dispatch::{LoadPage, LoadPageLease};
use crate::error::{Error, Result, exit};
use crate::messages::MailHub;
use crate::scoreboard::RowIndex;
use crate::systemd::PRIMARYS_OWN;
use crate::worker_init::WorkerInit;
use prefork_os::child::ForkResult;
use prefork_os::fd::FdCloseBatch;
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::WorkerTag;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// A worker's ends of its channels, and of the queue of its connections.
struct Ends {
    channel: OwnedFd,
    mail: OwnedFd,
    queue: Option<OwnedFd>,
}

impl Primary {
    /// Forks a worker and returns its pid; in the child it does not return.
    pub(super) fn fork_worker(&mut self, tag: WorkerTag) -> Result<u32> {
        let web = tag.slot.is_web();
        let config = self.configs.get(&tag.generation).cloned();
        let rows = config.as_ref().filter(|_| web).map_or(1, |config| config.rows());
        let row = self.scoreboard.lease_rows(tag, rows).ok_or_else(|| {
            Error::config("no free row on the scoreboard: too many workers are still finishing")
        })?;
        // The worker has to be known to whatever chooses among the slots.
        self.update_kernel_selector();
        let config = config.filter(|_| web);
        let lease = config.and_then(|config| self.lease_load_page(tag.slot, &config));
        let forked = self.fork_into(tag, row, lease);
        if forked.is_err() {
            self.scoreboard.retire(row);
            self.remove_dispatch_target(tag.id, lease);
        }
        forked
    }

    fn fork_into(
        &mut self,
        tag: WorkerTag,
        row: RowIndex,
        lease: Option<LoadPageLease>,
    ) -> Result<u32> {
        let (ours, theirs) = prefork_os::fd_passing::create_seqpacket_pair()
            .map_err(|e| Error::system(format!("make a channel for {tag}"), e))?;
        let mail = prefork_os::fd_passing::create_seqpacket_pair()
            .map_err(|e| Error::system(format!("make a mail channel for {tag}"), e))?;
        let dealt_to = tag.slot.is_web() && self.config_of(tag)?.dispatch.accepts_in_primary();
        let queue = dealt_to
            .then(Queue::new)
            .transpose()
            .map_err(|e| Error::system(format!("make a queue of connections for {tag}"), e))?;
        let primary = std::process::id();
        let blocked = BlockedSignals::block_all().map_err(|e| Error::system("block signals", e))?;
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(pid) => {
                let tag = WorkerTag { pid: Some(pid), ..tag };
                let channel = PrimaryEnd::new(ours);
                let child = WorkerProcess {
                    lease,
                    queue,
                    ..WorkerProcess::new(tag, pid, Some(channel), row)
                };
                self.workers.insert(tag.id, child);
                self.messages.hub.add(tag, mail.0);
                Ok(pid)
            }
            ForkResult::Child => {
                drop((ours, mail.0));
                let tag = WorkerTag { pid: Some(std::process::id()), ..tag };
                let queue = queue.map(Queue::into_reader);
                let ends = Ends { channel: theirs, mail: mail.1, queue };
                let pages = (row, lease);
                prefork_os::child::exit_without_cleanup(
                    self.live_as_worker(tag, pages, ends, primary, blocked),
                )
            }
        }
    }

    /// A whole worker's life, in the child. A panic here must not unwind into the primary's frames.
    fn live_as_worker(
        &mut self,
        tag: WorkerTag,
        pages: (RowIndex, Option<LoadPageLease>),
        ends: Ends,
        primary: u32,
        blocked: BlockedSignals,
    ) -> u8 {
        let life = || match self.become_worker(tag, pages, ends, primary, blocked) {
            Ok(Some(seed)) => (self.worker_entry)(seed),
            Ok(None) => exit::OK,
            Err(e) => {
                log::error!("{tag} cannot start: {e}");
                exit::OS
            }
        };
        catch_unwind(AssertUnwindSafe(life)).unwrap_or(exit::FAILURE)
    }

    /// `None` if the primary is gone already.
    fn become_worker(
        &mut self,
        tag: WorkerTag,
        (row, lease): (RowIndex, Option<LoadPageLease>),
        ends: Ends,
        primary: u32,
        blocked: BlockedSignals,
    ) -> Result<Option<WorkerInit>> {
        let config = self.config_of(tag)?;
        if let Some(credentials) = config.credentials() {
            credentials.take_on()?;
        }
        // Not before: the kernel forgets this when a process changes its user.
        let grace = config.graceful_timeout.as_millis().div_ceil(1000) as u32;
        let alive = prefork_os::parent_death::kill_after_parent_death(primary, grace + 1)
            .map_err(|e| Error::system("tie the worker to its primary", e))?;
        if !alive {
            return Ok(None);
        }
        (self.proof, self.candidate) = (None, None);
        self.pid_file = None;
        if config.titles {
            let what = if tag.slot.is_web() { "worker" } else { tag.kind };
            let title = format!("prefork: {what} {} (gen {})", tag.id, tag.generation);
            prefork_os::process::set_process_title(&title)
                .unwrap_or_else(|e| super::event_log::no_title(&e));
        }
        // Its file stays: it is the primary's.
        self.control = None;
        self.manager = None;
        self.handover = HandoverRelay::default();
        self.dealer = Dealer::default();
        let message_limits = self.messages.hub.limits();
        self.close_channels_of_others();
        self.signals.close();
        // The primary has none of it any more, but for what a hook of the application may have set.
        prefork_os::process::remove_env_vars(|name| PRIMARYS_OWN.contains(&name))?;
        prefork_os::process::set_env_vars(self.supervisor.slot_environment(tag.slot))?;
        let terminate = prefork_os::signal::register_signal_flag(Signal::SIGTERM)
            .map_err(|e| Error::system("catch SIGTERM in the worker", e))?;
        let board = self.scoreboard.reader();
        let rows = self
            .scoreboard
            .give_up_all_but(row)
            .map_err(|e| Error::system("keep only the worker's own scoreboard pages", e))?;
        let load_page = match self.kernel_selector.take().zip(lease) {
            Some((active, lease)) => active.selector.keep_only_page(lease)?,
            None => LoadPage::default(),
        };
        let per_slot = config.dispatch.has_socket_per_slot();
        // Who serves no connections has no sockets, and closes those of the primary.
        let named = if tag.slot.is_web() { config.bind.as_slice() } else { &[] };
        let listeners = self.listeners.take_for_worker(named, tag.slot, per_slot);
        drop(blocked);
        let Ends { channel, mail, queue } = ends;
        Ok(Some(WorkerInit {
            tag,
            listeners,
            channel,
            mail: Some(mail),
            message_limits,
            kinds: self.supervisor.kind_first_slots(),
            queue,
            rows,
            load_page,
            board,
            config,
            terminate,
        }))
    }

    /// In a freshly forked worker: closes the channels of all other workers, and all that was on its way to them.
    fn close_channels_of_others(&mut self) {
        let mut fds = FdCloseBatch::default();
        let children = std::mem::take(&mut self.workers);
        fds.add_fds_of(children, |children, take| {
            for child in children.values() {
                child.channel.iter().map(PrimaryEnd::as_fd).for_each(&mut *take);
                child.queue.iter().flat_map(Queue::ends).for_each(&mut *take);
            }
        });
        let hub = MailHub::new(self.messages.hub.limits());
        std::mem::replace(&mut self.messages.hub, hub).leave_to_parent(&mut fds);
        fds.close_all();
    }

    fn config_of(&self, tag: WorkerTag) -> Result<Rc<Config>> {
        self.configs.get(&tag.generation).cloned().ok_or_else(|| {
            Error::config(format!("no configuration for generation {}", tag.generation))
        })
    }
}
