//! Whether the service manager keeps our sockets.

use std::fmt;
use std::str::FromStr;

/// Whether the listening sockets are given to the service manager's store of descriptors, which passes them to the
/// primary that follows one that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FdStore {
    /// If it says that it has one for us: `FDSTORE` in the environment, by systemd 254 or later.
    #[default]
    Auto,
    /// Whenever there is a service manager. For systemd before 254, with `FileDescriptorStoreMax=` in the unit.
    On,
    /// Never.
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
    type Err = String;

    /// # Errors
    ///
    /// Another word than `auto`, `on` and `off`.
    fn from_str(text: &str) -> Result<FdStore, String> {
        let known = FdStore::NAMES.iter().find(|(name, _)| *name == text.trim());
        known.map(|(_, one)| *one).ok_or_else(|| "is not known: give auto, on or off".to_string())
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
