//! Why a message was not sent, or not answered.

use crate::text::Printable;

/// Why a message was not sent, or a request not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// As much as may wait is waiting (see [`MessageLimits`](crate::MessageLimits)): try again later, or wait with `send`.
    #[error("cannot send a message: the queue is full; wait, or send less")]
    Full,
    /// It is larger than a message may be.
    #[error(
        "cannot send a message of {size} bytes: at most {most} are allowed (MessageLimits::max_message_bytes)"
    )]
    TooLarge {
        /// Of the message with its kind, in bytes.
        size: usize,
        /// The limit.
        most: usize,
    },
    /// A kind is a text of 1 to 64 bytes.
    #[error("cannot send a message of kind {0:?}: a kind has 1 to 64 bytes")]
    BadKind(String),
    /// There is nobody at the other end: the process has ended, or has become another image by an upgrade, which does
    /// not take the mail of old workers over.
    #[error("cannot send a message: the other end is gone")]
    Closed,
    /// No such worker, or it has no mail.
    #[error("cannot send a message: no worker is {0}")]
    NoSuchWorker(String),
    /// A request was not answered in time. It may still be attached out; the answer will be thrown away.
    #[error("a request of kind {0:?} was not answered in time")]
    TimedOut(String),
    /// A request was refused by the other end, or on the way.
    #[error("a request was refused: {}", Printable(.0))]
    Refused(String),
    /// A value cannot be written down or read with this type.
    #[error("cannot encode or decode a message of kind {kind:?}: {why}")]
    Codec {
        /// Of the message; empty while it is encoded.
        kind: String,
        /// What postcard says.
        why: String,
    },
}

impl From<MessageError> for crate::Error {
    fn from(error: MessageError) -> crate::Error {
        crate::Error::application("mail", error)
    }
}
