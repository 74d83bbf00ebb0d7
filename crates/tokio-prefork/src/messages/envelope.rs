//! A message with its address, and its encoding. Without I/O; no input makes it panic.

use std::hash::Hasher;

use bytes::{Buf, BufMut, Bytes};

use super::{AttachedConnection, MessageError, PassedHistory, Payload, PayloadEncoding};
use crate::client::ProxiedClient;
use prefork_supervisor::{Slot, WorkerId};

/// The most bytes before the payload.
pub(super) const MAX_ENVELOPE_HEADER_BYTES: usize =
    FIXED_HEADER_BYTES + MessageKind::MAX_KIND_BYTES;

/// Bytes of class, address, request id, delivery (route and code), encoding and kind length.
const FIXED_HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 1 + 8 + 1 + 1;

/// The most bytes of a payload that are hashed. More would slow the primary down for large messages.
const MAX_HASHED_PAYLOAD_BYTES: usize = 1024;

/// The bit of the encoding that says that bytes read from the attached connection precede the payload: their number, then
/// themselves.
const HAS_UNREAD_BYTES: u8 = 0x80;

/// The bit of the encoding that says what the PROXY header of the attached connection has said, behind the unread bytes: a
/// length of one byte, and what it says.
const HAS_PROXIED_CLIENT: u8 = 0x40;

/// The kind of a message, which selects its handler or inbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MessageKind(Bytes);

impl MessageKind {
    /// The most bytes of a kind.
    pub(crate) const MAX_KIND_BYTES: usize = 64;

    pub(crate) fn new(name: &str) -> Result<MessageKind, MessageError> {
        match name.len() {
            1..=MessageKind::MAX_KIND_BYTES => {
                Ok(MessageKind(Bytes::copy_from_slice(name.as_bytes())))
            }
            _ => {
                Err(MessageError::BadKind(name.chars().take(MessageKind::MAX_KIND_BYTES).collect()))
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        // Always valid: created from a string, or checked when decoded.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The role of an envelope in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageClass {
    /// Expects no reply.
    Message = 1,
    /// Expects a reply with the same id.
    Request = 2,
    /// The reply to a request.
    Reply = 3,
    /// The rejection of a request. The payload is the reason.
    Refusal = 4,
    /// A worker that is about to exit asks for the end of its messages.
    EndRequest = 5,
    /// No message for this worker follows.
    EndOfMessages = 6,
}

/// How a message to a worker was addressed, which decides who gets it if the worker exits first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum MessageRoute {
    /// Nobody else: a broadcast, of which others have a copy, a reply, or a message of the library.
    #[default]
    ThisWorkerOnly = 0,
    /// To its slot, so to the next worker there.
    ToSlot = 1,
    /// To its id: the sender is told that the worker has exited.
    ToWorker = 2,
}

/// What the primary records in a message that it delivers, and gets back if the worker returns the message unread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeliveryRecord {
    pub(crate) route: MessageRoute,
    /// Whether the worker returns the message. The address is its sender, as at its delivery.
    pub(crate) is_returned: bool,
    /// Authenticates a returned message.
    pub(crate) code: u64,
}

impl DeliveryRecord {
    /// The bit of the route byte that marks a returned message.
    const RETURNED_FLAG: u8 = 0x80;

    fn route_byte(self) -> u8 {
        self.route as u8 | if self.is_returned { DeliveryRecord::RETURNED_FLAG } else { 0 }
    }

    fn decode(byte: u8, code: u64) -> Option<DeliveryRecord> {
        let route = match byte & !DeliveryRecord::RETURNED_FLAG {
            0 => MessageRoute::ThisWorkerOnly,
            1 => MessageRoute::ToSlot,
            2 => MessageRoute::ToWorker,
            _ => return None,
        };
        let is_returned = byte & DeliveryRecord::RETURNED_FLAG != 0;
        Some(DeliveryRecord { route, is_returned, code })
    }
}

/// The receiver, on the way to the primary; the sender, on the way to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageAddress {
    Primary,
    /// The worker that serves this slot.
    Slot(Slot),
    Worker(WorkerId),
    /// All workers except the sender.
    AllOthers,
}

impl MessageAddress {
    /// Returns the id of the worker at this address.
    pub(super) fn worker(self) -> Option<WorkerId> {
        match self {
            MessageAddress::Worker(id) => Some(id),
            MessageAddress::Primary | MessageAddress::Slot(_) | MessageAddress::AllOthers => None,
        }
    }

    /// Returns the type and the number of the address.
    fn encode(self) -> (u8, u64) {
        match self {
            MessageAddress::Primary => (0, 0),
            MessageAddress::Slot(Slot(slot)) => (1, u64::from(slot)),
            MessageAddress::Worker(WorkerId(id)) => (2, id),
            MessageAddress::AllOthers => (3, 0),
        }
    }
}

/// An envelope that was not accepted, and why.
pub(crate) type RejectedEnvelope = Box<(MessageError, Envelope)>;

/// A message with its address.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) class: MessageClass,
    pub(crate) address: MessageAddress,
    /// The request id, chosen by the requester; 0 for plain messages.
    pub(crate) id: u64,
    pub(crate) delivery: DeliveryRecord,
    pub(crate) kind: MessageKind,
    pub(crate) payload: Payload,
    pub(crate) attached: AttachedConnection,
}

impl Envelope {
    /// Creates a message without a request id.
    pub(crate) fn new(
        address: MessageAddress,
        kind: &str,
        payload: Payload,
        attached: AttachedConnection,
    ) -> Result<Envelope, MessageError> {
        let (kind, delivery) = (MessageKind::new(kind)?, DeliveryRecord::default());
        let class = MessageClass::Message;
        Ok(Envelope { class, address, id: 0, delivery, kind, payload, attached })
    }

    /// Creates an envelope without content that ends the messages of a worker, or asks for their end.
    pub(super) fn new_end(class: MessageClass) -> Envelope {
        Envelope {
            class,
            address: MessageAddress::Primary,
            id: 0,
            delivery: DeliveryRecord::default(),
            kind: MessageKind(Bytes::from_static(b"end")),
            payload: Bytes::new().into(),
            attached: AttachedConnection::Absent,
        }
    }

    /// Returns the error of a request that this envelope refuses.
    pub(crate) fn refusal_error(&self) -> MessageError {
        MessageError::Refused(String::from_utf8_lossy(self.payload.bytes()).into_owned())
    }

    /// Encodes everything before the payload.
    pub(super) fn encode_header(&self) -> Vec<u8> {
        let (address, number) = self.address.encode();
        let mut head = Vec::with_capacity(FIXED_HEADER_BYTES + self.kind.0.len());
        head.put_u8(self.class as u8);
        head.put_u8(address);
        head.put_u64_le(number);
        head.put_u64_le(self.id);
        head.put_u8(self.delivery.route_byte());
        head.put_u64_le(self.delivery.code);
        let unread = self.payload.unread_bytes();
        let proxied = self.payload.encoded_proxied_client();
        let unread_flag = if unread.is_empty() { 0 } else { HAS_UNREAD_BYTES };
        let proxied_flag = if proxied.is_empty() { 0 } else { HAS_PROXIED_CLIENT };
        head.put_u8(self.payload.encoding() as u8 | unread_flag | proxied_flag);
        head.put_u8(self.kind.0.len() as u8);
        head.put_slice(&self.kind.0);
        if !unread.is_empty() {
            head.put_u32_le(u32::try_from(unread.len()).unwrap_or(u32::MAX));
            head.put_slice(unread);
        }
        if !proxied.is_empty() {
            head.put_u8(proxied.len() as u8);
            head.put_slice(&proxied);
        }
        head
    }

    /// Returns the encoded size in bytes, without frames.
    pub(super) fn encoded_size(&self) -> usize {
        let unread = match self.payload.unread_bytes().len() {
            0 => 0,
            length => size_of::<u32>() + length,
        };
        let proxied = match self.payload.encoded_proxied_client().len() {
            0 => 0,
            length => 1 + length,
        };
        FIXED_HEADER_BYTES + self.kind.0.len() + unread + proxied + self.payload.bytes().len()
    }

    /// Clones the envelope without its connection, which cannot be cloned.
    pub(super) fn clone_without_connection(&self) -> Envelope {
        Envelope {
            kind: self.kind.clone(),
            payload: self.payload.clone(),
            attached: AttachedConnection::Absent,
            ..*self
        }
    }

    /// Feeds a hash with all that the primary has delivered: everything but the code, and a large payload only in part.
    pub(super) fn hash_delivery(&self, state: &mut impl Hasher) {
        let (address, number) = self.address.encode();
        let payload = self.payload.bytes();
        state.write(&[self.class as u8, address, self.delivery.route as u8]);
        state.write_u64(number);
        state.write_u64(self.id);
        state.write(&[self.payload.encoding() as u8, self.kind.0.len() as u8]);
        state.write(&self.kind.0);
        state.write_usize(self.payload.unread_bytes().len());
        state.write(&self.payload.encoded_proxied_client());
        state.write_usize(payload.len());
        state.write(&payload[..payload.len().min(MAX_HASHED_PAYLOAD_BYTES)]);
    }

    /// Decodes an envelope. Returns `None` for invalid bytes.
    pub(super) fn decode(bytes: Bytes, attached: AttachedConnection) -> Option<Envelope> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_HEADER_BYTES>()?;
        let number = |at: usize| {
            fixed[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default()
        };
        let class = match fixed[0] {
            1 => MessageClass::Message,
            2 => MessageClass::Request,
            3 => MessageClass::Reply,
            4 => MessageClass::Refusal,
            5 => MessageClass::EndRequest,
            6 => MessageClass::EndOfMessages,
            _ => return None,
        };
        let address = match (fixed[1], number(2)) {
            (0, 0) => MessageAddress::Primary,
            (1, slot) => MessageAddress::Slot(Slot(u32::try_from(slot).ok()?)),
            (2, id) => MessageAddress::Worker(WorkerId(id)),
            (3, 0) => MessageAddress::AllOthers,
            _ => return None,
        };
        let delivery = DeliveryRecord::decode(fixed[18], number(19))?;
        let length = usize::from(fixed[FIXED_HEADER_BYTES - 1]);
        let name = rest
            .get(..length)
            .filter(|name| (1..=MessageKind::MAX_KIND_BYTES).contains(&name.len()))?;
        std::str::from_utf8(name).ok()?;
        let encoding = fixed[FIXED_HEADER_BYTES - 2];
        let mut content = bytes.slice(FIXED_HEADER_BYTES + length..);
        let mut unread = Bytes::new();
        if encoding & HAS_UNREAD_BYTES != 0 {
            let count = u32::from_le_bytes(*content.first_chunk()?) as usize;
            content.advance(size_of::<u32>());
            if count == 0 || count > content.len() {
                return None;
            }
            unread = content.split_to(count);
        }
        let mut proxied = None;
        if encoding & HAS_PROXIED_CLIENT != 0 {
            let count = usize::from(content.try_get_u8().ok()?);
            if count > content.len() {
                return None;
            }
            // What another version of this program says is not understood; then the headers of requests are not believed.
            let client = ProxiedClient::from_bytes(&content.split_to(count));
            proxied = Some(Box::new(client.unwrap_or(ProxiedClient::Unknown)));
        }
        let flags = HAS_UNREAD_BYTES | HAS_PROXIED_CLIENT;
        let encoding = PayloadEncoding::from_byte(encoding & !flags)?;
        let history = PassedHistory { unread, proxied };
        let payload = Payload::new(encoding, content).with_history(history);
        let kind = MessageKind(bytes.slice(FIXED_HEADER_BYTES..FIXED_HEADER_BYTES + length));
        Some(Envelope { class, address, id: number(10), delivery, kind, payload, attached })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use crate::client::ProxyHeader;

    /// Creates a message of `size` bytes to the primary.
    pub(in crate::messages) fn test_envelope(kind: &str, size: usize) -> Envelope {
        let payload = (0..size).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
        let payload = Bytes::from(payload).into();
        let kind = MessageKind::new(kind).expect("a kind");
        let (class, address) = (MessageClass::Message, MessageAddress::Primary);
        let (delivery, attached) = (DeliveryRecord::default(), AttachedConnection::Absent);
        Envelope { class, address, id: 0, delivery, kind, payload, attached }
    }

    pub(in crate::messages) fn encode_for_test(envelope: &Envelope) -> Bytes {
        [&envelope.encode_header()[..], envelope.payload.bytes()].concat().into()
    }

    pub(in crate::messages) fn is_same_envelope(a: &Envelope, b: &Envelope) -> bool {
        encode_for_test(a) == encode_for_test(b)
    }

    #[test]
    fn the_encoding_matches_the_module_documentation() {
        let hi = Envelope { payload: Bytes::from_static(b"hi").into(), ..test_envelope("a", 0) };
        let mut expected = vec![0x01];
        expected.extend([0; 27]);
        expected.extend([1, b'a', b'h', b'i']);
        assert_eq!(encode_for_test(&hi), expected);
        assert_eq!(hi.encoded_size(), 0x20);
    }

    #[test]
    fn a_kind_has_1_to_64_bytes() {
        assert!(MessageKind::new("").is_err());
        assert!(MessageKind::new(&"x".repeat(64)).is_ok());
        assert_eq!(MessageKind::new(&"x".repeat(65)), Err(MessageError::BadKind("x".repeat(64))));
    }

    proptest! {
        #[test]
        fn encoded_envelopes_are_decoded(
            class in 1u8..=6, address in 0u8..=3, n: u32, id: u64, route in 0u8..=2, is_returned: bool, code: u64, encoding in 0u8..=2, kind in ".{1,16}", unread: Vec<u8>, proxied in 0u8..=3, payload: Vec<u8>,
        ) {
            let class = [MessageClass::Message, MessageClass::Request, MessageClass::Reply, MessageClass::Refusal,
                MessageClass::EndRequest, MessageClass::EndOfMessages]
                [usize::from(class) - 1];
            let address = match address {
                0 => MessageAddress::Primary,
                1 => MessageAddress::Slot(Slot(n)),
                2 => MessageAddress::Worker(WorkerId(n.into())),
                _ => MessageAddress::AllOthers,
            };
            let kind = MessageKind::new(&kind).expect("short enough");
            let attached = AttachedConnection::Absent;
            let encoding = PayloadEncoding::from_byte(encoding).expect("an encoding");
            let addr = SocketAddr::from(([192, 0, 2, 1], n as u16));
            let proxied = match proxied {
                0 => None,
                1 => Some(ProxiedClient::Proxy),
                2 => Some(ProxiedClient::Unknown),
                _ => Some(ProxiedClient::Known(ProxyHeader::new(addr, addr, is_returned))),
            };
            let history = PassedHistory { unread: unread.into(), proxied: proxied.map(Box::new) };
            let payload = Payload::new(encoding, payload.into()).with_history(history);
            let delivery = DeliveryRecord { is_returned, ..DeliveryRecord::decode(route, code).expect("a route") };
            let envelope = Envelope { class, address, id, delivery, kind, payload, attached };
            let read = Envelope::decode(encode_for_test(&envelope), AttachedConnection::Absent).expect("a envelope");
            prop_assert_eq!(&read.payload, &envelope.payload);
            prop_assert!(is_same_envelope(&read, &envelope));
            prop_assert_eq!((read.class, read.address, read.id, read.delivery), (class, address, id, delivery));
            prop_assert_eq!(envelope.encoded_size(), encode_for_test(&envelope).len());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = Envelope::decode(bytes.into(), AttachedConnection::Absent);
        }
    }
}
