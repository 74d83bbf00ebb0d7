//! Bodies of responses: pieces of memory and of files, the latter read while they are sent.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::open_file::OpenFile;
use super::root_dir::Wait;

/// Bytes of a file that are read at a time.
const READ_SIZE: usize = 256 * 1024;
/// The same once all bodies of the process together hold [`BUFFERED_BYTES`]: slow clients cost no more than this each.
const REDUCED_READ_SIZE: usize = 16 * 1024;
/// Bytes in buffers in one process, beyond which new ones are small.
const BUFFERED_BYTES: usize = 32 << 20;

/// Bytes in buffers of all bodies of this process.
static BUFFERED: AtomicUsize = AtomicUsize::new(0);

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
    buffer: Buffer,
    /// A read from the disk that is under way in the blocking pool.
    reading: Option<JoinHandle<(BytesMut, Result<usize, Errno>)>>,
}

impl FileBody {
    pub(super) fn new(segments: VecDeque<Segment>) -> FileBody {
        let left = segments.iter().map(Segment::length).sum();
        let buffer = Buffer { last: None, size: 0 };
        FileBody::Stream(Box::new(Stream { segments, left, buffer, reading: None }))
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
                            let mut buffer = self.buffer.take(*length);
                            let outcome = file.read_at(&mut buffer, *offset, Wait::Never);
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
                            return Poll::Ready(Some(Ok(self.buffer.give(buffer, n))));
                        }
                    }
                }
            }
        }
    }
}

fn read_in_pool(
    file: Arc<OpenFile>,
    mut buffer: BytesMut,
    offset: u64,
) -> JoinHandle<(BytesMut, Result<usize, Errno>)> {
    tokio::task::spawn_blocking(move || {
        let outcome = file.read_at(&mut buffer, offset, Wait::Allowed);
        (buffer, outcome)
    })
}

fn shortened() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent")
}

/// The buffer of one body. It is used again when the piece before was sent, so that it is cleared only once.
struct Buffer {
    last: Option<Bytes>,
    /// Bytes that are counted for it; 0 before it is used.
    size: usize,
}

impl Buffer {
    /// A buffer for the next piece of a segment that has `left` more bytes.
    fn take(&mut self, left: u64) -> BytesMut {
        if self.size == 0 {
            let all = BUFFERED.fetch_add(READ_SIZE, Ordering::Relaxed);
            self.size = READ_SIZE;
            if all > BUFFERED_BYTES {
                BUFFERED.fetch_sub(READ_SIZE - REDUCED_READ_SIZE, Ordering::Relaxed);
                self.size = REDUCED_READ_SIZE;
            }
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.size);
        let mut buffer = match self.last.take().map(Bytes::try_into_mut) {
            Some(Ok(buffer)) => buffer,
            // It is still being sent, or there was none.
            Some(Err(_)) | None => BytesMut::new(),
        };
        buffer.resize(length, 0);
        buffer
    }

    /// The first `n` bytes of `buffer`, to be sent.
    fn give(&mut self, mut buffer: BytesMut, n: usize) -> Bytes {
        buffer.truncate(n);
        let piece = buffer.freeze();
        self.last = Some(piece.clone());
        piece
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        BUFFERED.fetch_sub(self.size, Ordering::Relaxed);
    }
}
