//! The built-in application of `prefork serve`: a demonstration, a target for load tests, or a static file
//! server. It uses the public interface only, like any stranger's.

mod body;
mod compute;
mod faults;
mod routes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use http_body_util::Either;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;
use tower_http::services::ServeDir;

use crate::{Cluster, Config, Result};
use routes::Routes;

/// What the built-in application can be told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Serve the files of this directory instead of the demonstration.
    pub(crate) root: Option<PathBuf>,
    /// Largest request body in bytes.
    pub(crate) max_body_size: u64,
    /// Offer paths that break a worker on purpose.
    pub(crate) faults: bool,
}

/// Runs the built-in application. Its options are attached to the configuration.
pub(crate) fn serve(
    config: Config,
    reread: impl Fn() -> Result<Config> + 'static,
) -> Result<ExitCode> {
    Cluster::new(config).reload_with(reread).serve(|worker| async move {
        let options = worker.config().attached::<Options>().cloned().unwrap_or_default();
        let files = options.root.as_ref().map(|root| TowerToHyperService::new(ServeDir::new(root)));
        let routes = Rc::new(Routes::new(worker, options));
        Ok(service_fn(move |request: Request<Incoming>| {
            let at_once = if files.is_none() { routes.at_once(&request) } else { None };
            let step = match at_once {
                Some(answer) => Ok(answer),
                None => Err({
                    let (files, routes) = (files.clone(), Rc::clone(&routes));
                    // Boxed, as hyper moves the future about.
                    Box::pin(async move {
                        match files {
                            Some(files) => files.call(request).await.map(|a| a.map(Either::Right)),
                            None => Ok(routes.answer(request).await.map(Either::Left)),
                        }
                    })
                }),
            };
            async move {
                match step {
                    Ok(answer) => Ok(answer.map(Either::Left)),
                    Err(later) => later.await,
                }
            }
        }))
    })
}
