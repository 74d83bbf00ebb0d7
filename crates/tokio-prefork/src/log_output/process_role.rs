//! Which process of the cluster this is: its name at the start of every log line.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use prefork_supervisor::WorkerTag;

/// The role of this process. `None` before it has one.
///
/// Written by the only thread of the process: at the start, and right after a fork.
static CURRENT: RwLock<Option<ProcessRole>> = RwLock::new(None);

/// Which process of the cluster this is.
///
/// `Display` writes what its log lines begin with: `primary`, or the tag of the worker, `worker=3 slot=1 gen=2 pid=4711`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessRole {
    /// The process that forks and supervises the workers.
    Primary,
    /// The process that supervises the isolated pools of a program without a cluster.
    PoolsPrimary,
    /// The process of the admin listener.
    Admin,
    /// A worker process, with all of its threads.
    Worker(WorkerTag),
}

impl ProcessRole {
    /// Returns the role of this process, or `None` before [`init_log_output`](super::init_log_output) and
    /// [`Cluster::serve`](crate::Cluster::serve).
    ///
    /// For loggers with a format of their own: call it for each record, as a forked worker has another role than the primary
    /// that installed the logger.
    pub fn current() -> Option<ProcessRole> {
        *CURRENT.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the role of this process.
    pub(crate) fn set(self) {
        *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    /// Makes this process the primary, unless it has a role.
    pub(super) fn set_primary_if_none() {
        CURRENT.write().unwrap_or_else(PoisonError::into_inner).get_or_insert(ProcessRole::Primary);
    }

    /// Returns the value of the field `process` in JSON lines.
    pub(super) fn name(&self) -> &'static str {
        match self {
            ProcessRole::Primary => "primary",
            ProcessRole::PoolsPrimary => "pools-primary",
            ProcessRole::Admin => "admin",
            ProcessRole::Worker(_) => "worker",
        }
    }

    /// Returns `message` without the tag of this process, if the message begins with it.
    ///
    /// Messages of the library name their process for loggers that do not, so the tag would stand there twice.
    pub(super) fn strip_own_tag<'a>(&self, message: &'a str) -> &'a str {
        match self {
            ProcessRole::Primary | ProcessRole::PoolsPrimary | ProcessRole::Admin => message,
            ProcessRole::Worker(own) => match LeadingTag::split(message) {
                Some((tag, rest)) if tag.is_of(own) => rest,
                _ => message,
            },
        }
    }
}

impl fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessRole::Worker(tag) => tag.fmt(f),
            other => f.write_str(other.name()),
        }
    }
}

/// The tag of a worker at the start of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeadingTag<'a> {
    pub(super) worker: u64,
    pub(super) slot: u64,
    pub(super) generation: u64,
    pub(super) pid: Option<u64>,
    /// `None` for `web`.
    pub(super) kind: Option<&'a str>,
}

impl LeadingTag<'_> {
    /// Splits a message into the tag that it begins with, and the rest. `None` if it begins with none.
    pub(super) fn split(message: &str) -> Option<(LeadingTag<'_>, &str)> {
        let (worker, rest) = split_number(message, "worker=")?;
        let (slot, rest) = split_number(rest, "slot=")?;
        let (generation, rest) = split_number(rest, "gen=")?;
        let (pid, rest) = match split_number(rest, "pid=") {
            Some((pid, rest)) => (Some(pid), rest),
            None => (None, rest),
        };
        let (kind, rest) = match rest.strip_prefix("kind=") {
            Some(rest) => {
                let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (Some(kind), rest)
            }
            None => (None, rest),
        };
        Some((LeadingTag { worker, slot, generation, pid, kind }, rest))
    }

    fn is_of(&self, own: &WorkerTag) -> bool {
        let same = (self.worker, self.slot, self.generation);
        same == (own.id.0, own.slot.0.into(), own.generation.0)
    }
}

/// Splits `text` into the number after `name`, and what follows the space after it.
fn split_number<'a>(text: &'a str, name: &str) -> Option<(u64, &'a str)> {
    let text = text.strip_prefix(name)?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(' ')? };
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId};

    fn worker(kind: &'static str) -> ProcessRole {
        let (slot, generation) = (Slot(1), Generation(2));
        ProcessRole::Worker(WorkerTag { id: WorkerId(3), slot, generation, pid: Some(4711), kind })
    }

    #[test]
    fn the_own_tag_is_stripped_whether_complete_or_not() {
        for kind in [WEB_KIND, "consumer"] {
            let role = worker(kind);
            for text in ["is full", "", "worker=3 slot=1 gen=2 pid=4711 again"] {
                assert_eq!(role.strip_own_tag(&format!("{role} {text}")), text);
            }
            assert_eq!(role.strip_own_tag("worker=3 slot=1 gen=2 cannot start"), "cannot start");
            for other in [
                "is full",
                "",
                "worker=4 slot=1 gen=2 pid=4711 x",
                "worker=3 slot=1",
                "worker=3 slot=1 gen=20 x",
                "worker=3 slot=1 gen=2, as it seems",
                "worker= slot=1 gen=2 x",
                "worker=99999999999999999999999 slot=1 gen=2 x",
            ] {
                assert_eq!(role.strip_own_tag(other), other);
            }
        }
        let about_a_worker = "worker=3 slot=1 gen=2 pid=4711 ready";
        assert_eq!(ProcessRole::Primary.strip_own_tag(about_a_worker), about_a_worker);
    }

    #[test]
    fn a_leading_tag_has_all_fields_of_the_worker() {
        let message = format!("{} exited", worker("consumer"));
        let tag = LeadingTag {
            worker: 3,
            slot: 1,
            generation: 2,
            pid: Some(4711),
            kind: Some("consumer"),
        };
        assert_eq!(LeadingTag::split(&message), Some((tag, "exited")));
    }
}
