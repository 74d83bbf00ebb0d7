//! The primary's end: non-blocking, without a runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::codec::CAP;
use super::{ToPrimary, ToWorker, Unread};
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};

/// What listening to a worker brought.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A word.
    Word(ToPrimary),
    /// A connection to be passed on: the descriptor that came with TRAVEL.
    Connection(OwnedFd, Unread),
    /// A connection that could not be received, as we are out of descriptors.
    LostConnection,
    /// Nothing more for now.
    Nothing,
    /// The worker has closed its end: it is dead, or as good as.
    End,
    /// Not one of our words, or the channel failed: this worker is not to be believed any more.
    Garbage(String),
}

/// The primary's end of the channel to one worker.
#[derive(Debug)]
pub(crate) struct PrimaryEnd(OwnedFd);

impl PrimaryEnd {
    pub(crate) fn new(fd: OwnedFd) -> PrimaryEnd {
        PrimaryEnd(fd)
    }

    /// Sends `word` without waiting. A worker that has not read its channel until it is full gets
    /// `WouldBlock`: it is frozen, and its deadline will find it.
    pub(crate) fn send(&self, word: &ToWorker) -> io::Result<()> {
        send_message(&self.0, &word.encode(), None)
    }

    /// Sends `word` and a duplicate of `fd` without waiting.
    pub(crate) fn send_with(&self, word: &ToWorker, fd: BorrowedFd<'_>) -> io::Result<()> {
        send_message(&self.0, &word.encode(), Some(fd))
    }

    /// Closes it, with all that waits on it. Not for the copy of it that a forked child has: it takes what waits.
    pub(crate) fn discard(self) {
        prefork_os::fd_passing::discard_messages(&self.0);
    }

    /// The next word, if there is one. A descriptor that came with any other word than TRAVEL is closed.
    pub(crate) fn hear(&self) -> Heard {
        let mut buffer = [0u8; CAP];
        let (length, passed) = match receive_message(&self.0, &mut buffer) {
            Ok(ReceivedMessage::Message(length, passed)) => (length, passed),
            Ok(ReceivedMessage::Truncated) => {
                return Heard::Garbage(format!("a message over {CAP} bytes"));
            }
            Ok(ReceivedMessage::Closed) => return Heard::End,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(e) => return Heard::Garbage(e.to_string()),
        };
        match (ToPrimary::decode(&buffer[..length]), passed) {
            (Ok(ToPrimary::Travel(unread)), PassedFd::One(fd)) => Heard::Connection(fd, unread),
            (Ok(ToPrimary::Travel(_)), PassedFd::Lost) => Heard::LostConnection,
            (Ok(ToPrimary::Travel(_)), PassedFd::None) => {
                Heard::Garbage("a connection without a descriptor".to_string())
            }
            (Ok(word), _) => Heard::Word(word),
            (Err(garbled), _) => Heard::Garbage(garbled.to_string()),
        }
    }
}

impl AsFd for PrimaryEnd {
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
        let end = PrimaryEnd::new(ours);
        let travel = ToPrimary::Travel(Unread::new(b"GET".to_vec()).expect("short")).encode();
        send_message(&theirs, &travel, Some(theirs.as_fd())).expect("send");
        let heard = end.hear();
        assert!(matches!(&heard, Heard::Connection(_, u) if u.as_ref() == b"GET"), "{heard:?}");
        send_message(&theirs, &ToPrimary::Ready.encode(), Some(theirs.as_fd())).expect("send");
        let heard = end.hear();
        assert!(matches!(heard, Heard::Word(ToPrimary::Ready)), "{heard:?}");
        send_message(&theirs, &travel, None).expect("send");
        let heard = end.hear();
        assert!(matches!(heard, Heard::Garbage(_)), "{heard:?}");
        assert!(matches!(end.hear(), Heard::Nothing));
    }
}
