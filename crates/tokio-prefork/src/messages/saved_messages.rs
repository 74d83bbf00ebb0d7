//! The messages in the primary when it is upgraded: what crosses the exec, and how the new image continues.
//!
//! The channels stay open, so the messages in their sockets need no care. The format includes that of the channels, because workers of
//! the old image speak it with the new one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::delivery_key::DeliveryKey;
use super::{AttachedConnection, Envelope, MessageClass};
use prefork_os::fd::take_inherited_fd;

/// The format of channels and saved messages. A new image that knows another one closes the channels of old workers.
pub(crate) const MESSAGE_FORMAT: u32 = 1;

/// The most bytes of messages that cross the exec. More are lost, as the exec waits for their copy.
const MAX_SAVED_BYTES: usize = 256 << 20;

/// The most bytes of a saved state, with what is around the messages.
pub(crate) const MAX_SAVED_STATE_BYTES: usize = 2 * MAX_SAVED_BYTES;

/// Why requests are refused that the old image had not answered.
pub(super) const UPGRADED: &str = "the primary was upgraded before it replied";

/// The messages of the old image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedMessages {
    pub(super) key: DeliveryKey,
    /// Number of lost messages so far.
    pub(super) lost: u64,
    /// The id of the primary's last request: replies to the old image must not answer those of the new one.
    pub(crate) last_request_id: u64,
    pub(super) workers: Vec<SavedWorker>,
    pub(super) held: Vec<SavedHeldMessage>,
    /// Requests of workers that the old image did not answer.
    pub(super) unanswered: Vec<SavedRequest>,
}

/// The queues of one worker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SavedWorker {
    pub(super) id: u64,
    pub(super) is_leaving: bool,
    pub(super) received: Vec<SavedEnvelope>,
    /// Each with the number of bytes that the worker has got.
    pub(super) outgoing: Vec<(SavedEnvelope, usize)>,
    pub(super) unsent: Vec<SavedEnvelope>,
    /// An envelope of which some parts have arrived: its size, and the parts.
    pub(super) partial: Option<(usize, SavedEnvelope)>,
}

/// A message that waits for the next worker of a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedHeldMessage {
    pub(super) slot: u32,
    /// The kind of the slot's last worker.
    pub(super) kind: Option<String>,
    pub(super) envelope: SavedEnvelope,
}

/// A request that waits for its reply.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SavedRequest {
    pub(super) worker: u64,
    pub(super) id: u64,
    pub(super) kind: String,
}

/// An encoded envelope, and the number of its descriptor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedEnvelope {
    pub(super) bytes: Vec<u8>,
    fd: Option<i32>,
}

impl SavedEnvelope {
    /// Decodes the envelope in the new image. Returns `None` for invalid bytes.
    pub(super) fn restore(self) -> Option<Envelope> {
        let attached = self.take_attached();
        Envelope::decode(self.bytes.into(), attached)
    }

    pub(super) fn take_attached(&self) -> AttachedConnection {
        match self.fd.map(take_inherited_fd) {
            Some(Ok(fd)) => AttachedConnection::Present(fd),
            Some(Err(_)) => AttachedConnection::Lost,
            None => AttachedConnection::Absent,
        }
    }
}

impl SavedMessages {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        postcard::to_stdvec(self).map_err(|e| e.to_string())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SavedMessages, String> {
        postcard::from_bytes(bytes).map_err(|e| e.to_string())
    }
}

/// Collects what is saved, up to a bound.
#[derive(Debug)]
pub(super) struct MessageSaver<'a> {
    /// The descriptors that have to stay open over the exec.
    pub(super) fds: Vec<BorrowedFd<'a>>,
    bytes_left: usize,
    pub(super) lost: u64,
    pub(super) unanswered: Vec<SavedRequest>,
}

impl<'a> MessageSaver<'a> {
    pub(super) fn new() -> MessageSaver<'a> {
        let (fds, unanswered) = (Vec::new(), Vec::new());
        MessageSaver { fds, bytes_left: MAX_SAVED_BYTES, lost: 0, unanswered }
    }

    /// Saves an envelope. Returns `None` if there is no room: then it is counted as lost, and a request is refused.
    pub(super) fn save(&mut self, envelope: &'a Envelope) -> Option<SavedEnvelope> {
        if envelope.encoded_size() > self.bytes_left {
            self.lost += 1;
            if let Some(worker) = envelope.address.worker()
                && envelope.class == MessageClass::Request
            {
                let (id, kind) = (envelope.id, envelope.kind.as_str().to_string());
                self.unanswered.push(SavedRequest { worker: worker.0, id, kind });
            }
            return None;
        }
        Some(self.save_always(envelope))
    }

    /// Saves an envelope of which the receiver has got some parts.
    pub(super) fn save_always(&mut self, envelope: &'a Envelope) -> SavedEnvelope {
        self.bytes_left = self.bytes_left.saturating_sub(envelope.encoded_size());
        let mut bytes = envelope.encode_header();
        bytes.extend_from_slice(envelope.payload.bytes());
        SavedEnvelope { bytes, fd: self.save_fd(&envelope.attached) }
    }

    pub(super) fn save_part(
        &mut self,
        bytes: &[u8],
        attached: &'a AttachedConnection,
    ) -> SavedEnvelope {
        SavedEnvelope { bytes: bytes.to_vec(), fd: self.save_fd(attached) }
    }

    fn save_fd(&mut self, attached: &'a AttachedConnection) -> Option<i32> {
        let AttachedConnection::Present(fd) = attached else { return None };
        self.fds.push(OwnedFd::as_fd(fd));
        Some(fd.as_raw_fd())
    }
}

/// Returns the text of a refusal.
pub(super) fn refusal_text() -> Bytes {
    Bytes::from_static(UPGRADED.as_bytes())
}
