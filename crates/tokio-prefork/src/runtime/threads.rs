//! The `threads` model: this worker's own loop accepts, keeps the table of connections, their limits and the drain;
//! tokio's multi-thread runtime beside it serves them.
//!
//! Each connection has two tasks: one on a thread of the runtime, which serves it with the same code as everywhere
//! (see `context`), and its steward here, which passes on what the connection is told and takes it out of the books
//! at its end. What is shared is the state of the connection, `ConnectionState`.
//!
//! Not to be had here: connections are not handed over when the worker is replaced (they are told to close between
//! two requests), and a handler that blocks is not named: it holds one thread of the runtime, while the beat comes
//! from the loop that accepts.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::{Handle, Runtime};

use crate::channel::ToPrimary;
use crate::dispatch::first_byte::AcceptedConnection;
use crate::error::{Error, Result};
use crate::worker::http::connection_state::ConnectionState;
use crate::worker::http::handle_request::BoxError;
use crate::worker::http::serve_connection;
use crate::worker::http::serve_context::ConnectionHandle;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;
use crate::worker::threaded_worker::{ThreadedWorker, ThreadedWorkerState};
use crate::worker::{BootedApp, Worker, WorkerApp};

/// The runtime that serves; its threads are left alone at the end, as the process ends with them.
struct Crew(Option<Runtime>);

/// An application whose service is shared by all threads.
pub(crate) fn threads_app<A, F, S, B>(app: A) -> WorkerApp
where
    A: Fn(ThreadedWorker) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S>> + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let app = Arc::new(app);
    Arc::new(move |worker: Worker| {
        let (app, state) = (Arc::clone(&app), Rc::clone(&worker.0));
        Box::pin(async move {
            let shared = Arc::new(ThreadedWorkerState::from_local(&state)?);
            let crew = Crew::start(&state)?;
            let on = crew.handle()?;
            let worker = ThreadedWorker(Arc::clone(&shared));
            // On its own threads, so that what the application spawns runs there.
            let booted = on.spawn(async move { app(worker).await }).await;
            let panicked = |_| Error::application("boot", "it panicked (see above)");
            let service = Arc::new(booted.map_err(panicked)??);
            tokio::task::spawn_local(follow(state, Arc::clone(&shared)));
            let handle = move |accepted| {
                // Moved in as a whole: the threads live as long as connections can come.
                let _crew = &crew;
                let (shared, service) = (Arc::clone(&shared), Arc::clone(&service));
                tokio::task::spawn_local(steward(on.clone(), shared, service, accepted));
            };
            Ok(BootedApp::new(handle, true))
        })
    })
}

/// Tells the threads that the worker drains, and the worker that they want it to.
async fn follow(state: Rc<LocalWorkerState>, shared: Arc<ThreadedWorkerState>) {
    loop {
        tokio::select! {
            () = state.drain.wait_started() => {
                shared.is_draining.store(true, Ordering::Release);
                return shared.drain_started.notify_waiters();
            }
            () = shared.retire_requested.notified() => state.begin_own_drain(&ToPrimary::Retiring),
        }
    }
}

/// Has a connection served by the threads, and keeps it in the books of the loop that accepts until it has ended.
async fn steward<S, B>(
    on: Handle,
    shared: Arc<ThreadedWorkerState>,
    app: Arc<S>,
    accepted: AcceptedConnection,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let AcceptedConnection { stream, first, entry, guard } = accepted;
    entry.conn.pin_to_worker();
    let unix = stream.is_unix();
    // Out of the epoll instance of this loop, into that of the runtime.
    let fd = match stream.into_fd() {
        Ok(fd) => fd,
        Err(e) => return log::warn!("{} cannot pass a connection on: {e}", shared.tag),
    };
    let handle =
        Arc::new(ThreadConnectionHandle { conn: Arc::clone(&entry.conn), waker: Mutex::default() });
    let serving = serve_there(shared, app, Arc::clone(&handle), fd, unix, first);
    let mut task = pin!(on.spawn(serving));
    // A panic has been reported by the panic hook; it costs this connection.
    let _ = poll_fn(|cx| {
        entry.register_waker(cx.waker());
        // We may have been woken because the connection was told something.
        handle.wake();
        task.as_mut().poll(cx)
    })
    .await;
    drop(guard);
}

async fn serve_there<S, B>(
    shared: Arc<ThreadedWorkerState>,
    app: Arc<S>,
    handle: Arc<ThreadConnectionHandle>,
    fd: OwnedFd,
    unix: bool,
    mut first: Bytes,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut stream = LazyStream::new(fd, unix);
    if serve_connection::is_http2_enabled(&shared.config) {
        first = serve_connection::detect_protocol(&*shared, &*handle, &mut stream, first).await;
    }
    let exec = TokioExecutor::new();
    let left = serve_connection::serve_until_handover::<S, B, ThreadedWorkerState, _, _>(
        &shared, &app, &*handle, exec, stream, first,
    );
    // It never leaves for another worker: `should_hand_over` says so.
    drop(left.await);
}

/// How a task on another thread hears that its connection was told something.
struct ThreadConnectionHandle {
    conn: Arc<ConnectionState>,
    waker: Mutex<Option<Waker>>,
}

impl ThreadConnectionHandle {
    /// What the connection was told before this is seen by the task's next poll: both take the lock, and the task
    /// looks after it has done so.
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

impl Crew {
    fn start(state: &LocalWorkerState) -> Result<Crew> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(state.config.threads() as usize)
            .thread_name("serving")
            .enable_all()
            .build()
            .map_err(|e| Error::system("start the threads of the worker", e))?;
        Ok(Crew(Some(runtime)))
    }

    fn handle(&self) -> Result<Handle> {
        let gone = || Error::application("boot", "the threads are gone");
        self.0.as_ref().map(|runtime| runtime.handle().clone()).ok_or_else(gone)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Not waited for: this is a place where nobody may block, and a handler may.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
