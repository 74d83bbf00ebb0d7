//! Writes log lines to standard error without blocking, so that a slow log reader does not stop supervision or serving.
//!
//! A line that cannot be written at once is dropped and counted. As soon as there is space again, one line reports how many
//! were dropped, and why. The counts are shared by all processes forked after [`init_log_output`], so that one process
//! reports for all of them.
//!
//! Lines are not queued in the process: a pipe holds 64 KiB by default, and a second buffer would be lost if the process
//! dies.
//!
//! [`write_record`] formats the records of a logger, so that each line names the process that wrote it.

mod journal;
mod json_line;
mod log_format;
mod panic_hook;
mod process_role;

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::Level;

use self::log_format::{Line, LineStyle};
pub use self::log_format::{LogFormat, write_record};
pub use self::panic_hook::install_panic_hook;
pub use self::process_role::ProcessRole;
use crate::text::Printable;
use prefork_os::nonblocking_writer::{NonblockingWriter, wait_until_writable};
use prefork_os::shared_memory;

/// How long the final line of a process waits for space in the pipe.
const FINAL_LINE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the primary waits before it tries again to report dropped lines.
pub(crate) const DROPPED_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A copy of the standard error that the process was forked with, where its streams were replaced later.
static LOG_STREAM: OnceLock<OwnedFd> = OnceLock::new();
static LOG_WRITER: Mutex<LogWriter> =
    Mutex::new(LogWriter { writer: None, has_partial_line: false });

/// Counters of dropped lines.
#[derive(Clone, Copy)]
struct DroppedLineCounters {
    /// Since the start.
    total: &'static AtomicU64,
    /// Those that no line has reported yet.
    unreported: &'static AtomicU64,
    /// `errno` of the last drop; 0 if the pipe was full.
    last_errno: &'static AtomicU64,
}

impl DroppedLineCounters {
    /// Returns the counters that this process shares with those forked after the first call.
    fn get_shared() -> DroppedLineCounters {
        static SHARED: OnceLock<DroppedLineCounters> = OnceLock::new();
        static OWN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        *SHARED.get_or_init(|| {
            // Without shared memory each process counts for itself.
            let words = shared_memory::create_shared_words(OWN.len()).unwrap_or(&OWN);
            DroppedLineCounters { total: &words[0], unreported: &words[1], last_errno: &words[2] }
        })
    }

    fn record_drop(self, error: &io::Error) {
        let is_full = error.kind() == io::ErrorKind::WouldBlock;
        let errno = if is_full { 0 } else { error.raw_os_error().unwrap_or(0) };
        self.last_errno.store(u64::from(errno.unsigned_abs()), Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        self.unreported.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the text for the log and the events about `count` dropped lines.
    fn report_text(self, count: u64) -> String {
        let plural = if count == 1 { " was" } else { "s were" };
        let errno = i32::try_from(self.last_errno.load(Ordering::Relaxed)).unwrap_or(0);
        let why = match errno {
            0 => "its reader does not keep up".to_string(),
            errno => format!("the last write failed: {}", io::Error::from_raw_os_error(errno)),
        };
        format!("{count} line{plural} missing in the log: {why}")
    }
}

/// The state of this process's log stream.
struct LogWriter {
    writer: Option<NonblockingWriter>,
    /// Whether only a part of the last line was written.
    has_partial_line: bool,
}

impl LogWriter {
    /// Writes `line`, which ends with a line feed, to `fd`, completely or not at all if `fd` allows that.
    fn write(&mut self, fd: BorrowedFd<'_>, line: &[u8]) -> io::Result<()> {
        if !self.writer.as_ref().is_some_and(|writer| writer.is_same_file(fd)) {
            // The descriptor was redirected to another file.
            self.writer = Some(NonblockingWriter::new(fd)?);
            self.has_partial_line = false;
        }
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::NotFound.into()) };
        let mut line = truncate_line(line, writer.max_atomic_write());
        if self.has_partial_line {
            line.to_mut().insert(0, b'\n');
        }
        let mut rest = &line[..];
        while !rest.is_empty() {
            match writer.write(fd, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = &rest[n..];
                    self.has_partial_line = !rest.is_empty();
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Cuts `line` to `max` bytes, marks the cut and keeps the line feed.
fn truncate_line(line: &[u8], max: Option<usize>) -> Cow<'_, [u8]> {
    // One byte for the line feed that ends a torn line before it.
    let Some(max) = max.map(|max| max - 1).filter(|max| line.len() > *max) else {
        return Cow::Borrowed(line);
    };
    if let Some(json) = json_line::cut_json_line(line, max) {
        return json;
    }
    let mark = format!("... ({} bytes)\n", line.len());
    let mut end = max.saturating_sub(mark.len());
    while end > 0 && line[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    let mut short = line[..end].to_vec();
    short.extend_from_slice(mark.as_bytes());
    Cow::Owned(short)
}

/// Sets the format of log lines, and prepares what all processes of the cluster share for writing them. Call it in the primary, before
/// it forks; later calls change nothing.
///
/// If standard error is systemd's journal, lines begin with their priority, `<3>` for errors: journald takes it off again.
/// Text lines then have no time, as the journal has it.
///
/// Not needed for a logger with a format of its own. Reports about dropped lines are then plain text.
pub fn init_log_output(format: LogFormat) {
    prepare_log_output();
    LineStyle { format, has_priority: journal::is_stderr_journal() }.set();
}

/// Creates the shared counters of dropped lines, and makes this process the primary for its log lines.
pub(crate) fn prepare_log_output() {
    DroppedLineCounters::get_shared();
    ProcessRole::set_primary_if_none();
}

/// Writes `line`, which ends with a line feed, to standard error without waiting. If that is not possible, drops and counts
/// the line.
pub fn write_line(line: &[u8]) {
    let stderr = io::stderr();
    let stream = log_stream(&stderr);
    with_log_writer(|output| {
        let dropped = DroppedLineCounters::get_shared();
        let reported = write_dropped_report(output, stream, dropped);
        if let Err(e) = reported.and_then(|()| output.write(stream, line)) {
            dropped.record_drop(&e);
        }
    });
}

/// Writes the final line of a process, as [`write_line`], but waits up to 500 ms for space.
pub fn write_final_line(line: &[u8]) {
    let stderr = io::stderr();
    let stream = log_stream(&stderr);
    let deadline = Instant::now() + FINAL_LINE_TIMEOUT;
    loop {
        let outcome = with_log_writer(|output| output.write(stream, line));
        let left = deadline.saturating_duration_since(Instant::now());
        match outcome {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !left.is_zero() => {
                if wait_until_writable(stream, left).is_err() {
                    return;
                }
            }
            // Nobody is left to be reported of a failure.
            Ok(()) | Err(_) => return,
        }
    }
}

/// Reports dropped lines if there are any. Returns when to try again if there is no space.
pub(crate) fn retry_dropped_report() -> Option<Duration> {
    let dropped = DroppedLineCounters::get_shared();
    if dropped.unreported.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let stderr = io::stderr();
    let stream = log_stream(&stderr);
    let reported = with_log_writer(|output| write_dropped_report(output, stream, dropped));
    reported.is_err().then_some(DROPPED_REPORT_INTERVAL)
}

/// Returns how many lines all processes of the cluster have dropped since the start.
pub(crate) fn dropped_line_count() -> u64 {
    DroppedLineCounters::get_shared().total.load(Ordering::Relaxed)
}

/// Returns the text of the event about `count` dropped lines.
pub(crate) fn dropped_lines_text(count: u64) -> String {
    DroppedLineCounters::get_shared().report_text(count)
}

/// Writes one line about the dropped lines that were not reported yet.
fn write_dropped_report(
    output: &mut LogWriter,
    fd: BorrowedFd<'_>,
    dropped: DroppedLineCounters,
) -> io::Result<()> {
    if dropped.unreported.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    // Reset before the write, so that only one process reports them.
    let count = dropped.unreported.swap(0, Ordering::Relaxed);
    if count == 0 {
        return Ok(());
    }
    let text = dropped.report_text(count);
    let line = format_own_line(Level::Warn, &text).unwrap_or_else(|| format!("warning: {text}\n"));
    output.write(fd, line.as_bytes()).inspect_err(|_| {
        dropped.unreported.fetch_add(count, Ordering::Relaxed);
    })
}

/// Formats a line that is no record of the logger. `None` if the application's logger has a format of its own.
fn format_own_line(level: Level, text: &str) -> Option<String> {
    let style = LineStyle::current()?;
    let line = Line { level, target: module_path!(), message: &text, fields: None };
    Some(style.format(SystemTime::now(), ProcessRole::current(), &line))
}

/// Writes an error as the final line of the process, as [`write_final_line`]: as JSON if that is the format of the log, otherwise as
/// `NAME: TEXT`.
pub fn write_final_error(name: &str, text: &str) {
    let is_json = LineStyle::current().is_some_and(|style| style.format == LogFormat::Json);
    let json = is_json.then(|| format_own_line(Level::Error, text)).flatten();
    let line = json.unwrap_or_else(|| format!("{}: {}\n", Printable(name), Printable(text)));
    write_final_line(line.as_bytes());
}

/// Returns the stream that log lines are written to.
fn log_stream(stderr: &io::Stderr) -> BorrowedFd<'_> {
    LOG_STREAM.get().map_or_else(|| stderr.as_fd(), OwnedFd::as_fd)
}

/// Keeps writing log lines to what is standard error now. Call it before standard error is replaced by a stream that is
/// not the log.
pub(crate) fn keep_log_stream() -> io::Result<()> {
    let copy = io::stderr().as_fd().try_clone_to_owned()?;
    // A second call has nothing to keep.
    let _ = LOG_STREAM.set(copy);
    Ok(())
}

/// Writes log lines to `file` from now on: after a rotation, or when a reload names another log file.
pub(crate) fn replace_log_stream(file: &OwnedFd) -> io::Result<()> {
    match LOG_STREAM.get() {
        Some(stream) => prefork_os::fd::replace_file(stream, file),
        None => prefork_os::fd::replace_stderr(file),
    }
}

fn with_log_writer<T>(act: impl FnOnce(&mut LogWriter) -> T) -> T {
    act(&mut LOG_WRITER.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A non-blocking [`Write`] to standard error, for loggers that write one whole record at a time.
#[derive(Debug, Default)]
pub struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn new_log_writer() -> LogWriter {
        LogWriter { writer: None, has_partial_line: false }
    }

    #[test]
    fn a_full_pipe_gets_only_complete_lines() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let (mut output, mut written) = (new_log_writer(), 0);
        let line = [&[b'x'; 700][..], b"\n"].concat();
        while output.write(writer.as_fd(), &line).is_ok() {
            written += 1;
            assert!(written < 1 << 16, "a pipe has an end");
        }
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text.len(), written * line.len());
        assert!(text.lines().all(|line| line.len() == 700));
    }

    #[test]
    fn a_line_too_long_for_a_pipe_is_cut_and_marked() {
        let line = ["ä".repeat(5000), "\n".to_string()].concat();
        let short = truncate_line(line.as_bytes(), Some(4096));
        let text = std::str::from_utf8(&short).expect("whole characters");
        assert!(short.len() < 4096 && text.ends_with("ä... (10001 bytes)\n"), "{text}");
        for whole in [None, Some(20_000)] {
            assert_eq!(truncate_line(line.as_bytes(), whole), line.as_bytes());
        }
    }

    #[test]
    fn a_partial_line_is_ended_before_the_next_line() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        let mut output = new_log_writer();
        output.write(file.as_fd(), b"half").expect("write");
        output.has_partial_line = true;
        output.write(file.as_fd(), b"whole\n").expect("write");
        output.write(file.as_fd(), b"whole\n").expect("write");
        let mut text = String::new();
        io::Seek::rewind(file.as_file_mut()).expect("rewind");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "half\nwhole\nwhole\n");
    }

    #[test]
    fn dropped_lines_are_reported_once_with_count_and_reason() {
        let counters: &'static [AtomicU64] = shared_memory::create_shared_words(3).expect("words");
        let dropped = DroppedLineCounters {
            total: &counters[0],
            unreported: &counters[1],
            last_errno: &counters[2],
        };
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut output = new_log_writer();
        let line = [&[b'x'; 700][..], b"\n"].concat();
        for line in [&line[..], b"\n"] {
            while let Ok(()) = output.write(writer.as_fd(), line) {}
        }
        for _ in 0..3 {
            dropped.record_drop(&io::ErrorKind::WouldBlock.into());
        }
        assert!(write_dropped_report(&mut output, writer.as_fd(), dropped).is_err());
        assert_eq!(dropped.unreported.load(Ordering::Relaxed), 3);
        let mut room = [0; 8192];
        reader.read_exact(&mut room).expect("read");
        write_dropped_report(&mut output, writer.as_fd(), dropped).expect("room");
        write_dropped_report(&mut output, writer.as_fd(), dropped).expect("nothing to tell");
        let counts = [dropped.total, dropped.unreported].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [3, 0]);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text.matches("3 lines were missing in the log").count(), 1, "{text}");
        dropped.record_drop(&io::Error::from_raw_os_error(28));
        assert!(
            dropped.report_text(1).contains("No space left on device"),
            "{}",
            dropped.report_text(1)
        );
    }
}
