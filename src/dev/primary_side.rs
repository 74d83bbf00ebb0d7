//! The primary's side of watching: tells the watcher what to do, and reloads when it says so.

use std::cell::RefCell;
use std::rc::Rc;

use super::build::BuildStep;
use super::messages::{
    BUILD_ENDED, BUILD_STARTED, BuildReport, BuiltProgram, PLAN, RELOAD, RELOAD_ENDED, WatchPlan,
};
use super::overlay::script_element;
use super::watch_settings::WatchSettings;
use super::watcher_process::{WATCHER_KIND, run_watcher};
use tokio_prefork::{
    Cluster, ClusterEvent, OverlayState, PrimaryHandle, RefusedCommand, WorkerKind,
};

/// What the primary knows about builds and changes. Shared by the hooks and the function that reads the configuration.
#[derive(Clone, Default)]
pub(crate) struct DevState(Rc<RefCell<State>>);

/// Gets the script element of the overlay, when its address is known.
type OnScriptElement = Box<dyn FnOnce(String)>;

#[derive(Default)]
struct State {
    /// What is to be watched. `None`: the watcher has nothing to do.
    settings: Option<WatchSettings>,
    build: Option<BuildStep>,
    /// What the watcher was told last.
    sent: Option<WatchSettings>,
    /// The program of the last good build.
    program: Option<BuiltProgram>,
    has_good_build: bool,
    had_watcher: bool,
    has_overlay: bool,
    on_script_element: Option<OnScriptElement>,
}

impl DevState {
    /// Creates the state of a cluster that builds with `build` before each reload.
    pub(crate) fn new(settings: Option<WatchSettings>, build: Option<BuildStep>) -> DevState {
        let state = DevState::default();
        *state.0.borrow_mut() = State { settings, build, ..State::default() };
        state
    }

    /// Publishes builds and reloads for the overlay in the browser. `on_script_element` gets the element for pages before the first worker
    /// is forked.
    pub(crate) fn show_overlay(&self, on_script_element: impl FnOnce(String) + 'static) {
        let mut state = self.0.borrow_mut();
        state.has_overlay = true;
        state.on_script_element = Some(Box::new(on_script_element));
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
    pub(crate) fn program(&self) -> Option<BuiltProgram> {
        self.0.borrow().program.clone()
    }

    /// Adds the watcher and the hooks to a cluster, as far as they are needed.
    pub(crate) fn watch(&self, cluster: Cluster) -> Cluster {
        let (is_watched, has_overlay) = {
            let state = self.0.borrow();
            (state.settings.is_some(), state.has_overlay)
        };
        if !is_watched && !has_overlay {
            return cluster;
        }
        let (of_start, of_event) = (self.clone(), self.clone());
        let cluster = cluster
            .on_start(move |primary| {
                of_start.on_start(primary);
                Ok(())
            })
            .on_event(move |primary, event| of_event.on_event(primary, event));
        if !is_watched {
            return cluster;
        }
        // The group is killed with the watcher, so that no build outlives it.
        let kind = WorkerKind::new(WATCHER_KIND, 1).own_process_group().keep_on_reload();
        let (of_begin, of_end) = (self.clone(), self.clone());
        cluster
            .kind(kind, run_watcher)
            .on_message(BUILD_STARTED, move |primary, _, _| {
                of_begin.set_overlay(primary, &OverlayState::Building);
            })
            .on_message(BUILD_ENDED, move |primary, _, message| {
                if let Ok(report) = message.decode() {
                    of_end.on_build_ended(primary, report);
                }
            })
            .on_message(RELOAD, |primary, _, _| primary.reload())
    }

    fn on_start(&self, primary: &mut PrimaryHandle<'_>) {
        if !self.0.borrow().has_overlay {
            return;
        }
        match script_element(primary) {
            Some(element) => {
                log::info!("overlay: a page includes {element}");
                let on_script_element = self.0.borrow_mut().on_script_element.take();
                on_script_element.into_iter().for_each(|call| call(element.clone()));
            }
            None => log::warn!("no browser reaches the admin listener, so there is no overlay"),
        }
        let is_built = self.is_built();
        let state = if is_built { OverlayState::Updated } else { OverlayState::Building };
        self.set_overlay(primary, &state);
    }

    fn set_overlay(&self, primary: &mut PrimaryHandle<'_>, state: &OverlayState) {
        if self.0.borrow().has_overlay {
            primary.set_overlay(state);
        }
    }

    fn on_event(&self, primary: &mut PrimaryHandle<'_>, event: &ClusterEvent) {
        match event {
            ClusterEvent::Listening { worker, .. } if worker.kind == WATCHER_KIND => {
                self.0.borrow_mut().sent = None;
                self.send_plan(primary);
            }
            ClusterEvent::Reloaded { .. } => {
                self.set_overlay(primary, &OverlayState::Updated);
                self.send_plan(primary);
                send_to_watcher(primary, RELOAD_ENDED, &());
            }
            ClusterEvent::ReloadFailed { reason, .. } => {
                let title = "The reload failed".to_string();
                let text = reason.clone();
                self.set_overlay(primary, &OverlayState::Failed { title, text });
                send_to_watcher(primary, RELOAD_ENDED, &());
            }
            ClusterEvent::Refused { command: RefusedCommand::Reload, .. } => {
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

    fn on_build_ended(&self, primary: &mut PrimaryHandle<'_>, report: BuildReport) {
        if let Some(failure) = report.failure {
            let title = format!("The build failed ({failure})");
            let text = report.output;
            return self.set_overlay(primary, &OverlayState::Failed { title, text });
        }
        let mut state = self.0.borrow_mut();
        state.has_good_build = true;
        state.program = report.program;
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
