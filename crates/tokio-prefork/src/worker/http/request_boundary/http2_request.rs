//! Validates HTTP/2 requests beyond what hyper rejects (RFC 9113, section 8.3).
//!
//! Authority, scheme and target follow the same rules as in an HTTP/1 request.

use hyper::header::HOST;
use hyper::{Method, Request};

use super::rejection::RequestRejection;
use super::request_target::is_valid_host;

/// Checks method, authority, scheme and target of an HTTP/2 request.
pub(crate) fn check_http2_request<B>(request: &Request<B>) -> Result<(), RequestRejection> {
    let (method, uri) = (request.method(), request.uri());
    if method.as_str() == "PRI" {
        return Err(RequestRejection::Method);
    }
    let authority = uri.authority().map(|authority| authority.as_str());
    if authority.is_some_and(|text| !is_valid_host(text.as_bytes())) {
        return Err(RequestRejection::Host);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (authority, hosts.next()) {
        (None, None) => return Err(RequestRejection::MissingHost),
        // RFC 9113, section 8.3.1: Host must not differ from the authority.
        (Some(text), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(text.as_bytes()) => {
            return Err(RequestRejection::Host);
        }
        (_, Some(host)) if !is_valid_host(host.as_bytes()) => return Err(RequestRejection::Host),
        _ => {}
    }
    if hosts.next().is_some() {
        return Err(RequestRejection::MultipleHosts);
    }
    if *method == Method::CONNECT {
        return Ok(());
    }
    let is_http_scheme = match uri.scheme_str() {
        Some(scheme) => matches!(scheme, "http" | "https"),
        None => authority.is_none(),
    };
    let is_valid_target = uri.path() != "*" || *method == Method::OPTIONS;
    if is_http_scheme && is_valid_target { Ok(()) } else { Err(RequestRejection::Target) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, hosts: &[&str]) -> Result<(), RequestRejection> {
        let mut request = Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        check_http2_request(&request.body(()).expect("request"))
    }

    #[test]
    fn authority_and_host_must_be_valid_and_agree() {
        assert_eq!(check("GET", "http://x:80/", &[]), Ok(()));
        assert_eq!(check("GET", "http://x/", &["X"]), Ok(()));
        assert_eq!(check("GET", "/", &["x"]), Ok(()));
        assert_eq!(check("GET", "/", &[]), Err(RequestRejection::MissingHost));
        assert_eq!(check("GET", "http://x/", &["y"]), Err(RequestRejection::Host));
        assert_eq!(check("GET", "/", &["x", "x"]), Err(RequestRejection::MultipleHosts));
        assert_eq!(check("GET", "http://u@x/", &[]), Err(RequestRejection::Host));
        for host in ["[::1", "[]", "a b", "a/b", "::1", "x:99999"] {
            assert_eq!(check("GET", "/", &[host]), Err(RequestRejection::Host), "{host}");
        }
    }

    #[test]
    fn invalid_methods_schemes_and_targets_are_rejected() {
        assert_eq!(check("PRI", "http://x/", &[]), Err(RequestRejection::Method));
        assert_eq!(check("GET", "ftp://x/", &[]), Err(RequestRejection::Target));
        assert_eq!(check("GET", "*", &["x"]), Err(RequestRejection::Target));
        assert_eq!(check("OPTIONS", "*", &["x"]), Ok(()));
        assert_eq!(check("CONNECT", "x:443", &[]), Ok(()));
    }
}
