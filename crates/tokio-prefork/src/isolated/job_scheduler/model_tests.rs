//! Runs a scheduler in a simulated cluster with random callers, processes and faults, and checks its laws after each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::isolated::{Priority, SavedIsolatedJobs};

/// Seeds per run of this test, with as many steps each.
const SEEDS: u64 = 400;
const STEPS: usize = 400;

/// A small generator (xorshift), as the standard library has none.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.next(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.collect();
        (!all.is_empty()).then(|| all[self.next(all.len())])
    }
}

/// What the world knows about a job, independently of the scheduler.
#[derive(Debug, Default)]
struct JobRecord {
    begun: u32,
    outcomes: Vec<JobOutcome>,
    /// Whether nobody waits for it: abandoned, detached, or its caller is dead.
    is_unwatched: bool,
}

/// An isolated process.
#[derive(Debug, Default)]
struct Process {
    /// The jobs that it was sent and has not begun.
    inbox: VecDeque<(IsolatedJobId, JobKey)>,
    running: Option<(IsolatedJobId, JobKey)>,
    begun_job: IsolatedJobId,
    /// Reports that the primary has not handled.
    reports: VecDeque<(IsolatedJobId, JobOutcome)>,
    is_killed: bool,
    is_draining: bool,
}

struct World {
    random: Random,
    config: IsolatedPoolConfig,
    scheduler: IsolatedJobScheduler,
    now: Instant,
    callers: BTreeSet<WorkerId>,
    processes: BTreeMap<WorkerId, Process>,
    /// The most processes at a time so far.
    most_processes: usize,
    next_worker: u64,
    next_token: u64,
    jobs: BTreeMap<JobKey, JobRecord>,
    /// The jobs whose input the primary has asked for.
    asked: Vec<JobKey>,
    submitted: u64,
}

fn payload_of(key: JobKey) -> JobPayload {
    JobPayload { bytes: format!("{}/{}", key.caller.0, key.token).into(), attached: None }
}

fn key_of(payload: &JobPayload) -> JobKey {
    let text = std::str::from_utf8(&payload.bytes).expect("text");
    let (caller, token) = text.split_once('/').expect("a key");
    let number = |text: &str| text.parse().expect("a number");
    JobKey { caller: WorkerId(number(caller)), token: number(token) }
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let on_abandon = if random.one_in(3) { OnAbandon::Finish } else { OnAbandon::Kill };
        let min = if random.one_in(2) { 3 } else { random.next(3) as u32 };
        let mut config = IsolatedPoolConfig::new("model", min..=3)
            .idle_timeout(Duration::from_millis(random.next(200) as u64))
            .queue(random.next(6))
            .queue_bytes(20 + random.next(40))
            .deadline(Duration::from_millis(500))
            .on_abandon(on_abandon);
        if random.one_in(3) {
            config = config.max_jobs(1 + random.next(3) as u64);
        }
        let scheduler = IsolatedJobScheduler::new(&config);
        let mut world = World {
            random,
            config,
            scheduler,
            now: Instant::now(),
            callers: BTreeSet::new(),
            processes: BTreeMap::new(),
            most_processes: 0,
            next_worker: 1,
            next_token: 1,
            jobs: BTreeMap::new(),
            asked: Vec::new(),
            submitted: 0,
        };
        for _ in 0..3 {
            world.add_caller();
            world.add_process();
        }
        world
    }

    fn new_worker(&mut self) -> WorkerId {
        self.next_worker += 1;
        WorkerId(self.next_worker)
    }

    fn add_caller(&mut self) {
        let caller = self.new_worker();
        self.callers.insert(caller);
    }

    fn add_process(&mut self) {
        let worker = self.new_worker();
        self.processes.insert(worker, Process::default());
        self.most_processes = self.most_processes.max(self.processes.len());
        self.scheduler.add_process(worker, Slot(worker.0 as u32), None, self.now);
        self.perform([]);
    }

    /// Performs actions, and starts queued jobs, as the primary does.
    fn perform(&mut self, actions: impl IntoIterator<Item = SchedulerAction>) {
        for action in actions {
            self.perform_one(action);
        }
        let serving: BTreeSet<WorkerId> = self
            .processes
            .iter()
            .filter(|(_, process)| !process.is_draining && !process.is_killed)
            .map(|(worker, _)| *worker)
            .collect();
        let actions =
            self.scheduler.start_queued_jobs(self.now, &|worker| serving.contains(&worker));
        let request = self.scheduler.request_processes(serving.len() as u32);
        for action in actions.into_iter().chain(request) {
            self.perform_one(action);
        }
        self.check_sums();
    }

    fn perform_one(&mut self, action: SchedulerAction) {
        match action {
            SchedulerAction::StartJob { worker, job, input, .. } => {
                let process =
                    self.processes.get_mut(&worker).expect("a job for a process that lives");
                assert!(!process.is_draining && !process.is_killed, "{worker:?} leaves");
                process.inbox.push_back((job, key_of(&input)));
            }
            SchedulerAction::SendReply { to, event: JobEvent::SendInput, .. } => {
                self.asked.push(to)
            }
            SchedulerAction::SendReply { to, event: JobEvent::Ended(outcome), .. } => {
                let record = self.jobs.get_mut(&to).expect("a known job");
                record.outcomes.push(outcome);
                assert_eq!(record.outcomes.len(), 1, "{to:?} has several outcomes: {record:?}");
                check_begun(to, record);
            }
            SchedulerAction::SendReply { .. } => {}
            SchedulerAction::KillWorker { worker, .. } => {
                let process = self.processes.get_mut(&worker).expect("a living process is killed");
                assert!(!process.is_killed, "{worker:?} is killed twice");
                process.is_killed = true;
            }
            SchedulerAction::RequestProcesses(count) => assert!(count <= 3, "{count} processes"),
            SchedulerAction::EndIdleProcess(worker) => {
                let is_kept = self.random.one_in(2);
                let process = self.processes.get_mut(&worker).expect("a living process ends");
                assert!(
                    process.inbox.is_empty() && process.running.is_none(),
                    "{worker:?} {process:?}"
                );
                match is_kept {
                    true => self.scheduler.keep_idle_process(worker, self.now),
                    false => process.is_draining = true,
                }
            }
            SchedulerAction::ReplaceProcess { worker, .. } => {
                let process = self.processes.get_mut(&worker).expect("a living process ends");
                let is_between_jobs = process.inbox.is_empty() && process.running.is_none();
                // One that drains already may have reported that its job is cut.
                assert!(is_between_jobs || process.is_draining, "{worker:?} {process:?}");
                process.is_draining = true;
            }
        }
    }

    fn check_sums(&self) {
        let status = self.scheduler.status("danger", self.now);
        let open = status.depth + status.waiting_for_room + status.running;
        assert_eq!(status.submitted, self.submitted);
        assert_eq!(status.submitted, status.ended() + open, "{status:?}");
        // Jobs for idle processes come on top of the queue, and so do those whose process ended before they began.
        let most = self.config.queue + 2 * self.most_processes;
        assert!(status.depth <= most as u64, "{status:?}");
    }

    fn submit(&mut self) {
        let Some(caller) = self.random.pick(self.callers.iter().copied()) else { return };
        self.next_token += 1;
        let key = JobKey { caller, token: self.next_token };
        let random = &mut self.random;
        let job = JobSubmission {
            token: key.token,
            limit_ms: random.one_in(2).then(|| random.next(400) as u64),
            priority: [Priority::High, Priority::Normal, Priority::Low][random.next(3)],
            is_detached: random.one_in(8),
            waits_for_room: random.one_in(3),
        };
        let record = JobRecord { is_unwatched: job.is_detached, ..JobRecord::default() };
        self.jobs.insert(key, record);
        self.submitted += 1;
        let action = self.scheduler.submit(caller, job, payload_of(key), self.now);
        self.perform(action);
    }

    fn provide_input(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let key = self.asked.remove(self.random.next(self.asked.len()));
        if self.callers.contains(&key.caller) {
            self.scheduler.provide_input(key, payload_of(key), self.now);
            self.perform([]);
        }
    }

    fn unwatch(&mut self) {
        let watched =
            self.jobs.iter().filter(|(_, job)| !job.is_unwatched && job.outcomes.is_empty());
        let Some(key) = self.random.pick(watched.map(|(key, _)| *key)) else { return };
        self.jobs.get_mut(&key).expect("known").is_unwatched = true;
        let action = match self.random.one_in(3) {
            true => self.scheduler.detach(key),
            false => self.scheduler.abandon(key),
        };
        self.perform(action);
    }

    fn kill_caller(&mut self) {
        let Some(caller) = self.random.pick(self.callers.iter().copied()) else { return };
        self.callers.remove(&caller);
        let own = self.jobs.iter_mut().filter(|(key, _)| key.caller == caller);
        own.for_each(|(_, job)| job.is_unwatched = true);
        let exit = IsolatedWorkerExit { signal: Some(9), ..IsolatedWorkerExit::default() };
        let actions = self.scheduler.handle_worker_exit(caller, exit, self.now);
        self.perform(actions);
        self.add_caller();
    }

    fn pick_process(&mut self) -> Option<WorkerId> {
        self.random.pick(self.processes.keys().copied())
    }

    fn begin_job(&mut self) {
        let Some(worker) = self.pick_process() else { return };
        let process = self.processes.get_mut(&worker).expect("known");
        if process.running.is_some() {
            return;
        }
        let Some((id, key)) = process.inbox.pop_front() else { return };
        (process.running, process.begun_job) = (Some((id, key)), id);
        let record = self.jobs.get_mut(&key).expect("a known job");
        record.begun += 1;
        assert_eq!(record.begun, 1, "{key:?} begins twice: {record:?}");
        check_begun(key, record);
    }

    fn end_job(&mut self) {
        let outcomes = [
            JobOutcome::Done,
            JobOutcome::Failed,
            JobOutcome::Panicked { message: String::new(), location: None },
        ];
        let outcome = outcomes[self.random.next(3)].clone();
        let Some(worker) = self.pick_process() else { return };
        let process = self.processes.get_mut(&worker).expect("known");
        if let Some((id, _)) = process.running.take() {
            process.reports.push_back((id, outcome));
        }
    }

    fn handle_report(&mut self, worker: WorkerId) -> bool {
        let process = self.processes.get_mut(&worker).expect("known");
        let Some((id, outcome)) = process.reports.pop_front() else { return false };
        let action =
            self.scheduler.complete_job(worker, id, outcome, JobPayload::default(), self.now);
        let replacement = self.scheduler.replace_if_used_up(worker, None);
        self.perform(action.into_iter().chain(replacement));
        true
    }

    /// Ends a process in one of many ways. Its reports are handled first, as the primary does.
    fn end_process(&mut self, worker: WorkerId) {
        let process = self.processes.get_mut(&worker).expect("known");
        let mut is_drain_kill = false;
        if process.is_draining && !process.is_killed {
            // At the drain deadline it reports its job as cut, or is killed before it can.
            is_drain_kill = self.random.one_in(2);
            if let Some((id, _)) = process.running.filter(|_| !is_drain_kill) {
                process.reports.push_back((id, JobOutcome::Cut));
            }
        }
        while self.handle_report(worker) {}
        let begun_job = self.processes.remove(&worker).expect("known").begun_job;
        let (code, signal) =
            [(Some(0), None), (Some(37), None), (None, Some(11))][self.random.next(3)];
        let exit = IsolatedWorkerExit { begun_job, is_drain_kill, code, signal, exceeded: None };
        let actions = self.scheduler.handle_worker_exit(worker, exit, self.now);
        self.perform(actions);
    }

    fn pass_time(&mut self, ms: usize) {
        self.now += Duration::from_millis(ms as u64);
        // The end of an idle process may make another one the next to end.
        for _ in 0..5 {
            self.expire_jobs();
        }
        let next = self.scheduler.next_deadline();
        assert!(next.is_none_or(|at| at > self.now), "a late job is left");
    }

    fn expire_jobs(&mut self) {
        let begun: BTreeMap<WorkerId, IsolatedJobId> =
            self.processes.iter().map(|(worker, process)| (*worker, process.begun_job)).collect();
        let actions = self
            .scheduler
            .expire_jobs(self.now, &|worker| begun.get(&worker).copied().unwrap_or(0));
        self.perform(actions);
    }

    fn upgrade(&mut self) {
        let pools = vec![self.scheduler.save("model", self.now, &mut Vec::new())];
        let bytes =
            SavedIsolatedJobs { pools, unsent_replies: Vec::new() }.encode().expect("encodes");
        let mut saved = SavedIsolatedJobs::decode(&bytes).expect("decodes");
        self.scheduler = IsolatedJobScheduler::new(&self.config);
        let first_own = WorkerId(self.next_worker + 1);
        self.scheduler.restore(saved.pools.remove(0), first_own, self.now);
        for _ in 0..2 {
            self.add_caller();
            self.add_process();
        }
        self.perform([]);
    }

    fn step(&mut self) {
        match self.random.next(100) {
            0..=29 => self.submit(),
            30..=34 => self.provide_input(),
            35..=54 => self.begin_job(),
            55..=69 => self.end_job(),
            70..=79 => {
                if let Some(worker) = self.pick_process() {
                    self.handle_report(worker);
                }
            }
            80..=82 => {
                if let Some(worker) = self.pick_process() {
                    self.end_process(worker);
                    self.add_process();
                }
            }
            83 => {
                if let Some(worker) = self.pick_process() {
                    self.processes.get_mut(&worker).expect("known").is_draining = true;
                }
            }
            84..=86 => self.unwatch(),
            87 => self.kill_caller(),
            88 if self.random.one_in(4) => self.upgrade(),
            89 if self.random.one_in(60) => {
                let actions = self.scheduler.close();
                self.perform(actions);
            }
            _ => {
                let ms = self.random.next(60);
                self.pass_time(ms);
            }
        }
        // The signal arrives some time later.
        let killed = self.processes.iter().filter(|(_, process)| process.is_killed);
        let killed: Vec<WorkerId> = killed.map(|(worker, _)| *worker).collect();
        for worker in killed {
            if self.random.one_in(3) {
                self.end_process(worker);
                self.add_process();
            }
        }
    }

    /// Ends everything, and checks that each job that somebody waits for has exactly one outcome.
    fn finish(mut self) {
        self.pass_time(600_000);
        for worker in self.processes.keys().copied().collect::<Vec<_>>() {
            self.end_process(worker);
        }
        self.pass_time(600_000);
        let actions = self.scheduler.close();
        self.perform(actions);
        for (key, record) in &self.jobs {
            assert!(record.outcomes.len() <= 1 && record.begun <= 1, "{key:?} {record:?}");
            assert!(
                record.is_unwatched || record.outcomes.len() == 1,
                "{key:?} has no outcome: {record:?}"
            );
        }
        let status = self.scheduler.status("danger", self.now);
        assert_eq!(status.ended(), self.submitted, "{status:?}");
        assert_eq!((status.depth, status.waiting_for_room, status.queued_bytes), (0, 0, 0));
    }
}

/// Checks that the outcome of a job tells whether it has begun.
fn check_begun(key: JobKey, record: &JobRecord) {
    let Some(outcome) = record.outcomes.first() else { return };
    let expected = match outcome {
        JobOutcome::Full | JobOutcome::Closed => false,
        JobOutcome::TimedOut { has_begun } => *has_begun,
        JobOutcome::Transfer { value, .. } | JobOutcome::TooLarge { value, .. } => {
            *value == JobValue::Output
        }
        _ => true,
    };
    assert_eq!(record.begun > 0, expected, "{key:?} {record:?}");
}

#[test]
fn each_job_begins_at_most_once_and_gets_one_true_outcome_whatever_happens() {
    let seed_of_failure =
        std::env::var("PREFORK_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in seed_of_failure.map_or(1..SEEDS + 1, |seed: u64| seed..seed + 1) {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.finish();
        });
        assert!(run.is_ok(), "PREFORK_MODEL_SEED={seed} repeats this");
    }
}
