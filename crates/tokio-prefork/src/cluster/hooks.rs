//! Hooks of the application in the primary, and the primary's side of the messages.

use super::Cluster;
use crate::messages::{Message, MessageLimits};
use crate::primary::{ClusterEvent, PrimaryHandle, WorkerExit};
use prefork_supervisor::{RestartDecision, WorkerTag};

impl Cluster {
    /// Calls `hook` in the primary for each event of the cluster: workers forked, online, listening, disconnected, gone,
    /// replaced, and more; see [`ClusterEvent`] for the order that is promised. Several hooks are called in the order in
    /// which they were added.
    ///
    /// It is called between two events, in the primary's only thread: nothing is supervised while it runs, so it
    /// should return at once (the log names one that takes more than 100 ms). What it asks of the [`PrimaryHandle`]
    /// is done after it has returned. A panic in it is logged, and it is called again for the next event. It must not
    /// use tokio, nor leave a thread running: the primary could not fork any more.
    ///
    /// ```no_run
    /// # use tokio_prefork::{Cluster, ClusterEvent, Config};
    /// # fn run(config: Config) {
    /// let cluster = Cluster::new(config).on_event(|primary, event| match event {
    ///     ClusterEvent::Exit(exit) if exit.signal == Some(11) => primary.stop(),
    ///     event => println!("{event}"),
    /// });
    /// # }
    /// ```
    pub fn on_event(
        mut self,
        hook: impl FnMut(&mut PrimaryHandle<'_>, &ClusterEvent) + 'static,
    ) -> Cluster {
        self.hooks.on_event.push(Box::new(hook));
        self
    }

    /// Calls `hook` in the primary to decide whether, and when, a worker that exited by itself is replaced. Without this each
    /// one is, at once.
    /// The same rules hold for it as for [`Cluster::on_event`]; if it panics, the worker is replaced. The last one added
    /// counts.
    ///
    /// Workers that retire, are recycled or reloaded are replaced in any case, and a reload brings back what was not.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_prefork::{Cluster, Config, RestartDecision};
    /// # fn run(config: Config) {
    /// let cluster = Cluster::new(config).on_restart(|exit| match exit.code {
    ///     Some(0) => RestartDecision::LeaveEmpty,
    ///     Some(75) => RestartDecision::After(Duration::from_secs(60)),
    ///     _ => RestartDecision::Restart,
    /// });
    /// # }
    /// ```
    pub fn on_restart(
        mut self,
        hook: impl FnMut(&WorkerExit) -> RestartDecision + 'static,
    ) -> Cluster {
        self.hooks.on_restart = Some(Box::new(hook));
        self
    }

    /// Calls `handle` in the primary with each message of `kind` that a worker sends to the primary, and the sender. There
    /// is one function for each kind; the last one counts.
    ///
    /// It runs between two waits of the primary, one message at a time. The same rules hold for it as for
    /// [`Cluster::on_event`]; a panic is logged, and ends nothing else.
    pub fn on_message(
        mut self,
        kind: &str,
        handle: impl FnMut(&mut PrimaryHandle<'_>, WorkerTag, Message) + 'static,
    ) -> Cluster {
        self.messages.on_message(kind, Box::new(handle));
        self
    }

    /// Calls `handle` in the primary with each message of a kind without a function of its own: Node's event `message`.
    ///
    /// [`Message::kind`] tells the kinds apart. The last function counts; the rules of [`Cluster::on_message`] hold.
    pub fn on_any_message(
        mut self,
        handle: impl FnMut(&mut PrimaryHandle<'_>, WorkerTag, Message) + 'static,
    ) -> Cluster {
        self.messages.on_any_message(Box::new(handle));
        self
    }

    /// Sets the limits for messages. Default: [`MessageLimits::default`].
    pub fn message_limits(mut self, limits: MessageLimits) -> Cluster {
        self.messages.set_limits(limits);
        self
    }
}
