//! Where a request ends: whether a connection stands exactly between two requests.
//!
//! hyper tells nobody when it has read a request's body to its end; a handler may well have answered before. Only
//! a connection whose last request was received entirely may be handed to another worker, or the rest of a body
//! would be taken for the next request. So the bytes are counted, beside hyper, and where that proves nothing
//! the connection stays.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// How a request says where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    /// Where its head ends, in the bytes as they are counted; `None` if that is not known.
    pub(super) head: Option<u64>,
    /// The length of its body; `None` if it comes in chunks.
    pub(super) body: Option<u64>,
}

impl Framing {
    /// Where the request ends, in the bytes as they are counted.
    pub(super) fn end(self) -> Option<u64> {
        self.head?.checked_add(self.body?)
    }
}

/// What is known of the end of a request when its response is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Edge {
    /// It may be that some of it is still to come.
    Unknown = 0,
    /// All of it was received; hyper has understood all of it if it holds no more unread bytes.
    Drained = 1,
    /// All of it was received, and what hyper has not read belongs to the next one.
    Exact = 2,
}

impl Edge {
    /// After a request framed like this, of which so many bytes came, the last eight being `tail`.
    pub(super) fn of(framing: Framing, received: u64, tail: u64) -> Edge {
        match framing.body {
            Some(0) => Edge::Exact,
            // hyper throws away a body that nobody reads in one go, but no further than it has come.
            Some(_) if framing.end().is_some_and(|end| received >= end) => Edge::Exact,
            // Unread chunks it throws away one by one, and gives up after the first.
            None if tail.to_be_bytes().ends_with(b"\r\n0\r\n\r\n") => Edge::Drained,
            Some(_) | None => Edge::Unknown,
        }
    }
}

/// Made once, as making it costs more than a search.
static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

/// The length of the head with which `raw` begins. Empty lines before it count (RFC 9112, section 2.2). A head
/// that ends its lines with a bare LF is not found, or a later end is, which proves nothing too early.
pub(super) fn head_length(raw: &[u8]) -> Option<u64> {
    let blank = raw.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let end = HEAD_END.find(&raw[blank..])?;
    Some((blank + end + 4) as u64)
}

/// The last eight bytes after `bytes` came behind `tail`.
pub(super) fn with_tail(tail: u64, bytes: &[u8]) -> u64 {
    match bytes.last_chunk::<8>() {
        Some(last) => u64::from_be_bytes(*last),
        None => bytes.iter().fold(tail, |tail, b| tail << 8 | u64::from(*b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &[u8] = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n";

    fn after(raw: &[u8], body: u64) -> Edge {
        let framing = Framing { head: head_length(raw), body: Some(body) };
        Edge::of(framing, raw.len() as u64, with_tail(0, raw))
    }

    #[test]
    fn a_request_without_a_body_ends_with_its_head() {
        let none = Framing { head: None, body: Some(0) };
        assert_eq!(Edge::of(none, 0, 0), Edge::Exact);
    }

    #[test]
    fn a_length_is_proved_by_the_last_byte_and_not_before() {
        assert_eq!(after(&[HEAD, b"hell"].concat(), 5), Edge::Unknown);
        assert_eq!(after(&[HEAD, b"hello"].concat(), 5), Edge::Exact);
        assert_eq!(after(&[HEAD, b"helloGET /"].concat(), 5), Edge::Exact);
        assert_eq!(after(&[b"\r\n\r\n", HEAD, b"h"].concat(), 5), Edge::Unknown);
        assert_eq!(after(&[b"\r\n\r\n", HEAD, b"hello"].concat(), 5), Edge::Exact);
        assert_eq!(after(HEAD, u64::MAX), Edge::Unknown);
    }

    #[test]
    fn a_head_that_was_not_seen_proves_nothing() {
        let unseen = Framing { head: None, body: Some(5) };
        assert_eq!(Edge::of(unseen, 1_000_000, 0), Edge::Unknown);
    }

    #[test]
    fn chunks_end_with_the_empty_one() {
        let chunked = Framing { head: None, body: None };
        let of = |raw: &[u8]| Edge::of(chunked, raw.len() as u64, with_tail(0, raw));
        assert_eq!(of(b"5\r\nhello\r\n0\r\n\r\n"), Edge::Drained);
        assert_eq!(of(b"5\r\nhello\r\n0\r\n"), Edge::Unknown);
        assert_eq!(of(b"5\r\nhello\r\n0\r\na: b\r\n\r\n"), Edge::Unknown);
        assert_eq!(of(b"5\r\nhello\r\n0\r\n\r\nGET"), Edge::Unknown);
        assert_eq!(of(b"10\r\n\r\n"), Edge::Unknown);
    }

    #[test]
    fn the_next_request_begins_where_the_last_one_ends() {
        let framing = Framing { head: head_length(HEAD), body: Some(5) };
        assert_eq!(framing.end(), Some(HEAD.len() as u64 + 5));
        assert_eq!(Framing { body: None, ..framing }.end(), None);
        assert_eq!(Framing { body: Some(u64::MAX), ..framing }.end(), None);
    }

    proptest! {
        #[test]
        fn the_tail_does_not_depend_on_how_the_bytes_come(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(with_tail(with_tail(0, a), b), with_tail(0, &bytes));
        }

        #[test]
        fn no_end_is_seen_before_it_came(body: Vec<u8>, missing in 1usize..10) {
            let whole = [HEAD, &body].concat();
            let part = &whole[..whole.len().saturating_sub(missing).max(HEAD.len())];
            prop_assert_eq!(after(&whole, body.len() as u64), Edge::Exact);
            if part.len() < whole.len() {
                prop_assert_eq!(after(part, body.len() as u64), Edge::Unknown);
            }
        }
    }
}
