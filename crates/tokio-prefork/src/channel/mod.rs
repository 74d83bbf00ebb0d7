//! The words between the primary and one worker, over a SOCK_SEQPACKET pair made before the fork.
//!
//! One message is one datagram: a kind byte and a payload, at most [`codec::MAX_CHANNEL_MESSAGE_BYTES`] bytes. Numbers are
//! little-endian. A worker's READY is one byte, a DRAIN of 30 s with 1 s of linger is nineteen:
//!
//! ```text
//! 01
//! 81  30 75 00 00 00 00 00 00  e8 03 00 00 00 00 00 00  00 01
//! ```
//!
//! TRAVEL (04) and ARRIVE (82) hand a client's connection from one worker to another: its descriptor comes with
//! the message (SCM_RIGHTS), the bytes that were received but not yet understood are the payload.
//!
//! ADOPT (85) brings a listening socket of a slot whose own worker does not accept at the moment, GIVE_BACK (86) ends
//! that: for slot 2, `85  02 00 00 00  00` and `86  02 00 00 00`.
//!
//! The end of the channel is a message, too: for a worker it means that the primary is gone, for the primary
//! that the worker is. Neither end trusts the other: what does not parse condemns the channel it came by.

mod codec;
mod primary_end;
mod worker_end;

use std::time::Duration;

use prefork_supervisor::Slot;
pub(crate) use primary_end::{PrimaryChannelEnd, ReceivedReport};
pub(crate) use worker_end::{ReceivedCommand, WorkerChannelEnd};

/// What a worker says to the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerReport {
    /// Its runtime turns; the application boots now.
    Online,
    /// It accepts connections from now on.
    Ready,
    /// It could not start; the text says why. It exits after this.
    BootFailed(String),
    /// It has begun to drain on its own account and wants a replacement.
    Retiring,
    /// It has begun to drain on its own account and wants no replacement.
    Disconnecting,
    /// It cannot accept from the sockets of this slot that it was sent.
    AdoptSlotFailed(Slot),
    /// Here is a connection between two requests; somebody else may go on with it. A descriptor comes with it.
    HandOverConnection(UnreadBytes),
}

/// What the primary says to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerCommand {
    /// Stop accepting, finish what is open, then exit.
    Drain {
        /// When what is still open is cut off.
        grace: Duration,
        /// How long idle kept-alive connections stay open for a request that is on its way.
        linger: Duration,
        /// Nobody will listen any more: empty the accept queue first.
        closing: bool,
        /// Whether connections that stand between two requests are sent to the primary for another worker.
        hand_over: HandoverMode,
    },
    /// Go on with this connection. A descriptor comes with it.
    TakeOverConnection(UnreadBytes),
    /// The answer to RETIRING: no connection is sent after this.
    RetireAcknowledged,
    /// Accept from this socket of another slot as well; one that nobody listens on any more, only until its queue is
    /// empty. A descriptor comes with it.
    AdoptSlot { slot: Slot, closing: bool },
    /// Stop accepting from all sockets of this slot.
    ReleaseSlot(Slot),
    /// Write the log to this file from now on. A descriptor comes with it.
    ReopenLog,
}

/// Whether a draining worker sends its connections away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HandoverMode {
    /// They stay, and are told to close.
    Never,
    /// As soon as the scoreboard says that somebody serves. Until then they are served as if nothing was.
    WhenOthersServe,
    /// At once: the primary knows that somebody serves. The worker may not see that: it looks at the scoreboard
    /// it was born with, and another image of the primary has another one.
    Immediately,
}

/// The bytes of a travelling connection that were received and not yet understood. Nearly always none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UnreadBytes(Vec<u8>);

impl UnreadBytes {
    /// So many at most.
    pub(crate) const MAX_BYTES: usize = 16 * 1024;

    /// `None` if they are too many.
    pub(crate) fn new(bytes: Vec<u8>) -> Option<UnreadBytes> {
        (bytes.len() <= UnreadBytes::MAX_BYTES).then_some(UnreadBytes(bytes))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl AsRef<[u8]> for UnreadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
