//! Data that is loaded once, in the primary, and shared by all workers.

use std::future::Future;

use super::Cluster;
use crate::error::{BoxError, Error, Result};
use crate::runtime::AppThreading;
use crate::worker::http::into_service::IntoHttpService;
use crate::worker::{self, Worker};

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
    pub fn serve<T, A, F, S, M>(self, app: A) -> Result<()>
    where
        L: FnOnce() -> Result<T, BoxError> + Send + 'static,
        T: Send + Sync + 'static,
        A: Fn(Worker, &'static T) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: IntoHttpService<M>,
    {
        let load = self.load;
        self.cluster.run(AppThreading::SingleThread, || {
            let data = &*Box::leak(Box::new(load_in_thread(load)?));
            Ok(worker::http_app(move |worker| app(worker, data)))
        })
    }
}

fn load_in_thread<T: Send + 'static>(
    load: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> Result<T> {
    let thread = std::thread::Builder::new()
        .name("preload".to_string())
        .spawn(load)
        .map_err(|e| Error::system("start the preload thread", e))?;
    let panicked = |_| Error::application("preload", "it panicked (see above)");
    let loaded = thread.join().map_err(panicked)?;
    loaded.map_err(|e| Error::application("cannot preload", e))
}
