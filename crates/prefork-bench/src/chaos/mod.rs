//! Faults done to the target while it is measured (`--chaos`), and what they cost. When each is due is said by
//! [`FaultPlan`]; [`fault_injector`] does it; [`fault_attribution`] says which request suffered from which.

mod fault_attribution;
mod fault_injector;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use fault_attribution::{AffectedRequest, FaultCost, FaultEffect, costs_by_fault};
pub(crate) use fault_injector::{ChaosTarget, FaultInjector};

/// The shortest time between two faults of a kind, and the shortest freeze.
const MIN_FAULT_INTERVAL: Duration = Duration::from_millis(100);
/// How long a worker is frozen unless it is said, if the next freeze is not sooner.
const DEFAULT_FREEZE_DURATION: Duration = Duration::from_secs(1);
/// The longest freeze.
const MAX_FREEZE_DURATION: Duration = Duration::from_secs(60);

/// What can be done to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL to a worker that is drawn by lot.
    Kill,
    /// SIGHUP to the primary: all workers are replaced.
    Reload,
    /// SIGSTOP to a worker that is drawn by lot, and SIGCONT a while later.
    Freeze,
}

impl FaultKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [FaultKind; 3] = [FaultKind::Kill, FaultKind::Reload, FaultKind::Freeze];

    /// Its word on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::Reload => "reload",
            FaultKind::Freeze => "freeze",
        }
    }
}

/// How often each is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// By [`FaultKind`]: the time from one to the next.
    intervals: [Option<Duration>; 3],
    /// How long a worker is frozen.
    freeze_duration: Duration,
}

impl FaultPlan {
    /// Reads `kill=1s,reload=5s,freeze=10s/500ms`; `duration` reads its times.
    ///
    /// # Errors
    /// What is wrong with the text, and what to write instead.
    pub fn parse(
        text: &str,
        duration: impl Fn(&str) -> Result<Duration, String>,
    ) -> Result<FaultPlan, String> {
        const FORM: &str = "give kill=1s,reload=5s,freeze=10s/500ms, or some of them";
        let mut faults = FaultPlan::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or(format!("{part:?}: {FORM}"))?;
            let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == name);
            let kind = kind.ok_or(format!("unknown fault {name:?}: {FORM}"))?;
            let (every, length) = match value.split_once('/') {
                Some((every, length)) if kind == FaultKind::Freeze => (every, Some(length)),
                Some(_) => return Err(format!("{part:?}: only a freeze has a length; {FORM}")),
                None => (value, None),
            };
            let read = |text: &str| duration(text).map_err(|why| format!("{text:?} {why}"));
            let every = read(every)?;
            if every < MIN_FAULT_INTERVAL {
                return Err(format!(
                    "{part}: give {MIN_FAULT_INTERVAL:?} or more from one to the next"
                ));
            }
            if faults.intervals[kind as usize].replace(every).is_some() {
                return Err(format!("{name} is said twice: {FORM}"));
            }
            if kind == FaultKind::Freeze {
                faults.freeze_duration =
                    length.map(read).transpose()?.unwrap_or(DEFAULT_FREEZE_DURATION.min(every / 2));
                if faults.freeze_duration >= every
                    || faults.freeze_duration > MAX_FREEZE_DURATION
                    || faults.freeze_duration.is_zero()
                {
                    return Err(format!(
                        "{part}: a freeze must be shorter than the time to the next, and {MAX_FREEZE_DURATION:?} at most"
                    ));
                }
            }
        }
        Ok(faults)
    }

    /// Whether every fault comes at least once in a round that is measured for so long.
    ///
    /// # Errors
    /// The one that never comes.
    pub(crate) fn validate(&self, duration: Duration) -> Result<(), String> {
        let late = |kind: &FaultKind| {
            self.intervals[*kind as usize].is_some_and(|every| every >= duration)
        };
        match FaultKind::ALL.iter().find(|kind| late(kind)) {
            Some(kind) => Err(format!(
                "--chaos {}: the first one would come after --duration {duration:?}; measure longer",
                kind.name()
            )),
            None => Ok(()),
        }
    }
}

/// A fault that was done, in nanoseconds of the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InjectedFault {
    pub(crate) kind: FaultKind,
    pub(crate) from: u64,
    /// When it was over: a freeze takes time.
    pub(crate) until: u64,
    /// Whom it was done to.
    pub(crate) pids: Vec<u32>,
}

/// The faults of a round.
#[derive(Debug, Clone, Default)]
pub(crate) struct InjectedFaults {
    /// The earliest first.
    pub(crate) faults: Vec<InjectedFault>,
    /// By [`FaultKind`]: those that were due but had nobody to be done to.
    pub(crate) skipped: [u64; 3],
}
