//! Messages between the watcher and the primary.

use serde::{Deserialize, Serialize};

use super::build::BuildStep;
use super::watch_settings::WatchSettings;

/// Primary to watcher: a [`WatchPlan`]. Sent when the watcher is there, and when the configuration has changed.
pub(crate) const PLAN: &str = "watch-plan";

/// Primary to watcher: a reload has ended. No payload.
pub(crate) const RELOAD_ENDED: &str = "watch-reload-ended";

/// Watcher to primary: a build has begun. The payload is text: what has changed.
pub(crate) const BUILD_STARTED: &str = "watch-build-started";

/// Watcher to primary: a [`BuildReport`].
pub(crate) const BUILD_ENDED: &str = "watch-build-ended";

/// Watcher to primary: files have changed, and the build, if there is one, was good. No payload.
pub(crate) const RELOAD: &str = "watch-reload";

/// What a watcher does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WatchPlan {
    pub(crate) settings: WatchSettings,
    /// What to run before a reload.
    pub(crate) build: Option<BuildStep>,
    /// Whether to begin with a build and a reload, without waiting for a change.
    pub(crate) starts_at_once: bool,
}

/// The result of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildReport {
    /// Why the build failed. `None`: it was good.
    pub(crate) failure: Option<String>,
    /// The end of what it has printed, with its colours.
    pub(crate) output: String,
    /// The program that it has built, if it says so.
    pub(crate) program: Option<BuiltProgram>,
}

/// A program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuiltProgram {
    pub(crate) executable: String,
    /// The directory of its package, which `cargo run` tells it by `CARGO_MANIFEST_DIR`.
    pub(crate) manifest_dir: String,
}
