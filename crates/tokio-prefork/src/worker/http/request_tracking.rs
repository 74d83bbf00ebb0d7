//! Tracks requests on the scoreboard and in the connection state, from their head to the end of their response.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderValue, STRICT_TRANSPORT_SECURITY};
use hyper::{Request, Response, StatusCode};

use super::connection_state::ConnectionState;
use super::request_identity::{IdentityFields, RequestIdentity};
use super::request_observers::RequestObservers;
use super::request_record::RequestRecord;
use super::serve_context::ServeContext;
use super::timeouts::http_exchange::{HttpExchange, RequestExpiry};
use super::timeouts::request_deadline::RequestDeadline;
use crate::client::ConnectionInfo;
use crate::https_redirect::HttpsRedirect;
use crate::scoreboard::{InFlightEntry, RequestClass, RequestRecorder};
use crate::text::panic_text;
use crate::worker::spans::RequestSpan;
use prefork_os::system::{monotonic_ms, monotonic_ns};

/// How many characters of a request line the log shows.
const MAX_LOGGED_REQUEST_LENGTH: usize = 200;

/// Tracks the requests of one connection.
pub(crate) struct RequestTracker<H: ServeContext> {
    pub(crate) context: H::Ptr<H>,
    pub(crate) conn: Arc<ConnectionState>,
    /// What the extensions of each request get.
    pub(crate) info: Option<ConnectionInfo>,
    /// What answers in place of the application, if the listener only redirects to https.
    pub(crate) https_redirect: Option<Arc<HttpsRedirect>>,
    /// The value of `Strict-Transport-Security` for responses without one; `None` without TLS.
    pub(crate) hsts: Option<HeaderValue>,
}

/// A request in progress. Dropping this ends the request.
pub(crate) struct TrackedRequest<H: ServeContext> {
    pub(crate) tracker: H::Ptr<RequestTracker<H>>,
    ticket: Option<InFlightEntry>,
    /// Timeouts of this request: for HTTP/2, and if `request-timeout` is set.
    exchange: Option<Arc<HttpExchange>>,
    /// Method and, once it is known, status, for the count of finished requests.
    class: Cell<RequestClass>,
    /// When it started, in nanoseconds on the monotonic clock; 0 if nothing needs its duration.
    started_ns: u64,
    /// `None` without `request-id`.
    identity: Option<Box<RequestIdentity>>,
    /// The span that the handler and the body run in.
    span: RequestSpan,
    /// `None` if nothing observes the requests.
    record: Option<Box<RequestRecord>>,
}

impl<H: ServeContext> TrackedRequest<H> {
    /// Starts to track `request`.
    pub(crate) fn begin(
        tracker: &H::Ptr<RequestTracker<H>>,
        request: &mut Request<Incoming>,
    ) -> TrackedRequest<H> {
        let now = tracker.context.now_ms();
        let exchange = tracker.create_exchange(request, now);
        tracker.conn.begin_request(now);
        if let Some(info) = &tracker.info
            && tracker.context.config().gives_connection_info(|| request.uri().path())
        {
            info.insert_into(request.extensions_mut());
        }
        let identity = tracker
            .context
            .request_ids()
            .map(|ids| RequestIdentity::assign(ids, request, tracker.info.as_ref()));
        let span = RequestSpan::new(request, tracker.info.as_ref(), identity.as_deref());
        let class = Cell::new(RequestClass::of_method(request.method()));
        let context = &*tracker.context;
        let is_measured = context.config().measures_durations()
            || context.observers().is_some_and(RequestObservers::needs_durations);
        let started_ns = if is_measured { monotonic_ns() } else { 0 };
        let record = context.observers().and_then(|observers| {
            let (info, wait) = (tracker.info.as_ref(), tracker.conn.take_queue_wait());
            context.with_line_buffer(|buffer| {
                observers.request_started(request, info, started_ns, wait, buffer)
            })
        });
        let ticket = tracker.context.worker_page().request_started(
            request.method().as_str(),
            request.uri().path(),
            now,
        );
        if let Some(identity) = &identity {
            let (client, id) = (&identity.client, identity.id.as_str());
            tracker.context.worker_page().set_request_details(ticket, client, id);
        }
        let tracker = tracker.clone();
        TrackedRequest { tracker, ticket, exchange, class, started_ns, identity, span, record }
    }

    /// Returns why the request ends early, if it does.
    pub(crate) fn expiry(&self) -> Option<RequestExpiry> {
        let stream = self.exchange.as_ref().and_then(|exchange| exchange.expiry());
        stream.or_else(|| self.tracker.conn.request_expiry())
    }

    /// Records that the handler produced the head of `response`, which observers may change.
    pub(crate) fn set_response_started<B: Body>(&mut self, response: &mut Response<B>) {
        self.set_status(response.status());
        if let Some(identity) = &self.identity {
            identity.add_to_response(response);
        }
        if let (Some(record), Some(observers)) =
            (&mut self.record, self.tracker.context.observers())
        {
            observers.response_started(record, response);
        }
        if let Some(exchange) = &self.exchange {
            exchange.set_response_started();
        }
        self.tracker.conn.set_response_started();
    }

    /// Records that the handler returned an error instead of a response.
    pub(crate) fn set_handler_failed(&mut self) {
        self.set_status(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(record) = &mut self.record {
            record.handler_failed();
        }
    }

    fn set_status(&self, status: StatusCode) {
        self.span.record_status(status);
        let mut class = self.class.get();
        class.set_status(status.as_u16());
        self.class.set(class);
    }

    /// Counts the request, which has ended. Returns when, in nanoseconds; 0 if nothing needs its duration.
    fn count(&self) -> u64 {
        let context = &self.tracker.context;
        context.worker_page().request_counted(self.class.get());
        if self.started_ns == 0 {
            return 0;
        }
        let ended_ns = monotonic_ns();
        if context.config().measures_durations() {
            let took_us = ended_ns.saturating_sub(self.started_ns) / 1000;
            context.worker_page().request_measured(took_us);
        }
        ended_ns
    }

    /// Records what the response body returned when hyper polled it.
    pub(crate) fn record_body_poll<E>(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, E>>>) {
        if let (Some(record), Poll::Ready(polled)) = (&mut self.record, polled) {
            record.body_polled(polled.as_ref().map(|frame| frame.as_ref()));
        }
        self.set_body_pending(polled.is_pending());
    }

    /// Records whether the response body has nothing to send at the moment.
    fn set_body_pending(&self, is_pending: bool) {
        if let Some(exchange) = &self.exchange {
            exchange.set_body_pending(is_pending);
        }
        self.tracker.conn.set_response_body_pending(is_pending);
    }

    /// Runs part of the handler and marks the request on the scoreboard as the one that occupies the event loop.
    ///
    /// Returns `None` if it panicked.
    pub(crate) fn run_handler<T>(&self, run: impl FnOnce() -> T) -> Option<T> {
        let context = &self.tracker.context;
        context.worker_page().set_running_request(self.ticket);
        let done = catch_unwind(AssertUnwindSafe(|| self.in_scope(run)));
        context.worker_page().set_running_request(None);
        done.map_err(|panic| self.report_panic(&*panic)).ok()
    }

    /// Runs part of the handler or of the response body inside of the request's span, with its id as the current one.
    pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
        self.span.in_scope(|| match &self.identity {
            None => run(),
            Some(identity) => identity.run(run),
        })
    }

    #[cold]
    fn report_panic(&self, panic: &(dyn Any + Send)) {
        let context = &self.tracker.context;
        context.worker_page().handler_panicked();
        let text = panic_text(panic);
        let request = context
            .worker_page()
            .describe_request(self.ticket)
            .unwrap_or_else(|| "a request".to_string());
        let tag = context.tag();
        let fields = IdentityFields(self.identity.as_deref());
        log::error!("{tag} the handler of {request}{fields} panicked: {text}");
    }

    /// Logs and counts that the request took longer than `request-timeout`.
    #[cold]
    fn report_timeout(&self, exchange: &HttpExchange) {
        let context = &self.tracker.context;
        context.worker_page().request_timed_out();
        let how = match exchange.has_application_response() {
            true => "in the middle of its response",
            false => "with 503",
        };
        let (tag, request) = (context.tag(), &exchange.request_line);
        let fields = IdentityFields(self.identity.as_deref());
        log::warn!("{tag} ended {request}{fields} {how}: it exceeded request-timeout");
    }
}

impl<H: ServeContext> RequestTracker<H> {
    /// Prepares for the requests of a connection.
    pub(crate) fn new(
        context: H::Ptr<H>,
        conn: Arc<ConnectionState>,
        info: Option<&ConnectionInfo>,
    ) -> RequestTracker<H> {
        let https_redirect = info.and_then(ConnectionInfo::https_redirect).map(Arc::clone);
        if https_redirect.is_some() {
            // The next worker may not have this listener any more, and would pass requests to the application.
            conn.pin_to_worker();
        }
        let hsts = context.config().hsts.filter(|_| info.is_some_and(ConnectionInfo::is_tls));
        let hsts = hsts.map(|hsts| hsts.header_value());
        RequestTracker { context, conn, info: info.cloned(), https_redirect, hsts }
    }

    /// Adds `Strict-Transport-Security` to a response over TLS that has none.
    pub(crate) fn add_hsts<B>(&self, response: &mut Response<B>) {
        if let Some(hsts) = &self.hsts {
            response.headers_mut().entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
        }
    }

    /// Creates the timeouts of `request`, if it has any, and puts its deadline into its extensions.
    fn create_exchange(
        &self,
        request: &mut Request<Incoming>,
        now_ms: u64,
    ) -> Option<Arc<HttpExchange>> {
        let timeout = self.context.config().request_timeout;
        let http2 = self.conn.http2();
        if timeout.is_none() && http2.is_none() {
            return None;
        }
        let deadline = timeout.map(|timeout| RequestDeadline::after(timeout, monotonic_ms()));
        let mut name = String::new();
        if let Some(deadline) = &deadline {
            request.extensions_mut().insert(deadline.clone());
            let line = format!("{} {}", request.method(), request.uri());
            name = line.escape_default().take(MAX_LOGGED_REQUEST_LENGTH).collect();
        }
        let exchange = HttpExchange::new(deadline, name);
        self.conn.exchanges.add(&exchange);
        if let Some(streams) = http2 {
            streams.assign_next_stream(&exchange, now_ms);
            self.conn.set_next_stream(&exchange);
        }
        Some(exchange)
    }
}

impl<H: ServeContext> Drop for TrackedRequest<H> {
    fn drop(&mut self) {
        let RequestTracker { context, conn, .. } = &*self.tracker;
        let ended_ns = self.count();
        context.worker_page().request_finished(self.ticket);
        if let Some(exchange) = &self.exchange {
            conn.exchanges.remove(exchange);
            if let Some(streams) = conn.http2() {
                streams.detach_exchange(exchange);
            }
            if exchange.expiry() == Some(RequestExpiry::Deadline) {
                self.report_timeout(exchange);
            }
        }
        conn.end_request(context.now_ms());
        if let Some(record) = self.record.take() {
            // The request of an upgraded connection ends with it.
            match record.is_upgrade() && conn.is_upgraded() {
                true => conn.set_upgrade_record(record),
                false => context.report_ended(record, ended_ns),
            }
        }
    }
}
