//! Data that is loaded once, in the primary, and shared by all workers.

use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;

use super::Cluster;
use crate::error::{BoxError, Error, Result};

/// A function that loads data into its [`Preloaded`].
pub(super) type Load = Box<dyn FnOnce() -> Result<(), BoxError> + Send>;

/// Data that [`Cluster::preload`] loads before the first fork: a handle that derefs to it in every worker.
///
/// It is `Copy`, so any closure of the application may capture it.
pub struct Preloaded<T: 'static>(&'static OnceLock<T>);

impl<T> Preloaded<T> {
    /// Returns the data, for as long as the process lives.
    ///
    /// # Panics
    /// The data is not loaded yet: [`Cluster::serve`] and its siblings do that.
    pub fn as_static(self) -> &'static T {
        self.0.get().expect("preloaded data is loaded when the cluster starts to serve, not before")
    }
}

impl<T> Deref for Preloaded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.as_static()
    }
}

impl<T> Clone for Preloaded<T> {
    fn clone(&self) -> Preloaded<T> {
        *self
    }
}

impl<T> Copy for Preloaded<T> {}

impl<T: fmt::Debug> fmt::Debug for Preloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Preloaded").field(&self.0.get()).finish()
    }
}

impl Cluster {
    /// Loads data once, in the primary, after the addresses are bound and before the first fork: every worker, the
    /// respawned ones too, shares its memory until a process writes to it (copy-on-write).
    ///
    /// The handle is for the functions that run in workers: those of [`Cluster::serve`] and its siblings, of
    /// [`Cluster::kind`] and of [`Cluster::isolated_pool`]. Loads run in the order of their declaration; a later one may
    /// use the data of an earlier one.
    ///
    /// `load` runs in a thread that ends before the first fork. So what it leaves in thread-local state, above all the keys
    /// of std's hash maps, is not the same in every worker. It must not use tokio: a worker could not use tokio any more
    /// (see "Unix fork" in tokio's documentation); [`Cluster::before_fork`] may.
    ///
    /// ```no_run
    /// use axum::{Router, extract::Path, routing::get};
    /// use tokio_prefork::{Cluster, Config};
    ///
    /// # fn run(config: Config) -> tokio_prefork::Result<()> {
    /// let mut cluster = Cluster::new(config);
    /// let words = cluster.preload(|| Ok(std::fs::read_to_string("/usr/share/dict/words")?));
    /// cluster.serve(move |_| async move {
    ///     let count = move |Path(word): Path<String>| async move { words.matches(&word).count().to_string() };
    ///     Ok(Router::new().route("/{word}", get(count)))
    /// })
    /// # }
    /// ```
    ///
    /// An error of `load` is returned by [`Cluster::serve`]. An upgrade in place loads in the check of the new binary and in
    /// its primary; a reload does not load again.
    pub fn preload<T, L>(&mut self, load: L) -> Preloaded<T>
    where
        L: FnOnce() -> Result<T, BoxError> + Send + 'static,
        T: Send + Sync + 'static,
    {
        // As long as the process, as its workers use it.
        let cell: &'static OnceLock<T> = Box::leak(Box::new(OnceLock::new()));
        self.preloads.push(Box::new(move || {
            let data = load()?;
            cell.get_or_init(|| data);
            Ok(())
        }));
        Preloaded(cell)
    }
}

/// Runs the loads in one thread, in their order.
pub(super) fn load_all(loads: Vec<Load>) -> Result<()> {
    if loads.is_empty() {
        return Ok(());
    }
    let thread = std::thread::Builder::new()
        .name("preload".to_string())
        .spawn(move || loads.into_iter().try_for_each(|load| load()))
        .map_err(|e| Error::system("start the preload thread", e))?;
    let loaded = thread.join().map_err(|panic| {
        let text = crate::text::panic_text(&*panic).into_owned();
        Error::application("cannot preload: it panicked", text)
    })?;
    loaded.map_err(|e| Error::application("cannot preload", e))
}
