//! Routes of the built-in application: demonstration, health checks and fault injection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use super::body_budget::{BodyBudget, ReadBodyError};
use super::compute::{FibJob, HashJob, MAX_FIB_INPUT, MAX_HASH_ROUNDS, fib, hex_line};
use super::isolated::{FaultPool, isolated_job_name, respond_with_isolated_job};
use super::static_files::{FileBody, StaticFiles};
use super::websocket::accept_websocket;
use super::zero_body::ZeroBody;
use super::{AppOptions, faults};
use tokio_prefork::pool::{PoolError, PoolJob};
use tokio_prefork::text::format_utc;
use tokio_prefork::{ClientInfo, ConnectionInfo, ProxyHeader, RequestId, TlsInfo, Worker};

/// All bodies of the application: to wrap one after the response is made would copy the response.
pub(super) type AppBody = Either<Either<Full<Bytes>, ZeroBody>, FileBody>;
pub(super) type AppResponse = Response<AppBody>;

const PATH_LIST: &str = "\
/             pid of the worker that answered
/cluster      state of all workers, as JSON
/client       who has sent this request, as JSON: through which proxy, and for which client
/healthz      200 while the worker runs
/readyz       200 while the worker accepts, 503 once it drains
/sleep/{ms}   waits without using CPU, up to 3600000
/fib/{n}      computes in the CPU pool, up to 50; ?on=loop: on the event loop
/bytes/{n}    a body of n bytes, up to 1073741824
/echo         POST: returns the body
/hash         POST: SHA-256 of the body, computed in the CPU pool; ?rounds=n: hashed n times, up to 100000000
/websocket    a WebSocket that sends each message back
";

/// The path that answers with who has sent the request.
pub(crate) const CLIENT_PATH: &str = "/client";

/// Maximum of `/sleep/{ms}`: one hour.
const MAX_SLEEP_MS: u64 = 3_600_000;
/// Maximum of `/bytes/{n}`: 1 GiB.
const MAX_GENERATED_BODY: u64 = 1 << 30;

/// Routes of the application in one worker.
pub(super) struct AppRoutes {
    worker: Worker,
    options: AppOptions,
    body_budget: Arc<BodyBudget>,
    /// Static file server, if `root` is set. It replaces all paths except those of [`AppRoutes::health_status`].
    pub(super) files: Option<StaticFiles>,
    /// The pool of isolated processes that faults run in; only with `--faults`.
    fault_pool: Option<FaultPool>,
    /// Response body of `/`, rendered once.
    pid_text: Bytes,
}

impl AppRoutes {
    pub(super) fn new(worker: Worker, fault_pool: Option<FaultPool>) -> AppRoutes {
        let options = worker.config().app_settings::<AppOptions>().cloned().unwrap_or_default();
        let files = options.files.clone().map(StaticFiles::new);
        let pid_text = Bytes::from(format!("Handled by PID {}\n", worker.pid()));
        // The budget must admit at least one body of the maximum size.
        let body_budget = BodyBudget::new(options.max_buffered_bodies.max(options.max_body_size));
        AppRoutes { worker, options, body_budget, files, fault_pool, pid_text }
    }

    /// Answers requests that need neither the body nor any waiting; `None` for all others.
    ///
    /// An immediate answer saves a read buffer: hyper allocates a new one if it reads while the request is still held.
    pub(super) fn try_respond_immediately(
        &self,
        request: &mut Request<Incoming>,
    ) -> Option<AppResponse> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        match request.uri().path() {
            path if !self.is_enabled(path) => None,
            "/" => Some(text_response_to(request, StatusCode::OK, self.pid_text.clone())),
            "/cluster" => Some(json_response(self.worker.cluster_status().to_json())),
            CLIENT_PATH => Some(json_response(client_json(&ClientInfo::of(request)))),
            path => match path.strip_prefix("/bytes/") {
                Some(length) => Some(bytes_response(request, length.parse())),
                None => self
                    .health_status(path.as_bytes())
                    .map(|(status, body)| text_response(status, body)),
            },
        }
    }

    /// Returns status and body of `/healthz` and `/readyz`; `None` for other paths, or if `health-paths` is off.
    pub(super) fn health_status(&self, path: &[u8]) -> Option<(StatusCode, &'static str)> {
        match path {
            _ if !self.options.health_paths => None,
            b"/healthz" => Some((StatusCode::OK, "ok\n")),
            b"/readyz" if self.worker.is_ready() => Some((StatusCode::OK, "ready\n")),
            b"/readyz" => Some((StatusCode::SERVICE_UNAVAILABLE, "draining\n")),
            _ => None,
        }
    }

    /// Returns whether `path` may be served: without the demonstration only health checks are.
    fn is_enabled(&self, path: &str) -> bool {
        self.options.demo || matches!(path, "/healthz" | "/readyz")
    }

    /// Answers all requests that [`AppRoutes::try_respond_immediately`] does not.
    pub(super) async fn respond(&self, request: Request<Incoming>) -> AppResponse {
        if let Some(pool) = &self.fault_pool
            && let Some(job) = isolated_job_name(request.uri().path())
        {
            return respond_with_isolated_job(pool, job).await;
        }
        if !self.is_enabled(request.uri().path()) {
            return text_response(StatusCode::NOT_FOUND, "not found\n");
        }
        if request.uri().path() == "/echo" {
            return method_not_allowed("POST, PUT");
        }
        if request.uri().path() == "/hash" {
            return match *request.method() {
                Method::POST | Method::PUT => self.hash_response(request).await,
                _ => method_not_allowed("POST, PUT"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return method_not_allowed("GET, HEAD");
        }
        if request.uri().path() == "/websocket" {
            return accept_websocket(request, &self.worker, self.max_body_size());
        }
        let path = request.uri().path();
        let (name, argument) = match path[1.min(path.len())..].split_once('/') {
            Some((name, argument)) => (name, Some(argument)),
            None => (&path[1.min(path.len())..], None),
        };
        match (name, argument) {
            ("sleep", Some(n)) => match n.parse() {
                Ok(ms @ 0..=MAX_SLEEP_MS) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    text_response(StatusCode::OK, format!("slept for {ms} ms\n"))
                }
                _ => out_of_range_response(MAX_SLEEP_MS),
            },
            ("fib", Some(n)) => match n.parse() {
                Ok(n @ 0..=MAX_FIB_INPUT) => self.fib_response(n, request.uri().query()).await,
                _ => out_of_range_response(MAX_FIB_INPUT),
            },
            ("fault", Some("job-panic")) if self.options.faults => {
                self.run_in_pool(faults::panic_in_job, |()| "still alive\n".to_string()).await
            }
            ("fault", Some("job-hang")) if self.options.faults => {
                self.run_in_pool(faults::block_thread, |()| {
                    "slept for an hour in the pool\n".to_string()
                })
                .await
            }
            ("fault", Some(name)) if self.options.faults => match faults::inject_fault(name) {
                Some(done) => text_response(StatusCode::OK, done),
                None => {
                    let known = faults::FAULT_NAMES.join(", ");
                    text_response(
                        StatusCode::NOT_FOUND,
                        format!("unknown fault; available faults: {known}\n"),
                    )
                }
            },
            _ => text_response(
                StatusCode::NOT_FOUND,
                format!("not found; available paths:\n{PATH_LIST}"),
            ),
        }
    }

    async fn fib_response(&self, n: u64, query: Option<&str>) -> AppResponse {
        let show = move |value| format!("fib({n}) = {value}\n");
        match query {
            None | Some("on=pool") => {
                // A cancelled job has no value, and its client is gone.
                self.run_in_pool(FibJob(n), move |value| value.map_or(String::new(), show)).await
            }
            Some("on=loop") => text_response(StatusCode::OK, show(fib(n))),
            Some(_) => text_response(StatusCode::BAD_REQUEST, "give on=pool or on=loop\n"),
        }
    }

    async fn hash_response(&self, request: Request<Incoming>) -> AppResponse {
        let rounds = match request.uri().query() {
            None => Some(1),
            Some(query) => query.strip_prefix("rounds=").and_then(|n| n.parse().ok()),
        };
        let Some(rounds @ 1..=MAX_HASH_ROUNDS) = rounds else {
            return text_response(
                StatusCode::BAD_REQUEST,
                format!("give rounds=1 to {MAX_HASH_ROUNDS}\n"),
            );
        };
        let pieces =
            match self.body_budget.read_body(request.into_body(), self.max_body_size()).await {
                Ok(body) => vec![body],
                Err(e) => return self.body_error_response(&e),
            };
        self.run_in_pool(HashJob { pieces, rounds }, |hash| {
            hash.map_or(String::new(), |h| hex_line(&h))
        })
        .await
    }

    /// Runs a job in the CPU pool and answers with its formatted result.
    async fn run_in_pool<T: PoolJob>(
        &self,
        task: T,
        format: impl FnOnce(T::Output) -> String,
    ) -> AppResponse {
        match self.worker.pool().run(task).await {
            Ok(value) => text_response(StatusCode::OK, format(value)),
            Err(e) => pool_error_response(&e),
        }
    }

    /// Returns the maximum size of a request body in bytes.
    fn max_body_size(&self) -> usize {
        usize::try_from(self.options.max_body_size).unwrap_or(usize::MAX)
    }

    /// Whether the answer to `request` is its body.
    pub(super) fn is_echo(&self, request: &Request<Incoming>) -> bool {
        self.options.demo
            && request.uri().path() == "/echo"
            && matches!(*request.method(), Method::POST | Method::PUT)
    }

    /// Answers with `body`, the body of a request, and `fields`.
    pub(super) async fn echo(&self, body: Incoming, fields: HeaderMap) -> AppResponse {
        match self.body_budget.read_body(body, self.max_body_size()).await {
            Ok(body) => {
                let mut answer = Response::new(full_body(body));
                *answer.headers_mut() = fields;
                answer
            }
            Err(e) => self.body_error_response(&e),
        }
    }

    fn body_error_response(&self, error: &ReadBodyError) -> AppResponse {
        match error {
            ReadBodyError::TooLarge => text_response(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {} bytes (max-body-size)\n", self.max_body_size()),
            ),
            ReadBodyError::BudgetExhausted => {
                let why =
                    "no memory left for the body: other requests use it (max-buffered-bodies)\n";
                retry_later_response(StatusCode::SERVICE_UNAVAILABLE, why)
            }
            ReadBodyError::Broken(e) => {
                text_response(StatusCode::BAD_REQUEST, format!("cannot read the body: {e}\n"))
            }
        }
    }
}

/// Describes the sender of a request as JSON. An address that is not known is `null`.
fn client_json(info: &ClientInfo) -> String {
    let connection = info.connection();
    let proxy_header = connection.and_then(ConnectionInfo::proxy_header);
    let answer = serde_json::json!({
        "client": info.client().to_string(),
        "client_ip": info.client().ip(),
        "client_port": info.client().port(),
        "peer": info.peer().map(ToString::to_string),
        "local": info.local().map(ToString::to_string),
        "listener": connection.map(|connection| connection.listener().to_string()),
        "proxy_source": proxy_header.map(ProxyHeader::source),
        "proxy_destination": proxy_header.map(ProxyHeader::destination),
        "scheme": info.scheme(),
        "host": info.host(),
        "tls": connection.and_then(ConnectionInfo::tls).map(tls_json),
        "request_id": info.request_id().map(RequestId::as_str),
    });
    format!("{answer}\n")
}

/// Describes what a TLS handshake has agreed on.
fn tls_json(tls: &TlsInfo) -> serde_json::Value {
    let certificate = tls.client_certificate().map(|certificate| {
        let time = |time: SystemTime| {
            let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format_utc(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
        };
        serde_json::json!({
            "subject": certificate.subject(),
            "issuer": certificate.issuer(),
            "serial_number": certificate.serial_number(),
            "sha256_fingerprint": certificate.sha256_fingerprint(),
            "not_before": time(certificate.not_before()),
            "not_after": time(certificate.not_after()),
            "dns_names": certificate.dns_names(),
            "email_addresses": certificate.email_addresses(),
            "uris": certificate.uris(),
            "ip_addresses": certificate.ip_addresses(),
        })
    });
    serde_json::json!({
        "version": tls.version(),
        "cipher_suite": tls.cipher_suite(),
        "alpn_protocol": tls.alpn_protocol(),
        "server_name": tls.server_name(),
        "is_resumed": tls.is_resumed(),
        "client_certificate": certificate,
    })
}

fn json_response(json: String) -> AppResponse {
    let mut answer = text_response(StatusCode::OK, json);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

pub(super) fn text_response(status: StatusCode, body: impl Into<Bytes>) -> AppResponse {
    let mut answer = Response::new(full_body(body));
    set_text(&mut answer, status);
    answer
}

/// Returns a text response, which uses the memory of the fields of `request` again.
fn text_response_to(
    request: &mut Request<Incoming>,
    status: StatusCode,
    body: impl Into<Bytes>,
) -> AppResponse {
    let mut answer = Response::new(full_body(body));
    reuse_fields(&mut answer, request);
    set_text(&mut answer, status);
    answer
}

fn set_text(answer: &mut AppResponse, status: StatusCode) {
    *answer.status_mut() = status;
    let plain_text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain_text);
}

pub(super) fn full_body(body: impl Into<Bytes>) -> AppBody {
    Either::Left(Either::Left(Full::new(body.into())))
}

/// The largest capacity of a map of fields that is used again: hyper keeps that of the last response with the connection.
const MAX_REUSED_FIELDS: usize = 16;

/// Empties the fields of a request, for its response: the memory of the map is there already.
pub(super) fn emptied(mut fields: HeaderMap) -> HeaderMap {
    if fields.capacity() > MAX_REUSED_FIELDS {
        return HeaderMap::new();
    }
    fields.clear();
    fields
}

/// Gives the map of the fields of `request`, emptied, to `answer`: its memory is there already.
fn reuse_fields(answer: &mut AppResponse, request: &mut Request<Incoming>) {
    if request.headers().capacity() <= MAX_REUSED_FIELDS {
        // A swap, because to drop an empty map costs something, too.
        std::mem::swap(answer.headers_mut(), request.headers_mut());
        answer.headers_mut().clear();
    }
}

/// Answers `/bytes/{n}`.
fn bytes_response(
    request: &mut Request<Incoming>,
    length: Result<u64, std::num::ParseIntError>,
) -> AppResponse {
    let Ok(length @ 0..=MAX_GENERATED_BODY) = length else {
        return out_of_range_response(MAX_GENERATED_BODY);
    };
    let mut answer = Response::new(Either::Left(Either::Right(ZeroBody::new(length))));
    reuse_fields(&mut answer, request);
    answer
}

fn method_not_allowed(methods: &'static str) -> AppResponse {
    let mut answer = text_response(StatusCode::METHOD_NOT_ALLOWED, format!("use {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn out_of_range_response(max: u64) -> AppResponse {
    text_response(StatusCode::BAD_REQUEST, format!("give a number from 0 to {max}\n"))
}

/// Maps a failed pool job to a response.
fn pool_error_response(error: &PoolError) -> AppResponse {
    let status = match error {
        PoolError::Panicked { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        PoolError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let why = format!("{error}\n");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        retry_later_response(status, why)
    } else {
        text_response(status, why)
    }
}

fn retry_later_response(status: StatusCode, why: impl Into<Bytes>) -> AppResponse {
    let mut answer = text_response(status, why);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}
