//! Runs a function for each item of an iterator, with a bound on how many are under way.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::{CancelFlag, JobFuture, Pool, PoolError, PoolJob};

/// The results of [`Pool::map`], in the order of the items, as a [`Stream`].
///
/// Items are taken from the iterator as results are read. Dropping it cancels the jobs that are under way.
#[must_use = "nothing runs before the first result is asked for"]
pub struct JobMap<I: Iterator, F, T>
where
    I::Item: Send + 'static,
    F: Fn(I::Item) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    pool: Pool,
    /// `None` after its end.
    items: Option<I>,
    bound: usize,
    function: Arc<F>,
    under_way: VecDeque<JobFuture<MapJob<F, I::Item>>>,
}

/// Calls the function for one item.
struct MapJob<F, X> {
    function: Arc<F>,
    item: X,
}

impl<F, X, T> PoolJob for MapJob<F, X>
where
    F: Fn(X) -> T + Send + Sync + 'static,
    X: Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(self, _: &CancelFlag<'_>) -> T {
        (self.function)(self.item)
    }
}

impl<I, F, T> JobMap<I, F, T>
where
    I: Iterator,
    I::Item: Send + 'static,
    F: Fn(I::Item) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    pub(super) fn new(pool: Pool, items: I, bound: usize, function: F) -> JobMap<I, F, T> {
        let (bound, function) = (bound.max(1), Arc::new(function));
        JobMap { pool, items: Some(items), bound, function, under_way: VecDeque::new() }
    }

    /// Submits jobs until as many are under way as the bound allows.
    fn submit_next(&mut self) {
        while self.under_way.len() < self.bound
            && let Some(items) = &mut self.items
        {
            match items.next() {
                Some(item) => {
                    let job = MapJob { function: Arc::clone(&self.function), item };
                    self.under_way.push_back(self.pool.run_when_room(job));
                }
                None => self.items = None,
            }
        }
    }

    /// Returns the next result; `None` after the last one. Needs no trait for streams.
    pub async fn next_result(&mut self) -> Option<Result<T, PoolError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Waits for the next result on the calling thread, as [`JobFuture::wait`] does; `None` after the last one.
    pub fn wait_next(&mut self) -> Option<Result<T, PoolError>> {
        self.submit_next();
        self.under_way.pop_front().map(JobFuture::wait)
    }
}

// No field is pinned.
impl<I: Iterator, F, T> Unpin for JobMap<I, F, T>
where
    I::Item: Send + 'static,
    F: Fn(I::Item) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
}

impl<I, F, T> Stream for JobMap<I, F, T>
where
    I: Iterator,
    I::Item: Send + 'static,
    F: Fn(I::Item) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    type Item = Result<T, PoolError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T, PoolError>>> {
        let this = self.get_mut();
        this.submit_next();
        let Some(first) = this.under_way.front_mut() else { return Poll::Ready(None) };
        let result = std::task::ready!(Pin::new(first).poll(cx));
        this.under_way.pop_front();
        Poll::Ready(Some(result))
    }
}

impl<I: Iterator, F, T> fmt::Debug for JobMap<I, F, T>
where
    I::Item: Send + 'static,
    F: Fn(I::Item) -> T + Send + Sync + 'static,
    T: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobMap({:?}, {} under way)", self.pool, self.under_way.len())
    }
}
