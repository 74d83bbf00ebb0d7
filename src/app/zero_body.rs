//! Response body of `/bytes/{n}`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

static ZERO_CHUNK: [u8; 64 * 1024] = [b'0'; 64 * 1024];

/// Response body of zeros (ASCII `0`) that does not allocate: all chunks share one static buffer.
pub(super) struct ZeroBody {
    remaining: u64,
}

impl ZeroBody {
    pub(super) fn new(length: u64) -> ZeroBody {
        ZeroBody { remaining: length }
    }
}

impl Body for ZeroBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.remaining.min(ZERO_CHUNK.len() as u64);
        if chunk == 0 {
            return Poll::Ready(None);
        }
        self.remaining -= chunk;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZERO_CHUNK[..chunk as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
