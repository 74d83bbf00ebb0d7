//! Encoding and decoding of messages: pure, bounded, and never panicking whatever the bytes.

use std::time::Duration;

use super::{HandOver, ToPrimary, ToWorker, Unread};
use crate::text::printable_bytes;
use prefork_supervisor::Slot;

/// The largest message in bytes: a connection with all the unread bytes it may have.
pub(crate) const CAP: usize = 1 + Unread::MOST;

/// The longest text in bytes; what is longer is cut when it is encoded.
const TEXT: usize = 4095;

const READY: u8 = 0x01;
const BOOT_FAILED: u8 = 0x02;
const RETIRING: u8 = 0x03;
const TRAVEL: u8 = 0x04;
const NOT_ADOPTED: u8 = 0x05;
const ONLINE: u8 = 0x06;
const DISCONNECTING: u8 = 0x07;
const DRAIN: u8 = 0x81;
const ARRIVE: u8 = 0x82;
const RELEASED: u8 = 0x83;
const LOG: u8 = 0x84;
const ADOPT: u8 = 0x85;
const GIVE_BACK: u8 = 0x86;

/// Why a message is not one of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbled {
    #[error("unknown kind {0:#04x}")]
    Kind(u8),
    #[error("wrong length {0}")]
    Length(usize),
}

impl ToPrimary {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            ToPrimary::Online => vec![ONLINE],
            ToPrimary::Disconnecting => vec![DISCONNECTING],
            ToPrimary::Ready => vec![READY],
            ToPrimary::Retiring => vec![RETIRING],
            ToPrimary::BootFailed(why) => {
                let mut bytes = vec![BOOT_FAILED];
                bytes.extend(why.bytes().take(TEXT));
                bytes
            }
            ToPrimary::Travel(unread) => with_unread(TRAVEL, unread),
            ToPrimary::NotAdopted(slot) => with_slot(NOT_ADOPTED, *slot),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ToPrimary, Garbled> {
        match bytes {
            [ONLINE] => Ok(ToPrimary::Online),
            [DISCONNECTING] => Ok(ToPrimary::Disconnecting),
            [READY] => Ok(ToPrimary::Ready),
            [RETIRING] => Ok(ToPrimary::Retiring),
            [BOOT_FAILED, why @ ..] => Ok(ToPrimary::BootFailed(printable_bytes(why, TEXT))),
            [TRAVEL, unread @ ..] => {
                let unread = Unread::new(unread.to_vec());
                unread.map(ToPrimary::Travel).ok_or(Garbled::Length(bytes.len()))
            }
            [NOT_ADOPTED, slot @ ..] => slot_of(slot).map(ToPrimary::NotAdopted),
            [READY | RETIRING | ONLINE | DISCONNECTING, ..] | [] => {
                Err(Garbled::Length(bytes.len()))
            }
            [kind, ..] => Err(Garbled::Kind(*kind)),
        }
    }
}

impl ToWorker {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            ToWorker::Drain { grace, linger, closing, hand_over } => {
                let mut bytes = vec![DRAIN];
                bytes.extend(in_millis(*grace).to_le_bytes());
                bytes.extend(in_millis(*linger).to_le_bytes());
                bytes.push(u8::from(*closing));
                bytes.push(*hand_over as u8);
                bytes
            }
            ToWorker::Arrive(unread) => with_unread(ARRIVE, unread),
            ToWorker::Released => vec![RELEASED],
            ToWorker::Log => vec![LOG],
            ToWorker::Adopt { slot, closing } => {
                let mut bytes = with_slot(ADOPT, *slot);
                bytes.push(u8::from(*closing));
                bytes
            }
            ToWorker::GiveBack(slot) => with_slot(GIVE_BACK, *slot),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ToWorker, Garbled> {
        let wrong_length = Garbled::Length(bytes.len());
        match bytes {
            [DRAIN, rest @ ..] => {
                let (grace, rest) = rest.split_first_chunk().ok_or(wrong_length)?;
                let (linger, rest) =
                    rest.split_first_chunk().ok_or(Garbled::Length(bytes.len()))?;
                let [closing @ (0 | 1), hand_over] = rest else {
                    return Err(Garbled::Length(bytes.len()));
                };
                Ok(ToWorker::Drain {
                    grace: Duration::from_millis(u64::from_le_bytes(*grace)),
                    linger: Duration::from_millis(u64::from_le_bytes(*linger)),
                    closing: *closing == 1,
                    hand_over: match hand_over {
                        0 => HandOver::Never,
                        1 => HandOver::WhenOthersServe,
                        _ => HandOver::Now,
                    },
                })
            }
            [ARRIVE, unread @ ..] => {
                Unread::new(unread.to_vec()).map(ToWorker::Arrive).ok_or(wrong_length)
            }
            [RELEASED] => Ok(ToWorker::Released),
            [LOG] => Ok(ToWorker::Log),
            [ADOPT, slot @ .., closing @ (0 | 1)] => {
                Ok(ToWorker::Adopt { slot: slot_of(slot)?, closing: *closing == 1 })
            }
            [GIVE_BACK, slot @ ..] => slot_of(slot).map(ToWorker::GiveBack),
            [RELEASED | LOG | ADOPT, ..] => Err(wrong_length),
            [] => Err(wrong_length),
            [kind, ..] => Err(Garbled::Kind(*kind)),
        }
    }
}

fn with_unread(kind: u8, unread: &Unread) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(unread.as_ref());
    bytes
}

fn with_slot(kind: u8, slot: Slot) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(slot.0.to_le_bytes());
    bytes
}

fn slot_of(bytes: &[u8]) -> Result<Slot, Garbled> {
    let number = bytes.try_into().map_err(|_| Garbled::Length(bytes.len() + 1))?;
    Ok(Slot(u32::from_le_bytes(number)))
}

fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::printable;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_those_of_the_protocol_page() {
        assert_eq!(ToPrimary::Ready.encode(), [0x01]);
        let drain = ToWorker::Drain {
            grace: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            closing: false,
            hand_over: HandOver::WhenOthersServe,
        };
        assert_eq!(
            drain.encode(),
            [0x81, 0x30, 0x75, 0, 0, 0, 0, 0, 0, 0xe8, 0x03, 0, 0, 0, 0, 0, 0, 0, 1]
        );
        let adopt = ToWorker::Adopt { slot: Slot(2), closing: false };
        assert_eq!(adopt.encode(), [0x85, 2, 0, 0, 0, 0]);
        assert_eq!(ToWorker::GiveBack(Slot(2)).encode(), [0x86, 2, 0, 0, 0]);
        let unread = Unread::new(b"GE".to_vec()).expect("short enough");
        assert_eq!(ToPrimary::Travel(unread.clone()).encode(), [0x04, b'G', b'E']);
        assert_eq!(ToWorker::Arrive(unread).encode(), [0x82, b'G', b'E']);
    }

    #[test]
    fn what_is_long_is_bounded() {
        let bytes = ToPrimary::BootFailed("x".repeat(2 * CAP)).encode();
        assert_eq!(bytes.len(), 1 + TEXT);
        // A worker may send more than we would.
        let long = [&[BOOT_FAILED][..], &vec![b'x'; CAP - 1]].concat();
        let Ok(ToPrimary::BootFailed(why)) = ToPrimary::decode(&long) else { panic!("a message") };
        assert_eq!(why.len(), TEXT + "... (cut)".len());
        let most = Unread::new(vec![b'x'; Unread::MOST]).expect("the most");
        assert_eq!(ToPrimary::Travel(most).encode().len(), CAP);
        assert_eq!(Unread::new(vec![b'x'; Unread::MOST + 1]), None);
        let long = vec![TRAVEL; CAP + 1];
        assert_eq!(ToPrimary::decode(&long), Err(Garbled::Length(CAP + 1)));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            why in ".{0,100}", unread: Vec<u8>, grace: u32, linger: u32, closing: bool, now: bool,
        ) {
            let unread = Unread::new(unread).expect("short enough");
            let travel = ToPrimary::Travel(unread.clone());
            // What is received is printable.
            let failed = ToPrimary::BootFailed(printable(&why).into_owned());
            let refused = ToPrimary::NotAdopted(Slot(grace));
            for word in [ToPrimary::Ready, ToPrimary::Retiring, failed, travel, refused] {
                prop_assert_eq!(ToPrimary::decode(&word.encode()), Ok(word));
            }
            let drain = ToWorker::Drain {
                grace: Duration::from_millis(grace.into()),
                linger: Duration::from_millis(linger.into()),
                closing,
                hand_over: if now { HandOver::Now } else { HandOver::Never },
            };
            let slot = Slot(grace);
            let adopt = ToWorker::Adopt { slot, closing };
            let adoption = [adopt, ToWorker::GiveBack(slot)];
            let others = [drain, ToWorker::Arrive(unread), ToWorker::Released, ToWorker::Log];
            for word in others.into_iter().chain(adoption) {
                prop_assert_eq!(ToWorker::decode(&word.encode()), Ok(word));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = ToPrimary::decode(&bytes);
            let _ = ToWorker::decode(&bytes);
        }
    }
}
