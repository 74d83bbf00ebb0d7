//! An isolated process: runs the jobs of its pool one after the other, on a thread beside its event loop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::local_state::LocalWorkerState;
use super::{BootedApp, Worker, WorkerApp};
use crate::error::{BoxError, Error, Result};
use crate::isolated::{
    IsolatedJobId, JobHost, JobOutcome, JobPayload, JobRunner, JobStart, JobThreadLimits, JobValue,
    MakeJobRunner, ProcessReport, START_JOB_KIND, decode_job_message, job_envelope, limit_cpu_time,
    process_report_kind,
};
use crate::messages::Inbox;
use crate::text::panic_text;
use prefork_os::resource_limits::record_failed_allocation;
use prefork_os::thread::set_thread_niceness;

/// A job for the thread.
type ThreadJob = (JobStart, JobPayload);

/// Creates the application of an isolated process. It has booted when the state of its jobs is made.
pub(crate) fn isolated_process_app(
    make_runner: MakeJobRunner,
    limits: JobThreadLimits,
) -> WorkerApp {
    let make_runner = match limits.cpu_time {
        Some(limit) => limit_cpu_time(make_runner, limit),
        None => make_runner,
    };
    Arc::new(move |state: Rc<LocalWorkerState>| {
        let (worker, make_runner) = (Worker(Arc::clone(&state.shared)), Arc::clone(&make_runner));
        Box::pin(async move {
            let inbox = worker.open_inbox(START_JOB_KIND);
            let thread = JobThread::start(&worker, make_runner, limits).await?;
            let booted = BootedApp::new(drop, false);
            let main_loop = run_jobs(worker, inbox, thread);
            booted
                .main_loop
                .set(Some(Box::pin(async { main_loop.await.map_err(Error::from_app) })));
            Ok(booted)
        })
    })
}

/// The thread that runs all jobs of the process, so that its event loop keeps its heartbeat.
struct JobThread {
    jobs: std_mpsc::Sender<ThreadJob>,
    /// Receives something after each job whose end was reported.
    ended: mpsc::UnboundedReceiver<()>,
}

impl JobThread {
    /// Starts the thread, and waits until it has made the state.
    async fn start(
        worker: &Worker,
        make_runner: MakeJobRunner,
        limits: JobThreadLimits,
    ) -> Result<JobThread> {
        if limits.has_memory_limit {
            record_failed_allocation(worker.0.own_page.failed_allocation_word())
                .map_err(|e| Error::system("catch the abort of a failed allocation", e))?;
        }
        let (jobs, received) = std_mpsc::channel();
        let (report_end, ended) = mpsc::unbounded_channel();
        let (report_init, made) = oneshot::channel();
        let worker_of_thread = worker.clone();
        let run = move || {
            let made = make_state(&make_runner);
            let (runner, result) = match made {
                Ok(runner) => (Some(runner), Ok(())),
                Err(e) => (None, Err(e)),
            };
            // After `init`, which would take long beside a busy server.
            let nice = limits.nice.unwrap_or(worker_of_thread.0.config.pool_nice);
            if let Err(e) = set_thread_niceness(nice) {
                log::warn!("{} cannot lower the priority of its jobs: {e}", worker_of_thread.0.tag);
            }
            // Fails if the worker drained meanwhile.
            let _ = report_init.send(result);
            if let Some(runner) = runner {
                run_thread(&worker_of_thread, &make_runner, runner, &received, &report_end);
            }
        };
        let mut thread = std::thread::Builder::new().name("isolated job".to_string());
        if let Some(bytes) = limits.stack_bytes {
            thread = thread.stack_size(bytes);
        }
        thread.spawn(run).map_err(|e| Error::system("start the thread for isolated jobs", e))?;
        let lost = || Err("its thread ended".into());
        made.await.unwrap_or_else(|_| lost()).map_err(|e| {
            Error::application(format!("cannot make the state of the pool {}", worker.kind()), e)
        })?;
        Ok(JobThread { jobs, ended })
    }
}

/// Calls the `init` function of the pool; a panic is an error.
fn make_state(make_runner: &MakeJobRunner) -> std::result::Result<JobRunner, BoxError> {
    catch_unwind(AssertUnwindSafe(|| make_runner()))
        .unwrap_or_else(|panic| Err(format!("init panicked: {}", panic_text(&*panic)).into()))
}

/// Drops the state after a panic. A second panic, of a `Drop` that meets a half-changed state, must not end the thread: its
/// message is the error.
fn drop_state(runner: JobRunner) -> std::result::Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| drop(runner))).map_err(|panic| {
        let message = panic_text(&*panic).into_owned();
        // Dropping the payload could panic again.
        std::mem::forget(panic);
        message
    })
}

/// Runs jobs until the event loop has ended. Ends early if the state cannot be made again after a panic.
fn run_thread(
    worker: &Worker,
    make_runner: &MakeJobRunner,
    mut runner: JobRunner,
    jobs: &std_mpsc::Receiver<ThreadJob>,
    report_end: &mpsc::UnboundedSender<()>,
) {
    while let Ok((JobStart { job, limit_ms }, input)) = jobs.recv() {
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        let host = JobHost { worker: worker.clone(), job, deadline };
        let (outcome, value) = runner(&host, input);
        host.record_end();
        let has_panicked = matches!(outcome, JobOutcome::Panicked { .. });
        send_outcome(&host, outcome, &value);
        if has_panicked {
            // The old state is dropped first, as the new one may need what it holds.
            if let Err(message) = drop_state(runner) {
                let tag = &worker.0.tag;
                log::warn!("{tag} the drop of the state of its jobs panicked: {message}");
            }
            runner = match make_state(make_runner) {
                Ok(runner) => runner,
                Err(e) => {
                    return log::error!(
                        "{} cannot make the state of its jobs again after a panic: {e}",
                        worker.0.tag
                    );
                }
            };
        }
        if report_end.send(()).is_err() {
            return;
        }
    }
}

/// Sends the end of a job to the primary, before the process takes another one or leaves.
fn send_outcome(host: &JobHost, outcome: JobOutcome, value: &JobPayload) {
    let job = host.job;
    if let Err(error) = host.send(&ProcessReport::Ended { job, outcome }, value) {
        let outcome = JobOutcome::of_send_error(&error, JobValue::Output);
        // On another error the primary is gone, or it learns of the job's end when this process ends.
        let _ = host.send(&ProcessReport::Ended { job, outcome }, &JobPayload::default());
    }
}

/// Gives jobs to the thread, one at a time, until the worker drains.
async fn run_jobs(
    worker: Worker,
    mut inbox: Inbox,
    mut thread: JobThread,
) -> std::result::Result<(), BoxError> {
    loop {
        let mut message = tokio::select! {
            // Jobs that arrived before the drain still run.
            biased;
            Some(message) = inbox.recv() => message,
            () = worker.draining() => return Ok(()),
        };
        let Some((start, input)) = decode_job_message::<JobStart>(&mut message) else { continue };
        let mut cut = CutGuard { worker: &worker, job: start.job, has_ended: false };
        let sent = thread.jobs.send((start, input));
        let ended = thread.ended.recv().await;
        cut.has_ended = true;
        if sent.is_err() || ended.is_none() {
            return Err("the thread of the jobs has ended".into());
        }
    }
}

/// Reports that a job is cut, if the main loop is dropped at the drain deadline while it runs.
struct CutGuard<'a> {
    worker: &'a Worker,
    job: IsolatedJobId,
    has_ended: bool,
}

impl Drop for CutGuard<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let kind = process_report_kind(self.worker.kind());
        let report = ProcessReport::Ended { job: self.job, outcome: JobOutcome::Cut };
        if let Ok(envelope) = job_envelope(&kind, &report, &JobPayload::default()) {
            // If it fails, the primary sees from the exit of this process that the job had begun.
            let _ = self.worker.0.messages.try_send(envelope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        #[expect(clippy::panic, reason = "a panic is what this is about")]
        fn drop(&mut self) {
            panic!("half-changed");
        }
    }

    #[test]
    fn a_panic_of_the_drop_of_a_state_is_contained() {
        let state = PanicsOnDrop;
        let runner: JobRunner = Box::new(move |_, _| {
            let _ = &state;
            (JobOutcome::Done, JobPayload::default())
        });
        assert_eq!(drop_state(runner), Err("half-changed".to_string()));
        let runner: JobRunner = Box::new(|_, _| (JobOutcome::Done, JobPayload::default()));
        assert_eq!(drop_state(runner), Ok(()));
    }
}
