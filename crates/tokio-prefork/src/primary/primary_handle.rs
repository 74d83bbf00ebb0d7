//! `PrimaryHandle`: the workers, commands and messages that hooks in the primary can use.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Primary;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::messages::{
    AttachedConnection, Envelope, IntoPayload, Message, MessageAddress, MessageClass, MessageError,
    MessageTarget, PassedConnection, RejectedEnvelope, ReplyTo, SendConnectionError,
};
use crate::process_settings::collect_environment;
use prefork_os::signal::Signal;
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange};
use prefork_supervisor::{Slot, WEB_KIND, WorkerId, WorkerTag};

/// How many events may wait before commands of the application are refused.
const MAX_PENDING_COMMANDS: usize = 4096;

/// Maximum time that a request waits for its answer: a request must end.
const MAX_REQUEST_TIMEOUT: Duration = Duration::from_secs(86_400);

/// A handle to the primary for the application's hooks: see [`Cluster::on_event`](crate::Cluster::on_event) and
/// [`Cluster::on_message`](crate::Cluster::on_message).
///
/// Commands run after the function has returned, in the order of the calls. Changes of the number of workers wait for the
/// end of a reload. A command that is refused is logged and reported as
/// [`ClusterEvent::Refused`](crate::ClusterEvent::Refused). No method waits.
pub struct PrimaryHandle<'a> {
    pub(super) primary: &'a mut Primary,
}

/// The primary's record of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// The worker: its id, slot, generation and pid.
    pub worker: WorkerTag,
    /// `forking`, `booting`, `serving`, `draining`, `leaving`, `aborted` or `killed`.
    pub state: &'static str,
}

/// Workers and commands.
impl PrimaryHandle<'_> {
    /// Returns every worker that exists or is being forked, oldest first.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let workers = self.primary.supervisor.view().workers;
        workers.into_iter().map(|one| WorkerInfo { worker: one.tag, state: one.state }).collect()
    }

    /// Returns the configuration of the workers that are forked now: during a reload, the new one.
    pub fn config(&self) -> &Config {
        let primary = &*self.primary;
        primary.configs.config_or_last(primary.supervisor.wanted_generation())
    }

    /// Returns how many `web` workers there should be.
    pub fn workers_wanted(&self) -> u32 {
        self.primary.supervisor.wanted_workers()
    }

    /// Adds a worker with these environment variables besides those of the primary, and returns its future id. Of two
    /// variables with the same name the last one counts.
    ///
    /// The variables belong to the worker's slot. Its replacements have them too, after a crash, a reload or an upgrade
    /// in place, until [`scale`](PrimaryHandle::scale) removes the slot. Workers that are added in this way come on top
    /// of the configured number: a reload that changes `workers` from 2 to 4 leaves four and the added ones. After
    /// [`disconnect`](PrimaryHandle::disconnect) of an added worker its slot is empty, and the next worker that is added
    /// takes it.
    ///
    /// The fork may be delayed: by a reload that is under way, or by a crash loop. The id that is returned has exactly one
    /// outcome, a [`ClusterEvent`](crate::ClusterEvent): `Fork`, `ForkFailed`, or `Refused`, for example above
    /// [`WorkerCount::MAX`](crate::WorkerCount::MAX) or because the cluster stops.
    ///
    /// ```no_run
    /// # use tokio_prefork::{Cluster, ClusterEvent, Config, RefusedCommand};
    /// # fn run(config: Config) {
    /// let mut mailer = None;
    /// let cluster = Cluster::new(config).on_event(move |primary, event| match event {
    ///     ClusterEvent::Listening { .. } if mailer.is_none() => {
    ///         mailer = primary.fork_with([("ROLE", "mail")]).ok();
    ///     }
    ///     ClusterEvent::Refused { command: RefusedCommand::Fork(id), reason, .. }
    ///         if Some(*id) == mailer =>
    ///     {
    ///         eprintln!("no mailer: {reason}");
    ///     }
    ///     _ => {}
    /// });
    /// # }
    /// ```
    ///
    /// # Errors
    /// A name is empty or contains `=` or NUL, a value contains NUL, or the cluster is stopping.
    pub fn fork_with<K, V>(
        &mut self,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        self.fork_with_command(environment, ClusterCommand::Scale)
    }

    fn fork_with_command<K, V>(
        &mut self,
        environment: impl IntoIterator<Item = (K, V)>,
        command: impl FnOnce(ScaleChange) -> ClusterCommand,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs = collect_environment(environment)
            .map_err(|e| Error::config(format!("fork_with: {e}")))?;
        if self.primary.supervisor.is_stop_requested() {
            return Err(Error::refused("fork_with: the cluster is stopping"));
        }
        let id = self.primary.supervisor.reserve_worker_id();
        match self.try_queue_command(command(ScaleChange::AddWorker(id, pairs)), "fork_with") {
            true => Ok(id),
            false => {
                Err(Error::refused("fork_with: too many commands are pending; try again later"))
            }
        }
    }

    /// Adds a worker of another kind than `web`, as [`fork_with`](PrimaryHandle::fork_with): see
    /// [`WorkerKind`](crate::WorkerKind).
    ///
    /// # Errors
    /// As [`fork_with`](PrimaryHandle::fork_with), and if the program has no such kind.
    pub fn fork_kind_with<K, V>(
        &mut self,
        kind: &str,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let is_known = self.primary.supervisor.kind_first_slots().iter().any(|one| one.0 == kind);
        if !is_known && kind != WEB_KIND {
            let reason = format!("there is no worker kind {kind:?}");
            return Err(Error::config(format!("fork_kind_with: {reason}")));
        }
        let kind = kind.to_string();
        self.fork_with_command(environment, move |scale| ClusterCommand::ScaleKind(kind, scale))
    }

    /// Sets the number of workers of another kind than `web`, from 0.
    pub fn scale_kind(&mut self, kind: &str, workers: u32) {
        let change = ScaleChange::To(workers);
        self.queue_command(ClusterCommand::ScaleKind(kind.to_string(), change), "scale");
    }

    /// Returns the slot of the `n`th worker of another kind than `web`, counted from 0, if the program has that kind.
    pub fn slot_of_kind(&self, kind: &str, n: u32) -> Option<Slot> {
        self.primary
            .supervisor
            .kind_first_slots()
            .iter()
            .find(|one| one.0 == kind)?
            .1
            .checked_add(n)
    }

    /// Sets the number of `web` workers, from 0 (see [`ClusterEvent::Empty`](crate::ClusterEvent::Empty)) to
    /// [`WorkerCount::MAX`](crate::WorkerCount::MAX). Fills the slots that
    /// [`disconnect`](PrimaryHandle::disconnect) has left empty.
    pub fn scale(&mut self, workers: u32) {
        self.queue_command(ClusterCommand::Scale(ScaleChange::To(workers)), "scale");
    }

    /// Reads the configuration again and replaces every worker, as SIGHUP does. During a reload one more follows it; several
    /// calls are answered by one.
    pub fn reload(&mut self) {
        self.queue_command(ClusterCommand::Reload, "reload");
    }

    /// Drains a worker within `graceful-timeout` without replacing it. Its slot stays empty until the next reload or
    /// scale.
    pub fn disconnect(&mut self, worker: WorkerId) {
        self.queue_command(ClusterCommand::Disconnect(worker), "disconnect");
    }

    /// Drains every worker, then ends the primary: Node's `cluster.disconnect()`. A second call, a moment later, kills
    /// the workers.
    pub fn stop(&mut self) {
        self.queue_command(ClusterCommand::Stop, "stop");
    }

    /// Sends a signal to a worker at once: 9 kills it, 15 makes it drain and be replaced.
    ///
    /// After 15, another worker takes the slot at once, and the worker has `graceful-timeout` to finish. If its event loop
    /// is blocked, so that it does not notice the signal, it is killed one second after that, whatever `stall-timeout`
    /// says. (Node's `worker.kill()` ends a worker at once, with its requests: that is 9 here.)
    ///
    /// # Errors
    /// The worker does not exist (any more), the signal does not exist, or the system refuses. This is the only answer: no
    /// event follows a refused signal.
    pub fn kill(&mut self, worker: WorkerId, signal: i32) -> Result<()> {
        let failed = |reason: String| Error::refused(format!("kill: {reason}"));
        let signal =
            Signal::try_from(signal).map_err(|_| failed(format!("there is no signal {signal}")))?;
        // A worker in the table is not reaped yet, so the pid is its own.
        let process = self.primary.workers.get(&worker);
        let process = process.ok_or_else(|| failed(format!("there is no worker={worker}")))?;
        prefork_os::child::signal_child(process.pid, signal).map_err(|e| {
            Error::system(format!("send {} to {}", signal.as_str(), process.tag), e)
        })?;
        if signal == Signal::SIGTERM {
            self.primary.pending_events.push_back(Event::TerminationSent { worker });
        }
        Ok(())
    }

    /// Queues a command, or reports that there is no room for it.
    fn queue_command(&mut self, command: ClusterCommand, what: &str) {
        let refused = command.as_refused();
        if !self.try_queue_command(command, what) {
            self.primary.hooks.queue_refusal(refused, "too many commands are pending");
        }
    }

    /// Returns whether there was room for the command.
    fn try_queue_command(&mut self, command: ClusterCommand, what: &str) -> bool {
        if self.primary.pending_events.len() >= MAX_PENDING_COMMANDS {
            self.primary.event_log.log_dropped_hook_command(what);
            return false;
        }
        let by = Requester::without_reply(format!("a hook: {what}"));
        self.primary.pending_events.push_back(Event::CommandReceived { command, by });
        true
    }
}

/// Messages and connections. What cannot be sent at once is an error.
impl PrimaryHandle<'_> {
    /// Sends a message to one worker.
    ///
    /// # Errors
    /// [`MessageError::Full`] if the worker's queue is full, and the other errors as they say. `Ok` does not promise
    /// delivery: the worker can exit before it reads the message.
    pub fn send(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<(), MessageError> {
        let envelope = Envelope::new(
            MessageAddress::Primary,
            kind,
            payload.into_payload()?,
            AttachedConnection::Absent,
        )?;
        self.send_envelope_to_worker(to.into(), envelope).map(drop).map_err(|rejected| rejected.0)
    }

    /// Sends a request to a worker, which answers with [`Worker::reply`](crate::Worker::reply), and calls `then` once
    /// with the result, under the rules of [`Cluster::on_event`](crate::Cluster::on_event):
    ///
    /// - the answer;
    /// - [`MessageError::Refused`] if the worker has no receiver for this kind, or refuses;
    /// - [`MessageError::TimedOut`] when `limit` has passed; a later answer is dropped;
    /// - [`MessageError::Closed`] if the worker exits first.
    ///
    /// `then` is not called if the primary ends or is upgraded first.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`], and [`MessageError::Full`] if 65536 requests wait for answers. Then `then` is not
    /// called.
    pub fn request(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
        then: impl FnOnce(&mut PrimaryHandle<'_>, Result<Message, MessageError>) + 'static,
    ) -> Result<(), MessageError> {
        let envelope = Envelope::new(
            MessageAddress::Primary,
            kind,
            payload.into_payload()?,
            AttachedConnection::Absent,
        )?;
        if !self.primary.messages.requests.has_room() {
            return Err(MessageError::Full);
        }
        let now = Instant::now();
        let deadline = now.checked_add(limit).unwrap_or(now + MAX_REQUEST_TIMEOUT);
        let id = self.primary.messages.requests.next_id();
        let envelope = Envelope { class: MessageClass::Request, id, ..envelope };
        let worker =
            self.send_envelope_to_worker(to.into(), envelope).map_err(|rejected| rejected.0)?;
        self.primary.messages.requests.insert(worker, kind, deadline, Box::new(then));
        Ok(())
    }

    /// Returns how many answers arrived after their request had ended, or without a request.
    pub fn late_replies(&self) -> u64 {
        self.primary.messages.requests.late_replies()
    }

    /// Sends a message to every worker, booting and draining ones included, and returns to how many. Workers whose
    /// queue is full do not get it, which is counted and logged.
    ///
    /// # Errors
    /// The message is too large, its kind is invalid, or it cannot be encoded. Then no worker gets it.
    pub fn broadcast(
        &mut self,
        kind: &str,
        payload: impl IntoPayload,
    ) -> Result<usize, MessageError> {
        let envelope = Envelope::new(
            MessageAddress::Primary,
            kind,
            payload.into_payload()?,
            AttachedConnection::Absent,
        )?;
        self.primary.messages.primary_end.broadcast(&envelope).map(|(sent, _)| sent)
    }

    /// Answers a request of a worker, now or in a later call.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`]. A worker that does not wait any more is no error, as the primary cannot know.
    pub fn reply(&mut self, to: &ReplyTo, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.primary.messages.primary_end.reply(to, MessageClass::Reply, payload.into_payload()?)
    }

    /// Refuses a request of a worker, with the reason.
    ///
    /// # Errors
    /// As [`PrimaryHandle::reply`].
    pub fn refuse(&mut self, to: &ReplyTo, why: &str) -> Result<(), MessageError> {
        self.primary.messages.primary_end.reply(
            to,
            MessageClass::Refusal,
            Bytes::copy_from_slice(why.as_bytes()).into(),
        )
    }

    /// Sends a connection with a message. It is closed here once the kernel has it; to keep it, send a clone.
    ///
    /// # Errors
    /// As [`PrimaryHandle::send`]; the error returns the connection.
    pub fn send_connection(
        &mut self,
        to: impl Into<MessageTarget>,
        kind: &str,
        payload: impl IntoPayload,
        connection: impl Into<PassedConnection>,
    ) -> Result<(), SendConnectionError> {
        let PassedConnection { fd, history } = connection.into();
        let envelope = match payload.into_payload().and_then(|payload| {
            let payload = payload.with_history(history.clone());
            Envelope::new(MessageAddress::Primary, kind, payload, AttachedConnection::Absent)
        }) {
            Ok(envelope) => envelope,
            Err(error) => {
                let connection = PassedConnection { fd, history };
                return Err(SendConnectionError::not_sent(error, connection));
            }
        };
        let envelope = Envelope { attached: AttachedConnection::Present(fd), ..envelope };
        self.send_envelope_to_worker(to.into(), envelope)
            .map(drop)
            .map_err(|rejected| SendConnectionError::new(*rejected))
    }

    /// Returns the worker that the message was sent to.
    fn send_envelope_to_worker(
        &mut self,
        to: MessageTarget,
        envelope: Envelope,
    ) -> Result<WorkerId, RejectedEnvelope> {
        let supervisor = &self.primary.supervisor;
        self.primary.messages.primary_end.send(to.into(), envelope, &|id| supervisor.is_serving(id))
    }
}

impl std::fmt::Debug for PrimaryHandle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryHandle").field("workers", &self.workers()).finish()
    }
}
