//! The built-in application of `prefork serve`: a demonstration, a target for load tests, or a static file
//! server. It uses the public interface only, like any stranger's.

mod body;
mod body_budget;
mod compute;
mod faults;
mod isolated;
mod routes;
mod static_files;

use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};

pub(crate) use compute::fib;
use routes::Routes;
use static_files::FileBody;
pub(crate) use static_files::{FileServerConfig, RootDir};
use tokio_prefork::pool::Pool;
use tokio_prefork::status::ClusterStatus;
use tokio_prefork::{
    Cluster, ConcurrencyModel, Config, IsolatedPoolConfig, Result, ThreadedWorker, Worker,
};

/// What the built-in application can be told.
#[derive(Debug, Clone, Default)]
pub(crate) struct AppOptions {
    /// Serve the files of this directory instead of the demonstration.
    pub(crate) files: Option<FileServerConfig>,
    /// Answer `/healthz` and `/readyz`.
    pub(crate) health_paths: bool,
    /// Largest request body in bytes.
    pub(crate) max_body_size: u64,
    /// Bytes that all request bodies of a worker may take in memory together.
    pub(crate) max_buffered_bodies: u64,
    /// Offer paths that break a worker on purpose.
    pub(crate) faults: bool,
    /// Offer the paths of the demonstration; those for health checks are always there.
    pub(crate) demo: bool,
}

/// What the paths ask of the worker they are served in, whatever the concurrency model.
trait Site: 'static {
    fn config(&self) -> &Config;
    fn cluster_status(&self) -> ClusterStatus;
    fn is_ready(&self) -> bool;
    fn pid(&self) -> u32;
    fn pool(&self) -> &Pool;
}

macro_rules! site {
    ($($worker:ident),*) => {$(
        impl Site for $worker {
            fn config(&self) -> &Config {
                $worker::config(self)
            }

            fn cluster_status(&self) -> ClusterStatus {
                $worker::cluster_status(self)
            }

            fn is_ready(&self) -> bool {
                $worker::is_ready(self)
            }

            fn pid(&self) -> u32 {
                $worker::pid(self)
            }

            fn pool(&self) -> &Pool {
                $worker::pool(self)
            }
        }
    )*};
}

site!(Worker, ThreadedWorker);

/// Runs the built-in application. Its options are attached to the configuration.
pub(crate) fn serve_app(
    config: Config,
    reread: impl Fn() -> Result<Config> + 'static,
) -> Result<ExitCode> {
    let model = config.model;
    let faults = config.app_settings::<AppOptions>().is_some_and(|options| options.faults);
    let cluster = Cluster::new(config).reload_with(reread);
    match model {
        ConcurrencyModel::Threads => cluster.serve_threads(|worker| async move {
            let site = Arc::new(Routes::new(worker));
            Ok(service_fn(move |request| respond(&site, request)))
        }),
        // Apart, so that requests pay for it only where it is.
        _ if faults => {
            let pool = IsolatedPoolConfig::new(isolated::POOL, 0);
            cluster.isolated_pool(pool, isolated::work).serve(|worker| async move {
                let site = Rc::new(Routes::new(worker.clone()));
                Ok(service_fn(move |request: Request<Incoming>| {
                    let (worker, site) = (worker.clone(), Rc::clone(&site));
                    async move {
                        match isolated::job(request.uri().path()) {
                            Some(job) => {
                                Ok(isolated::answer(&worker, &job).await.map(Either::Left))
                            }
                            None => respond(&site, request).await,
                        }
                    }
                }))
            })
        }
        _ => cluster.serve(|worker| async move {
            let site = Rc::new(Routes::new(worker));
            Ok(service_fn(move |request| respond(&site, request)))
        }),
    }
}

type Answered = Response<Either<routes::Body, FileBody>>;

/// Answers a request. `routes` are shared as the model allows: plainly on one thread, atomically among several.
fn respond<W: Site, P>(
    routes: &P,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Answered, Infallible>> + use<W, P>
where
    P: Deref<Target = Routes<W>> + Clone + 'static,
{
    let step = match &routes.files {
        Some(files) => match files.answer_now(&request, |path| routes.health(path)) {
            Ok(answer) => Ok(answer.map(Either::Right)),
            Err(pending) => Err(Either::Right(Box::pin(files.answer_later(pending)))),
        },
        None => match routes.at_once(&request) {
            Some(answer) => Ok(answer.map(Either::Left)),
            None => Err({
                let routes = routes.clone();
                // Boxed, as hyper moves the future about.
                Either::Left(Box::pin(async move { routes.answer(request).await }))
            }),
        },
    };
    async move {
        Ok(match step {
            Ok(answer) => answer,
            Err(Either::Left(later)) => later.await.map(Either::Left),
            Err(Either::Right(later)) => later.await.map(Either::Right),
        })
    }
}
