//! Memory limit for the request bodies that the built-in application buffers, over all requests of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

/// Limits the memory that all buffered bodies of a worker use together, in bytes.
#[derive(Debug)]
pub(super) struct BodyBudget {
    limit: u64,
    used: AtomicU64,
}

/// Reason why a request body could not be read.
#[derive(Debug)]
pub(super) enum ReadBodyError {
    /// The body exceeds the maximum size of a single body.
    TooLarge,
    /// All buffered bodies together would exceed the budget.
    BudgetExhausted,
    /// The connection broke off, or the body is malformed.
    Broken(hyper::Error),
}

/// A body in memory; releases its bytes to the budget when dropped.
struct BudgetedBuffer {
    data: Vec<u8>,
    reserved: u64,
    budget: Arc<BodyBudget>,
}

impl BodyBudget {
    pub(super) fn new(limit: u64) -> Arc<BodyBudget> {
        Arc::new(BodyBudget { limit, used: AtomicU64::new(0) })
    }

    fn try_reserve(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Reads a body of at most `max_size` bytes into memory.
    ///
    /// A body whose `Content-Length` is larger is not read at all, so its client does not get a `100 Continue`. The budget
    /// is charged until the last clone of the result is dropped.
    pub(super) async fn read_body(
        self: &Arc<BodyBudget>,
        mut body: Incoming,
        max_size: usize,
    ) -> Result<Bytes, ReadBodyError> {
        if body.size_hint().lower() > max_size as u64 {
            return Err(ReadBodyError::TooLarge);
        }
        let mut buffer = BudgetedBuffer { data: Vec::new(), reserved: 0, budget: Arc::clone(self) };
        while let Some(frame) = body.frame().await {
            // Other frames are trailers.
            if let Ok(chunk) = frame.map_err(ReadBodyError::Broken)?.into_data() {
                buffer.append(&chunk, max_size)?;
            }
        }
        Ok(Bytes::from_owner(buffer))
    }
}

impl BudgetedBuffer {
    /// Appends a copy of `chunk`. Keeping the received chunks themselves would keep far larger read buffers alive.
    fn append(&mut self, chunk: &[u8], max_size: usize) -> Result<(), ReadBodyError> {
        let length = self.data.len() + chunk.len();
        if length > max_size {
            return Err(ReadBodyError::TooLarge);
        }
        if length > self.data.capacity() {
            let capacity = length.max(self.data.capacity() * 2).min(max_size);
            let additional = (capacity as u64).saturating_sub(self.reserved);
            if !self.budget.try_reserve(additional) {
                return Err(ReadBodyError::BudgetExhausted);
            }
            self.reserved += additional;
            self.data.reserve_exact(capacity - self.data.len());
        }
        self.data.extend_from_slice(chunk);
        Ok(())
    }
}

impl AsRef<[u8]> for BudgetedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for BudgetedBuffer {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.reserved, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_enforced_and_released_with_the_last_clone() {
        let budget = BodyBudget::new(100);
        let new = || BudgetedBuffer { data: Vec::new(), reserved: 0, budget: Arc::clone(&budget) };
        let mut first = new();
        assert!(matches!(first.append(&[0; 51], 50), Err(ReadBodyError::TooLarge)));
        for _ in 0..60 {
            first.append(&[1], 64).expect("room");
        }
        assert_eq!(budget.used.load(Relaxed), 64, "allocated bytes are charged");
        let mut second = new();
        assert!(matches!(second.append(&[0; 40], 64), Err(ReadBodyError::BudgetExhausted)));
        second.append(&[0; 36], 64).expect("room");
        let kept = Bytes::from_owner(first);
        let part = kept.slice(..1);
        drop((kept, second));
        assert_eq!(budget.used.load(Relaxed), 64, "a slice still holds the buffer");
        drop(part);
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
