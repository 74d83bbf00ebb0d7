//! The primary's end of a channel: non-blocking, without a runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::codec::MAX_CHANNEL_MESSAGE_BYTES;
use super::{HandoverState, WorkerCommand, WorkerReport};
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};

/// The result of reading the channel of a worker.
#[derive(Debug)]
pub(crate) enum ReceivedReport {
    /// A report without a descriptor.
    Report(WorkerReport),
    /// A connection to pass on to another worker.
    HandedOverConnection(OwnedFd, HandoverState),
    /// A connection that could not be received, because this process has no free descriptor.
    LostConnection,
    /// Nothing more at the moment.
    Empty,
    /// The worker has closed its end: it has exited, or is about to.
    Closed,
    /// Invalid data, or the channel failed. The worker is not trusted any more.
    Invalid(String),
}

/// The primary's end of the channel to one worker.
#[derive(Debug)]
pub(crate) struct PrimaryChannelEnd(OwnedFd);

impl PrimaryChannelEnd {
    pub(crate) fn new(fd: OwnedFd) -> PrimaryChannelEnd {
        PrimaryChannelEnd(fd)
    }

    /// Sends a command without waiting.
    ///
    /// Fails with `WouldBlock` if the worker has not read its channel until it was full. Such a worker is stalled.
    pub(crate) fn send(&self, command: &WorkerCommand) -> io::Result<()> {
        send_message(&self.0, &command.encode(), None)
    }

    /// Sends a command and a duplicate of `fd` without waiting.
    pub(crate) fn send_with_fd(
        &self,
        command: &WorkerCommand,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        send_message(&self.0, &command.encode(), Some(fd))
    }

    /// Closes the channel and discards unread data. Not for the copy in a forked child, which would take data from the primary.
    pub(crate) fn discard_and_close(self) {
        prefork_os::fd_passing::discard_messages(&self.0);
    }

    /// Receives the next report. Closes a descriptor that is attached to any report but HAND_OVER_CONNECTION.
    pub(crate) fn receive(&self) -> ReceivedReport {
        let mut buffer = [0u8; MAX_CHANNEL_MESSAGE_BYTES];
        let (length, passed) = match receive_message(&self.0, &mut buffer) {
            Ok(ReceivedMessage::Message(length, passed)) => (length, passed),
            Ok(ReceivedMessage::Truncated) => {
                return ReceivedReport::Invalid(format!(
                    "a message over {MAX_CHANNEL_MESSAGE_BYTES} bytes"
                ));
            }
            Ok(ReceivedMessage::Closed) => return ReceivedReport::Closed,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return ReceivedReport::Empty,
            Err(e) => return ReceivedReport::Invalid(e.to_string()),
        };
        match (WorkerReport::decode(&buffer[..length]), passed) {
            (Ok(WorkerReport::HandOverConnection(unread)), PassedFd::One(fd)) => {
                ReceivedReport::HandedOverConnection(fd, unread)
            }
            (Ok(WorkerReport::HandOverConnection(_)), PassedFd::Lost) => {
                ReceivedReport::LostConnection
            }
            (Ok(WorkerReport::HandOverConnection(_)), PassedFd::None) => {
                ReceivedReport::Invalid("a connection without a descriptor".to_string())
            }
            (Ok(report), _) => ReceivedReport::Report(report),
            (Err(error), _) => ReceivedReport::Invalid(error.to_string()),
        }
    }
}

impl AsFd for PrimaryChannelEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_os::fd_passing::create_seqpacket_pair;

    #[test]
    fn only_a_handed_over_connection_has_a_descriptor() {
        let (ours, theirs) = create_seqpacket_pair().expect("pair");
        let end = PrimaryChannelEnd::new(ours);
        let travel = WorkerReport::HandOverConnection(
            HandoverState::served(b"GET".to_vec(), None).expect("short"),
        )
        .encode();
        send_message(&theirs, &travel, Some(theirs.as_fd())).expect("send");
        let received = end.receive();
        assert!(
            matches!(&received, ReceivedReport::HandedOverConnection(_, u) if u.clone().into_unread_bytes() == b"GET"),
            "{received:?}"
        );
        send_message(&theirs, &WorkerReport::Ready.encode(), Some(theirs.as_fd())).expect("send");
        let received = end.receive();
        assert!(matches!(received, ReceivedReport::Report(WorkerReport::Ready)), "{received:?}");
        send_message(&theirs, &travel, None).expect("send");
        let received = end.receive();
        assert!(matches!(received, ReceivedReport::Invalid(_)), "{received:?}");
        assert!(matches!(end.receive(), ReceivedReport::Empty));
    }
}
