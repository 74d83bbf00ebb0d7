//! Parses a request head that has arrived as a whole in one pass, which is how almost all of them arrive.

use super::request_head::{
    RequestHead, RequestHeadParser, count_token_bytes, find_control_character,
};
use super::request_target::{MAX_TARGET_LENGTH, is_valid_target};

/// Parses the complete, valid HTTP/1.1 head of at most `max_size` bytes that `input` starts with.
///
/// Returns what [`RequestHeadParser::advance`] would return, or `None`: for a head that is incomplete, malformed or unusual, and
/// then only that parser tells which.
pub(super) fn parse_whole_head(input: &[u8], max_size: usize) -> Option<RequestHead> {
    let (method, after_method) = match input {
        [b'G', b'E', b'T', b' ', rest @ ..] => (&input[..3], rest),
        _ => match input.split_at(count_token_bytes(input)) {
            (b"" | b"PRI", _) => return None,
            (method, [b' ', rest @ ..]) => (method, rest),
            _ => return None,
        },
    };
    let target_length = after_method.iter().position(|b| *b <= b' ' || *b == 0x7f)?;
    let (target, after_target) = after_method.split_at(target_length);
    let mut rest = after_target.strip_prefix(b" HTTP/1.1\r\n")?;
    if target.len() > MAX_TARGET_LENGTH || !is_valid_target(method, target) {
        return None;
    }
    let mut fields = RequestHeadParser::default();
    while !rest.starts_with(b"\r\n") {
        let name_length = count_token_bytes(rest);
        let (name, after_name) = rest.split_at(name_length);
        let [b':', value @ ..] = after_name else { return None };
        let (value, end) = value.split_at(find_control_character(value)?);
        let [b'\r', b'\n', next @ ..] = end else { return None };
        if name.is_empty() {
            return None;
        }
        fields.parse_field(name, value).ok()?;
        rest = next;
    }
    let length = input.len() - rest.len() + 2;
    if length > max_size { None } else { fields.complete_head(length).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Parts of heads: valid, malformed, and those that the parser leaves to the other one.
    const PARTS: [&str; 24] = [
        "GET / HTTP/1.1\r\n",
        "POST /a?b HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "PRI * HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET /\t HTTP/1.1\r\n",
        "Host: a\r\n",
        "host:127.0.0.1:3000\r\n",
        "Host: a b\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, x\r\n",
        "Content-Length: 5\r\n",
        "Content-Length:\t5\r\n",
        "Content-Length: x\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "X: some value that is longer than a word\t of the processor\r\n",
        " folded\r\n",
        ": nameless\r\n",
        "X: \u{1}\r\n",
        "X: y\n",
        "\r\n",
    ];

    /// Checks that a head which is accepted here is what the other parser returns. Returns whether one was.
    fn check(input: &[u8], max_size: usize) -> bool {
        let by_line = RequestHeadParser::default().advance_by_line(input, max_size);
        match parse_whole_head(input, max_size) {
            Some(head) => {
                assert_eq!(by_line, Ok(Some(head)), "{:?}", input.escape_ascii().to_string());
                true
            }
            None => false,
        }
    }

    #[test]
    fn usual_heads_are_parsed_in_one_pass() {
        let heads = [
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-Field: some value\r\nConnection: close\r\n\r\n",
        ];
        for head in heads {
            assert!(check(head.as_bytes(), 1024), "{head:?}");
            assert!(!check(head.as_bytes(), 20), "{head:?} is larger than the limit");
        }
    }

    proptest! {
        #[test]
        fn both_parsers_agree_about_accepted_heads(
            first in 0usize..8,
            parts in prop::collection::vec(8usize..PARTS.len(), 0..6),
            cut in 0usize..8,
        ) {
            let mut input = PARTS[first].to_string();
            parts.iter().for_each(|part| input.push_str(PARTS[*part]));
            input.push_str("\r\nGET / HTTP/1.1\r\n");
            check(&input.as_bytes()[..input.len() - cut], 120);
        }

        #[test]
        fn both_parsers_agree_about_changed_bytes(
            changes in prop::collection::vec((0usize..64, any::<u8>()), 1..4),
        ) {
            let mut input = b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nContent-Length: 10\r\n\r\n".to_vec();
            for (at, byte) in changes {
                let at = at % input.len();
                input[at] = byte;
            }
            check(&input, 1024);
        }
    }
}
