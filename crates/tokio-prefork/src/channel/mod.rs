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
//! attached (SCM_RIGHTS); the payload is the bytes that were received but not parsed. HAND_OVER_PROXIED (08) and TAKE_OVER_PROXIED
//! (88) say before these bytes what the connection's PROXY header has said, as a length and so many bytes. TAKE_OVER_ACCEPTED (89)
//! passes a connection that nothing was read from.
//!
//! ADOPT_SLOT (85) brings a listening socket of a slot whose own worker does not accept at the moment, and RELEASE_SLOT (86) takes it
//! back: for slot 2, `85  02 00 00 00  00` and `86  02 00 00 00`.
//!
//! The end of the channel means that the other process is gone. Neither end trusts the other: invalid data closes the channel.

mod codec;
mod primary_end;
mod worker_end;

use std::time::Duration;

use crate::client::ProxiedClient;
use prefork_supervisor::Slot;
pub(crate) use primary_end::{PrimaryChannelEnd, ReceivedReport};
pub(crate) use worker_end::{ReceivedCommand, WorkerChannelEnd};

/// What a worker reports to the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerReport {
    /// The runtime of the worker runs; the application starts to boot.
    Online,
    /// The worker, the guard of a foreign program, has started it.
    ProgramStarted {
        /// The pid of the program, to be shown only.
        pid: u32,
    },
    /// The worker accepts connections from now on.
    Ready,
    /// The worker could not start, for this reason, and exits.
    BootFailed(String),
    /// The worker, the guard of a foreign program, has started it in vain, for this reason, and exits. Another attempt may succeed.
    BootAttemptFailed(String),
    /// The worker has begun to drain on its own and needs a replacement.
    Retiring,
    /// The worker has begun to drain on its own and needs no replacement.
    Disconnecting,
    /// The worker cannot accept from the sockets of this slot that it was sent.
    AdoptSlotFailed(Slot),
    /// Passes on a connection that is between two requests. A descriptor is attached.
    HandOverConnection(HandoverState),
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
    TakeOverConnection(HandoverState),
    /// Answers RETIRING: no connection is sent after this.
    RetireAcknowledged,
    /// Also accept from this socket of another slot; if it is `closing`, only until its queue is empty. A descriptor is attached.
    AdoptSlot { slot: Slot, closing: bool },
    /// Stop accepting from all sockets of this slot.
    ReleaseSlot(Slot),
    /// Write the log to this file from now on. A descriptor is attached.
    ReopenLog,
    /// Write the access log to this file from now on. A descriptor is attached.
    ReopenAccessLog,
    /// Begin to accept connections. For a process of the admin listener, which waits for it when it is ready.
    StartAccepting,
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

/// What a worker has to know of a connection that another process has accepted or served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandoverState {
    /// Bytes that were received but not parsed. Usually empty.
    unread: Vec<u8>,
    history: ConnectionHistory,
}

/// What was read from a connection before it was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionHistory {
    /// Nothing: it was only accepted. A PROXY header may still come.
    Accepted,
    /// Requests, and before them perhaps a PROXY header.
    Served(Option<ProxiedClient>),
}

impl HandoverState {
    /// The most unread bytes: 16 KiB.
    pub(crate) const MAX_BYTES: usize = 16 * 1024;

    /// Returns the state of a connection that nothing was read from.
    pub(crate) fn accepted() -> HandoverState {
        HandoverState { unread: Vec::new(), history: ConnectionHistory::Accepted }
    }

    /// Returns the state of a connection that stands between two requests, `None` if there are too many unread bytes.
    pub(crate) fn served(unread: Vec<u8>, proxied: Option<ProxiedClient>) -> Option<HandoverState> {
        let history = ConnectionHistory::Served(proxied);
        (unread.len() <= HandoverState::MAX_BYTES).then_some(HandoverState { unread, history })
    }

    pub(crate) fn history(&self) -> ConnectionHistory {
        self.history
    }

    pub(crate) fn into_unread_bytes(self) -> Vec<u8> {
        self.unread
    }
}
