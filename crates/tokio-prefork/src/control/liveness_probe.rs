//! Probes over a second connection whether a primary still answers while a client waits for a long operation.
//!
//! A reload, an upgrade or a stop may take as long as the requests that are open. The client that asked for it cannot tell
//! that from a primary that hangs, in a function of the application or in the kernel; an answer to `status` can.

use std::path::Path;
use std::time::{Duration, Instant};

use super::client::Client;
use super::protocol::Request;
use prefork_os::poll::{self, WatchedFd};

/// How long to wait for room in the queue of a primary that takes no clients.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How often to probe a primary, and how long it may leave a probe unanswered.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeInterval {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl ProbeInterval {
    /// The timeout leaves room for what a primary may do before it answers, such as loading data after an upgrade.
    pub(super) const DEFAULT: ProbeInterval =
        ProbeInterval { interval: Duration::from_secs(10), timeout: Duration::from_secs(60) };
}

/// Tracks whether a primary still answers probes.
pub(super) struct LivenessProbe {
    pace: ProbeInterval,
    /// The question that is open.
    asked: Option<Client>,
    /// When it is to be asked again.
    next: Instant,
    /// Since when it has not answered.
    silent_since: Option<Instant>,
}

impl LivenessProbe {
    pub(super) fn new(pace: ProbeInterval, now: Instant) -> LivenessProbe {
        LivenessProbe { pace, asked: None, next: now + pace.interval, silent_since: None }
    }

    /// Asks if it is time, and looks for the answer. Returns for how long the primary has been silent if that is too long.
    pub(super) fn check(&mut self, path: &Path, now: Instant) -> Option<Duration> {
        match &self.asked {
            Some(asked) => {
                let watch = WatchedFd::readable(asked.stream_fd());
                let answered = poll::poll_fds(&[watch], Some(Duration::ZERO));
                // An end is an answer, too: what is waited for will tell what has happened.
                if answered.is_ok_and(|answered| answered[0]) {
                    (self.asked, self.silent_since) = (None, None);
                    self.next = now + self.pace.interval;
                }
            }
            None if self.next <= now => {
                self.next = now + self.pace.interval;
                self.ask(path, now);
            }
            None => {}
        }
        let silent = now.saturating_duration_since(self.silent_since?);
        (silent >= self.pace.timeout).then_some(silent)
    }

    fn ask(&mut self, path: &Path, now: Instant) {
        let asked = Client::connect_within(path, CONNECT_TIMEOUT.min(self.pace.interval))
            .and_then(|mut client| client.send(&Request::Status {}).map(|()| client));
        match asked {
            Ok(client) => self.asked = Some(client),
            // Its queue is full.
            Err(e) if e.kind() == crate::ErrorKind::ControlUnresponsive => {}
            // The file may be gone, as at the end of a stop: nothing is known.
            Err(_) => return self.silent_since = None,
        }
        self.silent_since.get_or_insert(now);
    }
}
