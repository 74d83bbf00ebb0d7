//! The output of workers whose streams are pipes: read, split into lines and handed to the application.
//!
//! Each turn of the primary reads a bounded part of each pipe, and calls the hook for a bounded time. What is left stays
//! in the pipe: a worker that writes faster than the hook reads waits in its write, and fills no memory here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Primary, PrimaryHandle};
use crate::config::Config;
use crate::program::output::ProgramOutputWriter;
use crate::upgrade::PassedOutput;
use crate::worker_stdio::OutputStream;
use prefork_os::fd::FdCloseBatch;
use prefork_os::poll::WatchedFd;
use prefork_supervisor::{WorkerId, WorkerTag};

/// The longest line in bytes; a longer one is delivered in several parts. Also how much of a pipe is read in one turn.
pub(super) const MAX_LINE_BYTES: usize = 8192;

/// How much is read from a worker that has exited: more than a pipe holds by default.
const MAX_LAST_BYTES: usize = 256 << 10;

/// How long hooks run for lines before the primary turns to its other events.
const LINE_TIME_BUDGET: Duration = Duration::from_millis(10);

/// How long hooks run for the last lines of a worker before its exit is reported.
const LAST_LINES_TIME_BUDGET: Duration = Duration::from_millis(100);

/// How many pipes of exited workers stay open because a program that they started still has the other end.
const MAX_PIPES_OF_EXITED_WORKERS: usize = 64;

/// A function of the application that receives the lines of workers.
pub(crate) type OutputHook = Box<dyn FnMut(&mut PrimaryHandle<'_>, WorkerTag, OutputStream, &[u8])>;

/// Identifies a pipe: a worker and one of its streams.
pub(super) type OutputPipeId = (WorkerId, OutputStream);

/// The output pipes of all workers, and the hook for their lines.
#[derive(Default)]
pub(super) struct WorkerOutput {
    hook: Option<OutputHook>,
    pipes: BTreeMap<OutputPipeId, OutputPipe>,
    /// The pipe whose lines were delivered last, so that each has its turn.
    last_delivered: Option<OutputPipeId>,
    /// Writes the lines of programs. `None` if the workers run none.
    programs: Option<ProgramOutputWriter>,
}

/// The reading end of one pipe.
struct OutputPipe {
    worker: WorkerTag,
    reader: File,
    lines: LineBuffer,
    /// Whether the writing end is closed.
    is_closed: bool,
    has_worker_exited: bool,
}

impl OutputPipe {
    /// Reads once. Never blocks.
    fn read(&mut self, max: usize) -> usize {
        let mut buffer = [0; MAX_LINE_BYTES];
        let max = max.min(buffer.len());
        loop {
            match self.reader.read(&mut buffer[..max]) {
                Ok(0) => self.is_closed = true,
                Ok(n) => {
                    self.lines.push(&buffer[..n]);
                    return n;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.is_closed = true,
            }
            return 0;
        }
    }

    /// Returns whether no further line can come of it.
    fn is_finished(&self) -> bool {
        self.is_closed && self.lines.is_empty()
    }

    /// Returns whether a line without a line feed counts: nothing follows it.
    fn is_last(&self) -> bool {
        self.is_closed || self.has_worker_exited
    }

    fn has_line(&self) -> bool {
        self.lines.has_line(self.is_last())
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        self.lines.next_line(self.is_last())
    }
}

/// Splits bytes into lines.
#[derive(Debug, Default)]
struct LineBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` were returned already.
    taken: usize,
    /// The bytes before this one have no line feed.
    searched: usize,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.searched = self.searched.saturating_sub(self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    /// Returns the next complete line without its line feed, or a part of a longer one. With `is_last` also the rest.
    fn next_line(&mut self, is_last: bool) -> Option<Vec<u8>> {
        let from = self.searched.max(self.taken);
        let feed = self.bytes[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at);
        let end = feed.unwrap_or(self.bytes.len());
        let max = self.taken + MAX_LINE_BYTES;
        let (end, next) = match feed {
            Some(feed) if feed <= max => (feed, feed + 1),
            _ if end >= max => (max, max),
            _ if is_last && end > self.taken => (end, end),
            _ => {
                self.searched = end;
                return None;
            }
        };
        let line = self.bytes[self.taken..end].to_vec();
        (self.taken, self.searched) = (next, next);
        Some(line)
    }

    /// Returns whether `next_line` would return a line.
    fn has_line(&self, is_last: bool) -> bool {
        let rest = &self.bytes[self.taken..];
        rest.len() >= MAX_LINE_BYTES || rest.contains(&b'\n') || (is_last && !rest.is_empty())
    }
}

impl WorkerOutput {
    pub(super) fn new(hook: Option<OutputHook>) -> WorkerOutput {
        WorkerOutput { hook, ..WorkerOutput::default() }
    }

    /// Adds the pipes of a worker, in the order of [`OutputStream::ALL`].
    pub(super) fn add_worker(&mut self, worker: WorkerTag, readers: [OwnedFd; 2]) {
        for (stream, reader) in OutputStream::ALL.into_iter().zip(readers) {
            self.add_pipe(worker, stream, reader, &[]);
        }
    }

    /// Adds a pipe of which `unread` was read already.
    pub(super) fn add_pipe(
        &mut self,
        worker: WorkerTag,
        stream: OutputStream,
        reader: OwnedFd,
        unread: &[u8],
    ) {
        let mut lines = LineBuffer::default();
        lines.push(unread);
        let reader = File::from(reader);
        let pipe = OutputPipe { worker, reader, lines, is_closed: false, has_worker_exited: false };
        self.pipes.insert((worker.id, stream), pipe);
    }

    /// Returns the pipes to poll: those without lines that wait for the hook.
    pub(super) fn poll_sources(&self) -> impl Iterator<Item = (OutputPipeId, WatchedFd<'_>)> {
        let idle = self.pipes.iter().filter(|(_, pipe)| !pipe.is_closed && !pipe.has_line());
        idle.map(|(id, pipe)| (*id, WatchedFd::readable(pipe.reader.as_fd())))
    }

    /// Sets whose output a pipe has, as the pid of a program is known later than the pipe. Until then, the pid in the tag is that of
    /// its guard, `own_pid`, which printed none of it.
    pub(super) fn set_tag(&mut self, id: OutputPipeId, worker: WorkerTag, own_pid: u32) {
        let is_of_program = self.programs.is_some() && worker.slot.is_web();
        if let Some(pipe) = self.pipes.get_mut(&id) {
            let pid = worker.pid.filter(|pid| !is_of_program || *pid != own_pid);
            pipe.worker = WorkerTag { pid, ..worker };
        }
    }

    pub(super) fn read_ready(&mut self, ready: &[OutputPipeId]) {
        for id in ready {
            if let Some(pipe) = self.pipes.get_mut(id) {
                pipe.read(MAX_LINE_BYTES);
            }
        }
        self.remove_finished();
    }

    /// Returns how long to wait before the next lines are delivered, if some wait.
    pub(super) fn delivery_delay(&self) -> Option<Duration> {
        let has_line = || self.pipes.values().any(OutputPipe::has_line);
        (!self.is_reader_behind() && has_line()).then_some(Duration::ZERO)
    }

    /// Sets where the output of the program in `config` goes.
    pub(super) fn set_program(&mut self, config: &Config) {
        match (config.program(), &mut self.programs) {
            (Some(program), Some(writer)) => writer.set_output(program),
            (Some(program), None) => self.programs = Some(ProgramOutputWriter::new(program)),
            // Programs of earlier generations may still write.
            (None, _) => {}
        }
    }

    /// Writes what was collected of programs' lines, as far as their readers take it now.
    fn flush_programs(&mut self) {
        if let Some(writer) = &mut self.programs {
            writer.flush(Instant::now());
        }
    }

    /// Returns whether lines of programs wait for a reader, so that no more are taken from the pipes.
    fn is_reader_behind(&self) -> bool {
        self.programs.as_ref().is_some_and(ProgramOutputWriter::is_waiting)
    }

    /// Returns the descriptors whose readers lines of programs wait for.
    pub(super) fn waiting_readers(&self) -> impl Iterator<Item = WatchedFd<'_>> {
        self.programs.iter().flat_map(ProgramOutputWriter::poll_sources)
    }

    /// Returns when lines of programs are lost, or lost ones are reported.
    pub(super) fn program_deadline(&self) -> Option<Instant> {
        self.programs.as_ref()?.next_deadline()
    }

    /// Opens the files of programs' output again. Returns whether there are some.
    pub(super) fn reopen_files(&mut self) -> bool {
        self.programs.as_mut().is_some_and(ProgramOutputWriter::reopen_files)
    }

    /// Writes what programs have left, as the primary ends.
    pub(super) fn finish(&mut self) {
        if let Some(writer) = &mut self.programs {
            writer.flush_until(LAST_LINES_TIME_BUDGET);
        }
    }

    /// Reads what a worker that has exited has left in its pipes.
    fn read_last(&mut self, worker: WorkerId) {
        for (_, pipe) in self.pipes_of(worker) {
            pipe.has_worker_exited = true;
            let mut left = MAX_LAST_BYTES;
            while left > 0 && !pipe.is_closed {
                match pipe.read(left) {
                    0 => break,
                    n => left -= n,
                }
            }
        }
        self.remove_finished();
        let mut exited: Vec<OutputPipeId> = self
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.has_worker_exited)
            .map(|(id, _)| *id)
            .collect();
        exited.truncate(exited.len().saturating_sub(MAX_PIPES_OF_EXITED_WORKERS));
        exited.retain(|id| id.0 != worker);
        exited.iter().for_each(|id| drop(self.pipes.remove(id)));
    }

    fn pipes_of(
        &mut self,
        worker: WorkerId,
    ) -> impl Iterator<Item = (&OutputPipeId, &mut OutputPipe)> {
        self.pipes.range_mut((worker, OutputStream::Stdout)..=(worker, OutputStream::Stderr))
    }

    fn remove_finished(&mut self) {
        self.pipes.retain(|_, pipe| !pipe.is_finished());
    }

    /// Takes the next line of this worker, or of the next pipe in turn.
    fn take_line(&mut self, of: Option<WorkerId>) -> Option<(WorkerTag, OutputStream, Vec<u8>)> {
        let id = self.next_pipe_with_line(of)?;
        self.last_delivered = Some(id);
        let pipe = self.pipes.get_mut(&id)?;
        let line = pipe.next_line()?;
        Some((pipe.worker, id.1, line))
    }

    fn next_pipe_with_line(&self, of: Option<WorkerId>) -> Option<OutputPipeId> {
        let last = self.last_delivered;
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let others = self.pipes.range((after, Bound::Unbounded));
        let first = last.into_iter().flat_map(|last| self.pipes.range(..=last));
        let mut in_turn = others.chain(first);
        in_turn
            .find(|(id, pipe)| of.is_none_or(|worker| id.0 == worker) && pipe.has_line())
            .map(|(id, _)| *id)
    }

    /// Returns what an upgrade passes of a worker's pipes. Beyond `room` bytes, unread lines are dropped.
    pub(super) fn passed_pipes(&self, worker: WorkerId, room: &mut usize) -> Vec<PassedOutput> {
        let of_worker =
            self.pipes.range((worker, OutputStream::Stdout)..=(worker, OutputStream::Stderr));
        let passed = of_worker.map(|(id, pipe)| {
            let unread = &pipe.lines.bytes[pipe.lines.taken..];
            let unread = if unread.len() <= *room { unread } else { &[] };
            *room -= unread.len();
            PassedOutput {
                is_stderr: id.1 == OutputStream::Stderr,
                fd: pipe.reader.as_raw_fd(),
                unread: unread.iter().map(|byte| char::from(*byte)).collect(),
            }
        });
        passed.collect()
    }

    /// Returns the descriptors of the pipes that an upgrade passes on: those of living workers.
    pub(super) fn passed_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let living = self.pipes.values().filter(|pipe| !pipe.has_worker_exited);
        living.map(|pipe| pipe.reader.as_fd())
    }

    /// Takes over the pipes of a worker of the previous image.
    pub(super) fn restore_pipes(
        &mut self,
        worker: WorkerTag,
        passed: &[PassedOutput],
    ) -> std::io::Result<()> {
        for PassedOutput { is_stderr, fd, unread } in passed {
            let reader = prefork_os::fd::take_inherited_fd(*fd)?;
            let stream = if *is_stderr { OutputStream::Stderr } else { OutputStream::Stdout };
            let unread: Vec<u8> =
                unread.chars().filter_map(|one| u8::try_from(u32::from(one)).ok()).collect();
            self.add_pipe(worker, stream, reader, &unread);
        }
        Ok(())
    }

    /// Closes the pipes in a forked worker. The hook is the primary's.
    pub(super) fn leave_to_parent(&mut self, fds: &mut FdCloseBatch) {
        if let Some(writer) = &mut self.programs {
            writer.leave_to_parent(fds);
        }
        fds.add_fds_of_owner(std::mem::take(&mut self.pipes), |pipes, take| {
            pipes.values().map(|pipe| pipe.reader.as_fd()).for_each(take);
        });
    }
}

impl Primary {
    /// Calls the hook for the lines of workers, one line of each pipe in turn, within a time budget.
    pub(super) fn deliver_output(&mut self) {
        self.deliver_lines(None, Instant::now() + LINE_TIME_BUDGET);
    }

    /// Delivers the last lines of a worker that has exited. If the hook needs too long for them, the rest follows later.
    pub(super) fn finish_output(&mut self, worker: WorkerId) {
        self.output.read_last(worker);
        self.deliver_lines(Some(worker), Instant::now() + LAST_LINES_TIME_BUDGET);
    }

    /// Delivers the complete lines that are left before an upgrade, within a time budget.
    pub(super) fn flush_output(&mut self) {
        self.deliver_lines(None, Instant::now() + LAST_LINES_TIME_BUDGET);
        self.output.finish();
    }

    fn deliver_lines(&mut self, of: Option<WorkerId>, until: Instant) {
        self.output.flush_programs();
        while !self.output.is_reader_behind()
            && let Some((worker, stream, line)) = self.output.take_line(of)
        {
            self.deliver_line(worker, stream, &line);
            if Instant::now() >= until {
                break;
            }
        }
        self.output.flush_programs();
        self.output.remove_finished();
    }

    fn deliver_line(&mut self, worker: WorkerTag, stream: OutputStream, line: &[u8]) {
        // Removed while it runs, because it borrows the primary that owns it.
        let Some(mut hook) = self.output.hook.take() else {
            return match self.output.programs.as_mut().filter(|_| worker.slot.is_web()) {
                Some(writer) => writer.push_line(worker, stream, line),
                None => super::event_log::log_worker_output(worker, stream, line),
            };
        };
        self.call_application(&"the hook on_output", &worker, |handle| {
            hook(handle, worker, stream, line);
        });
        self.output.hook = Some(hook);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND};

    fn all_lines(buffer: &mut LineBuffer, is_last: bool) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| buffer.next_line(is_last)).collect()
    }

    fn tag(id: u64) -> WorkerTag {
        let (slot, generation) = (Slot(id as u32), Generation(1));
        WorkerTag { id: WorkerId(id), slot, generation, pid: Some(1), kind: WEB_KIND }
    }

    /// Adds a pipe as the standard output of a worker and returns its writing end.
    fn add_stdout(output: &mut WorkerOutput, worker: u64) -> std::io::PipeWriter {
        let (reader, writer) = std::io::pipe().expect("pipe");
        prefork_os::fd::set_nonblocking(&reader).expect("set");
        output.add_pipe(tag(worker), OutputStream::Stdout, reader.into(), b"");
        writer
    }

    #[test]
    fn a_partial_line_is_returned_only_at_the_end() {
        let mut buffer = LineBuffer::default();
        buffer.push(b"one\n\ntw");
        assert_eq!(all_lines(&mut buffer, false), [b"one".to_vec(), b"".to_vec()]);
        buffer.push(b"o");
        assert!(!buffer.has_line(false) && buffer.has_line(true));
        assert_eq!(all_lines(&mut buffer, false), Vec::<Vec<u8>>::new());
        assert_eq!(all_lines(&mut buffer, true), [b"two".to_vec()]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_returned_in_parts() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![0xff; MAX_LINE_BYTES + 1]);
        buffer.push(b"\n");
        let lines = all_lines(&mut buffer, false);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_LINE_BYTES, 1]);
        // A line of exactly the maximum is one line.
        buffer.push(&vec![b'x'; MAX_LINE_BYTES]);
        buffer.push(b"\n\n");
        let lengths: Vec<usize> = all_lines(&mut buffer, false).iter().map(Vec::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, 0]);
    }

    #[test]
    fn each_pipe_has_its_turn_and_a_waiting_line_stops_the_reading() {
        let mut output = WorkerOutput::new(None);
        let mut writers = [add_stdout(&mut output, 1), add_stdout(&mut output, 2)];
        for writer in &mut writers {
            writer.write_all(b"a\nb\n").expect("room");
        }
        assert_eq!(output.poll_sources().count(), 2);
        let all = [1, 2].map(|id| (WorkerId(id), OutputStream::Stdout));
        output.read_ready(&all);
        assert_eq!(
            (output.poll_sources().count(), output.delivery_delay()),
            (0, Some(Duration::ZERO))
        );
        let order: Vec<u64> =
            std::iter::from_fn(|| output.take_line(None)).map(|(tag, ..)| tag.id.0).collect();
        assert_eq!(order, [1, 2, 1, 2]);
        assert_eq!((output.poll_sources().count(), output.delivery_delay()), (2, None));
    }

    #[test]
    fn what_an_exited_worker_has_left_is_read_at_once() {
        let mut output = WorkerOutput::new(None);
        let mut writer = add_stdout(&mut output, 1);
        let many = b"0123456789\n".repeat(5000);
        writer.write_all(&many).expect("room in the pipe");
        writer.write_all(b"rest").expect("room");
        // A program that the worker has started keeps the pipe open.
        output.read_last(WorkerId(1));
        let lines: Vec<Vec<u8>> = std::iter::from_fn(|| output.take_line(Some(WorkerId(1))))
            .map(|(.., line)| line)
            .collect();
        assert_eq!((lines.len(), lines.last().map(Vec::as_slice)), (5001, Some(&b"rest"[..])));
        assert_eq!(output.poll_sources().count(), 1);
        drop(writer);
        output.read_ready(&[(WorkerId(1), OutputStream::Stdout)]);
        assert!(output.pipes.is_empty());
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_arrive(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            sizes in proptest::collection::vec(1..40usize, 1..300),
        ) {
            let mut buffer = LineBuffer::default();
            let (mut lines, mut rest) = (Vec::new(), &bytes[..]);
            for size in sizes {
                let (part, others) = rest.split_at(size.min(rest.len()));
                buffer.push(part);
                lines.extend(all_lines(&mut buffer, false));
                rest = others;
            }
            buffer.push(rest);
            lines.extend(all_lines(&mut buffer, true));
            let mut expected: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            // The last part has no line feed; if it is empty it is no line.
            expected.pop_if(|last| last.is_empty());
            prop_assert_eq!(lines, expected);
        }
    }
}
