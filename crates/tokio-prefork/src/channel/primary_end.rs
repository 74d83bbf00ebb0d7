//! The primary's end: non-blocking, without a runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::codec::MAX_CHANNEL_MESSAGE_BYTES;
use super::{UnreadBytes, WorkerCommand, WorkerReport};
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};

/// What listening to a worker brought.
#[derive(Debug)]
pub(crate) enum ReceivedReport {
    /// A command.
    Report(WorkerReport),
    /// A connection to be passed on: the descriptor that came with TRAVEL.
    HandedOverConnection(OwnedFd, UnreadBytes),
    /// A connection that could not be received, as we are out of descriptors.
    LostConnection,
    /// Nothing more for now.
    Empty,
    /// The worker has closed its end: it is dead, or as good as.
    Closed,
    /// Not one of our words, or the channel failed: this worker is not to be believed any more.
    Invalid(String),
}

/// The primary's end of the channel to one worker.
#[derive(Debug)]
pub(crate) struct PrimaryChannelEnd(OwnedFd);

impl PrimaryChannelEnd {
    pub(crate) fn new(fd: OwnedFd) -> PrimaryChannelEnd {
        PrimaryChannelEnd(fd)
    }

    /// Sends `command` without waiting. A worker that has not read its channel until it is full gets
    /// `WouldBlock`: it is frozen, and its deadline will find it.
    pub(crate) fn send(&self, command: &WorkerCommand) -> io::Result<()> {
        send_message(&self.0, &command.encode(), None)
    }

    /// Sends `command` and a duplicate of `fd` without waiting.
    pub(crate) fn send_with_fd(
        &self,
        command: &WorkerCommand,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        send_message(&self.0, &command.encode(), Some(fd))
    }

    /// Closes it, with all that waits on it. Not for the copy of it that a forked child has: it takes what waits.
    pub(crate) fn discard_and_close(self) {
        prefork_os::fd_passing::discard_messages(&self.0);
    }

    /// The next command, if there is one. A descriptor that came with any other command than TRAVEL is closed.
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
    fn a_connection_needs_a_descriptor_and_other_words_do_not_get_one() {
        let (ours, theirs) = create_seqpacket_pair().expect("pair");
        let end = PrimaryChannelEnd::new(ours);
        let travel =
            WorkerReport::HandOverConnection(UnreadBytes::new(b"GET".to_vec()).expect("short"))
                .encode();
        send_message(&theirs, &travel, Some(theirs.as_fd())).expect("send");
        let received = end.receive();
        assert!(
            matches!(&received, ReceivedReport::HandedOverConnection(_, u) if u.as_ref() == b"GET"),
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
