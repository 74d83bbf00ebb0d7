//! Messages and open connections of the application, between the primary and its workers.
//!
//! [`Worker::send`](crate::Worker::send) and its siblings send, [`Inbox`] receives in a worker, and
//! [`Cluster::on_message`](crate::Cluster::on_message) in the primary. A message has a kind, which is a name, and any serde value.

// Each worker has a SOCK_SEQPACKET pair for messages, created before the fork and separate from its [`crate::channel`], so that
// messages never delay a READY or a DRAIN. A datagram is a *packet* of at most 32 KiB that holds whole *frames*: a type byte, a flag
// byte, the length of the body (four bytes, little-endian), and the body. An *envelope* (a message with its address) that fits into
// a packet is one WHOLE frame. A larger one is a FIRST frame, whose body begins with the length of the envelope in four bytes, and as
// many NEXT frames as needed. Each direction has one large envelope in progress at a time; short ones of other kinds overtake it. A
// file descriptor arrives with its packet (SCM_RIGHTS), and the frame that it belongs to has flag 01. `hi` of kind `a`:
//
// ```text
// 01 00  20 00 00 00  01  00 00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00 00  00        01 61  68 69
// type   length       class, address (type, number)   request id               delivery (route, code)      encoding  kind   payload
// ```
//
// Receivers skip unknown frame types from 80 up. Any other unknown byte, a truncated frame, a NEXT without its FIRST, or an envelope
// above the limit closes the channel. Neither end trusts the other.
//
// `envelope` and `packet_frame` are the codec, `send_queue` decides what is sent next, `assembler` joins received frames, `router`
// queues and forwards messages per worker, `busy_poll` decides whether to sleep: all without I/O. `primary_end` is the primary's end,
// for its poll loop. `worker_end` is the worker's end on tokio, with `inbox` and `pending_requests` behind it.

mod assembler;
mod busy_poll;
mod channel_io;
mod delivery_key;
mod envelope;
mod error;
mod held_messages;
mod inbox;
mod lost_messages;
mod message;
mod message_thread;
mod packet_frame;
mod passed_connection;
mod payload;
mod pending_requests;
mod primary_end;
mod redelivery;
mod router;
mod saved_messages;
mod send_queue;
mod worker_end;

pub(crate) use busy_poll::BusyPoll;
pub(crate) use envelope::{
    DeliveryRecord, Envelope, MessageAddress, MessageClass, MessageKind, MessageRoute,
    RejectedEnvelope,
};
pub use error::MessageError;
pub use inbox::Inbox;
pub(crate) use lost_messages::LossReport;
pub use message::{Message, MessageSender, MessageTarget, ReplyTo};
pub(crate) use message_thread::MessageThread;
pub(crate) use passed_connection::AttachedConnection;
pub use passed_connection::{PassedConnection, SendConnectionError};
pub(crate) use payload::PassedHistory;
pub use payload::{Compact, IntoPayload, Payload, PayloadEncoding};
pub(crate) use primary_end::{MessagePollToken, PrimaryMessageEnd, RouterStep};
pub(crate) use saved_messages::{MAX_SAVED_STATE_BYTES, MESSAGE_FORMAT, SavedMessages};
pub(crate) use worker_end::WorkerMessageEnd;

/// Limits for messages, per worker and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageLimits {
    /// The largest message in bytes, including its kind. Default: 16 MiB. At most 1 GiB.
    pub max_message_bytes: usize,
    /// Bytes that may be queued to or from one worker. Default: 32 MiB. An empty queue accepts a message of any size.
    pub queue_bytes: usize,
    /// Messages that may be queued to or from one worker, and in each inbox; twice as many replies. Default: 4096.
    pub queue_messages: usize,
}

impl Default for MessageLimits {
    fn default() -> MessageLimits {
        MessageLimits { max_message_bytes: 16 << 20, queue_bytes: 32 << 20, queue_messages: 4096 }
    }
}

impl MessageLimits {
    /// Sets the size of the largest message in bytes, 1 KiB to 1 GiB.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> MessageLimits {
        self.max_message_bytes = bytes.clamp(1 << 10, 1 << 30);
        self
    }

    /// Sets the limits of each queue: bytes, and messages (at least one).
    #[must_use]
    pub fn queue_bounds(mut self, bytes: usize, messages: usize) -> MessageLimits {
        self.queue_bytes = bytes;
        self.queue_messages = messages.max(1);
        self
    }

    /// Returns the size of an envelope with the largest message, in bytes.
    pub(crate) fn max_envelope_bytes(&self) -> usize {
        self.max_message_bytes + envelope::MAX_ENVELOPE_HEADER_BYTES
    }
}
