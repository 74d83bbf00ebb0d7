//! Built-in application of `prefork serve`: demonstration paths and load test targets, or a static file server.
//!
//! It uses only the public API of the library.

mod body_budget;
mod compute;
mod faults;
mod isolated;
mod routes;
mod static_files;
mod websocket;
mod zero_body;

use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};

use crate::dev::DevState;
pub(crate) use compute::fib;
pub(crate) use routes::CLIENT_PATH;
use routes::{AppResponse, AppRoutes, emptied};
use static_files::FileBody;
pub(crate) use static_files::{FileServerConfig, OverlayTag, RootDir};
use tokio_prefork::{Cluster, ConcurrencyModel, Config, Result};

/// Options of the built-in application, attached to the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct AppOptions {
    /// Serve static files instead of the demonstration.
    pub(crate) files: Option<FileServerConfig>,
    /// Answer `/healthz` and `/readyz`.
    pub(crate) health_paths: bool,
    /// Maximum size of a request body in bytes.
    pub(crate) max_body_size: u64,
    /// Memory per worker for all request bodies, in bytes.
    pub(crate) max_buffered_bodies: u64,
    /// Serve paths that crash or hang a worker on purpose.
    pub(crate) faults: bool,
    /// Serve the demonstration paths. Health checks do not depend on it.
    pub(crate) demo: bool,
}

/// Runs the built-in application with the [`AppOptions`] attached to `config`; `read_config` is called on each reload. Watches
/// files if `dev` says so.
pub(crate) fn serve_app(
    config: Config,
    dev: &DevState,
    read_config: impl Fn() -> Result<Config> + 'static,
) -> Result<()> {
    let model = config.model();
    let faults = config.app_settings::<AppOptions>().is_some_and(|options| options.faults);
    let cluster = dev.watch(Cluster::new(config).reload_with(read_config));
    match model {
        ConcurrencyModel::Threads => cluster.serve_threads(|worker| async move {
            let routes = Arc::new(AppRoutes::new(worker, None));
            Ok(service_fn(move |request| respond(&routes, request)))
        }),
        _ => {
            let pool = faults.then(isolated::declare_pool);
            let cluster = match &pool {
                Some(pool) => cluster.isolated_pool(pool),
                None => cluster,
            };
            cluster.serve(move |worker| {
                let pool = pool.clone();
                async move {
                    let routes = Rc::new(AppRoutes::new(worker, pool));
                    Ok(service_fn(move |request| respond(&routes, request)))
                }
            })
        }
    }
}

/// Resolves to the response to a request. By hand, because an `async` block moves a response that is there at once twice more.
///
/// Later ones are boxed, because hyper moves this; each separately, because the memory for a small future is quicker to get.
enum ResponseFuture<E, R, D> {
    /// `None` once it has been returned.
    Ready(Option<AppResponse>),
    Echo(Pin<Box<E>>),
    Route(Pin<Box<R>>),
    Disk(Pin<Box<D>>),
}

impl<E, R, D> Future for ResponseFuture<E, R, D>
where
    E: Future<Output = AppResponse>,
    R: Future<Output = AppResponse>,
    D: Future<Output = Response<FileBody>>,
{
    type Output = Result<AppResponse, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.get_mut() {
            ResponseFuture::Ready(response) => match response.take() {
                Some(response) => response,
                None => return Poll::Pending,
            },
            ResponseFuture::Echo(future) => ready!(future.as_mut().poll(cx)),
            ResponseFuture::Route(future) => ready!(future.as_mut().poll(cx)),
            ResponseFuture::Disk(future) => ready!(future.as_mut().poll(cx)).map(Either::Right),
        }))
    }
}

/// Answers a request, immediately if possible. `routes` is an `Rc` for one thread, an `Arc` for several.
fn respond<P>(
    routes: &P,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<AppResponse, Infallible>> + use<P>
where
    P: Deref<Target = AppRoutes> + Clone + 'static,
{
    if let Some(files) = &routes.files {
        return match files.try_respond_without_disk(&request, |path| routes.health_status(path)) {
            Ok(response) => ResponseFuture::Ready(Some(response.map(Either::Right))),
            Err(pending) => ResponseFuture::Disk(Box::pin(files.respond_from_disk(pending))),
        };
    }
    let response = routes.try_respond_immediately(&mut request);
    if response.is_some() {
        return ResponseFuture::Ready(response);
    }
    let routes = routes.clone();
    if routes.is_echo(&request) {
        let (parts, body) = request.into_parts();
        let fields = emptied(parts.headers);
        return ResponseFuture::Echo(Box::pin(async move { routes.echo(body, fields).await }));
    }
    ResponseFuture::Route(Box::pin(async move { routes.respond(request).await }))
}
