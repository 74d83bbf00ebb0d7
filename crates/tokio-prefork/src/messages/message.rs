//! A message as the application sees it.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Carried, Class, Connection, Kind, Letter, MailError, Place};
use prefork_supervisor::{Slot, WorkerId};

/// Which worker a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Whoever serves this slot when the message passes the primary.
    Slot(Slot),
    /// This one.
    Worker(WorkerId),
}

impl From<Slot> for Target {
    fn from(slot: Slot) -> Target {
        Target::Slot(slot)
    }
}

impl From<WorkerId> for Target {
    fn from(id: WorkerId) -> Target {
        Target::Worker(id)
    }
}

impl From<Target> for Place {
    fn from(target: Target) -> Place {
        match target {
            Target::Slot(slot) => Place::Slot(slot),
            Target::Worker(id) => Place::Worker(id),
        }
    }
}

/// Who sent a message. The primary vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The primary.
    Primary,
    /// A worker.
    Worker(WorkerId),
}

/// Where the answer to a request goes. May be kept, and used once; a second answer is thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    pub(crate) to: Sender,
    pub(crate) id: u64,
    pub(crate) kind: Kind,
}

impl ReplyTo {
    #[cfg(test)]
    pub(crate) fn to_test(to: Sender, id: u64) -> ReplyTo {
        ReplyTo { to, id, kind: Kind::new("test").expect("a kind") }
    }

    pub(crate) fn letter(&self, class: Class, payload: Bytes) -> Letter {
        let place = match self.to {
            Sender::Primary => Place::Primary,
            Sender::Worker(id) => Place::Worker(id),
        };
        let (id, kind) = (self.id, self.kind.clone());
        Letter { class, place, id, kind, payload, carried: Carried::Nothing }
    }
}

/// A message that came, or the answer to a request.
#[derive(Debug)]
pub struct Message {
    from: Sender,
    letter: Letter,
}

impl Message {
    pub(crate) fn new(from: Sender, letter: Letter) -> Message {
        Message { from, letter }
    }

    /// The channel it belongs to.
    pub fn kind(&self) -> &str {
        self.letter.kind.as_str()
    }

    /// Who sent it.
    pub fn from(&self) -> Sender {
        self.from
    }

    /// What it says, as it was sent.
    pub fn bytes(&self) -> &Bytes {
        &self.letter.payload
    }

    /// The value it was made of.
    ///
    /// # Errors
    /// [`MailError::Codec`] if it is not of this type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, MailError> {
        let kind = || self.kind().to_string();
        let failed = |e: postcard::Error| MailError::Codec { kind: kind(), why: e.to_string() };
        postcard::from_bytes(&self.letter.payload).map_err(failed)
    }

    /// Where the answer goes, if it is a request.
    pub fn reply_to(&self) -> Option<ReplyTo> {
        let Letter { class, id, kind, .. } = &self.letter;
        let request = *class == Class::Request;
        request.then(|| ReplyTo { to: self.from, id: *id, kind: kind.clone() })
    }

    /// The connection that came with it, the first time. One that is not taken is closed with the message.
    pub fn take_connection(&mut self) -> Option<Connection> {
        match std::mem::take(&mut self.letter.carried) {
            Carried::Here(fd) => Some(Connection(fd)),
            Carried::Nothing => None,
            Carried::Lost => {
                self.letter.carried = Carried::Lost;
                None
            }
        }
    }

    /// Whether a connection was sent with it that this process had no descriptor for: it is closed.
    pub fn has_lost_connection(&self) -> bool {
        matches!(self.letter.carried, Carried::Lost)
    }
}
