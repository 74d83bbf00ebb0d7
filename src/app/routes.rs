//! Paths of the built-in application.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use super::body::Repeated;
use super::body_budget::{BodyBudget, BodyError};
use super::compute::{Fib, Hash, LARGEST_FIB, MOST_ROUNDS, fib, hex};
use super::static_files::StaticFiles;
use super::{AppOptions, Site, faults};
use tokio_prefork::pool::{PoolError, PoolJob};

pub(super) type Body = Either<Full<Bytes>, Repeated>;
type Answer = Response<Body>;

const LIST: &str = "\
/             which process answered
/cluster      every worker, as JSON
/healthz      200 while this worker lives
/readyz       200 while it accepts, 503 from the order to stop on
/sleep/{ms}   waits without working, up to 3600000
/fib/{n}      works without waiting, in the pool, up to 50; ?on=loop: on the event loop
/bytes/{n}    a body of n bytes, up to 1073741824
/echo         POST: the body comes back
/hash         POST: SHA-256 of the body, computed in the pool; ?rounds=n: hashed again, up to 100000000 times
";

/// The longest `/sleep`, in milliseconds: an hour.
const LONGEST_SLEEP: u64 = 3_600_000;
/// The largest `/bytes`: 1 GiB.
const LARGEST_BODY: u64 = 1 << 30;

/// The application in one worker.
pub(super) struct Routes<W> {
    worker: W,
    options: AppOptions,
    bodies: Arc<BodyBudget>,
    /// The files of `root`, which take the place of all paths but those of [`Routes::health`].
    pub(super) files: Option<StaticFiles>,
    /// The answer of `/`, made once.
    who: Bytes,
}

impl<W: Site> Routes<W> {
    pub(super) fn new(worker: W) -> Routes<W> {
        let options = worker.config().app_settings::<AppOptions>().cloned().unwrap_or_default();
        let files = options.files.clone().map(StaticFiles::new);
        let who = Bytes::from(format!("Handled by PID {}\n", worker.pid()));
        // One body always fits.
        let bodies = BodyBudget::new(options.max_buffered_bodies.max(options.max_body_size));
        Routes { worker, options, bodies, files, who }
    }

    /// The answers that need neither the body nor any time. Given at once they save hyper a read buffer: it takes a
    /// new one when it reads on while the request is still held.
    pub(super) fn at_once(&self, request: &Request<Incoming>) -> Option<Answer> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        match request.uri().path() {
            path if !self.offers(path) => None,
            "/" => Some(text(StatusCode::OK, self.who.clone())),
            "/cluster" => Some(self.cluster_json()),
            path => self.health(path.as_bytes()).map(|(status, says)| text(status, says)),
        }
    }

    /// The answers of `/healthz` and `/readyz`, which are the same beside the demonstration and beside files.
    pub(super) fn health(&self, path: &[u8]) -> Option<(StatusCode, &'static str)> {
        match path {
            _ if !self.options.health_paths => None,
            b"/healthz" => Some((StatusCode::OK, "ok\n")),
            b"/readyz" if self.worker.is_ready() => Some((StatusCode::OK, "ready\n")),
            b"/readyz" => Some((StatusCode::SERVICE_UNAVAILABLE, "draining\n")),
            _ => None,
        }
    }

    /// Whether `path` may be there: without the demonstration, only health checks are.
    fn offers(&self, path: &str) -> bool {
        self.options.demo || matches!(path, "/healthz" | "/readyz")
    }

    /// All other answers.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        if !self.offers(request.uri().path()) {
            return text(StatusCode::NOT_FOUND, "not found\n");
        }
        if request.uri().path() == "/echo" {
            return match *request.method() {
                Method::POST | Method::PUT => self.echo(request).await,
                _ => not_allowed("POST, PUT"),
            };
        }
        if request.uri().path() == "/hash" {
            return match *request.method() {
                Method::POST | Method::PUT => self.hash(request).await,
                _ => not_allowed("POST, PUT"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("GET, HEAD");
        }
        let path = request.uri().path();
        let (name, argument) = match path[1.min(path.len())..].split_once('/') {
            Some((name, argument)) => (name, Some(argument)),
            None => (&path[1.min(path.len())..], None),
        };
        match (name, argument) {
            ("sleep", Some(n)) => match n.parse() {
                Ok(ms @ 0..=LONGEST_SLEEP) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    text(StatusCode::OK, format!("slept for {ms} ms\n"))
                }
                _ => out_of_range(LONGEST_SLEEP),
            },
            ("fib", Some(n)) => match n.parse() {
                Ok(n @ 0..=LARGEST_FIB) => self.fib(n, request.uri().query()).await,
                _ => out_of_range(LARGEST_FIB),
            },
            ("bytes", Some(n)) => match n.parse() {
                Ok(n @ 0..=LARGEST_BODY) => Response::new(Either::Right(Repeated::new(n))),
                _ => out_of_range(LARGEST_BODY),
            },
            ("fault", Some("job-panic")) if self.options.faults => {
                self.compute(faults::panic_in_job, |()| "still alive\n".to_string()).await
            }
            ("fault", Some("job-hang")) if self.options.faults => {
                self.compute(faults::hang, |()| "slept for an hour in the pool\n".to_string()).await
            }
            ("fault", Some(name)) if self.options.faults => match faults::commit(name) {
                Some(done) => text(StatusCode::OK, done),
                None => {
                    let known = faults::NAMES.join(", ");
                    text(StatusCode::NOT_FOUND, format!("no such fault; there are: {known}\n"))
                }
            },
            _ => text(StatusCode::NOT_FOUND, format!("not found; there are:\n{LIST}")),
        }
    }

    fn cluster_json(&self) -> Answer {
        let mut answer = text(StatusCode::OK, self.worker.cluster_status().to_json());
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        answer
    }

    async fn fib(&self, n: u64, query: Option<&str>) -> Answer {
        let show = move |value| format!("fib({n}) = {value}\n");
        match query {
            None | Some("on=pool") => {
                // Abandoned ones have no value, and nobody to tell.
                self.compute(Fib(n), move |value| value.map_or(String::new(), show)).await
            }
            Some("on=loop") => text(StatusCode::OK, show(fib(n))),
            Some(_) => text(StatusCode::BAD_REQUEST, "give on=pool or on=loop\n"),
        }
    }

    async fn hash(&self, request: Request<Incoming>) -> Answer {
        let rounds = match request.uri().query() {
            None => Some(1),
            Some(query) => query.strip_prefix("rounds=").and_then(|n| n.parse().ok()),
        };
        let Some(rounds @ 1..=MOST_ROUNDS) = rounds else {
            return text(StatusCode::BAD_REQUEST, format!("give rounds=1 to {MOST_ROUNDS}\n"));
        };
        let pieces = match self.bodies.receive(request.into_body(), self.largest()).await {
            Ok(body) => vec![body],
            Err(e) => return self.bad_body(&e),
        };
        self.compute(Hash { pieces, rounds }, |hash| hash.map_or(String::new(), |h| hex(&h))).await
    }

    /// Runs a task in the pool, and shows its result.
    async fn compute<T: PoolJob>(&self, task: T, show: impl FnOnce(T::Output) -> String) -> Answer {
        match self.worker.pool().run(task).await {
            Ok(value) => text(StatusCode::OK, show(value)),
            Err(e) => refused(&e),
        }
    }

    /// The largest body, in bytes.
    fn largest(&self) -> usize {
        usize::try_from(self.options.max_body_size).unwrap_or(usize::MAX)
    }

    async fn echo(&self, request: Request<Incoming>) -> Answer {
        match self.bodies.receive(request.into_body(), self.largest()).await {
            Ok(body) => Response::new(Either::Left(Full::new(body))),
            Err(e) => self.bad_body(&e),
        }
    }

    fn bad_body(&self, error: &BodyError) -> Answer {
        match error {
            BodyError::TooLarge => text(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {} bytes (max-body-size)\n", self.largest()),
            ),
            BodyError::NoRoom => {
                let why = "no memory for the body: other requests use it (max-buffered-bodies)\n";
                try_later(StatusCode::SERVICE_UNAVAILABLE, why)
            }
            BodyError::Broken(e) => {
                text(StatusCode::BAD_REQUEST, format!("cannot read the body: {e}\n"))
            }
        }
    }
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn out_of_range(most: u64) -> Answer {
    text(StatusCode::BAD_REQUEST, format!("give a number from 0 to {most}\n"))
}

/// What a job that has no result means to the client.
fn refused(error: &PoolError) -> Answer {
    let status = match error {
        PoolError::Panicked { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        PoolError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let why = format!("{error}\n");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        try_later(status, why)
    } else {
        text(status, why)
    }
}

fn try_later(status: StatusCode, why: impl Into<Bytes>) -> Answer {
    let mut answer = text(status, why);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}
