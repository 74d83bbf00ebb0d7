//! Serves HTTP on streams that the application has: accepted raw connections, passed ones, TLS, or pipes in memory.

use std::any::Any;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::into_service::IntoHttpService;
use super::serve_connection::serve_connection;
use crate::client::ConnectionInfo;
use crate::dispatch::{AcceptedConnection, ConnectionStart};
use crate::runtime::threads::{ServingThreads, supervise_connection};
use crate::worker::Worker;
use crate::worker::accepted_stream::AcceptedStream;
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;
use crate::worker::raw_connection::is_in_raw_connection;

/// A stream of the application that becomes an HTTP connection.
struct HttpStream {
    stream: LazyStream,
    first: Bytes,
    info: Option<ConnectionInfo>,
    /// Whether the worker counts it already, as the raw connection that it comes from.
    is_nested: bool,
}

/// Serving HTTP on connections that the application has accepted, received or made itself.
impl Worker {
    /// Serves HTTP on `io` as on an accepted connection, and returns when the connection has ended.
    ///
    /// The requests are checked, limited by the configured timeouts, counted, and named in the status; a draining worker waits
    /// for them and then closes the connection. `io` may be
    ///
    /// - an [`AcceptedStream`], in [`Cluster::serve_connections`](crate::Cluster::serve_connections),
    /// - a [`PassedConnection`](crate::PassedConnection), after `AcceptedStream::try_from(connection)?`,
    /// - any other stream of bytes: TLS, a `tokio::net::TcpStream` from a listener of the application's own, or one end of
    ///   `tokio::io::duplex`.
    ///
    /// For an `AcceptedStream`, requests have their [`ConnectionInfo`]; for other streams pass it with
    /// [`Worker::serve_http_from`]. Connections that are served like this are not handed over to other workers.
    ///
    /// May be called on any thread. The service runs on the worker's event loop, under
    /// [`ConcurrencyModel::Threads`](crate::ConcurrencyModel::Threads) on its threads. Dropping the future does not end the
    /// connection.
    ///
    /// ```no_run
    /// use tokio_prefork::{AcceptedStream, Cluster, Config, Worker};
    /// # use hyper::{Request, Response, body::Incoming, service::service_fn};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// # let service = service_fn(|_: Request<Incoming>| async { Ok::<_, std::io::Error>(Response::new(String::new())) });
    /// Cluster::new(config).serve_connections(move |worker: Worker| async move {
    ///     Ok(move |stream: AcceptedStream| {
    ///         let worker = worker.clone();
    ///         // A TLS handshake could stand here.
    ///         async move { worker.serve_http(stream, service).await }
    ///     })
    /// })
    /// # }
    /// ```
    pub fn serve_http<I, S, M>(
        &self,
        io: I,
        service: S,
    ) -> impl Future<Output = ()> + Send + use<I, S, M>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: IntoHttpService<M, Service: Send + Sync, Body: Send>,
        <S::Service as Service<Request<Incoming>>>::Future: Send,
    {
        self.serve_http_stream(HttpStream::new(io, None), service)
    }

    /// As [`Worker::serve_http`], with what the requests' extensions say about the connection: for TLS over an
    /// [`AcceptedStream`], its [`connection_info`](AcceptedStream::connection_info).
    pub fn serve_http_from<I, S, M>(
        &self,
        info: ConnectionInfo,
        io: I,
        service: S,
    ) -> impl Future<Output = ()> + Send + use<I, S, M>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: IntoHttpService<M, Service: Send + Sync, Body: Send>,
        <S::Service as Service<Request<Incoming>>>::Future: Send,
    {
        self.serve_http_stream(HttpStream::new(io, Some(info)), service)
    }

    fn serve_http_stream<S, M>(
        &self,
        http: HttpStream,
        service: S,
    ) -> impl Future<Output = ()> + Send + use<S, M>
    where
        S: IntoHttpService<M, Service: Send + Sync, Body: Send>,
        <S::Service as Service<Request<Incoming>>>::Future: Send,
    {
        let service = service.into_http_service();
        // Until the connection is registered, nothing else keeps a draining worker.
        let hold = self.hold("http connection");
        let (done, ended) = oneshot::channel::<()>();
        let job = move |state: &Rc<LocalWorkerState>| {
            let accepted = http.register(state);
            drop(hold);
            let state = Rc::clone(state);
            tokio::task::spawn_local(async move {
                match state.serving_threads.get() {
                    Some(ServingThreads { runtime, context }) => {
                        let (runtime, context) = (runtime.clone(), Arc::clone(context));
                        supervise_connection(runtime, context, Arc::new(service), accepted).await;
                    }
                    None => serve_connection(state, Rc::new(service), accepted).await,
                }
                drop(done);
            });
        };
        // Fails when the event loop has ended; then `ended` resolves at once.
        let _ = self.0.loop_jobs.send(Box::new(job));
        async move {
            let _ = ended.await;
        }
    }
}

impl HttpStream {
    fn new<I>(io: I, info: Option<ConnectionInfo>) -> HttpStream
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let is_nested = is_in_raw_connection();
        let mut io = Some(io);
        let any: &mut dyn Any = &mut io;
        let accepted = any.downcast_mut::<Option<AcceptedStream>>().and_then(Option::take);
        if let Some(accepted) = accepted {
            let (stream, first, own_info) = accepted.into_stream();
            let info = Some(info.unwrap_or(own_info));
            return HttpStream { stream, first, info, is_nested };
        }
        let stream = io.map_or_else(LazyStream::closed, LazyStream::from_stream);
        HttpStream { stream, first: Bytes::new(), info, is_nested }
    }

    /// Registers the connection with the worker, as if it had been accepted.
    fn register(self, state: &Rc<LocalWorkerState>) -> AcceptedConnection {
        let entry = ConnectionEntry::new(state.now_ms());
        entry.conn.pin_to_worker();
        // The future of `serve_http` waits for the task.
        entry.conn.forbid_parking();
        let guard = match self.is_nested {
            true => ConnectionGuard::nested(state, &entry),
            false => {
                state.worker_page.connection_accepted();
                ConnectionGuard::new(state, &entry)
            }
        };
        let HttpStream { stream, first, info, .. } = self;
        AcceptedConnection { stream, first, info, start: ConnectionStart::Plain, entry, guard }
    }
}
