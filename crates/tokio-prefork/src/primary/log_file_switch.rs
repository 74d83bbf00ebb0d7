//! Changes the log file of all processes: after a rotation (SIGUSR1), or when a reload names another file.
//!
//! A reload opens its file first and switches to it when it has succeeded. So one that fails leaves the log as it was.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::event_log::EventLog;
use super::workers::WorkerTable;
use crate::channel::WorkerCommand;
use crate::error::{Error, Result};
use crate::log_file::LogFile;
use prefork_supervisor::Generation;

/// The log file in use, and the one that a reload has opened.
#[derive(Debug)]
pub(super) struct LogFileSwitch {
    /// `None` while the log goes to the standard error that the primary was started with.
    path: Option<PathBuf>,
    /// The log file that the reload to this generation has opened.
    opened: Option<(Generation, PathBuf, LogFile)>,
}

impl LogFileSwitch {
    pub(super) fn new(path: Option<PathBuf>) -> LogFileSwitch {
        LogFileSwitch { path, opened: None }
    }

    /// Returns whether there is a log file.
    pub(super) fn is_open(&self) -> bool {
        self.path.is_some()
    }

    /// Opens the log file of a reload, if it is another one. Returns whether the change needs a restart.
    pub(super) fn open_for_reload(
        &mut self,
        generation: Generation,
        wanted: Option<&Path>,
    ) -> Result<bool> {
        self.opened = None;
        match wanted {
            same if same == self.path.as_deref() => Ok(false),
            Some(path) => {
                let file = LogFile::reopen(path)?;
                self.opened = Some((generation, path.to_path_buf(), file));
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Opens the renamed log file again for all processes, with the primary's privileges.
    pub(super) fn reopen(&mut self, workers: &WorkerTable, event_log: &mut EventLog) {
        let Some(path) = &self.path else { return };
        match LogFile::reopen(path) {
            Ok(file) => redirect_log(path, file, workers, event_log),
            Err(e) => event_log.log_rotation_error(&e),
        }
    }

    /// Switches to the file that the reload to `current` has opened, if it has opened one.
    pub(super) fn switch_to_generation(
        &mut self,
        current: Generation,
        workers: &WorkerTable,
        event_log: &mut EventLog,
    ) {
        match self.opened.take() {
            Some((generation, path, file)) if generation == current => {
                redirect_log(&path, file, workers, event_log);
                self.path = Some(path);
            }
            // That reload has failed.
            Some((generation, ..)) if generation < current => {}
            opened => self.opened = opened,
        }
    }
}

/// Redirects the standard error of the primary and of all workers to `file`.
fn redirect_log(path: &Path, file: LogFile, workers: &WorkerTable, event_log: &mut EventLog) {
    let file = match file.redirect_stderr() {
        Ok(file) => file,
        Err(e) => {
            let operation = format!("write the log to {}", path.display());
            return event_log.log_rotation_error(&Error::system(operation, e));
        }
    };
    event_log.log_rotation(path);
    for process in workers.values() {
        let Some(channel) = &process.channel else { continue };
        if let Err(e) = channel.send_with_fd(&WorkerCommand::ReopenLog, file.as_fd()) {
            event_log.log_worker_unreachable(process.tag, &e);
        }
    }
}
