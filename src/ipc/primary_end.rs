//! The primary's end: non-blocking, without a runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::frame::CAP;
use super::{ToPrimary, ToWorker};
use crate::sys::socket::{Received, receive_message, send_message};

/// What listening to a worker brought.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A word.
    Word(ToPrimary),
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
        send_message(&self.0, &word.encode())
    }

    /// The next word, if there is one.
    pub(crate) fn hear(&self) -> Heard {
        let mut buffer = [0u8; CAP];
        match receive_message(&self.0, &mut buffer) {
            Ok(Received::Message(n)) => match ToPrimary::decode(&buffer[..n]) {
                Ok(word) => Heard::Word(word),
                Err(garbled) => Heard::Garbage(garbled.to_string()),
            },
            Ok(Received::Truncated) => Heard::Garbage(format!("a message over {CAP} bytes")),
            Ok(Received::End) => Heard::End,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(e) => Heard::Garbage(e.to_string()),
        }
    }
}

impl AsFd for PrimaryEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
