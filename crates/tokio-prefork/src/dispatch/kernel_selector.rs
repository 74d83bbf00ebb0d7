//! Who gets the next connection, when each slot has a listening socket of its own: programs in the kernel that choose
//! among the sockets of a group. `least-conn` has three rungs, and takes the highest that the system allows:
//!
//! | rung | what chooses | needs |
//! |---|---|---|
//! | `ebpf` | a program that reads loads and health from shared memory (`least_conn`) | CAP_BPF |
//! | `cbpf-weights` | chance, with odds that the primary renews (`weights`) | nothing |
//! | `hash` | the kernel's hash of both addresses | nothing |
//!
//! `ip-hash` (`ip_hash`) has one, and the hash below it. A refusal by the kernel is a rung lower, never a failure.
//!
//! What is expected of the caller, the primary:
//!
//! - The groups are passed in whenever sockets may be needed. Socket `i` of a group is slot `i`'s; a group grows at its end
//!   and never shrinks; at least one socket of each slot is kept open while it steers.
//! - Before a fork: [`Steering::lease`]. In the child: [`Steering::give_up_all_but`]. When the worker is the
//!   one that takes the slot's connections: [`Steering::hold`] and, once it serves, [`Steering::set_health`].
//!   When it was reaped: [`Steering::retire`]. A worker that drains calls [`SlotMeter::leave`].
//! - Frozen, draining, full or dead: `set_health(.., false)`. Its queue is not touched: others may empty it.
//! - After a change of the groups: [`Steering::group_grew`] for more slots, [`Steering::regroup`] for other addresses.
//! - [`Steering::refresh`] once a second, with what is known of all slots' loads.
//! - [`Steering::release`] before an exec that keeps the sockets: the next image starts anew.
//!
//! **Invariant: nobody can steer into nothing.** No healthy slot, a slot without socket, a program that fails: the
//! kernel's hash chooses among the sockets, all of which have somebody who empties them.
//!
//! **Invariant: a worker's word bends its own load only.** What it writes is capped; who claims to be idle gets more
//! connections, and nothing else.

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub(crate) use super::least_conn::load_page::{Lease, SlotMeter};
use super::selector_backend::{Kernel, Odds, Rung, Sticky};
use crate::config::Dispatch;
use crate::error::{Error, Result};
use prefork_os::bpf;
use prefork_supervisor::Slot;

/// The most connections, open or waiting, that a slot is believed to have.
pub(super) const CAP: u64 = 1 << 16;
/// Between two looks at loads and queues.
const LOOK: Duration = Duration::from_secs(1);

/// The sockets of one listening address, by slot. All listen already.
pub(crate) struct Group<'a>(pub(crate) Vec<BorrowedFd<'a>>);

/// What the primary knows of the load of one slot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Connections that its worker has open.
    pub(crate) open: u64,
    /// Connections in its queues.
    pub(crate) waiting: u64,
}

/// The steering of one cluster, over all its listening addresses.
pub(crate) struct Steering {
    rung: Rung,
    healthy: Vec<bool>,
    /// Why it is not the highest rung.
    reason: Option<String>,
    look_at: Option<Instant>,
}

impl Steering {
    /// Steers by `policy` from now on. No slot is healthy yet, so the kernel's hash chooses until one is.
    ///
    /// For a policy that needs no program this is the hash.
    pub(crate) fn start(policy: Dispatch, groups: &[Group<'_>]) -> Steering {
        let slots = slots(groups);
        let healthy = vec![false; slots];
        let mut steering = Steering { rung: Rung::Hash, healthy, reason: None, look_at: None };
        // A program that an image before this one attached reads memory that nobody writes any more.
        let first = groups.iter().filter_map(|group| group.0.first());
        first.for_each(|socket| drop(bpf::detach_reuseport_program(*socket)));
        match policy {
            Dispatch::LeastConn => {
                let tried = Kernel::start(slots, groups).map(Rung::Kernel);
                steering.settle(tried, "cannot choose by load in the kernel");
                if matches!(steering.rung, Rung::Hash) {
                    let tried = Odds::start(&steering.healthy, groups).map(Rung::Odds);
                    steering.settle(tried, "cannot choose by weights");
                }
            }
            Dispatch::IpHash => {
                let tried = Sticky::start(&steering.healthy, groups).map(Rung::Sticky);
                steering.settle(tried, "cannot choose by the client's address");
            }
            _ => {}
        }
        steering
    }

    fn settle(&mut self, tried: Result<Rung, String>, what: &str) {
        match tried {
            Ok(rung) => self.rung = rung,
            Err(why) => {
                let before = self.reason.take().map(|before| before + "; ").unwrap_or_default();
                self.reason = Some(format!("{before}{what}: {why}"));
            }
        }
    }

    /// What chooses, for status: `ebpf`, `cbpf-weights`, `ip-hash` or `hash`.
    pub(crate) fn rung(&self) -> &'static str {
        match self.rung {
            Rung::Kernel(_) => "ebpf",
            Rung::Odds(_) => "cbpf-weights",
            // Without a reason not to be.
            Rung::Sticky(_) if self.reason.is_none() => "ip-hash",
            Rung::Sticky(_) | Rung::Hash => "hash",
        }
    }

    /// Why it is not the highest rung of the policy, for one log line; `None` if it is.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether `slot` may be chosen. An error means that another one chooses as before;
    /// the next refresh tries again.
    pub(crate) fn set_health(
        &mut self,
        slot: Slot,
        healthy: bool,
        groups: &[Group<'_>],
    ) -> Result<()> {
        let number = slot.0 as usize;
        let Some(known) = self.healthy.get_mut(number) else { return Ok(()) };
        let changed = *known != healthy;
        *known = healthy;
        match &mut self.rung {
            Rung::Kernel(kernel) => kernel.memory.set_health(number, healthy),
            Rung::Odds(odds) if changed => odds.update(&self.healthy, groups)?,
            Rung::Sticky(sticky) if changed => {
                self.reason = sticky.update(&self.healthy, groups)?
            }
            Rung::Odds(_) | Rung::Sticky(_) | Rung::Hash => {}
        }
        Ok(())
    }

    /// Whether `refresh` would do anything now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.look_at.is_none_or(|at| at <= now)
    }

    /// Once a second (more often is free): tells the weights what loads are, and mends what the kernel's program counts.
    /// `loads` is by slot. An error means that all stays as it was.
    pub(crate) fn refresh(
        &mut self,
        now: Instant,
        loads: &[Load],
        groups: &[Group<'_>],
    ) -> Result<()> {
        if !self.is_due(now) {
            return Ok(());
        }
        self.look_at = Some(now + LOOK);
        match &mut self.rung {
            Rung::Kernel(kernel) => kernel.mend(loads, groups),
            Rung::Odds(odds) => {
                odds.loads = loads.to_vec();
                odds.update(&self.healthy, groups)?;
            }
            // What could not be attached before may be now.
            Rung::Sticky(sticky) => self.reason = sticky.update(&self.healthy, groups)?,
            Rung::Hash => {}
        }
        Ok(())
    }

    /// There are more slots than before: covers the new ones, none of them healthy yet. For the kernel's program this
    /// waits for the verifier, whose work grows with the slots (4: a millisecond, 64: a tenth of a second, 1024:
    /// a second, for each address; as measured on two busy cores). An error means that the
    /// old ones are steered to as before, and the new ones not; the next call tries again.
    pub(crate) fn group_grew(&mut self, groups: &[Group<'_>]) -> Result<()> {
        let slots = slots(groups);
        if let Rung::Kernel(kernel) = &mut self.rung {
            kernel.grow(slots, groups).map_err(|why| {
                Error::refused(format!("cannot steer to {slots} slots: {why}; restart to do so"))
            })?;
        }
        // The classic programs have healthy slots only.
        self.healthy.resize(slots.max(self.healthy.len()), false);
        Ok(())
    }

    /// There are other listening addresses than before, or in another order: steers those. Workers and their pages go
    /// on. An error leaves some of them to the kernel's hash; the next call tries again.
    pub(crate) fn regroup(&mut self, groups: &[Group<'_>]) -> Result<()> {
        let slots = slots(groups);
        let done = match &mut self.rung {
            Rung::Kernel(kernel) => kernel.regroup(slots, groups),
            Rung::Odds(odds) => odds.regroup(groups).map_err(|e| e.to_string()),
            Rung::Sticky(sticky) => sticky.regroup(groups).map_err(|e| e.to_string()),
            Rung::Hash => Ok(()),
        };
        self.healthy.resize(slots.max(self.healthy.len()), false);
        done.map_err(|why| Error::refused(format!("cannot steer all listening addresses: {why}")))
    }

    /// A page for the worker that is about to be forked for `slot`.
    pub(crate) fn lease(&mut self, slot: Slot) -> Lease {
        match &mut self.rung {
            Rung::Kernel(kernel) => kernel.memory.lease(slot),
            _ => Lease { slot, seat: None },
        }
    }

    /// This worker is now the one that takes its slot's connections.
    pub(crate) fn hold(&mut self, lease: Lease) {
        if let Rung::Kernel(kernel) = &mut self.rung {
            kernel.memory.hold(lease);
        }
    }

    /// This worker is dead.
    pub(crate) fn retire(&mut self, lease: Lease) {
        if let Rung::Kernel(kernel) = &mut self.rung {
            kernel.memory.retire(lease);
        }
    }

    /// In a freshly forked worker: its own page, and no way to write any other, nor to any table.
    pub(crate) fn give_up_all_but(self, lease: Lease) -> Result<SlotMeter> {
        match self.rung {
            Rung::Kernel(kernel) => kernel
                .memory
                .give_up_all_but(lease)
                .map_err(|e| Error::system("give up the pages of other slots", e)),
            _ => Ok(SlotMeter::default()),
        }
    }

    /// Leaves the choice to the kernel's hash, and lets go of the sockets, so that another image may steer. If that
    /// does not come to pass, start again.
    pub(crate) fn release(mut self, groups: &[Group<'_>]) {
        // What fails here is mended by whoever starts next: it detaches, and waits for the sockets.
        groups
            .iter()
            .filter_map(|g| g.0.first())
            .for_each(|socket| drop(bpf::detach_reuseport_program(*socket)));
        if let Rung::Kernel(kernel) = &mut self.rung {
            kernel.let_go();
        }
    }

    /// How many connections the hash had to place because no slot was healthy; `None` where nobody counts.
    #[cfg(test)]
    pub(crate) fn by_hash(&self) -> Option<u64> {
        match &self.rung {
            Rung::Kernel(kernel) => Some(kernel.memory.by_hash()),
            _ => None,
        }
    }

    /// The instructions of the program that is attached, a line each; of several groups, the first one's.
    #[cfg(test)]
    pub(crate) fn listing(&self) -> Vec<String> {
        match &self.rung {
            Rung::Kernel(kernel) => super::bpf::ebpf::listing(&kernel.program),
            Rung::Odds(odds) => super::bpf::classic::listing(&odds.program),
            Rung::Sticky(sticky) => super::bpf::classic::listing(&sticky.program),
            Rung::Hash => Vec::new(),
        }
    }
}

/// How many slots every group has a socket for.
fn slots(groups: &[Group<'_>]) -> usize {
    groups.iter().map(|group| group.0.len()).min().unwrap_or(0)
}
