//! The error of sending messages and requests.

use super::PayloadEncoding;
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
    /// The other process has exited, or was replaced by an upgrade to a program that does not keep the messages of old workers.
    #[error("cannot send a message: the other process has exited")]
    Closed,
    /// The target worker does not exist.
    #[error("cannot send a message: no worker is {0}")]
    NoSuchWorker(String),
    /// Messages were not written to the primary in time. They are still sent if the primary reads again before the worker exits.
    #[error("{messages} messages were not written to the primary in time: it does not read")]
    NotFlushed {
        /// How many messages wait.
        messages: usize,
    },
    /// No reply arrived in time. The request may still be carried out; its reply will be dropped.
    #[error("a request of kind {0:?} was not answered in time")]
    TimedOut(String),
    /// The receiver refused the request, or it could not be delivered.
    #[error("a request was refused: {}", Printable(.0))]
    Refused(String),
    /// The value cannot be encoded.
    #[error("cannot encode a value of type {type_name} as a message: {reason}")]
    Encode {
        /// The type of the value.
        type_name: &'static str,
        /// The error of its encoder.
        reason: String,
    },
    /// The payload is no value of this type.
    #[error(
        "cannot decode a message of kind {kind:?} ({encoding}) as {type_name}: {}",
        Printable(reason)
    )]
    Decode {
        /// Kind of the message.
        kind: String,
        /// How the sender encoded it.
        encoding: PayloadEncoding,
        /// The type that the receiver asked for.
        type_name: &'static str,
        /// The error of the decoder.
        reason: String,
    },
}

impl From<MessageError> for crate::Error {
    fn from(error: MessageError) -> crate::Error {
        crate::Error::application("message", error)
    }
}
