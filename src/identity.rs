//! Who is who: the names of workers, and the one way a worker is printed.

use std::fmt;

/// A worker's number. It only grows and is never used again, as in Node's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A stable place among the workers, `0..N`. A replacement takes over its predecessor's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Grows by one with each reload; the first workers are of generation 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Everything that names one worker. Its `Display` is how a worker stands in every log line:
/// `worker=3 slot=1 gen=2 pid=4711`, or without `pid` while there is no process yet.
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
        match self.pid {
            Some(pid) => write!(f, " pid={pid}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_printed_in_one_way() {
        let mut tag =
            WorkerTag { id: WorkerId(3), slot: Slot(1), generation: Generation(2), pid: None };
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2");
        tag.pid = Some(4711);
        assert_eq!(tag.to_string(), "worker=3 slot=1 gen=2 pid=4711");
    }
}
