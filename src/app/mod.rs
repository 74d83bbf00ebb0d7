//! The built-in application of `prefork serve`: a demonstration, a target for load tests, or a static file
//! server. It uses the public interface only, like any stranger's.

mod body;
mod faults;
mod routes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use hyper::service::service_fn;
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

/// Runs the built-in application.
pub(crate) fn serve(config: Config, options: Options) -> Result<ExitCode> {
    let cluster = Cluster::new(config);
    if options.faults {
        log::warn!("--faults is on: anybody who reaches the port can crash or hang a worker");
    }
    if let Some(root) = options.root {
        log::info!("serving the files of {}", root.display());
        return cluster.serve(move |_| {
            let files = ServeDir::new(&root);
            async move { Ok(hyper_util::service::TowerToHyperService::new(files)) }
        });
    }
    cluster.serve(move |worker| {
        let routes = Rc::new(Routes::new(worker, options.clone()));
        async move {
            Ok(service_fn(move |request| {
                let routes = Rc::clone(&routes);
                async move { Ok::<_, std::convert::Infallible>(routes.answer(request).await) }
            }))
        }
    })
}
