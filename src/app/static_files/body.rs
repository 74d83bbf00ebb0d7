//! Bodies of responses: pieces of memory and of files, the latter read while they are sent.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::open_file::OpenFile;
use super::root_dir::Wait;

/// Bytes of a file that are read at a time.
const READ_SIZE: usize = 256 * 1024;
/// The same once all bodies of the process together hold [`MAX_FULL_READ_BYTES`]: slow clients cost no more than this each.
const REDUCED_READ_SIZE: usize = 16 * 1024;
/// Bytes in buffers in one process, beyond which new ones are small.
const MAX_FULL_READ_BYTES: usize = 32 << 20;
/// Buffers of [`READ_SIZE`] that are kept for the next use: making one costs more than filling it.
const MAX_FREE_BUFFERS: usize = 8;

/// Bytes in buffers of all bodies of this process.
static BUFFERED: AtomicUsize = AtomicUsize::new(0);
/// Free buffers of [`READ_SIZE`].
static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// The body of a response of the file server.
pub(crate) enum FileBody {
    /// All of it is in memory; empty once it was sent.
    Memory(Bytes),
    /// Read while it is sent. Boxed, as it is far larger and seldom.
    Stream(Box<Stream>),
}

/// A piece of a body.
pub(super) enum Segment {
    Memory(Bytes),
    File { file: Arc<OpenFile>, offset: u64, length: u64 },
}

impl Segment {
    fn length(&self) -> u64 {
        match self {
            Segment::Memory(bytes) => bytes.len() as u64,
            Segment::File { length, .. } => *length,
        }
    }
}

/// Segments that are sent one after the other.
pub(crate) struct Stream {
    segments: VecDeque<Segment>,
    /// Bytes that were not sent yet.
    left: u64,
    /// A read from the disk that is under way in the blocking pool.
    reading: Option<JoinHandle<(Buffer, Result<usize, Errno>)>>,
}

impl FileBody {
    pub(super) fn new(segments: VecDeque<Segment>) -> FileBody {
        let left = segments.iter().map(Segment::length).sum();
        FileBody::Stream(Box::new(Stream { segments, left, reading: None }))
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            FileBody::Memory(bytes) if bytes.is_empty() => Poll::Ready(None),
            FileBody::Memory(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            FileBody::Stream(stream) => stream.poll_piece(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            FileBody::Memory(bytes) => bytes.len() as u64,
            FileBody::Stream(stream) => stream.left,
        })
    }
}

impl Stream {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self.segments.front_mut() {
                None => return Poll::Ready(None),
                Some(Segment::File { length: 0, .. }) => {
                    self.segments.pop_front();
                }
                Some(Segment::Memory(bytes)) => {
                    let bytes = std::mem::take(bytes);
                    self.segments.pop_front();
                    self.left -= bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Segment::File { file, offset, length }) => {
                    let (buffer, outcome) = match &mut self.reading {
                        Some(reading) => match ready!(Pin::new(reading).poll(cx)) {
                            Ok(read) => read,
                            Err(e) => return Poll::Ready(Some(Err(io::Error::other(e)))),
                        },
                        None => {
                            let mut buffer = Buffer::take(*length);
                            let outcome = file.read_at(buffer.room(), *offset, Wait::Never);
                            (buffer, outcome)
                        }
                    };
                    self.reading = None;
                    match outcome {
                        Err(Errno::AGAIN) => {
                            let (file, offset) = (Arc::clone(file), *offset);
                            self.reading = Some(read_in_pool(file, buffer, offset));
                        }
                        // The length was promised: only a close can tell the client.
                        Ok(0) => return Poll::Ready(Some(Err(shortened()))),
                        Err(e) => return Poll::Ready(Some(Err(e.into()))),
                        Ok(n) => {
                            *offset += n as u64;
                            *length -= n as u64;
                            self.left -= n as u64;
                            return Poll::Ready(Some(Ok(buffer.into_bytes(n))));
                        }
                    }
                }
            }
        }
    }
}

fn read_in_pool(
    file: Arc<OpenFile>,
    mut buffer: Buffer,
    offset: u64,
) -> JoinHandle<(Buffer, Result<usize, Errno>)> {
    tokio::task::spawn_blocking(move || {
        let outcome = file.read_at(buffer.room(), offset, Wait::Allowed);
        (buffer, outcome)
    })
}

fn shortened() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent")
}

/// A piece of a file. It goes back to the free ones when it was sent.
struct Buffer {
    memory: Vec<u8>,
    /// Bytes of the piece, at the beginning of `memory`.
    length: usize,
}

impl Buffer {
    /// A buffer for the next piece of a segment that has `left` more bytes.
    fn take(left: u64) -> Buffer {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let is_reduced = left <= REDUCED_READ_SIZE
            || BUFFERED.load(Ordering::Relaxed) + READ_SIZE > MAX_FULL_READ_BYTES;
        let memory = match is_reduced {
            true => vec![0; left.min(REDUCED_READ_SIZE)],
            false => free_buffers().pop().unwrap_or_else(|| vec![0; READ_SIZE]),
        };
        BUFFERED.fetch_add(memory.len(), Ordering::Relaxed);
        Buffer { length: left.min(memory.len()), memory }
    }

    /// What is to be filled.
    fn room(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }

    /// The first `n` bytes, to be sent.
    fn into_bytes(mut self, n: usize) -> Bytes {
        self.length = n.min(self.length);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        BUFFERED.fetch_sub(self.memory.len(), Ordering::Relaxed);
        let mut free = free_buffers();
        if self.memory.len() == READ_SIZE && free.len() < MAX_FREE_BUFFERS {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

fn free_buffers() -> MutexGuard<'static, Vec<Vec<u8>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_small_once_all_together_hold_much() {
        const MANY: usize = 400;
        let held: Vec<Buffer> = (0..MANY).map(|_| Buffer::take(1 << 30)).collect();
        let sum: usize = held.iter().map(|buffer| buffer.memory.len()).sum();
        assert!(sum <= MAX_FULL_READ_BYTES + MANY * REDUCED_READ_SIZE, "{sum}");
        assert_eq!(held[MANY - 1].as_ref().len(), REDUCED_READ_SIZE);
        drop(held);
        assert!(free_buffers().len() <= MAX_FREE_BUFFERS);
        assert_eq!(Buffer::take(1 << 30).as_ref().len(), READ_SIZE);
    }

    #[test]
    fn a_buffer_has_no_more_than_is_left_and_sends_no_more_than_was_read() {
        for left in [1, 1000, REDUCED_READ_SIZE as u64 + 1] {
            let mut buffer = Buffer::take(left);
            assert_eq!(buffer.room().len() as u64, left);
            buffer.room()[0] = 7;
            assert_eq!(buffer.into_bytes(1), [7][..]);
        }
    }
}
