//! The process that watches files: a worker of a kind of its own, which builds and asks the primary to reload.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::build::{BuildStep, run_build};
use super::messages::{
    BUILD_ENDED, BUILD_STARTED, BuildReport, PLAN, RELOAD, RELOAD_ENDED, WatchPlan,
};
use super::project_watch::{Changes, ProjectWatch};
use super::rounds::{Decision, Rounds};
use tokio_prefork::{BoxError, Inbox, Worker};

/// The name of the kind.
pub(crate) const WATCHER_KIND: &str = "watcher";

/// How often to say that a build still runs.
const BUILD_REMINDER_INTERVAL: Duration = Duration::from_secs(30);

/// What has changed before the first build, or before a watcher took the place of another one.
const UNKNOWN_CHANGES: &str = "everything";

/// How many changed files the log names.
const MAX_NAMED_FILES: usize = 3;

/// How long a build may take to end by itself when the primary is gone, before it is killed.
const BUILD_KILL_DELAY: Duration = Duration::from_millis(500);

struct Watcher {
    worker: Worker,
    plans: Inbox,
    reload_ends: Inbox,
}

/// Watches, builds and asks for reloads, until the worker drains.
pub(crate) async fn run_watcher(worker: Worker) -> Result<(), BoxError> {
    let plans = worker.open_inbox(PLAN);
    let reload_ends = worker.open_inbox(RELOAD_ENDED);
    let mut watcher = Watcher { worker: worker.clone(), plans, reload_ends };
    tokio::select! {
        result = watcher.run() => result,
        () = worker.draining() => {
            end_build(&worker).await;
            Ok(())
        }
    }
}

impl Watcher {
    async fn run(&mut self) -> Result<(), BoxError> {
        let mut next = self.next_plan().await?;
        loop {
            let plan = next;
            next = self.follow_plan(&plan).await?;
        }
    }

    /// Waits for the next plan. Without a primary it never comes, and the worker drains.
    async fn next_plan(&mut self) -> Result<WatchPlan, BoxError> {
        match self.plans.recv().await {
            Some(message) => Ok(message.decode()?),
            None => std::future::pending().await,
        }
    }

    /// Follows a plan until there is another one.
    async fn follow_plan(&mut self, plan: &WatchPlan) -> Result<WatchPlan, BoxError> {
        let mut project = ProjectWatch::start(&plan.settings).await?;
        let mut rounds = Rounds::default();
        let paths = describe_paths(&plan.settings.paths);
        log::info!("watching for changes; paths={paths} files={}", project.file_count());
        if plan.starts_at_once {
            // The first build, or a watcher before has died and may have missed a change.
            self.run_round(plan, UNKNOWN_CHANGES).await?;
            project.record_round_end();
        }
        // Changes whose round was put off, and until when.
        let mut delayed: Option<(String, tokio::time::Instant)> = None;
        loop {
            let until = delayed.as_ref().map(|(_, until)| *until);
            let names = tokio::select! {
                changes = project.next_changes() => {
                    let changes = changes?;
                    if is_lock_file_of_build(plan, &changes) {
                        continue;
                    }
                    let names = describe_changes(&changes);
                    if let Decision::BeginAfter(delay) = rounds.decide(&changes) {
                        log::warn!(
                            "files change during each build or start: if that is no accident, name them in .ignore or \
                             --watch-ignore; files={names} next_in={delay:?}"
                        );
                        delayed = Some((names, tokio::time::Instant::now() + delay));
                        continue;
                    }
                    names
                }
                () = sleep_until(until) => delayed.take().map(|(names, _)| names).unwrap_or_default(),
                next = self.plans.recv() => match next {
                    Some(message) => return Ok(message.decode()?),
                    None => std::future::pending().await,
                },
            };
            delayed = None;
            self.run_round(plan, &names).await?;
            project.record_round_end();
        }
    }

    /// Builds, and has the primary reload if the build is good. Waits for the end of both.
    async fn run_round(&mut self, plan: &WatchPlan, changed: &str) -> Result<(), BoxError> {
        let Some(step) = &plan.build else {
            log::info!("files have changed, reloading; changed={changed}");
            return self.reload().await;
        };
        log::info!("building; changed={changed}");
        self.worker.send(BUILD_STARTED, changed.to_string()).await?;
        let started = Instant::now();
        let mut building = pin!(build(step.clone()));
        let report = loop {
            tokio::select! {
                report = &mut building => break report?,
                () = tokio::time::sleep(BUILD_REMINDER_INTERVAL) => log::info!(
                    "still building, changes wait for its end; elapsed={:.0?}",
                    started.elapsed()
                ),
            }
        };
        let took = started.elapsed();
        let is_good = match &report.failure {
            None => {
                log::info!("build finished; took={took:.1?}");
                true
            }
            Some(why) => {
                log::error!(
                    "build failed, waiting for the next change; took={took:.1?} reason={why}"
                );
                false
            }
        };
        self.worker.send(BUILD_ENDED, &report).await?;
        if is_good { self.reload().await } else { Ok(()) }
    }

    async fn reload(&mut self) -> Result<(), BoxError> {
        // Those of reloads that others have asked for.
        while self.reload_ends.try_recv().is_some() {}
        self.worker.send(RELOAD, String::new()).await?;
        match self.reload_ends.recv().await {
            Some(_) => Ok(()),
            None => std::future::pending().await,
        }
    }
}

/// Returns whether only `Cargo.lock` has changed, by the build.
fn is_lock_file_of_build(plan: &WatchPlan, changes: &Changes) -> bool {
    let is_lock_file = |path: &PathBuf| path.ends_with("Cargo.lock");
    matches!(plan.build, Some(BuildStep::Cargo(_)))
        && changes.may_be_echo
        && changes.paths.iter().all(is_lock_file)
}

async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn build(step: BuildStep) -> Result<BuildReport, BoxError> {
    Ok(tokio::task::spawn_blocking(move || run_build(&step)).await?)
}

/// Ends the build under way. While the primary lives, it kills the process group of this worker when the worker is gone.
async fn end_build(worker: &Worker) {
    if worker.is_connected() {
        return;
    }
    let own_group = Pid::from_raw(0);
    // This process has begun to drain, so the signal does nothing more to it.
    let _ = kill(own_group, Signal::SIGTERM);
    tokio::time::sleep(BUILD_KILL_DELAY).await;
    // The rest of the group, and this process, which has nothing left to do.
    let _ = kill(own_group, Signal::SIGKILL);
}

/// Names the changed files, relative to the current directory where they are below it.
fn describe_changes(changes: &Changes) -> String {
    let current_dir = std::env::current_dir().unwrap_or_default();
    let names = changes.paths.iter().take(MAX_NAMED_FILES).map(|path| relative(path, &current_dir));
    let names: Vec<String> = names.collect();
    match changes.paths.len().saturating_sub(MAX_NAMED_FILES) {
        0 => names.join(","),
        more => format!("{} and {more} more", names.join(",")),
    }
}

fn relative(path: &Path, dir: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).display().to_string()
}

/// Names what is watched, for the log.
fn describe_paths(paths: &[PathBuf]) -> String {
    let current_dir = std::env::current_dir().unwrap_or_default();
    let names: BTreeSet<String> = paths
        .iter()
        .map(
            |path| {
                if *path == current_dir { ".".to_string() } else { relative(path, &current_dir) }
            },
        )
        .collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_changed_files_are_named() {
        let current_dir = std::env::current_dir().expect("directory");
        let paths = |names: &[&str]| Changes {
            paths: names.iter().map(|name| current_dir.join(name)).collect(),
            may_be_echo: false,
        };
        assert_eq!(describe_changes(&paths(&["src/a.rs", "/etc/b"])), "src/a.rs,/etc/b");
        assert_eq!(describe_changes(&paths(&["a", "b", "c", "d", "e"])), "a,b,c and 2 more");
        assert_eq!(describe_paths(&[current_dir.clone(), "/etc".into()]), ".,/etc");
    }
}
