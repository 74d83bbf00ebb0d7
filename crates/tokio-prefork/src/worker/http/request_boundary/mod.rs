//! Finds where each HTTP/1 request ends, and rejects malformed ones before hyper sees them.
//!
//! hyper's parser accepts more than RFC 9112 allows, reads ahead into the next request, and drops finished responses
//! when those bytes are malformed. So hyper gets one validated message at a time: a complete head, then its body, and
//! the end of a chunked body in a step of its own. The worker itself responds to a malformed request, after the
//! responses to the requests before it ([`RequestRejection::response`]).

mod chunked_body;
mod http2_request;
mod rejection;
mod request_head;
mod request_target;
mod whole_head;

pub(super) use http2_request::check_http2_request;
pub(super) use rejection::RequestRejection;

use chunked_body::{ChunkProgress, ChunkedBodyParser};
use request_head::{BodyFraming, RequestHead, RequestHeadParser};
use whole_head::parse_whole_head;

/// Follows the requests in the bytes of one HTTP/1 connection, and validates them.
pub(super) struct RequestBoundaryScanner {
    position: BoundaryPosition,
    /// The largest accepted head, in bytes.
    max_head_size: usize,
}

enum BoundaryPosition {
    /// A head comes next. The verdict on a complete or malformed head is kept until the head is forwarded.
    Head { parser: RequestHeadParser, verdict: Option<Result<RequestHead, RequestRejection>> },
    /// `left` bytes of a body with a `Content-Length` come next.
    SizedBody { left: u64, is_last: bool },
    /// A chunked body comes next.
    ChunkedBody { body: ChunkedBodyParser, is_last: bool },
    /// The last request of the connection was forwarded completely: nothing behind it is read.
    End,
}

/// What to do with the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BoundaryProgress {
    /// Forward this many bytes to hyper, at least one.
    Forward(usize),
    /// Receive more bytes first.
    NeedMore,
}

impl RequestBoundaryScanner {
    pub(super) fn new(max_head_size: usize) -> RequestBoundaryScanner {
        RequestBoundaryScanner { position: BoundaryPosition::new_head(), max_head_size }
    }

    /// Whether the last request was forwarded completely.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.position, BoundaryPosition::Head { .. } | BoundaryPosition::End)
    }

    /// Whether no request can follow the last one that was forwarded.
    pub(super) fn is_last(&self) -> bool {
        match &self.position {
            BoundaryPosition::Head { .. } => false,
            BoundaryPosition::SizedBody { is_last, .. }
            | BoundaryPosition::ChunkedBody { is_last, .. } => *is_last,
            BoundaryPosition::End => true,
        }
    }

    /// Whether `input`, the bytes not yet forwarded, starts with a complete, valid head.
    pub(super) fn has_next_head(&mut self, input: &[u8]) -> bool {
        matches!(self.parse_head(input), Some(Ok(_)))
    }

    /// Parses on in the head at the start of `input`. `None` if it is incomplete, or no head comes next.
    fn parse_head(&mut self, input: &[u8]) -> Option<Result<RequestHead, RequestRejection>> {
        let BoundaryPosition::Head { parser, verdict } = &mut self.position else { return None };
        if verdict.is_none() {
            // The parser must not run again after an error: it is past the malformed line.
            *verdict = parser.advance(input, self.max_head_size).transpose();
        }
        *verdict
    }

    /// Forwards `input` if it is a complete and valid head, nothing follows it, and another request may follow later. If this
    /// returns false, call `advance`.
    ///
    /// Most requests are such a head, and this costs less.
    pub(super) fn forward_lone_head(&mut self, input: &[u8]) -> bool {
        let BoundaryPosition::Head { parser, verdict: verdict @ None } = &mut self.position else {
            return false;
        };
        if !parser.is_at_start() {
            return false;
        }
        match parse_whole_head(input, self.max_head_size) {
            // The position stays: another head comes next.
            Some(RequestHead { length, body: BodyFraming::Length(0), is_last: false })
                if length == input.len() =>
            {
                true
            }
            // `advance` need not parse it again.
            Some(head) => {
                *verdict = Some(Ok(head));
                false
            }
            None => false,
        }
    }

    /// Validates `input`, which is everything received and not yet forwarded. Bytes that it returns count as forwarded.
    ///
    /// If the body behind a head is malformed, the whole request is rejected before hyper sees its head.
    pub(super) fn advance(&mut self, input: &[u8]) -> Result<BoundaryProgress, RequestRejection> {
        if input.is_empty() {
            return Ok(BoundaryProgress::NeedMore);
        }
        match &mut self.position {
            BoundaryPosition::End => Ok(BoundaryProgress::NeedMore),
            BoundaryPosition::Head { .. } => match self.parse_head(input) {
                None => Ok(BoundaryProgress::NeedMore),
                Some(head) => {
                    let head = head?;
                    self.forward_head(head, &input[head.length..]).map(BoundaryProgress::Forward)
                }
            },
            BoundaryPosition::SizedBody { left, is_last } => {
                let (left, is_last) = (*left, *is_last);
                Ok(BoundaryProgress::Forward(self.forward_sized_body(left, is_last, input.len())))
            }
            BoundaryPosition::ChunkedBody { body, is_last } => match body.advance(input)? {
                ChunkProgress::Valid(length) if length > 0 => Ok(BoundaryProgress::Forward(length)),
                ChunkProgress::Valid(_) | ChunkProgress::Incomplete => {
                    Ok(BoundaryProgress::NeedMore)
                }
                ChunkProgress::Last(length) => {
                    self.position = BoundaryPosition::after_request(*is_last);
                    Ok(BoundaryProgress::Forward(length))
                }
            },
        }
    }

    /// Forwards the available part of the `left` body bytes. Returns the number of bytes.
    fn forward_sized_body(&mut self, left: u64, is_last: bool, available: usize) -> usize {
        let length = left.min(available as u64);
        self.position = match left - length {
            0 => BoundaryPosition::after_request(is_last),
            left => BoundaryPosition::SizedBody { left, is_last },
        };
        length as usize
    }

    /// Forwards a head with the available part of its body. Returns the number of bytes.
    fn forward_head(
        &mut self,
        head: RequestHead,
        behind: &[u8],
    ) -> Result<usize, RequestRejection> {
        let is_last = head.is_last;
        let body_length = match head.body {
            BodyFraming::Length(left) => self.forward_sized_body(left, is_last, behind.len()),
            BodyFraming::Chunked => {
                let mut body = ChunkedBodyParser::new();
                let length = forward_chunks(&mut body, behind)?;
                self.position = BoundaryPosition::ChunkedBody { body, is_last };
                length
            }
        };
        Ok(head.length + body_length)
    }
}

/// Forwards the valid chunks before the last one, and validates the last one, too. Returns the number of bytes.
fn forward_chunks(body: &mut ChunkedBodyParser, input: &[u8]) -> Result<usize, RequestRejection> {
    let mut forwarded = 0;
    while let ChunkProgress::Valid(length @ 1..) = body.advance(&input[forwarded..])? {
        forwarded += length;
    }
    Ok(forwarded)
}

impl BoundaryPosition {
    fn new_head() -> BoundaryPosition {
        BoundaryPosition::Head { parser: RequestHeadParser::default(), verdict: None }
    }

    fn after_request(is_last: bool) -> BoundaryPosition {
        if is_last { BoundaryPosition::End } else { BoundaryPosition::new_head() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GET_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED_HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// Returns the number of bytes forwarded in each step, and whether the last request is complete or why it is
    /// rejected.
    fn forward_all(input: &[u8]) -> (Vec<usize>, Result<bool, RequestRejection>) {
        let mut boundary = RequestBoundaryScanner::new(1024);
        let (mut forwarded, mut at) = (Vec::new(), 0);
        loop {
            match boundary.advance(&input[at..]) {
                Ok(BoundaryProgress::Forward(length)) => {
                    forwarded.push(length);
                    at += length;
                }
                Ok(BoundaryProgress::NeedMore) => return (forwarded, Ok(boundary.is_complete())),
                Err(rejection) => return (forwarded, Err(rejection)),
            }
        }
    }

    #[test]
    fn requests_are_forwarded_one_by_one_with_their_bodies() {
        let sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        let input = [GET_REQUEST, sized, GET_REQUEST].concat();
        assert_eq!(
            forward_all(&input),
            (vec![GET_REQUEST.len(), sized.len(), GET_REQUEST.len()], Ok(true))
        );
        assert_eq!(forward_all(&sized[..sized.len() - 1]), (vec![sized.len() - 1], Ok(false)));
    }

    #[test]
    fn end_of_a_chunked_body_is_forwarded_in_its_own_step() {
        let (data, end) = (b"5\r\nhello\r\n", b"0\r\n\r\n");
        let input = [CHUNKED_HEAD, data, end, GET_REQUEST].concat();
        let expected = vec![CHUNKED_HEAD.len() + data.len(), end.len(), GET_REQUEST.len()];
        assert_eq!(forward_all(&input), (expected, Ok(true)));
    }

    #[test]
    fn request_with_a_malformed_body_is_rejected_before_its_head_is_forwarded() {
        let input = [CHUNKED_HEAD, b"5\r\nhello!"].concat();
        assert_eq!(forward_all(&input), (vec![], Err(RequestRejection::ChunkTooLong)));
        let input = [CHUNKED_HEAD, b"5\r\nhello\r\n0 \r\n\r\n"].concat();
        assert_eq!(forward_all(&input), (vec![], Err(RequestRejection::ChunkExtension)));
    }

    #[test]
    fn body_that_looks_like_a_head_is_not_parsed_as_one() {
        let both = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let size = format!("{:x}\r\n", both.len());
        let input = [CHUNKED_HEAD, size.as_bytes(), both, b"\r\n0\r\n\r\n", GET_REQUEST].concat();
        assert_eq!(forward_all(&input).1, Ok(true));
    }

    #[test]
    fn bytes_behind_the_last_request_are_not_forwarded() {
        let last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(forward_all(&[last, GET_REQUEST].concat()), (vec![last.len()], Ok(true)));
    }

    #[test]
    fn malformed_head_is_rejected_again_when_parsed_again() {
        let mut boundary = RequestBoundaryScanner::new(1024);
        let input = [b"BAD\r\n", GET_REQUEST].concat();
        assert!(!boundary.has_next_head(&input));
        assert!(!boundary.has_next_head(&input));
        assert_eq!(boundary.advance(&input), Err(RequestRejection::RequestLine));
    }

    proptest! {
        #[test]
        fn forwarded_bytes_do_not_depend_on_read_sizes(sizes in prop::collection::vec(0usize..12, 0..5), piece in 1usize..40) {
            let chunks: Vec<u8> = sizes
                .iter()
                .filter(|size| **size > 0)
                .flat_map(|size| format!("{size:x}\r\n{}\r\n", "x".repeat(*size)).into_bytes())
                .collect();
            let input = [GET_REQUEST, CHUNKED_HEAD, &chunks, b"0\r\na: b\r\n\r\n", GET_REQUEST].concat();
            let mut boundary = RequestBoundaryScanner::new(1024);
            let (mut held, mut forwarded) = (Vec::new(), 0);
            for part in input.chunks(piece) {
                held.extend_from_slice(part);
                while let BoundaryProgress::Forward(length) = boundary.advance(&held).expect("valid") {
                    forwarded += length;
                    held.drain(..length);
                }
            }
            prop_assert_eq!(forwarded, input.len());
            prop_assert!(boundary.is_complete());
        }
    }
}
