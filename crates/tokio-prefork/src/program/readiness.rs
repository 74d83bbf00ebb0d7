//! What makes a started program ready.

use std::time::Duration;

/// When a worker counts as ready. Exactly one of these decides; the log says which. Until then it gets no new connections, and
/// in a reload its predecessor goes on serving. Default: [`Readiness::Auto`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Readiness {
    /// [`Notify`](Readiness::Notify) or [`Listening`](Readiness::Listening), whichever comes first.
    #[default]
    Auto,
    /// The program sends `READY=1` to the socket in `NOTIFY_SOCKET`, as sd_notify(3) does.
    Notify,
    /// The kernel shows that the program waits for connections on each inherited socket, in accept(2), poll(2), select(2) or
    /// epoll, or has accepted one.
    Listening,
    /// A GET request for this path is answered with a status from 200 to 399. Needs a listening socket for each worker.
    Http(String),
    /// So much time has passed since its start, and it still runs.
    After(Duration),
}

impl Readiness {
    /// Returns whether `READY=1` decides.
    pub(super) fn accepts_notification(&self) -> bool {
        matches!(self, Readiness::Auto | Readiness::Notify)
    }

    /// Returns whether it is enough that the program waits for connections.
    pub(super) fn accepts_listening(&self) -> bool {
        matches!(self, Readiness::Auto | Readiness::Listening)
    }
}
