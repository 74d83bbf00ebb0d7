//! Request bodies that the built-in application holds in memory: bounded over all requests of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

/// Bytes that all bodies of a worker may take together.
#[derive(Debug)]
pub(super) struct BodyBudget {
    limit: u64,
    used: AtomicU64,
}

/// Why a body was not received.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It is larger than one body may be.
    TooLarge,
    /// All bodies together are larger than they may be.
    NoRoom,
    /// It broke off or is malformed.
    Broken(hyper::Error),
}

/// A body in memory; gives its bytes back to the budget when it is dropped.
struct Buffer {
    data: Vec<u8>,
    taken: u64,
    budget: Arc<BodyBudget>,
}

impl BodyBudget {
    pub(super) fn new(limit: u64) -> Arc<BodyBudget> {
        Arc::new(BodyBudget { limit, used: AtomicU64::new(0) })
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Receives `body` if it has at most `max_size` bytes. One that says beforehand that it is larger is not read at all,
    /// so its client gets no `100 Continue` either. The budget is charged until the last clone of the result is dropped.
    pub(super) async fn receive(
        self: &Arc<BodyBudget>,
        mut body: Incoming,
        max_size: usize,
    ) -> Result<Bytes, BodyError> {
        if body.size_hint().lower() > max_size as u64 {
            return Err(BodyError::TooLarge);
        }
        let mut buffer = Buffer { data: Vec::new(), taken: 0, budget: Arc::clone(self) };
        while let Some(frame) = body.frame().await {
            // Anything else is trailers.
            if let Ok(piece) = frame.map_err(BodyError::Broken)?.into_data() {
                buffer.push(&piece, max_size)?;
            }
        }
        Ok(Bytes::from_owner(buffer))
    }
}

impl Buffer {
    /// Copies `piece`: pieces as they come keep far larger read buffers alive.
    fn push(&mut self, piece: &[u8], max_size: usize) -> Result<(), BodyError> {
        let length = self.data.len() + piece.len();
        if length > max_size {
            return Err(BodyError::TooLarge);
        }
        if length > self.data.capacity() {
            let capacity = length.max(self.data.capacity() * 2).min(max_size);
            let more = (capacity as u64).saturating_sub(self.taken);
            if !self.budget.take(more) {
                return Err(BodyError::NoRoom);
            }
            self.taken += more;
            self.data.reserve_exact(capacity - self.data.len());
        }
        self.data.extend_from_slice(piece);
        Ok(())
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let budget = BodyBudget::new(100);
        let new = || Buffer { data: Vec::new(), taken: 0, budget: Arc::clone(&budget) };
        let mut first = new();
        assert!(matches!(first.push(&[0; 51], 50), Err(BodyError::TooLarge)));
        for _ in 0..60 {
            first.push(&[1], 64).expect("room");
        }
        assert_eq!(budget.used.load(Relaxed), 64, "what is allocated counts");
        let mut second = new();
        assert!(matches!(second.push(&[0; 40], 64), Err(BodyError::NoRoom)));
        second.push(&[0; 36], 64).expect("room");
        let kept = Bytes::from_owner(first);
        let part = kept.slice(..1);
        drop((kept, second));
        assert_eq!(budget.used.load(Relaxed), 64, "the response still holds it");
        drop(part);
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
