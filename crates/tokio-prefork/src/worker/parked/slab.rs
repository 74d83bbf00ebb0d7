//! The parked connections of a worker, in blocks of memory of their own.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::client::{ListenerName, ProxiedClient};
use crate::dispatch::ConnectionStart;

/// A connection without a task: what has to be kept of it until its client sends something.
///
/// By value in the slab and without an allocation of its own. Otherwise small blocks would stay between the large ones that the
/// connection has used before, and the allocator could not return these to the system.
#[derive(Debug)]
pub(crate) struct ParkedConnection {
    pub(crate) fd: OwnedFd,
    /// Whether it is a Unix socket, not TCP.
    pub(crate) is_unix: bool,
    /// Whether it stays with this worker until it closes.
    pub(crate) is_pinned: bool,
    /// What its next bytes begin.
    pub(crate) start: ConnectionStart,
    /// When its last response ended, or since when a closed one has sent nothing, in milliseconds on the monotonic clock.
    pub(crate) since_ms: u64,
    /// When the worker has closed its side; `None` while the connection is open.
    pub(crate) closed_ms: Option<NonZeroU64>,
    /// Where it comes from; `None` if the application does not use it.
    pub(crate) info: Option<ParkedInfo>,
}

/// What a `ConnectionInfo` is made from again, beside the socket.
#[derive(Debug)]
pub(crate) struct ParkedInfo {
    /// The address of the client, which the kernel forgets when the client resets the connection; `None` for a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) listener: Arc<ListenerName>,
    /// What its PROXY header has said: an index of [`ParkedSlab::proxied`].
    pub(crate) proxied: Option<u32>,
}

/// Names a parked connection in the epoll instance. Its upper half is the descriptor: an event that was taken from the kernel before its
/// place was reused does not fit the new connection in it.
pub(crate) type ParkedToken = u64;

/// All parked connections of a worker.
#[derive(Debug, Default)]
pub(super) struct ParkedSlab {
    connections: Slab<ParkedConnection>,
    /// What the PROXY headers of connections have said. Few have one, and it is larger than all the rest.
    pub(super) proxied: Slab<ProxiedClient>,
}

/// Values in one block of memory. Places are reused; an empty slab has no memory.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    /// The indices of the empty places.
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Returns the index of the place of `value`.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.places[index as usize] = Some(value);
                index
            }
            None => {
                self.places.push(Some(value));
                // A process has fewer descriptors.
                (self.places.len() - 1) as u32
            }
        }
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.places.get(index as usize)?.as_ref()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.places.get_mut(index as usize)?.take()?;
        self.free.push(index);
        if self.free.len() == self.places.len() {
            // Returns the memory of the most values that there ever were.
            *self = Slab::default();
        }
        Some(value)
    }
}

impl ParkedSlab {
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// How many places there are, empty ones included.
    pub(super) fn places(&self) -> usize {
        self.connections.places.len()
    }

    pub(super) fn insert(&mut self, parked: ParkedConnection) -> ParkedToken {
        let fd = parked.fd.as_raw_fd();
        token_of(self.connections.insert(parked), fd)
    }

    pub(super) fn get_mut(&mut self, token: ParkedToken) -> Option<&mut ParkedConnection> {
        let (index, fd) = parts_of(token);
        let place = self.connections.places.get_mut(index as usize)?.as_mut()?;
        (place.fd.as_raw_fd() == fd).then_some(place)
    }

    pub(super) fn remove(&mut self, token: ParkedToken) -> Option<ParkedConnection> {
        self.get_mut(token)?;
        self.connections.remove(parts_of(token).0)
    }

    /// Returns the connection at a place, with its token.
    pub(super) fn at(&self, index: usize) -> Option<(ParkedToken, &ParkedConnection)> {
        let index = u32::try_from(index).ok()?;
        let parked = self.connections.get(index)?;
        Some((token_of(index, parked.fd.as_raw_fd()), parked))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ParkedConnection> {
        self.connections.places.iter().flatten()
    }
}

fn token_of(index: u32, fd: i32) -> ParkedToken {
    (u64::from(fd.cast_unsigned()) << 32) | u64::from(index)
}

fn parts_of(token: ParkedToken) -> (u32, i32) {
    ((token & u64::from(u32::MAX)) as u32, ((token >> 32) as u32).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn parked() -> ParkedConnection {
        let (near, _) = UnixStream::pair().expect("pair");
        ParkedConnection {
            fd: near.into(),
            is_unix: true,
            is_pinned: false,
            start: ConnectionStart::NextRequest,
            since_ms: 0,
            closed_ms: None,
            info: None,
        }
    }

    #[test]
    fn places_are_reused_and_an_old_token_does_not_name_the_next_connection() {
        let mut slab = ParkedSlab::default();
        let tokens: Vec<_> = (0..3).map(|_| slab.insert(parked())).collect();
        let removed = slab.remove(tokens[1]).expect("it is there");
        assert!(slab.remove(tokens[1]).is_none(), "once");
        // `removed` keeps its descriptor, so the next connection has another one.
        let next = slab.insert(parked());
        assert_eq!((slab.len(), slab.places()), (3, 3));
        assert!(slab.get_mut(tokens[1]).is_none() && slab.get_mut(next).is_some());
        drop(removed);
    }

    #[test]
    fn an_empty_slab_keeps_no_memory() {
        let mut slab = ParkedSlab::default();
        let tokens: Vec<_> = (0..100).map(|_| slab.insert(parked())).collect();
        tokens.into_iter().for_each(|token| drop(slab.remove(token)));
        assert_eq!((slab.len(), slab.places(), slab.connections.places.capacity()), (0, 0, 0));
    }

    #[test]
    fn a_parked_connection_takes_at_most_80_bytes() {
        let size = size_of::<Option<ParkedConnection>>();
        assert!(size <= 80, "{size}");
    }
}
