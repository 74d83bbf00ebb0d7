//! The spans of `tracing`: one for the worker, one for each request. Nothing without the feature `tracing`.
//!
//! A span exists only if a subscriber wants it. The subscriber may be installed before the fork or by the application's boot
//! function, so the span of the worker is created again after the boot if nobody wanted it before.

#[cfg(feature = "tracing")]
pub(crate) use enabled::{RequestSpan, WorkerSpan};

#[cfg(feature = "tracing")]
mod enabled {
    use std::sync::OnceLock;

    use hyper::{Request, StatusCode};
    use tracing::span::{EnteredSpan, Span};
    use tracing::{Level, field};

    use crate::client::{ClientInfo, ConnectionInfo, TraceParent};
    use crate::worker::Worker;
    use crate::worker::http::request_identity::RequestIdentity;
    use prefork_supervisor::WorkerTag;

    /// The span of this worker, once a subscriber wanted it. Set after the fork only.
    static OF_PROCESS: OnceLock<Span> = OnceLock::new();

    /// The span of the worker, entered on a thread with an event loop for as long as this exists.
    pub(crate) struct WorkerSpan(Option<EnteredSpan>);

    impl WorkerSpan {
        /// Enters the span of the worker, if a subscriber wants it. Everything that the thread runs is then inside.
        pub(crate) fn enter(tag: WorkerTag) -> WorkerSpan {
            if OF_PROCESS.get().is_none() {
                // At this level, so that it is there for every event that is.
                let span = tracing::span!(
                    target: "tokio_prefork",
                    parent: None,
                    Level::ERROR,
                    "worker",
                    worker = tag.id.0,
                    slot = tag.slot.0,
                    generation = tag.generation.0,
                    pid = tag.pid,
                    kind = tag.kind,
                );
                if !span.is_disabled() {
                    let _ = OF_PROCESS.set(span);
                }
            }
            WorkerSpan(OF_PROCESS.get().map(|span| span.clone().entered()))
        }

        /// Enters the span if nobody wanted it before the boot.
        pub(crate) fn enter_after_boot(self, tag: WorkerTag) -> WorkerSpan {
            if self.0.is_some() { self } else { WorkerSpan::enter(tag) }
        }
    }

    impl Worker {
        /// Returns the span of this worker, with the fields `worker`, `slot`, `generation`, `pid` and `kind`. Disabled if no
        /// subscriber of `tracing` wants it.
        ///
        /// Event loops are inside of it. Enter it in threads of your own, and set it as the parent of spans that have none.
        pub fn span(&self) -> Span {
            OF_PROCESS.get().cloned().unwrap_or_else(Span::none)
        }
    }

    /// The span of a request.
    pub(crate) struct RequestSpan(Span);

    impl RequestSpan {
        /// Creates the span of `request`, if a subscriber wants it.
        pub(crate) fn new<B>(
            request: &Request<B>,
            connection: Option<&ConnectionInfo>,
            identity: Option<&RequestIdentity>,
        ) -> RequestSpan {
            let span = tracing::span!(
                target: "tokio_prefork",
                parent: OF_PROCESS.get().and_then(Span::id),
                Level::INFO,
                "request",
                method = request.method().as_str(),
                path = request.uri().path(),
                version = ?request.version(),
                client = field::Empty,
                request_id = field::Empty,
                trace_id = field::Empty,
                status = field::Empty,
            );
            if !span.is_disabled() {
                match (identity, connection) {
                    (Some(identity), _) => {
                        span.record("client", identity.client.as_str());
                        span.record("request_id", identity.id.as_str());
                    }
                    (None, Some(connection)) => {
                        let client = ClientInfo::client_of(connection, request.headers());
                        span.record("client", field::display(client));
                    }
                    (None, None) => {}
                }
                if let Some(parent) = TraceParent::of_headers(request.headers()) {
                    span.record("trace_id", field::display(parent.trace_id));
                }
            }
            RequestSpan(span)
        }

        /// Runs a part of the handler, or of the response body, inside of the span.
        pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
            self.0.in_scope(run)
        }

        /// Records the status of the response.
        pub(crate) fn record_status(&self, status: StatusCode) {
            self.0.record("status", status.as_u16());
        }
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) use disabled::{RequestSpan, WorkerSpan};

#[cfg(not(feature = "tracing"))]
mod disabled {
    use hyper::{Request, StatusCode};

    use crate::client::ConnectionInfo;
    use crate::worker::http::request_identity::RequestIdentity;
    use prefork_supervisor::WorkerTag;

    /// Stands for the span of the worker.
    pub(crate) struct WorkerSpan;

    impl WorkerSpan {
        pub(crate) fn enter(_tag: WorkerTag) -> WorkerSpan {
            WorkerSpan
        }

        pub(crate) fn enter_after_boot(self, _tag: WorkerTag) -> WorkerSpan {
            self
        }
    }

    /// Stands for the span of a request.
    pub(crate) struct RequestSpan;

    impl RequestSpan {
        #[inline(always)]
        pub(crate) fn new<B>(
            _request: &Request<B>,
            _connection: Option<&ConnectionInfo>,
            _identity: Option<&RequestIdentity>,
        ) -> RequestSpan {
            RequestSpan
        }

        #[inline(always)]
        pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
            run()
        }

        #[inline(always)]
        pub(crate) fn record_status(&self, _status: StatusCode) {}
    }
}
