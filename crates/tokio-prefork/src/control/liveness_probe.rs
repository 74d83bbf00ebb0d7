//! Probes a primary over a second connection while a client waits for a long operation.
//!
//! A reload, an upgrade or a stop may take as long as the requests that are open. The client that asked for it cannot tell
//! that from a primary that hangs, in a function of the application or in the kernel; an answer to `status` can.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::ControlClient;
use super::protocol::Request;
use prefork_os::poll::{self, WatchedFd};

/// How long to wait for room in the accept queue of the primary: 500 ms.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How often to probe a primary, and how long a probe may stay unanswered.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeInterval {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl ProbeInterval {
    /// Every 10 s, with a timeout of 60 s, as a primary may load data after an upgrade before it answers.
    pub(super) const DEFAULT: ProbeInterval =
        ProbeInterval { interval: Duration::from_secs(10), timeout: Duration::from_secs(60) };
}

/// Tracks whether a primary still answers probes.
pub(super) struct LivenessProbe {
    probe_interval: ProbeInterval,
    /// The connection of the unanswered probe.
    pending: Option<ControlClient>,
    /// When to send the next probe.
    next: Instant,
    /// Since when the primary has not answered.
    silent_since: Option<Instant>,
}

impl LivenessProbe {
    pub(super) fn new(probe_interval: ProbeInterval, now: Instant) -> LivenessProbe {
        LivenessProbe {
            probe_interval,
            pending: None,
            next: now + probe_interval.interval,
            silent_since: None,
        }
    }

    /// Sends a probe when it is due and checks for its answer. Returns how long the primary has not answered, if that exceeds
    /// the timeout.
    pub(super) fn check_primary(&mut self, path: &Path, now: Instant) -> Option<Duration> {
        match &self.pending {
            Some(asked) => {
                let watch = WatchedFd::readable(asked.socket_fd());
                let answered = poll::poll_fds(&[watch], Some(Duration::ZERO));
                // A closed connection counts as an answer: the operation itself reports the result.
                if answered.is_ok_and(|answered| answered[0]) {
                    (self.pending, self.silent_since) = (None, None);
                    self.next = now + self.probe_interval.interval;
                }
            }
            None if self.next <= now => {
                self.next = now + self.probe_interval.interval;
                self.send_probe(path, now);
            }
            None => {}
        }
        let silent = now.saturating_duration_since(self.silent_since?);
        (silent >= self.probe_interval.timeout).then_some(silent)
    }

    fn send_probe(&mut self, path: &Path, now: Instant) {
        let asked = ControlClient::connect_with_timeout(
            path,
            CONNECT_TIMEOUT.min(self.probe_interval.interval),
        )
        .and_then(|mut client| client.send_request(&Request::Status {}).map(|()| client));
        match asked {
            Ok(client) => self.pending = Some(client),
            // The accept queue is full.
            Err(e) if e.kind() == crate::ErrorKind::ControlUnresponsive => {}
            // The socket file may be removed at the end of a stop, which proves nothing.
            Err(_) => return self.silent_since = None,
        }
        self.silent_since.get_or_insert(now);
    }
}
