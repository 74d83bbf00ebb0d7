//! The process of the admin listener: when to fork, replace, drain and kill it.
//!
//! Decided apart from the workers, so that nothing that happens to it ends or delays the cluster: it is no part of a start, a
//! reload or a stop, and one that cannot boot is retried without end.

use std::fmt;
use std::time::{Duration, Instant};

/// How long a process may take from its fork to READY.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a process may serve its open connections after it was told to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a ready process waits for the one before it to stop accepting.
const STOP_ACCEPTING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the event loop of a process may stall before it is killed.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The most time that one interval between two heartbeat checks counts for. A primary that was stopped has not seen more.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How often heartbeats are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A process that exits later than this after READY is forked again at once.
const MIN_UPTIME: Duration = Duration::from_secs(1);

/// The delay before the second fork in a row; it doubles with each further one.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The longest delay before a fork if the last process was ready.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The longest delay before a fork if the last process was never ready.
const MAX_BOOT_RETRY_DELAY: Duration = Duration::from_secs(15);

/// The most processes at a time: one that serves, one that boots, and those that drain.
const MAX_PROCESSES: usize = 4;

/// Identifies a process of the admin listener. Counted from 1, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminProcessId(pub u64);

/// What the primary does with a process of the admin listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminAction {
    /// Forks a process with this id.
    Fork(AdminProcessId),
    /// Tells the process to accept connections.
    StartAccepting(AdminProcessId),
    /// Tells the process to accept no more and to exit when its requests are answered.
    Drain(AdminProcessId),
    /// Sends SIGKILL.
    Kill(AdminProcessId, AdminKillReason),
}

/// Why a process of the admin listener is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminKillReason {
    /// It was not ready in time.
    BootTimeout,
    /// It had not drained in time.
    DrainTimeout,
    /// Its event loop has stalled.
    Stalled,
    /// It is not wanted any more and was not ready yet.
    Superseded,
}

/// The state of a process of the admin listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminProcessState {
    /// Forked and not ready yet.
    Booting,
    /// Ready, and waiting until no other process accepts: an upgraded primary has other figures than the one before.
    Ready,
    /// Accepts connections and answers.
    Serving,
    /// Told to drain.
    Draining,
    /// Sent SIGKILL, and not reaped yet.
    Killed,
}

/// Decides over the process of the admin listener. Makes no system call and reads no clock.
#[derive(Debug, Default)]
pub struct AdminSupervisor {
    /// The version of the configuration that the process should have. `None`: no process is wanted.
    wanted: Option<u64>,
    processes: Vec<AdminProcess>,
    last_id: u64,
    /// Exits in a row that count for the retry delay.
    failures: u32,
    /// Whether the last process to exit was ready before.
    was_ready: bool,
    next_fork: Option<Instant>,
    restart_count: u64,
    last_check: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct AdminProcess {
    id: AdminProcessId,
    /// The version of the configuration that it was forked with. `None`: by the previous image.
    version: Option<u64>,
    state: AdminProcessState,
    /// When it is killed, while it boots or drains.
    deadline: Option<Instant>,
    ready_at: Option<Instant>,
    /// Until when a draining process may still accept. `None`: it accepts no more.
    accepts_until: Option<Instant>,
    killed_for: Option<AdminKillReason>,
    heartbeat: u64,
    /// How long `heartbeat` has been the same.
    unchanged_for: Duration,
}

impl AdminSupervisor {
    /// Sets the version of the configuration that the process should have. A process with another one is replaced; `None` ends it.
    pub fn set_wanted(&mut self, version: Option<u64>) {
        if version.is_some() && version != self.wanted {
            // A changed configuration may have removed what kept it from booting.
            (self.failures, self.next_fork) = (0, None);
        }
        self.wanted = version;
    }

    /// Adds a process of the previous image, which serves until its successor is ready.
    pub fn add_inherited(&mut self, id: AdminProcessId, state: AdminProcessState, now: Instant) {
        self.last_id = self.last_id.max(id.0);
        let mut process = AdminProcess::new(id, None, now);
        process.state = state;
        process.ready_at = Some(now);
        process.deadline = (state != AdminProcessState::Serving).then_some(now + DRAIN_TIMEOUT);
        self.processes.push(process);
    }

    /// Continues the number of restarts of the previous image.
    pub fn restore_restart_count(&mut self, restart_count: u64) {
        self.restart_count = restart_count;
    }

    /// Records that a process is ready.
    pub fn on_ready(&mut self, now: Instant, id: AdminProcessId) {
        let Some(process) = self.get_mut(id) else { return };
        if process.state == AdminProcessState::Booting {
            process.state = AdminProcessState::Ready;
            process.deadline = None;
            process.ready_at = Some(now);
            process.unchanged_for = Duration::ZERO;
        }
    }

    /// Records that a draining process accepts no more connections.
    pub fn on_stopped_accepting(&mut self, id: AdminProcessId) {
        self.get_mut(id).into_iter().for_each(|process| process.accepts_until = None);
    }

    /// Records that a process has exited, or that its fork failed. Returns whether it was not requested.
    pub fn on_exited(&mut self, now: Instant, id: AdminProcessId) -> bool {
        let Some(index) = self.processes.iter().position(|process| process.id == id) else {
            return false;
        };
        let process = self.processes.remove(index);
        let is_expected = match process.killed_for {
            Some(AdminKillReason::DrainTimeout | AdminKillReason::Superseded) => true,
            Some(AdminKillReason::BootTimeout | AdminKillReason::Stalled) => false,
            None => process.state == AdminProcessState::Draining,
        };
        if is_expected || self.wanted.is_none() {
            return false;
        }
        self.restart_count += 1;
        self.was_ready = process.ready_at.is_some();
        let uptime = process.ready_at.map(|at| now.saturating_duration_since(at));
        if uptime.is_some_and(|uptime| uptime >= MIN_UPTIME) {
            self.failures = 0;
        }
        self.next_fork = Some(now + self.retry_delay());
        self.failures = self.failures.saturating_add(1);
        true
    }

    /// Checks the heartbeats, if it is time to. `heartbeat` returns that of a process, `None` if it is not known.
    pub fn check_heartbeats(
        &mut self,
        now: Instant,
        heartbeat: impl Fn(AdminProcessId) -> Option<u64>,
    ) {
        let since = self.last_check.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < CHECK_INTERVAL) {
            return;
        }
        self.last_check = Some(now);
        let since = since.unwrap_or_default().min(MAX_CHECK_INTERVAL);
        for process in &mut self.processes {
            match heartbeat(process.id) {
                Some(same) if same == process.heartbeat => process.unchanged_for += since,
                Some(other) => {
                    (process.heartbeat, process.unchanged_for) = (other, Duration::ZERO);
                }
                None => process.unchanged_for = Duration::ZERO,
            }
        }
    }

    /// Returns what to do now.
    pub fn actions(&mut self, now: Instant) -> Vec<AdminAction> {
        let mut actions = Vec::new();
        self.kill_overdue(now, &mut actions);
        self.drain_obsolete(now, &mut actions);
        self.start_accepting(now, &mut actions);
        self.fork_if_due(now, &mut actions);
        actions
    }

    /// Drains or kills what is not wanted any more. A process serves until its successor is ready.
    fn drain_obsolete(&mut self, now: Instant, actions: &mut Vec<AdminAction>) {
        let wanted = self.wanted;
        let has_successor = self.processes.iter().any(|process| {
            process.version == wanted
                && matches!(process.state, AdminProcessState::Ready | AdminProcessState::Serving)
        });
        for process in &mut self.processes {
            let is_obsolete = wanted.is_none() || process.version != wanted;
            match process.state {
                AdminProcessState::Serving
                    if is_obsolete && (wanted.is_none() || has_successor) =>
                {
                    process.state = AdminProcessState::Draining;
                    process.deadline = Some(now + DRAIN_TIMEOUT);
                    process.accepts_until = Some(now + STOP_ACCEPTING_TIMEOUT);
                    actions.push(AdminAction::Drain(process.id));
                }
                AdminProcessState::Booting | AdminProcessState::Ready if is_obsolete => {
                    process.kill(AdminKillReason::Superseded, actions);
                }
                _ => {}
            }
        }
    }

    /// Lets the ready process accept when no other one does.
    fn start_accepting(&mut self, now: Instant, actions: &mut Vec<AdminAction>) {
        let is_accepting = |process: &AdminProcess| match process.state {
            AdminProcessState::Serving => true,
            AdminProcessState::Draining => process.accepts_until.is_some_and(|until| until > now),
            _ => false,
        };
        if self.processes.iter().any(is_accepting) {
            return;
        }
        let ready = self.processes.iter_mut().find(|one| one.state == AdminProcessState::Ready);
        if let Some(process) = ready {
            process.state = AdminProcessState::Serving;
            actions.push(AdminAction::StartAccepting(process.id));
        }
    }

    fn kill_overdue(&mut self, now: Instant, actions: &mut Vec<AdminAction>) {
        for process in &mut self.processes {
            let is_overdue = process.deadline.is_some_and(|deadline| deadline <= now);
            match process.state {
                AdminProcessState::Booting if is_overdue => {
                    process.kill(AdminKillReason::BootTimeout, actions);
                }
                AdminProcessState::Draining if is_overdue => {
                    process.kill(AdminKillReason::DrainTimeout, actions);
                }
                AdminProcessState::Ready | AdminProcessState::Serving
                    if process.unchanged_for >= STALL_TIMEOUT =>
                {
                    process.kill(AdminKillReason::Stalled, actions);
                }
                _ => {}
            }
        }
    }

    fn fork_if_due(&mut self, now: Instant, actions: &mut Vec<AdminAction>) {
        if !self.is_fork_wanted() || self.next_fork.is_some_and(|at| at > now) {
            return;
        }
        self.next_fork = None;
        self.last_id += 1;
        let id = AdminProcessId(self.last_id);
        self.processes.push(AdminProcess::new(id, self.wanted, now));
        actions.push(AdminAction::Fork(id));
    }

    /// Returns whether a process is missing and there is room for it.
    fn is_fork_wanted(&self) -> bool {
        let is_there = |process: &AdminProcess| {
            process.version == self.wanted
                // The exit of one that was killed decides when the next one is forked.
                && process.state != AdminProcessState::Draining
        };
        self.wanted.is_some()
            && !self.processes.iter().any(is_there)
            && self.processes.len() < MAX_PROCESSES
    }

    fn retry_delay(&self) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else { return Duration::ZERO };
        let max = if self.was_ready { MAX_RETRY_DELAY } else { MAX_BOOT_RETRY_DELAY };
        (FIRST_RETRY_DELAY * 2u32.pow(doublings.min(10))).min(max)
    }

    /// Returns when to call [`actions`](AdminSupervisor::actions) next, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_processes = self.processes.iter().filter_map(|process| process.deadline);
        let of_check = self.last_check.map(|last| last + CHECK_INTERVAL);
        let of_check = of_check.filter(|_| !self.processes.is_empty());
        let is_waiting = self.processes.iter().any(|one| one.state == AdminProcessState::Ready);
        let of_handover = self.processes.iter().filter_map(|process| process.accepts_until);
        let of_handover = of_handover.filter(|_| is_waiting).min();
        let of_fork = self.next_fork.filter(|_| self.is_fork_wanted());
        of_processes.chain(of_check).chain(of_handover).chain(of_fork).min()
    }

    /// Returns the process that answers, or else the one that boots, with its state.
    pub fn current(&self) -> Option<(AdminProcessId, AdminProcessState)> {
        let rank = |process: &&AdminProcess| match process.state {
            AdminProcessState::Serving => (2, process.id),
            AdminProcessState::Booting | AdminProcessState::Ready => (1, process.id),
            AdminProcessState::Draining | AdminProcessState::Killed => (0, process.id),
        };
        self.processes.iter().max_by_key(rank).map(|process| (process.id, process.state))
    }

    /// Returns the state of a process.
    pub fn state_of(&self, id: AdminProcessId) -> Option<AdminProcessState> {
        self.processes.iter().find(|process| process.id == id).map(|process| process.state)
    }

    /// Returns how many processes were forked to replace one that exited unexpectedly.
    pub fn restart_count(&self) -> u64 {
        self.restart_count
    }

    fn get_mut(&mut self, id: AdminProcessId) -> Option<&mut AdminProcess> {
        self.processes.iter_mut().find(|process| process.id == id)
    }
}

impl AdminProcess {
    fn new(id: AdminProcessId, version: Option<u64>, now: Instant) -> AdminProcess {
        AdminProcess {
            id,
            version,
            state: AdminProcessState::Booting,
            deadline: Some(now + BOOT_TIMEOUT),
            ready_at: None,
            accepts_until: None,
            killed_for: None,
            heartbeat: 0,
            unchanged_for: Duration::ZERO,
        }
    }

    fn kill(&mut self, reason: AdminKillReason, actions: &mut Vec<AdminAction>) {
        self.state = AdminProcessState::Killed;
        self.deadline = None;
        self.killed_for = Some(reason);
        actions.push(AdminAction::Kill(self.id, reason));
    }
}

impl AdminProcessState {
    /// Returns the name that the status shows.
    pub fn name(self) -> &'static str {
        match self {
            AdminProcessState::Booting | AdminProcessState::Ready => "booting",
            AdminProcessState::Serving => "serving",
            AdminProcessState::Draining => "draining",
            AdminProcessState::Killed => "killed",
        }
    }
}

impl fmt::Display for AdminKillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdminKillReason::BootTimeout => "it was not ready in time",
            AdminKillReason::DrainTimeout => "it had not drained in time",
            AdminKillReason::Stalled => "its event loop has stalled",
            AdminKillReason::Superseded => "it is not needed any more",
        })
    }
}

impl fmt::Display for AdminProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn serving(now: Instant) -> (AdminSupervisor, AdminProcessId) {
        let mut supervisor = AdminSupervisor::default();
        supervisor.set_wanted(Some(1));
        let id = forked(&mut supervisor, now);
        supervisor.on_ready(now, id);
        assert_eq!(supervisor.actions(now), [AdminAction::StartAccepting(id)]);
        (supervisor, id)
    }

    #[track_caller]
    fn forked(supervisor: &mut AdminSupervisor, now: Instant) -> AdminProcessId {
        match supervisor.actions(now)[..] {
            [AdminAction::Fork(id)] => id,
            ref actions => panic!("{actions:?}"),
        }
    }

    #[test]
    fn a_new_version_drains_the_process_only_when_its_successor_is_ready() {
        let now = Instant::now();
        let (mut supervisor, old) = serving(now);
        supervisor.set_wanted(Some(2));
        let new = forked(&mut supervisor, now);
        assert_eq!(supervisor.current(), Some((old, AdminProcessState::Serving)));
        supervisor.on_ready(now, new);
        assert_eq!(supervisor.actions(now), [AdminAction::Drain(old)]);
        supervisor.on_stopped_accepting(old);
        assert_eq!(supervisor.actions(now), [AdminAction::StartAccepting(new)]);
        assert_eq!(supervisor.current(), Some((new, AdminProcessState::Serving)));
        assert!(!supervisor.on_exited(now, old));
        assert_eq!((supervisor.actions(now), supervisor.restart_count()), (vec![], 0));
    }

    #[test]
    fn a_process_that_does_not_stop_accepting_delays_its_successor_by_a_second_only() {
        let now = Instant::now();
        let (mut supervisor, old) = serving(now);
        supervisor.set_wanted(Some(2));
        let new = forked(&mut supervisor, now);
        supervisor.on_ready(now, new);
        assert_eq!(supervisor.actions(now), [AdminAction::Drain(old)]);
        let later = supervisor.next_deadline().expect("the end of the wait");
        assert!(later <= now + SECOND);
        assert_eq!(supervisor.actions(later), [AdminAction::StartAccepting(new)]);
    }

    #[test]
    fn a_successor_that_cannot_boot_leaves_the_old_process_serving_and_is_retried_ever_later() {
        let mut now = Instant::now();
        let (mut supervisor, old) = serving(now);
        supervisor.set_wanted(Some(2));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let since = now;
            while !matches!(supervisor.actions(now)[..], [AdminAction::Fork(_)]) {
                now = supervisor.next_deadline().expect("a retry").max(now);
            }
            waits.push(now - since);
            let (id, _) = *supervisor
                .processes
                .iter()
                .map(|process| (process.id, process.state))
                .collect::<Vec<_>>()
                .last()
                .expect("forked");
            assert!(supervisor.on_exited(now, id));
        }
        assert_eq!(waits[..4], [0, 0, 100, 200].map(Duration::from_millis));
        assert_eq!(waits[11], MAX_BOOT_RETRY_DELAY);
        assert_eq!(supervisor.current(), Some((old, AdminProcessState::Serving)));
    }

    #[test]
    fn a_killed_process_is_forked_again_at_once_and_in_a_storm_within_a_second() {
        let mut now = Instant::now();
        let (mut supervisor, mut id) = serving(now);
        now += SECOND;
        for round in 0..20 {
            assert!(supervisor.on_exited(now, id));
            if round > 0 {
                let next = supervisor.next_deadline().expect("a retry");
                assert!(next <= now + SECOND, "{round}");
                now = next.max(now);
            }
            id = forked(&mut supervisor, now);
            supervisor.on_ready(now, id);
            assert_eq!(supervisor.actions(now), [AdminAction::StartAccepting(id)]);
        }
        assert_eq!(supervisor.restart_count(), 20);
    }

    #[test]
    fn processes_that_boot_drain_or_stall_for_too_long_are_killed() {
        let now = Instant::now();
        let mut supervisor = AdminSupervisor::default();
        supervisor.set_wanted(Some(1));
        let id = forked(&mut supervisor, now);
        let late = supervisor.next_deadline().expect("the boot timeout");
        let killed = [AdminAction::Kill(id, AdminKillReason::BootTimeout)];
        assert_eq!(supervisor.actions(late), killed);
        assert!(supervisor.on_exited(late, id), "it counts as a failure");

        let (mut supervisor, id) = serving(now);
        supervisor.set_wanted(None);
        assert_eq!(supervisor.actions(now), [AdminAction::Drain(id)]);
        let late = supervisor.next_deadline().expect("the drain timeout");
        let killed = [AdminAction::Kill(id, AdminKillReason::DrainTimeout)];
        assert_eq!(supervisor.actions(late), killed);
        assert!(!supervisor.on_exited(late, id));
        assert_eq!((supervisor.actions(late), supervisor.next_deadline()), (vec![], None));

        let (mut supervisor, id) = serving(now);
        let mut checked = now;
        for _ in 0..=STALL_TIMEOUT.as_secs() {
            assert!(supervisor.actions(checked).is_empty());
            checked += SECOND;
            supervisor.check_heartbeats(checked, |_| Some(7));
        }
        checked += SECOND;
        supervisor.check_heartbeats(checked, |_| Some(7));
        let killed = [AdminAction::Kill(id, AdminKillReason::Stalled)];
        assert_eq!(supervisor.actions(checked), killed);
    }

    #[test]
    fn a_primary_that_was_stopped_does_not_take_its_own_pause_for_a_stall() {
        let now = Instant::now();
        let (mut supervisor, _) = serving(now);
        supervisor.check_heartbeats(now, |_| Some(7));
        let much_later = now + Duration::from_secs(3600);
        supervisor.check_heartbeats(much_later, |_| Some(7));
        assert!(supervisor.actions(much_later).is_empty());
    }

    #[test]
    fn a_process_of_the_previous_image_serves_until_its_successor_is_ready() {
        let now = Instant::now();
        let mut supervisor = AdminSupervisor::default();
        let old = AdminProcessId(7);
        supervisor.add_inherited(old, AdminProcessState::Serving, now);
        supervisor.set_wanted(Some(1));
        let new = forked(&mut supervisor, now);
        assert_eq!(new, AdminProcessId(8));
        supervisor.on_ready(now, new);
        assert_eq!(supervisor.actions(now), [AdminAction::Drain(old)]);
        assert!(!supervisor.on_exited(now, old));
        assert_eq!(supervisor.actions(now), [AdminAction::StartAccepting(new)]);
    }
}
