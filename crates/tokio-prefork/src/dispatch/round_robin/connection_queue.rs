//! The queue of new connections from the primary to one worker.
//!
//! A SOCK_SEQPACKET pair, of which the primary keeps *both* ends and the worker has a copy of the reading one. Each
//! message is one byte:
//!
//! ```text
//! 00 + descriptor     a TCP connection
//! 01 + descriptor     a connection over a Unix socket
//! 02                  a probe: while it is unread, the worker does not read
//! ```
//!
//! Each message is read once, either by the worker, which then owns the connection, or by the primary, which takes it
//! back for another worker. So the kernel decides which process has a connection, even if the worker dies, freezes or
//! is slow; no acknowledgement is sent and no copy is kept. Queued connections outlive the worker and the exec of an
//! upgrade. A worker can read its own queue and nothing else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prefork_os::fd_passing;
use prefork_os::fd_passing::{
    PassedFd, ReceivedMessage, create_seqpacket_pair, receive_trusted_message, send_message,
};

/// The size of the send buffer: about one kilobyte per message. The primary is woken when a quarter of it is used.
const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// The byte of a probe, a message without a connection.
const PROBE_BYTE: u8 = 2;

/// An accepted connection that no worker has taken yet.
#[derive(Debug)]
pub(crate) struct QueuedConnection {
    pub(crate) fd: OwnedFd,
    /// Whether it came over a Unix socket, not TCP.
    pub(crate) is_unix: bool,
}

/// Both ends of one worker's queue, as the primary has them.
#[derive(Debug)]
pub(crate) struct ConnectionQueue {
    sending: OwnedFd,
    reading: OwnedFd,
}

/// The outcome of reading a queue.
#[derive(Debug)]
pub(crate) enum QueueRead {
    Connection(QueuedConnection),
    /// The queue is empty.
    Empty,
    /// The probe of the primary, which the worker ignores.
    Probe,
    /// A connection was there, but the process has no free descriptor for it.
    Lost,
    /// The primary has closed its end.
    Closed,
}

impl ConnectionQueue {
    pub(crate) fn new() -> io::Result<ConnectionQueue> {
        let (sending, reading) = create_seqpacket_pair()?;
        fd_passing::limit_send_buffer(&sending, SEND_BUFFER_BYTES)?;
        Ok(ConnectionQueue { sending, reading })
    }

    /// Restores a queue that another image of the primary created.
    pub(crate) fn from_ends(sending: OwnedFd, reading: OwnedFd) -> ConnectionQueue {
        ConnectionQueue { sending, reading }
    }

    /// Keeps only the reading end, in the worker.
    pub(crate) fn into_reader(self) -> OwnedFd {
        self.reading
    }

    /// Returns both ends, the sending one first.
    pub(crate) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.sending.as_fd(), self.reading.as_fd()]
    }

    /// Sends copies of `connections` without blocking, and returns how many had room. An error means that the worker
    /// has shut the queue down.
    pub(crate) fn push<'a>(
        &self,
        connections: impl Iterator<Item = &'a QueuedConnection>,
    ) -> io::Result<usize> {
        let messages: Vec<_> =
            connections.map(|one| (u8::from(one.is_unix), one.fd.as_fd())).collect();
        let mut pushed = 0;
        for chunk in messages.chunks(fd_passing::MAX_FDS_PER_SEND) {
            let sent = fd_passing::send_fds(&self.sending, chunk)?;
            pushed += sent;
            if sent < chunk.len() {
                break;
            }
        }
        Ok(pushed)
    }

    /// Sends a probe. While the worker does not read it, [`ConnectionQueue::unread_count`] counts it.
    pub(crate) fn push_probe(&self) {
        // The queue is empty, so there is room; if the worker has shut it down, the next push fails.
        let _ = send_message(&self.sending, &[PROBE_BYTE], None);
    }

    /// Returns how many messages the worker has not read yet.
    pub(crate) fn unread_count(&self) -> usize {
        // One byte each.
        prefork_os::fd::unread_bytes(&self.reading).unwrap_or(0)
    }

    /// Takes unread connections out of the queue, oldest first, and counts those lost for lack of a descriptor.
    pub(crate) fn reclaim_unread(&self) -> (Vec<QueuedConnection>, usize) {
        let (mut back, mut lost) = (Vec::new(), 0);
        loop {
            match read_queue(&self.reading) {
                Ok(QueueRead::Connection(connection)) => back.push(connection),
                Ok(QueueRead::Lost) => lost += 1,
                Ok(QueueRead::Probe) => {}
                Ok(QueueRead::Empty | QueueRead::Closed) | Err(_) => return (back, lost),
            }
        }
    }
}

/// Reads one message from the reading end of a queue, without blocking.
pub(super) fn read_queue(reading: impl AsFd) -> io::Result<QueueRead> {
    let mut byte = [0u8];
    Ok(match receive_trusted_message(reading, &mut byte) {
        Ok(ReceivedMessage::Message(_, PassedFd::One(fd))) => {
            QueueRead::Connection(QueuedConnection { fd, is_unix: byte[0] != 0 })
        }
        Ok(ReceivedMessage::Message(_, PassedFd::None)) if byte[0] == PROBE_BYTE => {
            QueueRead::Probe
        }
        Ok(ReceivedMessage::Message(..) | ReceivedMessage::Truncated) => QueueRead::Lost,
        Ok(ReceivedMessage::Closed) => QueueRead::Closed,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => QueueRead::Empty,
        Err(e) => return Err(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn connection(is_unix: bool) -> (QueuedConnection, UnixStream) {
        let (near, far) = UnixStream::pair().expect("connection");
        (QueuedConnection { fd: near.into(), is_unix }, far)
    }

    #[test]
    fn unread_connections_can_be_taken_back_without_leaving_copies() {
        let queue = ConnectionQueue::new().expect("queue");
        let worker = queue.reading.try_clone().expect("copy");
        let (all, mut far): (Vec<_>, Vec<_>) =
            [false, true, false].map(connection).into_iter().unzip();
        assert_eq!(queue.push(all.iter()).expect("push"), 3);
        drop(all);
        let got = read_queue(&worker).expect("read");
        assert!(
            matches!(got, QueueRead::Connection(QueuedConnection { is_unix: false, .. })),
            "{got:?}"
        );
        assert_eq!(queue.unread_count(), 2);
        queue.push_probe();
        assert_eq!(queue.unread_count(), 3);
        let (back, lost) = queue.reclaim_unread();
        assert_eq!((back.len(), lost, queue.unread_count()), (2, 0, 0));
        assert!(back[0].is_unix && !back[1].is_unix);
        drop((got, back));
        queue.push_probe();
        assert!(matches!(read_queue(&worker).expect("read"), QueueRead::Probe));
        // A copy that is left would make this read block for ever.
        far.iter_mut().for_each(|far| assert_eq!(far.read(&mut [0]).expect("the end"), 0));
    }

    #[test]
    fn unread_connections_survive_the_death_of_either_side() {
        let queue = ConnectionQueue::new().expect("queue");
        let worker = queue.reading.try_clone().expect("copy");
        let (one, _far) = connection(false);
        queue.push([&one, &one].into_iter()).expect("push");
        let dead = worker.try_clone().expect("copy");
        drop(dead);
        assert_eq!(queue.unread_count(), 2);
        drop(queue);
        for _ in 0..2 {
            assert!(matches!(read_queue(&worker).expect("read"), QueueRead::Connection(_)));
        }
        assert!(matches!(read_queue(&worker).expect("read"), QueueRead::Closed));
    }

    #[test]
    fn a_queue_has_a_bound() {
        let queue = ConnectionQueue::new().expect("queue");
        let (one, _far) = connection(false);
        let pushed = queue.push(std::iter::repeat_n(&one, 1000)).expect("push");
        assert!((8..100).contains(&pushed), "{pushed}");
        assert_eq!(
            (queue.unread_count(), queue.push([&one].into_iter()).expect("push")),
            (pushed, 0)
        );
    }
}
