//! Selects the slot of a new connection inside the kernel, where each slot has a listening socket of its own.
//!
//! Every listening address is one reuseport group: one socket per slot, socket `i` of a group belongs to slot `i`. A
//! policy attaches a BPF program to the groups through a [`SelectorBackend`]. If the kernel refuses the program, the
//! policy falls back to the next backend and finally to the kernel's hash of both addresses ([`KernelHash`]); a refusal
//! is never an error.
//!
//! What the primary has to do:
//!
//! - Keep at least one socket of each slot open while the selector exists. A group grows at its end and never shrinks.
//! - Before a fork: [`KernelSelector::lease_page`]. In the child: [`KernelSelector::keep_only_page`]. When the worker
//!   becomes the one that accepts for its slot: [`KernelSelector::activate_page`], then
//!   [`KernelSelector::set_slot_health`]. After it was reaped: [`KernelSelector::free_page`].
//! - For a worker that is frozen, draining, full or dead: `set_slot_health(.., false)`. Its queue is left for other
//!   workers.
//! - After a change of the groups: [`KernelSelector::add_slots`] or [`KernelSelector::replace_groups`].
//! - Once a second: [`KernelSelector::refresh`]. Before an exec that keeps the sockets: [`KernelSelector::detach`].
//!
//! Invariants:
//!
//! - A connection always reaches a listening socket. Without a healthy slot, for a slot without a socket, or after a
//!   failure of the program, the kernel's hash selects among all sockets.
//! - A worker influences the load of its own slot only. What it writes is capped; one that claims to be idle gets more
//!   connections, and nothing else.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::least_conn::load_page::{LoadPage, LoadPageLease};
use super::reuseport::KernelHash;
use super::{Dispatch, ip_hash, least_conn};
use crate::error::{Error, Result};
use prefork_os::bpf;
use prefork_supervisor::Slot;

/// How often [`KernelSelector::refresh`] updates the backend.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The listening sockets of one address, by slot.
pub(crate) struct ReuseportGroup<'a>(pub(crate) Vec<BorrowedFd<'a>>);

/// The connections of one slot, as far as the primary knows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SlotLoad {
    /// Connections that its worker has open.
    pub(crate) open: u64,
    /// Connections in its accept queues.
    pub(crate) queued: u64,
}

/// A way to select a slot in the kernel. To add one, implement this trait and name it in [`KernelSelector::start`].
pub(super) trait SelectorBackend {
    /// Returns the name that status and logs show.
    fn name(&self) -> &'static str;

    /// Sets whether `slot` may be selected. `healthy` holds all slots, with this change.
    fn set_slot_health(
        &mut self,
        slot: usize,
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()>;

    /// Applies the loads of all slots, once a second, and retries failed operations.
    fn refresh(
        &mut self,
        loads: &[SlotLoad],
        healthy: &[bool],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()>;

    /// Extends the backend to `slots` slots. The new ones are not healthy yet.
    fn add_slots(&mut self, _slots: usize, _groups: &[ReuseportGroup<'_>]) -> Result<(), String> {
        Ok(())
    }

    /// Replaces the addresses, with `slots` slots each.
    fn replace_groups(&mut self, slots: usize, groups: &[ReuseportGroup<'_>])
    -> Result<(), String>;

    /// Returns why the kernel's hash currently selects although this backend is attached.
    fn fallback_reason(&self) -> Option<&str> {
        None
    }

    /// Returns a page for a worker that is about to be forked for `slot`.
    fn lease_page(&mut self, slot: Slot) -> LoadPageLease {
        LoadPageLease::without_page(slot)
    }

    /// Reads the load of the slot from this page from now on.
    fn activate_page(&mut self, _lease: LoadPageLease) {}

    /// Frees the page of a dead worker.
    fn free_page(&mut self, _lease: LoadPageLease) {}

    /// In a worker: unmaps everything that is shared but its own page.
    fn keep_only_page(self: Box<Self>, _lease: LoadPageLease) -> io::Result<LoadPage> {
        Ok(LoadPage::default())
    }

    /// Removes the sockets from all maps, so that another process may insert them into its own.
    fn release_sockets(&mut self) {}

    /// Returns the attached program of the first group, one line per instruction.
    #[cfg(test)]
    fn program_listing(&self) -> Vec<String>;

    #[cfg(test)]
    fn as_least_conn(&mut self) -> Option<&mut least_conn::LeastConnProgram> {
        None
    }
}

/// Selects the slots of new connections on all listening addresses.
pub(crate) struct KernelSelector {
    backend: Box<dyn SelectorBackend>,
    /// Whether each slot may be selected.
    healthy: Vec<bool>,
    /// The reasons why better backends of the policy could not be attached.
    refusals: Vec<String>,
    refresh_at: Option<Instant>,
}

impl KernelSelector {
    /// Attaches the best backend of `policy` that the kernel accepts. No slot is healthy yet, so the kernel's hash
    /// selects.
    pub(crate) fn start(policy: Dispatch, groups: &[ReuseportGroup<'_>]) -> KernelSelector {
        let slots = count_slots(groups);
        let healthy = vec![false; slots];
        // A program attached by an earlier image of the primary reads memory that is not updated any more.
        detach_programs(groups);
        let mut refusals = Vec::new();
        let backend: Box<dyn SelectorBackend> = match policy {
            Dispatch::Shared | Dispatch::RoundRobin | Dispatch::Reuseport => Box::new(KernelHash),
            Dispatch::LeastConn => least_conn::start(slots, &healthy, groups, &mut refusals),
            Dispatch::IpHash => ip_hash::start(&healthy, groups, &mut refusals),
        };
        KernelSelector { backend, healthy, refusals, refresh_at: None }
    }

    /// Returns the name of the selecting backend, for status: `ebpf`, `cbpf-weights`, `ip-hash` or `hash`.
    pub(crate) fn backend_name(&self) -> &'static str {
        match self.backend.fallback_reason() {
            None => self.backend.name(),
            Some(_) => KernelHash.name(),
        }
    }

    /// Returns why the best backend of the policy does not select; `None` if it does.
    pub(crate) fn fallback_reason(&self) -> Option<String> {
        let reasons = self.refusals.iter().map(String::as_str);
        let reasons: Vec<&str> = reasons.chain(self.backend.fallback_reason()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Sets whether `slot` may be selected. After an error the selection is as before, and the next refresh tries
    /// again.
    pub(crate) fn set_slot_health(
        &mut self,
        slot: Slot,
        healthy: bool,
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        let number = slot.0 as usize;
        let Some(known) = self.healthy.get_mut(number) else { return Ok(()) };
        if std::mem::replace(known, healthy) == healthy {
            return Ok(());
        }
        self.backend.set_slot_health(number, &self.healthy, groups)
    }

    /// Returns whether [`KernelSelector::refresh`] is due.
    pub(crate) fn is_refresh_due(&self, now: Instant) -> bool {
        self.refresh_at.is_none_or(|at| at <= now)
    }

    /// Updates the backend with the load of each slot, at most once a second. After an error the selection is as
    /// before.
    pub(crate) fn refresh(
        &mut self,
        now: Instant,
        loads: &[SlotLoad],
        groups: &[ReuseportGroup<'_>],
    ) -> Result<()> {
        if !self.is_refresh_due(now) {
            return Ok(());
        }
        self.refresh_at = Some(now + REFRESH_INTERVAL);
        self.backend.refresh(loads, &self.healthy, groups)
    }

    /// Extends the selector to slots that the groups have gained, none of them healthy yet.
    ///
    /// Waits for the kernel's verifier, whose time grows with the slots: about 1 ms for 4 slots, 100 ms for 64 and 1 s
    /// for 1024, per address, on two busy cores. After an error only the old slots are selected; the next call tries
    /// again.
    pub(crate) fn add_slots(&mut self, groups: &[ReuseportGroup<'_>]) -> Result<()> {
        let slots = count_slots(groups);
        self.backend.add_slots(slots, groups).map_err(|why| {
            Error::refused(format!("cannot select among {slots} slots: {why}; restart to do so"))
        })?;
        self.healthy.resize(slots.max(self.healthy.len()), false);
        Ok(())
    }

    /// Replaces the listening addresses. Workers keep their pages. After an error
    /// the kernel's hash selects on some addresses; the next call tries again.
    pub(crate) fn replace_groups(&mut self, groups: &[ReuseportGroup<'_>]) -> Result<()> {
        let slots = count_slots(groups);
        let outcome = self.backend.replace_groups(slots, groups);
        self.healthy.resize(slots.max(self.healthy.len()), false);
        outcome.map_err(|why| {
            Error::refused(format!("cannot select workers for all listening addresses: {why}"))
        })
    }

    /// Returns a page for the worker that is about to be forked for `slot`.
    pub(crate) fn lease_page(&mut self, slot: Slot) -> LoadPageLease {
        self.backend.lease_page(slot)
    }

    /// Reads the load of the slot from the page of this worker, which now accepts for the slot.
    pub(crate) fn activate_page(&mut self, lease: LoadPageLease) {
        self.backend.activate_page(lease);
    }

    /// Frees the page of a dead worker.
    pub(crate) fn free_page(&mut self, lease: LoadPageLease) {
        self.backend.free_page(lease);
    }

    /// In a freshly forked worker: keeps its own page, and unmaps all other shared memory.
    pub(crate) fn keep_only_page(self, lease: LoadPageLease) -> Result<LoadPage> {
        self.backend
            .keep_only_page(lease)
            .map_err(|e| Error::system("unmap the load pages of other slots", e))
    }

    /// Detaches all programs and releases the sockets, so that another image of the primary can attach its own.
    pub(crate) fn detach(mut self, groups: &[ReuseportGroup<'_>]) {
        detach_programs(groups);
        self.backend.release_sockets();
    }

    #[cfg(test)]
    pub(crate) fn program_listing(&self) -> Vec<String> {
        self.backend.program_listing()
    }
}

/// Detaches the programs of all groups. A failure does not matter: the next `start` detaches again.
pub(super) fn detach_programs(groups: &[ReuseportGroup<'_>]) {
    let first_sockets = groups.iter().filter_map(|group| group.0.first());
    first_sockets.for_each(|socket| drop(bpf::detach_reuseport_program(*socket)));
}

/// Returns for how many slots every group has a socket.
fn count_slots(groups: &[ReuseportGroup<'_>]) -> usize {
    groups.iter().map(|group| group.0.len()).min().unwrap_or(0)
}

#[cfg(test)]
mod tests;
