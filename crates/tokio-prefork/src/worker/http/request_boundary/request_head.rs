//! Validates HTTP/1 request heads line by line as they arrive (RFC 9112, sections 2 to 6).
//!
//! Stricter than hyper about everything that determines where a message ends, so hyper never rejects an accepted head.
//! Lines may end with a bare LF, which RFC 9112, section 2.2 permits and nginx accepts.

use super::rejection::RequestRejection;
use super::request_target::{MAX_TARGET_LENGTH, is_valid_host, is_valid_target};
use super::whole_head::parse_whole_head;

/// The most header fields in a head. The same as hyper's default.
const MAX_HEADER_FIELDS: usize = 100;

/// How the end of a request body is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// `Content-Length`, or 0 without a body.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What the connection needs to know of a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHead {
    /// Length in bytes, including the final empty line.
    pub(super) length: usize,
    pub(super) body: BodyFraming,
    /// Whether the connection closes after this request: `Connection: close`, or HTTP/1.0 without `keep-alive`.
    pub(super) is_last: bool,
}

/// Parses one head, however its bytes arrive; keeps what the complete lines so far say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestHeadParser {
    /// Where the next line starts.
    position: usize,
    has_request_line: bool,
    is_http_10: bool,
    has_close_option: bool,
    has_keep_alive_option: bool,
    has_host: bool,
    is_chunked: bool,
    field_count: usize,
    content_length: Option<u64>,
}

impl RequestHeadParser {
    /// Whether no complete line was parsed yet.
    pub(super) fn is_at_start(&self) -> bool {
        self.position == 0
    }

    /// Parses on in `input`, which starts with the head and has grown since the last call.
    ///
    /// Returns the head once it is complete. Rejects malformed bytes as early as possible, so that the worker does
    /// not wait for a line that never ends.
    pub(super) fn advance(
        &mut self,
        input: &[u8],
        max_size: usize,
    ) -> Result<Option<RequestHead>, RequestRejection> {
        if self.is_at_start()
            && let Some(head) = parse_whole_head(input, max_size)
        {
            return Ok(Some(head));
        }
        self.advance_by_line(input, max_size)
    }

    pub(super) fn advance_by_line(
        &mut self,
        input: &[u8],
        max_size: usize,
    ) -> Result<Option<RequestHead>, RequestRejection> {
        loop {
            let rest = &input[self.position..];
            let had_request_line = self.has_request_line;
            let line = if had_request_line {
                self.parse_field_line(rest)?
            } else {
                self.parse_request_line(rest)?
            };
            let length = match line {
                ParsedLine::Partial => rest.len(),
                ParsedLine::Complete(length) | ParsedLine::HeadEnd(length) => length,
            };
            if self.position + length > max_size {
                return Err(match had_request_line {
                    true => RequestRejection::HeadTooLarge,
                    false => RequestRejection::TargetTooLong,
                });
            }
            match line {
                ParsedLine::Partial => return Ok(None),
                ParsedLine::Complete(length) => self.position += length,
                ParsedLine::HeadEnd(length) => {
                    self.position += length;
                    return self.complete_head(self.position).map(Some);
                }
            }
        }
    }

    fn parse_request_line(&mut self, rest: &[u8]) -> Result<ParsedLine, RequestRejection> {
        let (method, target) = match rest.split_at(count_token_bytes(rest)) {
            (_, []) => return Ok(ParsedLine::Partial),
            // RFC 9112, section 2.2: skip empty lines before a request.
            ([], [b'\r' | b'\n', ..]) => {
                return parse_line_end(rest, RequestRejection::RequestLine)
                    .map(ParsedLine::complete_or_partial);
            }
            (_, [b'\r' | b'\n', ..]) => return Err(RequestRejection::RequestLine),
            // A TLS handshake (RFC 8446, section 5.1).
            ([], [22, ..]) => return Err(RequestRejection::TlsRecord),
            // PRI is the method of the HTTP/2 preface, not of a request.
            (b"" | b"PRI", _) => return Err(RequestRejection::Method),
            (method, [b' ', target @ ..]) => (method, target),
            _ => return Err(RequestRejection::Method),
        };
        let target_length = target.iter().take_while(|b| **b > b' ' && **b != 0x7f).count();
        let (target, version) = match target.split_at(target_length) {
            (_, []) => return Ok(ParsedLine::Partial),
            (target @ [_, ..], [b' ', version @ ..]) => (target, version),
            _ => return Err(RequestRejection::RequestLine),
        };
        let Some((number, end)) = version.split_first_chunk::<8>() else {
            let is_prefix = version.iter().zip(b"HTTP/").all(|(byte, expected)| byte == expected);
            let is_valid_so_far = is_prefix && !version.iter().any(|b| *b <= b' ');
            return if is_valid_so_far {
                Ok(ParsedLine::Partial)
            } else {
                Err(RequestRejection::RequestLine)
            };
        };
        let Some(end_length) = parse_line_end(end, RequestRejection::RequestLine)? else {
            return Ok(ParsedLine::Partial);
        };
        let is_http_10 = match number {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
                return Err(RequestRejection::Version);
            }
            _ => return Err(RequestRejection::RequestLine),
        };
        if target.len() > MAX_TARGET_LENGTH {
            return Err(RequestRejection::TargetTooLong);
        }
        if !is_valid_target(method, target) {
            return Err(RequestRejection::Target);
        }
        self.is_http_10 = is_http_10;
        self.has_request_line = true;
        // 2: the spaces after the method and the target.
        Ok(ParsedLine::Complete(method.len() + target.len() + number.len() + 2 + end_length))
    }

    fn parse_field_line(&mut self, rest: &[u8]) -> Result<ParsedLine, RequestRejection> {
        let name_length = count_token_bytes(rest);
        let (name, value) = match rest.split_at(name_length) {
            (_, []) => return Ok(ParsedLine::Partial),
            ([], [b'\r' | b'\n', ..]) => {
                let end = parse_line_end(rest, RequestRejection::FieldName)?;
                return Ok(end.map_or(ParsedLine::Partial, ParsedLine::HeadEnd));
            }
            ([], [b' ' | b'\t', ..]) => return Err(RequestRejection::FoldedField),
            ([], _) => return Err(RequestRejection::FieldName),
            (name, [b':', value @ ..]) => (name, value),
            _ => return Err(RequestRejection::FieldName),
        };
        // The first control character ends the line or is invalid.
        let Some(value_length) = find_control_character(value) else {
            return Ok(ParsedLine::Partial);
        };
        let end = parse_line_end(&value[value_length..], RequestRejection::FieldValue)?;
        let Some(end_length) = end else { return Ok(ParsedLine::Partial) };
        self.parse_field(name, &value[..value_length])?;
        Ok(ParsedLine::Complete(name_length + 1 + value_length + end_length))
    }

    pub(super) fn parse_field(
        &mut self,
        name: &[u8],
        untrimmed: &[u8],
    ) -> Result<(), RequestRejection> {
        let value = trim_blanks(untrimmed);
        self.field_count += 1;
        if self.field_count > MAX_HEADER_FIELDS {
            return Err(RequestRejection::TooManyFields);
        }
        // A tab around the value is white space by the grammar, but some parsers take it as part of the value.
        let has_tab = || untrimmed.contains(&b'\t');
        if is_field(name, b"host") {
            self.parse_host(value)
        } else if is_field(name, b"connection") {
            self.parse_connection(value);
            Ok(())
        } else if is_field(name, b"content-length") {
            if has_tab() {
                return Err(RequestRejection::ContentLength);
            }
            self.parse_content_length(value)
        } else if is_field(name, b"transfer-encoding") {
            if has_tab() {
                return Err(RequestRejection::TransferEncoding);
            }
            self.parse_transfer_encoding(value)
        } else {
            Ok(())
        }
    }

    fn parse_host(&mut self, value: &[u8]) -> Result<(), RequestRejection> {
        if self.has_host {
            return Err(RequestRejection::MultipleHosts);
        }
        self.has_host = true;
        if is_valid_host(value) { Ok(()) } else { Err(RequestRejection::Host) }
    }

    fn parse_connection(&mut self, value: &[u8]) {
        for option in value.split(|b| *b == b',') {
            let option = option.trim_ascii();
            self.has_close_option |= option.eq_ignore_ascii_case(b"close");
            self.has_keep_alive_option |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Accepts a single value: RFC 9112, section 6.3 allows to reject equal ones, too, as nginx and Node do.
    fn parse_content_length(&mut self, value: &[u8]) -> Result<(), RequestRejection> {
        if self.content_length.is_some() {
            return Err(RequestRejection::MultipleContentLengths);
        }
        if value.is_empty() {
            return Err(RequestRejection::ContentLength);
        }
        let mut length = 0u64;
        for byte in value {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return Err(RequestRejection::ContentLength);
            }
            let next =
                length.checked_mul(10).and_then(|length| length.checked_add(u64::from(digit)));
            // Parsers disagree about lengths beyond this.
            length =
                next.filter(|n| *n <= i64::MAX as u64).ok_or(RequestRejection::ContentLength)?;
        }
        self.content_length = Some(length);
        Ok(())
    }

    fn parse_transfer_encoding(&mut self, value: &[u8]) -> Result<(), RequestRejection> {
        if self.is_chunked {
            return Err(RequestRejection::TransferEncoding);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(encoding_rejection(value));
        }
        self.is_chunked = true;
        Ok(())
    }

    /// Returns the head of `length` bytes whose fields were parsed.
    pub(super) fn complete_head(&self, length: usize) -> Result<RequestHead, RequestRejection> {
        if !self.has_host && !self.is_http_10 {
            return Err(RequestRejection::MissingHost);
        }
        let body = match (self.is_chunked, self.content_length) {
            (true, Some(_)) => return Err(RequestRejection::LengthAndEncoding),
            (true, None) if self.is_http_10 => return Err(RequestRejection::EncodingInHttp10),
            (true, None) => BodyFraming::Chunked,
            (false, length) => BodyFraming::Length(length.unwrap_or(0)),
        };
        let is_last = self.has_close_option || (self.is_http_10 && !self.has_keep_alive_option);
        Ok(RequestHead { length, body, is_last })
    }
}

/// Whether `name`, which consists of token bytes, is `known`, which is in lower case.
fn is_field<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    // The length first, because most fields are none of those asked for. Without a branch per byte, for vector instructions.
    // Of the token bytes, this bit makes only letters equal to others, and upper-case ones to their lower-case form.
    let differs = |name: &[u8; N]| {
        name.iter().zip(known).fold(0, |differences, (a, b)| differences | ((a | 0x20) ^ b))
    };
    <&[u8; N]>::try_from(name).is_ok_and(|name| differs(name) == 0)
}

/// Returns the rejection of a `Transfer-Encoding` other than `chunked`: 501 for an unknown coding (RFC 9112, section
/// 6.1), 400 for a malformed list or a misplaced `chunked`.
fn encoding_rejection(value: &[u8]) -> RequestRejection {
    let codings: Vec<&[u8]> = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).collect();
    let is_list =
        codings.iter().all(|coding| !coding.is_empty() && coding.iter().all(|b| is_token_byte(*b)));
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_before_another = codings.iter().rev().skip(1).any(is_chunked);
    match is_list && !is_before_another {
        true => RequestRejection::UnknownTransferEncoding,
        false => RequestRejection::TransferEncoding,
    }
}

/// How far a line was parsed.
enum ParsedLine {
    /// The line is incomplete.
    Partial,
    /// The line has this many bytes, including its end.
    Complete(usize),
    /// The line is empty and ends the head.
    HeadEnd(usize),
}

impl ParsedLine {
    fn complete_or_partial(length: Option<usize>) -> ParsedLine {
        length.map_or(ParsedLine::Partial, ParsedLine::Complete)
    }
}

/// Returns the length of the line end at the start of `rest`, or `None` if it is incomplete. Fails with `rejection` if
/// there is no line end.
fn parse_line_end(
    rest: &[u8],
    rejection: RequestRejection,
) -> Result<Option<usize>, RequestRejection> {
    match rest {
        [b'\n', ..] => Ok(Some(1)),
        [b'\r', b'\n', ..] => Ok(Some(2)),
        [] | [b'\r'] => Ok(None),
        _ => Err(rejection),
    }
}

/// Splits one field line without its end into name and value; the value must not contain control characters.
pub(super) fn parse_field_line(line: &[u8]) -> Result<(&[u8], &[u8]), RequestRejection> {
    let (name, rest) = line.split_at(count_token_bytes(line));
    let Some((b':', value)) = rest.split_first() else {
        let is_fold = matches!(line.first(), Some(b' ' | b'\t'));
        return Err(if is_fold {
            RequestRejection::FoldedField
        } else {
            RequestRejection::FieldName
        });
    };
    if name.is_empty() {
        return Err(RequestRejection::FieldName);
    }
    let value = trim_blanks(value);
    if find_control_character(value).is_some() {
        Err(RequestRejection::FieldValue)
    } else {
        Ok((name, value))
    }
}

/// Removes spaces and tabs around a field value. Other white space is not optional white space in HTTP.
fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Returns the position of the first control character other than a tab.
pub(super) fn find_control_character(bytes: &[u8]) -> Option<usize> {
    const ONE_PER_BYTE: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH_BITS: u64 = ONE_PER_BYTE << 7;
    let is_control = |b: &u8| (*b < b' ' && *b != b'\t') || *b == 0x7f;
    // Eight bytes at a time, because most bytes of a head belong to field values.
    let (words, _) = bytes.as_chunks::<8>();
    let mut skipped = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let is_delete = word ^ (ONE_PER_BYTE * 0x7f);
        let below_space = word.wrapping_sub(ONE_PER_BYTE * 0x20) & !word;
        let found = (below_space | (is_delete.wrapping_sub(ONE_PER_BYTE) & !is_delete)) & HIGH_BITS;
        if found != 0 {
            // The first one is right: a subtraction borrows only from the bytes behind one that is found.
            skipped += found.trailing_zeros() as usize / 8;
            break;
        }
        skipped += 8;
    }
    bytes[skipped..].iter().position(is_control).map(|at| skipped + at)
}

/// Returns how many bytes at the start of `bytes` may be part of a method or a field name.
pub(super) fn count_token_bytes(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| is_token_byte(**b)).count()
}

/// Whether `byte` is a `tchar` (RFC 9110, section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[usize::from(byte)]
}

const TOKEN_BYTES: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// Returns a table that accepts ASCII letters, digits and the bytes of `others`.
pub(super) const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x80u8 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(input: &[u8]) -> Result<Option<RequestHead>, RequestRejection> {
        let whole = RequestHeadParser::default().advance(input, 1024);
        // Byte by byte, the verdict is the same or comes earlier.
        let mut parser = RequestHeadParser::default();
        let in_pieces = (0..=input.len())
            .map(|length| parser.advance(&input[..length], 1024))
            .find(|outcome| *outcome != Ok(None));
        match (&whole, &in_pieces) {
            (Ok(None), None) | (Err(_), Some(Err(_))) => {}
            _ => assert_eq!(
                Some(&whole),
                in_pieces.as_ref(),
                "{:?}",
                input.escape_ascii().to_string()
            ),
        }
        whole
    }

    fn head(input: &str) -> RequestHead {
        parse(input.as_bytes()).expect(input).expect(input)
    }

    #[test]
    fn valid_heads_have_their_length_and_body_framing() {
        let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(
            head(plain),
            RequestHead { length: plain.len(), body: BodyFraming::Length(0), is_last: false }
        );
        let sized = "POST / HTTP/1.1\r\nhost:a\r\ncontent-LENGTH:  07 \r\n\r\n";
        assert_eq!(head(sized).body, BodyFraming::Length(7));
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:Chunked \r\n\r\n";
        assert_eq!(head(chunked).body, BodyFraming::Chunked);
        let led = "\r\n\nGET / HTTP/1.1\nHost: a\n\n";
        assert_eq!(head(led).length, led.len());
    }

    #[test]
    fn last_request_depends_on_version_and_connection_options() {
        let is_last = |version: &str, fields: &str| {
            head(&format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n")).is_last
        };
        assert!(!is_last("1.1", ""));
        assert!(is_last("1.1", "Connection: Close\r\n"));
        assert!(is_last("1.1", "Connection: te, close\r\nConnection: keep-alive\r\n"));
        assert!(!is_last("1.1", "Connection: closed\r\n"));
        assert!(is_last("1.0", ""));
        assert!(!is_last("1.0", "Connection: keep-alive\r\n"));
        assert!(is_last("1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn malformed_heads_are_rejected_with_their_reason() {
        let in_head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n".into(), RequestRejection::MissingHost),
            (in_head("Host: a"), RequestRejection::MultipleHosts),
            (
                "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".into(),
                RequestRejection::MultipleHosts,
            ),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".into(), RequestRejection::Host),
            ("GET /\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET  HTTP/0.9\r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::Method),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::Method),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::Method),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), RequestRejection::Method),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), RequestRejection::Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(), RequestRejection::Version),
            ("GET / HTTP/1.10\r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET / HTTP/0.9 \r\nHost: a\r\n\r\n".into(), RequestRejection::RequestLine),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), RequestRejection::Target),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), RequestRejection::FoldedField),
            (in_head("a: b\r\n c"), RequestRejection::FoldedField),
            (in_head("a : b"), RequestRejection::FieldName),
            (in_head(": b"), RequestRejection::FieldName),
            (in_head("a"), RequestRejection::FieldName),
            (in_head("a: b\0"), RequestRejection::FieldValue),
            (in_head("a: b\rc"), RequestRejection::FieldValue),
            (in_head("a: b\r"), RequestRejection::FieldValue),
            (in_head("Content-Length: "), RequestRejection::ContentLength),
            (in_head("Content-Length: +1"), RequestRejection::ContentLength),
            (in_head("Content-Length: 1, 1"), RequestRejection::ContentLength),
            (in_head("Content-Length: 0x1"), RequestRejection::ContentLength),
            (in_head("Content-Length: 18446744073709551616"), RequestRejection::ContentLength),
            (
                in_head("Content-Length: 1\r\nContent-Length: 1"),
                RequestRejection::MultipleContentLengths,
            ),
            (
                in_head("Content-Length: 1\r\nTransfer-Encoding: chunked"),
                RequestRejection::LengthAndEncoding,
            ),
            (
                in_head("Transfer-Encoding: chunked\r\nContent-Length: 1"),
                RequestRejection::LengthAndEncoding,
            ),
            (
                in_head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
                RequestRejection::TransferEncoding,
            ),
            (in_head("Transfer-Encoding: chunked, chunked"), RequestRejection::TransferEncoding),
            (in_head("Transfer-Encoding: chunked, gzip"), RequestRejection::TransferEncoding),
            (in_head("Transfer-Encoding:"), RequestRejection::TransferEncoding),
            (in_head("Transfer-Encoding: chunked;a"), RequestRejection::TransferEncoding),
            (in_head("Transfer-Encoding: \x0bchunked"), RequestRejection::FieldValue),
            (in_head("Transfer-Encoding: foo, chunked"), RequestRejection::UnknownTransferEncoding),
            (in_head("Transfer-Encoding: identity"), RequestRejection::UnknownTransferEncoding),
            (
                in_head("Transfer-Encoding: gzip, chunked"),
                RequestRejection::UnknownTransferEncoding,
            ),
            (
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                RequestRejection::EncodingInHttp10,
            ),
        ];
        for (input, why) in cases {
            let input: String = input;
            assert_eq!(parse(input.as_bytes()), Err(why), "{input:?}");
        }
    }

    #[test]
    fn bytes_that_cannot_become_a_head_are_rejected_at_once() {
        for bytes in
            [&b"\x16\x03\x01\x02"[..], b"G\0", b"GET /\0", b" ", b"GET / HTTP/1.1\rx", b"\rx"]
        {
            let outcome = RequestHeadParser::default().advance(bytes, 1024);
            assert!(outcome.is_err(), "{:?}: {outcome:?}", bytes.escape_ascii().to_string());
        }
    }

    proptest! {
        #[test]
        fn control_characters_are_found_at_any_position(bytes: Vec<u8>) {
            let plain = bytes.iter().position(|b| b.is_ascii_control() && *b != b'\t');
            prop_assert_eq!(find_control_character(&bytes), plain);
        }
    }

    #[test]
    fn head_size_and_field_count_are_limited() {
        let long = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
        assert!(parse(long(900).as_bytes()).is_ok());
        assert_eq!(parse(long(1100).as_bytes()), Err(RequestRejection::TargetTooLong));
        let many = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a:b\r\n".repeat(n));
        assert!(parse(many(99).as_bytes()).is_ok());
        assert_eq!(parse(many(100).as_bytes()), Err(RequestRejection::TooManyFields));
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\na: {}", "b".repeat(1000));
        assert_eq!(parse(large.as_bytes()), Err(RequestRejection::HeadTooLarge));
    }
}
