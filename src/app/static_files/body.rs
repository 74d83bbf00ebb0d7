//! Response bodies of the file server: segments in memory, and segments of files that are read while sending.

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
use super::root_dir::DiskWait;

/// Size of a file read in bytes.
const READ_SIZE: usize = 256 * 1024;
/// Size of a file read once all bodies of the process buffer [`MAX_FULL_READ_BYTES`]; bounds the memory per slow client.
const REDUCED_READ_SIZE: usize = 16 * 1024;
/// Buffered bytes per process beyond which new buffers have the reduced size.
const MAX_FULL_READ_BYTES: usize = 32 << 20;
/// Maximum number of free buffers to keep: allocating one costs more than filling it.
const MAX_FREE_BUFFERS: usize = 8;

/// Bytes in buffers of all bodies of this process.
static BUFFERED_BYTES: AtomicUsize = AtomicUsize::new(0);
/// Free buffers of [`READ_SIZE`].
static FREE_BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Body of a file server response.
pub(crate) enum FileBody {
    /// The whole body in memory; empty once sent.
    Memory(Bytes),
    /// Segments that are read while sending. Boxed because it is large and rare.
    Stream(Box<SegmentStream>),
}

/// Part of a body: bytes in memory or a range of a file.
pub(super) enum BodySegment {
    Memory(Bytes),
    File { file: Arc<OpenFile>, offset: u64, length: u64 },
}

impl BodySegment {
    fn length(&self) -> u64 {
        match self {
            BodySegment::Memory(bytes) => bytes.len() as u64,
            BodySegment::File { length, .. } => *length,
        }
    }
}

/// Sends segments in order.
pub(crate) struct SegmentStream {
    segments: VecDeque<BodySegment>,
    /// Bytes not yet sent.
    left: u64,
    /// A read in progress on the blocking pool.
    reading: Option<JoinHandle<(ReadBuffer, Result<usize, Errno>)>>,
}

impl FileBody {
    pub(super) fn new(segments: VecDeque<BodySegment>) -> FileBody {
        let left = segments.iter().map(BodySegment::length).sum();
        FileBody::Stream(Box::new(SegmentStream { segments, left, reading: None }))
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
            FileBody::Stream(stream) => stream.poll_chunk(cx).map_ok(Frame::data),
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

impl SegmentStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self.segments.front_mut() {
                None => return Poll::Ready(None),
                Some(BodySegment::File { length: 0, .. }) => {
                    self.segments.pop_front();
                }
                Some(BodySegment::Memory(bytes)) => {
                    let bytes = std::mem::take(bytes);
                    self.segments.pop_front();
                    self.left -= bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(BodySegment::File { file, offset, length }) => {
                    let (buffer, outcome) = match &mut self.reading {
                        Some(reading) => match ready!(Pin::new(reading).poll(cx)) {
                            Ok(read) => read,
                            Err(e) => return Poll::Ready(Some(Err(io::Error::other(e)))),
                        },
                        None => {
                            let mut buffer = ReadBuffer::take(*length);
                            let outcome = file.read_at(buffer.unfilled(), *offset, DiskWait::Never);
                            (buffer, outcome)
                        }
                    };
                    self.reading = None;
                    match outcome {
                        Err(Errno::AGAIN) => {
                            let (file, offset) = (Arc::clone(file), *offset);
                            self.reading = Some(read_in_pool(file, buffer, offset));
                        }
                        // The promised `Content-Length` can no longer be met: only closing tells the client.
                        Ok(0) => return Poll::Ready(Some(Err(truncated_file_error()))),
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
    mut buffer: ReadBuffer,
    offset: u64,
) -> JoinHandle<(ReadBuffer, Result<usize, Errno>)> {
    tokio::task::spawn_blocking(move || {
        let outcome = file.read_at(buffer.unfilled(), offset, DiskWait::Allowed);
        (buffer, outcome)
    })
}

fn truncated_file_error() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent")
}

/// Buffer for a file read; returns to the free list when sent.
struct ReadBuffer {
    memory: Vec<u8>,
    /// Number of valid bytes, at the beginning of `memory`.
    length: usize,
}

impl ReadBuffer {
    /// Returns a buffer for the next piece of a segment with `left` more bytes.
    fn take(left: u64) -> ReadBuffer {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let is_reduced = left <= REDUCED_READ_SIZE
            || BUFFERED_BYTES.load(Ordering::Relaxed) + READ_SIZE > MAX_FULL_READ_BYTES;
        let memory = match is_reduced {
            true => vec![0; left.min(REDUCED_READ_SIZE)],
            false => free_buffers().pop().unwrap_or_else(|| vec![0; READ_SIZE]),
        };
        BUFFERED_BYTES.fetch_add(memory.len(), Ordering::Relaxed);
        ReadBuffer { length: left.min(memory.len()), memory }
    }

    /// Returns the part to fill.
    fn unfilled(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }

    /// Returns the first `n` bytes for sending.
    fn into_bytes(mut self, n: usize) -> Bytes {
        self.length = n.min(self.length);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        BUFFERED_BYTES.fetch_sub(self.memory.len(), Ordering::Relaxed);
        let mut free = free_buffers();
        if self.memory.len() == READ_SIZE && free.len() < MAX_FREE_BUFFERS {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

fn free_buffers() -> MutexGuard<'static, Vec<Vec<u8>>> {
    FREE_BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_shrink_when_many_bytes_are_buffered() {
        const MANY: usize = 400;
        let held: Vec<ReadBuffer> = (0..MANY).map(|_| ReadBuffer::take(1 << 30)).collect();
        let sum: usize = held.iter().map(|buffer| buffer.memory.len()).sum();
        assert!(sum <= MAX_FULL_READ_BYTES + MANY * REDUCED_READ_SIZE, "{sum}");
        assert_eq!(held[MANY - 1].as_ref().len(), REDUCED_READ_SIZE);
        drop(held);
        assert!(free_buffers().len() <= MAX_FREE_BUFFERS);
        assert_eq!(ReadBuffer::take(1 << 30).as_ref().len(), READ_SIZE);
    }

    #[test]
    fn buffers_are_bounded_by_the_segment_and_by_the_bytes_read() {
        for left in [1, 1000, REDUCED_READ_SIZE as u64 + 1] {
            let mut buffer = ReadBuffer::take(left);
            assert_eq!(buffer.unfilled().len() as u64, left);
            buffer.unfilled()[0] = 7;
            assert_eq!(buffer.into_bytes(1), [7][..]);
        }
    }
}
