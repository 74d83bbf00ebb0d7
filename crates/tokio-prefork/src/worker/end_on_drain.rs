//! Ends streams and response bodies when the worker starts to drain.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::Worker;

pin_project! {
    /// A stream or response body that ends when the worker starts to drain; see [`Worker::end_on_drain`].
    pub struct EndOnDrain<T> {
        #[pin]
        inner: T,
        draining: Pin<Box<dyn Future<Output = ()> + Send>>,
        is_ended: bool,
    }
}

impl Worker {
    /// Wraps a [`Stream`] or a response [`Body`] so that it ends, as if complete, when the worker starts to drain.
    ///
    /// For responses that would never end by themselves (server-sent events, long polls, logs that are followed): without it they
    /// delay the worker's exit up to `graceful-timeout` and are cut then. The client sees the regular end of the response and
    /// connects again, to another worker. To send a last item, chain it: the end is that of any stream.
    ///
    /// A WebSocket loop waits for [`Worker::draining`] beside its socket, and sends a close frame then.
    ///
    /// ```no_run
    /// # fn example<S: futures_core::Stream<Item = String>>(worker: tokio_prefork::Worker, events: S) {
    /// let events = worker.end_on_drain(events);
    /// # }
    /// ```
    pub fn end_on_drain<T>(&self, inner: T) -> EndOnDrain<T> {
        let worker = self.clone();
        let draining = Box::pin(async move { worker.draining().await });
        EndOnDrain { inner, draining, is_ended: false }
    }
}

impl<T> EndOnDrain<T> {
    /// Whether the end was reached, or the worker drains. Registers the task to be woken by the drain.
    fn poll_ended(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        *this.is_ended = *this.is_ended || this.draining.as_mut().poll(cx).is_ready();
        *this.is_ended
    }
}

impl<T: Stream> Stream for EndOnDrain<T> {
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        if self.as_mut().poll_ended(cx) {
            return Poll::Ready(None);
        }
        self.project().inner.poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.inner.size_hint().1)
    }
}

impl<T: Body> Body for EndOnDrain<T> {
    type Data = T::Data;
    type Error = T::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<T::Data>, T::Error>>> {
        if self.as_mut().poll_ended(cx) {
            return Poll::Ready(None);
        }
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended || self.inner.is_end_stream()
    }

    /// Promises no length, as the end may come early: with a `content-length`, the client would see an error.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
