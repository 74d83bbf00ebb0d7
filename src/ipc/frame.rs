//! Encoding and decoding of messages: pure, bounded, and never panicking whatever the bytes.

use std::time::Duration;

use super::{ToPrimary, ToWorker};

/// The largest message in bytes. Longer text is cut when it is encoded.
pub(crate) const CAP: usize = 4096;

const READY: u8 = 0x01;
const BOOT_FAILED: u8 = 0x02;
const RETIRING: u8 = 0x03;
const DRAIN: u8 = 0x81;

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
            ToPrimary::Ready => vec![READY],
            ToPrimary::Retiring => vec![RETIRING],
            ToPrimary::BootFailed(why) => {
                let mut bytes = vec![BOOT_FAILED];
                bytes.extend(why.bytes().take(CAP - 1));
                bytes
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ToPrimary, Garbled> {
        match bytes {
            [READY] => Ok(ToPrimary::Ready),
            [RETIRING] => Ok(ToPrimary::Retiring),
            [BOOT_FAILED, why @ ..] => {
                Ok(ToPrimary::BootFailed(String::from_utf8_lossy(why).into_owned()))
            }
            [READY | RETIRING, ..] | [] => Err(Garbled::Length(bytes.len())),
            [kind, ..] => Err(Garbled::Kind(*kind)),
        }
    }
}

impl ToWorker {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            ToWorker::Drain { grace, linger, closing } => {
                let mut bytes = vec![DRAIN];
                bytes.extend(in_millis(*grace).to_le_bytes());
                bytes.extend(in_millis(*linger).to_le_bytes());
                bytes.push(u8::from(*closing));
                bytes
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<ToWorker, Garbled> {
        let wrong_length = Garbled::Length(bytes.len());
        match bytes {
            [DRAIN, rest @ ..] => {
                let (grace, rest) = rest.split_first_chunk().ok_or(wrong_length)?;
                let (linger, rest) =
                    rest.split_first_chunk().ok_or(Garbled::Length(bytes.len()))?;
                let [closing @ (0 | 1)] = rest else { return Err(Garbled::Length(bytes.len())) };
                Ok(ToWorker::Drain {
                    grace: Duration::from_millis(u64::from_le_bytes(*grace)),
                    linger: Duration::from_millis(u64::from_le_bytes(*linger)),
                    closing: *closing == 1,
                })
            }
            [] => Err(wrong_length),
            [kind, ..] => Err(Garbled::Kind(*kind)),
        }
    }
}

fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_those_of_the_protocol_page() {
        assert_eq!(ToPrimary::Ready.encode(), [0x01]);
        let drain = ToWorker::Drain {
            grace: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            closing: true,
        };
        assert_eq!(
            drain.encode(),
            [0x81, 0x30, 0x75, 0, 0, 0, 0, 0, 0, 0xe8, 0x03, 0, 0, 0, 0, 0, 0, 1]
        );
    }

    #[test]
    fn a_long_reason_is_cut_to_the_cap() {
        let bytes = ToPrimary::BootFailed("x".repeat(2 * CAP)).encode();
        assert_eq!(bytes.len(), CAP);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(why in ".{0,100}", grace: u32, linger: u32, closing: bool) {
            for word in [ToPrimary::Ready, ToPrimary::Retiring, ToPrimary::BootFailed(why)] {
                prop_assert_eq!(ToPrimary::decode(&word.encode()), Ok(word));
            }
            let drain = ToWorker::Drain {
                grace: Duration::from_millis(grace.into()),
                linger: Duration::from_millis(linger.into()),
                closing,
            };
            prop_assert_eq!(ToWorker::decode(&drain.encode()), Ok(drain));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = ToPrimary::decode(&bytes);
            let _ = ToWorker::decode(&bytes);
        }
    }
}
