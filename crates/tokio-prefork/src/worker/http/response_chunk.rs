//! Chunks of response bodies, and how the large ones reach the socket without a copy.
//!
//! hyper copies the chunks of a body behind the head of the response: one buffer and one write cost less than a list of buffers.
//! But it would copy large chunks, too, and keep the memory. So a large chunk shows no bytes when hyper copies it. Instead it leaves
//! them in the connection's [`DirectChunkSlot`], and `HyperIo` writes them behind the bytes that hyper has copied.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};

use super::connection_state::ConnectionState;

/// The smallest chunk that is not copied, in bytes: head and chunk no longer fit into the 8 KiB that hyper allocates at first.
pub(crate) const MIN_DIRECT_CHUNK: usize = 7 * 1024;

/// The largest piece of a chunk that hyper copies at once, in bytes. Bounds the memory that it keeps.
pub(crate) const MAX_COPIED_CHUNK: usize = 16 * 1024;

/// The chunk that `HyperIo` has to write next, after what hyper has given it.
#[derive(Debug, Default)]
pub(crate) struct DirectChunkSlot {
    is_full: AtomicBool,
    /// The body waits until the slot is empty.
    is_waited_for: AtomicBool,
    chunk: Mutex<Bytes>,
}

impl DirectChunkSlot {
    /// Whether a chunk waits to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// Returns whether a chunk waits to be written. If so, records that the body waits for that.
    pub(crate) fn must_wait(&self) -> bool {
        let is_full = self.is_full();
        if is_full {
            self.is_waited_for.store(true, Relaxed);
        }
        is_full
    }

    /// Whether hyper has to be polled again: to flush a chunk that it does not see, or to go on with a body that has waited.
    pub(crate) fn needs_poll(&self) -> bool {
        let is_waited_for = self.is_waited_for.load(Relaxed);
        if is_waited_for {
            self.is_waited_for.store(false, Relaxed);
        }
        is_waited_for || self.is_full()
    }

    /// Takes the chunk; empty if there is none.
    pub(crate) fn take(&self) -> Bytes {
        self.is_full.store(false, Relaxed);
        std::mem::take(&mut self.lock())
    }

    /// Stores a chunk, or the rest of one. An empty one leaves the slot empty.
    pub(crate) fn put(&self, chunk: Bytes) {
        self.is_full.store(!chunk.is_empty(), Relaxed);
        *self.lock() = chunk;
    }

    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk of a response body, as hyper sees it. As large as `Bytes`, because hyper moves it several times.
pub(crate) enum ResponseChunk {
    /// hyper copies it behind the head.
    Copied(Bytes),
    /// It goes to the connection's slot when hyper copies it.
    Direct(Box<DirectChunk>),
}

/// A chunk that hyper does not copy.
pub(crate) struct DirectChunk {
    bytes: Bytes,
    /// The connection that the bytes are written to.
    conn: Arc<ConnectionState>,
    /// Whether the bytes are in the slot.
    is_in_slot: AtomicBool,
}

impl ResponseChunk {
    /// Returns a chunk that goes to the slot of `conn` when hyper copies it. The slot must be empty, and hyper must write no
    /// framing around the chunk.
    pub(crate) fn direct(bytes: Bytes, conn: &Arc<ConnectionState>) -> ResponseChunk {
        let is_in_slot = AtomicBool::new(false);
        ResponseChunk::Direct(Box::new(DirectChunk { bytes, conn: Arc::clone(conn), is_in_slot }))
    }
}

impl DirectChunk {
    /// Returns nothing when the bytes are in the slot, which ends hyper's loop of copies. A caller that asks again wants to copy
    /// them after all, and gets them.
    fn chunk(&self) -> &[u8] {
        if self.is_in_slot.load(Relaxed) {
            self.conn.direct_chunk.take();
            return &self.bytes;
        }
        self.is_in_slot.store(true, Relaxed);
        self.conn.direct_chunk.put(self.bytes.clone());
        &[]
    }
}

impl Buf for ResponseChunk {
    fn remaining(&self) -> usize {
        match self {
            ResponseChunk::Copied(bytes) => bytes.len(),
            ResponseChunk::Direct(direct) => direct.bytes.len(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            ResponseChunk::Copied(bytes) => bytes,
            ResponseChunk::Direct(direct) => direct.chunk(),
        }
    }

    fn advance(&mut self, length: usize) {
        match self {
            ResponseChunk::Copied(bytes) => bytes.advance(length),
            ResponseChunk::Direct(direct) => direct.bytes.advance(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_is_no_larger_than_its_bytes() {
        assert_eq!(size_of::<ResponseChunk>(), size_of::<Bytes>());
    }

    #[test]
    fn large_chunk_goes_to_the_slot_when_it_is_first_looked_at() {
        let conn = Arc::new(ConnectionState::new(0));
        let chunk = ResponseChunk::direct(Bytes::from_static(b"large"), &conn);
        assert_eq!(chunk.remaining(), 5);
        assert!(!conn.direct_chunk.is_full());
        assert!(chunk.chunk().is_empty());
        assert!(conn.direct_chunk.must_wait());
        assert_eq!(conn.direct_chunk.take(), "large");
        assert!(!conn.direct_chunk.must_wait());
    }

    #[test]
    fn body_that_has_waited_is_polled_once_after_the_write() {
        let slot = DirectChunkSlot::default();
        assert!(!slot.needs_poll());
        slot.put(Bytes::from_static(b"large"));
        assert!(slot.must_wait() && slot.needs_poll());
        assert!(slot.needs_poll(), "the chunk is not written yet");
        assert!(slot.must_wait());
        slot.take();
        assert!(slot.needs_poll());
        assert!(!slot.needs_poll());
    }

    #[test]
    fn chunk_that_is_copied_after_all_leaves_the_slot() {
        let conn = Arc::new(ConnectionState::new(0));
        let mut copy = Vec::new();
        // Unlike hyper, `put` asks until nothing remains.
        bytes::BufMut::put(&mut copy, ResponseChunk::direct(Bytes::from_static(b"large"), &conn));
        assert_eq!(copy, b"large");
        assert!(!conn.direct_chunk.is_full());
    }
}
