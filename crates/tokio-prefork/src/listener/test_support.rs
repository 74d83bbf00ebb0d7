//! Opens listening sockets for the tests of this module.

use super::{ListenAddr, ListenerSet};

/// Opens a socket for each address, with a backlog of 16.
pub(super) fn open(texts: &[&str], slots: u32) -> (ListenerSet, Vec<ListenAddr>) {
    let addrs: Vec<ListenAddr> = texts.iter().map(|t| t.parse().expect("address")).collect();
    let mut set = ListenerSet::default();
    set.open_missing_sockets(&addrs, 16, slots).expect("bind");
    (set, addrs)
}
