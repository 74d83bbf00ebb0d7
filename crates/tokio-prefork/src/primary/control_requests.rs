//! The control socket: questions are answered here, commands go to the supervisor.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Instant;

use super::Primary;
use super::event_log::EventLog;
use crate::config::ControlSocket;
use crate::control::{
    self, ControlPollToken, ControlServer, ReceivedRequest, Reply, Request, Rescale,
    WorkerCountChange,
};
use crate::error::Result;
use crate::status::{AcceptQueueStatus, ClusterStatus, PrimaryReport, WorkerStatus};
use crate::upgrade::PassedControl;
use prefork_os::poll::WatchedFd;
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange, WorkerId};

/// The control server and the setting that says where it listens.
pub(super) struct ControlEndpoint {
    /// `None` if it is off, or could not be opened.
    server: Option<ControlServer>,
    /// Fixed at the start: a reload does not change it.
    setting: ControlSocket,
}

impl ControlEndpoint {
    /// Opens the control socket.
    ///
    /// # Errors
    /// A path from the configuration does not work. A default path that does not work is only logged.
    pub(super) fn open_socket(
        setting: &ControlSocket,
        event_log: &mut EventLog,
    ) -> Result<ControlEndpoint> {
        let server = match open_server(setting, event_log) {
            Err(e) if matches!(setting, ControlSocket::Path(_)) => return Err(e),
            server => server_or_log_error(server, event_log),
        };
        Ok(ControlEndpoint { server, setting: setting.clone() })
    }

    /// Takes over the control socket and the clients of the previous image. A failure is logged: an exec has no way
    /// back.
    pub(super) fn take_over_socket(
        setting: &ControlSocket,
        passed: Option<PassedControl>,
        event_log: &mut EventLog,
    ) -> ControlEndpoint {
        let server = passed.map(|passed| ControlServer::inherit(passed, Instant::now()));
        let mut endpoint = ControlEndpoint { server, setting: setting.clone() };
        endpoint.repair_socket(event_log);
        endpoint
    }

    /// Opens the socket again if clients cannot reach it: its file may have been removed or replaced.
    pub(super) fn repair_socket(&mut self, event_log: &mut EventLog) {
        let Some(server) = &mut self.server else {
            self.server = server_or_log_error(open_server(&self.setting, event_log), event_log);
            return;
        };
        match control_socket_path(&self.setting) {
            Ok(Some(path)) if server.is_reachable_at(&path) => {}
            Ok(Some(path)) => match server.rebind(&path) {
                Ok(()) => event_log.log_control_socket_opened(&path),
                Err(e) => event_log.log_control_socket_error(&e),
            },
            Ok(None) => server.close_listener(),
            Err(e) => event_log.log_control_socket_error(&e),
        }
    }

    /// Sends new events to followers and closes idle clients. Called before each wait, when the supervisor has every
    /// request.
    pub(super) fn send_new_events(&mut self, event_log: &EventLog) {
        if let Some(server) = &mut self.server {
            server.send_events_and_close_idle(&event_log.history, Instant::now());
        }
    }

    /// Returns the descriptors to poll. The tokens of ready descriptors go to `read_ready`.
    pub(super) fn poll_sources(&self) -> impl Iterator<Item = (ControlPollToken, WatchedFd<'_>)> {
        self.server.iter().flat_map(ControlServer::poll_sources)
    }

    fn read_ready(&mut self, ready: &[ControlPollToken], now: Instant) -> Vec<ReceivedRequest> {
        self.server.as_mut().map_or(Vec::new(), |server| server.read_requests(ready, now))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.server.as_ref().and_then(ControlServer::next_deadline)
    }

    /// Returns whether a client has unread replies or events.
    pub(super) fn has_unsent_replies(&self) -> bool {
        self.server.as_ref().is_some_and(ControlServer::has_unsent_replies)
    }

    /// Returns the state that the next image needs to continue with socket and clients.
    pub(super) fn pass_to_new_image(&mut self) -> Option<PassedControl> {
        self.server.as_mut().map(ControlServer::pass_to_next_image)
    }

    /// Returns the descriptors that `pass_to_next_image` names.
    pub(super) fn passed_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.server.iter().flat_map(ControlServer::passed_fds)
    }

    /// Answers a request. A client that has gone finds the result in the log.
    pub(super) fn reply(&mut self, reply_id: u64, reply: &Reply) {
        let now = Instant::now();
        let is_sent = self.server.as_mut().is_some_and(|one| one.reply(reply_id, reply, now));
        if !is_sent {
            log::debug!("no client waits for the reply {reply:?}");
        }
    }

    fn stream_events(&mut self, reply_id: u64, follow: bool, since: u64, event_log: &EventLog) {
        if let Some(server) = &mut self.server {
            server.stream_events(reply_id, follow, since, &event_log.history, Instant::now());
        }
    }

    /// Closes the server in a forked worker. Its file is the primary's and stays.
    pub(super) fn close_in_worker(&mut self) {
        self.server = None;
    }
}

fn open_server(setting: &ControlSocket, event_log: &mut EventLog) -> Result<Option<ControlServer>> {
    let Some(path) = control_socket_path(setting)? else {
        if *setting != ControlSocket::Off {
            event_log.log_no_control_directory();
        }
        return Ok(None);
    };
    let server = ControlServer::bind(&path)?;
    server.path().into_iter().for_each(|path| {
        log::debug!("control socket at {}", crate::text::Printable(path.display()));
    });
    Ok(Some(server))
}

fn server_or_log_error(
    server: Result<Option<ControlServer>>,
    event_log: &mut EventLog,
) -> Option<ControlServer> {
    server.unwrap_or_else(|e| {
        event_log.log_control_socket_error(&e);
        None
    })
}

/// Returns where the control socket listens, if it is not off.
fn control_socket_path(setting: &ControlSocket) -> Result<Option<PathBuf>> {
    match setting {
        ControlSocket::Off => Ok(None),
        ControlSocket::Path(path) => Ok(Some(path.clone())),
        ControlSocket::Auto => control::control_socket_of_this_process(),
    }
}

fn scale_command(Rescale { kind, change }: Rescale) -> ClusterCommand {
    let change = match change {
        WorkerCountChange::To(workers) => ScaleChange::To(workers),
        WorkerCountChange::By(by) if by < 0 => ScaleChange::Down(by.unsigned_abs()),
        WorkerCountChange::By(by) => ScaleChange::Up(by.unsigned_abs()),
    };
    match kind {
        Some(kind) => ClusterCommand::ScaleKind(kind, change),
        None => ClusterCommand::Scale(change),
    }
}

impl Primary {
    /// Repairs the control socket and the pid file, at each reload: files may have been removed or replaced, or what
    /// prevented them at the start is gone.
    pub(super) fn repair_control_and_pid_file(&mut self) {
        self.control.repair_socket(&mut self.event_log);
        match self.pid_file.repair() {
            Ok(None) => {}
            Ok(Some(path)) => self.event_log.log_pid_file_written(path),
            Err(e) => self.event_log.log_pid_file_error(&e),
        }
    }

    /// Reads the requests of clients that are ready. Answers questions and queues commands.
    pub(super) fn handle_control_requests(&mut self, ready: &[ControlPollToken]) {
        let now = Instant::now();
        for ReceivedRequest { request_id, client_name, request } in
            self.control.read_ready(ready, now)
        {
            let command = match request {
                Request::Status {} => {
                    let status = Box::new(self.cluster_status(now));
                    self.control.reply(request_id, &Reply::Status(status));
                    continue;
                }
                Request::Events { follow, since } => {
                    self.control.stream_events(request_id, follow, since, &self.event_log);
                    continue;
                }
                Request::Stack { worker, slot } => {
                    self.request_stack(request_id, worker, slot);
                    continue;
                }
                Request::Reload { .. } => ClusterCommand::Reload,
                Request::Scale(rescale) => scale_command(rescale),
                Request::Stop { now: false } => ClusterCommand::Stop,
                Request::Stop { now: true } => ClusterCommand::StopNow,
                Request::Upgrade { wait } => ClusterCommand::Upgrade { wait },
            };
            let by = Requester { name: client_name, reply_id: Some(request_id) };
            self.pending_events.push_back(Event::CommandReceived { command, by });
        }
    }

    /// Sends the result of a command to the client that requested it.
    pub(super) fn reply_to_command(&mut self, reply_id: u64, result: Result<String, String>) {
        let reply = match result {
            Ok(text) => Reply::Done(text),
            Err(reason) => Reply::Refused(reason),
        };
        self.control.reply(reply_id, &reply);
    }

    /// Builds the status from memory and the scoreboard. No worker is asked, so none can delay it.
    fn cluster_status(&self, now: Instant) -> ClusterStatus {
        self.status_with_workers(now, |id| {
            let process = self.workers.get(&id);
            process.and_then(|process| self.scoreboard.worker_status(process.pages))
        })
    }

    /// Builds the status. `read_worker` returns the figures of a worker.
    pub(super) fn status_with_workers(
        &self,
        now: Instant,
        read_worker: impl Fn(WorkerId) -> Option<WorkerStatus>,
    ) -> ClusterStatus {
        let config = self.current_config();
        let queues = self.listeners.accept_queues();
        self.publish_losses();
        let report = PrimaryReport {
            name: config.map_or_else(String::new, |config| config.name().to_string()),
            version: config.and_then(|config| config.version()).unwrap_or_default().to_string(),
            program: config.and_then(|config| config.shown_program()),
            started: self.started,
            dispatch: config.map_or("", |config| config.dispatch.name()),
            dispatch_backend: self.selector_backend_name(),
            model: config.map_or("", |config| config.model.name()),
            listeners: self.listeners.bound_addr_texts(),
            certificates: config.map_or_else(Vec::new, |config| config.tls_certificates.status()),
            queues: queues
                .map(|(name, queue)| AcceptQueueStatus::new(name, queue.depth, queue.limit))
                .collect(),
            dead: self.scoreboard.sums_of_dead_workers(),
            supervision: self.scoreboard.supervision_counters(),
            isolated: self.scoreboard.isolated_pools(),
            shared: crate::shared::read_shared_metrics(),
            admin: self.admin.status(now),
            cannot_accept: self.scoreboard.cannot_accept(),
        };
        ClusterStatus::from_primary(&self.supervisor.view(), report, now, |id| {
            let stalled_in = self.stacks.stalled_in(id);
            match (read_worker(id), stalled_in) {
                (None, None) => None,
                (status, stalled_in) => {
                    Some(WorkerStatus { stalled_in, ..status.unwrap_or_default() })
                }
            }
        })
    }
}
