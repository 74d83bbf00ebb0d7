use super::*;
use crate::isolated::Priority;

const CALLER: WorkerId = WorkerId(1);
const OTHER_CALLER: WorkerId = WorkerId(2);
const FIRST_WORKER: WorkerId = WorkerId(8);
const SECOND_WORKER: WorkerId = WorkerId(9);

impl IsolatedJobScheduler {
    /// Adds a process in a slot of its own.
    fn add_idle_worker(&mut self, worker: WorkerId) {
        self.add_process(worker, Slot(worker.0 as u32), None, Instant::now());
    }
}

fn pool_config() -> IsolatedPoolConfig {
    IsolatedPoolConfig::new("thumbnails", 2).queue(2).deadline(Duration::from_secs(10))
}

fn create_scheduler(config: &IsolatedPoolConfig) -> (IsolatedJobScheduler, Instant) {
    let mut scheduler = IsolatedJobScheduler::new(config);
    scheduler.add_idle_worker(FIRST_WORKER);
    (scheduler, Instant::now())
}

fn key(token: u64) -> JobKey {
    JobKey { caller: CALLER, token }
}

fn input_of(token: u64) -> JobPayload {
    JobPayload { bytes: token.to_string().into(), attached: None }
}

fn submission(token: u64) -> JobSubmission {
    JobSubmission {
        token,
        limit_ms: Some(1000),
        priority: Priority::Normal,
        is_detached: false,
        waits_for_room: false,
    }
}

fn ended(to: JobKey, outcome: JobOutcome) -> SchedulerAction {
    SchedulerAction::SendReply { to, event: JobEvent::Ended(outcome), value: JobPayload::default() }
}

fn start_jobs(scheduler: &mut IsolatedJobScheduler, now: Instant) -> Vec<SchedulerAction> {
    scheduler.start_queued_jobs(now, &|_| true)
}

/// Submits a job, and returns all actions.
fn submit(
    scheduler: &mut IsolatedJobScheduler,
    job: JobSubmission,
    now: Instant,
) -> Vec<SchedulerAction> {
    let refused = scheduler.submit(CALLER, job, input_of(job.token), now);
    refused.into_iter().chain(start_jobs(scheduler, now)).collect()
}

/// Returns process, job id and token of the jobs that are started.
fn started(actions: &[SchedulerAction]) -> Vec<(WorkerId, IsolatedJobId, u64)> {
    let starts = actions.iter().filter_map(|action| match action {
        SchedulerAction::StartJob { worker, job, input, .. } => {
            let token = std::str::from_utf8(&input.bytes).ok()?.parse().ok()?;
            Some((*worker, *job, token))
        }
        _ => None,
    });
    starts.collect()
}

fn died(begun_job: IsolatedJobId) -> IsolatedWorkerExit {
    IsolatedWorkerExit { begun_job, signal: Some(11), ..IsolatedWorkerExit::default() }
}

const DIED: JobOutcome = JobOutcome::Died { code: None, signal: Some(11) };

#[test]
fn a_process_runs_one_job_at_a_time_and_others_are_queued_in_order() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    assert_eq!(started(&submit(&mut scheduler, submission(1), now)), [(FIRST_WORKER, 1, 1)]);
    assert!(submit(&mut scheduler, submission(2), now).is_empty());
    assert!(submit(&mut scheduler, submission(3), now).is_empty());
    let refused = submit(&mut scheduler, submission(4), now);
    assert_eq!(refused, [ended(key(4), JobOutcome::Full)]);
    let output = input_of(100);
    let mut complete =
        |worker, id| scheduler.complete_job(worker, id, JobOutcome::Done, output.clone(), now);
    assert_eq!(complete(SECOND_WORKER, 1), None, "another process");
    assert_eq!(complete(FIRST_WORKER, 7), None, "another job");
    let (event, value) = (JobEvent::Ended(JobOutcome::Done), output.clone());
    assert_eq!(
        complete(FIRST_WORKER, 1),
        Some(SchedulerAction::SendReply { to: key(1), event, value })
    );
    assert_eq!(complete(FIRST_WORKER, 1), None, "a second end");
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(FIRST_WORKER, 2, 2)]);
}

#[test]
fn the_inputs_of_queued_jobs_are_bounded_in_bytes() {
    let (mut scheduler, now) = create_scheduler(&pool_config().queue_bytes(3));
    let job = |token| JobSubmission { token, ..submission(0) };
    assert_eq!(started(&submit(&mut scheduler, job(1000), now)).len(), 1);
    assert!(submit(&mut scheduler, job(1001), now).is_empty(), "alone it may have any size");
    assert_eq!(submit(&mut scheduler, job(1), now), [ended(key(1), JobOutcome::Full)]);
}

#[test]
fn a_process_about_to_exit_gets_no_job() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    scheduler.submit(CALLER, submission(1), input_of(1), now);
    assert!(scheduler.start_queued_jobs(now, &|_| false).is_empty());
    scheduler.add_idle_worker(SECOND_WORKER);
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(SECOND_WORKER, 1, 1)]);
}

#[test]
fn only_the_caller_of_the_job_is_told_when_its_process_dies() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    assert_eq!(scheduler.handle_worker_exit(FIRST_WORKER, died(1), now), [ended(key(1), DIED)]);
    assert!(scheduler.handle_worker_exit(FIRST_WORKER, died(1), now).is_empty());
    scheduler.add_idle_worker(SECOND_WORKER);
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(SECOND_WORKER, 2, 2)]);
}

#[test]
fn only_a_job_that_had_not_begun_is_given_to_another_process() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    assert!(scheduler.handle_worker_exit(FIRST_WORKER, died(0), now).is_empty());
    scheduler.add_idle_worker(SECOND_WORKER);
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(SECOND_WORKER, 2, 1)], "before job 2");
    // A process that ends with status 0 in a reload.
    let left = IsolatedWorkerExit { begun_job: 2, code: Some(0), ..IsolatedWorkerExit::default() };
    let outcome = JobOutcome::Died { code: Some(0), signal: None };
    assert_eq!(scheduler.handle_worker_exit(SECOND_WORKER, left, now), [ended(key(1), outcome)]);
}

#[test]
fn a_job_whose_processes_end_before_it_begins_is_given_up() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    for _ in 1..MAX_FAILED_STARTS {
        assert!(scheduler.handle_worker_exit(FIRST_WORKER, died(0), now).is_empty());
        scheduler.add_idle_worker(FIRST_WORKER);
        assert_eq!(started(&start_jobs(&mut scheduler, now)).len(), 1);
    }
    let actions = scheduler.handle_worker_exit(FIRST_WORKER, died(0), now);
    let [SchedulerAction::SendReply { event: JobEvent::Ended(outcome), .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert!(matches!(outcome, JobOutcome::Transfer { value: JobValue::Input, .. }), "{outcome:?}");
}

#[test]
fn a_job_is_cut_if_its_process_is_killed_by_a_drain() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    let killed = IsolatedWorkerExit { is_drain_kill: true, ..died(1) };
    let actions = scheduler.handle_worker_exit(FIRST_WORKER, killed, now);
    assert_eq!(actions, [ended(key(1), JobOutcome::Cut)]);
}

#[test]
fn jobs_past_their_deadline_time_out_and_their_process_is_killed() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    let late = now + Duration::from_secs(1);
    assert_eq!(
        (scheduler.next_deadline(), scheduler.expire_jobs(now, &|_| 1)),
        (Some(late), vec![])
    );
    let timed_out = |token, has_begun| ended(key(token), JobOutcome::TimedOut { has_begun });
    let kill = SchedulerAction::KillWorker { worker: FIRST_WORKER, reason: KillReason::TimedOut };
    let actions = scheduler.expire_jobs(late, &|_| 1);
    assert_eq!(actions, [timed_out(2, false), kill, timed_out(1, true)]);
    assert_eq!(scheduler.next_deadline(), None);
    assert!(scheduler.handle_worker_exit(FIRST_WORKER, died(1), late).is_empty());
}

#[test]
fn the_exit_tells_whether_a_job_that_timed_out_had_begun() {
    for begun_job in [0, 1] {
        let (mut scheduler, now) = create_scheduler(&pool_config());
        submit(&mut scheduler, submission(1), now);
        let late = now + Duration::from_secs(1);
        let killed = scheduler.expire_jobs(late, &|_| 0);
        assert!(matches!(killed[..], [SchedulerAction::KillWorker { .. }]), "{killed:?}");
        let outcome = JobOutcome::TimedOut { has_begun: begun_job == 1 };
        let actions = scheduler.handle_worker_exit(FIRST_WORKER, died(begun_job), late);
        assert_eq!(actions, [ended(key(1), outcome)]);
    }
}

#[test]
fn the_deadline_of_the_pool_limits_the_timeout_of_the_caller() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    for limit_ms in [Some(3_600_000), None] {
        submit(&mut scheduler, JobSubmission { limit_ms, ..submission(1) }, now);
        assert_eq!(scheduler.next_deadline(), Some(now + Duration::from_secs(10)));
        scheduler.handle_worker_exit(FIRST_WORKER, died(1), now);
        scheduler.add_idle_worker(FIRST_WORKER);
    }
}

#[test]
fn the_primary_passes_on_no_value_above_the_limit_of_its_pool() {
    let (mut scheduler, now) = create_scheduler(&pool_config().max_payload_bytes(1000));
    let value_of = |length: usize| JobPayload { bytes: vec![0; length].into(), attached: None };
    for (token, outcome) in [(1, JobOutcome::Done), (2, JobOutcome::Failed)] {
        submit(&mut scheduler, submission(token), now);
        assert_eq!(scheduler.report_progress(FIRST_WORKER, token, value_of(2000)), None);
        assert!(scheduler.report_progress(FIRST_WORKER, token, value_of(1002)).is_some());
        let end = scheduler.complete_job(FIRST_WORKER, token, outcome, value_of(2000), now);
        let (value, size, most) = (JobValue::Output, 2000, 1000);
        assert_eq!(end, Some(ended(key(token), JobOutcome::TooLarge { value, size, most })));
    }
}

#[test]
fn an_abandoned_job_is_not_begun_and_the_process_of_a_running_one_is_killed() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    assert_eq!(scheduler.abandon(JobKey { caller: OTHER_CALLER, token: 1 }), None);
    assert_eq!(scheduler.abandon(key(2)), None);
    let reason = KillReason::Abandoned;
    let kill = SchedulerAction::KillWorker { worker: FIRST_WORKER, reason };
    assert_eq!(scheduler.abandon(key(1)), Some(kill));
    assert_eq!(scheduler.abandon(key(1)), None, "it is killed once");
    assert!(scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, input_of(1), now).is_none());
    assert!(start_jobs(&mut scheduler, now).is_empty(), "the process is being killed");
    assert!(scheduler.handle_worker_exit(FIRST_WORKER, died(1), now).is_empty());
    assert_eq!(scheduler.status("danger", now).abandoned, 2);
}

#[test]
fn an_abandoned_job_may_be_allowed_to_finish() {
    let (mut scheduler, now) = create_scheduler(&pool_config().on_abandon(OnAbandon::Finish));
    submit(&mut scheduler, submission(1), now);
    assert_eq!(scheduler.abandon(key(1)), None);
    assert_eq!(scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, input_of(1), now), None);
    submit(&mut scheduler, submission(2), now);
    assert_eq!(scheduler.status("danger", now).running, 1, "the process lives");
}

#[test]
fn the_jobs_of_a_dead_caller_are_abandoned_unless_they_are_detached() {
    let (mut scheduler, now) = create_scheduler(&pool_config().queue(4));
    let detached = |token| JobSubmission { is_detached: true, ..submission(token) };
    submit(&mut scheduler, submission(1), now);
    for job in [submission(2), detached(3), submission(4)] {
        submit(&mut scheduler, job, now);
    }
    scheduler.detach(key(4));
    let actions = scheduler.handle_worker_exit(CALLER, died(0), now);
    let reason = KillReason::Abandoned;
    assert_eq!(actions, [SchedulerAction::KillWorker { worker: FIRST_WORKER, reason }]);
    for worker in [SECOND_WORKER, WorkerId(10), WorkerId(11)] {
        scheduler.add_idle_worker(worker);
    }
    let started = started(&start_jobs(&mut scheduler, now));
    assert_eq!(started, [(SECOND_WORKER, 2, 3), (WorkerId(10), 3, 4)]);
    let done = scheduler.complete_job(SECOND_WORKER, 2, JobOutcome::Done, input_of(3), now);
    assert_eq!(done, None, "nobody waits for it");
}

#[test]
fn jobs_start_by_priority_and_in_turns_among_their_callers() {
    let (mut scheduler, now) = create_scheduler(&pool_config().queue(16));
    submit(&mut scheduler, submission(0), now);
    for token in 1..=3 {
        submit(&mut scheduler, submission(token), now);
    }
    for token in [11, 12] {
        scheduler.submit(OTHER_CALLER, submission(token), input_of(token), now);
    }
    for (token, priority) in [(20, Priority::Low), (21, Priority::High)] {
        submit(&mut scheduler, JobSubmission { priority, ..submission(token) }, now);
    }
    let mut order = Vec::new();
    for id in 1..=7 {
        scheduler.complete_job(FIRST_WORKER, id, JobOutcome::Done, JobPayload::default(), now);
        order.extend(started(&start_jobs(&mut scheduler, now)).iter().map(|one| one.2));
    }
    assert_eq!(order, [21, 1, 11, 2, 12, 3, 20]);
}

#[test]
fn jobs_wait_for_room_in_order_and_their_inputs_are_asked_for() {
    let (mut scheduler, now) = create_scheduler(&pool_config().queue(1));
    let waiting = |token| JobSubmission { waits_for_room: true, ..submission(token) };
    submit(&mut scheduler, submission(1), now);
    for token in [2, 3, 4] {
        assert!(submit(&mut scheduler, waiting(token), now).is_empty());
    }
    assert_eq!(submit(&mut scheduler, submission(5), now), [ended(key(5), JobOutcome::Full)]);
    scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, JobPayload::default(), now);
    let actions = start_jobs(&mut scheduler, now);
    assert_eq!(started(&actions), [(FIRST_WORKER, 2, 2)]);
    let asked = SchedulerAction::SendReply {
        to: key(3),
        event: JobEvent::SendInput,
        value: JobPayload::default(),
    };
    assert_eq!(actions[1..], [asked]);
    assert_eq!(submit(&mut scheduler, submission(6), now), [ended(key(6), JobOutcome::Full)]);
    scheduler.provide_input(key(4), input_of(4), now);
    scheduler.provide_input(key(3), input_of(3), now);
    assert_eq!(scheduler.status("danger", now).depth, 1, "what was not asked for is dropped");
    let late = now + Duration::from_secs(1);
    let outcomes = scheduler.expire_jobs(late, &|_| 2);
    let timed_out = |token| ended(key(token), JobOutcome::TimedOut { has_begun: false });
    assert_eq!(outcomes[..2], [timed_out(3), timed_out(4)]);
}

#[test]
fn progress_is_passed_on_to_the_caller_of_the_running_job_only() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    let value = input_of(50);
    let (to, event) = (key(1), JobEvent::Progress);
    let report = SchedulerAction::SendReply { to, event, value: value.clone() };
    assert_eq!(scheduler.report_progress(FIRST_WORKER, 1, value.clone()), Some(report));
    assert_eq!(scheduler.report_progress(FIRST_WORKER, 2, value.clone()), None);
    assert_eq!(scheduler.report_progress(SECOND_WORKER, 1, value), None);
}

#[test]
fn a_stop_refuses_queued_jobs_and_lets_running_ones_finish() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    assert_eq!(scheduler.close(), [ended(key(2), JobOutcome::Closed)]);
    assert_eq!(submit(&mut scheduler, submission(3), now), [ended(key(3), JobOutcome::Closed)]);
    let done = scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, input_of(1), now);
    assert!(done.is_some());
}

#[test]
fn a_restored_scheduler_runs_the_jobs_of_old_callers_in_old_and_new_processes() {
    let (mut old, now) = create_scheduler(&pool_config());
    for token in 1..=3 {
        submit(&mut old, submission(token), now);
    }
    let saved = old.save("thumbnails", now, &mut Vec::new());
    let (mut scheduler, now) = create_scheduler(&pool_config());
    scheduler.processes.remove(FIRST_WORKER);
    let first_own = WorkerId(20);
    scheduler.restore(saved, first_own, now);
    let done = scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, input_of(9), now);
    assert!(
        matches!(done, Some(SchedulerAction::SendReply { to, .. }) if to == key(1)),
        "{done:?}"
    );
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(FIRST_WORKER, 2, 2)]);
    // A new process runs old jobs, but an old process no new ones.
    scheduler.add_idle_worker(WorkerId(21));
    assert_eq!(started(&start_jobs(&mut scheduler, now)), [(WorkerId(21), 3, 3)]);
    scheduler.complete_job(FIRST_WORKER, 2, JobOutcome::Done, input_of(9), now);
    scheduler.submit(WorkerId(22), submission(4), input_of(4), now);
    assert!(start_jobs(&mut scheduler, now).is_empty());
}

#[test]
fn a_process_is_idle_again_after_a_job_whose_caller_is_forgotten() {
    let (mut scheduler, now) = create_scheduler(&pool_config());
    submit(&mut scheduler, submission(1), now);
    submit(&mut scheduler, submission(2), now);
    scheduler.forget_callers();
    let done = scheduler.complete_job(FIRST_WORKER, 1, JobOutcome::Done, input_of(9), now);
    assert_eq!(done, None);
    assert_eq!(started(&submit(&mut scheduler, submission(3), now)), [(FIRST_WORKER, 2, 3)]);
}

#[test]
fn the_deadline_of_a_job_survives_an_upgrade() {
    let (mut old, now) = create_scheduler(&pool_config());
    submit(&mut old, submission(1), now);
    let saved = old.save("thumbnails", now + Duration::from_millis(400), &mut Vec::new());
    let (mut scheduler, now) = create_scheduler(&pool_config());
    scheduler.restore(saved, WorkerId(20), now);
    assert_eq!(scheduler.next_deadline(), Some(now + Duration::from_millis(600)));
}
