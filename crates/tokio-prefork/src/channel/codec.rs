//! Encodes and decodes the reports and commands of a channel. Bounded; no input makes it panic.

use std::time::Duration;

use super::{ConnectionHistory, HandoverMode, HandoverState, WorkerCommand, WorkerReport};
use crate::client::ProxiedClient;
use crate::text::printable_bytes;
use prefork_supervisor::Slot;

/// The largest datagram in bytes: a proxied connection with the most unread bytes.
pub(crate) const MAX_CHANNEL_MESSAGE_BYTES: usize =
    2 + ProxiedClient::MAX_BYTES + HandoverState::MAX_BYTES;

/// The longest text in bytes. Longer ones are truncated when encoded.
const MAX_TEXT_BYTES: usize = 4095;

const READY: u8 = 0x01;
const BOOT_FAILED: u8 = 0x02;
const RETIRING: u8 = 0x03;
const HAND_OVER_CONNECTION: u8 = 0x04;
const ADOPT_SLOT_FAILED: u8 = 0x05;
const ONLINE: u8 = 0x06;
const DISCONNECTING: u8 = 0x07;
const HAND_OVER_PROXIED: u8 = 0x08;
const PROGRAM_STARTED: u8 = 0x09;
const BOOT_ATTEMPT_FAILED: u8 = 0x0a;
const DRAIN: u8 = 0x81;
const TAKE_OVER_CONNECTION: u8 = 0x82;
const RETIRE_ACKNOWLEDGED: u8 = 0x83;
const REOPEN_LOG: u8 = 0x84;
const REOPEN_ACCESS_LOG: u8 = 0x87;
const ADOPT_SLOT: u8 = 0x85;
const RELEASE_SLOT: u8 = 0x86;
const TAKE_OVER_PROXIED: u8 = 0x88;
const TAKE_OVER_ACCEPTED: u8 = 0x89;
const START_ACCEPTING: u8 = 0x8a;

/// Why a datagram is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelDecodeError {
    #[error("unknown kind {0:#04x}")]
    UnknownKind(u8),
    #[error("wrong length {0}")]
    WrongLength(usize),
}

impl WorkerReport {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            WorkerReport::Online => vec![ONLINE],
            WorkerReport::Disconnecting => vec![DISCONNECTING],
            WorkerReport::ProgramStarted { pid } => {
                let mut bytes = vec![PROGRAM_STARTED];
                bytes.extend(pid.to_le_bytes());
                bytes
            }
            WorkerReport::Ready => vec![READY],
            WorkerReport::Retiring => vec![RETIRING],
            WorkerReport::BootFailed(why) => encode_with_text(BOOT_FAILED, why),
            WorkerReport::BootAttemptFailed(why) => encode_with_text(BOOT_ATTEMPT_FAILED, why),
            WorkerReport::HandOverConnection(state) => {
                encode_with_handover_state(HAND_OVER_CONNECTION, HAND_OVER_PROXIED, state)
            }
            WorkerReport::AdoptSlotFailed(slot) => encode_with_slot(ADOPT_SLOT_FAILED, *slot),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<WorkerReport, ChannelDecodeError> {
        match bytes {
            [ONLINE] => Ok(WorkerReport::Online),
            [DISCONNECTING] => Ok(WorkerReport::Disconnecting),
            [PROGRAM_STARTED, pid @ ..] => pid
                .try_into()
                .map(|pid| WorkerReport::ProgramStarted { pid: u32::from_le_bytes(pid) })
                .map_err(|_| ChannelDecodeError::WrongLength(bytes.len())),
            [READY] => Ok(WorkerReport::Ready),
            [RETIRING] => Ok(WorkerReport::Retiring),
            [BOOT_ATTEMPT_FAILED, why @ ..] => {
                Ok(WorkerReport::BootAttemptFailed(printable_bytes(why, MAX_TEXT_BYTES)))
            }
            [BOOT_FAILED, why @ ..] => {
                Ok(WorkerReport::BootFailed(printable_bytes(why, MAX_TEXT_BYTES)))
            }
            [HAND_OVER_CONNECTION | HAND_OVER_PROXIED, ..] => {
                decode_served(bytes, HAND_OVER_PROXIED).map(WorkerReport::HandOverConnection)
            }
            [ADOPT_SLOT_FAILED, slot @ ..] => decode_slot(slot).map(WorkerReport::AdoptSlotFailed),
            [READY | RETIRING | ONLINE | DISCONNECTING, ..] | [] => {
                Err(ChannelDecodeError::WrongLength(bytes.len()))
            }
            [kind, ..] => Err(ChannelDecodeError::UnknownKind(*kind)),
        }
    }
}

impl WorkerCommand {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            WorkerCommand::Drain { grace, linger, closing, hand_over } => {
                let mut bytes = vec![DRAIN];
                bytes.extend(to_millis(*grace).to_le_bytes());
                bytes.extend(to_millis(*linger).to_le_bytes());
                bytes.push(u8::from(*closing));
                bytes.push(*hand_over as u8);
                bytes
            }
            WorkerCommand::TakeOverConnection(state)
                if state.history == ConnectionHistory::Accepted =>
            {
                vec![TAKE_OVER_ACCEPTED]
            }
            WorkerCommand::TakeOverConnection(state) => {
                encode_with_handover_state(TAKE_OVER_CONNECTION, TAKE_OVER_PROXIED, state)
            }
            WorkerCommand::RetireAcknowledged => vec![RETIRE_ACKNOWLEDGED],
            WorkerCommand::StartAccepting => vec![START_ACCEPTING],
            WorkerCommand::ReopenLog => vec![REOPEN_LOG],
            WorkerCommand::ReopenAccessLog => vec![REOPEN_ACCESS_LOG],
            WorkerCommand::AdoptSlot { slot, closing } => {
                let mut bytes = encode_with_slot(ADOPT_SLOT, *slot);
                bytes.push(u8::from(*closing));
                bytes
            }
            WorkerCommand::ReleaseSlot(slot) => encode_with_slot(RELEASE_SLOT, *slot),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<WorkerCommand, ChannelDecodeError> {
        let wrong_length = ChannelDecodeError::WrongLength(bytes.len());
        match bytes {
            [DRAIN, rest @ ..] => {
                let (grace, rest) = rest.split_first_chunk().ok_or(wrong_length)?;
                let (linger, rest) =
                    rest.split_first_chunk().ok_or(ChannelDecodeError::WrongLength(bytes.len()))?;
                let [closing @ (0 | 1), hand_over] = rest else {
                    return Err(ChannelDecodeError::WrongLength(bytes.len()));
                };
                Ok(WorkerCommand::Drain {
                    grace: Duration::from_millis(u64::from_le_bytes(*grace)),
                    linger: Duration::from_millis(u64::from_le_bytes(*linger)),
                    closing: *closing == 1,
                    hand_over: match hand_over {
                        0 => HandoverMode::Never,
                        1 => HandoverMode::WhenOthersServe,
                        _ => HandoverMode::Immediately,
                    },
                })
            }
            [TAKE_OVER_CONNECTION | TAKE_OVER_PROXIED, ..] => {
                decode_served(bytes, TAKE_OVER_PROXIED).map(WorkerCommand::TakeOverConnection)
            }
            [TAKE_OVER_ACCEPTED] => {
                Ok(WorkerCommand::TakeOverConnection(HandoverState::accepted()))
            }
            [RETIRE_ACKNOWLEDGED] => Ok(WorkerCommand::RetireAcknowledged),
            [START_ACCEPTING] => Ok(WorkerCommand::StartAccepting),
            [REOPEN_LOG] => Ok(WorkerCommand::ReopenLog),
            [REOPEN_ACCESS_LOG] => Ok(WorkerCommand::ReopenAccessLog),
            [ADOPT_SLOT, slot @ .., closing @ (0 | 1)] => {
                Ok(WorkerCommand::AdoptSlot { slot: decode_slot(slot)?, closing: *closing == 1 })
            }
            [RELEASE_SLOT, slot @ ..] => decode_slot(slot).map(WorkerCommand::ReleaseSlot),
            [
                RETIRE_ACKNOWLEDGED | START_ACCEPTING | REOPEN_LOG | REOPEN_ACCESS_LOG | ADOPT_SLOT
                | TAKE_OVER_ACCEPTED,
                ..,
            ] => Err(wrong_length),
            [] => Err(wrong_length),
            [kind, ..] => Err(ChannelDecodeError::UnknownKind(*kind)),
        }
    }
}

/// Encodes a connection that stands between two requests: as `kind`, or as `proxied_kind` with what its PROXY header has said.
fn encode_with_handover_state(kind: u8, proxied_kind: u8, state: &HandoverState) -> Vec<u8> {
    let mut bytes = match state.history {
        ConnectionHistory::Served(Some(client)) => {
            let client = client.to_bytes();
            [&[proxied_kind, client.len() as u8], &client[..]].concat()
        }
        ConnectionHistory::Served(None) | ConnectionHistory::Accepted => vec![kind],
    };
    bytes.extend(&state.unread);
    bytes
}

/// Decodes a connection that stands between two requests.
fn decode_served(bytes: &[u8], proxied_kind: u8) -> Result<HandoverState, ChannelDecodeError> {
    let wrong_length = || ChannelDecodeError::WrongLength(bytes.len());
    let (client, unread) = match bytes {
        [kind, length, rest @ ..] if *kind == proxied_kind => {
            let split = rest.split_at_checked(usize::from(*length));
            let (client, unread) = split.ok_or_else(wrong_length)?;
            (Some(ProxiedClient::from_bytes(client).ok_or_else(wrong_length)?), unread)
        }
        [kind] if *kind == proxied_kind => return Err(wrong_length()),
        [_, unread @ ..] => (None, unread),
        [] => return Err(wrong_length()),
    };
    HandoverState::served(unread.to_vec(), client).ok_or_else(wrong_length)
}

fn encode_with_text(kind: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(text.bytes().take(MAX_TEXT_BYTES));
    bytes
}

fn encode_with_slot(kind: u8, slot: Slot) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(slot.0.to_le_bytes());
    bytes
}

fn decode_slot(bytes: &[u8]) -> Result<Slot, ChannelDecodeError> {
    let number = bytes.try_into().map_err(|_| ChannelDecodeError::WrongLength(bytes.len() + 1))?;
    Ok(Slot(u32::from_le_bytes(number)))
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::printable;
    use proptest::prelude::*;

    #[test]
    fn the_encoding_matches_the_module_documentation() {
        assert_eq!(WorkerReport::Ready.encode(), [0x01]);
        let drain = WorkerCommand::Drain {
            grace: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            closing: false,
            hand_over: HandoverMode::WhenOthersServe,
        };
        assert_eq!(
            drain.encode(),
            [0x81, 0x30, 0x75, 0, 0, 0, 0, 0, 0, 0xe8, 0x03, 0, 0, 0, 0, 0, 0, 0, 1]
        );
        let adopt = WorkerCommand::AdoptSlot { slot: Slot(2), closing: false };
        assert_eq!(adopt.encode(), [0x85, 2, 0, 0, 0, 0]);
        assert_eq!(WorkerCommand::ReleaseSlot(Slot(2)).encode(), [0x86, 2, 0, 0, 0]);
        let unread = HandoverState::served(b"GE".to_vec(), None).expect("short enough");
        assert_eq!(WorkerReport::HandOverConnection(unread.clone()).encode(), [0x04, b'G', b'E']);
        assert_eq!(WorkerCommand::TakeOverConnection(unread).encode(), [0x82, b'G', b'E']);
        let proxied = HandoverState::served(b"GE".to_vec(), Some(ProxiedClient::Proxy));
        let proxied = proxied.expect("short enough");
        let report = WorkerReport::HandOverConnection(proxied.clone()).encode();
        assert_eq!(report, [0x08, 1, 0, b'G', b'E']);
        let command = WorkerCommand::TakeOverConnection(proxied).encode();
        assert_eq!(command, [0x88, 1, 0, b'G', b'E']);
        let accepted = WorkerCommand::TakeOverConnection(HandoverState::accepted());
        assert_eq!(accepted.encode(), [0x89]);
    }

    #[test]
    fn long_texts_are_truncated_and_too_many_unread_bytes_are_rejected() {
        let bytes = WorkerReport::BootFailed("x".repeat(2 * MAX_CHANNEL_MESSAGE_BYTES)).encode();
        assert_eq!(bytes.len(), 1 + MAX_TEXT_BYTES);
        // A worker may send more than the encoder does.
        let long = [&[BOOT_FAILED][..], &vec![b'x'; MAX_CHANNEL_MESSAGE_BYTES - 1]].concat();
        let Ok(WorkerReport::BootFailed(why)) = WorkerReport::decode(&long) else {
            panic!("a message")
        };
        assert_eq!(why.len(), MAX_TEXT_BYTES + "... (cut)".len());
        let most = vec![b'x'; HandoverState::MAX_BYTES];
        let most = HandoverState::served(most, Some(ProxiedClient::Unknown)).expect("the most");
        assert!(WorkerReport::HandOverConnection(most).encode().len() <= MAX_CHANNEL_MESSAGE_BYTES);
        let too_many = vec![b'x'; HandoverState::MAX_BYTES + 1];
        assert_eq!(HandoverState::served(too_many.clone(), None), None);
        let long = [&[HAND_OVER_CONNECTION], &too_many[..]].concat();
        assert_eq!(
            WorkerReport::decode(&long),
            Err(ChannelDecodeError::WrongLength(HandoverState::MAX_BYTES + 2))
        );
        for cut in
            [&[HAND_OVER_PROXIED][..], &[HAND_OVER_PROXIED, 2, 0], &[HAND_OVER_PROXIED, 1, 9]]
        {
            assert!(WorkerReport::decode(cut).is_err(), "{cut:?}");
        }
    }

    proptest! {
        #[test]
        fn encoded_reports_and_commands_are_decoded(
            why in ".{0,100}", unread: Vec<u8>, grace: u32, linger: u32, closing: bool, now: bool,
        ) {
            let proxied = closing.then_some(ProxiedClient::Unknown);
            let unread = HandoverState::served(unread, proxied).expect("short enough");
            let travel = WorkerReport::HandOverConnection(unread.clone());
            // The decoder makes texts printable.
            let failed = WorkerReport::BootFailed(printable(&why).into_owned());
            let refused = WorkerReport::AdoptSlotFailed(Slot(grace));
            for message in [WorkerReport::Ready, WorkerReport::Retiring, failed, travel, refused] {
                prop_assert_eq!(WorkerReport::decode(&message.encode()), Ok(message));
            }
            let drain = WorkerCommand::Drain {
                grace: Duration::from_millis(grace.into()),
                linger: Duration::from_millis(linger.into()),
                closing,
                hand_over: if now { HandoverMode::Immediately } else { HandoverMode::Never },
            };
            let slot = Slot(grace);
            let adopt = WorkerCommand::AdoptSlot { slot, closing };
            let adoption = [adopt, WorkerCommand::ReleaseSlot(slot)];
            let accepted = WorkerCommand::TakeOverConnection(HandoverState::accepted());
            let others = [drain, accepted, WorkerCommand::TakeOverConnection(unread), WorkerCommand::RetireAcknowledged, WorkerCommand::StartAccepting, WorkerCommand::ReopenLog, WorkerCommand::ReopenAccessLog];
            for message in others.into_iter().chain(adoption) {
                prop_assert_eq!(WorkerCommand::decode(&message.encode()), Ok(message));
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = WorkerReport::decode(&bytes);
            let _ = WorkerCommand::decode(&bytes);
        }
    }
}
