//! Where one HTTP/1 request ends and the next begins, and whether what lies between is one at all.
//!
//! hyper's parser accepts more than RFC 9112 does, reads ahead into the next request, and loses finished answers when
//! what it read ahead is malformed. So it is shown one message at a time, and only what was checked here: a whole head,
//! then its body, and the end of a chunked body in a step of its own. What is malformed is answered by us, in its turn
//! ([`Rejection::response`]).

mod chunked_body;
mod http2_request;
mod rejection;
mod request_head;
mod request_target;

pub(super) use http2_request::check_http2_request;
pub(super) use rejection::Rejection;

use chunked_body::{Chunk, ChunkedBody};
use request_head::{BodyFraming, Head, HeadParser};

/// The place of a connection in its stream of requests.
pub(super) struct RequestBoundary {
    position: Position,
    /// Bytes of a head.
    max_head_size: usize,
}

enum Position {
    /// A head comes next. Once it is complete or refused, that is kept until it is passed on.
    Head {
        parser: HeadParser,
        verdict: Option<Result<Head, Rejection>>,
    },
    /// This many bytes of a body.
    Length {
        left: u64,
        is_last: bool,
    },
    Chunks {
        body: ChunkedBody,
        is_last: bool,
    },
    /// The last request of the connection was passed on entirely: nothing behind it is read.
    End,
}

/// What can be done with the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// This many bytes, at least one, are to be passed on.
    Pass(usize),
    /// More has to come first.
    More,
}

impl RequestBoundary {
    pub(super) fn new(max_head_size: usize) -> RequestBoundary {
        RequestBoundary { position: Position::head(), max_head_size }
    }

    /// Whether the last request that was passed on is complete.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.position, Position::Head { .. } | Position::End)
    }

    /// Whether no request can follow the last one that was passed on.
    pub(super) fn is_last(&self) -> bool {
        match &self.position {
            Position::Head { .. } => false,
            Position::Length { is_last, .. } | Position::Chunks { is_last, .. } => *is_last,
            Position::End => true,
        }
    }

    /// Whether the bytes in `input`, which come next, are a whole valid head.
    pub(super) fn has_next_head(&mut self, input: &[u8]) -> bool {
        matches!(self.read_head(input), Some(Ok(_)))
    }

    /// Reads on in the head that `input` begins with; `None` if it is not complete, or no head is due.
    fn read_head(&mut self, input: &[u8]) -> Option<Result<Head, Rejection>> {
        let Position::Head { parser, verdict } = &mut self.position else { return None };
        if verdict.is_none() {
            // Not asked again after an error: the parser has gone past what was wrong.
            *verdict = parser.advance(input, self.max_head_size).transpose();
        }
        *verdict
    }

    /// Goes on with `input`: everything that was received and not passed on. What it says to pass on counts as passed.
    /// Where a head is refused, so is what was read of its body, before anybody has seen either.
    pub(super) fn advance(&mut self, input: &[u8]) -> Result<Progress, Rejection> {
        if input.is_empty() {
            return Ok(Progress::More);
        }
        match &mut self.position {
            Position::End => Ok(Progress::More),
            Position::Head { .. } => match self.read_head(input) {
                None => Ok(Progress::More),
                Some(head) => {
                    let head = head?;
                    self.pass_head(head, &input[head.length..]).map(Progress::Pass)
                }
            },
            Position::Length { left, is_last } => {
                let (left, is_last) = (*left, *is_last);
                Ok(Progress::Pass(self.pass_length(left, is_last, input.len())))
            }
            Position::Chunks { body, is_last } => match body.advance(input)? {
                Chunk::Valid(length) if length > 0 => Ok(Progress::Pass(length)),
                Chunk::Valid(_) | Chunk::Incomplete => Ok(Progress::More),
                Chunk::Last(length) => {
                    self.position = Position::after(*is_last);
                    Ok(Progress::Pass(length))
                }
            },
        }
    }

    /// Passes on as much as there is of the `left` bytes of a body. Returns how many bytes that are.
    fn pass_length(&mut self, left: u64, is_last: bool, available: usize) -> usize {
        let length = left.min(available as u64);
        self.position = match left - length {
            0 => Position::after(is_last),
            left => Position::Length { left, is_last },
        };
        length as usize
    }

    /// Passes a head on with what is there of its body. Returns how many bytes that are.
    fn pass_head(&mut self, head: Head, behind: &[u8]) -> Result<usize, Rejection> {
        let is_last = head.is_last;
        let body_length = match head.body {
            BodyFraming::Length(left) => self.pass_length(left, is_last, behind.len()),
            BodyFraming::Chunked => {
                let mut body = ChunkedBody::new();
                let length = pass_chunks(&mut body, behind)?;
                self.position = Position::Chunks { body, is_last };
                length
            }
        };
        Ok(head.length + body_length)
    }
}

/// Passes on what is valid before the last chunk, and looks at that, too.
fn pass_chunks(body: &mut ChunkedBody, input: &[u8]) -> Result<usize, Rejection> {
    let mut passed = 0;
    while let Chunk::Valid(length @ 1..) = body.advance(&input[passed..])? {
        passed += length;
    }
    Ok(passed)
}

impl Position {
    fn head() -> Position {
        Position::Head { parser: HeadParser::default(), verdict: None }
    }

    fn after(is_last: bool) -> Position {
        if is_last { Position::End } else { Position::head() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// What is passed on step by step of `input`, and how it ends.
    fn steps(input: &[u8]) -> (Vec<usize>, Result<bool, Rejection>) {
        let mut boundary = RequestBoundary::new(1024);
        let (mut passed, mut at) = (Vec::new(), 0);
        loop {
            match boundary.advance(&input[at..]) {
                Ok(Progress::Pass(length)) => {
                    passed.push(length);
                    at += length;
                }
                Ok(Progress::More) => return (passed, Ok(boundary.is_complete())),
                Err(rejection) => return (passed, Err(rejection)),
            }
        }
    }

    #[test]
    fn requests_are_passed_on_one_by_one_with_their_bodies() {
        let sized = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        let input = [GET, sized, GET].concat();
        assert_eq!(steps(&input), (vec![GET.len(), sized.len(), GET.len()], Ok(true)));
        assert_eq!(steps(&sized[..sized.len() - 1]), (vec![sized.len() - 1], Ok(false)));
    }

    #[test]
    fn the_end_of_a_chunked_body_is_passed_on_only_when_it_is_asked_for() {
        let (data, end) = (b"5\r\nhello\r\n", b"0\r\n\r\n");
        let input = [CHUNKED, data, end, GET].concat();
        let expected = vec![CHUNKED.len() + data.len(), end.len(), GET.len()];
        assert_eq!(steps(&input), (expected, Ok(true)));
    }

    #[test]
    fn a_request_whose_body_is_malformed_is_refused_before_it_is_passed_on() {
        let input = [CHUNKED, b"5\r\nhello!"].concat();
        assert_eq!(steps(&input), (vec![], Err(Rejection::ChunkEnd)));
        let input = [CHUNKED, b"5\r\nhello\r\n0 \r\n\r\n"].concat();
        assert_eq!(steps(&input), (vec![], Err(Rejection::ChunkExtension)));
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_not_read_as_one() {
        let both = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let size = format!("{:x}\r\n", both.len());
        let input = [CHUNKED, size.as_bytes(), both, b"\r\n0\r\n\r\n", GET].concat();
        assert_eq!(steps(&input).1, Ok(true));
    }

    #[test]
    fn nothing_is_passed_on_behind_the_last_request() {
        let last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(steps(&[last, GET].concat()), (vec![last.len()], Ok(true)));
    }

    #[test]
    fn a_malformed_head_is_refused_again_when_it_is_asked_for_again() {
        let mut boundary = RequestBoundary::new(1024);
        let input = [b"BAD\r\n", GET].concat();
        assert!(!boundary.has_next_head(&input));
        assert!(!boundary.has_next_head(&input));
        assert_eq!(boundary.advance(&input), Err(Rejection::RequestLine));
    }

    proptest! {
        /// However the bytes come, the same of them are passed on.
        #[test]
        fn pieces_make_no_difference(sizes in prop::collection::vec(0usize..12, 0..5), piece in 1usize..40) {
            let chunks: Vec<u8> = sizes
                .iter()
                .filter(|size| **size > 0)
                .flat_map(|size| format!("{size:x}\r\n{}\r\n", "x".repeat(*size)).into_bytes())
                .collect();
            let input = [GET, CHUNKED, &chunks, b"0\r\na: b\r\n\r\n", GET].concat();
            let mut boundary = RequestBoundary::new(1024);
            let (mut held, mut passed) = (Vec::new(), 0);
            for part in input.chunks(piece) {
                held.extend_from_slice(part);
                while let Progress::Pass(length) = boundary.advance(&held).expect("valid") {
                    passed += length;
                    held.drain(..length);
                }
            }
            prop_assert_eq!(passed, input.len());
            prop_assert!(boundary.is_complete());
        }
    }
}
