//! The error of sending messages and requests.

use crate::text::Printable;

/// Why a message was not sent, or a request not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The queue is full (see [`MessageLimits`](crate::MessageLimits)). Try again later, or wait with `send`.
    #[error("cannot send a message: the queue is full; try again later, or wait with send")]
    Full,
    /// The message is larger than allowed.
    #[error(
        "cannot send a message of {size} bytes: at most {most} are allowed (MessageLimits::max_message_bytes)"
    )]
    TooLarge {
        /// Size of the message in bytes.
        size: usize,
        /// The limit in bytes.
        most: usize,
    },
    /// The kind is not a text of 1 to 64 bytes.
    #[error("cannot send a message of kind {0:?}: a kind has 1 to 64 bytes")]
    BadKind(String),
    /// The other process has exited, or was replaced by an upgrade, which does not keep the messages of old workers.
    #[error("cannot send a message: the other process has exited")]
    Closed,
    /// The target worker does not exist.
    #[error("cannot send a message: no worker is {0}")]
    NoSuchWorker(String),
    /// No reply arrived in time. The request may still be carried out; its reply will be dropped.
    #[error("a request of kind {0:?} was not answered in time")]
    TimedOut(String),
    /// The receiver refused the request, or it could not be delivered.
    #[error("a request was refused: {}", Printable(.0))]
    Refused(String),
    /// The value cannot be encoded, or the bytes cannot be decoded as this type.
    #[error("cannot encode or decode a message of kind {kind:?}: {why}")]
    Codec {
        /// Kind of the message; empty while encoding.
        kind: String,
        /// The error of postcard.
        why: String,
    },
}

impl From<MessageError> for crate::Error {
    fn from(error: MessageError) -> crate::Error {
        crate::Error::application("message", error)
    }
}
