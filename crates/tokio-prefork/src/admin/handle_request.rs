//! Answers one request to the admin listener.

use std::rc::Rc;

use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};

use super::access::{is_local_host, presents_token};
use super::connections::Connection;
use super::dashboard::dashboard_file;
use super::events;
use super::health::{self, HealthReport};
use super::overlay::overlay_response;
use super::pages::{PAGES, PageRequest};
use super::process::AdminState;
use super::response::{self, AdminBody};

/// The paths of health checks, which need no token.
const HEALTH_PATHS: [&str; 3] = ["/livez", "/readyz", "/healthz"];

const EVENTS_PATH: &str = "/events";

/// Answers a request. Only the stream of events waits for anything.
pub(crate) fn handle_request<B>(
    state: &Rc<AdminState>,
    connection: &Rc<Connection>,
    request: &Request<B>,
) -> Response<AdminBody> {
    connection.request_started();
    state.own_page.count_request();
    let mut response = answer(state, connection, request);
    if state.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| body.of_connection(Rc::clone(connection)))
}

fn answer<B>(
    state: &Rc<AdminState>,
    connection: &Rc<Connection>,
    request: &Request<B>,
) -> Response<AdminBody> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = response::text(
            StatusCode::METHOD_NOT_ALLOWED,
            "the admin listener answers GET and HEAD only\n",
        );
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    let path = request.uri().path();
    if let Some(refusal) = refuse_access(state, connection, request, path) {
        return refusal;
    }
    if let Some(name) = path.strip_prefix('/').filter(|_| HEALTH_PATHS.contains(&path)) {
        return health_response(state, name, request.uri().query());
    }
    if path == EVENTS_PATH {
        return events::events_response(state, request);
    }
    if let Some(response) = overlay_response(state, request) {
        return response;
    }
    if let Some(file) = dashboard_file(path) {
        return response::response(StatusCode::OK, file.content_type, file.body.as_bytes());
    }
    let Some((_, make_page)) = PAGES.iter().find(|(known, _)| *known == path) else {
        return unknown_path();
    };
    match make_page(&PageRequest { reader: &state.reader, headers: request.headers() }) {
        Some(page) => response::response(StatusCode::OK, page.content_type, page.body),
        None => unavailable("the primary has not published its status yet\n"),
    }
}

/// Refuses a request without the token, or one that reaches a listener without a token under a foreign name.
fn refuse_access<B>(
    state: &AdminState,
    connection: &Connection,
    request: &Request<B>,
    path: &str,
) -> Option<Response<AdminBody>> {
    let Some(token) = &state.token else {
        if connection.is_unix || is_local_host(request.uri(), request.headers()) {
            return None;
        }
        return Some(response::text(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host of the request is neither localhost nor an IP address, as that of a page of another site may be: ask by \
             address, set admin-token-file, or connect the proxy by a Unix socket\n",
        ));
    };
    if HEALTH_PATHS.contains(&path) || presents_token(request.headers(), token) {
        return None;
    }
    let mut refusal = response::text(
        StatusCode::UNAUTHORIZED,
        "send the token of admin-token-file: Authorization: Bearer TOKEN, or as the password of any user\n",
    );
    for challenge in [r#"Bearer realm="prefork""#, r#"Basic realm="prefork", charset="UTF-8""#] {
        refusal.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    Some(refusal)
}

fn health_response(state: &AdminState, name: &str, query: Option<&str>) -> Response<AdminBody> {
    let mut parameters = query.unwrap_or_default().split('&');
    let is_verbose = parameters.any(|one| one.split('=').next() == Some("verbose"));
    let HealthReport { status, text } = match name {
        "readyz" => health::readiness(name, &state.reader, is_verbose),
        _ => health::liveness(name, &state.reader, is_verbose),
    };
    response::text(status, text)
}

/// Returns an error that lists the known paths.
fn unknown_path() -> Response<AdminBody> {
    let pages = PAGES.iter().map(|(path, _)| *path);
    let known: Vec<&str> =
        HEALTH_PATHS.into_iter().chain(pages).chain([EVENTS_PATH, "/"]).collect();
    let text = format!("unknown path, try one of these:\n{}\n", known.join("\n"));
    response::text(StatusCode::NOT_FOUND, text)
}

/// Returns an error that asks to try again later.
pub(crate) fn unavailable(why: &str) -> Response<AdminBody> {
    let mut response = response::text(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
