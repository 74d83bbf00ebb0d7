//! The files of programs' output: opened when the first line comes, and again after a rotation.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::line_writer::{LineWriter, LostLines};
use crate::log_file::open_access_log;

/// The files that are open, by their path.
#[derive(Debug, Default)]
pub(super) struct OutputFiles {
    files: BTreeMap<PathBuf, OutputFile>,
}

/// A file of output.
#[derive(Debug, Default)]
struct OutputFile {
    /// `None` if it could not be opened; then `open_error` says why.
    file: Option<OwnedFd>,
    open_error: Option<String>,
    lines: LineWriter,
    lost_unopened: u64,
}

impl OutputFile {
    fn open(path: &Path) -> OutputFile {
        match open_access_log(path) {
            Ok(file) => OutputFile { file: Some(file), ..OutputFile::default() },
            Err(error) => {
                OutputFile { open_error: Some(error.to_string()), ..OutputFile::default() }
            }
        }
    }

    fn take_lost(&mut self) -> Option<LostLines> {
        let unopened = std::mem::take(&mut self.lost_unopened);
        match (&self.open_error, unopened) {
            (Some(error), 1..) => Some(LostLines { count: unopened, reason: error.clone() }),
            _ => self.lines.take_lost(),
        }
    }
}

impl OutputFiles {
    /// Returns the lines of the file at `path`, which is opened if it is not open.
    pub(super) fn lines_of(&mut self, path: PathBuf) -> &mut LineWriter {
        let file = self.files.entry(path).or_insert_with_key(|path| OutputFile::open(path));
        &mut file.lines
    }

    /// Writes what each file takes.
    pub(super) fn flush(&mut self, now: Instant) {
        for file in self.files.values_mut() {
            match &file.file {
                Some(open) => file.lines.flush(open.as_fd(), now),
                None => {
                    let lines = file.lines.queue();
                    let count = lines.iter().filter(|byte| **byte == b'\n').count();
                    file.lost_unopened += count as u64;
                    lines.clear();
                }
            }
        }
    }

    /// Closes all files. The next line opens its file again.
    pub(super) fn close(&mut self) {
        self.files.clear();
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.files.values().any(|file| file.lines.is_waiting())
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.lines.next_deadline()).min()
    }

    pub(super) fn has_lost(&self) -> bool {
        self.files.values().any(|file| file.lines.has_lost() || file.lost_unopened > 0)
    }

    /// Returns the files that wait for their reader.
    pub(super) fn waiting_files(&self) -> impl Iterator<Item = &OwnedFd> {
        let waiting = self.files.values().filter(|file| file.lines.is_waiting());
        waiting.filter_map(|file| file.file.as_ref())
    }

    /// Returns what was lost since the last call, with the paths.
    pub(super) fn take_lost(&mut self) -> impl Iterator<Item = (&Path, LostLines)> {
        self.files.iter_mut().filter_map(|(path, file)| Some((path.as_path(), file.take_lost()?)))
    }

    /// Closes the files in a forked worker.
    pub(super) fn leave_to_parent(&mut self, fds: &mut prefork_os::fd::FdCloseBatch) {
        fds.add_fds_of_owner(std::mem::take(&mut self.files), |files, take| {
            files.values().filter_map(|file| file.file.as_ref()).map(AsFd::as_fd).for_each(take);
        });
    }
}
