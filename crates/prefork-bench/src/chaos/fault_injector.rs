//! Injects faults into the processes of a prefork server on this machine.
//!
//! Holds each process by a pidfd and checks its parent after opening it, so a signal never hits an unrelated
//! process that reused the pid.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::client_ports::client_ports;
use super::{FaultKind, FaultPlan, InjectedFault, InjectedFaults};
use crate::load::process_tree::{ProcessTree, parent_pid, process_state};
use prefork_os::child::PidFd;
use prefork_os::signal::Signal;
use prefork_os::system::random_u64;
use tokio_prefork::{Error, Result};

/// Shell script that resumes a frozen worker if the load generator dies.
///
/// It waits for end of file on its standard input. The load generator kills it after resuming the worker
/// itself.
const RESUME_GUARD_SCRIPT: &str = "read -r never; kill -CONT \"$0\" 2>/dev/null";

/// Most generations between this program and a server that it has started.
const MAX_PROCESS_DEPTH: usize = 64;

/// How long to wait until a process has stopped: 200 ms, as it must be scheduled for that.
const STOP_TIMEOUT: Duration = Duration::from_millis(200);
/// Interval for looking whether it has.
const STOP_POLL_INTERVAL: Duration = Duration::from_micros(200);

/// The prefork server that faults are injected into.
#[derive(Debug)]
pub(crate) struct ChaosTarget {
    primary: PidFd,
    pid: u32,
    /// Whether it is known to replace its workers on SIGHUP, which ends other programs.
    can_reload: bool,
}

impl ChaosTarget {
    /// Opens the primary at the root of a process tree: that of `prefork`, or of a peer that this program has started.
    ///
    /// # Errors
    /// No process of this machine listens at the target, it is not a prefork server, or this user may not
    /// signal it.
    pub(crate) fn open_primary(tree: Option<&ProcessTree>) -> Result<ChaosTarget> {
        let refuse = |why: String| {
            Error::refused(format!(
                "--chaos: {why}; faults are injected only into a prefork server that this user runs on this machine"
            ))
        };
        let Some(tree) = tree else {
            return Err(refuse("no process of this machine listens at the target".to_string()));
        };
        let pid = tree.root_pid();
        if pid == std::process::id() {
            return Err(refuse("the target is this program".to_string()));
        }
        let primary = PidFd::open(pid)
            .map_err(|e| Error::system(format!("open a pidfd of the target, pid {pid}"), e))?;
        let is_prefork =
            process_title(pid).starts_with("prefork: primary") || runs_same_executable(pid);
        if !is_prefork && !is_descendant_of_this_process(pid) {
            return Err(refuse(format!("pid {pid} ({}) is not a prefork server", tree.name())));
        }
        // SIGURG is ignored by default, so sending it only checks for permission.
        primary
            .send_signal(Signal::SIGURG)
            .map_err(|e| refuse(format!("cannot signal pid {pid}: {e}")))?;
        Ok(ChaosTarget { primary, pid, can_reload: is_prefork })
    }

    /// Checks that the server reloads on SIGHUP.
    ///
    /// # Errors
    /// It is another program than `prefork`, which may end instead.
    pub(crate) fn require_reload(&self) -> Result<()> {
        match self.can_reload {
            true => Ok(()),
            false => Err(Error::refused(format!(
                "pid {}: only prefork serve and prefork run are known to reload on SIGHUP; start the server with prefork run, or \
                 leave out the reloads",
                self.pid
            ))),
        }
    }

    /// Returns the pid of the primary.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells the primary to replace all workers.
    ///
    /// # Errors
    /// It is not known to reload on SIGHUP, or has ended.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.require_reload().map_err(io::Error::other)?;
        self.primary.send_signal(Signal::SIGHUP)
    }

    /// Returns the pid and a pidfd of each worker.
    pub(crate) fn list_workers(&self) -> Vec<(u32, PidFd)> {
        let is_ours = |pid: u32| parent_pid(pid) == Some(self.pid) && pid != std::process::id();
        let held =
            possible_children(self.pid).into_iter().filter(|pid| is_ours(*pid)).filter_map(|pid| {
                let fd = PidFd::open(pid).ok()?;
                // Checked again: the pidfd now rules out a reused pid.
                is_ours(pid).then_some((pid, fd))
            });
        held.collect()
    }
}

/// Returns the children of a process with one thread; all processes if the kernel has no list of children.
fn possible_children(pid: u32) -> Vec<u32> {
    if let Ok(children) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        return children.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn process_title(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns whether this program has started the process, as a comparison starts its servers.
fn is_descendant_of_this_process(pid: u32) -> bool {
    let parents = std::iter::successors(Some(pid), |pid| parent_pid(*pid));
    // Limits the walk if processes change meanwhile.
    parents.take(MAX_PROCESS_DEPTH).any(|pid| pid == std::process::id())
}

/// Recognizes a server by its executable, where the kernel does not allow a process to set its title.
fn runs_same_executable(pid: u32) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// Injects the faults of one round. Dropping it resumes a frozen worker.
pub(crate) struct FaultInjector<'a> {
    faults: FaultPlan,
    target: &'a ChaosTarget,
    /// When the next fault is due, indexed by [`FaultKind`].
    next: [Option<u64>; 3],
    frozen: Option<FrozenWorker>,
    injected: InjectedFaults,
}

/// A worker that is stopped.
struct FrozenWorker {
    worker: PidFd,
    guard: Child,
    until: u64,
    /// Index of the freeze in `injected.faults`.
    at: usize,
}

impl<'a> FaultInjector<'a> {
    /// Creates the injector of a round whose measurement begins at `begin`.
    pub(crate) fn new(faults: FaultPlan, target: &'a ChaosTarget, begin: u64) -> FaultInjector<'a> {
        let next = faults.first.map(|first| Some(begin + saturating_nanos(first?)));
        FaultInjector { faults, target, next, frozen: None, injected: InjectedFaults::default() }
    }

    /// Returns when the next fault or the end of a freeze is due.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let thaw = self.frozen.iter().map(|frozen| frozen.until);
        self.next.iter().flatten().copied().chain(thaw).min()
    }

    /// Injects all faults that are due, and ends a freeze that is over.
    ///
    /// # Errors
    /// The guard process of a frozen worker cannot be started.
    pub(crate) fn inject_due(&mut self, now: u64) -> io::Result<()> {
        if self.frozen.as_ref().is_some_and(|frozen| frozen.until <= now) {
            self.resume_frozen(now);
        }
        for kind in FaultKind::ALL {
            let Some(due) = self.next[kind as usize].filter(|due| *due <= now) else { continue };
            let step = self.faults.intervals[kind as usize].map(saturating_nanos);
            // Missed faults are skipped: otherwise they would all come at once.
            self.next[kind as usize] = step.map(|step| due + step * ((now - due) / step + 1));
            match self.inject_fault(kind, now)? {
                Some(Victims { pids, client_ports }) => self.injected.faults.push(InjectedFault {
                    kind,
                    from: now,
                    until: now,
                    pids,
                    client_ports,
                }),
                None => self.injected.skipped[kind as usize] += 1,
            }
        }
        Ok(())
    }

    /// Ends the round and returns the faults injected in it.
    pub(crate) fn finish_round(&mut self, now: u64) -> InjectedFaults {
        self.resume_frozen(now);
        self.next = [None; 3];
        std::mem::take(&mut self.injected)
    }

    /// Injects one fault and returns what it hit; `None` if there was no process to hit.
    fn inject_fault(&mut self, kind: FaultKind, now: u64) -> io::Result<Option<Victims>> {
        let mut workers = self.target.list_workers();
        if kind == FaultKind::Reload {
            let sent = self.target.reload();
            let pids = workers.into_iter().map(|(pid, _)| pid).collect();
            return Ok(sent.is_ok().then_some(Victims { pids, client_ports: None }));
        }
        if workers.is_empty() || (kind == FaultKind::Freeze && self.frozen.is_some()) {
            return Ok(None);
        }
        let index = random_u64()? as usize % workers.len();
        let (pid, worker) = workers.swap_remove(index);
        match kind {
            FaultKind::Freeze => self.freeze_worker(pid, worker, now),
            _ => Ok(kill_worker(pid, &worker)),
        }
    }

    fn freeze_worker(&mut self, pid: u32, worker: PidFd, now: u64) -> io::Result<Option<Victims>> {
        // In a process group of its own, so that Ctrl-C does not kill the guard with the load generator.
        let mut guard = Command::new("/bin/sh")
            .args(["-c", RESUME_GUARD_SCRIPT, &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        if worker.send_signal(Signal::SIGSTOP).is_err() {
            stop_guard(&mut guard);
            return Ok(None);
        }
        let client_ports = ports_of_stopped(pid);
        let until = now + saturating_nanos(self.faults.freeze_duration);
        self.frozen = Some(FrozenWorker { worker, guard, until, at: self.injected.faults.len() });
        Ok(Some(Victims { pids: vec![pid], client_ports }))
    }

    fn resume_frozen(&mut self, now: u64) {
        let Some(mut frozen) = self.frozen.take() else { return };
        // Fails if the worker was killed meanwhile.
        let _ = frozen.worker.send_signal(Signal::SIGCONT);
        stop_guard(&mut frozen.guard);
        if let Some(fault) = self.injected.faults.get_mut(frozen.at) {
            fault.until = now;
        }
    }
}

/// What a fault hit.
struct Victims {
    pids: Vec<u32>,
    client_ports: Option<Vec<u16>>,
}

/// Kills a worker, and says which connections died with it. `None` if it was already gone.
fn kill_worker(pid: u32, worker: &PidFd) -> Option<Victims> {
    // Stopped for some milliseconds, so that it neither accepts nor hands over a connection meanwhile.
    worker.send_signal(Signal::SIGSTOP).ok()?;
    let client_ports = ports_of_stopped(pid);
    worker.send_signal(Signal::SIGKILL).ok()?;
    Some(Victims { pids: vec![pid], client_ports })
}

/// Returns the clients' ports of a process that was sent SIGSTOP, once it has stopped.
fn ports_of_stopped(pid: u32) -> Option<Vec<u16>> {
    let begun = Instant::now();
    // A signal stops a process only when it runs next.
    while process_state(pid)? != 'T' {
        if begun.elapsed() > STOP_TIMEOUT {
            return None;
        }
        std::thread::sleep(STOP_POLL_INTERVAL);
    }
    client_ports(pid)
}

impl Drop for FaultInjector<'_> {
    fn drop(&mut self) {
        self.resume_frozen(0);
    }
}

fn stop_guard(guard: &mut Child) {
    // Killing an unreaped child cannot fail, and then it exits.
    let _ = guard.kill();
    let _ = guard.wait();
}

fn saturating_nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_known_to_reload_gets_no_sighup() {
        let mut server = Command::new("sleep").arg("600").spawn().expect("a process");
        let pid = server.id();
        let primary = PidFd::open(pid).expect("a pidfd");
        let target = ChaosTarget { primary, pid, can_reload: false };
        let why = target.require_reload().expect_err("refused").to_string();
        assert!(why.contains("only prefork serve and prefork run"), "{why}");
        assert!(target.reload().is_err());
        assert_eq!(server.try_wait().expect("a child"), None, "it would have ended");
        stop_guard(&mut server);
    }
}
