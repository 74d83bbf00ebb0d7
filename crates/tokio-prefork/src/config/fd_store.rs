//! Whether the service manager keeps the listening sockets.

use super::choice::impl_choice;

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

impl_choice!(FdStore, "a setting of the file descriptor store", { "auto" => Auto, "on" => On, "off" => Off });
