//! `reuseport`: a listening socket for each slot; the kernel selects one by a hash of both addresses.
//!
//! `least-conn` and `ip-hash` use the same sockets, and fall back to the same hash.

pub(crate) mod adopted_sockets;

use super::kernel_selector::{ReuseportGroup, SelectorBackend, SlotLoad};
use crate::error::Result;

/// The kernel's own choice, without a program: a hash of the addresses and ports of both sides.
pub(super) struct KernelHash;

impl SelectorBackend for KernelHash {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn set_slot_health(&mut self, _: usize, _: &[bool], _: &[ReuseportGroup<'_>]) -> Result<()> {
        Ok(())
    }

    fn refresh(&mut self, _: &[SlotLoad], _: &[bool], _: &[ReuseportGroup<'_>]) -> Result<()> {
        Ok(())
    }

    fn replace_groups(&mut self, _: usize, _: &[ReuseportGroup<'_>]) -> Result<(), String> {
        Ok(())
    }

    #[cfg(test)]
    fn program_listing(&self) -> Vec<String> {
        Vec::new()
    }
}
