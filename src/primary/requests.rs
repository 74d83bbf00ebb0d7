//! What operators ask over the control socket: questions are answered here, orders go to the supervisor.

use std::time::Instant;

use super::Primary;
use super::journal::Journal;
use crate::config::ControlSocket;
use crate::control::{self, Around, Asked, Change, QueueStatus, Reply, Request, Rescale};
use crate::control::{Server, Status};
use crate::error::Result;
use crate::log_output;
use crate::supervisor::{Asker, Event, Intent, Scale};

/// Opens the control socket. One that was named must work, unless something was `taken_over`: there is no way back
/// from an exec. One that was not named is no reason to refuse to serve.
pub(super) fn open(
    control: &ControlSocket,
    taken_over: bool,
    journal: &mut Journal,
) -> Result<Option<Server>> {
    let (opened, must) = match control {
        ControlSocket::Off => return Ok(None),
        ControlSocket::Path(path) => (Server::bind(path).map(Some), !taken_over),
        ControlSocket::Auto => (auto(), false),
    };
    let server = match opened {
        Ok(Some(server)) => server,
        Ok(None) => {
            journal.no_control();
            return Ok(None);
        }
        Err(e) if must => return Err(e),
        Err(e) => {
            journal.control_failed(&e);
            return Ok(None);
        }
    };
    journal.control_at(server.path());
    Ok(Some(server))
}

fn auto() -> Result<Option<Server>> {
    control::of_this_process()?.map(|path| Server::bind(&path)).transpose()
}

impl Primary {
    /// Before each wait: by then everything that was asked has reached the supervisor.
    pub(super) fn settle_control(&mut self) {
        if let Some(server) = &mut self.control {
            server.settle(&self.journal.ledger, Instant::now());
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
            let intent = match request {
                Request::Status {} => {
                    let status = Box::new(self.status(now));
                    self.reply(ticket, &Reply::Status(status));
                    continue;
                }
                Request::Events { follow, since } => {
                    if let Some(server) = &mut self.control {
                        server.stream(ticket, follow, since, &self.journal.ledger, now);
                    }
                    continue;
                }
                Request::Reload { .. } => Intent::Reload,
                Request::Scale(Rescale { kind, change }) => {
                    let scale = match change {
                        Change::To(workers) => Scale::To(workers),
                        Change::By(by) if by < 0 => Scale::Down(by.unsigned_abs()),
                        Change::By(by) => Scale::Up(by.unsigned_abs()),
                    };
                    match kind {
                        Some(kind) => Intent::ScaleKind(kind, scale),
                        None => Intent::Scale(scale),
                    }
                }
                Request::Stop { now: false } => Intent::Stop,
                Request::Stop { now: true } => Intent::StopNow,
                Request::Upgrade {} => Intent::Upgrade,
            };
            let by = Asker { who, ticket: Some(ticket) };
            self.queue.push_back(Event::Asked { intent, by });
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
            self.journal.unheard(reply);
        }
    }

    /// From memory and the scoreboard: no worker is asked, so none can make it slow.
    fn status(&self, now: Instant) -> Status {
        let queues = self.listeners.queues();
        let around = Around {
            started: self.started,
            dispatch: self.config_in_force().map_or("", |config| config.dispatch.name()),
            rung: self.rung(),
            model: self.config_in_force().map_or("", |config| config.model.name()),
            listeners: self.listeners.locals(),
            queues: queues.map(|(name, q)| QueueStatus::new(name, q.depth, q.limit)).collect(),
            totals: self.board.reader().snapshot().totals,
            shared: crate::shared::snapshot(),
            log_lines_dropped: log_output::dropped_lines(),
        };
        Status::of(&self.supervisor.view(), around, now, |id| {
            self.children.get(&id).map_or(Vec::new(), |child| self.board.figures(child.row))
        })
    }
}
