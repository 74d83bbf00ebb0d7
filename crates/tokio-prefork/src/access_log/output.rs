//! Writes whole lines to the file of the access log, which other processes write to as well.
//!
//! To a regular file, as many lines as there are go in one `O_APPEND` write, which the kernel does not mix with others. To a
//! pipe, a socket or a terminal, at most 4096 bytes of whole lines go at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use prefork_os::nonblocking_writer::{FileKind, NonblockingWriter, PIPE_BUF, identify_file};

/// The most bytes of a line for a regular file, with its line feed.
const MAX_FILE_LINE_BYTES: usize = 64 * 1024;

/// Returns the most bytes of a line for `file`, with its line feed.
pub(super) fn max_line_bytes(file: impl AsFd) -> usize {
    match identify_file(file) {
        Ok((FileKind::Regular, _)) => MAX_FILE_LINE_BYTES,
        // One byte less, for the line feed that ends a torn line.
        _ => PIPE_BUF - 1,
    }
}

/// Writes lines to one file.
pub(super) struct LineOutput {
    writer: NonblockingWriter,
    /// The most bytes of one write; `None` for a regular file.
    max_write: Option<usize>,
    /// 1 while the file ends with a part of a line, which any process may have left. Shared by all of them.
    has_torn_line: &'static AtomicU64,
}

/// What became of lines.
#[derive(Debug, Default)]
pub(super) struct WrittenLines {
    /// How many bytes from the start are done with, written or not.
    pub(super) done: usize,
    /// How many lines were written.
    pub(super) written: u64,
    /// How many lines of those are lost.
    pub(super) lost: u64,
    /// Why it ended before the last line: `WouldBlock` if the reader does not keep up.
    pub(super) error: Option<io::Error>,
}

impl LineOutput {
    pub(super) fn new(
        file: BorrowedFd<'_>,
        has_torn_line: &'static AtomicU64,
    ) -> io::Result<LineOutput> {
        let is_regular = identify_file(file)?.0 == FileKind::Regular;
        let max_write = (!is_regular).then_some(PIPE_BUF - 1);
        Ok(LineOutput { writer: NonblockingWriter::new(file)?, max_write, has_torn_line })
    }

    /// Writes `lines`, which are `count` and have each its line feed, until all are written or the file does not take more.
    pub(super) fn write(&mut self, file: BorrowedFd<'_>, lines: &[u8], count: u64) -> WrittenLines {
        let mut outcome = WrittenLines::default();
        while outcome.done < lines.len() && outcome.error.is_none() {
            let batch = self.next_batch(&lines[outcome.done..]);
            let count = if batch.len() == lines.len() { count } else { count_lines(batch) };
            self.write_batch(file, batch, count, &mut outcome);
        }
        outcome
    }

    /// Returns the lines of the next write.
    fn next_batch<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        let Some(max) = self.max_write.filter(|max| lines.len() > *max) else { return lines };
        match memchr::memrchr(b'\n', &lines[..max]) {
            Some(end) => &lines[..=end],
            // A line that was written for a file that took longer ones.
            None => &lines[..memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1)],
        }
    }

    fn write_batch(
        &mut self,
        file: BorrowedFd<'_>,
        batch: &[u8],
        count: u64,
        outcome: &mut WrittenLines,
    ) {
        let is_torn = self.has_torn_line.load(Ordering::Relaxed) != 0
            && self.has_torn_line.swap(0, Ordering::Relaxed) != 0;
        let written = match is_torn {
            false => self.writer.write(file, batch),
            true => {
                let ended = [b"\n", batch].concat();
                // Only the line feed is no progress.
                self.writer.write(file, &ended).map(|n| n.saturating_sub(1))
            }
        };
        match written {
            Ok(n) if n == batch.len() => {
                outcome.done += n;
                outcome.written += count;
            }
            Ok(0) => outcome.error = Some(io::ErrorKind::StorageFull.into()),
            Ok(n) => {
                // The disk is full, or a signal came. The line that is torn is lost; the next write ends it.
                outcome.written += count_lines(&batch[..n]);
                outcome.done += n;
                if batch[n - 1] != b'\n' {
                    self.has_torn_line.store(1, Ordering::Relaxed);
                    let rest =
                        memchr::memchr(b'\n', &batch[n..]).map_or(batch.len() - n, |end| end + 1);
                    outcome.done += rest;
                    outcome.lost += 1;
                }
            }
            Err(e) => {
                if is_torn {
                    self.has_torn_line.store(1, Ordering::Relaxed);
                }
                outcome.error = Some(e);
            }
        }
    }
}

/// Returns how many line feeds `lines` has.
pub(super) fn count_lines(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn torn_flag() -> &'static AtomicU64 {
        Box::leak(Box::new(AtomicU64::new(0)))
    }

    fn output(file: impl AsFd, torn: &'static AtomicU64) -> LineOutput {
        LineOutput::new(file.as_fd(), torn).expect("an output")
    }

    #[test]
    fn a_full_pipe_takes_whole_lines_only() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut output = output(&writer, torn_flag());
        let lines = [&[b'x'; 699][..], b"\n"].concat().repeat(1000);
        let outcome = output.write(writer.as_fd(), &lines, 1000);
        assert_eq!(outcome.error.map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
        assert_eq!((outcome.done as u64, outcome.lost), (outcome.written * 700, 0));
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text.len(), outcome.done);
        assert!(text.lines().all(|line| line.len() == 699));
    }

    #[test]
    fn a_torn_line_is_ended_by_whoever_writes_next() {
        let mut file = tempfile::tempfile().expect("file");
        let torn = torn_flag();
        io::Write::write_all(&mut file, b"half of a li").expect("write");
        torn.store(1, Ordering::Relaxed);
        for _ in 0..2 {
            let outcome = output(&file, torn).write(file.as_fd(), b"whole\nlines\n", 2);
            assert_eq!((outcome.written, outcome.done, outcome.lost), (2, 12, 0));
        }
        let mut text = String::new();
        file.rewind().expect("rewind");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "half of a li\nwhole\nlines\nwhole\nlines\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_keeps_the_torn_line_in_mind() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let torn = torn_flag();
        torn.store(1, Ordering::Relaxed);
        let outcome = output(&full, torn).write(full.as_fd(), b"a\nb\n", 2);
        assert_eq!(outcome.error.map(|e| e.kind()), Some(io::ErrorKind::StorageFull));
        assert_eq!((outcome.written, torn.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn lines_for_pipes_are_shorter_than_those_for_files() {
        let (_reader, writer) = io::pipe().expect("pipe");
        assert_eq!(max_line_bytes(&writer), 4095);
        assert_eq!(max_line_bytes(tempfile::tempfile().expect("file")), 64 * 1024);
    }
}
