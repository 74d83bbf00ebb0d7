//! The names under which the service manager keeps our sockets: `prefork-SLOT-ADDRESS`.
//!
//! A name carries what a primary that comes after a killed one needs: the address as the operator wrote it (port 0
//! stays port 0) and the slot. Letters, digits and a few signs stand for themselves, other bytes are `%XX`: a name
//! must be printable ASCII without a colon.

use prefork_supervisor::Slot;

const PREFIX: &str = "prefork-";
/// The manager takes no longer ones.
const LONGEST: usize = 255;

/// A socket in the manager's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreName {
    pub(crate) slot: Slot,
    /// Where it listens, in words.
    pub(crate) addr: String,
}

/// Whether a descriptor of this name was put there by us.
pub(crate) fn is_stored(name: &str) -> bool {
    name.starts_with(PREFIX)
}

impl StoreName {
    /// In the form that the manager takes; `None` if that would be too long.
    pub(crate) fn encode(&self) -> Option<String> {
        let mut name = format!("{PREFIX}{}-", self.slot.0);
        for byte in self.addr.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'/' | b'-' | b'_' => {
                    name.push(char::from(byte));
                }
                _ => name.push_str(&format!("%{byte:02X}")),
            }
        }
        Some(name).filter(|name| name.len() <= LONGEST)
    }

    /// `None` if it is none of ours.
    pub(crate) fn decode(name: &str) -> Option<StoreName> {
        let (slot, coded) = name.strip_prefix(PREFIX)?.split_once('-')?;
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
        Some(StoreName { slot: Slot(slot.parse().ok()?), addr: String::from_utf8(bytes).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_readable() {
        let name = StoreName { slot: Slot(2), addr: "[::1]:3000".to_string() };
        assert_eq!(name.encode().expect("short"), "prefork-2-%5B%3A%3A1%5D%3A3000");
        let long = StoreName { slot: Slot(0), addr: "x".repeat(250) };
        assert_eq!(long.encode(), None);
        for other in ["http", "prefork", "prefork-", "prefork-x-a", "prefork-1-%4", "prefork-1-%zz"]
        {
            assert_eq!(StoreName::decode(other), None, "{other}");
        }
        assert!(is_stored("prefork-0-a") && !is_stored("prefork.socket"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_fits_the_manager(slot in 0u32..2000, addr in ".{0,60}") {
            let name = StoreName { slot: Slot(slot), addr };
            if let Some(text) = name.encode() {
                prop_assert!(text.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b':'), "{text}");
                prop_assert_eq!(StoreName::decode(&text), Some(name));
            }
        }

        #[test]
        fn any_name_is_survived(name in ".{0,60}") {
            let _ = StoreName::decode(&format!("prefork-{name}"));
        }
    }
}
