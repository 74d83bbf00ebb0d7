//! Data that is loaded once, in the primary, and shared by all workers.

use std::future::Future;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};

use super::Cluster;
use crate::error::{Error, Result};
use crate::runtime::AppThreading;
use crate::worker::{self, BoxError, Worker};

/// A cluster that loads data before it forks; created by [`Cluster::preload`].
#[must_use = "a cluster does nothing until it serves"]
pub struct PreloadedCluster<L> {
    cluster: Cluster,
    load: L,
}

impl<L> PreloadedCluster<L> {
    pub(super) fn new(cluster: Cluster, load: L) -> PreloadedCluster<L> {
        PreloadedCluster { cluster, load }
    }

    /// Serves like [`Cluster::serve`], with the loaded data.
    ///
    /// # Errors
    /// As [`Cluster::serve`], and what the loading function returned.
    pub fn serve<T, A, F, S, B>(self, app: A) -> Result<ExitCode>
    where
        L: FnOnce() -> Result<T> + Send + 'static,
        T: Send + Sync + 'static,
        A: Fn(Worker, &'static T) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S>> + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + 'static,
        S::Future: 'static,
        S::Error: Into<BoxError> + 'static,
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        let load = self.load;
        self.cluster.run(AppThreading::SingleThread, || {
            let data = &*Box::leak(Box::new(load_in_thread(load)?));
            Ok(worker::http_app(move |worker| app(worker, data)))
        })
    }
}

fn load_in_thread<T: Send + 'static>(
    load: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = std::thread::Builder::new()
        .name("preload".to_string())
        .spawn(load)
        .map_err(|e| Error::system("start the preload thread", e))?;
    let panicked = |_| Error::application("preload", "it panicked (see above)");
    thread.join().map_err(panicked)?
}
