//! The primary's event loop for the application: what runs at the start, at a time, or for a descriptor.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Cluster;
use crate::error::BoxError;
use crate::primary::PrimaryHandle;

impl Cluster {
    /// Calls `hook` in the primary once, when the sockets are bound and no worker is forked yet. The place for timers,
    /// descriptors and workers of the program's own. Several hooks are called in the order in which they were added.
    ///
    /// The rules of [`Cluster::on_event`] hold for it. Workers that it forks come after those of the configuration.
    ///
    /// After an upgrade in place, the hook of the new binary is called in the new image, before it forks: timers and
    /// descriptors of the old image are gone, its workers still run and are in [`PrimaryHandle::workers`], and
    /// [`PrimaryHandle::upgrade_count`] is not 0. The check of a new binary does not call it.
    ///
    /// An error or a panic of the hook is an error of [`serve`](Cluster::serve), before any worker is forked. After an
    /// upgrade it is logged and the cluster runs on, as there is no way back to the old image.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_prefork::{Cluster, Config};
    /// # fn run(config: Config) {
    /// let cluster = Cluster::new(config).on_start(|primary| {
    ///     primary.fork_with([("ROLE", "mail")])?;
    ///     primary.after(Duration::from_secs(3600), |primary| primary.reload());
    ///     Ok(())
    /// });
    /// # }
    /// ```
    pub fn on_start(
        mut self,
        hook: impl FnOnce(&mut PrimaryHandle<'_>) -> Result<(), BoxError> + 'static,
    ) -> Cluster {
        self.hooks.on_start.push(Box::new(hook));
        self
    }

    /// Calls `callback` in the primary once, `delay` after the start: [`PrimaryHandle::after`] in a hook
    /// [`on_start`](Cluster::on_start).
    pub fn after(
        self,
        delay: Duration,
        callback: impl FnOnce(&mut PrimaryHandle<'_>) + 'static,
    ) -> Cluster {
        self.on_start(move |primary| {
            primary.after(delay, callback);
            Ok(())
        })
    }

    /// Calls `callback` in the primary each `interval`: [`PrimaryHandle::every`] in a hook
    /// [`on_start`](Cluster::on_start).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_prefork::{Cluster, Config};
    /// # fn run(config: Config) {
    /// let cluster = Cluster::new(config).every(Duration::from_secs(60), |primary| {
    ///     log::info!("{} workers", primary.workers().len());
    /// });
    /// # }
    /// ```
    pub fn every(
        self,
        interval: Duration,
        callback: impl FnMut(&mut PrimaryHandle<'_>) + 'static,
    ) -> Cluster {
        self.on_start(move |primary| {
            primary.every(interval, callback);
            Ok(())
        })
    }

    /// Watches a descriptor of the application in the primary: [`PrimaryHandle::on_readable`] in a hook
    /// [`on_start`](Cluster::on_start).
    pub fn on_readable<S: AsFd + 'static>(
        self,
        source: S,
        hook: impl FnMut(&mut PrimaryHandle<'_>, &mut S) + 'static,
    ) -> Cluster {
        self.on_start(move |primary| {
            primary.on_readable(source, hook)?;
            Ok(())
        })
    }
}
