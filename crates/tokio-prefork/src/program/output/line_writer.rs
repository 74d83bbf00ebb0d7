//! Writes lines to a stream or file without blocking; a reader that stands still costs lines, which are counted.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use prefork_os::nonblocking_writer::NonblockingWriter;

/// How long a reader may stand still before lines are lost. Until then programs wait in their writes.
const READER_PATIENCE: Duration = Duration::from_millis(250);

/// Lines that were lost since the last call, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LostLines {
    pub(super) count: u64,
    pub(super) reason: String,
}

/// A queue of whole lines and their way to a descriptor.
///
/// The queue holds what was pushed between two calls of [`flush`](LineWriter::flush). Push nothing while
/// [`is_waiting`](LineWriter::is_waiting), so that it does not grow.
#[derive(Debug, Default)]
pub(super) struct LineWriter {
    queue: Vec<u8>,
    writer: Option<NonblockingWriter>,
    /// Whether what was written last is the first part of a line.
    is_mid_line: bool,
    /// When the reader stopped taking anything.
    stuck_since: Option<Instant>,
    /// Whether lines are lost until the reader takes some again.
    is_losing: bool,
    lost_count: u64,
    lost_reason: String,
}

impl LineWriter {
    /// Returns the end of the queue, to append whole lines.
    pub(super) fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.queue
    }

    /// Returns whether lines wait for a reader that took none at the last flush.
    pub(super) fn is_waiting(&self) -> bool {
        self.stuck_since.is_some() && !self.queue.is_empty()
    }

    /// Returns when lines are lost if the reader takes none until then.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let since = self.stuck_since.filter(|_| self.is_waiting())?;
        Some(since + READER_PATIENCE)
    }

    /// Writes what the reader takes now. Loses the rest if the reader has stood still for too long, or the write fails.
    pub(super) fn flush(&mut self, fd: BorrowedFd<'_>, now: Instant) {
        while !self.queue.is_empty() {
            match self.write_chunk(fd) {
                Ok(0) => return self.lose_queue(&io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.is_mid_line = self.queue[written - 1] != b'\n';
                    self.queue.drain(..written);
                    (self.stuck_since, self.is_losing) = (None, false);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *self.stuck_since.get_or_insert(now);
                    if self.is_losing || now.saturating_duration_since(since) >= READER_PATIENCE {
                        self.lose_queue(&error);
                    }
                    return;
                }
                Err(error) => return self.lose_queue(&error),
            }
        }
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost_count > 0
    }

    /// Returns what was lost since the last call.
    pub(super) fn take_lost(&mut self) -> Option<LostLines> {
        let count = std::mem::take(&mut self.lost_count);
        (count > 0).then(|| LostLines { count, reason: std::mem::take(&mut self.lost_reason) })
    }

    fn write_chunk(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        if !self.writer.as_ref().is_some_and(|writer| writer.is_same_file(fd)) {
            // The descriptor was redirected to another file.
            self.writer = Some(NonblockingWriter::new(fd)?);
        }
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::NotFound.into()) };
        let length = chunk_length(&self.queue, writer.max_atomic_write());
        writer.write(fd, &self.queue[..length])
    }

    fn lose_queue(&mut self, error: &io::Error) {
        // A line of which a part was written counts, and its part gets an end.
        let lines = self.queue.iter().filter(|byte| **byte == b'\n').count();
        self.lost_count += lines as u64;
        self.lost_reason = match error.kind() {
            io::ErrorKind::WouldBlock => "its reader does not keep up".to_string(),
            _ => error.to_string(),
        };
        self.queue.clear();
        (self.is_losing, self.stuck_since) = (true, None);
    }

    /// Ends the first part of a line whose rest was lost. Call it before lines are pushed to an empty queue.
    pub(super) fn end_torn_line(&mut self) {
        if self.queue.is_empty() && std::mem::take(&mut self.is_mid_line) {
            self.queue.push(b'\n');
        }
    }
}

/// Returns how much of the queue to write at once: whole lines up to `max`, which other processes cannot interrupt.
fn chunk_length(queue: &[u8], max: Option<usize>) -> usize {
    let Some(max) = max.filter(|max| queue.len() > *max) else { return queue.len() };
    match queue[..max].iter().rposition(|byte| *byte == b'\n') {
        Some(feed) => feed + 1,
        None => max,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    fn push(writer: &mut LineWriter, line: &[u8]) {
        writer.end_torn_line();
        writer.queue().extend_from_slice(line);
    }

    #[test]
    fn chunks_are_whole_lines_where_that_is_possible() {
        assert_eq!(chunk_length(b"ab\ncd\nef\n", Some(7)), 6);
        assert_eq!(chunk_length(b"ab\ncd\n", Some(7)), 6);
        assert_eq!(chunk_length(b"abcdefgh\n", Some(4)), 4);
        assert_eq!(chunk_length(b"abcdefgh\n", None), 9);
    }

    #[test]
    fn a_reader_that_is_behind_gets_every_line_later() {
        let (mut reader, pipe) = io::pipe().expect("pipe");
        let (mut writer, now) = (LineWriter::default(), Instant::now());
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let mut pushed = 0;
        while !writer.is_waiting() {
            (0..100).for_each(|_| push(&mut writer, &line));
            pushed += 100;
            writer.flush(pipe.as_fd(), now);
        }
        assert_eq!(writer.next_deadline(), Some(now + READER_PATIENCE));
        let mut taken = vec![0; 40_000];
        reader.read_exact(&mut taken).expect("read");
        writer.flush(pipe.as_fd(), now + READER_PATIENCE / 2);
        assert_eq!((writer.is_waiting(), writer.take_lost()), (false, None));
        drop(pipe);
        reader.read_to_end(&mut taken).expect("read");
        assert_eq!(taken.len(), pushed * line.len());
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_with_a_count_and_no_memory() {
        let (mut reader, pipe) = io::pipe().expect("pipe");
        let (mut writer, now) = (LineWriter::default(), Instant::now());
        let line = [&[b'x'; 99][..], b"\n"].concat();
        while !writer.is_waiting() {
            (0..100).for_each(|_| push(&mut writer, &line));
            writer.flush(pipe.as_fd(), now);
        }
        let waiting = writer.queue().iter().filter(|byte| **byte == b'\n').count() as u64;
        let later = now + READER_PATIENCE;
        writer.flush(pipe.as_fd(), later);
        let lost = writer.take_lost().expect("lost lines");
        assert_eq!((lost.count, lost.reason.as_str()), (waiting, "its reader does not keep up"));
        // From then on, nothing waits: programs are not slowed down any more.
        push(&mut writer, &line);
        writer.flush(pipe.as_fd(), later);
        assert_eq!(
            (writer.is_waiting(), writer.take_lost().map(|lost| lost.count)),
            (false, Some(1))
        );
        let mut taken = vec![0; 65_536];
        let read = reader.read(&mut taken).expect("read");
        push(&mut writer, &line);
        writer.flush(pipe.as_fd(), later);
        assert_eq!((writer.is_waiting(), writer.take_lost()), (false, None));
        drop(pipe);
        taken.truncate(read);
        reader.read_to_end(&mut taken).expect("read");
        assert!(taken.split(|byte| *byte == b'\n').all(|line| [0, 99].contains(&line.len())));
    }

    #[test]
    fn the_first_part_of_a_lost_line_gets_an_end() {
        let (mut reader, pipe) = io::pipe().expect("pipe");
        let (mut writer, now) = (LineWriter::default(), Instant::now());
        // Longer than what a pipe takes at once, so that its beginning is written.
        push(&mut writer, &[&[b'x'; 100_000][..], b"\n"].concat());
        writer.flush(pipe.as_fd(), now);
        writer.flush(pipe.as_fd(), now + READER_PATIENCE);
        assert_eq!(writer.take_lost().map(|lost| lost.count), Some(1));
        let mut taken = vec![0; 60_000];
        reader.read_exact(&mut taken).expect("read");
        push(&mut writer, b"next\n");
        writer.flush(pipe.as_fd(), now + READER_PATIENCE);
        drop(pipe);
        reader.read_to_end(&mut taken).expect("read");
        assert!(taken.ends_with(b"x\nnext\n"));
    }

    #[test]
    fn a_write_that_fails_names_the_error() {
        let (reader, pipe) = io::pipe().expect("pipe");
        drop(reader);
        let mut writer = LineWriter::default();
        push(&mut writer, b"a\nb\n");
        writer.flush(pipe.as_fd(), Instant::now());
        let lost = writer.take_lost().expect("lost lines");
        assert_eq!(lost.count, 2);
        assert!(lost.reason.contains("roken pipe"), "{}", lost.reason);
    }
}
