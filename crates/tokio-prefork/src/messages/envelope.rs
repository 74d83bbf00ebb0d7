//! A letter: a message with its address, as bytes and back. Pure, and never panicking whatever the bytes.

use bytes::{BufMut, Bytes};

use super::{Carried, MessageError};
use prefork_supervisor::{Slot, WorkerId};

/// Bytes before the payload, at most.
pub(super) const HEAD: usize = FIXED + Kind::MOST;

/// Class, place, id of the request, length of the kind.
const FIXED: usize = 1 + 1 + 8 + 8 + 1;

/// The name of the channel that a message belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kind(Bytes);

impl Kind {
    /// Bytes of its name, at most.
    pub(crate) const MOST: usize = 64;

    pub(crate) fn new(name: &str) -> Result<Kind, MessageError> {
        match name.len() {
            1..=Kind::MOST => Ok(Kind(Bytes::copy_from_slice(name.as_bytes()))),
            _ => Err(MessageError::BadKind(name.chars().take(Kind::MOST).collect())),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        // It was made of a text, or checked when it was decoded.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a letter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// No answer is expected.
    Message = 1,
    /// An answer with the same id is expected.
    Request = 2,
    /// The answer.
    Reply = 3,
    /// There will be no answer; the payload says why.
    Refusal = 4,
}

/// Where a letter goes, on its way to the primary; where it comes from, on its way to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Primary,
    /// The worker that serves this slot.
    Slot(Slot),
    Worker(WorkerId),
    /// All workers but the sender.
    Everybody,
}

/// A letter that was not taken, and why.
pub(crate) type Back = Box<(MessageError, Letter)>;

/// A message with its address.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) class: Class,
    pub(crate) place: Place,
    /// Chosen by who asks; 0 where nobody does.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
    pub(crate) carried: Carried,
}

impl Letter {
    /// Everything before the payload.
    pub(super) fn head(&self) -> Vec<u8> {
        let (place, number) = match self.place {
            Place::Primary => (0, 0),
            Place::Slot(Slot(slot)) => (1, u64::from(slot)),
            Place::Worker(WorkerId(id)) => (2, id),
            Place::Everybody => (3, 0),
        };
        let mut head = Vec::with_capacity(FIXED + self.kind.0.len());
        head.put_u8(self.class as u8);
        head.put_u8(place);
        head.put_u64_le(number);
        head.put_u64_le(self.id);
        head.put_u8(self.kind.0.len() as u8);
        head.put_slice(&self.kind.0);
        head
    }

    /// Bytes on the wire, without frames.
    pub(super) fn size(&self) -> usize {
        FIXED + self.kind.0.len() + self.payload.len()
    }

    /// A copy without its connection, of which there is only one.
    pub(super) fn copy(&self) -> Letter {
        Letter {
            kind: self.kind.clone(),
            payload: self.payload.clone(),
            carried: Carried::Nothing,
            ..*self
        }
    }

    /// `None` if this is no letter.
    pub(super) fn decode(bytes: Bytes, carried: Carried) -> Option<Letter> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>()?;
        let number = |at: usize| {
            fixed[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default()
        };
        let class = match fixed[0] {
            1 => Class::Message,
            2 => Class::Request,
            3 => Class::Reply,
            4 => Class::Refusal,
            _ => return None,
        };
        let place = match (fixed[1], number(2)) {
            (0, 0) => Place::Primary,
            (1, slot) => Place::Slot(Slot(u32::try_from(slot).ok()?)),
            (2, id) => Place::Worker(WorkerId(id)),
            (3, 0) => Place::Everybody,
            _ => return None,
        };
        let length = usize::from(fixed[FIXED - 1]);
        let name = rest.get(..length).filter(|name| (1..=Kind::MOST).contains(&name.len()))?;
        std::str::from_utf8(name).ok()?;
        let payload = bytes.slice(FIXED + length..);
        let kind = Kind(bytes.slice(FIXED..FIXED + length));
        Some(Letter { class, place, id: number(10), kind, payload, carried })
    }
}

/// A letter without an id.
pub(crate) fn letter(
    place: Place,
    kind: &str,
    payload: Bytes,
    carried: Carried,
) -> Result<Letter, MessageError> {
    let kind = Kind::new(kind)?;
    Ok(Letter { class: Class::Message, place, id: 0, kind, payload, carried })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of `size` bytes to the primary.
    pub(in crate::messages) fn letter(kind: &str, size: usize) -> Letter {
        let payload = (0..size).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        let kind = Kind::new(kind).expect("a kind");
        let (class, place) = (Class::Message, Place::Primary);
        Letter { class, place, id: 0, kind, payload, carried: Carried::Nothing }
    }

    pub(in crate::messages) fn bytes(letter: &Letter) -> Bytes {
        [&letter.head()[..], &letter.payload].concat().into()
    }

    pub(in crate::messages) fn same(a: &Letter, b: &Letter) -> bool {
        bytes(a) == bytes(b)
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol_page() {
        let hi = Letter { payload: Bytes::from_static(b"hi"), ..letter("a", 0) };
        let mut expected = vec![0x01];
        expected.extend([0; 17]);
        expected.extend([1, b'a', b'h', b'i']);
        assert_eq!(bytes(&hi), expected);
        assert_eq!(hi.size(), 0x16);
    }

    #[test]
    fn a_kind_has_one_to_64_bytes() {
        assert!(Kind::new("").is_err());
        assert!(Kind::new(&"x".repeat(64)).is_ok());
        assert_eq!(Kind::new(&"x".repeat(65)), Err(MessageError::BadKind("x".repeat(64))));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            class in 1u8..=4, place in 0u8..=3, n: u32, id: u64, kind in ".{1,16}", payload: Vec<u8>,
        ) {
            let class = [Class::Message, Class::Request, Class::Reply, Class::Refusal]
                [usize::from(class) - 1];
            let place = match place {
                0 => Place::Primary,
                1 => Place::Slot(Slot(n)),
                2 => Place::Worker(WorkerId(n.into())),
                _ => Place::Everybody,
            };
            let kind = Kind::new(&kind).expect("short enough");
            let carried = Carried::Nothing;
            let letter = Letter { class, place, id, kind, payload: payload.into(), carried };
            let read = Letter::decode(bytes(&letter), Carried::Nothing).expect("a letter");
            prop_assert!(same(&read, &letter));
            prop_assert_eq!((read.class, read.place, read.id), (class, place, id));
            prop_assert_eq!(letter.size(), bytes(&letter).len());
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Letter::decode(bytes.into(), Carried::Nothing);
        }
    }
}
