//! An application whose response bodies consist of chunks of given sizes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HeaderValue, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Result, Worker};

use super::ProgramArguments;

/// Answers `/HOW/SIZE,SIZE` with a chunk for each size. HOW is `known` or `unknown` for the length of the body in advance, `encoded`
/// for a known length with `Transfer-Encoding`, `long` for a last chunk that is five bytes longer than announced.
pub(super) fn response_chunks(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        Ok(service_fn(|request| async move { Ok::<_, Infallible>(respond(&request)) }))
    })
}

fn respond(request: &Request<Incoming>) -> Response<ChunkedBody> {
    let mut parts = request.uri().path().split('/').skip(1);
    let how = parts.next().unwrap_or_default();
    let sizes = parts.next().unwrap_or_default().split(',');
    let sizes: Vec<usize> = sizes.filter_map(|size| size.parse().ok()).rev().collect();
    let total = sizes.iter().sum::<usize>() as u64;
    let announced = match how {
        "unknown" => None,
        "long" => Some(total - 5),
        _ => Some(total),
    };
    let mut response = Response::new(ChunkedBody { sizes, sent: 0, announced });
    if how == "encoded" {
        response.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    response
}

struct ChunkedBody {
    /// The sizes of the chunks that are left, the next one at the end.
    sizes: Vec<usize>,
    sent: usize,
    announced: Option<u64>,
}

impl Body for ChunkedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let Some(size) = self.sizes.pop() else { return Poll::Ready(None) };
        let start = self.sent;
        self.sent += size;
        let bytes: Vec<u8> = (start..self.sent).map(|at| (at % 251) as u8).collect();
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.sizes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
