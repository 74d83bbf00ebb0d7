//! Redirects requests for plain HTTP to https, and serves the files of ACME challenges beside that.
//!
//! It answers in place of the application, on connections whose listener is one of `https-redirect`. So workers, limits, timeouts,
//! counters and the access log treat these requests as any others.

mod challenge_dir;
mod host;
mod hsts;
mod redirect_addr;

use std::future::{Future, ready};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};

use challenge_dir::{ChallengeDir, ChallengeError};
pub use hsts::Hsts;
pub use redirect_addr::RedirectAddr;
pub(crate) use redirect_addr::RedirectOptions;

/// Path below which ACME servers ask for the response to a challenge (RFC 8555, section 8.3).
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// The port that https URLs leave out.
const DEFAULT_HTTPS_PORT: u16 = 443;

type RedirectResponse = Response<Full<Bytes>>;

/// Resolves to the response to a request at a redirecting listener.
pub(crate) type RedirectFuture = Pin<Box<dyn Future<Output = RedirectResponse> + Send>>;

/// What a redirecting listener answers.
#[derive(Debug)]
pub(crate) struct HttpsRedirect {
    /// The port of the https URLs.
    port: u16,
    challenges: Option<Arc<ChallengeDir>>,
}

impl HttpsRedirect {
    /// Creates the redirect to `port`, by default 443. Challenges are served from `challenge_dir`.
    pub(crate) fn new(port: Option<u16>, challenge_dir: Option<&Path>) -> HttpsRedirect {
        let port = port.unwrap_or(DEFAULT_HTTPS_PORT);
        HttpsRedirect { port, challenges: challenge_dir.map(ChallengeDir::new).map(Arc::new) }
    }

    /// Answers `request`, whose body is not read.
    pub(crate) fn respond<B>(&self, request: &Request<B>) -> RedirectFuture {
        if let Some(challenges) = &self.challenges
            && let Some(token) = request.uri().path().strip_prefix(CHALLENGE_PATH)
        {
            return match *request.method() {
                Method::GET | Method::HEAD => {
                    let read = Arc::clone(challenges).read(token);
                    Box::pin(async move { challenge_response(read.await) })
                }
                _ => {
                    let mut refused = text_response(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
                    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                    Box::pin(ready(refused))
                }
            };
        }
        Box::pin(ready(self.redirect(request)))
    }

    fn redirect<B>(&self, request: &Request<B>) -> RedirectResponse {
        if request.method() == Method::CONNECT {
            return text_response(StatusCode::BAD_REQUEST, "this address only redirects to https");
        }
        let Some(location) = self.location(request) else {
            return text_response(
                StatusCode::BAD_REQUEST,
                "the host of the request is missing or invalid, so there is no https URL to redirect to",
            );
        };
        let mut response = text_response(StatusCode::PERMANENT_REDIRECT, "use https");
        response.headers_mut().insert(LOCATION, location);
        response
    }

    /// Returns the https URL of `request`; `None` if its host is missing or invalid.
    fn location<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        // That of an absolute-form target replaces `Host` (RFC 9112, section 3.2.2).
        let authority = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => request.headers().get(HOST)?.to_str().ok()?,
        };
        let mut location = String::from("https://");
        location.push_str(&host::normalize_host(authority)?);
        if self.port != DEFAULT_HTTPS_PORT {
            location.push_str(&format!(":{}", self.port));
        }
        push_path_and_query(&mut location, request.uri());
        HeaderValue::try_from(location).ok()
    }
}

/// Appends path and query with all bytes escaped that no header value may contain.
fn push_path_and_query(location: &mut String, uri: &Uri) {
    let path = match uri.path() {
        // The target of OPTIONS for the server as a whole.
        "*" => "/",
        path => path,
    };
    let query = uri.query().map(|query| ["?", query]).into_iter().flatten();
    for byte in [path].into_iter().chain(query).flat_map(str::bytes) {
        match byte {
            b'!'..=b'~' => location.push(char::from(byte)),
            _ => location.push_str(&format!("%{byte:02X}")),
        }
    }
}

fn challenge_response(read: Result<Vec<u8>, ChallengeError>) -> RedirectResponse {
    match read {
        Ok(content) => {
            let mut response = Response::new(Full::new(content.into()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            response
        }
        Err(ChallengeError::NotFound) => {
            text_response(StatusCode::NOT_FOUND, "there is no such challenge")
        }
        Err(ChallengeError::Unavailable) => text_response(
            StatusCode::SERVICE_UNAVAILABLE,
            "the file of the challenge cannot be read now",
        ),
    }
}

/// Builds a plain-text response. The text contains nothing of the request.
fn text_response(status: StatusCode, text: &'static str) -> RedirectResponse {
    let mut response = Response::new(Full::new(Bytes::from(format!("{status}: {text}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests;
