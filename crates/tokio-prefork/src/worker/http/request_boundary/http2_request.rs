//! What an HTTP/2 request must not be (RFC 9113, section 8.3), beyond what hyper refuses: the same of its authority, its
//! scheme and its target as of an HTTP/1 request.

use hyper::header::HOST;
use hyper::{Method, Request};

use super::rejection::Rejection;
use super::request_target::is_valid_host;

/// Why a request is refused, if it is.
pub(crate) fn check_http2_request<B>(request: &Request<B>) -> Result<(), Rejection> {
    let (method, uri) = (request.method(), request.uri());
    if method.as_str() == "PRI" {
        return Err(Rejection::Method);
    }
    let authority = uri.authority().map(|authority| authority.as_str());
    if authority.is_some_and(|text| !is_valid_host(text.as_bytes())) {
        return Err(Rejection::Host);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (authority, hosts.next()) {
        (None, None) => return Err(Rejection::NoHost),
        // Another host than the authority: section 8.3.1.
        (Some(text), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(text.as_bytes()) => {
            return Err(Rejection::Host);
        }
        (_, Some(host)) if !is_valid_host(host.as_bytes()) => return Err(Rejection::Host),
        _ => {}
    }
    if hosts.next().is_some() {
        return Err(Rejection::ManyHosts);
    }
    if *method == Method::CONNECT {
        return Ok(());
    }
    let is_served = match uri.scheme_str() {
        Some(scheme) => matches!(scheme, "http" | "https"),
        None => authority.is_none(),
    };
    let is_target = uri.path() != "*" || *method == Method::OPTIONS;
    if is_served && is_target { Ok(()) } else { Err(Rejection::Target) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, hosts: &[&str]) -> Result<(), Rejection> {
        let mut request = Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        check_http2_request(&request.body(()).expect("request"))
    }

    #[test]
    fn authority_and_host_are_parsed_and_agree() {
        assert_eq!(check("GET", "http://x:80/", &[]), Ok(()));
        assert_eq!(check("GET", "http://x/", &["X"]), Ok(()));
        assert_eq!(check("GET", "/", &["x"]), Ok(()));
        assert_eq!(check("GET", "/", &[]), Err(Rejection::NoHost));
        assert_eq!(check("GET", "http://x/", &["y"]), Err(Rejection::Host));
        assert_eq!(check("GET", "/", &["x", "x"]), Err(Rejection::ManyHosts));
        assert_eq!(check("GET", "http://u@x/", &[]), Err(Rejection::Host));
        for host in ["[::1", "[]", "a b", "a/b", "::1", "x:99999"] {
            assert_eq!(check("GET", "/", &[host]), Err(Rejection::Host), "{host}");
        }
    }

    #[test]
    fn method_scheme_and_target_are_those_of_a_request() {
        assert_eq!(check("PRI", "http://x/", &[]), Err(Rejection::Method));
        assert_eq!(check("GET", "ftp://x/", &[]), Err(Rejection::Target));
        assert_eq!(check("GET", "*", &["x"]), Err(Rejection::Target));
        assert_eq!(check("OPTIONS", "*", &["x"]), Ok(()));
        assert_eq!(check("CONNECT", "x:443", &[]), Ok(()));
    }
}
