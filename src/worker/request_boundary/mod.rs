//! Where one HTTP/1 request ends and the next begins, and whether what lies between is one at all.
//!
//! hyper's parser accepts more than RFC 9112 does, reads ahead into the next request, and loses finished answers when
//! what it read ahead is malformed. So it is shown one message at a time, and only what was checked here: a whole head,
//! then its body, and the end of a chunked body in a step of its own. What is malformed is answered by us, in its turn
//! ([`Rejection::response`]).

mod chunked;
mod head;
mod rejection;
mod target;

pub(super) use rejection::Rejection;

use chunked::{Chunk, ChunkedBody};
use head::{BodyFraming, Head, HeadParser};

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
