//! Spawns the tasks of HTTP/2 streams, and resets a stream that exceeds a timeout.
//!
//! hyper spawns a task per stream and cannot end one from outside. Dropping the stream's future makes `h2` send
//! RST_STREAM.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::Executor;
#[cfg(feature = "http2")]
pub(crate) use hyper::rt::bounds::Http2ServerConnExec;
use pin_project_lite::pin_project;

use crate::scoreboard::ByteMeter;
use crate::worker::http::connection_state::ConnectionState;
use crate::worker::http::timeouts::http_exchange::HttpExchange;

/// Replaces hyper's trait without the feature `http2`: nothing is required of an executor.
#[cfg(not(feature = "http2"))]
pub(crate) trait Http2ServerConnExec<F, B> {}

#[cfg(not(feature = "http2"))]
impl<X, F, B> Http2ServerConnExec<F, B> for X {}

/// Spawns the stream tasks of one connection on `inner`.
#[derive(Clone)]
pub(crate) struct Http2StreamExecutor<X> {
    inner: X,
    conn: Arc<ConnectionState>,
    meter: ByteMeter,
}

impl<X> Http2StreamExecutor<X> {
    pub(crate) fn new(
        inner: X,
        conn: Arc<ConnectionState>,
        meter: ByteMeter,
    ) -> Http2StreamExecutor<X> {
        Http2StreamExecutor { inner, conn, meter }
    }
}

impl<F, X> Executor<F> for Http2StreamExecutor<X>
where
    F: Future<Output = ()>,
    X: Executor<Http2StreamTask<F>>,
{
    fn execute(&self, future: F) {
        // hyper calls the service and spawns its task right after, on one thread. Other tasks it spawns have no
        // exchange.
        let exchange = self.conn.take_next_stream();
        self.inner.execute(Http2StreamTask { future, exchange, meter: self.meter });
    }
}

pin_project! {
    /// The task of one stream; ends early if the stream has to be reset.
    pub(crate) struct Http2StreamTask<F> {
        #[pin]
        future: F,
        exchange: Option<Arc<HttpExchange>>,
        meter: ByteMeter,
    }
}

impl<F: Future<Output = ()>> Future for Http2StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(exchange) = this.exchange else { return this.future.poll(cx) };
        exchange.register_waker(cx.waker());
        if exchange.is_reset() {
            return Poll::Ready(());
        }
        let polled = this.future.poll(cx);
        if polled.is_pending() {
            let now = this.meter.coarse_now_ms();
            // hyper polls the body as soon as the client's window has room.
            match exchange.has_response_started() && !exchange.is_body_pending() {
                true => exchange.sending.start(now),
                false => exchange.sending.stop(now),
            }
        }
        polled
    }
}
