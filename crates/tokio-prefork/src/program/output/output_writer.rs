//! Writes the output of all programs: to the primary's streams, or to files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::Program;
use super::ProgramOutput;
use super::line_format::{fill_placeholders, push_line, stream_name};
use super::line_writer::LineWriter;
use super::output_files::OutputFiles;
use crate::worker_stdio::OutputStream;
use prefork_os::fd::FdCloseBatch;
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_supervisor::WorkerTag;

/// How many bytes of lines are collected before they are written.
const BATCH_BYTES: usize = 32 << 10;

/// The shortest time between two reports of lost lines.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The writers of programs' output in the primary.
#[derive(Debug)]
pub(crate) struct ProgramOutputWriter {
    output: ProgramOutput,
    /// The pattern of the files, if the output goes to files.
    pattern: Option<PathBuf>,
    /// The file name of the program, for the names of files.
    program_name: String,
    stdout: io::Stdout,
    stderr: io::Stderr,
    /// The lines for standard output and error, in the order of [`OutputStream::ALL`].
    streams: [LineWriter; 2],
    files: OutputFiles,
    reported_at: Option<Instant>,
}

impl ProgramOutputWriter {
    pub(crate) fn new(program: &Program) -> ProgramOutputWriter {
        let (output, program_name) = (program.output_target().clone(), program.name_in_paths());
        let pattern = output.file_pattern();
        ProgramOutputWriter {
            output,
            pattern,
            program_name,
            stdout: io::stdout(),
            stderr: io::stderr(),
            streams: Default::default(),
            files: OutputFiles::default(),
            reported_at: None,
        }
    }

    /// Changes where lines go, after a reload.
    pub(crate) fn set_output(&mut self, program: &Program) {
        let (output, name) = (program.output_target(), program.name_in_paths());
        if (&self.output, &self.program_name) == (output, &name) {
            return;
        }
        self.flush(Instant::now());
        self.pattern = output.file_pattern();
        (self.output, self.program_name) = (output.clone(), name);
        self.files.close();
    }

    /// Takes a line. It is written by the next [`flush`](ProgramOutputWriter::flush).
    pub(crate) fn push_line(&mut self, worker: WorkerTag, stream: OutputStream, line: &[u8]) {
        let lines = match &self.pattern {
            Some(pattern) => {
                let stream = stream_name(stream);
                let path = fill_placeholders(pattern, &self.program_name, worker.slot.0, stream);
                self.files.lines_of(path)
            }
            None => &mut self.streams[stream as usize],
        };
        lines.end_torn_line();
        push_line(lines.queue(), &self.output, worker, stream, line);
        if lines.queue().len() >= BATCH_BYTES {
            self.flush(Instant::now());
        }
    }

    /// Writes what the readers take now, and reports lost lines.
    pub(crate) fn flush(&mut self, now: Instant) {
        let fds = [self.stdout.as_fd(), self.stderr.as_fd()];
        for (lines, fd) in self.streams.iter_mut().zip(fds) {
            lines.flush(fd, now);
        }
        self.files.flush(now);
        self.report_lost(now);
    }

    /// Writes what is left at the end of the primary or of its image, for at most `limit`.
    pub(crate) fn flush_until(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            self.flush(Instant::now());
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.is_waiting() || left.is_zero() {
                return;
            }
            let wait = left.min(Duration::from_millis(10));
            let waiting: Vec<WatchedFd<'_>> = self.poll_sources().collect();
            if prefork_os::poll::poll_fds(&waiting, Some(wait)).is_err() {
                return;
            }
        }
    }

    /// Returns whether lines wait for a reader. Push no further ones then.
    pub(crate) fn is_waiting(&self) -> bool {
        self.streams.iter().any(LineWriter::is_waiting) || self.files.is_waiting()
    }

    /// Returns when [`flush`](ProgramOutputWriter::flush) has something to do, whatever the readers do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let streams = self.streams.iter().filter_map(LineWriter::next_deadline);
        let report = self.reported_at.filter(|_| self.has_lost());
        let report = report.map(|at| at + LOSS_REPORT_INTERVAL);
        streams.chain(self.files.next_deadline()).chain(report).min()
    }

    /// Returns the descriptors whose readers lines wait for.
    pub(crate) fn poll_sources(&self) -> impl Iterator<Item = WatchedFd<'_>> {
        let fds = [self.stdout.as_fd(), self.stderr.as_fd()];
        let streams = self.streams.iter().zip(fds).filter(|(lines, _)| lines.is_waiting());
        let streams = streams.map(|(_, fd)| fd);
        let files = self.files.waiting_files().map(|file| file.as_fd());
        streams.chain(files).map(|fd: BorrowedFd<'_>| WatchedFd::new(fd, PollInterest::Writable))
    }

    /// Opens the files again after a rotation. Returns whether there are files.
    pub(crate) fn reopen_files(&mut self) -> bool {
        self.files.flush(Instant::now());
        self.report_lost(Instant::now());
        self.files.close();
        self.pattern.is_some()
    }

    /// Closes the files in a forked worker.
    pub(crate) fn leave_to_parent(&mut self, fds: &mut FdCloseBatch) {
        self.files.leave_to_parent(fds);
    }

    fn has_lost(&self) -> bool {
        self.streams.iter().any(LineWriter::has_lost) || self.files.has_lost()
    }

    fn report_lost(&mut self, now: Instant) {
        let is_early = self.reported_at.is_some_and(|at| now < at + LOSS_REPORT_INTERVAL);
        if is_early || !self.has_lost() {
            return;
        }
        self.reported_at = Some(now);
        let streams = self.streams.iter_mut().zip(["standard output", "standard error"]);
        let streams =
            streams.filter_map(|(lines, name)| Some((name.to_string(), lines.take_lost()?)));
        let files = self.files.take_lost();
        let files = files.map(|(path, lost)| (path.display().to_string(), lost));
        for (target, lost) in streams.chain(files) {
            log::warn!("lost {} lines of programs on {target}: {}", lost.count, lost.reason);
        }
    }
}
