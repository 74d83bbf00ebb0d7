//! A worker: a forked process with its own single-threaded tokio runtime.
//!
//! `run_worker` is its whole life: build the runtime, boot the application, report READY, accept and serve connections,
//! drain, and return an exit status. Everything runs on one thread, so handlers may hold `Rc` and need not be `Send`.

pub(crate) mod accepted_stream;
pub(crate) mod boot_app;
pub(crate) mod capacity_warning;
pub(crate) mod connection_registry;
pub(crate) mod cpu_pool;
pub(crate) mod custom_kind;
pub(crate) mod drain;
pub(crate) mod end_on_drain;
pub(crate) mod handover;
pub(crate) mod handshake_queue;
pub(crate) mod heartbeat;
pub(crate) mod http;
pub(crate) mod idle_heartbeat;
pub(crate) mod isolated_jobs;
pub(crate) mod lazy_stream;
pub(crate) mod local_state;
pub(crate) mod messages;
pub(crate) mod panic_report;
pub(crate) mod parked;
pub(crate) mod pending_work;
pub(crate) mod primary_channel;
pub(crate) mod raw_connection;
pub(crate) mod shutdown;
pub(crate) mod socket_stream;
pub(crate) mod spans;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod worker_handle;
pub(crate) mod worker_shared;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::sync::{Notify, mpsc};

use crate::access_log::WorkerAccessLog;
use crate::channel::{WorkerChannelEnd, WorkerReport};
use crate::client::{ListenerNames, RequestIds};
use crate::dispatch::{self, AcceptedConnection, ConnectionStarter};
use crate::error::{BoxError, Error, ErrorKind, Result, exit};
use crate::listener::Listener;
use crate::status::WorkerState;
use crate::worker_init::{MessageEndInit, WorkerInit};
pub use accepted_stream::AcceptedStream;
use cpu_pool::WorkerPools;
pub(crate) use custom_kind::custom_kind_app;
pub use end_on_drain::EndOnDrain;
use http::into_service::IntoHttpService;
use http::request_observers::RequestObservers;
use http::serve_connection;
pub use http::timeouts::request_deadline::RequestDeadline;
use idle_heartbeat::IdleHeartbeat;
pub(crate) use isolated_jobs::isolated_process_app;
pub(crate) use local_state::LocalWorkerState;
pub use pending_work::HoldGuard;
use spans::WorkerSpan;
pub use worker_handle::Worker;
pub use worker_shared::is_worker;
use worker_shared::{LoopJob, WorkerShared};
pub(crate) use worker_shared::{is_on_event_loop, set_worker_process};

type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// A booted application: what a worker does with each connection, or the loop of a worker without connections.
pub(crate) struct BootedApp {
    handle_connection: Rc<dyn Fn(AcceptedConnection)>,
    /// Whether the protocol lets the client send first, as HTTP does.
    client_speaks_first: bool,
    /// The loop of a worker of a custom kind.
    main_loop: Cell<Option<LocalFuture<Result<()>>>>,
}

impl BootedApp {
    pub(crate) fn new(
        handle_connection: impl Fn(AcceptedConnection) + 'static,
        client_speaks_first: bool,
    ) -> BootedApp {
        let handle_connection = Rc::new(handle_connection);
        BootedApp { handle_connection, client_speaks_first, main_loop: Cell::default() }
    }

    /// Passes a connection to the application that was served before.
    pub(crate) fn handle(&self, connection: AcceptedConnection) {
        (self.handle_connection)(connection);
    }

    pub(crate) fn connection_starter(&self, state: &Rc<LocalWorkerState>) -> ConnectionStarter {
        ConnectionStarter::new(state, self.client_speaks_first, &self.handle_connection)
    }
}

/// Boots the application in a worker. Called once per event loop.
pub(crate) type WorkerApp =
    Arc<dyn Fn(Rc<LocalWorkerState>) -> LocalFuture<Result<BootedApp>> + Send + Sync>;

/// Creates an application that serves HTTP requests.
pub(crate) fn http_app<A, F, S, M>(app: A) -> WorkerApp
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + 'static,
    S: IntoHttpService<M>,
{
    Arc::new(move |state: Rc<LocalWorkerState>| {
        let booting = app(Worker(Arc::clone(&state.shared)));
        Box::pin(async move {
            let service = booting.await.map_err(Error::from_app)?;
            let service = Rc::new(service.into_http_service());
            let handle = move |accepted| {
                let serving = serve_connection::serve_connection(
                    Rc::clone(&state),
                    Rc::clone(&service),
                    accepted,
                );
                // Boxed, because spawning moves the future several times.
                tokio::task::spawn_local(Box::pin(serving));
            };
            Ok(BootedApp::new(handle, true))
        })
    })
}

/// Serves a connection whose every request is redirected to https.
async fn serve_redirect(state: Rc<LocalWorkerState>, accepted: AcceptedConnection) {
    // Never called, as the redirect answers.
    let service = service_fn(|_: Request<Incoming>| async {
        Err::<Response<Full<Bytes>>, _>(Error::internal("a request of a redirecting listener"))
    });
    serve_connection::serve_connection(state, Rc::new(service), accepted).await;
}

/// Creates an application for workers that accept no connections.
pub(crate) fn app_without_connections() -> WorkerApp {
    Arc::new(|_| Box::pin(async { Ok(BootedApp::new(drop, false)) }))
}

/// Creates an application that serves raw connections.
pub(crate) fn raw_connection_app<A, F, H, C>(app: A) -> WorkerApp
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<H, BoxError>> + 'static,
    H: Fn(AcceptedStream) -> C + 'static,
    C: Future<Output = ()> + 'static,
{
    Arc::new(move |state: Rc<LocalWorkerState>| {
        let booting = app(Worker(Arc::clone(&state.shared)));
        Box::pin(async move {
            let handler = Rc::new(booting.await.map_err(Error::from_app)?);
            let handle = move |accepted: AcceptedConnection| match &accepted.info {
                Some(info) if info.https_redirect().is_some() => {
                    tokio::task::spawn_local(serve_redirect(Rc::clone(&state), accepted));
                }
                _ => raw_connection::serve_raw_connection(&state, &handler, accepted),
            };
            Ok(BootedApp::new(handle, false))
        })
    })
}

/// Runs a worker from its `WorkerInit` to its exit status.
pub(crate) fn run_worker(init: WorkerInit, app: &WorkerApp) -> u8 {
    let tag = init.tag;
    let run = || -> Result<u8> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = idle_heartbeat::set_hooks(runtime.enable_all())
            .build_local(tokio::runtime::LocalOptions::default())
            .map_err(|e| Error::system("build the worker's runtime", e))?;
        let outcome = runtime.block_on(boot_and_serve(init, app));
        // Dropping the runtime would wait for its blocking pool, which may hang on a disk that does not respond.
        runtime.shutdown_background();
        outcome
    };
    run().unwrap_or_else(|e| {
        log::error!("{tag} {e}");
        e.exit_status()
    })
}

/// What a booted worker accepts connections from.
pub(crate) struct AcceptSources {
    pub(crate) listeners: Vec<Listener>,
    queue: Option<OwnedFd>,
}

type LoopJobs = mpsc::UnboundedReceiver<LoopJob>;

/// Creates the state of a worker in the current runtime. Returns it with what is needed to start.
pub(crate) fn create_state(
    init: WorkerInit,
) -> Result<(Rc<LocalWorkerState>, AcceptSources, LoopJobs)> {
    let WorkerInit {
        tag, listeners, channel, messages, queue, mut worker_pages, load_page, ..
    } = init;
    let WorkerInit { board, config, kinds, .. } = init;
    let access_log = init.access_log.clone();
    let worker_page = worker_pages
        .pop()
        .ok_or_else(|| Error::internal("the worker was forked without a scoreboard page"))?;
    let counters = worker_page.log_lines();
    let access_log = access_log.map(|writer| WorkerAccessLog::new(&config, tag, writer, counters));
    let observers = RequestObservers::new(&config, access_log, counters);
    let channel = WorkerChannelEnd::new(channel)
        .map_err(|e| Error::system("register the channel to the primary", e))?;
    let listener_names = Arc::new(ListenerNames::new(&listeners, &config));
    let (loop_jobs, job_receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(WorkerShared {
        listener_names: Arc::clone(&listener_names),
        tag,
        kinds,
        config: Arc::clone(&config),
        scoreboard: board.clone(),
        own_page: worker_page.thread_view(),
        messages: messages.start(tag)?,
        pools: init.pools.unwrap_or_else(|| WorkerPools::new(&config, &worker_page, tag, 1)),
        request_ids: RequestIds::for_worker(&config)?,
        #[cfg(feature = "tls")]
        tls_config: init.tls.server_config,
        #[cfg(feature = "tls")]
        session_tickets: init.tls.session_tickets,
        is_primary_connected: AtomicBool::new(true),
        drain: worker_shared::DrainSignal::default(),
        holds: pending_work::Holds::default(),
        stop_functions: pending_work::StopFunctions::default(),
        loop_jobs,
        runtime: tokio::runtime::Handle::current(),
    });
    let state = Rc::new(LocalWorkerState {
        shared,
        tag,
        observers,
        line_buffer: RefCell::default(),
        access_log_writer: init.access_log,
        config,
        listener_names,
        worker_page,
        load_page,
        scoreboard: board,
        channel,
        drain: drain::DrainState::default(),
        connections: RefCell::default(),
        parked: parked::ParkedConnections::default(),
        handshakes: handshake_queue::HandshakeQueue::default(),
        capacity_freed: Notify::new(),
        accept_recheck: Notify::new(),
        busiest_worker_connections: Cell::new(0),
        active_acceptors: Cell::new(if queue.is_some() { 1 } else { listeners.len() }),
        failing_acceptors: Cell::new(0),
        adopted_sockets: RefCell::default(),
        serving_threads: OnceCell::new(),
        app: RefCell::default(),
        queue_wait_rejections: crate::dispatch::queue_wait::RejectionLog::default(),
        capacity_warning: capacity_warning::CapacityWarning::default(),
    });
    Ok((state, AcceptSources { listeners, queue }, job_receiver))
}

/// Boots the application, serves until the worker has drained, and returns the exit status.
async fn boot_and_serve(init: WorkerInit, app: &WorkerApp) -> Result<u8> {
    let owns_messages = matches!(init.messages, MessageEndInit::Channel(..));
    let terminate = Arc::clone(&init.terminate);
    let (state, AcceptSources { listeners, queue }, loop_jobs) = create_state(init)?;
    worker_shared::set_current(&state);
    let span = WorkerSpan::enter(state.tag);
    let pool_user = state.shared.pools.user();
    tokio::task::spawn_local(worker_shared::run_loop_jobs(Rc::clone(&state), loop_jobs));
    // If this fails, the task that reads the channel notices that the primary is gone.
    let _ = state.channel.send(&WorkerReport::Online);
    tokio::task::spawn_local(primary_channel::follow_primary(Rc::clone(&state)));
    tokio::task::spawn_local(worker_shared::follow_drain_requests(Rc::clone(&state)));
    let timer =
        heartbeat::create_timer().map_err(|e| Error::system("create the heartbeat timer", e))?;
    let idle = IdleHeartbeat::new(state.worker_page.thread_view());
    tokio::task::spawn_local(heartbeat::run_heartbeat(timer, Rc::clone(&state), terminate, idle));
    let booted = tokio::select! {
        booted = boot_app::boot_app(app, Rc::clone(&state)) => {
            booted.map_err(|e| report_boot_failure(&state, &e))
        }
        // A drain before READY: there is nothing to finish.
        () = state.drain.wait_started() => Err(exit::OK),
    };
    let booted = match booted {
        Ok(booted) => booted,
        Err(exit_status) => {
            shutdown::finish_messages(&state, owns_messages).await;
            return Ok(exit_status);
        }
    };
    // Entered on this thread as long as the worker runs, so that everything on it is inside.
    let _span = span.enter_after_boot(state.tag);
    let app = Rc::new(booted);
    state.app.replace(Some(Rc::clone(&app)));
    dispatch::start_accepting(&state, &app, listeners, queue)?;
    if owns_messages {
        state.shared.messages.finish_boot();
    }
    state.worker_page.set_state(WorkerState::Serving);
    let ready = state.channel.send(&WorkerReport::Ready);
    ready.map_err(|e| {
        Error::system(format!("report to the primary that {} is ready", state.tag), e)
    })?;
    let main_loop = app.main_loop.take();
    drop(app);
    let outcome = match main_loop {
        Some(main_loop) => custom_kind::run_main_loop(&state, main_loop).await,
        None => {
            shutdown::wait_until_drained(&state).await;
            Ok(())
        }
    };
    shutdown::finish(&state, pool_user).await;
    shutdown::finish_messages(&state, owns_messages).await;
    state.finish_access_log(owns_messages);
    outcome.map(|()| exit::OK)
}

/// Reports a failed boot to the primary, and returns the exit status.
fn report_boot_failure(state: &LocalWorkerState, error: &Error) -> u8 {
    // If sending fails, the primary learns it from the exit status.
    let _ = state.channel.send(&WorkerReport::BootFailed(error.to_string()));
    ErrorKind::WorkersCannotBoot.exit_status()
}
