//! The worker's end: the same words on tokio.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::codec::CAP;
use super::{ToPrimary, ToWorker, Unread};
use prefork_os::async_fd::register_readable_and_writable;
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};
use prefork_supervisor::Slot;

/// What the primary wants.
#[derive(Debug)]
pub(crate) enum Order {
    /// A word.
    Word(ToWorker),
    /// Go on with this connection.
    Take(OwnedFd, Unread),
    /// Accept from this socket of `slot`.
    Adopt { fd: OwnedFd, slot: Slot, closing: bool },
    /// Write the log here.
    Log(OwnedFd),
}

/// The worker's end of its channel to the primary. Made inside the worker's runtime.
#[derive(Debug)]
pub(crate) struct WorkerEnd(AsyncFd<OwnedFd>);

impl WorkerEnd {
    /// Registers the descriptor with the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<WorkerEnd> {
        Ok(WorkerEnd(register_readable_and_writable(fd)?))
    }

    /// Sends `word` without waiting.
    pub(crate) fn send(&self, word: &ToPrimary) -> io::Result<()> {
        send_message(self.0.get_ref(), &word.encode(), None)
    }

    /// Sends `word` and a duplicate of `fd`, waiting for room in the channel as long as it takes.
    pub(crate) async fn send_with(&self, word: &ToPrimary, fd: BorrowedFd<'_>) -> io::Result<()> {
        let bytes = word.encode();
        let send = |channel: &OwnedFd| send_message(channel, &bytes, Some(fd));
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// What the primary says next; `None` when it is gone, or speaks so that we cannot understand it, which is
    /// the same to us. A descriptor that comes with a word that has none is closed.
    pub(crate) async fn hear(&self) -> Option<Order> {
        let mut buffer = vec![0u8; CAP];
        loop {
            let mut ready = self.0.readable().await.ok()?;
            let (length, passed) =
                match ready.try_io(|fd| receive_message(fd.get_ref(), &mut buffer)) {
                    Ok(Ok(ReceivedMessage::Message(length, passed))) => (length, passed),
                    Ok(Ok(ReceivedMessage::Truncated | ReceivedMessage::Closed) | Err(_)) => {
                        return None;
                    }
                    Err(_would_block) => continue,
                };
            match (ToWorker::decode(&buffer[..length]).ok()?, passed) {
                (ToWorker::Arrive(unread), PassedFd::One(fd)) => {
                    return Some(Order::Take(fd, unread));
                }
                (ToWorker::Adopt { slot, closing }, PassedFd::One(fd)) => {
                    return Some(Order::Adopt { fd, slot, closing });
                }
                (ToWorker::Log, PassedFd::One(fd)) => return Some(Order::Log(fd)),
                (ToWorker::Log, _) => {
                    log::error!("the log goes on in the old file: no descriptor left");
                }
                // We are out of descriptors: the kernel has closed this connection.
                (ToWorker::Arrive(_), _) => {
                    log::error!("a connection was lost: no descriptor left")
                }
                (word, _) => return Some(Order::Word(word)),
            }
        }
    }
}
