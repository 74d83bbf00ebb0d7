//! Another log file for all processes: the same path after a rotation (SIGUSR1), or the one that a reload names.
//!
//! A file that cannot be a log leaves the old one in use. A reload opens its file before anything else is changed, and
//! changes over when it is done, so that one that fails leaves the log as it was.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Primary;
use crate::channel::ToWorker;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::log_file::LogFile;
use prefork_os::signal::Signal;
use prefork_supervisor::Generation;

/// The log file in use, and the one that a reload has opened.
#[derive(Debug)]
pub(super) struct LogSwitch {
    /// `None` while the log goes to the standard error that the primary was started with.
    path: Option<PathBuf>,
    next: Option<(Generation, PathBuf, LogFile)>,
}

impl LogSwitch {
    pub(super) fn new(config: &Config) -> LogSwitch {
        LogSwitch { path: config.log_file.clone(), next: None }
    }

    /// Opens the log file of `config`, if that is another one. Returns whether it takes a restart.
    pub(super) fn prepare(&mut self, generation: Generation, config: &Config) -> Result<bool> {
        self.next = None;
        match &config.log_file {
            same if *same == self.path => Ok(false),
            Some(path) => {
                self.next = Some((generation, path.clone(), LogFile::open_again(path)?));
                Ok(false)
            }
            None => Ok(true),
        }
    }
}

impl Primary {
    /// The log file was renamed: opens it anew, with the rights of the primary, for all processes.
    pub(super) fn reopen_log(&mut self) {
        let Some(path) = self.log.path.clone() else {
            return self.event_log.ignored(Signal::SIGUSR1);
        };
        match LogFile::open_again(&path) {
            Ok(file) => self.redirect_log(&path, file),
            Err(e) => self.event_log.log_stays(&e),
        }
    }

    /// Changes over to the log file of the generation in force, if a reload has brought another one.
    pub(super) fn switch_log(&mut self) {
        let in_force = self.supervisor.wanted_generation();
        match self.log.next.take() {
            Some((generation, path, file)) if generation == in_force => {
                self.redirect_log(&path, file);
                self.log.path = Some(path);
            }
            // That reload has failed.
            Some((generation, ..)) if generation < in_force => {}
            next => self.log.next = next,
        }
    }

    fn redirect_log(&mut self, path: &Path, file: LogFile) {
        let file = match file.redirect() {
            Ok(file) => file,
            Err(e) => {
                let what = format!("write the log to {}", path.display());
                return self.event_log.log_stays(&Error::system(what, e));
            }
        };
        self.event_log.log_reopened(path);
        for child in self.workers.values() {
            let Some(channel) = &child.channel else { continue };
            if let Err(e) = channel.send_with(&ToWorker::Log, file.as_fd()) {
                self.event_log.cannot_tell(child.tag, &e);
            }
        }
    }
}
