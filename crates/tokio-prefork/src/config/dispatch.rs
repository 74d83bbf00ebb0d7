//! How new connections reach the workers.

use std::fmt;
use std::str::FromStr;

/// Who gets the next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// One listening socket that all workers accept from, each politely: who has more open connections lets the
    /// others go first.
    #[default]
    Shared,
    /// The primary accepts and passes each connection to the next worker that can take it.
    RoundRobin,
    /// A listening socket for each slot; the kernel spreads connections over them by a hash of both addresses.
    Reuseport,
    /// As `Reuseport`, but a small program in the kernel picks the healthy slot with the fewest connections.
    LeastConn,
    /// As `Reuseport`, but by the client's address alone: the same client comes to the same slot.
    IpHash,
}

impl Dispatch {
    /// All of them, in the order in which they are explained.
    pub const ALL: [Dispatch; 5] = [
        Dispatch::Shared,
        Dispatch::RoundRobin,
        Dispatch::Reuseport,
        Dispatch::LeastConn,
        Dispatch::IpHash,
    ];

    /// Its name as it is given and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Dispatch::Shared => "shared",
            Dispatch::RoundRobin => "round-robin",
            Dispatch::Reuseport => "reuseport",
            Dispatch::LeastConn => "least-conn",
            Dispatch::IpHash => "ip-hash",
        }
    }

    /// Whether a program in the kernel chooses among the sockets of the slots.
    pub fn chooses_in_kernel(self) -> bool {
        matches!(self, Dispatch::LeastConn | Dispatch::IpHash)
    }

    /// Whether each slot has a listening socket of its own.
    pub(crate) fn has_socket_per_slot(self) -> bool {
        matches!(self, Dispatch::Reuseport | Dispatch::LeastConn | Dispatch::IpHash)
    }
}

impl fmt::Display for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dispatch {
    type Err = String;

    /// # Errors
    ///
    /// A name that is not among [`Dispatch::ALL`].
    fn from_str(text: &str) -> Result<Dispatch, String> {
        let known = Dispatch::ALL.into_iter().find(|policy| policy.name() == text.trim());
        known.ok_or_else(|| {
            let names = Dispatch::ALL.map(Dispatch::name).join(", ");
            format!("is no dispatch policy: give one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_others_are_refused_with_the_list() {
        for policy in Dispatch::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        let why = "sticky".parse::<Dispatch>().expect_err("unknown");
        assert!(why.contains("ip-hash"), "{why}");
    }
}
