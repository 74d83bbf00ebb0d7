//! Messages as the application sees them.

use bytes::Bytes;
use serde::Deserialize;

use super::{
    AttachedConnection, DeliveryRecord, Envelope, MessageAddress, MessageClass, MessageError,
    MessageKind, PassedConnection, Payload,
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
    pub(crate) fn reply_envelope(&self, class: MessageClass, payload: Payload) -> Envelope {
        let address = match self.to {
            MessageSender::Primary => MessageAddress::Primary,
            MessageSender::Worker(id) => MessageAddress::Worker(id),
        };
        let (id, kind, delivery) = (self.id, self.kind.clone(), DeliveryRecord::default());
        let attached = AttachedConnection::Absent;
        Envelope { class, address, id, delivery, kind, payload, attached }
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

    /// Returns the envelope that gives the message back to the primary.
    pub(crate) fn into_returned(self) -> Envelope {
        let delivery = DeliveryRecord { is_returned: true, ..self.envelope.delivery };
        Envelope { delivery, ..self.envelope }
    }

    /// Returns the kind of the message.
    pub fn kind(&self) -> &str {
        self.envelope.kind.as_str()
    }

    /// Returns the sender.
    pub fn from(&self) -> MessageSender {
        self.from
    }

    /// Returns the bytes of the payload, as they were encoded by the sender.
    pub fn bytes(&self) -> &Bytes {
        self.envelope.payload.bytes()
    }

    /// Returns the payload with its encoding, to send it on unchanged.
    pub fn payload(&self) -> &Payload {
        &self.envelope.payload
    }

    /// Decodes the payload as a value. The encoding is known from the message: see [`IntoPayload`](crate::IntoPayload).
    ///
    /// The value may borrow from the message.
    ///
    /// # Errors
    /// [`MessageError::Decode`] if it is not of this type.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tokio_prefork::{Message, MessageError};
    /// #[derive(Serialize, Deserialize)]
    /// #[serde(tag = "type")]
    /// enum Job<'a> {
    ///     Resize { path: &'a str, width: u32 },
    ///     Delete { path: &'a str },
    /// }
    ///
    /// fn describe(message: &Message) -> Result<String, MessageError> {
    ///     Ok(match message.decode()? {
    ///         Job::Resize { path, width } => format!("{path} to {width}"),
    ///         Job::Delete { path } => format!("{path} away"),
    ///     })
    /// }
    /// ```
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, MessageError> {
        let payload = &self.envelope.payload;
        payload.decode().map_err(|reason| MessageError::Decode {
            kind: self.kind().to_string(),
            encoding: payload.encoding(),
            type_name: std::any::type_name::<T>(),
            reason,
        })
    }

    /// Returns where to send the reply, if the message is a request.
    pub fn reply_to(&self) -> Option<ReplyTo> {
        let Envelope { class, id, kind, .. } = &self.envelope;
        let request = *class == MessageClass::Request;
        request.then(|| ReplyTo { to: self.from, id: *id, kind: kind.clone() })
    }

    /// Takes the connection that was sent with the message. A connection that is not taken is closed with the message.
    pub fn take_connection(&mut self) -> Option<PassedConnection> {
        let fd = self.envelope.attached.take_fd()?;
        let history = self.envelope.payload.take_history();
        Some(PassedConnection { fd, history })
    }

    /// Returns whether a connection was sent with the message but closed, because this process had no free descriptor.
    pub fn has_lost_connection(&self) -> bool {
        matches!(self.envelope.attached, AttachedConnection::Lost)
    }
}
