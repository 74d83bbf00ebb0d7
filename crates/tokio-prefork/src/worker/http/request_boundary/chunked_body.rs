//! Validates chunked request bodies (RFC 9112, section 7.1) line by line.
//!
//! Stricter than hyper, which accepts white space after a chunk size and any byte in an extension: wherever a proxy in
//! front parses differently, a client can smuggle a request past it.

use super::rejection::RequestRejection;
use super::request_head::{is_token_byte, parse_field_line};

/// The most hexadecimal digits in a chunk size: enough for 2^64 - 1.
const MAX_CHUNK_SIZE_DIGITS: usize = 16;

/// The most bytes of extensions in one chunk.
const MAX_CHUNK_EXTENSION_LENGTH: usize = 4 * 1024;

/// The most bytes of extensions in all chunks of a body. The same as hyper's limit, so that hyper never fails the body.
const MAX_TOTAL_EXTENSION_LENGTH: usize = 16 * 1024;

/// The most bytes of a trailer section. The same as hyper's limit.
const MAX_TRAILER_SECTION_LENGTH: usize = 16 * 1024;

/// The most trailer fields. The same as hyper's limit.
const MAX_TRAILER_FIELDS: usize = 100;

/// Validates one chunked body, however its bytes arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkedBodyParser {
    position: ChunkPosition,
    extensions_length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkPosition {
    /// The line with the size of the next chunk.
    SizeLine,
    /// This many bytes of data, followed by CRLF.
    Data(u64),
    /// CR LF after the data, or the LF alone.
    DataEnd { after_cr: bool },
}

/// What `ChunkedBodyParser::advance` found in the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkProgress {
    /// This many bytes are valid, and more of the body follows.
    Valid(usize),
    /// This many bytes are the last chunk and the trailer section. The body ends here.
    Last(usize),
    /// The next line is incomplete.
    Incomplete,
}

impl ChunkedBodyParser {
    pub(super) fn new() -> ChunkedBodyParser {
        ChunkedBodyParser { position: ChunkPosition::SizeLine, extensions_length: 0 }
    }

    /// Validates `input` up to the last chunk, which is returned in a call of its own.
    pub(super) fn advance(&mut self, input: &[u8]) -> Result<ChunkProgress, RequestRejection> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.position {
                ChunkPosition::Data(left) => {
                    let length = left.min(rest.len() as u64);
                    self.position = match left - length {
                        0 => ChunkPosition::DataEnd { after_cr: false },
                        left => ChunkPosition::Data(left),
                    };
                    at += length as usize;
                }
                ChunkPosition::DataEnd { after_cr: false } if rest[0] == b'\r' => {
                    self.position = ChunkPosition::DataEnd { after_cr: true };
                    at += 1;
                }
                ChunkPosition::DataEnd { after_cr: true } if rest[0] == b'\n' => {
                    self.position = ChunkPosition::SizeLine;
                    at += 1;
                }
                ChunkPosition::DataEnd { .. } => return Err(RequestRejection::ChunkTooLong),
                ChunkPosition::SizeLine => match self.parse_size_line(rest)? {
                    None if at == 0 => return Ok(ChunkProgress::Incomplete),
                    None => break,
                    Some((0, _)) if at > 0 => break,
                    Some((0, length)) => {
                        let trailers = parse_trailer_section(&rest[length..])?;
                        return Ok(trailers.map_or(ChunkProgress::Incomplete, |t| {
                            ChunkProgress::Last(length + t)
                        }));
                    }
                    Some((size, length)) => {
                        self.extensions_length += extension_length(&rest[..length]);
                        if self.extensions_length > MAX_TOTAL_EXTENSION_LENGTH {
                            return Err(RequestRejection::ChunkExtension);
                        }
                        self.position = ChunkPosition::Data(size);
                        at += length;
                    }
                },
            }
        }
        Ok(ChunkProgress::Valid(at))
    }

    /// Returns the chunk size and the line length at the start of `rest`, or `None` if the line is incomplete.
    fn parse_size_line(&self, rest: &[u8]) -> Result<Option<(u64, usize)>, RequestRejection> {
        let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > MAX_CHUNK_SIZE_DIGITS || (digits == 0 && !rest.is_empty()) {
            return Err(RequestRejection::ChunkSize);
        }
        let Some(line_end) = memchr::memchr(b'\n', rest) else {
            return check_partial_size_line(&rest[digits..]).map(|()| None);
        };
        let Some((b'\r', extension)) = rest[digits..line_end].split_last() else {
            return Err(RequestRejection::ChunkSize);
        };
        check_extensions(extension)?;
        let size = rest[..digits].iter().fold(0, |size, digit| {
            size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or_default())
        });
        if size > i64::MAX as u64 {
            // Parsers disagree about sizes beyond this.
            return Err(RequestRejection::ChunkSize);
        }
        Ok(Some((size, line_end + 1)))
    }
}

/// Returns the length of the extensions in a complete size line.
fn extension_length(line: &[u8]) -> usize {
    line.len() - line.iter().take_while(|b| b.is_ascii_hexdigit()).count() - 2
}

/// Rejects an incomplete size line as early as possible, so that the worker does not wait for a line that never ends.
fn check_partial_size_line(after_digits: &[u8]) -> Result<(), RequestRejection> {
    match after_digits {
        [] | [b'\r'] => Ok(()),
        [b';' | b' ' | b'\t', ..] if after_digits.len() > MAX_CHUNK_EXTENSION_LENGTH => {
            Err(RequestRejection::ChunkExtension)
        }
        [b';' | b' ' | b'\t', ..] => Ok(()),
        _ => Err(RequestRejection::ChunkSize),
    }
}

/// Checks extensions: `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
fn check_extensions(mut rest: &[u8]) -> Result<(), RequestRejection> {
    const MALFORMED_CHUNK: RequestRejection = RequestRejection::ChunkExtension;
    if rest.len() > MAX_CHUNK_EXTENSION_LENGTH {
        return Err(MALFORMED_CHUNK);
    }
    if !matches!(skip_blanks(rest), [] | [b';', ..]) {
        return Err(RequestRejection::ChunkSize);
    }
    while !rest.is_empty() {
        let Some((b';', after_semicolon)) = skip_blanks(rest).split_first() else {
            return Err(MALFORMED_CHUNK);
        };
        let name = skip_blanks(after_semicolon);
        let length = token_length(name);
        if length == 0 {
            return Err(MALFORMED_CHUNK);
        }
        rest = &name[length..];
        if let Some((b'=', value)) = skip_blanks(rest).split_first() {
            let value = skip_blanks(value);
            let length = match value.first() {
                Some(b'"') => quoted_string_length(value).ok_or(MALFORMED_CHUNK)?,
                _ => token_length(value),
            };
            if length == 0 {
                return Err(MALFORMED_CHUNK);
            }
            rest = &value[length..];
        }
    }
    Ok(())
}

fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let blanks = bytes.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    &bytes[blanks..]
}

fn token_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| is_token_byte(**b)).count()
}

/// Returns the length of the quoted string at the start of `bytes`, or `None` if it is malformed.
fn quoted_string_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += 1;
                let escaped = *bytes.get(at)?;
                if !(matches!(escaped, b'\t' | b' '..=b'~') || escaped >= 0x80) {
                    return None;
                }
            }
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return None,
        }
        at += 1;
    }
}

/// Returns the length of the trailer section at the start of `rest`, or `None` if it is incomplete.
///
/// Accepts only CRLF line ends, because parsers disagree about a bare LF.
fn parse_trailer_section(rest: &[u8]) -> Result<Option<usize>, RequestRejection> {
    let (mut at, mut fields) = (0, 0);
    loop {
        if at > MAX_TRAILER_SECTION_LENGTH || fields > MAX_TRAILER_FIELDS {
            return Err(RequestRejection::TrailersTooLarge);
        }
        let Some(line_end) = memchr::memchr(b'\n', &rest[at..]) else {
            let partial = &rest[at..];
            if partial.len() > MAX_TRAILER_SECTION_LENGTH {
                return Err(RequestRejection::TrailersTooLarge);
            }
            // A line that starts with CR must be the final empty line.
            let is_bad = matches!(partial, [b'\r', _, ..] | [b' ' | b'\t', ..]);
            return if is_bad { Err(RequestRejection::Trailer) } else { Ok(None) };
        };
        let line = &rest[at..at + line_end];
        at += line_end + 1;
        match line.split_last() {
            Some((b'\r', [])) => return Ok(Some(at)),
            Some((b'\r', field)) => {
                parse_field_line(field).map_err(|_| RequestRejection::Trailer)?;
                fields += 1;
            }
            _ => return Err(RequestRejection::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the length of the chunked body at the start of `input`, or `None` if it is incomplete.
    fn body_length(input: &[u8]) -> Result<Option<usize>, RequestRejection> {
        let (mut body, mut at) = (ChunkedBodyParser::new(), 0);
        loop {
            match body.advance(&input[at..])? {
                ChunkProgress::Last(length) => return Ok(Some(at + length)),
                ChunkProgress::Valid(0) | ChunkProgress::Incomplete => return Ok(None),
                ChunkProgress::Valid(length) => at += length,
            }
        }
    }

    #[test]
    fn valid_bodies_are_accepted_up_to_their_end() {
        let good: &[&[u8]] = &[
            b"0\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"05\r\nhello\r\n000\r\n\r\n",
            b"a\r\n0123456789\r\n0\r\n\r\n",
            b"A;a\r\n0123456789\r\n0;last\r\n\r\n",
            b"1;a=b;c=\"d\\\" \xff;\"\r\nx\r\n0\r\n\r\n",
            b"1 ; a = b\r\nx\r\n0\r\n\r\n",
            b"0\r\na: b\r\nc:\r\n\r\n",
        ];
        for input in good {
            assert_eq!(
                body_length(input),
                Ok(Some(input.len())),
                "{:?}",
                input.escape_ascii().to_string()
            );
            let more = [*input, b"GET /"].concat();
            assert_eq!(
                body_length(&more),
                Ok(Some(input.len())),
                "{:?}",
                more.escape_ascii().to_string()
            );
            for length in 0..input.len() {
                assert_eq!(body_length(&input[..length]), Ok(None), "{length} bytes of {input:?}");
            }
        }
    }

    #[test]
    fn malformed_bodies_are_rejected() {
        let bad: &[(&[u8], RequestRejection)] = &[
            (b"x\r\n", RequestRejection::ChunkSize),
            (b"\r\n", RequestRejection::ChunkSize),
            (b"-1\r\n", RequestRejection::ChunkSize),
            (b"+5\r\n", RequestRejection::ChunkSize),
            (b"0x5\r\n", RequestRejection::ChunkSize),
            (b"1_0\r\n", RequestRejection::ChunkSize),
            (b"5 5\r\n", RequestRejection::ChunkSize),
            (b" 5\r\n", RequestRejection::ChunkSize),
            (b"0 \r\n\r\n", RequestRejection::ChunkExtension),
            (b"5\t\r\nhello", RequestRejection::ChunkExtension),
            (b"fffffffffffffffff\r\n", RequestRejection::ChunkSize),
            (b"8000000000000000\r\n", RequestRejection::ChunkSize),
            (b"5\nhello\r\n0\r\n\r\n", RequestRejection::ChunkSize),
            (b"5;\0\r\nhello", RequestRejection::ChunkExtension),
            (b"5;\r\nhello", RequestRejection::ChunkExtension),
            (b"5;a=\r\nhello", RequestRejection::ChunkExtension),
            (b"5;a b\r\nhello", RequestRejection::ChunkExtension),
            (b"5;a=\"b\r\nhello", RequestRejection::ChunkExtension),
            (b"5;a\rb\r\nhello", RequestRejection::ChunkExtension),
            (b"5\r\nhello!", RequestRejection::ChunkTooLong),
            (b"5\r\nhello\n0\r\n\r\n", RequestRejection::ChunkTooLong),
            (b"5\r\nhello\r\r\n", RequestRejection::ChunkTooLong),
            (b"0\r\n\nGET / HTTP/1.1\r\n", RequestRejection::Trailer),
            (b"0\r\na: b\nc: d\r\n\r\n", RequestRejection::Trailer),
            (b"0\r\na b: c\r\n\r\n", RequestRejection::Trailer),
            (b"0\r\na: b\r\n c\r\n\r\n", RequestRejection::Trailer),
            (b"0\r\na: \0\r\n\r\n", RequestRejection::Trailer),
            (b"0\r\nGET / HTTP/1.1\r\n", RequestRejection::Trailer),
            (b"0\r\n\rx", RequestRejection::Trailer),
        ];
        for (input, why) in bad {
            assert_eq!(body_length(input), Err(*why), "{:?}", input.escape_ascii().to_string());
        }
    }

    #[test]
    fn extensions_and_trailers_are_limited() {
        let extension = |n: usize| [b"1;", &vec![b'a'; n][..], b"\r\nx\r\n"].concat();
        assert!(body_length(&extension(4000)).is_ok());
        assert_eq!(body_length(&extension(5000)), Err(RequestRejection::ChunkExtension));
        assert_eq!(body_length(&extension(4000).repeat(5)), Err(RequestRejection::ChunkExtension));
        assert_eq!(
            body_length(&[b"1;", &[b'a'; 5000][..]].concat()),
            Err(RequestRejection::ChunkExtension)
        );
        let trailers = [b"0\r\n", &b"a: b\r\n".repeat(101)[..], b"\r\n"].concat();
        assert_eq!(body_length(&trailers), Err(RequestRejection::TrailersTooLarge));
        let long = [b"0\r\na: ", &[b'b'; 17_000][..]].concat();
        assert_eq!(body_length(&long), Err(RequestRejection::TrailersTooLarge));
    }

    proptest! {
        #[test]
        fn verdict_does_not_depend_on_read_sizes(
            input in "[0-9a-c]{0,3}(;a)?\r\n[a-z]{0,6}(\r\n)?(0\r\n)?[a:\r\n]{0,5}",
            cut in any::<prop::sample::Index>(),
        ) {
            let input = input.as_bytes();
            let whole = body_length(input);
            let mut body = ChunkedBodyParser::new();
            let mut held = input[..cut.index(input.len() + 1)].to_vec();
            let mut rest = &input[held.len()..];
            let mut consumed = 0;
            let outcome = loop {
                match body.advance(&held) {
                    Err(e) => break Err(e),
                    Ok(ChunkProgress::Last(length)) => break Ok(Some(consumed + length)),
                    Ok(ChunkProgress::Valid(length)) if length > 0 => {
                        consumed += length;
                        held.drain(..length);
                    }
                    Ok(_) if rest.is_empty() => break Ok(None),
                    Ok(_) => {
                        held.extend_from_slice(rest);
                        rest = &[];
                    }
                }
            };
            prop_assert_eq!(outcome, whole);
        }
    }
}
