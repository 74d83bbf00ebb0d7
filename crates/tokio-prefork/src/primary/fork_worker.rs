//! Forks a worker. Signals are blocked, channels made, the process forked; the child then drops its privileges, closes
//! what is the primary's, takes what is its own and unblocks signals.
//!
//! The child asks for its parent's pid after it has set the parent death signal, so it cannot miss the primary's death.
//! A signal that arrives meanwhile stays blocked until the child has its own handlers; no child writes to the primary's
//! pipe.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::handover_relay::HandoverRelay;
use super::{Primary, WorkerProcess};
use crate::application_sockets;
use crate::channel::PrimaryChannelEnd;
use crate::config::Config;
use crate::dispatch::round_robin::{ConnectionQueue, RoundRobinAcceptor};
use crate::dispatch::{LoadPage, LoadPageLease};
use crate::error::{Error, Result, exit};
use crate::listener::Listener;
use crate::log_output::ProcessRole;
use crate::messages::PrimaryMessageEnd;
use crate::process_limits::ProcessLimits;
use crate::scoreboard::WorkerPages;
use crate::systemd::SERVICE_MANAGER_VARIABLES;
use crate::tls::{TicketKeyReader, TlsCertificates, WorkerTls};
use crate::worker_init::{MessageEndInit, WorkerInit};
use crate::worker_stdio::{OutputPipes, WorkerStdio, set_worker_streams};
use prefork_os::child::{ForkResult, exit_without_cleanup, fork_process};
use prefork_os::fd::FdCloseBatch;
use prefork_os::fd_passing::create_seqpacket_pair;
use prefork_os::process_group::kill_rest_of_own_group;
use prefork_os::resource_limits::disable_core_dumps;
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::{Event, Slot, WorkerTag};

/// The resources that a fork passes to the child.
struct ForkedWorker {
    tag: WorkerTag,
    /// The worker pages on the scoreboard.
    pages: WorkerPages,
    /// The worker's page of load counters.
    lease: Option<LoadPageLease>,
    channel: OwnedFd,
    messages: OwnedFd,
    /// The pipes of its output, if the primary reads it.
    output: Option<OutputPipes>,
    /// The reading end of the worker's connection queue, under `round-robin`.
    queue: Option<OwnedFd>,
    /// The index of its listening sockets, where each worker has its own.
    socket_index: u32,
    primary_pid: u32,
    blocked_signals: BlockedSignals,
    limits: ProcessLimits,
}

impl Primary {
    /// Forks a worker and queues the result. In the child it does not return.
    pub(super) fn fork_worker(&mut self, tag: WorkerTag) {
        let event = match self.try_fork_worker(tag) {
            Ok(pid) => Event::Forked { worker: tag.id, pid },
            Err(e) => Event::ForkFailed { worker: tag.id, reason: e.to_string() },
        };
        self.pending_events.push_back(event);
    }

    fn try_fork_worker(&mut self, tag: WorkerTag) -> Result<u32> {
        let config = self
            .configs
            .config_of_generation(tag.generation)
            .filter(|_| tag.slot.is_web())
            .cloned();
        let worker_pages = config.as_ref().map_or(1, |config| config.scoreboard_page_count());
        let pages = self.scoreboard.allocate_pages(tag, worker_pages).ok_or_else(|| {
            let reason = std::io::Error::other("too many workers are still draining");
            Error::system(format!("find a free worker page for {tag}"), reason)
        })?;
        // The dispatch policy has to know the slot's socket before the worker counts connections.
        self.update_kernel_selector();
        let socket_index = match &config {
            Some(config) => self.take_socket_index(tag, config),
            None => Ok(0),
        };
        let socket_index = socket_index.and_then(|index| {
            let runs_program = config.as_ref().is_some_and(|config| config.program().is_some());
            // After it has opened sockets: all that exist now are given away, once.
            runs_program.then(|| self.listeners.give_to_programs()).transpose().map(|_| index)
        });
        let lease = config.and_then(|config| self.lease_load_page(tag.slot, &config));
        let forked = socket_index.and_then(|index| self.fork_with_pages(tag, pages, lease, index));
        if forked.is_err() {
            self.scoreboard.release_pages(pages);
            self.remove_dispatch_target(tag.id, lease);
        }
        forked
    }

    fn fork_with_pages(
        &mut self,
        tag: WorkerTag,
        pages: WorkerPages,
        lease: Option<LoadPageLease>,
        socket_index: u32,
    ) -> Result<u32> {
        let failed = |what: &str, e| Error::system(format!("create {what} for {tag}"), e);
        let channel = create_seqpacket_pair().map_err(|e| failed("a channel", e))?;
        let messages = create_seqpacket_pair().map_err(|e| failed("a message channel", e))?;
        let has_queue =
            tag.slot.is_web() && self.configs.config_of_worker(tag)?.dispatch.accepts_in_primary();
        let queue = has_queue.then(ConnectionQueue::new).transpose();
        let queue = queue.map_err(|e| failed("a queue of connections", e))?;
        let output =
            self.create_output_pipes(tag).map_err(|e| failed("pipes for the output", e))?;
        let limits = self.process_settings.get(tag.kind).map(|one| one.limits.clone());
        let limits = limits.unwrap_or_default();
        let primary_pid = std::process::id();
        // Other processes than workers for the web get no keys.
        let config = self.configs.config_of_worker(tag)?;
        let certificates = Some(&config.tls_certificates).filter(|_| tag.slot.is_web());
        let _keys = certificates.map(TlsCertificates::keep_over_fork).transpose()?;
        crate::processors::refresh_before_fork();
        let blocked_signals =
            BlockedSignals::block_all().map_err(|e| Error::system("block signals", e))?;
        match fork_process()? {
            ForkResult::Parent(pid) => {
                let tag = WorkerTag { pid: Some(pid), ..tag };
                let channel = Some(PrimaryChannelEnd::new(channel.0));
                let mut process = WorkerProcess::new(tag, pid, channel, pages);
                if limits.has_own_group {
                    process.lead_own_group(&mut self.event_log);
                }
                let socket_addrs = match tag.slot.is_web() && self.worker_sockets.is_some() {
                    true => config.bind.clone(),
                    false => Vec::new(),
                };
                let process = WorkerProcess { lease, queue, socket_index, socket_addrs, ..process };
                self.workers.insert(process);
                self.steer_connections();
                if let Some(pipes) = output {
                    self.output.add_worker(tag, pipes.into_readers());
                }
                self.messages.primary_end.add(tag, messages.0);
                Ok(pid)
            }
            ForkResult::Child => {
                let entered = limits.enter_process_group(tag);
                crate::worker::set_worker_process();
                let tag = WorkerTag { pid: Some(std::process::id()), ..tag };
                ProcessRole::Worker(tag).set();
                drop((channel.0, messages.0));
                let forked = ForkedWorker {
                    tag,
                    pages,
                    lease,
                    channel: channel.1,
                    messages: messages.1,
                    output,
                    queue: queue.map(ConnectionQueue::into_reader),
                    socket_index,
                    primary_pid,
                    blocked_signals,
                    limits,
                };
                let has_own_group = forked.limits.has_own_group;
                let status = self.run_as_worker(forked, entered);
                if has_own_group {
                    // The primary does it too, but it may be dead.
                    kill_rest_of_own_group(primary_pid);
                }
                exit_without_cleanup(status)
            }
        }
    }

    fn create_output_pipes(&self, tag: WorkerTag) -> std::io::Result<Option<OutputPipes>> {
        let settings = self.process_settings.get(tag.kind);
        let is_read = settings.is_some_and(|one| one.stdio == WorkerStdio::Lines);
        let config = self.configs.config_of_worker(tag).ok().filter(|_| tag.slot.is_web());
        let program = config.as_ref().and_then(|config| config.program());
        let is_read_of_program =
            program.is_some_and(|one| one.output_target().is_read_by_primary());
        (is_read || is_read_of_program).then(OutputPipes::create).transpose()
    }

    /// Runs the worker in the child and returns its exit status. A panic must not unwind into the primary's frames.
    fn run_as_worker(&mut self, forked: ForkedWorker, entered_group: Result<()>) -> u8 {
        let tag = forked.tag;
        let run = || match entered_group.and_then(|()| self.become_worker(forked)) {
            Ok(Some(init)) => (self.worker_entry)(init),
            Ok(None) => exit::OK,
            Err(e) => {
                log::error!("{tag} cannot start: {e}");
                e.exit_status()
            }
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or(exit::FAILURE)
    }

    /// Turns the child into a worker. Returns `None` if the primary is dead already.
    fn become_worker(&mut self, forked: ForkedWorker) -> Result<Option<WorkerInit>> {
        let ForkedWorker { tag, pages, lease, channel, messages, output, queue, .. } = forked;
        let config = self.configs.config_of_worker(tag)?;
        let settings = self.process_settings.get(tag.kind).cloned().unwrap_or_default();
        let credentials = settings.credentials.as_ref().or(config.credentials());
        set_worker_streams(settings.stdio, output, credentials)?;
        if let Some(credentials) = credentials {
            credentials.drop_privileges()?;
        }
        if let Some(dir) = &settings.current_dir {
            let operation = || format!("change to the directory {} in {tag}", dir.display());
            std::env::set_current_dir(dir).map_err(|e| Error::system(operation(), e))?;
        }
        // Not before: the kernel clears the parent death signal when a process changes its user.
        let grace = config.graceful_timeout.as_millis().div_ceil(1000) as u32;
        let is_alive =
            prefork_os::parent_death::kill_after_parent_death(forked.primary_pid, grace + 1)
                .map_err(|e| Error::system("set the parent death signal of the worker", e))?;
        if !is_alive {
            return Ok(None);
        }
        if forked.limits.has_own_group {
            prefork_os::parent_death::kill_group_after_parent_death();
        }
        if config.titles {
            let kind = if tag.slot.is_web() { "worker" } else { tag.kind };
            let title = format!("{}: {kind} {} (gen {})", config.name(), tag.id, tag.generation);
            prefork_os::process::set_process_title(&title)
                .unwrap_or_else(|e| super::event_log::log_title_error(&e));
        }
        let message_limits = self.messages.primary_end.limits();
        let ticket_keys = match tag.slot.is_web() {
            true => self.ticket_keys.take_for_worker()?,
            false => None,
        };
        self.close_primary_state();
        // Variables of the service manager can only be there if a hook of the application has set them.
        prefork_os::process::remove_env_vars(is_variable_of_primary)?;
        prefork_os::process::set_env_vars(self.supervisor.worker_environment(tag))?;
        let terminate = prefork_os::signal::register_signal_flag(Signal::SIGTERM)
            .map_err(|e| Error::system("catch SIGTERM in the worker", e))?;
        let board = self.scoreboard.reader(&self.supervisor.kind_first_slots());
        self.stacks.become_worker(tag, pages);
        let worker_pages = self
            .scoreboard
            .keep_only_own_pages(pages)
            .map_err(|e| Error::system("keep only the worker's own scoreboard pages", e))?;
        let load_page = match self.kernel_selector.take().zip(lease) {
            Some((active, lease)) => active.selector.keep_only_page(lease)?,
            None => LoadPage::default(),
        };
        let listeners = self.take_listeners(tag, &config, forked.socket_index);
        let access_log = self.access_log.take_for_worker(tag.generation);
        let tls = self.make_worker_tls(tag, &config, ticket_keys)?;
        forked.limits.apply(forked.primary_pid)?;
        drop(forked.blocked_signals);
        Ok(Some(WorkerInit {
            tag,
            kinds: self.supervisor.kind_first_slots(),
            listeners,
            channel,
            queue,
            messages: MessageEndInit::Channel(Some(messages), message_limits),
            worker_pages,
            pools: None,
            load_page,
            board,
            config,
            tls,
            access_log,
            terminate,
        }))
    }

    /// Takes the listening sockets of the worker, in the child, and closes all others.
    fn take_listeners(
        &mut self,
        tag: WorkerTag,
        config: &Config,
        socket_index: u32,
    ) -> Vec<Listener> {
        // A worker that serves no connections keeps no listening socket.
        let bind = if tag.slot.is_web() { config.bind.as_slice() } else { &[] };
        let per_slot = config.dispatch.has_socket_per_slot();
        let own = match config.has_socket_per_worker() {
            true => Slot(socket_index),
            false => tag.slot,
        };
        let mut listeners = self.listeners.take_for_worker(bind, own, per_slot);
        if config.program().is_some() && !per_slot {
            // So that nobody looks for the connections of one worker there.
            listeners.iter_mut().for_each(|listener| listener.is_shared_by_all = true);
        }
        listeners
    }

    /// Makes what a worker speaks TLS with. From then on it has private keys in its heap.
    fn make_worker_tls(
        &self,
        tag: WorkerTag,
        config: &Config,
        ticket_keys: Option<TicketKeyReader>,
    ) -> Result<WorkerTls> {
        if !tag.slot.is_web() || config.tls_certificates.are_none() {
            return Ok(WorkerTls::default());
        }
        if !config.core_dumps {
            disable_core_dumps()
                .map_err(|e| Error::system("disable core dumps of a worker with keys", e))?;
        }
        config.make_worker_tls(self.listeners.serves_raw_connections(), ticket_keys)
    }

    /// Closes, in the child, all descriptors that only the primary uses. Files of the primary stay in place.
    pub(super) fn close_primary_state(&mut self) {
        self.upgrade.drop_check_in_worker();
        self.configs.drop_lookup_in_worker();
        self.pid_file.close_in_worker();
        self.control.close_in_worker();
        self.admin.close_in_worker();
        self.ticket_keys.close_in_worker();
        self.service_manager = None;
        self.handover = HandoverRelay::default();
        self.round_robin = RoundRobinAcceptor::default();
        self.close_channels_of_other_workers();
        self.signals.close_in_worker();
        self.event_loop.close_in_worker();
        // Waiting inputs may hold descriptors.
        self.isolated_pools = super::JobSchedulers::default();
        self.application_sockets.clear();
        application_sockets::close_in_worker();
        crate::shared::passed_state::close_in_worker();
    }

    /// Closes the channels of the other workers and drops the messages queued for them.
    fn close_channels_of_other_workers(&mut self) {
        let mut fds = FdCloseBatch::default();
        fds.add_fds_of_owner(self.workers.take_processes(), |workers, take| {
            for process in workers.values() {
                process.channel.iter().map(PrimaryChannelEnd::as_fd).for_each(&mut *take);
                process.queue.iter().flat_map(ConnectionQueue::ends).for_each(&mut *take);
            }
        });
        let primary_end = PrimaryMessageEnd::new(self.messages.primary_end.limits());
        std::mem::replace(&mut self.messages.primary_end, primary_end).leave_to_parent(&mut fds);
        self.output.leave_to_parent(&mut fds);
        fds.close_all();
    }
}

/// Returns whether a variable is for the primary, so that workers and the programs that they start do not get it.
pub(super) fn is_variable_of_primary(name: &str) -> bool {
    #[cfg(feature = "testing")]
    if crate::testing::is_variable_of_cluster_process(name) {
        return true;
    }
    SERVICE_MANAGER_VARIABLES.contains(&name)
}
