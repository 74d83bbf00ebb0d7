//! One worker: a forked process with its own single-threaded tokio runtime.
//!
//! `enter` is the whole life: build the runtime, boot the application, say READY, accept and serve, drain,
//! and an exit status. Everything runs on one thread, so handlers may hold `Rc` and need not be `Send`.

pub(crate) mod accepted_stream;
pub(crate) mod connection_registry;
pub(crate) mod cpu_pool;
pub(crate) mod custom_kind;
pub(crate) mod drain;
pub(crate) mod full;
pub(crate) mod handover;
pub(crate) mod heartbeat;
pub(crate) mod http;
pub(crate) mod isolated_jobs;
pub(crate) mod lazy_stream;
pub(crate) mod local_state;
pub(crate) mod messages;
pub(crate) mod primary_channel;
pub(crate) mod threaded_worker;
pub(crate) mod worker_handle;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::channel::{ToPrimary, WorkerEnd};
use crate::dispatch::{self, AcceptedConnection, ConnectionStarter};
use crate::error::{Error, Result, exit};
use crate::messages::MailEnd;
use crate::scoreboard::WorkerState;
use crate::worker_init::WorkerInit;
pub use accepted_stream::AcceptedStream;
use bytes::Bytes;
pub(crate) use custom_kind::kind_app;
pub use http::handle_request::BoxError;
use http::serve_connection;
pub use http::timeouts::request_deadline::RequestDeadline;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
pub use isolated_jobs::IsolatedPool;
pub(crate) use isolated_jobs::{isolated_app, work};
use local_state::LocalWorkerState;
use prefork_supervisor::WorkerTag;
pub use threaded_worker::ThreadedWorker;
pub use worker_handle::Worker;

type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What a worker does with its connections, made by the application when it has booted.
pub(crate) struct BootedApp {
    handle: Rc<dyn Fn(AcceptedConnection)>,
    client_speaks_first: bool,
    /// The loop of a worker that takes no connections.
    run: Cell<Option<LocalFuture<Result<()>>>>,
}

impl BootedApp {
    pub(crate) fn new(
        handle: impl Fn(AcceptedConnection) + 'static,
        client_speaks_first: bool,
    ) -> BootedApp {
        BootedApp { handle: Rc::new(handle), client_speaks_first, run: Cell::default() }
    }

    pub(crate) fn connection_starter(&self, state: &Rc<LocalWorkerState>) -> ConnectionStarter {
        ConnectionStarter::new(state, self.client_speaks_first, &self.handle)
    }
}

/// The application as a worker runs it: boots, and gives a handler. Each thread with a loop of its own does so.
pub(crate) type App = Arc<dyn Fn(Worker) -> LocalFuture<Result<BootedApp>> + Send + Sync>;

/// An application that answers HTTP requests.
pub(crate) fn http_app<A, F, S, B>(app: A) -> App
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S>> + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    Arc::new(move |worker: Worker| {
        let state = Rc::clone(&worker.0);
        let booting = app(worker);
        Box::pin(async move {
            let service = Rc::new(booting.await?);
            let handle = move |accepted| {
                let serving = serve_connection::serve_connection(
                    Rc::clone(&state),
                    Rc::clone(&service),
                    accepted,
                );
                // What is spawned is moved several times before it stands still.
                tokio::task::spawn_local(Box::pin(serving));
            };
            Ok(BootedApp::new(handle, true))
        })
    })
}

/// An application that takes connections as they are.
pub(crate) fn connection_app<A, F>(app: A) -> App
where
    A: Fn(Worker, AcceptedStream) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + 'static,
{
    let app = Arc::new(app);
    Arc::new(move |worker: Worker| {
        let app = Arc::clone(&app);
        Box::pin(async move {
            let handle = move |accepted: AcceptedConnection| {
                let AcceptedConnection { stream, entry, guard, .. } = accepted;
                let stream = match stream.into_stream() {
                    Ok(stream) => stream,
                    Err(e) => return log::warn!("{} cannot serve a connection: {e}", worker.0.tag),
                };
                // The application alone knows when such a connection is idle: only the deadline ends it.
                entry.conn.begin_request(worker.0.now_ms());
                let task = tokio::task::spawn_local(app(worker.clone(), stream));
                tokio::task::spawn_local(serve_connection::wait_or_abort(entry, guard, task));
            };
            Ok(BootedApp::new(handle, false))
        })
    })
}

/// How long a worker with nothing to do waits to hear that no connection is on its way to it.
const RELEASE: Duration = Duration::from_secs(1);

/// How long a worker that leaves waits for the primary to take its last messages.
const LAST_LETTERS: Duration = Duration::from_secs(1);

/// Runs a worker from its `WorkerInit` to its exit status.
pub(crate) fn enter(init: WorkerInit, app: &App) -> u8 {
    let tag = init.tag;
    let life = || -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the worker's runtime", e))?;
        let outcome = runtime.block_on(live(init, app));
        // Dropping it would wait for calls of the blocking pool, which a disk that does not answer never ends.
        runtime.shutdown_background();
        outcome
    };
    life().unwrap_or_else(|e| {
        log::error!("{tag} {e}");
        e.exit_status()
    })
}

async fn live(init: WorkerInit, app: &App) -> Result<u8> {
    let WorkerInit {
        tag,
        listeners,
        channel,
        mail,
        message_limits,
        queue,
        mut rows,
        load_page,
        ..
    } = init;
    let WorkerInit { board, config, terminate, kinds, .. } = init;
    let row = rows.pop().ok_or_else(|| Error::config("a worker without a row"))?;
    let channel = WorkerEnd::new(channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    let mail = MailEnd::start(tag, mail, message_limits)
        .map_err(|e| Error::system("register the mail channel to the primary", e))?;
    let pool = cpu_pool::pool(&config, &row, tag);
    let state = Rc::new(LocalWorkerState {
        tag,
        kinds,
        config,
        row,
        load_page,
        scoreboard: board,
        channel,
        messages: mail,
        is_primary_connected: Cell::new(true),
        drain: drain::Drain::default(),
        connections: RefCell::default(),
        capacity_freed: Notify::new(),
        accept_recheck: Notify::new(),
        busiest_worker_connections: Cell::new(0),
        active_acceptors: Cell::new(if queue.is_some() { 1 } else { listeners.len() }),
        failing_acceptors: Cell::new(0),
        adopted_sockets: RefCell::default(),
        pool,
        app: OnceCell::new(),
        shedding: crate::dispatch::queue_wait::Shedding::default(),
        capacity_warning: full::Fullness::default(),
    });
    Worker::enter(&state);
    // If nobody hears it, the inbox learns that the primary is gone.
    let _ = state.channel.send(&ToPrimary::Online);
    tokio::task::spawn_local(primary_channel::obey(Rc::clone(&state)));
    let beats = heartbeat::beats().map_err(|e| Error::system("start a timer of the kernel", e))?;
    tokio::task::spawn_local(heartbeat::beat(beats, Rc::clone(&state), terminate));
    let handler = tokio::select! {
        booted = app(Worker(Rc::clone(&state))) => match booted {
            Ok(handler) => handler,
            Err(e) => return Ok(boot_failed(&state, &e)),
        },
        // CloseRequest to leave before it was ready: there is nothing to finish.
        () = state.drain.started() => return Ok(exit::OK),
    };
    let handler = state.app.get_or_init(|| handler);
    dispatch::start_accepting(&state, handler, listeners, queue)?;
    state.messages.booted();
    state.row.state(WorkerState::Serving);
    say(&state, &ToPrimary::Ready, tag)?;
    let outcome = match handler.run.take() {
        Some(run) => custom_kind::run(&state, run).await,
        None => {
            drained(&state).await;
            Ok(())
        }
    };
    if state.drain.order().is_some() {
        cpu_pool::finish(&state).await;
    }
    state.messages.flush(LAST_LETTERS).await;
    outcome.map(|()| exit::OK)
}

fn boot_failed(state: &LocalWorkerState, error: &Error) -> u8 {
    // If the primary cannot be told, the exit status says it all the same.
    let _ = state.channel.send(&ToPrimary::BootFailed(error.to_string()));
    exit::WORKERS_CANNOT_BOOT
}

fn say(state: &LocalWorkerState, word: &ToPrimary, tag: WorkerTag) -> Result<()> {
    state
        .channel
        .send(word)
        .map_err(|e| Error::system(format!("tell the primary that {tag} is ready"), e))
}

/// Resolves when the worker was told to leave and nothing is open any more, nor on its way to it.
async fn drained(state: &LocalWorkerState) {
    state.drain.started().await;
    loop {
        let gone = state.capacity_freed.notified();
        let empty = state.active_acceptors.get() == 0 && state.connections.borrow().is_empty();
        if empty && state.drain.is_released() {
            return;
        }
        let waited = tokio::time::timeout(RELEASE, gone).await;
        if empty && waited.is_err() {
            // The primary is stuck. Waiting longer would not bring anything.
            return;
        }
    }
}
