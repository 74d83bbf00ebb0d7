//! The channel between the primary and one worker: a SOCK_SEQPACKET pair, created before the fork.
//!
//! A datagram is a kind byte and a payload, at most [`codec::MAX_CHANNEL_MESSAGE_BYTES`] in total. Numbers are little-endian. READY is
//! one byte; DRAIN with 30 s of grace and 1 s of linger is nineteen:
//!
//! ```text
//! 01
//! 81  30 75 00 00 00 00 00 00  e8 03 00 00 00 00 00 00  00 01
//! ```
//!
//! HAND_OVER_CONNECTION (04) and TAKE_OVER_CONNECTION (82) pass an open client connection from one worker to another. Its descriptor is
//! attached (SCM_RIGHTS); the payload is the bytes that were received but not parsed.
//!
//! ADOPT_SLOT (85) brings a listening socket of a slot whose own worker does not accept at the moment, and RELEASE_SLOT (86) takes it
//! back: for slot 2, `85  02 00 00 00  00` and `86  02 00 00 00`.
//!
//! The end of the channel means that the other process is gone. Neither end trusts the other: invalid data closes the channel.

mod codec;
mod primary_end;
mod worker_end;

use std::time::Duration;

use prefork_supervisor::Slot;
pub(crate) use primary_end::{PrimaryChannelEnd, ReceivedReport};
pub(crate) use worker_end::{ReceivedCommand, WorkerChannelEnd};

/// What a worker reports to the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerReport {
    /// The runtime of the worker runs; the application starts to boot.
    Online,
    /// The worker accepts connections from now on.
    Ready,
    /// The worker could not start, for this reason, and exits.
    BootFailed(String),
    /// The worker has begun to drain on its own and needs a replacement.
    Retiring,
    /// The worker has begun to drain on its own and needs no replacement.
    Disconnecting,
    /// The worker cannot accept from the sockets of this slot that it was sent.
    AdoptSlotFailed(Slot),
    /// Passes on a connection that is between two requests. A descriptor is attached.
    HandOverConnection(UnreadBytes),
}

/// What the primary tells a worker to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerCommand {
    /// Stop accepting, finish open connections, then exit.
    Drain {
        /// After this time, open connections are closed.
        grace: Duration,
        /// How long idle keep-alive connections stay open for a request that may be on its way.
        linger: Duration,
        /// Whether to empty the accept queue first, because no process will listen any more.
        closing: bool,
        /// Whether to send connections that are between two requests to the primary, for another worker.
        hand_over: HandoverMode,
    },
    /// Serve this connection. A descriptor is attached.
    TakeOverConnection(UnreadBytes),
    /// Answers RETIRING: no connection is sent after this.
    RetireAcknowledged,
    /// Also accept from this socket of another slot; if it is `closing`, only until its queue is empty. A descriptor is attached.
    AdoptSlot { slot: Slot, closing: bool },
    /// Stop accepting from all sockets of this slot.
    ReleaseSlot(Slot),
    /// Write the log to this file from now on. A descriptor is attached.
    ReopenLog,
}

/// When a draining worker hands over its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HandoverMode {
    /// Connections stay and are asked to close.
    Never,
    /// As soon as the scoreboard shows another worker that serves. Until then they are served normally.
    WhenOthersServe,
    /// At once, because the primary knows that another worker serves. After an upgrade the worker cannot see that in its own scoreboard.
    Immediately,
}

/// Bytes of a handed-over connection that were received but not parsed. Usually empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UnreadBytes(Vec<u8>);

impl UnreadBytes {
    /// The most bytes: 16 KiB.
    pub(crate) const MAX_BYTES: usize = 16 * 1024;

    /// Returns `None` if there are too many bytes.
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
