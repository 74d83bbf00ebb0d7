//! What operators ask over the control socket: questions are answered here, orders go to the supervisor.

use std::path::PathBuf;
use std::time::Instant;

use super::Primary;
use super::event_log::EventLog;
use crate::config::ControlSocket;
use crate::control::{self, Around, Asked, Change, QueueStatus, Reply, Request, Rescale};
use crate::control::{Server, Status};
use crate::error::Result;
use crate::log_output;
use crate::pid_file::PidFile;
use crate::upgrade::PassedControl;
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange};

/// Opens the control socket. One that was named must work if it `must`; one that was not named is no reason to refuse to
/// serve.
pub(super) fn open(
    control: &ControlSocket,
    must: bool,
    journal: &mut EventLog,
) -> Result<Option<Server>> {
    let named = matches!(control, ControlSocket::Path(_));
    match place(control).and_then(|path| path.map(|path| Server::bind(&path)).transpose()) {
        Ok(Some(server)) => {
            server.path().into_iter().for_each(|path| journal.control_at(path));
            Ok(Some(server))
        }
        Ok(None) => {
            if *control != ControlSocket::Off {
                journal.no_control();
            }
            Ok(None)
        }
        Err(e) if must && named => Err(e),
        Err(e) => {
            journal.control_failed(&e);
            Ok(None)
        }
    }
}

/// Goes on with the control socket and the clients of the image before this one, as far as they were passed. What fails
/// is told and no reason to end: there is no way back from an exec.
pub(super) fn take_over(
    control: &ControlSocket,
    passed: Option<PassedControl>,
    journal: &mut EventLog,
) -> Option<Server> {
    let Some(passed) = passed else { return open(control, false, journal).ok().flatten() };
    let mut server = Server::inherit(passed, Instant::now());
    repair(&mut server, control, journal);
    Some(server)
}

/// Sees to it that clients reach the socket where the configuration says.
fn repair(server: &mut Server, control: &ControlSocket, journal: &mut EventLog) {
    match place(control) {
        Ok(Some(path)) if server.is_reachable_at(&path) => {}
        Ok(Some(path)) => match server.listen_at(&path) {
            Ok(()) => journal.control_opened(&path),
            Err(e) => journal.control_failed(&e),
        },
        Ok(None) => server.close_listener(),
        Err(e) => journal.control_failed(&e),
    }
}

/// Where the control socket is to be; `None` if there is to be none.
fn place(control: &ControlSocket) -> Result<Option<PathBuf>> {
    match control {
        ControlSocket::Off => Ok(None),
        ControlSocket::Path(path) => Ok(Some(path.clone())),
        ControlSocket::Auto => control::of_this_process(),
    }
}

impl Primary {
    /// Opens what is missing of control socket and pid file, at each reload: somebody may have removed or replaced the
    /// files, or what was in the way at the start is gone.
    pub(super) fn repair_files(&mut self) {
        match &mut self.control {
            Some(server) => repair(server, &self.fixed.control, &mut self.event_log),
            // It is told what is wrong, and goes on without.
            None => {
                self.control = open(&self.fixed.control, false, &mut self.event_log).ok().flatten();
            }
        }
        let Some(path) = &self.fixed.pid_file else { return };
        if self.pid_file.as_ref().is_some_and(PidFile::is_intact) {
            return;
        }
        // Our own lock would keep us from rewriting a file that is ours and has lost its content.
        self.pid_file = None;
        match PidFile::create(path) {
            Ok(file) => {
                self.pid_file = Some(file);
                self.event_log.pid_file_written(path);
            }
            Err(e) => self.event_log.no_pid_file(&e),
        }
    }

    /// Before each wait: by then everything that was asked has reached the supervisor.
    pub(super) fn settle_control(&mut self) {
        if let Some(server) = &mut self.control {
            server.settle(&self.event_log.ledger, Instant::now());
        }
    }

    /// After each wait, with the flags of what `Server::watched` named.
    pub(super) fn attend_control(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let asked = match &mut self.control {
            Some(server) => server.attend(ready, now),
            None => return,
        };
        for Asked { ticket, who, request } in asked {
            let command = match request {
                Request::Status {} => {
                    let status = Box::new(self.status(now));
                    self.reply(ticket, &Reply::Status(status));
                    continue;
                }
                Request::Events { follow, since } => {
                    if let Some(server) = &mut self.control {
                        server.stream(ticket, follow, since, &self.event_log.ledger, now);
                    }
                    continue;
                }
                Request::Reload { .. } => ClusterCommand::Reload,
                Request::Scale(Rescale { kind, change }) => {
                    let scale = match change {
                        Change::To(workers) => ScaleChange::To(workers),
                        Change::By(by) if by < 0 => ScaleChange::Down(by.unsigned_abs()),
                        Change::By(by) => ScaleChange::Up(by.unsigned_abs()),
                    };
                    match kind {
                        Some(kind) => ClusterCommand::ScaleKind(kind, scale),
                        None => ClusterCommand::Scale(scale),
                    }
                }
                Request::Stop { now: false } => ClusterCommand::Stop,
                Request::Stop { now: true } => ClusterCommand::StopNow,
                Request::Upgrade { wait } => ClusterCommand::Upgrade { wait },
            };
            let by = Requester { name: who, reply_id: Some(ticket) };
            self.pending_events.push_back(Event::CommandReceived { command, by });
        }
    }

    /// Tells whoever asked how it went. Who has gone meanwhile finds it in the log.
    pub(super) fn answer(&mut self, ticket: u64, outcome: Result<String, String>) {
        let reply = match outcome {
            Ok(what) => Reply::Done(what),
            Err(why) => Reply::Refused(why),
        };
        self.reply(ticket, &reply);
    }

    fn reply(&mut self, ticket: u64, reply: &Reply) {
        let now = Instant::now();
        let heard = self.control.as_mut().is_some_and(|server| server.reply(ticket, reply, now));
        if !heard {
            self.event_log.unheard(reply);
        }
    }

    /// From memory and the scoreboard: no worker is asked, so none can make it slow.
    fn status(&self, now: Instant) -> Status {
        let queues = self.listeners.accept_queues();
        let around = Around {
            started: self.started,
            dispatch: self.current_config().map_or("", |config| config.dispatch.name()),
            rung: self.selector_backend_name(),
            model: self.current_config().map_or("", |config| config.model.name()),
            listeners: self.listeners.bound_addr_texts(),
            queues: queues.map(|(name, q)| QueueStatus::new(name, q.depth, q.limit)).collect(),
            totals: self.scoreboard.reader().snapshot().totals,
            shared: crate::shared::read_shared_metrics(),
            log_lines_dropped: log_output::dropped_lines(),
            cannot_accept: self.scoreboard.reader().cannot_accept(),
        };
        Status::of(&self.supervisor.view(), around, now, |id| {
            self.workers.get(&id).map_or(Vec::new(), |child| self.scoreboard.figures(child.row))
        })
    }
}
