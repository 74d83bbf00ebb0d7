//! Worker ids, slots and generations, and the tag that identifies a worker in logs.

use std::fmt;

/// A worker's number. Ids only grow and are never used again, as in Node's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct WorkerId(pub u64);

/// A stable position among the workers, `0..N`. A replacement takes over its predecessor's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Slot(pub u32);

/// The name of the kind of workers that serve connections. Every cluster has it.
pub const WEB_KIND: &str = "web";

impl Slot {
    /// Maximum number of slots of each kind. The slots of `web` begin at 0, those of each other kind at a multiple of
    /// this, so a slot keeps its number when anything is scaled.
    pub const MAX_SLOTS_PER_KIND: u32 = 1024;

    /// Returns the first slot of the kind that this slot belongs to.
    pub fn first_slot_of_kind(self) -> Slot {
        Slot(self.0 - self.0 % Slot::MAX_SLOTS_PER_KIND)
    }

    /// Returns the slot `n` after this one, or `None` if that is beyond the slots of a kind.
    pub fn checked_add(self, n: u32) -> Option<Slot> {
        if n < Slot::MAX_SLOTS_PER_KIND { self.0.checked_add(n).map(Slot) } else { None }
    }

    /// Returns whether the slot's workers serve connections.
    pub fn is_web(self) -> bool {
        self.0 < Slot::MAX_SLOTS_PER_KIND
    }
}

/// A generation of workers; the first is 1, and each reload or upgrade starts the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Generation(pub u64);

/// Everything that identifies one worker.
///
/// Its `Display` is how a worker appears in every log line: `worker=3 slot=1 gen=2 pid=4711`. Without a process there
/// is no `pid`; a worker of another kind than `web` has `kind=consumer` at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerTag {
    /// Its number, never used again.
    pub id: WorkerId,
    /// The slot it serves.
    pub slot: Slot,
    /// The generation of the configuration it was forked with.
    pub generation: Generation,
    /// Its process id; `None` until the fork has returned.
    pub pid: Option<u32>,
    /// Its kind: [`WEB_KIND`], or a name that the program declared.
    pub kind: &'static str,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for WorkerTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker={} slot={} gen={}", self.id, self.slot, self.generation)?;
        if let Some(pid) = self.pid {
            write!(f, " pid={pid}")?;
        }
        match self.kind {
            WEB_KIND => Ok(()),
            kind => write!(f, " kind={kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_tag_display_has_id_slot_generation_pid_and_kind() {
        let (slot, generation) = (Slot(1), Generation(2));
        let mut tag = WorkerTag { id: WorkerId(3), slot, generation, pid: None, kind: WEB_KIND };
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2");
        tag.pid = Some(4711);
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2 pid=4711");
        (tag.slot, tag.kind) = (Slot(1024), "consumer");
        assert_eq!(tag.to_string(), "worker=3 slot=1024 gen=2 pid=4711 kind=consumer");
    }
}
