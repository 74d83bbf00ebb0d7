//! Whether the service manager keeps the listening sockets.

use std::fmt;
use std::str::FromStr;

use super::parse_error::{ParseValueError, parse_choice};

/// Whether to store the listening sockets in the service manager, which passes them to the next primary after a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FdStore {
    /// Stores them if the service manager offers a file descriptor store: `FDSTORE` in the environment, by systemd 254 or
    /// later.
    #[default]
    Auto,
    /// Stores them whenever there is a service manager. For systemd before 254, with `FileDescriptorStoreMax=` in the unit.
    On,
    /// Never stores them.
    Off,
}

impl FdStore {
    const NAMES: [(&str, FdStore); 3] =
        [("auto", FdStore::Auto), ("on", FdStore::On), ("off", FdStore::Off)];
}

impl fmt::Display for FdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FdStore::NAMES.iter().find(|(_, one)| one == self);
        f.pad(name.map_or("auto", |(name, _)| name))
    }
}

impl FromStr for FdStore {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word than `auto`, `on` and `off`.
    fn from_str(text: &str) -> Result<FdStore, ParseValueError> {
        parse_choice(text, "a setting of the file descriptor store", &FdStore::NAMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back_and_others_are_refused() {
        for store in [FdStore::Auto, FdStore::On, FdStore::Off] {
            assert_eq!(store.to_string().parse(), Ok(store));
        }
        assert!("yes".parse::<FdStore>().is_err());
    }
}
