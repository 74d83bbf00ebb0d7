//! Requests that say their length twice, and hosts that are said twice or not at all.
//!
//! A message with both `Content-Length` and `Transfer-Encoding` is how requests are smuggled past a proxy.
//! hyper lets the latter win, hides the former and closes the connection, which RFC 9112 allows; we refuse
//! it, as nginx and gunicorn do. As hyper has dropped the header before we see the request, the raw head is
//! looked at; only for requests with `Transfer-Encoding`, which are few. If the head cannot be found any
//! more, hyper's safe behaviour remains.

use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use hyper::{Method, Request, Version};

/// What the header fields say that we have to know. Read in one go: most requests have few fields, and looking
/// for each by its name costs more.
#[derive(Debug, Default)]
pub(super) struct Fields {
    hosts: usize,
    bad_host: bool,
    encoded: bool,
    /// The client asks for the end of the connection after this request.
    pub(super) close: bool,
    /// An older client asks that it goes on.
    pub(super) keep_alive: bool,
}

impl Fields {
    pub(super) fn of(headers: &HeaderMap) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in headers {
            let is = |known: HeaderName| *name == known;
            if is(HOST) {
                fields.hosts += 1;
                fields.bad_host |= !is_host(value.as_bytes());
            } else if is(CONNECTION) {
                fields.close |= value.as_bytes().eq_ignore_ascii_case(b"close");
                fields.keep_alive |= value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
            } else if is(TRANSFER_ENCODING) {
                fields.encoded = true;
            }
        }
        fields
    }
}

/// Why a request is answered with 400, whatever its handler would say.
pub(super) fn fault<B>(
    request: &Request<B>,
    fields: &Fields,
    recent: impl FnOnce() -> Vec<u8>,
) -> Option<&'static str> {
    if request.version() == Version::HTTP_2 {
        return None;
    }
    match fields.hosts {
        0 if request.version() == Version::HTTP_11 => return Some("no Host header"),
        1 if fields.bad_host => return Some("malformed Host header"),
        0 | 1 => {}
        _ => return Some("more than one Host header"),
    }
    if fields.encoded {
        let target = request.uri().path_and_query().map_or("*", |p| p.as_str());
        if has_both(&recent(), request.method(), target) {
            return Some("both Content-Length and Transfer-Encoding");
        }
    }
    None
}

/// What no host and port contains: control characters, spaces, slashes, commas and the like.
const NO_HOST: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] =
            matches!(byte, b'/' | b'\\' | b',' | b'@' | b'?' | b'#' | b'<' | b'>' | b'"');
        byte += 1;
    }
    table
};

/// May be empty (RFC 9110, section 7.2, for targets without an authority).
fn is_host(host: &[u8]) -> bool {
    !host.iter().any(|b| NO_HOST[usize::from(*b)])
}

/// Whether among the raw bytes is a head for this method and target that has both headers.
fn has_both(raw: &[u8], method: &Method, target: &str) -> bool {
    let line = format!("{method} {target} HTTP/1.1");
    memchr::memmem::find_iter(raw, line.as_bytes())
        .filter(|at| *at == 0 || raw[*at - 1] == b'\n')
        .any(|at| {
            let (mut length, mut encoding) = (false, false);
            let lines = raw[at..].split(|b| *b == b'\n').skip(1);
            for line in lines.map(<[u8]>::trim_ascii_end).take_while(|line| !line.is_empty()) {
                let name = line.split(|b| *b == b':').next().unwrap_or_default();
                length |= name.eq_ignore_ascii_case(b"content-length");
                encoding |= name.eq_ignore_ascii_case(b"transfer-encoding");
            }
            length && encoding
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[u8] =
        b"POST /a HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\nTransfer-encoding: chunked\r\n\r\n";

    #[test]
    fn a_head_with_both_is_found_in_either_order_and_among_others() {
        assert!(has_both(BOTH, &Method::POST, "/a"));
        let other = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        assert!(has_both(other, &Method::POST, "/a"));
        let piped = [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", BOTH].concat();
        assert!(has_both(&piped, &Method::POST, "/a"));
    }

    #[test]
    fn neighbours_do_not_matter() {
        let piped = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiPOST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(!has_both(piped, &Method::POST, "/b"));
        assert!(!has_both(BOTH, &Method::POST, "/b"));
    }

    #[test]
    fn hosts_are_checked() {
        for good in ["", "example.org", "[::1]:80", "a_b:1"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in ["a b", "a/b", "a,b", "user@host"] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
        let request = |host: Option<&str>| {
            let builder = Request::get("/");
            host.map_or(Request::get("/"), |h| builder.header("host", h)).body(()).expect("request")
        };
        let fault = |r: &Request<()>| fault(r, &Fields::of(r.headers()), Vec::new);
        assert_eq!(fault(&request(Some("x"))), None);
        assert_eq!(fault(&request(None)), Some("no Host header"));
    }
}
