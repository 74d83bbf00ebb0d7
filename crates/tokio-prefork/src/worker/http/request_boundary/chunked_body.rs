//! A body in chunks (RFC 9112, section 7.1), checked line by line.
//!
//! Stricter than hyper, which takes white space behind a size and any byte in an extension: what another server on the
//! way reads otherwise is a request that only one of the two sees.

use super::rejection::Rejection;
use super::request_head::{check_field_line, is_token};

/// Digits of a chunk size that are read: enough for 2^64 - 1.
const MAX_SIZE_DIGITS: usize = 16;

/// Bytes of one chunk's extensions.
const MAX_EXTENSION_LENGTH: usize = 4 * 1024;

/// Bytes of the extensions of all chunks of a message. hyper's own bound, beyond which it fails the body.
const MAX_EXTENSIONS_LENGTH: usize = 16 * 1024;

/// Bytes of the trailer section. hyper's own bound.
const MAX_TRAILERS_LENGTH: usize = 16 * 1024;

/// Fields of the trailer section. hyper's own bound.
const MAX_TRAILERS: usize = 100;

/// Where in a chunked body the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkedBody {
    position: Position,
    extensions_length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    SizeLine,
    /// This many bytes of data, then CRLF.
    Data(u64),
    /// CR and LF behind data, or the LF alone.
    DataEnd {
        after_cr: bool,
    },
}

/// What the bytes at hand are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// This many bytes are valid; more of the body follows.
    Valid(usize),
    /// This many bytes are the last chunk and the trailer section: the message ends here.
    Last(usize),
    /// A line is not complete.
    Incomplete,
}

impl ChunkedBody {
    pub(super) fn new() -> ChunkedBody {
        ChunkedBody { position: Position::SizeLine, extensions_length: 0 }
    }

    /// Goes on with `input`, as far as up to the last chunk, which is taken in a step of its own.
    pub(super) fn advance(&mut self, input: &[u8]) -> Result<Chunk, Rejection> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.position {
                Position::Data(left) => {
                    let length = left.min(rest.len() as u64);
                    self.position = match left - length {
                        0 => Position::DataEnd { after_cr: false },
                        left => Position::Data(left),
                    };
                    at += length as usize;
                }
                Position::DataEnd { after_cr: false } if rest[0] == b'\r' => {
                    self.position = Position::DataEnd { after_cr: true };
                    at += 1;
                }
                Position::DataEnd { after_cr: true } if rest[0] == b'\n' => {
                    self.position = Position::SizeLine;
                    at += 1;
                }
                Position::DataEnd { .. } => return Err(Rejection::ChunkEnd),
                Position::SizeLine => match self.size_line(rest)? {
                    None if at == 0 => return Ok(Chunk::Incomplete),
                    None => break,
                    Some((0, _)) if at > 0 => break,
                    Some((0, length)) => {
                        let trailers = trailer_section(&rest[length..])?;
                        return Ok(trailers.map_or(Chunk::Incomplete, |t| Chunk::Last(length + t)));
                    }
                    Some((size, length)) => {
                        self.extensions_length += extension_length(&rest[..length]);
                        if self.extensions_length > MAX_EXTENSIONS_LENGTH {
                            return Err(Rejection::ChunkExtension);
                        }
                        self.position = Position::Data(size);
                        at += length;
                    }
                },
            }
        }
        Ok(Chunk::Valid(at))
    }

    /// The size and the length of the line at the beginning of `rest`, if it is complete.
    fn size_line(&self, rest: &[u8]) -> Result<Option<(u64, usize)>, Rejection> {
        let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > MAX_SIZE_DIGITS || (digits == 0 && !rest.is_empty()) {
            return Err(Rejection::ChunkSize);
        }
        let Some(line_end) = memchr::memchr(b'\n', rest) else {
            return check_partial_size_line(&rest[digits..]).map(|()| None);
        };
        let Some((b'\r', extension)) = rest[digits..line_end].split_last() else {
            return Err(Rejection::ChunkSize);
        };
        check_extensions(extension)?;
        let size = rest[..digits].iter().fold(0, |size, digit| {
            size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or_default())
        });
        if size > i64::MAX as u64 {
            // Beyond this no reader agrees with another on what a size is.
            return Err(Rejection::ChunkSize);
        }
        Ok(Some((size, line_end + 1)))
    }
}

fn extension_length(line: &[u8]) -> usize {
    line.len() - line.iter().take_while(|b| b.is_ascii_hexdigit()).count() - 2
}

/// Fails as early as can be: a line that does not end must not be waited for.
fn check_partial_size_line(behind_digits: &[u8]) -> Result<(), Rejection> {
    match behind_digits {
        [] | [b'\r'] => Ok(()),
        [b';' | b' ' | b'\t', ..] if behind_digits.len() > MAX_EXTENSION_LENGTH => {
            Err(Rejection::ChunkExtension)
        }
        [b';' | b' ' | b'\t', ..] => Ok(()),
        _ => Err(Rejection::ChunkSize),
    }
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
fn check_extensions(mut rest: &[u8]) -> Result<(), Rejection> {
    const BAD: Rejection = Rejection::ChunkExtension;
    if rest.len() > MAX_EXTENSION_LENGTH {
        return Err(BAD);
    }
    if !matches!(skip_blanks(rest), [] | [b';', ..]) {
        return Err(Rejection::ChunkSize);
    }
    while !rest.is_empty() {
        let Some((b';', behind)) = skip_blanks(rest).split_first() else {
            return Err(BAD);
        };
        let name = skip_blanks(behind);
        let length = token_length(name);
        if length == 0 {
            return Err(BAD);
        }
        rest = &name[length..];
        if let Some((b'=', value)) = skip_blanks(rest).split_first() {
            let value = skip_blanks(value);
            let length = match value.first() {
                Some(b'"') => quoted_length(value).ok_or(BAD)?,
                _ => token_length(value),
            };
            if length == 0 {
                return Err(BAD);
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
    bytes.iter().take_while(|b| is_token(**b)).count()
}

/// The length of the quoted string that `bytes` begins with, if it is one.
fn quoted_length(bytes: &[u8]) -> Option<usize> {
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

/// The length of the trailer section at the beginning of `rest`, if it is complete. Its lines end with CRLF: a bare LF
/// is an end to some readers and none to others.
fn trailer_section(rest: &[u8]) -> Result<Option<usize>, Rejection> {
    let (mut at, mut fields) = (0, 0);
    loop {
        if at > MAX_TRAILERS_LENGTH || fields > MAX_TRAILERS {
            return Err(Rejection::TrailersTooLarge);
        }
        let Some(line_end) = memchr::memchr(b'\n', &rest[at..]) else {
            let partial = &rest[at..];
            if partial.len() > MAX_TRAILERS_LENGTH {
                return Err(Rejection::TrailersTooLarge);
            }
            // What begins with CR must be the end.
            let is_bad = matches!(partial, [b'\r', _, ..] | [b' ' | b'\t', ..]);
            return if is_bad { Err(Rejection::Trailer) } else { Ok(None) };
        };
        let line = &rest[at..at + line_end];
        at += line_end + 1;
        match line.split_last() {
            Some((b'\r', [])) => return Ok(Some(at)),
            Some((b'\r', field)) => {
                check_field_line(field).map_err(|_| Rejection::Trailer)?;
                fields += 1;
            }
            _ => return Err(Rejection::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The length of the message's body at the beginning of `input`, if all of it is there.
    fn read(input: &[u8]) -> Result<Option<usize>, Rejection> {
        let (mut body, mut at) = (ChunkedBody::new(), 0);
        loop {
            match body.advance(&input[at..])? {
                Chunk::Last(length) => return Ok(Some(at + length)),
                Chunk::Valid(0) | Chunk::Incomplete => return Ok(None),
                Chunk::Valid(length) => at += length,
            }
        }
    }

    #[test]
    fn what_the_grammar_allows_is_followed_to_its_end() {
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
                read(input),
                Ok(Some(input.len())),
                "{:?}",
                input.escape_ascii().to_string()
            );
            let more = [*input, b"GET /"].concat();
            assert_eq!(read(&more), Ok(Some(input.len())), "{:?}", more.escape_ascii().to_string());
            for length in 0..input.len() {
                assert_eq!(read(&input[..length]), Ok(None), "{length} bytes of {input:?}");
            }
        }
    }

    #[test]
    fn what_the_grammar_forbids_is_refused() {
        let bad: &[(&[u8], Rejection)] = &[
            (b"x\r\n", Rejection::ChunkSize),
            (b"\r\n", Rejection::ChunkSize),
            (b"-1\r\n", Rejection::ChunkSize),
            (b"+5\r\n", Rejection::ChunkSize),
            (b"0x5\r\n", Rejection::ChunkSize),
            (b"1_0\r\n", Rejection::ChunkSize),
            (b"5 5\r\n", Rejection::ChunkSize),
            (b" 5\r\n", Rejection::ChunkSize),
            (b"0 \r\n\r\n", Rejection::ChunkExtension),
            (b"5\t\r\nhello", Rejection::ChunkExtension),
            (b"fffffffffffffffff\r\n", Rejection::ChunkSize),
            (b"8000000000000000\r\n", Rejection::ChunkSize),
            (b"5\nhello\r\n0\r\n\r\n", Rejection::ChunkSize),
            (b"5;\0\r\nhello", Rejection::ChunkExtension),
            (b"5;\r\nhello", Rejection::ChunkExtension),
            (b"5;a=\r\nhello", Rejection::ChunkExtension),
            (b"5;a b\r\nhello", Rejection::ChunkExtension),
            (b"5;a=\"b\r\nhello", Rejection::ChunkExtension),
            (b"5;a\rb\r\nhello", Rejection::ChunkExtension),
            (b"5\r\nhello!", Rejection::ChunkEnd),
            (b"5\r\nhello\n0\r\n\r\n", Rejection::ChunkEnd),
            (b"5\r\nhello\r\r\n", Rejection::ChunkEnd),
            (b"0\r\n\nGET / HTTP/1.1\r\n", Rejection::Trailer),
            (b"0\r\na: b\nc: d\r\n\r\n", Rejection::Trailer),
            (b"0\r\na b: c\r\n\r\n", Rejection::Trailer),
            (b"0\r\na: b\r\n c\r\n\r\n", Rejection::Trailer),
            (b"0\r\na: \0\r\n\r\n", Rejection::Trailer),
            (b"0\r\nGET / HTTP/1.1\r\n", Rejection::Trailer),
            (b"0\r\n\rx", Rejection::Trailer),
        ];
        for (input, why) in bad {
            assert_eq!(read(input), Err(*why), "{:?}", input.escape_ascii().to_string());
        }
    }

    #[test]
    fn lines_and_sections_have_bounds() {
        let extension = |n: usize| [b"1;", &vec![b'a'; n][..], b"\r\nx\r\n"].concat();
        assert!(read(&extension(4000)).is_ok());
        assert_eq!(read(&extension(5000)), Err(Rejection::ChunkExtension));
        assert_eq!(read(&extension(4000).repeat(5)), Err(Rejection::ChunkExtension));
        assert_eq!(read(&[b"1;", &[b'a'; 5000][..]].concat()), Err(Rejection::ChunkExtension));
        let trailers = [b"0\r\n", &b"a: b\r\n".repeat(101)[..], b"\r\n"].concat();
        assert_eq!(read(&trailers), Err(Rejection::TrailersTooLarge));
        let long = [b"0\r\na: ", &[b'b'; 17_000][..]].concat();
        assert_eq!(read(&long), Err(Rejection::TrailersTooLarge));
    }

    proptest! {
        /// However the bytes come, the verdict is the same.
        #[test]
        fn pieces_make_no_difference(
            input in "[0-9a-c]{0,3}(;a)?\r\n[a-z]{0,6}(\r\n)?(0\r\n)?[a:\r\n]{0,5}",
            cut in any::<prop::sample::Index>(),
        ) {
            let input = input.as_bytes();
            let whole = read(input);
            let mut body = ChunkedBody::new();
            let mut held = input[..cut.index(input.len() + 1)].to_vec();
            let mut rest = &input[held.len()..];
            let mut consumed = 0;
            let outcome = loop {
                match body.advance(&held) {
                    Err(e) => break Err(e),
                    Ok(Chunk::Last(length)) => break Ok(Some(consumed + length)),
                    Ok(Chunk::Valid(length)) if length > 0 => {
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
