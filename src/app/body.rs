//! Bodies of the built-in application.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

static ZEROS: [u8; 64 * 1024] = [b'0'; 64 * 1024];

/// A body of `left` more bytes, made without holding them all in memory: a slow reader costs one piece.
pub(super) struct Repeated {
    left: u64,
}

impl Repeated {
    pub(super) fn new(length: u64) -> Repeated {
        Repeated { left: length }
    }
}

impl Body for Repeated {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.left.min(ZEROS.len() as u64);
        if piece == 0 {
            return Poll::Ready(None);
        }
        self.left -= piece;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..piece as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
