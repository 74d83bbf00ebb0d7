//! Validates request targets and `Host` values (RFC 9112, section 3.2; RFC 3986, section 3.2).
//!
//! Accepts no target that `http::Uri` rejects: hyper parses it again, and a request rejected there would get no
//! response.

use std::net::Ipv6Addr;

use super::request_head::alphanumeric_and;

/// The longest accepted target in bytes. The same as the limit of `http::Uri`, so that hyper never rejects a valid
/// target.
pub(super) const MAX_TARGET_LENGTH: usize = 65_534;

/// The bytes that `http::Uri` accepts in a path: RFC 3986, and some that clients send unescaped. Bytes from 0x80 up are
/// checked separately to be UTF-8.
const PATH_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x100 {
        table[byte] = matches!(
            byte as u8,
            b'!' | b'"' | b'$'..=b';' | b'=' | b'@'..=b'_' | b'a'..=b'~' | 0x80..
        );
        byte += 1;
    }
    table
};

/// The bytes accepted in a query, and in a fragment, which some clients send and `http::Uri` removes.
const QUERY_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x100 {
        table[byte] = matches!(byte as u8, b'!' | b'#'..=b';' | b'=' | b'?'..=b'~' | 0x80..);
        byte += 1;
    }
    table
};

/// The bytes of a host name except `%` and the comma, which would join two `Host` values.
const HOST_NAME_BYTES: [bool; 256] = alphanumeric_and(b"-._~!$&'()*+;=");

/// Whether a request with `method` may have this target.
pub(super) fn is_valid_target(method: &[u8], target: &[u8]) -> bool {
    match target {
        // CONNECT takes the authority form and no other; no other method takes it.
        _ if method == b"CONNECT" => is_host_and_port(target),
        [b'/', ..] => is_path_and_query(target),
        b"*" => method == b"OPTIONS",
        _ => is_absolute_uri(target),
    }
}

fn is_path_and_query(bytes: &[u8]) -> bool {
    let path_length = bytes.iter().take_while(|b| PATH_BYTES[usize::from(**b)]).count();
    let is_rest_valid = match &bytes[path_length..] {
        [] => true,
        [b'?' | b'#', rest @ ..] => rest.iter().all(|b| QUERY_BYTES[usize::from(*b)]),
        _ => false,
    };
    is_rest_valid && (bytes.is_ascii() || std::str::from_utf8(bytes).is_ok())
}

/// Whether `target` is an absolute `http` or `https` URI. Other schemes have no meaning to this server.
fn is_absolute_uri(target: &[u8]) -> bool {
    let Some(scheme_end) = target.windows(3).position(|three| three == b"://") else {
        return false;
    };
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return false;
    }
    let rest = &target[scheme_end + 3..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // `http::Uri` rejects a percent-encoded host.
    !authority.is_empty()
        && !matches!(authority[0], b':')
        && !authority.contains(&b'%')
        && is_valid_host(authority)
        && is_path_and_query(path)
}

fn is_host_and_port(target: &[u8]) -> bool {
    let port = target.iter().rposition(|b| *b == b':');
    let Some(colon) = port else { return false };
    colon > 0
        && colon + 1 < target.len()
        && !target.contains(&b'%')
        && is_valid_host(target)
        && target[colon + 1..].iter().all(u8::is_ascii_digit)
}

/// Whether `host` is a valid `Host` value: `uri-host [":" port]`, or empty, for targets without an authority.
pub(super) fn is_valid_host(host: &[u8]) -> bool {
    if host.first() == Some(&b'[') {
        let Some(end) = host.iter().position(|b| *b == b']') else { return false };
        return is_ip_literal(&host[1..end]) && is_optional_port(&host[end + 1..]);
    }
    let name_length = host.iter().take_while(|b| HOST_NAME_BYTES[usize::from(**b)]).count();
    match &host[name_length..] {
        [] => true,
        // A port needs a host before it.
        [b':', ..] => name_length > 0 && is_optional_port(&host[name_length..]),
        [b'%', high, low, rest @ ..] => {
            high.is_ascii_hexdigit() && low.is_ascii_hexdigit() && is_valid_host_rest(rest)
        }
        _ => false,
    }
}

/// Whether `rest` may follow a percent-encoded byte of a host name: more of the name, and a port.
fn is_valid_host_rest(rest: &[u8]) -> bool {
    rest.is_empty() || is_optional_port(rest) || (rest[0] != b'[' && is_valid_host(rest))
}

fn is_ip_literal(literal: &[u8]) -> bool {
    match literal {
        // IPvFuture = "v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" )
        [b'v' | b'V', rest @ ..] => {
            let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            let address = rest.get(digits + 1..).unwrap_or_default();
            digits > 0
                && rest.get(digits) == Some(&b'.')
                && !address.is_empty()
                && address
                    .iter()
                    .all(|b| matches!(b, b':' | b',') || HOST_NAME_BYTES[usize::from(*b)])
        }
        _ => std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()),
    }
}

/// Whether `bytes` is `[":" port]`, where the port may be empty and fits into 16 bits.
fn is_optional_port(bytes: &[u8]) -> bool {
    let [b':', digits @ ..] = bytes else { return bytes.is_empty() };
    digits.len() <= 5
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0u32, |port, d| port * 10 + u32::from(d - b'0')) <= 65_535
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Uri;
    use proptest::prelude::*;

    #[test]
    fn malformed_hosts_are_rejected() {
        let good = [
            "",
            "example.org",
            "a_b:1",
            "x:",
            "[::1]",
            "[::1]:80",
            "[2001:db8::1]:65535",
            "127.0.0.1:3000",
            "a%20b",
            "%41:80",
            "[v1.a:b]",
            "x:0080",
        ];
        for host in good {
            assert!(is_valid_host(host.as_bytes()), "{host}");
        }
        let bad = [
            "a b",
            "a/b",
            "a,b",
            "user@host",
            "[::1",
            "[]",
            "[]:80",
            "::1",
            "[::1]x",
            "[::1]80",
            "a:b",
            "a:65536",
            "a:123456",
            ":80",
            "a:1:2",
            "[fe80::1%lo]",
            "a%2",
            "a%zz",
            "[v.x]",
            "[v1.]",
            "a[",
            "]",
            "\u{e9}",
            "a%20[::1]",
        ];
        for host in bad {
            assert!(!is_valid_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn target_forms_are_accepted_only_with_their_methods() {
        let valid =
            |method: &str, target: &str| is_valid_target(method.as_bytes(), target.as_bytes());
        for target in [
            "/",
            "/a?b",
            "/a#b",
            "//x",
            "/%2e",
            "http://x",
            "HTTP://x:80/a?b",
            "https://[::1]/",
            "http://x?q",
        ] {
            assert!(valid("GET", target), "{target}");
        }
        let bad = [
            "*",
            "a:443",
            "x",
            "x:80",
            "?a",
            "#a",
            "ftp://x/",
            "http:///a",
            "http://",
            "http://u@x/",
            "http:/x",
            "://x",
            "http://:80/",
            "http://a%20b/",
            "/a b",
            "/a<b",
            "/a\u{7f}",
            "",
        ];
        for target in bad {
            assert!(!valid("GET", target), "{target}");
        }
        assert!(valid("OPTIONS", "*") && !valid("OPTIONS", "**"));
        assert!(valid("CONNECT", "a:443") && valid("CONNECT", "[::1]:1"));
        for target in ["/", "a", "a:", ":1", "http://x:1", "a:b", "a:1/", "*"] {
            assert!(!valid("CONNECT", target), "{target}");
        }
    }

    #[test]
    fn every_ascii_byte_is_accepted_exactly_where_uri_accepts_it() {
        for byte in (0..=127u8).filter(|byte| *byte != b'#') {
            for target in [vec![b'/', byte], vec![b'/', b'?', byte]] {
                let ours = is_valid_target(b"GET", &target);
                assert_eq!(ours, Uri::try_from(&*target).is_ok(), "{byte:#x} in {target:?}");
            }
        }
        assert!(
            !is_valid_target(b"GET", b"/\xff") && is_valid_target(b"GET", "/\u{e9}".as_bytes())
        );
    }

    proptest! {
        #[test]
        fn accepted_targets_are_accepted_by_uri(
            method in "(GET|CONNECT|OPTIONS)",
            target in "(http://|HTTPS://|/|\\*|)[a-z0-9:/?#@%\\[\\].~|é-]{0,12}",
        ) {
            if is_valid_target(method.as_bytes(), target.as_bytes()) {
                prop_assert!(Uri::try_from(&*target).is_ok(), "{method} {target}");
            }
        }
    }
}
