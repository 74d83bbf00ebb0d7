//! The primary's side of watching: tells the watcher what to do, and reloads when it says so.

use std::cell::RefCell;
use std::rc::Rc;

use super::build::BuildStep;
use super::messages::{
    BUILD_ENDED, BUILD_STARTED, BuildReport, PLAN, RELOAD, RELOAD_ENDED, WatchPlan,
};
use super::watch_settings::WatchSettings;
use super::watcher_process::{WATCHER_KIND, run_watcher};
use tokio_prefork::{Cluster, ClusterEvent, PrimaryHandle, RefusedCommand, WorkerKind};

/// What the primary knows about builds and changes. Shared by the hooks and the function that reads the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct DevState(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    /// What is to be watched. `None`: the watcher has nothing to do.
    settings: Option<WatchSettings>,
    build: Option<BuildStep>,
    /// What the watcher was told last.
    sent: Option<WatchSettings>,
    /// The program of the last good build.
    executable: Option<String>,
    has_good_build: bool,
    had_watcher: bool,
}

impl DevState {
    /// Creates the state of a cluster that builds with `build` before each reload.
    pub(crate) fn new(settings: Option<WatchSettings>, build: Option<BuildStep>) -> DevState {
        let state = DevState::default();
        *state.0.borrow_mut() = State { settings, build, ..State::default() };
        state
    }

    /// Sets what to watch from the next reload on.
    pub(crate) fn set_settings(&self, settings: Option<WatchSettings>) {
        self.0.borrow_mut().settings = settings;
    }

    /// Returns whether a build was good since the start, or there is none to wait for.
    pub(crate) fn is_built(&self) -> bool {
        let state = self.0.borrow();
        state.has_good_build || state.build.is_none()
    }

    /// Returns the program of the last good build.
    pub(crate) fn executable(&self) -> Option<String> {
        self.0.borrow().executable.clone()
    }

    /// Adds the watcher and the hooks to a cluster, if something is to be watched.
    pub(crate) fn watch(&self, cluster: Cluster) -> Cluster {
        if self.0.borrow().settings.is_none() {
            return cluster;
        }
        // The group is killed with the watcher, so that no build outlives it.
        let kind = WorkerKind::new(WATCHER_KIND, 1).own_process_group().keep_on_reload();
        let (of_event, of_build, of_reload) = (self.clone(), self.clone(), self.clone());
        cluster
            .kind(kind, run_watcher)
            .on_event(move |primary, event| of_event.on_event(primary, event))
            .on_message(BUILD_STARTED, |_, _, _| {})
            .on_message(BUILD_ENDED, move |_, _, message| {
                if let Ok(report) = message.decode() {
                    of_build.on_build_ended(report);
                }
            })
            .on_message(RELOAD, move |primary, _, _| of_reload.on_reload_wanted(primary))
    }

    fn on_event(&self, primary: &mut PrimaryHandle<'_>, event: &ClusterEvent) {
        match event {
            ClusterEvent::Listening { worker, .. } if worker.kind == WATCHER_KIND => {
                self.0.borrow_mut().sent = None;
                self.send_plan(primary);
            }
            ClusterEvent::Reloaded { .. } => {
                self.send_plan(primary);
                send_to_watcher(primary, RELOAD_ENDED, &());
            }
            ClusterEvent::ReloadFailed { .. }
            | ClusterEvent::Refused { command: RefusedCommand::Reload, .. } => {
                send_to_watcher(primary, RELOAD_ENDED, &());
            }
            _ => {}
        }
    }

    /// Tells the watcher what to watch, unless it knows.
    fn send_plan(&self, primary: &mut PrimaryHandle<'_>) {
        let mut state = self.0.borrow_mut();
        let Some(settings) = state.settings.clone() else { return };
        if state.sent.as_ref() == Some(&settings) {
            return;
        }
        // Another watcher does not know what has changed since the one before has died.
        let starts_at_once = match state.sent {
            Some(_) => false,
            None => state.had_watcher || state.build.is_some(),
        };
        let plan =
            WatchPlan { settings: settings.clone(), build: state.build.clone(), starts_at_once };
        if send_to_watcher(primary, PLAN, &plan) {
            state.sent = Some(settings);
            state.had_watcher = true;
        }
    }

    fn on_build_ended(&self, report: BuildReport) {
        if report.failure.is_some() {
            return;
        }
        let mut state = self.0.borrow_mut();
        state.has_good_build = true;
        state.executable = report.executable;
    }

    fn on_reload_wanted(&self, primary: &mut PrimaryHandle<'_>) {
        primary.reload();
    }
}

/// Returns whether the message is on its way.
fn send_to_watcher(
    primary: &mut PrimaryHandle<'_>,
    kind: &str,
    payload: &impl serde::Serialize,
) -> bool {
    let Some(slot) = primary.slot_of_kind(WATCHER_KIND, 0) else { return false };
    // A watcher that is not there is told everything when it is.
    let sent = primary.send(slot, kind, payload);
    sent.inspect_err(|e| log::debug!("cannot tell the watcher; kind={kind} error={e}")).is_ok()
}
