//! The task of one HTTP/2 stream: ends it, and with that resets the stream, when its time is up.
//!
//! hyper spawns a task for each stream and has no way to end one from outside. What drops its future makes `h2` send
//! RST_STREAM.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::Executor;
#[cfg(feature = "http2")]
pub(crate) use hyper::rt::bounds::Http2ServerConnExec;
use pin_project_lite::pin_project;

use crate::scoreboard::Meter;
use crate::worker::http::connection_state::Conn;
use crate::worker::http::timeouts::http_exchange::Exchange;

/// Takes the place of hyper's trait where HTTP/2 is left out: nothing is asked of an executor.
#[cfg(not(feature = "http2"))]
pub(crate) trait Http2ServerConnExec<F, B> {}

#[cfg(not(feature = "http2"))]
impl<X, F, B> Http2ServerConnExec<F, B> for X {}

/// Spawns the tasks of one connection's streams on `inner`.
#[derive(Clone)]
pub(crate) struct StreamExecutor<X> {
    inner: X,
    conn: Arc<Conn>,
    meter: Meter,
}

impl<X> StreamExecutor<X> {
    pub(crate) fn new(inner: X, conn: Arc<Conn>, meter: Meter) -> StreamExecutor<X> {
        StreamExecutor { inner, conn, meter }
    }
}

impl<F, X> Executor<F> for StreamExecutor<X>
where
    F: Future<Output = ()>,
    X: Executor<StreamTask<F>>,
{
    fn execute(&self, future: F) {
        // hyper calls the service and spawns right after that, on one thread. What it spawns besides has no exchange.
        let exchange = self.conn.take_next_stream();
        self.inner.execute(StreamTask { future, exchange, meter: self.meter });
    }
}

pin_project! {
    /// A stream's future, until it ends or is cut.
    pub(crate) struct StreamTask<F> {
        #[pin]
        future: F,
        exchange: Option<Arc<Exchange>>,
        meter: Meter,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(exchange) = this.exchange else { return this.future.poll(cx) };
        exchange.watch(cx.waker());
        if exchange.is_cut() {
            return Poll::Ready(());
        }
        let polled = this.future.poll(cx);
        if polled.is_pending() {
            let now = this.meter.now_ms();
            // hyper asks the body for more as soon as the client has room.
            match exchange.has_begun() && !exchange.is_body_pending() {
                true => exchange.sending.wait(now),
                false => exchange.sending.stop(now),
            }
        }
        polled
    }
}
