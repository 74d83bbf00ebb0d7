//! A message as the application sees it.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    AttachedConnection, Envelope, MessageAddress, MessageClass, MessageError, MessageKind,
    PassedConnection,
};
use prefork_supervisor::{Slot, WorkerId};

/// Which worker a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageTarget {
    /// Whoever serves this slot when the message passes the primary.
    Slot(Slot),
    /// This one.
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

/// Who sent a message. The primary vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageSender {
    /// The primary.
    Primary,
    /// A worker.
    Worker(WorkerId),
}

/// Where the answer to a request goes. May be kept, and used once; a second answer is thrown away.
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

/// A message that came, or the answer to a request.
#[derive(Debug)]
pub struct Message {
    from: MessageSender,
    envelope: Envelope,
}

impl Message {
    pub(crate) fn new(from: MessageSender, envelope: Envelope) -> Message {
        Message { from, envelope }
    }

    /// The channel it belongs to.
    pub fn kind(&self) -> &str {
        self.envelope.kind.as_str()
    }

    /// Who sent it.
    pub fn from(&self) -> MessageSender {
        self.from
    }

    /// What it says, as it was sent.
    pub fn bytes(&self) -> &Bytes {
        &self.envelope.payload
    }

    /// The value it was made of.
    ///
    /// # Errors
    /// [`MessageError::Codec`] if it is not of this type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        let kind = || self.kind().to_string();
        let failed = |e: postcard::Error| MessageError::Codec { kind: kind(), why: e.to_string() };
        postcard::from_bytes(&self.envelope.payload).map_err(failed)
    }

    /// Where the answer goes, if it is a request.
    pub fn reply_to(&self) -> Option<ReplyTo> {
        let Envelope { class, id, kind, .. } = &self.envelope;
        let request = *class == MessageClass::Request;
        request.then(|| ReplyTo { to: self.from, id: *id, kind: kind.clone() })
    }

    /// The connection that came with it, the first time. One that is not taken is closed with the message.
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

    /// Whether a connection was sent with it that this process had no descriptor for: it is closed.
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

/// What can be sent: a reference to any serde value, which is encoded, or owned bytes, which go as they are.
pub trait IntoPayload: sealed::Sealed {
    /// The bytes to send.
    ///
    /// # Errors
    /// [`MessageError::Codec`] if the value cannot be written down.
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
