//! The names of listening sockets in the service manager's descriptor store: `prefork-SLOT-ADDRESS`.
//!
//! The next primary needs the address as it was configured (port 0 stays port 0) and the slot. Letters, digits and a few signs
//! stand for themselves, other bytes are `%XX`, as a name must be printable ASCII without a colon.

use prefork_supervisor::Slot;

/// Starts the name of every stored listening socket.
const NAME_PREFIX: &str = "prefork-";
/// The longest name in bytes that the service manager takes.
const MAX_NAME_LENGTH: usize = 255;

/// The name of a listening socket in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSocketName {
    pub(crate) slot: Slot,
    /// The listening address as text.
    pub(crate) addr: String,
}

/// Returns whether a primary of this program has stored the descriptor of this name.
pub(crate) fn is_stored_socket_name(name: &str) -> bool {
    name.starts_with(NAME_PREFIX)
}

impl StoredSocketName {
    /// Returns the name as text, or `None` if it is too long.
    pub(crate) fn encode(&self) -> Option<String> {
        let mut name = format!("{NAME_PREFIX}{}-", self.slot.0);
        for byte in self.addr.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'/' | b'-' | b'_' => {
                    name.push(char::from(byte));
                }
                _ => name.push_str(&format!("%{byte:02X}")),
            }
        }
        Some(name).filter(|name| name.len() <= MAX_NAME_LENGTH)
    }

    /// Parses a name. Returns `None` if this program has not made it.
    pub(crate) fn decode(name: &str) -> Option<StoredSocketName> {
        let (slot, coded) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
        let mut bytes = Vec::new();
        let mut rest = coded.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                byte => byte,
            });
        }
        Some(StoredSocketName {
            slot: Slot(slot.parse().ok()?),
            addr: String::from_utf8(bytes).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encodes_names_readably() {
        let name = StoredSocketName { slot: Slot(2), addr: "[::1]:3000".to_string() };
        assert_eq!(name.encode().expect("short"), "prefork-2-%5B%3A%3A1%5D%3A3000");
        let long = StoredSocketName { slot: Slot(0), addr: "x".repeat(250) };
        assert_eq!(long.encode(), None);
        for other in ["http", "prefork", "prefork-", "prefork-x-a", "prefork-1-%4", "prefork-1-%zz"]
        {
            assert_eq!(StoredSocketName::decode(other), None, "{other}");
        }
        assert!(is_stored_socket_name("prefork-0-a") && !is_stored_socket_name("prefork.socket"));
    }

    proptest! {
        #[test]
        fn names_round_trip_and_are_valid(slot in 0u32..2000, addr in ".{0,60}") {
            let name = StoredSocketName { slot: Slot(slot), addr };
            if let Some(text) = name.encode() {
                prop_assert!(text.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b':'), "{text}");
                prop_assert_eq!(StoredSocketName::decode(&text), Some(name));
            }
        }

        #[test]
        fn decoding_any_name_does_not_panic(name in ".{0,60}") {
            let _ = StoredSocketName::decode(&format!("prefork-{name}"));
        }
    }
}
