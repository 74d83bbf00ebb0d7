//! The hands: faults done to processes of this machine. A process is held by a descriptor, never by its number alone, and
//! is asked for its parent after that: so a signal reaches a worker of the target or nobody.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{FaultKind, FaultPlan, InjectedFault, InjectedFaults};
use crate::load::process_tree::{ProcessTree, parent_pid};
use prefork_os::child::PidFd;
use prefork_os::signal::Signal;
use prefork_os::system::random_u64;
use tokio_prefork::{Error, Result};

/// Waits for the end of its input, which is the end of the bench, and lets the frozen one go on. It is killed
/// when that has been done by the bench itself.
const RESUME_GUARD_SCRIPT: &str = "read -r never; kill -CONT \"$0\" 2>/dev/null";

/// The server that faults are done to.
#[derive(Debug)]
pub(crate) struct ChaosTarget {
    primary: PidFd,
    pid: u32,
}

impl ChaosTarget {
    /// The primary at the root of a tree.
    ///
    /// # Errors
    /// There is none on this machine, it is none of ours, or it is somebody else's.
    pub(crate) fn find(tree: Option<&ProcessTree>) -> Result<ChaosTarget> {
        let refuse = |why: String| {
            Error::refused(format!(
                "--chaos: {why}; faults are done only to a prefork server that this user runs on this machine"
            ))
        };
        let Some(tree) = tree else {
            return Err(refuse("no process of this machine listens at the target".to_string()));
        };
        let pid = tree.root();
        let primary = PidFd::open(pid)
            .map_err(|e| Error::system(format!("hold pid {pid}, the target"), e))?;
        if !process_title(pid).starts_with("prefork: primary") && !runs_same_executable(pid) {
            return Err(refuse(format!("pid {pid} ({}) is no prefork server", tree.name())));
        }
        // SIGURG does nothing to a process that does not ask for it, and tells whether signals are allowed.
        primary
            .send_signal(Signal::SIGURG)
            .map_err(|e| refuse(format!("cannot signal pid {pid}: {e}")))?;
        Ok(ChaosTarget { primary, pid })
    }

    /// Its workers, each held.
    fn workers(&self) -> Vec<(u32, PidFd)> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let is_ours = |pid: u32| parent_pid(pid) == Some(self.pid) && pid != std::process::id();
        let held = pids.filter(|pid| is_ours(*pid)).filter_map(|pid| {
            let fd = PidFd::open(pid).ok()?;
            // Asked again now that it cannot be another one.
            is_ours(pid).then_some((pid, fd))
        });
        held.collect()
    }
}

fn process_title(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// For kernels that do not let a process name itself.
fn runs_same_executable(pid: u32) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// The faults of one round, as they are done. Dropped, it leaves nobody frozen.
pub(crate) struct FaultInjector<'a> {
    faults: FaultPlan,
    target: &'a ChaosTarget,
    /// By [`FaultKind`]: when the next one is due.
    next: [Option<u64>; 3],
    frozen: Option<FrozenWorker>,
    injected: InjectedFaults,
}

/// A worker that stands still.
struct FrozenWorker {
    worker: PidFd,
    guard: Child,
    until: u64,
    /// Its place among the faults done.
    at: usize,
}

impl<'a> FaultInjector<'a> {
    /// Faults for a round that is measured from `begin` on.
    pub(crate) fn new(faults: FaultPlan, target: &'a ChaosTarget, begin: u64) -> FaultInjector<'a> {
        let next = faults.intervals.map(|every| Some(begin + saturating_nanos(every?)));
        FaultInjector { faults, target, next, frozen: None, injected: InjectedFaults::default() }
    }

    /// When there is something to do next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let thaw = self.frozen.iter().map(|frozen| frozen.until);
        self.next.iter().flatten().copied().chain(thaw).min()
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The guard of a frozen worker cannot be started.
    pub(crate) fn inject_due(&mut self, now: u64) -> io::Result<()> {
        if self.frozen.as_ref().is_some_and(|frozen| frozen.until <= now) {
            self.resume_frozen(now);
        }
        for kind in FaultKind::ALL {
            let Some(due) = self.next[kind as usize].filter(|due| *due <= now) else { continue };
            let step =
                self.faults.intervals[kind as usize].map_or(u64::MAX, saturating_nanos).max(1);
            // Those that were missed are not made up for: they would come all at once.
            self.next[kind as usize] = Some(due + step * ((now - due) / step + 1));
            match self.inject_fault(kind, now)? {
                Some(pids) => {
                    self.injected.faults.push(InjectedFault { kind, from: now, until: now, pids })
                }
                None => self.injected.skipped[kind as usize] += 1,
            }
        }
        Ok(())
    }

    /// The round is over: what was done in it.
    pub(crate) fn finish(&mut self, now: u64) -> InjectedFaults {
        self.resume_frozen(now);
        self.next = [None; 3];
        std::mem::take(&mut self.injected)
    }

    /// Whom it was done to; `None` if nobody was there.
    fn inject_fault(&mut self, kind: FaultKind, now: u64) -> io::Result<Option<Vec<u32>>> {
        let mut workers = self.target.workers();
        if kind == FaultKind::Reload {
            let sent = self.target.primary.send_signal(Signal::SIGHUP);
            return Ok(sent.is_ok().then(|| workers.into_iter().map(|(pid, _)| pid).collect()));
        }
        if workers.is_empty() || (kind == FaultKind::Freeze && self.frozen.is_some()) {
            return Ok(None);
        }
        let index = random_u64()? as usize % workers.len();
        let (pid, worker) = workers.swap_remove(index);
        let was_injected = match kind {
            FaultKind::Freeze => self.freeze_worker(pid, worker, now)?,
            _ => worker.send_signal(Signal::SIGKILL).is_ok(),
        };
        Ok(was_injected.then(|| vec![pid]))
    }

    fn freeze_worker(&mut self, pid: u32, worker: PidFd, now: u64) -> io::Result<bool> {
        // In a group of its own: Ctrl-C is for the bench, and a guard must outlive it.
        let mut guard = Command::new("/bin/sh")
            .args(["-c", RESUME_GUARD_SCRIPT, &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        if worker.send_signal(Signal::SIGSTOP).is_err() {
            stop_guard(&mut guard);
            return Ok(false);
        }
        let until = now + saturating_nanos(self.faults.freeze_duration);
        self.frozen = Some(FrozenWorker { worker, guard, until, at: self.injected.faults.len() });
        Ok(true)
    }

    fn resume_frozen(&mut self, now: u64) {
        let Some(mut frozen) = self.frozen.take() else { return };
        // It may have been killed meanwhile, by its primary or by us.
        let _ = frozen.worker.send_signal(Signal::SIGCONT);
        stop_guard(&mut frozen.guard);
        if let Some(fault) = self.injected.faults.get_mut(frozen.at) {
            fault.until = now;
        }
    }
}

impl Drop for FaultInjector<'_> {
    fn drop(&mut self) {
        self.resume_frozen(0);
    }
}

fn stop_guard(guard: &mut Child) {
    // A child of ours that is not reaped can be killed, and then it ends.
    let _ = guard.kill();
    let _ = guard.wait();
}

fn saturating_nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 4)
}
