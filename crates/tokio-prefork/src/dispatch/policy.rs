//! The dispatch policies: their names and properties.

use std::fmt;
use std::str::FromStr;

use crate::config::{ParseValueError, parse_choice};

/// A dispatch policy: decides which worker gets the next connection. Default: `Shared`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// All workers accept from one listening socket; those with fewer open connections come first.
    #[default]
    Shared,
    /// The primary accepts, and passes each connection to the next worker that can take it.
    RoundRobin,
    /// Each worker slot has a listening socket; the kernel selects one by a hash of both addresses.
    Reuseport,
    /// As `Reuseport`, but a BPF program selects the healthy slot with the fewest connections.
    LeastConn,
    /// As `Reuseport`, but a BPF program selects the slot by the client's address: a client always reaches the same
    /// one.
    IpHash,
}

impl Dispatch {
    /// All policies, in the order of the documentation.
    pub const ALL: [Dispatch; 5] = [
        Dispatch::Shared,
        Dispatch::RoundRobin,
        Dispatch::Reuseport,
        Dispatch::LeastConn,
        Dispatch::IpHash,
    ];

    /// Returns the name in configuration, flags and status.
    pub const fn name(self) -> &'static str {
        match self {
            Dispatch::Shared => "shared",
            Dispatch::RoundRobin => "round-robin",
            Dispatch::Reuseport => "reuseport",
            Dispatch::LeastConn => "least-conn",
            Dispatch::IpHash => "ip-hash",
        }
    }

    /// Returns which process accepts, and from which socket.
    pub(crate) const fn accept_path(self) -> AcceptPath {
        match self {
            Dispatch::Shared => AcceptPath::SharedSocket,
            Dispatch::RoundRobin => AcceptPath::Primary,
            Dispatch::Reuseport | Dispatch::LeastConn | Dispatch::IpHash => AcceptPath::SlotSocket,
        }
    }

    /// Whether a BPF program selects the slot of a connection in the kernel.
    pub const fn has_kernel_program(self) -> bool {
        match self {
            Dispatch::LeastConn | Dispatch::IpHash => true,
            Dispatch::Shared | Dispatch::RoundRobin | Dispatch::Reuseport => false,
        }
    }

    /// Whether each slot has a listening socket of its own.
    pub(crate) const fn has_socket_per_slot(self) -> bool {
        match self.accept_path() {
            AcceptPath::SlotSocket => true,
            AcceptPath::SharedSocket | AcceptPath::Primary => false,
        }
    }

    /// Whether the primary accepts, and passes connections to the workers.
    pub(crate) const fn accepts_in_primary(self) -> bool {
        match self.accept_path() {
            AcceptPath::Primary => true,
            AcceptPath::SharedSocket | AcceptPath::SlotSocket => false,
        }
    }
}

/// Which process accepts a connection, and from which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptPath {
    /// Every worker, from the one socket of the address.
    SharedSocket,
    /// The primary, from the one socket of the address.
    Primary,
    /// One worker, from the socket of its slot.
    SlotSocket,
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dispatch {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Fails for a name that no policy in [`Dispatch::ALL`] has.
    fn from_str(text: &str) -> Result<Dispatch, ParseValueError> {
        parse_choice(
            text,
            "a dispatch policy",
            &Dispatch::ALL.map(|policy| (policy.name(), policy)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_and_an_unknown_one_lists_them_all() {
        for policy in Dispatch::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        let why = "sticky".parse::<Dispatch>().expect_err("unknown");
        assert!(why.reason().contains("ip-hash"), "{why}");
    }
}
