//! Who is name: the names of workers, and the one way a worker is printed.

use std::fmt;

/// A worker's number. It only grows and is never used again, as in Node's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A stable place among the workers, `0..N`. A replacement takes over its predecessor's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The name of the kind of workers that serve connections; every cluster has them. See `Kind` in tokio-prefork for others.
pub const WEB_KIND: &str = "web";

impl Slot {
    /// Slots of `web` begin at 0, those of each other kind at a multiple of this. So a slot keeps its number whatever is
    /// scaled.
    pub const PER_KIND: u32 = 1024;

    /// The first slot of the kind that this one belongs to.
    pub fn first_of_its_kind(self) -> Slot {
        Slot(self.0 - self.0 % Slot::PER_KIND)
    }

    /// The slot so many places behind this one, if it is of the same kind.
    pub fn plus(self, n: u32) -> Option<Slot> {
        (n < Slot::PER_KIND).then(|| Slot(self.0 + n))
    }

    /// Whether workers there serve connections.
    pub fn is_web(self) -> bool {
        self.0 < Slot::PER_KIND
    }
}

/// Grows by one with each reload; the first workers are of generation 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Everything that names one worker. Its `Display` is how a worker stands in every log line:
/// `worker=3 slot=1 gen=2 pid=4711`, or without `pid` while there is no process yet; and with `kind=consumer` at its
/// end, if it is of another kind than `web`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerTag {
    /// Never used again.
    pub id: WorkerId,
    /// The place it serves.
    pub slot: Slot,
    /// The configuration it was forked under.
    pub generation: Generation,
    /// `None` until the fork has happened.
    pub pid: Option<u32>,
    /// The kind of workers it is one of: [`WEB_KIND`], or the name that the program gave.
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
    fn a_worker_is_printed_in_one_way() {
        let (slot, generation) = (Slot(1), Generation(2));
        let mut tag = WorkerTag { id: WorkerId(3), slot, generation, pid: None, kind: WEB_KIND };
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2");
        tag.pid = Some(4711);
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2 pid=4711");
        (tag.slot, tag.kind) = (Slot(1024), "consumer");
        assert_eq!(tag.to_string(), "worker=3 slot=1024 gen=2 pid=4711 kind=consumer");
    }
}
