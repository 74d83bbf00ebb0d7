//! Waits for the next event: signals, workers, clients of the control socket, and deadlines.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::FdWatchId;
use super::Primary;
use super::round_robin::{PollDeadlines, QueueWorkers, acceptable_listeners, poll_and_dispatch};
use super::worker_output::OutputPipeId;
use crate::channel::PrimaryChannelEnd;
use crate::control::ControlPollToken;
use crate::dispatch::round_robin::AcceptorContext;
use crate::error::{Error, Result};
use crate::messages::MessagePollToken;
use prefork_os::poll::{PollSet, WatchedFd};
use prefork_supervisor::{AdminProcessId, Event, WorkerId};

/// The source that a polled descriptor belongs to.
#[derive(Debug, Clone, Copy)]
enum PollToken {
    Signals,
    WorkerChannel(WorkerId),
    UpgradeCheck,
    NameLookup,
    StackReader,
    Messages(MessagePollToken),
    Control(ControlPollToken),
    Application(FdWatchId),
    Output(OutputPipeId),
    /// A reader of programs' output that was behind.
    OutputReader,
    Admin(AdminProcessId),
}

/// The tokens whose descriptors are ready, by what reads them.
#[derive(Debug, Default)]
struct ReadySources {
    has_signals: bool,
    worker_channels: Vec<WorkerId>,
    has_upgrade_check_output: bool,
    messages: Vec<MessagePollToken>,
    control: Vec<ControlPollToken>,
    application: Vec<FdWatchId>,
    output: Vec<OutputPipeId>,
    admin: Vec<AdminProcessId>,
}

impl FromIterator<PollToken> for ReadySources {
    fn from_iter<I: IntoIterator<Item = PollToken>>(tokens: I) -> ReadySources {
        let mut ready = ReadySources::default();
        for token in tokens {
            match token {
                PollToken::Signals => ready.has_signals = true,
                PollToken::WorkerChannel(worker) => ready.worker_channels.push(worker),
                PollToken::UpgradeCheck => ready.has_upgrade_check_output = true,
                // A finished lookup, the answers of stack readers, and room for output are noticed after each wait.
                PollToken::NameLookup | PollToken::StackReader | PollToken::OutputReader => {}
                PollToken::Messages(source) => ready.messages.push(source),
                PollToken::Control(source) => ready.control.push(source),
                PollToken::Application(watch) => ready.application.push(watch),
                PollToken::Output(pipe) => ready.output.push(pipe),
                PollToken::Admin(process) => ready.admin.push(process),
            }
        }
        ready
    }
}

impl Primary {
    /// Returns the next event. Waits for it if none is pending.
    pub(super) fn next_event(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.pending_events.pop_front() {
                return Ok(event);
            }
            // The exec would close connections on their way between workers, so these are delivered first.
            if self.handover.is_empty() && self.upgrade.is_exec_due(&self.control) {
                // Messages that do not fit now go to the new image.
                self.messages.primary_end.flush();
                self.exec_new_binary();
                continue;
            }
            self.report_application_idle();
            if !self.pending_events.is_empty() {
                continue;
            }
            self.wait_for_events().map_err(|e| Error::system("wait for signals and workers", e))?;
        }
    }

    /// Waits once and queues the events that occurred.
    ///
    /// Reports of workers are read before exits and deadlines are looked at: a READY in a channel counts even if this
    /// process was stopped while the deadline passed.
    fn wait_for_events(&mut self) -> io::Result<()> {
        let log_retry = self.event_log.report_dropped_lines(Instant::now());
        self.control.send_new_events(&self.event_log);
        let supervisor_deadline = self.supervisor.next_deadline();
        let now = Instant::now();
        self.relay_handovers(now);
        let next_step = self.dispatch_round_robin(now);
        let notify_at = self.notify_service_manager_if_due(now);
        if !self.pending_events.is_empty() {
            return Ok(());
        }
        self.attend_admin_listener();
        self.rotate_ticket_keys();
        self.attend_certificate_expiry();
        self.deliver_held_messages(now);
        self.messages.primary_end.flush();
        let until = self.next_wake_up(now, log_retry).into_iter().chain(notify_at);
        let until = until.chain(supervisor_deadline).min();
        let ready = self.poll_sources(now, until, next_step)?;
        self.read_ready_sources(ready)?;
        self.deliver_messages();
        self.deliver_output();
        self.run_due_timers();
        self.attend_isolated_jobs();
        self.finish_lookup();
        self.attend_stack_captures();
        if supervisor_deadline.is_some_and(|at| at <= Instant::now()) {
            self.pending_events.push_back(Event::DeadlineReached);
        }
        Ok(())
    }

    /// Returns the earliest deadline of all parts.
    fn next_wake_up(&self, now: Instant, log_retry: Option<Duration>) -> Option<Instant> {
        let deadlines = [
            self.control.next_deadline(),
            self.messages.requests.next_deadline(),
            self.isolated_pools.next_deadline(now),
            self.configs.lookup_deadline(),
            self.event_loop.next_deadline(now),
            self.stacks.next_deadline(now),
            self.admin.next_deadline(),
            self.ticket_keys.next_deadline(self.ticket_lifetime(), now),
            self.certificate_expiry.next_deadline(),
            self.output.program_deadline(),
        ];
        let delays = [
            self.handover.retry_after(),
            self.messages.primary_end.poll_timeout(),
            self.upgrade.exec_retry_after(&self.control),
            self.output.delivery_delay(),
            log_retry,
        ];
        let delayed = delays.into_iter().flatten().map(|delay| now + delay);
        deadlines.into_iter().flatten().chain(delayed).min()
    }

    /// Returns the lifetime of session tickets of the wanted generation. `None` without tickets.
    fn ticket_lifetime(&self) -> Option<Duration> {
        self.current_config().and_then(|config| config.ticket_lifetime())
    }

    fn rotate_ticket_keys(&mut self) {
        let lifetime = self.ticket_lifetime();
        self.ticket_keys.rotate_if_due(lifetime, &mut self.event_log);
    }

    /// Polls all sources until one is ready or `until` has passed.
    fn poll_sources(
        &mut self,
        now: Instant,
        until: Option<Instant>,
        next_step: Option<Duration>,
    ) -> io::Result<ReadySources> {
        let is_relay_full = self.handover.is_full();
        let signals =
            self.signals.pipe_fd().map(|fd| (PollToken::Signals, WatchedFd::readable(fd)));
        let reads = |process: &&super::WorkerProcess| !(is_relay_full && process.hands_over);
        let channels = self.workers.values().filter(reads).filter_map(|process| {
            let fd = process.channel.as_ref().map(PrimaryChannelEnd::as_fd)?;
            Some((PollToken::WorkerChannel(process.tag.id), WatchedFd::readable(fd)))
        });
        let check = self.upgrade.check_output_fds();
        let check = check.map(|fd| (PollToken::UpgradeCheck, WatchedFd::readable(fd)));
        let lookup = self.configs.lookup_fd();
        let lookup = lookup.map(|fd| (PollToken::NameLookup, WatchedFd::readable(fd)));
        let stacks = self.stacks.poll_sources();
        let stacks = stacks.map(|watched| (PollToken::StackReader, watched));
        let messages = self.messages.primary_end.poll_sources();
        let messages = messages.map(|(token, watched)| (PollToken::Messages(token), watched));
        let control = self.control.poll_sources();
        let control = control.map(|(token, watched)| (PollToken::Control(token), watched));
        let application = self.event_loop.watched_fds().poll_sources(now);
        let application = application.map(|(id, watched)| (PollToken::Application(id), watched));
        let output = self.output.poll_sources();
        let output = output.map(|(id, watched)| (PollToken::Output(id), watched));
        let readers = self.output.waiting_readers();
        let readers = readers.map(|watched| (PollToken::OutputReader, watched));
        let output = output.chain(readers);
        let admin = self.admin.poll_sources();
        let admin = admin.map(|(id, watched)| (PollToken::Admin(id), watched));
        let sources = signals.into_iter().chain(channels).chain(check).chain(lookup).chain(stacks);
        let sources = sources.chain(messages).chain(control).chain(application).chain(output);
        let sources = sources.chain(admin);
        let (tokens, watched): (Vec<_>, Vec<_>) = sources.unzip();
        let workers = QueueWorkers {
            workers: &self.workers,
            scoreboard: &self.scoreboard,
            supervisor: &self.supervisor,
        };
        let are_accepting = !self.upgrade.is_exec_scheduled() && !self.supervisor.is_emptying();
        let context = AcceptorContext {
            workers: &workers,
            listeners: acceptable_listeners(&self.listeners, are_accepting),
        };
        let busy_poll_until = self.messages.busy_poll.deadline();
        let set = PollSet::new(watched.into_iter());
        let deadlines = PollDeadlines { next_step, until, busy_poll_until, now };
        let ready = poll_and_dispatch(&mut self.round_robin, &context, set, deadlines)?;
        let ready = tokens.into_iter().zip(ready).filter(|(_, is_ready)| *is_ready);
        Ok(ready.map(|(token, _)| token).collect())
    }

    fn read_ready_sources(&mut self, ready: ReadySources) -> io::Result<()> {
        for worker in ready.worker_channels {
            let events = self.workers.read_reports(worker, &mut self.handover);
            self.pending_events.extend(events);
        }
        if ready.has_upgrade_check_output {
            self.upgrade.read_check_output();
        }
        self.pending_events.extend(self.messages.read_ready(&ready.messages));
        for id in &ready.output {
            // After the channels, which say the pid of a program.
            if let Some(process) = self.workers.get(&id.0) {
                self.output.set_tag(*id, process.tag, process.pid);
            }
        }
        // Before the signals: the lines of a worker come before its exit.
        self.output.read_ready(&ready.output);
        for process in ready.admin {
            self.admin.read_reports(process, &mut self.event_log);
        }
        // After the channels: SIGCHLD reports the exit of a worker or of the upgrade check.
        if ready.has_signals {
            self.read_signals()?;
        }
        self.handle_control_requests(&ready.control);
        self.read_watched_fds(&ready.application);
        Ok(())
    }
}
