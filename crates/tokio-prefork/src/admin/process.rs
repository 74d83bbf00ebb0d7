//! The process of the admin listener: one thread, which serves until it is told to drain or its primary is gone.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::connections::{AdminAcceptor, Connections};
use super::status_reader::StatusReader;
use super::{AdminProcessInit, AdminToken, ProcessPage};
use crate::channel::{ReceivedCommand, WorkerChannelEnd, WorkerCommand, WorkerReport};
use crate::error::{Error, Result, exit};
use prefork_os::system::monotonic_ms;

/// The time between two heartbeats, and so the resolution of the timeouts of connections.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

/// What all connections of the process share.
pub(crate) struct AdminState {
    pub(crate) token: Option<AdminToken>,
    pub(crate) reader: StatusReader,
    pub(crate) own_page: ProcessPage,
    pub(crate) connections: Connections,
    /// How many clients follow the events.
    pub(crate) event_streams: Cell<usize>,
    /// How many pages follow the builds.
    pub(crate) overlay_streams: Cell<usize>,
    /// Told when the process begins to drain.
    drain_started: Notify,
    drain_since: Cell<Option<Instant>>,
}

impl AdminState {
    pub(crate) fn is_draining(&self) -> bool {
        self.drain_since.get().is_some()
    }

    /// Waits until the process drains.
    pub(crate) async fn wait_for_drain(&self) {
        let started = self.drain_started.notified();
        if !self.is_draining() {
            started.await;
        }
    }

    fn begin_drain(&self) {
        if !self.is_draining() {
            self.drain_since.set(Some(Instant::now()));
            self.drain_started.notify_waiters();
        }
    }
}

/// Runs an admin process to its exit status.
pub(crate) fn run_admin_process(init: AdminProcessInit) -> u8 {
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the runtime of the admin process", e))?;
        runtime.block_on(serve(init))
    };
    match run() {
        Ok(()) => exit::OK,
        Err(e) => {
            log::error!("{e}");
            e.exit_status()
        }
    }
}

/// Serves until the process has drained.
async fn serve(init: AdminProcessInit) -> Result<()> {
    let channel = WorkerChannelEnd::new(init.channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    let state = Rc::new(AdminState {
        token: init.token,
        reader: StatusReader::new(init.memory, init.scoreboard, init.config),
        own_page: init.own_page,
        connections: Connections::default(),
        event_streams: Cell::new(0),
        overlay_streams: Cell::new(0),
        drain_started: Notify::new(),
        drain_since: Cell::new(None),
    });
    let acceptors = init.listeners.into_iter().map(AdminAcceptor::new);
    let acceptors = acceptors.collect::<Result<Vec<_>>>()?;
    state.own_page.record_heartbeat(monotonic_ms());
    tokio::task::spawn_local(run_heartbeat(Rc::clone(&state), init.terminate));
    channel
        .send(&WorkerReport::Ready)
        .map_err(|e| Error::system("report to the primary that the admin process is ready", e))?;
    tokio::select! {
        () = follow_primary(&channel, &state, acceptors) => {}
        () = state.wait_for_drain() => {}
    }
    // The acceptors are gone. What waits in the queues of their sockets is for the successor.
    state.begin_drain();
    // Without a primary nobody wants to know.
    let _ = channel.send(&WorkerReport::Retiring);
    state.connections.wait_until_none().await;
    Ok(())
}

/// Accepts when the primary says so, until it tells the process to drain, or is gone.
async fn follow_primary(
    channel: &WorkerChannelEnd,
    state: &Rc<AdminState>,
    acceptors: Vec<AdminAcceptor>,
) {
    let mut waiting = acceptors;
    // Dropped at the end, which stops accepting at once.
    let mut accepting = tokio::task::JoinSet::new();
    while let Some(received) = channel.receive().await {
        match received {
            ReceivedCommand::Command(WorkerCommand::StartAccepting) => {
                for acceptor in waiting.drain(..) {
                    accepting.spawn_local(acceptor.run(Rc::clone(state)));
                }
            }
            ReceivedCommand::Command(WorkerCommand::Drain { .. }) => break,
            ReceivedCommand::ReopenLog(file) => {
                if let Err(e) = crate::log_output::replace_log_stream(&file) {
                    log::error!("the admin process cannot switch stderr to the reopened log: {e}");
                }
            }
            // Nothing else concerns a process without connections of the service.
            _ => {}
        }
    }
    accepting.shutdown().await;
}

/// Publishes the heartbeat, closes overdue connections, and looks for SIGTERM.
async fn run_heartbeat(state: Rc<AdminState>, terminate: Arc<AtomicBool>) {
    let mut timer = tokio::time::interval(HEARTBEAT_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        state.own_page.record_heartbeat(monotonic_ms());
        if terminate.load(Ordering::Relaxed) {
            state.begin_drain();
        }
        state.connections.close_overdue(state.drain_since.get());
    }
}
