//! The head of an HTTP/1 request, checked line by line as it comes (RFC 9112, sections 2 to 6).
//!
//! Stricter than hyper in everything that says where a message ends, so that hyper never refuses what was accepted here.
//! Lines may end with a bare LF, as nginx allows and RFC 9112, section 2.2 permits.

use super::rejection::Rejection;
use super::request_target::{MAX_TARGET_LENGTH, is_valid_host, is_valid_target};

/// Fields of a head. hyper's default, which it keeps on the stack.
const MAX_HEADER_FIELDS: usize = 100;

/// Where the body of a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    Length(u64),
    Chunked,
}

/// What the head of a request says that the connection has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes, the empty line included.
    pub(super) length: usize,
    pub(super) body: BodyFraming,
    /// No request can follow on this connection: the client says so, or speaks HTTP/1.0 and does not ask for more.
    pub(super) is_last: bool,
}

/// The lines that were read so far of a head that may not be complete.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HeadParser {
    /// Where the next line begins.
    position: usize,
    has_request_line: bool,
    is_http_10: bool,
    says_close: bool,
    says_keep_alive: bool,
    has_host: bool,
    is_chunked: bool,
    fields: usize,
    content_length: Option<u64>,
}

impl HeadParser {
    /// Goes on in `input`, which begins where the head begins and has grown since the last call. Returns the head once
    /// it is complete. Fails as early as can be: a line that does not end must not be waited for.
    pub(super) fn advance(
        &mut self,
        input: &[u8],
        max_size: usize,
    ) -> Result<Option<Head>, Rejection> {
        loop {
            let rest = &input[self.position..];
            let had_request_line = self.has_request_line;
            let line =
                if had_request_line { self.field_line(rest)? } else { self.request_line(rest)? };
            let length = match line {
                Line::Partial => rest.len(),
                Line::Read(length) | Line::End(length) => length,
            };
            if self.position + length > max_size {
                return Err(match had_request_line {
                    true => Rejection::HeadTooLarge,
                    false => Rejection::TargetTooLong,
                });
            }
            match line {
                Line::Partial => return Ok(None),
                Line::Read(length) => self.position += length,
                Line::End(length) => {
                    self.position += length;
                    return self.finish().map(Some);
                }
            }
        }
    }

    fn request_line(&mut self, rest: &[u8]) -> Result<Line, Rejection> {
        let method_length = rest.iter().take_while(|b| is_token(**b)).count();
        let (method, target) = match rest.split_at(method_length) {
            (_, []) => return Ok(Line::Partial),
            // Empty lines before a request are skipped: RFC 9112, section 2.2.
            ([], [b'\r' | b'\n', ..]) => {
                return line_end(rest, Rejection::RequestLine).map(Line::read);
            }
            (_, [b'\r' | b'\n', ..]) => return Err(Rejection::RequestLine),
            // PRI is the method of the HTTP/2 preface, which is no request.
            (b"" | b"PRI", _) => return Err(Rejection::Method),
            (method, [b' ', target @ ..]) => (method, target),
            _ => return Err(Rejection::Method),
        };
        let target_length = target.iter().take_while(|b| **b > b' ' && **b != 0x7f).count();
        let (target, version) = match target.split_at(target_length) {
            (_, []) => return Ok(Line::Partial),
            (target @ [_, ..], [b' ', version @ ..]) => (target, version),
            _ => return Err(Rejection::RequestLine),
        };
        let Some((number, end)) = version.split_first_chunk::<8>() else {
            let is_prefix = version.iter().zip(b"HTTP/").all(|(byte, expected)| byte == expected);
            let is_good = is_prefix && !version.iter().any(|b| *b <= b' ');
            return if is_good { Ok(Line::Partial) } else { Err(Rejection::RequestLine) };
        };
        let Some(end_length) = line_end(end, Rejection::RequestLine)? else {
            return Ok(Line::Partial);
        };
        let is_http_10 = match number {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
                return Err(Rejection::Version);
            }
            _ => return Err(Rejection::RequestLine),
        };
        if target.len() > MAX_TARGET_LENGTH {
            return Err(Rejection::TargetTooLong);
        }
        if !is_valid_target(method, target) {
            return Err(Rejection::Target);
        }
        self.is_http_10 = is_http_10;
        self.has_request_line = true;
        // The method, the target and the version, with a space behind the first two.
        Ok(Line::Read(method.len() + target.len() + number.len() + 2 + end_length))
    }

    fn field_line(&mut self, rest: &[u8]) -> Result<Line, Rejection> {
        let name_length = rest.iter().take_while(|b| is_token(**b)).count();
        let (name, value) = match rest.split_at(name_length) {
            (_, []) => return Ok(Line::Partial),
            ([], [b'\r' | b'\n', ..]) => {
                let end = line_end(rest, Rejection::FieldName)?;
                return Ok(end.map_or(Line::Partial, Line::End));
            }
            ([], [b' ' | b'\t', ..]) => return Err(Rejection::FoldedField),
            ([], _) => return Err(Rejection::FieldName),
            (name, [b':', value @ ..]) => (name, value),
            _ => return Err(Rejection::FieldName),
        };
        // The first control character ends the line, or has no place in it.
        let Some(value_length) = control_position(value) else { return Ok(Line::Partial) };
        let end = line_end(&value[value_length..], Rejection::FieldValue)?;
        let Some(end_length) = end else { return Ok(Line::Partial) };
        self.field(name, &value[..value_length])?;
        Ok(Line::Read(name_length + 1 + value_length + end_length))
    }

    fn field(&mut self, name: &[u8], untrimmed: &[u8]) -> Result<(), Rejection> {
        let value = trim_blanks(untrimmed);
        self.fields += 1;
        if self.fields > MAX_HEADER_FIELDS {
            return Err(Rejection::TooManyFields);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // By length first: most fields are none of these.
        match name.len() {
            4 if is("host") => self.host(value),
            10 if is("connection") => {
                self.connection(value);
                Ok(())
            }
            // A tab beside the value is optional white space by the grammar, and a part of the value to others.
            14 if is("content-length") && untrimmed.contains(&b'\t') => {
                Err(Rejection::ContentLength)
            }
            14 if is("content-length") => self.content_length(value),
            17 if is("transfer-encoding") && untrimmed.contains(&b'\t') => {
                Err(Rejection::TransferEncoding)
            }
            17 if is("transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Rejection> {
        if self.has_host {
            return Err(Rejection::ManyHosts);
        }
        self.has_host = true;
        if is_valid_host(value) { Ok(()) } else { Err(Rejection::Host) }
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|b| *b == b',') {
            let option = option.trim_ascii();
            self.says_close |= option.eq_ignore_ascii_case(b"close");
            self.says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// One length, even where several agree: RFC 9112, section 6.3 lets us refuse, as nginx and Node do.
    fn content_length(&mut self, value: &[u8]) -> Result<(), Rejection> {
        if self.content_length.is_some() {
            return Err(Rejection::ManyContentLengths);
        }
        if value.is_empty() {
            return Err(Rejection::ContentLength);
        }
        let mut length = 0u64;
        for byte in value {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return Err(Rejection::ContentLength);
            }
            let next =
                length.checked_mul(10).and_then(|length| length.checked_add(u64::from(digit)));
            // Beyond this no reader agrees with another on what a length is.
            length = next.filter(|n| *n <= i64::MAX as u64).ok_or(Rejection::ContentLength)?;
        }
        self.content_length = Some(length);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Rejection> {
        if self.is_chunked {
            return Err(Rejection::TransferEncoding);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(refused_encoding(value));
        }
        self.is_chunked = true;
        Ok(())
    }

    fn finish(&self) -> Result<Head, Rejection> {
        if !self.has_host && !self.is_http_10 {
            return Err(Rejection::NoHost);
        }
        let body = match (self.is_chunked, self.content_length) {
            (true, Some(_)) => return Err(Rejection::LengthAndEncoding),
            (true, None) if self.is_http_10 => return Err(Rejection::EncodingInHttp10),
            (true, None) => BodyFraming::Chunked,
            (false, length) => BodyFraming::Length(length.unwrap_or(0)),
        };
        let is_last = self.says_close || (self.is_http_10 && !self.says_keep_alive);
        Ok(Head { length: self.position, body, is_last })
    }
}

/// A coding that we do not know is 501 (RFC 9112, section 6.1), and what is no list of codings, or has `chunked` where it
/// must not be, is 400.
fn refused_encoding(value: &[u8]) -> Rejection {
    let codings: Vec<&[u8]> = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).collect();
    let is_list =
        codings.iter().all(|coding| !coding.is_empty() && coding.iter().all(|b| is_token(*b)));
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_before_another = codings.iter().rev().skip(1).any(is_chunked);
    match is_list && !is_before_another {
        true => Rejection::UnknownTransferEncoding,
        false => Rejection::TransferEncoding,
    }
}

/// What became of a line.
enum Line {
    /// It is not complete.
    Partial,
    /// It was read, and is this long with its end.
    Read(usize),
    /// It is empty and ends the head.
    End(usize),
}

impl Line {
    fn read(length: Option<usize>) -> Line {
        length.map_or(Line::Partial, Line::Read)
    }
}

/// The length of the end of a line at the beginning of `rest`, if it is complete; `otherwise` if it is none.
fn line_end(rest: &[u8], otherwise: Rejection) -> Result<Option<usize>, Rejection> {
    match rest {
        [b'\n', ..] => Ok(Some(1)),
        [b'\r', b'\n', ..] => Ok(Some(2)),
        [] | [b'\r'] => Ok(None),
        _ => Err(otherwise),
    }
}

/// Takes one field line apart, without its end: a token, a colon, and a value without control characters.
pub(super) fn check_field_line(line: &[u8]) -> Result<(&[u8], &[u8]), Rejection> {
    let name_length = line.iter().take_while(|b| is_token(**b)).count();
    let (name, rest) = line.split_at(name_length);
    let Some((b':', value)) = rest.split_first() else {
        let is_fold = matches!(line.first(), Some(b' ' | b'\t'));
        return Err(if is_fold { Rejection::FoldedField } else { Rejection::FieldName });
    };
    if name.is_empty() {
        return Err(Rejection::FieldName);
    }
    let value = trim_blanks(value);
    if control_position(value).is_some() { Err(Rejection::FieldValue) } else { Ok((name, value)) }
}

/// Without the spaces and tabs around it, which alone are optional white space here.
fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Where the first control character other than a tab is.
fn control_position(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // Eight bytes at a time: most heads consist of values.
    let (words, _) = bytes.as_chunks::<8>();
    let has_none = |word: &&[u8; 8]| {
        let word = u64::from_ne_bytes(**word);
        let is_delete = word ^ (ONES * 0x7f);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        (below_space | (is_delete.wrapping_sub(ONES) & !is_delete)) & HIGH == 0
    };
    let skipped = words.iter().take_while(has_none).count() * 8;
    let is_control = |b: &u8| (*b < b' ' && *b != b'\t') || *b == 0x7f;
    bytes[skipped..].iter().position(is_control).map(|at| skipped + at)
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN_BYTES[usize::from(byte)]
}

const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x80u8 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(input: &[u8]) -> Result<Option<Head>, Rejection> {
        let whole = HeadParser::default().advance(input, 1024);
        // Byte by byte the verdict is the same, or comes earlier.
        let mut parser = HeadParser::default();
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

    fn head(input: &str) -> Head {
        parse(input.as_bytes()).expect(input).expect(input)
    }

    #[test]
    fn a_head_says_how_long_it_is_and_how_its_body_is_framed() {
        let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(
            head(plain),
            Head { length: plain.len(), body: BodyFraming::Length(0), is_last: false }
        );
        let sized = "POST / HTTP/1.1\r\nhost:a\r\ncontent-LENGTH:  07 \r\n\r\n";
        assert_eq!(head(sized).body, BodyFraming::Length(7));
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:Chunked \r\n\r\n";
        assert_eq!(head(chunked).body, BodyFraming::Chunked);
        let led = "\r\n\nGET / HTTP/1.1\nHost: a\n\n";
        assert_eq!(head(led).length, led.len());
    }

    #[test]
    fn a_head_says_whether_another_request_can_follow() {
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
    fn a_malformed_head_is_refused_for_its_fault() {
        let in_head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n".into(), Rejection::NoHost),
            (in_head("Host: a"), Rejection::ManyHosts),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".into(), Rejection::ManyHosts),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".into(), Rejection::Host),
            ("GET /\r\n\r\n".into(), Rejection::RequestLine),
            ("GET\r\n\r\n".into(), Rejection::RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET  HTTP/0.9\r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::Method),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::Method),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::Method),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Rejection::Method),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), Rejection::Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(), Rejection::Version),
            ("GET / HTTP/1.10\r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET / HTTP/0.9 \r\nHost: a\r\n\r\n".into(), Rejection::RequestLine),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), Rejection::Target),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), Rejection::FoldedField),
            (in_head("a: b\r\n c"), Rejection::FoldedField),
            (in_head("a : b"), Rejection::FieldName),
            (in_head(": b"), Rejection::FieldName),
            (in_head("a"), Rejection::FieldName),
            (in_head("a: b\0"), Rejection::FieldValue),
            (in_head("a: b\rc"), Rejection::FieldValue),
            (in_head("a: b\r"), Rejection::FieldValue),
            (in_head("Content-Length: "), Rejection::ContentLength),
            (in_head("Content-Length: +1"), Rejection::ContentLength),
            (in_head("Content-Length: 1, 1"), Rejection::ContentLength),
            (in_head("Content-Length: 0x1"), Rejection::ContentLength),
            (in_head("Content-Length: 18446744073709551616"), Rejection::ContentLength),
            (in_head("Content-Length: 1\r\nContent-Length: 1"), Rejection::ManyContentLengths),
            (
                in_head("Content-Length: 1\r\nTransfer-Encoding: chunked"),
                Rejection::LengthAndEncoding,
            ),
            (
                in_head("Transfer-Encoding: chunked\r\nContent-Length: 1"),
                Rejection::LengthAndEncoding,
            ),
            (
                in_head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
                Rejection::TransferEncoding,
            ),
            (in_head("Transfer-Encoding: chunked, chunked"), Rejection::TransferEncoding),
            (in_head("Transfer-Encoding: chunked, gzip"), Rejection::TransferEncoding),
            (in_head("Transfer-Encoding:"), Rejection::TransferEncoding),
            (in_head("Transfer-Encoding: chunked;a"), Rejection::TransferEncoding),
            (in_head("Transfer-Encoding: \x0bchunked"), Rejection::FieldValue),
            (in_head("Transfer-Encoding: foo, chunked"), Rejection::UnknownTransferEncoding),
            (in_head("Transfer-Encoding: identity"), Rejection::UnknownTransferEncoding),
            (in_head("Transfer-Encoding: gzip, chunked"), Rejection::UnknownTransferEncoding),
            (
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                Rejection::EncodingInHttp10,
            ),
        ];
        for (input, why) in cases {
            let input: String = input;
            assert_eq!(parse(input.as_bytes()), Err(why), "{input:?}");
        }
    }

    #[test]
    fn what_cannot_become_a_head_is_not_waited_for() {
        for bytes in
            [&b"\x16\x03\x01\x02"[..], b"G\0", b"GET /\0", b" ", b"GET / HTTP/1.1\rx", b"\rx"]
        {
            let outcome = HeadParser::default().advance(bytes, 1024);
            assert!(outcome.is_err(), "{:?}: {outcome:?}", bytes.escape_ascii().to_string());
        }
    }

    proptest! {
        #[test]
        fn control_characters_are_found_wherever_they_are(bytes: Vec<u8>) {
            let plain = bytes.iter().position(|b| b.is_ascii_control() && *b != b'\t');
            prop_assert_eq!(control_position(&bytes), plain);
        }
    }

    #[test]
    fn sizes_have_bounds() {
        let long = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
        assert!(parse(long(900).as_bytes()).is_ok());
        assert_eq!(parse(long(1100).as_bytes()), Err(Rejection::TargetTooLong));
        let many = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a:b\r\n".repeat(n));
        assert!(parse(many(99).as_bytes()).is_ok());
        assert_eq!(parse(many(100).as_bytes()), Err(Rejection::TooManyFields));
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\na: {}", "b".repeat(1000));
        assert_eq!(parse(large.as_bytes()), Err(Rejection::HeadTooLarge));
    }
}
