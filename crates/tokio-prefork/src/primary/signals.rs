//! The signals to the primary and what each one requests.

use std::io;
use std::os::fd::BorrowedFd;

use super::Primary;
use crate::error::{Error, Result};
use prefork_os::signal::{Signal, SignalPipe};
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange};

/// The signals that the primary catches. WINCH and ALRM are caught only to be ignored.
const HANDLED_SIGNALS: [Signal; 11] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
    Signal::SIGALRM,
];

/// The self-pipe through which the primary learns of its signals.
pub(super) struct PrimarySignals(SignalPipe);

impl PrimarySignals {
    pub(super) fn install_handlers() -> Result<PrimarySignals> {
        let pipe = SignalPipe::new(&HANDLED_SIGNALS);
        Ok(PrimarySignals(pipe.map_err(|e| Error::system("install signal handlers", e))?))
    }

    /// Returns the descriptor that becomes readable when a signal arrives.
    pub(super) fn pipe_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    /// Closes the pipe in a forked worker.
    pub(super) fn close_in_worker(&mut self) {
        self.0.close();
    }
}

impl Primary {
    /// Reads the signals that have arrived, and handles each or queues its command.
    pub(super) fn read_signals(&mut self) -> io::Result<()> {
        for signal in self.signals.0.read_pending()? {
            match command_of_signal(signal) {
                Some(command) => {
                    let by = Requester::without_reply(signal.as_str());
                    self.pending_events.push_back(Event::CommandReceived { command, by });
                }
                None if signal == Signal::SIGCHLD => self.reap_children(),
                None if signal == Signal::SIGUSR1 => {
                    let Primary { workers, scoreboard, event_log, .. } = self;
                    if self.log_file.is_open() {
                        self.log_file.reopen(workers, event_log);
                    }
                    let has_log = self.access_log.reopen(workers, scoreboard, event_log);
                    let has_files = self.output.reopen_files();
                    if !has_log && !has_files && !self.log_file.is_open() {
                        event_log.log_ignored_signal(signal);
                    }
                    self.admin.reopen_log();
                }
                None => self.event_log.log_ignored_signal(signal),
            }
        }
        Ok(())
    }
}

/// Returns the command that a signal requests, if it requests one.
fn command_of_signal(signal: Signal) -> Option<ClusterCommand> {
    match signal {
        Signal::SIGTERM | Signal::SIGINT => Some(ClusterCommand::Stop),
        Signal::SIGQUIT => Some(ClusterCommand::StopNow),
        Signal::SIGHUP => Some(ClusterCommand::Reload),
        Signal::SIGUSR2 => Some(ClusterCommand::Upgrade { wait: false }),
        Signal::SIGTTIN => Some(ClusterCommand::Scale(ScaleChange::Up(1))),
        Signal::SIGTTOU => Some(ClusterCommand::Scale(ScaleChange::Down(1))),
        _ => None,
    }
}
