//! Watches files, builds and reloads: `--watch` and `prefork dev`.
//!
//! ```text
//! kernel -> FileWatcher -> ProjectWatch -> build -> primary: reload
//!           (a worker of the kind "watcher")
//! ```
//!
//! The primary only sends a plan to the watcher and reloads when it says so. The watcher lives over reloads, and its successor after a
//! crash begins with a build, as it does not know what has changed.

mod build;
mod cargo_command;
mod debounce;
mod default_command;
mod file_tree;
mod file_watcher;
mod ignore_rules;
mod messages;
mod overlay;
mod primary_side;
mod project_watch;
mod rounds;
mod watch_settings;
mod watcher_process;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use build::BuildStep;
pub(crate) use cargo_command::CargoRun;
pub(crate) use default_command::default_command;
pub(crate) use overlay::overlay_config;
pub(crate) use primary_side::DevState;
pub(crate) use watch_settings::{AUTO_PATHS, WatchKeys, WatchSettings};

/// The current directory of `prefork dev` at its start.
static PROJECT_DIR: OnceLock<PathBuf> = OnceLock::new();

/// Records the current directory as that of the project. Builds and programs run there by its path, as it may be deleted and made
/// again.
pub(crate) fn record_project_dir() {
    // Without one, builds and programs run where this process does.
    if let Ok(dir) = std::env::current_dir() {
        let _ = PROJECT_DIR.set(dir);
    }
}

/// Returns the directory of the project that is developed, if there is one.
pub(crate) fn project_dir() -> Option<&'static Path> {
    PROJECT_DIR.get().map(PathBuf::as_path)
}
