//! The application's own messages and the connections that travel with them, between the primary and its workers.
//!
//! Each worker has a second SOCK_SEQPACKET pair for them, made before the fork, so that no flood of messages ever
//! delays a READY or a DRAIN, which have `ipc`. One datagram is a *packet* of at most 32 KiB with whole *frames* in
//! it: a type byte, a flag byte, the length of what follows (four bytes, little-endian) and that. A *envelope* of up to
//! a packet's size is one WHOLE frame; a larger one is a FIRST, with the length of the envelope in four bytes, and as many
//! NEXTs as it takes. One larger envelope at a time is under way in each direction; short ones of other kinds pass it.
//! A descriptor comes with its packet (SCM_RIGHTS), and the frame it belongs to has flag 01. `hi` of kind `a`:
//!
//! ```text
//! 01 00  16 00 00 00  01  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  01 61  68 69
//! type   length       class, address (kind and number)  id of the request      kind   payload
//! ```
//!
//! PacketFrame types from 80 up are skipped by those who do not know them; any other unknown byte, a half frame, a NEXT
//! without its FIRST, or a envelope over the cap condemns the channel it came by. Neither end trusts the other.
//!
//! `envelope` and `frame` are the codec, `send_queue` decides what is sent next, `assembler` puts together what came, `post`
//! has a box for each worker and decides whose envelope is next and where it goes, `busy_poll` whether to sleep until the
//! next: all pure. `primary_end` is the primary's end, for its poll loop, `worker_end` the worker's, on tokio, with `inboxes` and
//! `requests` behind it.

mod assembler;
mod busy_poll;
mod envelope;
mod error;
mod inbox;
mod message;
mod packet_frame;
mod passed_connection;
mod pending_requests;
mod primary_end;
mod router;
mod send_queue;
mod worker_end;

pub(crate) use busy_poll::BusyPoll;
pub(crate) use envelope::{Envelope, MessageAddress, MessageClass, MessageKind, RejectedEnvelope};
pub use error::MessageError;
pub use inbox::Inbox;
pub use message::{IntoPayload, Message, MessageSender, MessageTarget, ReplyTo};
pub(crate) use passed_connection::AttachedConnection;
pub use passed_connection::{PassedConnection, SendConnectionError};
pub(crate) use primary_end::{MessagePollToken, PrimaryMessageEnd, RouterStep};
pub(crate) use worker_end::WorkerMessageEnd;

/// How much mail there may be. The same for both directions, for each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageLimits {
    /// The largest message in bytes, with its kind; 16 MiB. At most 1 GiB.
    pub max_message_bytes: usize,
    /// Bytes that may wait to be sent to one worker, or by one; 32 MiB. A message that finds nothing else waiting is
    /// always taken.
    pub queue_bytes: usize,
    /// Messages that may wait to be sent to one worker, or by one, and in each inbox; 4096. Of answers, twice as many.
    pub queue_messages: usize,
}

impl Default for MessageLimits {
    fn default() -> MessageLimits {
        MessageLimits { max_message_bytes: 16 << 20, queue_bytes: 32 << 20, queue_messages: 4096 }
    }
}

impl MessageLimits {
    /// With another size of the largest message, in bytes: 1 KiB to 1 GiB.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> MessageLimits {
        self.max_message_bytes = bytes.clamp(1 << 10, 1 << 30);
        self
    }

    /// With other bounds of each queue: so many bytes, and so many messages (at least one).
    #[must_use]
    pub fn queue_bounds(mut self, bytes: usize, messages: usize) -> MessageLimits {
        self.queue_bytes = bytes;
        self.queue_messages = messages.max(1);
        self
    }

    /// Bytes of a envelope that carries the largest message.
    pub(crate) fn max_envelope_bytes(&self) -> usize {
        self.max_message_bytes + envelope::MAX_ENVELOPE_HEADER_BYTES
    }
}
