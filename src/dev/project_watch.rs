//! Watches the files of a project and reports each burst of changes once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use notify::{Event, EventKind};
use tokio::task::JoinHandle;

use super::debounce::Debounce;
use super::file_tree::{FileTree, Scan, scan};
use super::file_watcher::{FileWatcher, Hint, is_move_or_removal};
use super::ignore_rules::{IgnoreRules, is_file_name_wanted};
use super::watch_settings::WatchSettings;
use tokio_prefork::{BoxError, Result};

/// For how long after a build and its reload a change may still be theirs: programs write files when they start.
const ECHO_TIME: Duration = Duration::from_millis(500);

/// How long to wait for the end of a command of git that changes many files. An older lock was left behind.
const MAX_GIT_LOCK_AGE: Duration = Duration::from_secs(10);

/// How often to read the tree again because directories were created meanwhile.
const MAX_SCANS_IN_A_ROW: u32 = 8;

/// Files that have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) paths: Vec<PathBuf>,
    /// Whether they came while a build or a reload was under way, which may have written them.
    pub(crate) may_be_echo: bool,
}

/// Watches the files of a project.
pub(crate) struct ProjectWatch {
    rules: IgnoreRules,
    roots: Vec<PathBuf>,
    git_lock: Option<PathBuf>,
    watcher: FileWatcher,
    tree: FileTree,
    debounce: Debounce,
    /// When the first change came that was not looked at.
    first_change: Option<Instant>,
    echo_until: Option<Instant>,
    /// The scan under way. It belongs to `self`, so that dropping [`ProjectWatch::next_changes`] loses nothing.
    scan: Option<JoinHandle<Result<Scan>>>,
    scans_in_a_row: u32,
}

impl ProjectWatch {
    /// Reads the tree and begins to watch it.
    ///
    /// # Errors
    /// A glob of the settings is invalid.
    pub(crate) async fn start(settings: &WatchSettings) -> Result<ProjectWatch, BoxError> {
        let rules = IgnoreRules::new(&settings.ignored)?;
        let roots = settings.paths.clone();
        let mut watcher = FileWatcher::new(settings.poll_interval, &roots);
        let mut found = run_scan(&rules, &roots).await??;
        // What is created before its directory is watched is found by one more look.
        for _ in 0..MAX_SCANS_IN_A_ROW {
            if !watcher.watch_dirs(&found.dirs) {
                break;
            }
            found = run_scan(&rules, &roots).await??;
        }
        let git_lock = roots.first().and_then(|root| git_index_lock(root));
        Ok(ProjectWatch {
            rules,
            roots,
            git_lock,
            watcher,
            tree: FileTree::new(found),
            debounce: Debounce::default(),
            first_change: None,
            echo_until: None,
            scan: None,
            scans_in_a_row: 0,
        })
    }

    pub(crate) fn file_count(&self) -> usize {
        self.tree.file_count()
    }

    /// Records that a build and its reload have ended. Changes that came meanwhile, or come right after, may be theirs.
    pub(crate) fn record_round_end(&mut self) {
        self.echo_until = Some(Instant::now() + ECHO_TIME);
    }

    /// Waits for the next burst of changes. Nothing is lost if the future is dropped.
    pub(crate) async fn next_changes(&mut self) -> Result<Changes, BoxError> {
        loop {
            if let Some(scan) = &mut self.scan {
                let found = scan.await??;
                self.scan = None;
                if let Some(changes) = self.compare_with(found) {
                    return Ok(changes);
                }
                continue;
            }
            let deadline = self.debounce.deadline().map(tokio::time::Instant::from_std);
            let is_over = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                hint = self.watcher.next_hint() => self.record_hint(&hint),
                () = is_over => self.burst_ended(),
            }
        }
    }

    fn record_hint(&mut self, hint: &Hint) {
        let is_relevant = match hint {
            Hint::Event(event) => self.is_relevant(event),
            Hint::Overflow | Hint::PollTimer => true,
        };
        self.watcher.forget_moved(hint);
        if is_relevant {
            let now = Instant::now();
            self.first_change.get_or_insert(now);
            self.debounce.record_change(now);
        }
    }

    /// Returns whether an event can mean that a file has changed which counts. A log that grows cannot.
    fn is_relevant(&self, event: &Event) -> bool {
        event.paths.iter().any(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_known = self.tree.contains(path) || self.roots.iter().any(|root| root == path);
            match &event.kind {
                EventKind::Create(_) => is_known || is_file_name_wanted(&name),
                kind if is_move_or_removal(kind) => is_known || is_file_name_wanted(&name),
                // Outside of the roots are the targets of links.
                _ => is_known || !self.roots.iter().any(|root| path.starts_with(root)),
            }
        })
    }

    fn burst_ended(&mut self) {
        let now = Instant::now();
        if !self.debounce.take_finished(now) {
            return;
        }
        if self.git_lock.as_deref().is_some_and(is_recent_file) {
            self.debounce.record_change(now);
        } else {
            self.begin_scan();
        }
    }

    fn begin_scan(&mut self) {
        self.scan = Some(run_scan(&self.rules, &self.roots));
    }

    /// Takes over what was found. `None`: nothing has changed, or the tree has to be read once more.
    fn compare_with(&mut self, found: Scan) -> Option<Changes> {
        let has_new_dirs = self.watcher.watch_dirs(&found.dirs);
        self.scans_in_a_row += 1;
        if has_new_dirs && self.scans_in_a_row < MAX_SCANS_IN_A_ROW {
            self.begin_scan();
            return None;
        }
        self.scans_in_a_row = 0;
        let first_change = self.first_change.take();
        let may_be_echo =
            first_change.is_some_and(|at| self.echo_until.is_some_and(|until| at < until));
        let paths = self.tree.update(found, may_be_echo);
        (!paths.is_empty()).then_some(Changes { paths, may_be_echo })
    }
}

/// Reads the tree in another thread, as a large one takes its time.
fn run_scan(rules: &IgnoreRules, roots: &[PathBuf]) -> JoinHandle<Result<Scan>> {
    let (rules, roots) = (rules.clone(), roots.to_vec());
    tokio::task::spawn_blocking(move || scan(&rules, &roots))
}

/// Returns the lock that git holds while it changes files.
fn git_index_lock(root: &Path) -> Option<PathBuf> {
    let git_dir = root.ancestors().map(|dir| dir.join(".git")).find(|dir| dir.is_dir())?;
    Some(git_dir.join("index.lock"))
}

fn is_recent_file(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| {
        SystemTime::now().duration_since(modified).is_ok_and(|age| age < MAX_GIT_LOCK_AGE)
    })
}
