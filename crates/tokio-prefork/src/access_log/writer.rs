//! The thread that writes the lines of a worker process, so that a slow disk or reader costs lines and not requests.
//!
//! Event loops hand over buffers of whole lines. What the thread has not written yet is bounded: beyond that, lines are
//! dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::output::{LineOutput, count_lines, max_line_bytes};
use crate::scoreboard::LogLineCounters;
use prefork_os::nonblocking_writer::wait_until_writable;
use prefork_supervisor::WorkerTag;

/// The most bytes that wait for the thread in one process. Lines beyond them are dropped.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// How many empty buffers are kept for the next lines.
const MAX_SPARE_BUFFERS: usize = 4;

/// The stack of the thread.
const STACK_BYTES: usize = 128 << 10;

/// How long to wait for a slow reader before the thread looks for a reopened file.
const REOPEN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The shortest time between two warnings about dropped lines, of all processes.
const WARNING_INTERVAL_MS: u64 = 1000;

/// State that the processes forked by one primary share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedLogState {
    /// See `LineOutput`.
    has_torn_line: &'static AtomicU64,
    /// Dropped lines that no warning has reported yet.
    unreported_drops: &'static AtomicU64,
    /// When the last warning was logged, in milliseconds on the monotonic clock.
    reported_ms: &'static AtomicU64,
    /// `errno` of the last failed write; 0 if the reader or the disk was too slow.
    last_errno: &'static AtomicU64,
}

impl SharedLogState {
    /// Creates the state in memory that forked processes share.
    pub(crate) fn create() -> SharedLogState {
        static OWN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
        // Without shared memory each process has its own.
        let words = prefork_os::shared_memory::create_shared_words(OWN.len()).unwrap_or(&OWN);
        SharedLogState {
            has_torn_line: &words[0],
            unreported_drops: &words[1],
            reported_ms: &words[2],
            last_errno: &words[3],
        }
    }

    fn record_drops(&self, lines: u64, error: Option<&io::Error>) {
        let errno = error.and_then(io::Error::raw_os_error).unwrap_or(0);
        self.last_errno.store(u64::from(errno.unsigned_abs()), Ordering::Relaxed);
        self.unreported_drops.fetch_add(lines, Ordering::Relaxed);
    }

    /// Returns the text of a warning about dropped lines, at most once a second over all processes.
    fn take_warning(&self, now_ms: u64) -> Option<String> {
        let reported = self.reported_ms.load(Ordering::Relaxed);
        let is_due = reported == 0 || now_ms.saturating_sub(reported) >= WARNING_INTERVAL_MS;
        if self.unreported_drops.load(Ordering::Relaxed) == 0 || !is_due {
            return None;
        }
        self.reported_ms
            .compare_exchange(reported, now_ms, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        let lines = self.unreported_drops.swap(0, Ordering::Relaxed);
        let errno = i32::try_from(self.last_errno.load(Ordering::Relaxed)).unwrap_or(0);
        let why = match errno {
            0 => "it is written too slowly".to_string(),
            errno => io::Error::from_raw_os_error(errno).to_string(),
        };
        (lines > 0)
            .then(|| format!("lines are missing in the access log; lines={lines} reason={why:?}"))
    }
}

/// Whole lines of one event loop.
struct Chunk {
    bytes: Vec<u8>,
    lines: u64,
    counters: LogLineCounters,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Bytes of `chunks`, and of the chunk that is being written.
    queued_bytes: usize,
    is_writing: bool,
    has_thread: bool,
    spare: Vec<Vec<u8>>,
}

/// Writes the access log of one worker process.
pub(crate) struct AccessLogWriter {
    queue: Mutex<Queue>,
    /// Notified when a chunk comes, and when all are written.
    changed: Condvar,
    file: Mutex<Arc<OwnedFd>>,
    max_line_bytes: AtomicUsize,
    shared: SharedLogState,
}

impl AccessLogWriter {
    pub(crate) fn new(file: OwnedFd, shared: SharedLogState) -> Arc<AccessLogWriter> {
        let max_line_bytes = AtomicUsize::new(max_line_bytes(&file));
        Arc::new(AccessLogWriter {
            queue: Mutex::default(),
            changed: Condvar::new(),
            file: Mutex::new(Arc::new(file)),
            max_line_bytes,
            shared,
        })
    }

    /// Writes to `file` from now on: after a rotation, or when a reload names another file.
    pub(crate) fn set_file(&self, file: OwnedFd) {
        self.max_line_bytes.store(max_line_bytes(&file), Ordering::Relaxed);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
    }

    /// Returns the most bytes of a line, with its line feed.
    pub(super) fn max_line_bytes(&self) -> usize {
        self.max_line_bytes.load(Ordering::Relaxed)
    }

    /// Takes the lines in `bytes`, or drops them if too many wait, and leaves an empty buffer.
    pub(super) fn push(
        self: &Arc<AccessLogWriter>,
        bytes: &mut Vec<u8>,
        lines: u64,
        counters: LogLineCounters,
    ) {
        let mut queue = self.lock();
        if queue.queued_bytes + bytes.len() > MAX_QUEUED_BYTES || !self.ensure_thread(&mut queue) {
            drop(queue);
            bytes.clear();
            self.record_drops(lines, None, counters);
            return;
        }
        let empty = queue.spare.pop().unwrap_or_default();
        let bytes = std::mem::replace(bytes, empty);
        queue.queued_bytes += bytes.len();
        queue.chunks.push_back(Chunk { bytes, lines, counters });
        drop(queue);
        self.changed.notify_all();
    }

    /// Logs how many lines were dropped, at most once a second.
    pub(crate) fn report_drops(&self, tag: WorkerTag, now_ms: u64) {
        if let Some(warning) = self.shared.take_warning(now_ms) {
            log::warn!("{tag} {warning}");
        }
    }

    /// Waits until all lines are written, up to `timeout`. Returns whether they are.
    pub(crate) fn wait_until_written(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut queue = self.lock();
        while queue.is_writing || !queue.chunks.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Starts the thread if it does not run. Returns whether it runs.
    fn ensure_thread(self: &Arc<AccessLogWriter>, queue: &mut Queue) -> bool {
        if queue.has_thread {
            return true;
        }
        let writer = Arc::clone(self);
        let thread = std::thread::Builder::new().name("access log".to_string());
        let started = thread.stack_size(STACK_BYTES).spawn(move || writer.run());
        queue.has_thread = started.is_ok();
        queue.has_thread
    }

    /// Writes chunks for the life of the process.
    fn run(&self) {
        let mut current: Option<(Arc<OwnedFd>, LineOutput)> = None;
        loop {
            let mut chunk = self.next_chunk();
            self.write_chunk(&mut current, &chunk);
            chunk.bytes.clear();
            let mut queue = self.lock();
            queue.is_writing = false;
            queue.queued_bytes = queue.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
            if queue.spare.len() < MAX_SPARE_BUFFERS {
                queue.spare.push(chunk.bytes);
            }
            if queue.chunks.is_empty() {
                self.changed.notify_all();
            }
        }
    }

    fn next_chunk(&self) -> Chunk {
        let mut queue = self.lock();
        loop {
            if let Some(chunk) = queue.chunks.pop_front() {
                queue.is_writing = true;
                return chunk;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a chunk, waiting as long as a reader is slow. What cannot be written is dropped.
    fn write_chunk(&self, current: &mut Option<(Arc<OwnedFd>, LineOutput)>, chunk: &Chunk) {
        let (mut done, mut written, mut resolved) = (0, 0, 0);
        let error = loop {
            let file = Arc::clone(&self.file.lock().unwrap_or_else(PoisonError::into_inner));
            if !current.as_ref().is_some_and(|(open, _)| Arc::ptr_eq(open, &file)) {
                *current = match LineOutput::new(file.as_fd(), self.shared.has_torn_line) {
                    Ok(output) => Some((Arc::clone(&file), output)),
                    Err(e) => break Some(e),
                };
            }
            let Some((_, output)) = current else { break None };
            let outcome = output.write(file.as_fd(), &chunk.bytes[done..], chunk.lines - resolved);
            done += outcome.done;
            written += outcome.written;
            resolved += outcome.written + outcome.lost;
            chunk.counters.add_written(outcome.written);
            match outcome.error {
                None => break None,
                Some(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // An error shows in the next write.
                    let _ = wait_until_writable(file.as_fd(), REOPEN_CHECK_INTERVAL);
                }
                Some(e) => break Some(e),
            }
        };
        if written < chunk.lines {
            self.record_drops(chunk.lines - written, error.as_ref(), chunk.counters);
        }
        debug_assert_eq!(count_lines(&chunk.bytes), chunk.lines);
    }

    fn record_drops(&self, lines: u64, error: Option<&io::Error>, counters: LogLineCounters) {
        counters.add_dropped(lines);
        self.shared.record_drops(lines, error);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics with the lock held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn start(file: impl AsFd) -> (Arc<AccessLogWriter>, LogLineCounters) {
        let file = file.as_fd().try_clone_to_owned().expect("descriptor");
        (AccessLogWriter::new(file, SharedLogState::create()), LogLineCounters::for_test())
    }

    #[test]
    fn handed_over_lines_are_written_and_counted() {
        let mut file = tempfile::tempfile().expect("file");
        let (writer, counters) = start(&file);
        let mut buffer = Vec::new();
        for _ in 0..100 {
            buffer.extend_from_slice(b"one\ntwo\n");
            writer.push(&mut buffer, 2, counters);
            assert!(buffer.is_empty());
        }
        assert!(writer.wait_until_written(Duration::from_secs(10)));
        let mut text = String::new();
        file.rewind().expect("rewind");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "one\ntwo\n".repeat(100));
        assert_eq!(counters.read(), (200, 0, 0));
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_never_blocks_who_hands_them_over() {
        let (reader, file) = io::pipe().expect("pipe");
        let (writer, counters) = start(&file);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let pushed = 2 * MAX_QUEUED_BYTES as u64 / 1024 / 16;
        for _ in 0..pushed {
            let mut lines = line.repeat(16);
            writer.push(&mut lines, 16, counters);
        }
        assert!(!writer.wait_until_written(Duration::from_millis(1)));
        let (_, dropped, _) = counters.read();
        assert!(dropped > 0, "beyond the bound");
        assert!(writer.shared.take_warning(1).is_some_and(|text| text.contains("too slowly")));
        assert_eq!(writer.shared.take_warning(2), None, "once a second");
        // The thread goes over to a file that a rotation opens, even while it waits for the reader.
        let rotated = tempfile::tempfile().expect("file");
        writer.set_file(rotated.try_clone().expect("descriptor").into());
        assert!(writer.wait_until_written(Duration::from_secs(10)));
        let (written, dropped, _) = counters.read();
        assert_eq!(written + dropped, pushed * 16);
        drop(reader);
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_reported() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let (writer, counters) = start(&full);
        writer.push(&mut b"lost\n".to_vec(), 1, counters);
        assert!(writer.wait_until_written(Duration::from_secs(10)));
        assert_eq!(counters.read(), (0, 1, 0));
        let warning = writer.shared.take_warning(1).expect("a warning");
        assert!(warning.contains("No space left"), "{warning}");
    }
}
