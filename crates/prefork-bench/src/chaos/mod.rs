//! Fault injection under load (`--chaos`): which faults, how often, and what they cost.
//!
//! [`FaultPlan`] says when each fault is due, `fault_injector` injects it, and `fault_attribution` assigns
//! each affected request to a fault, or says which kinds of fault are possible.

mod client_ports;
mod fault_attribution;
mod fault_injector;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use fault_attribution::{AffectedRequest, FaultCauses, FaultCosts, FaultEffect};
pub(crate) use fault_injector::{ChaosTarget, FaultInjector};

/// Shortest interval between two faults of one kind.
const MIN_FAULT_INTERVAL: Duration = Duration::from_millis(100);
/// Default length of a freeze; half the interval if that is shorter.
const DEFAULT_FREEZE_DURATION: Duration = Duration::from_secs(1);
/// Longest allowed freeze.
const MAX_FREEZE_DURATION: Duration = Duration::from_secs(60);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL to a random worker.
    Kill,
    /// SIGHUP to the primary, which replaces all workers.
    Reload,
    /// SIGSTOP to a random worker, and SIGCONT after the freeze.
    Freeze,
}

impl FaultKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [FaultKind; 3] = [FaultKind::Kill, FaultKind::Reload, FaultKind::Freeze];

    /// Returns the name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::Reload => "reload",
            FaultKind::Freeze => "freeze",
        }
    }
}

/// Which faults to inject into the server, and how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Time of the first fault since the begin of the measurement, indexed by [`FaultKind`]; `None` disables the kind.
    first: [Option<Duration>; 3],
    /// Interval between two faults, indexed by [`FaultKind`]; `None` injects one.
    intervals: [Option<Duration>; 3],
    /// How long a freeze lasts.
    freeze_duration: Duration,
}

impl FaultPlan {
    /// Parses `kill=1s,reload=5s,freeze=10s/500ms`, using `duration` to parse each time.
    ///
    /// # Errors
    /// Says what is wrong with the text and what to write instead.
    pub fn parse(
        text: &str,
        duration: impl Fn(&str) -> Result<Duration, String>,
    ) -> Result<FaultPlan, String> {
        const EXPECTED_FORMAT: &str = "give kill=1s,reload=5s,freeze=10s/500ms, or some of them";
        let mut faults = FaultPlan::default();
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').ok_or(format!("{part:?}: {EXPECTED_FORMAT}"))?;
            let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == name);
            let kind = kind.ok_or(format!("unknown fault {name:?}: {EXPECTED_FORMAT}"))?;
            let (every, length) = match value.split_once('/') {
                Some((every, length)) if kind == FaultKind::Freeze => (every, Some(length)),
                Some(_) => {
                    return Err(format!(
                        "{part:?}: only a freeze has a duration; {EXPECTED_FORMAT}"
                    ));
                }
                None => (value, None),
            };
            let read = |text: &str| duration(text).map_err(|why| format!("{text:?} {why}"));
            let every = read(every)?;
            if faults.has_kind(kind) {
                return Err(format!("{name} is given twice: {EXPECTED_FORMAT}"));
            }
            let length = length.map(read).transpose()?;
            faults.add(kind, every, Some(every), length).map_err(|why| format!("{part}: {why}"))?;
        }
        Ok(faults)
    }

    /// Returns whether faults of a kind are injected.
    pub(crate) fn has_kind(&self, kind: FaultKind) -> bool {
        self.first[kind as usize].is_some()
    }

    /// Adds faults of a kind: the first one `first` after the begin of the measurement, and then one in each `interval`,
    /// or no more. A freeze takes `length`, by default 1 s or half the interval.
    ///
    /// # Errors
    /// The interval is too short, or a freeze too long.
    pub(crate) fn add(
        &mut self,
        kind: FaultKind,
        first: Duration,
        interval: Option<Duration>,
        length: Option<Duration>,
    ) -> Result<(), String> {
        if interval.is_some_and(|every| every < MIN_FAULT_INTERVAL) {
            return Err(format!("the interval must be at least {MIN_FAULT_INTERVAL:?}"));
        }
        if kind == FaultKind::Freeze {
            let longest = interval.unwrap_or(Duration::MAX);
            let length = length.unwrap_or(DEFAULT_FREEZE_DURATION.min(longest / 2));
            if length >= longest || length > MAX_FREEZE_DURATION || length.is_zero() {
                return Err(format!(
                    "a freeze must be shorter than its interval, and at most {MAX_FREEZE_DURATION:?}"
                ));
            }
            self.freeze_duration = length;
        }
        (self.first[kind as usize], self.intervals[kind as usize]) = (Some(first), interval);
        Ok(())
    }

    /// Checks that every fault occurs at least once in a round of length `duration`.
    ///
    /// # Errors
    /// Names the first fault that would never occur.
    pub(crate) fn validate(&self, duration: Duration) -> Result<(), String> {
        let late =
            |kind: &FaultKind| self.first[*kind as usize].is_some_and(|first| first >= duration);
        match FaultKind::ALL.iter().find(|kind| late(kind)) {
            Some(kind) => Err(format!(
                "the first {} would come after the measurement of {duration:?}: choose a longer --duration",
                kind.name()
            )),
            None => Ok(()),
        }
    }
}

/// A fault that was injected; times are nanoseconds since the start of the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InjectedFault {
    pub(crate) kind: FaultKind,
    pub(crate) from: u64,
    /// When the fault ended: only a freeze takes time.
    pub(crate) until: u64,
    /// The processes it hit.
    pub(crate) pids: Vec<u32>,
    /// The clients' ports of the TCP connections that were in a killed or frozen process; `None` if unknown.
    pub(crate) client_ports: Option<Vec<u16>>,
}

/// All faults of one round.
#[derive(Debug, Clone, Default)]
pub(crate) struct InjectedFaults {
    /// Injected faults, earliest first.
    pub(crate) faults: Vec<InjectedFault>,
    /// Faults that were due but had no process to hit, indexed by [`FaultKind`].
    pub(crate) skipped: [u64; 3],
}
