//! The `threads` model: one thread accepts, tracks the connections and drains; a multi-thread runtime serves them.
//!
//! Each connection has two tasks. One runs on the multi-thread runtime and serves it with the same code as in all models (see
//! `ServeContext`). The other stays on the accepting thread: it forwards close requests, and removes the connection from the
//! registry at its end. Both share its `ConnectionState`.
//!
//! Limits of this model: connections are not handed over when the worker is replaced (they are closed between two
//! requests), and a handler that blocks is not named in reports, as it blocks one thread of the runtime while the
//! heartbeat comes from the accepting thread.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinError;

use crate::access_log::{LineBuffer, WorkerAccessLog};
use crate::client::{ConnectionInfo, RequestIds};
use crate::config::Config;
use crate::dispatch::{AcceptedConnection, ConnectionStart};
use crate::error::{BoxError, Error, Result};
use crate::scoreboard::SharedWorkerPage;
use crate::worker::boot_app::boot_panic_error;
use crate::worker::http::connection_state::ConnectionState;
use crate::worker::http::into_service::IntoHttpService;
use crate::worker::http::request_observers::RequestObservers;
use crate::worker::http::serve_connection::{self, HttpTransport, ReleasedConnection};
use crate::worker::http::serve_context::{ConnectionHandle, ServeContext};
use crate::worker::local_state::LocalWorkerState;
use crate::worker::parked::{self, ParkOutcome};
use crate::worker::worker_shared::WorkerShared;
use crate::worker::{BootedApp, Worker, WorkerApp};
use prefork_supervisor::WorkerTag;

/// The multi-thread runtime. Dropping it does not wait for its threads: they end with the process.
struct ServingRuntime(Option<Runtime>);

/// The threads that serve in this model.
pub(crate) struct ServingThreads {
    pub(crate) runtime: Handle,
    pub(crate) context: Arc<ThreadsServeContext>,
}

/// What serving on the threads needs from the worker.
pub(crate) struct ThreadsServeContext {
    worker: Arc<WorkerShared>,
    page: SharedWorkerPage,
    observers: Option<Box<RequestObservers>>,
    /// Lines of the access log that were not handed over yet; a thread uses one of the buffers.
    line_buffers: Box<[Mutex<LineBuffer>]>,
}

impl ThreadsServeContext {
    fn from_local(state: &LocalWorkerState) -> Result<ThreadsServeContext> {
        let page = state.worker_page.shared_page();
        let page = page.ok_or_else(|| {
            Error::internal("the scoreboard page of this worker is for one thread")
        })?;
        let writer = state.access_log_writer.clone();
        let counters = state.worker_page.log_lines();
        let access_log =
            writer.map(|writer| WorkerAccessLog::new(&state.config, state.tag, writer, counters));
        let observers = RequestObservers::new(&state.config, access_log, counters);
        let buffers = (state.config.threads() as usize).clamp(1, MAX_LINE_BUFFERS);
        let line_buffers = (0..buffers).map(|_| Mutex::default()).collect();
        Ok(ThreadsServeContext { worker: Arc::clone(&state.shared), page, observers, line_buffers })
    }

    /// Hands the lines of the access log over to the thread that writes them. Called at each heartbeat.
    pub(crate) fn hand_over_log_lines(&self, now_ms: u64) {
        let Some(observers) = &self.observers else { return };
        for buffer in &self.line_buffers {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            observers.hand_over_lines(&mut buffer, now_ms);
        }
    }
}

/// The most buffers for lines of the access log. More threads share them.
const MAX_LINE_BUFFERS: usize = 64;

/// The number that the next thread gets.
static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of this thread, which chooses its buffer for lines of the access log.
    static THREAD_NUMBER: usize = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

impl ServeContext for ThreadsServeContext {
    type Ptr<T: 'static> = Arc<T>;
    type Recorder = SharedWorkerPage;

    fn new_shared<T: 'static>(value: T) -> Arc<T> {
        Arc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.worker.tag
    }

    fn config(&self) -> &Config {
        &self.worker.config
    }

    fn worker_page(&self) -> &SharedWorkerPage {
        &self.page
    }

    fn observers(&self) -> Option<&RequestObservers> {
        self.observers.as_deref()
    }

    fn with_line_buffer<T>(&self, act: impl FnOnce(&mut LineBuffer) -> T) -> T {
        // A thread that ends has no number any more.
        let number = THREAD_NUMBER.try_with(|number| *number).unwrap_or(0);
        let buffer = &self.line_buffers[number % self.line_buffers.len()];
        act(&mut buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn request_ids(&self) -> Option<&RequestIds> {
        self.worker.request_ids.as_ref()
    }

    #[cfg(feature = "tls")]
    fn tls_config(&self) -> Option<&Arc<rustls::ServerConfig>> {
        self.worker.tls_config.as_ref()
    }

    fn is_draining(&self) -> bool {
        self.worker.drain.is_draining()
    }

    fn should_hand_over(&self) -> bool {
        false
    }

    fn should_announce_close(&self, _: &ConnectionState) -> bool {
        self.is_draining()
    }
}

/// Wraps an application whose service is shared by all threads.
pub(crate) fn multi_thread_app<A, F, S, M>(app: A) -> WorkerApp
where
    A: Fn(Worker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + Send + 'static,
    S: IntoHttpService<M, Service: Send + Sync, Body: Send>,
    <S::Service as Service<Request<Incoming>>>::Future: Send,
{
    let app = Arc::new(app);
    Arc::new(move |state: Rc<LocalWorkerState>| {
        let app = Arc::clone(&app);
        Box::pin(async move {
            let shared = Arc::new(ThreadsServeContext::from_local(&state)?);
            let runtime = ServingRuntime::start(&state)?;
            let runtime_handle = runtime.handle()?;
            let worker = Worker(Arc::clone(&state.shared));
            let threads =
                ServingThreads { runtime: runtime_handle.clone(), context: Arc::clone(&shared) };
            // Booted once, so it was not set before.
            let _ = state.serving_threads.set(threads);
            // On the threads of the runtime, so that tasks spawned by the application run there.
            let booted = runtime_handle
                .spawn(async move { app(worker).await.map(S::into_http_service) })
                .await;
            let panicked = |e: JoinError| match e.try_into_panic() {
                Ok(panic) => boot_panic_error(&*panic),
                Err(e) => Error::application("the boot function was cancelled", e),
            };
            let service = Arc::new(booted.map_err(panicked)?.map_err(Error::from_app)?);
            let handle = move |accepted| {
                // Keeps the runtime alive as long as connections are accepted.
                let _runtime = &runtime;
                let (shared, service) = (Arc::clone(&shared), Arc::clone(&service));
                tokio::task::spawn_local(supervise_connection(
                    runtime_handle.clone(),
                    shared,
                    service,
                    accepted,
                ));
            };
            Ok(BootedApp::new(handle, true))
        })
    })
}

/// Serves a connection on the multi-thread runtime, and keeps it in the registry of the accepting thread until it ends.
pub(crate) async fn supervise_connection<S, B>(
    runtime: Handle,
    shared: Arc<ThreadsServeContext>,
    app: Arc<S>,
    accepted: AcceptedConnection,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let AcceptedConnection { stream, first, info, start, entry, guard } = accepted;
    entry.conn.pin_to_worker();
    // Moves the socket from the epoll instance of this thread to that of the runtime.
    let stream = match stream.detach() {
        Ok(stream) => stream,
        Err(e) => return log::warn!("{} cannot pass a connection on: {e}", shared.tag()),
    };
    let handle =
        Arc::new(ThreadConnectionHandle { conn: Arc::clone(&entry.conn), waker: Mutex::default() });
    let mut accepted = (HttpTransport { stream, first, is_http2: false }, info);
    let mut start = start;
    loop {
        let (shared, app) = (Arc::clone(&shared), Arc::clone(&app));
        let serving = serve_on_runtime(shared, app, Arc::clone(&handle), accepted, start);
        let mut task = pin!(runtime.spawn(serving));
        let released = poll_fn(|cx| {
            entry.register_waker(cx.waker());
            // A close request may have woken this task.
            handle.wake();
            task.as_mut().poll(cx)
        })
        .await;
        // The panic hook has reported a panic; it ends this connection only.
        let Some((ReleasedConnection { stream, unread, .. }, info)) = released.ok().flatten()
        else {
            break;
        };
        // Never released for a hand-over in this model: see `should_hand_over`.
        match parked::park_connection(guard.state(), &entry, stream, unread, info.as_ref()) {
            ParkOutcome::Parked => return guard.keep_counted(),
            ParkOutcome::Gone => break,
            ParkOutcome::Kept(stream, first) => {
                accepted = (HttpTransport { stream, first, is_http2: false }, info);
                start = ConnectionStart::NextRequest;
            }
        }
    }
    drop(guard);
}

/// Serves a connection until it ends or is to be parked. Returns it in the latter case, removed from the runtime.
async fn serve_on_runtime<S, B>(
    shared: Arc<ThreadsServeContext>,
    app: Arc<S>,
    handle: Arc<ThreadConnectionHandle>,
    accepted: (HttpTransport, Option<ConnectionInfo>),
    start: ConnectionStart,
) -> Option<(ReleasedConnection, Option<ConnectionInfo>)>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let begun = serve_connection::begin_http(&*shared, &*handle, accepted, start).await;
    let (transport, info) = begun?;
    let exec = TokioExecutor::new();
    let released = serve_connection::serve_until_released::<S, B, ThreadsServeContext, _, _>(
        &shared,
        &app,
        &*handle,
        exec,
        transport,
        info.as_ref(),
    );
    let ReleasedConnection { stream, unread, is_for_parking } = released.await?;
    let stream = stream.detach().ok()?;
    Some((ReleasedConnection { stream, unread, is_for_parking }, info))
}

/// Wakes the task that serves a connection on another thread, after a close request.
struct ThreadConnectionHandle {
    conn: Arc<ConnectionState>,
    waker: Mutex<Option<Waker>>,
}

impl ThreadConnectionHandle {
    /// Wakes the task. Its next poll sees every close request made before: both take the lock, and the task checks for
    /// requests after that.
    fn wake(&self) {
        if let Some(waker) = &*self.lock() {
            waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionHandle for ThreadConnectionHandle {
    fn state(&self) -> &Arc<ConnectionState> {
        &self.conn
    }

    fn register_waker(&self, waker: &Waker) {
        let mut slot = self.lock();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}

impl ServingRuntime {
    fn start(state: &LocalWorkerState) -> Result<ServingRuntime> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(state.config.threads() as usize)
            .thread_name("serving")
            .enable_all()
            .build()
            .map_err(|e| Error::system("start the threads of the worker", e))?;
        Ok(ServingRuntime(Some(runtime)))
    }

    fn handle(&self) -> Result<Handle> {
        let gone = || Error::internal("the runtime of the worker is gone while it boots");
        self.0.as_ref().map(|runtime| runtime.handle().clone()).ok_or_else(gone)
    }
}

impl Drop for ServingRuntime {
    fn drop(&mut self) {
        // In the background, as dropping a runtime waits for its handlers, and this thread must not block.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
