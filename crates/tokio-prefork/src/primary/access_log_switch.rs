//! The file of the access log: opened by the primary, with its privileges, and passed to the workers.
//!
//! Workers get it at their fork. They get another one after a rotation (SIGUSR1), and when a reload names another path, those of
//! earlier generations as well. A reload opens its file first; if it fails, everything stays as it was.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::event_log::EventLog;
use super::workers::{WorkerProcess, WorkerTable};
use crate::access_log::{AccessLog, AccessLogWriter, SharedLogState};
use crate::channel::WorkerCommand;
use crate::error::Result;
use crate::log_file::open_access_log;
use crate::scoreboard::Scoreboard;
use prefork_supervisor::Generation;

/// An access log of the configuration.
#[derive(Debug)]
struct OpenLog {
    path: PathBuf,
    /// `None` if it could not be opened after an upgrade; a rotation tries again.
    file: Option<OwnedFd>,
}

/// The access log in use, and the one that a reload has opened.
#[derive(Debug)]
pub(crate) struct AccessLogSwitch {
    current: Option<OpenLog>,
    /// The access log of the reload to this generation, if it is another one.
    opened: Option<(Generation, Option<OpenLog>)>,
    shared: SharedLogState,
}

impl OpenLog {
    fn open(target: &AccessLog) -> Result<Option<OpenLog>> {
        let Some(path) = target.path() else { return Ok(None) };
        let file = Some(open_access_log(&path)?);
        Ok(Some(OpenLog { path, file }))
    }
}

impl AccessLogSwitch {
    /// Opens the access log that the configuration names.
    pub(crate) fn open(target: &AccessLog) -> Result<AccessLogSwitch> {
        let current = OpenLog::open(target)?;
        Ok(AccessLogSwitch { current, opened: None, shared: SharedLogState::create() })
    }

    /// Returns the state after an upgrade whose access log could not be opened: a rotation tries again.
    pub(crate) fn not_opened(target: &AccessLog) -> AccessLogSwitch {
        let current = target.path().map(|path| OpenLog { path, file: None });
        AccessLogSwitch { current, opened: None, shared: SharedLogState::create() }
    }

    /// Opens the access log of a reload, if it is another one.
    pub(super) fn open_for_reload(
        &mut self,
        generation: Generation,
        wanted: &AccessLog,
    ) -> Result<()> {
        self.opened = None;
        if wanted.path().as_ref() != self.current.as_ref().map(|log| &log.path) {
            self.opened = Some((generation, OpenLog::open(wanted)?));
        }
        Ok(())
    }

    /// Returns the access log of a generation.
    fn log_of_generation(&self, generation: Generation) -> Option<&OpenLog> {
        match &self.opened {
            Some((opened, log)) if *opened == generation => log.as_ref(),
            _ => self.current.as_ref(),
        }
    }

    /// Returns, in a forked worker, what writes its access log, and closes the files that it does not use.
    pub(super) fn take_for_worker(
        &mut self,
        generation: Generation,
    ) -> Option<Arc<AccessLogWriter>> {
        let file = self.log_of_generation(generation)?.file.as_ref()?.try_clone();
        let shared = self.shared;
        (self.current, self.opened) = (None, None);
        match file {
            Ok(file) => Some(AccessLogWriter::new(file, shared)),
            Err(e) => {
                log::error!("this worker has no access log: {e}");
                None
            }
        }
    }

    /// Opens the renamed files again and passes them to their workers. Returns whether there is an access log.
    pub(super) fn reopen(
        &mut self,
        workers: &WorkerTable,
        scoreboard: &Scoreboard,
        event_log: &mut EventLog,
    ) -> bool {
        let AccessLogSwitch { current, opened, .. } = self;
        let opened = opened.as_mut().and_then(|(_, log)| log.as_mut());
        let mut has_log = false;
        for log in current.iter_mut().chain(opened) {
            has_log = true;
            match open_access_log(&log.path) {
                Ok(file) => {
                    event_log.log_access_log_opened(&log.path);
                    log.file = Some(file);
                }
                Err(e) => event_log.log_access_log_error(&e),
            }
        }
        if has_log {
            self.send_to_workers(workers, scoreboard, event_log);
        }
        has_log
    }

    /// Switches to the file that the reload to `current` has opened, if it has opened one.
    pub(super) fn switch_to_generation(
        &mut self,
        current: Generation,
        workers: &WorkerTable,
        scoreboard: &Scoreboard,
        event_log: &mut EventLog,
    ) {
        match self.opened.take() {
            Some((generation, log)) if generation == current => {
                let Some(log) = log else {
                    // Workers of earlier generations keep their file until they have drained.
                    self.current = None;
                    return;
                };
                event_log.log_access_log_opened(&log.path);
                self.current = Some(log);
                self.send_to_workers(workers, scoreboard, event_log);
            }
            // That reload has failed.
            Some((generation, _)) if generation < current => {}
            opened => self.opened = opened,
        }
    }

    /// Sends its file to each worker that has an access log.
    fn send_to_workers(
        &self,
        workers: &WorkerTable,
        scoreboard: &Scoreboard,
        event_log: &mut EventLog,
    ) {
        // A worker of an older image without an access log would not understand the command.
        let is_logging = |process: &&WorkerProcess| scoreboard.has_access_log(process.pages);
        for process in workers.values().filter(is_logging) {
            let file = self.log_of_generation(process.tag.generation);
            let file = file.and_then(|log| log.file.as_ref());
            let (Some(file), Some(channel)) = (file, &process.channel) else { continue };
            if let Err(e) = channel.send_with_fd(&WorkerCommand::ReopenAccessLog, file.as_fd()) {
                event_log.log_worker_unreachable(process.tag, &e);
            }
        }
    }
}
