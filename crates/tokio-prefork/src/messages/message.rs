//! Messages as the application sees them.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    AttachedConnection, Envelope, MessageAddress, MessageClass, MessageError, MessageKind,
    PassedConnection,
};
use prefork_supervisor::{Slot, WorkerId};

/// The worker that a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageTarget {
    /// The worker that serves this slot when the primary routes the message.
    Slot(Slot),
    /// The worker with this id.
    Worker(WorkerId),
}

impl From<Slot> for MessageTarget {
    fn from(slot: Slot) -> MessageTarget {
        MessageTarget::Slot(slot)
    }
}

impl From<WorkerId> for MessageTarget {
    fn from(id: WorkerId) -> MessageTarget {
        MessageTarget::Worker(id)
    }
}

impl From<MessageTarget> for MessageAddress {
    fn from(target: MessageTarget) -> MessageAddress {
        match target {
            MessageTarget::Slot(slot) => MessageAddress::Slot(slot),
            MessageTarget::Worker(id) => MessageAddress::Worker(id),
        }
    }
}

/// The sender of a message, as verified by the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageSender {
    /// The primary.
    Primary,
    /// A worker.
    Worker(WorkerId),
}

/// Where to send the reply to a request. May be stored, and used once; further replies are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    pub(crate) to: MessageSender,
    pub(crate) id: u64,
    pub(crate) kind: MessageKind,
}

impl ReplyTo {
    #[cfg(test)]
    pub(crate) fn to_test(to: MessageSender, id: u64) -> ReplyTo {
        ReplyTo { to, id, kind: MessageKind::new("test").expect("a kind") }
    }

    pub(crate) fn reply_envelope(&self, class: MessageClass, payload: Bytes) -> Envelope {
        let address = match self.to {
            MessageSender::Primary => MessageAddress::Primary,
            MessageSender::Worker(id) => MessageAddress::Worker(id),
        };
        let (id, kind) = (self.id, self.kind.clone());
        Envelope { class, address, id, kind, payload, attached: AttachedConnection::Absent }
    }
}

/// A received message, or the reply to a request.
#[derive(Debug)]
pub struct Message {
    from: MessageSender,
    envelope: Envelope,
}

impl Message {
    pub(crate) fn new(from: MessageSender, envelope: Envelope) -> Message {
        Message { from, envelope }
    }

    /// Returns the kind of the message.
    pub fn kind(&self) -> &str {
        self.envelope.kind.as_str()
    }

    /// Returns the sender.
    pub fn from(&self) -> MessageSender {
        self.from
    }

    /// Returns the payload as it was sent.
    pub fn bytes(&self) -> &Bytes {
        &self.envelope.payload
    }

    /// Decodes the payload as a value.
    ///
    /// # Errors
    /// [`MessageError::Codec`] if it is not of this type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        let kind = || self.kind().to_string();
        let failed = |e: postcard::Error| MessageError::Codec { kind: kind(), why: e.to_string() };
        postcard::from_bytes(&self.envelope.payload).map_err(failed)
    }

    /// Returns where to send the reply, if the message is a request.
    pub fn reply_to(&self) -> Option<ReplyTo> {
        let Envelope { class, id, kind, .. } = &self.envelope;
        let request = *class == MessageClass::Request;
        request.then(|| ReplyTo { to: self.from, id: *id, kind: kind.clone() })
    }

    /// Takes the connection that was sent with the message. A connection that is not taken is closed with the message.
    pub fn take_connection(&mut self) -> Option<PassedConnection> {
        match std::mem::take(&mut self.envelope.attached) {
            AttachedConnection::Present(fd) => Some(PassedConnection(fd)),
            AttachedConnection::Absent => None,
            AttachedConnection::Lost => {
                self.envelope.attached = AttachedConnection::Lost;
                None
            }
        }
    }

    /// Returns whether a connection was sent with the message but closed, because this process had no free descriptor.
    pub fn has_lost_connection(&self) -> bool {
        matches!(self.envelope.attached, AttachedConnection::Lost)
    }
}

mod sealed {
    pub trait Sealed {}
    impl<T: serde::Serialize + ?Sized> Sealed for &T {}
    impl Sealed for bytes::Bytes {}
    impl Sealed for Vec<u8> {}
}

/// What can be sent as a message: a reference to a serde value, which is encoded with postcard, or owned bytes, which are sent as
/// they are.
///
/// postcard has a stable specified format and an overhead of one to three bytes.
pub trait IntoPayload: sealed::Sealed {
    /// Returns the bytes to send.
    ///
    /// # Errors
    /// [`MessageError::Codec`] if the value cannot be encoded.
    fn into_payload(self) -> Result<Bytes, MessageError>;
}

impl<T: Serialize + ?Sized> IntoPayload for &T {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        let failed =
            |e: postcard::Error| MessageError::Codec { kind: String::new(), why: e.to_string() };
        postcard::to_stdvec(self).map(Bytes::from).map_err(failed)
    }
}

impl IntoPayload for Bytes {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        Ok(self)
    }
}

impl IntoPayload for Vec<u8> {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        Ok(self.into())
    }
}
