//! Decides which messages the service manager gets, and when. Pure: the time and the cluster's summary are arguments.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::text::printable;
use prefork_supervisor::Generation;

/// Minimum time between two status messages.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How much more time is requested with each status during a start, reload or stop. The manager waits no longer than
/// this for a primary that hangs.
const TIMEOUT_EXTENSION: Duration = Duration::from_secs(5);
/// How soon to retry a watchdog message that was held back for lack of a responsive worker.
const WATCHDOG_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of messages queued for a manager that does not read.
const MAX_QUEUED_MESSAGES: usize = 64;

/// The state of the cluster that the status line shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterSummary {
    pub(crate) ready: u32,
    pub(crate) wanted: u32,
    pub(crate) generation: Generation,
    pub(crate) requests: u64,
    /// Whether a serving worker has a recent heartbeat.
    pub(crate) is_responsive: bool,
}

/// The state last sent to the service manager, and the messages that are not sent yet.
#[derive(Debug)]
pub(crate) struct NotifyState {
    /// Half of the manager's watchdog timeout.
    watchdog_interval: Option<Duration>,
    /// Messages that are not sent yet, oldest first.
    queue: VecDeque<String>,
    is_ready: bool,
    is_reloading: bool,
    is_stopping: bool,
    /// The deadline of the current start, reload or stop.
    extend_until: Option<Instant>,
    /// Name and version of the application, at the start of each status line.
    app: String,
    /// The reason why the last reload or upgrade failed.
    remark: Option<String>,
    /// The status line that was sent last.
    status: String,
    next_status: Instant,
    next_watchdog: Instant,
}

/// Returns how often process `pid` sends a watchdog message: half of the manager's timeout. `None` disables it.
pub(super) fn watchdog_interval(
    env: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> Option<Duration> {
    let limit = env("WATCHDOG_USEC")?.parse::<u64>().ok().filter(|usec| *usec > 0)?;
    // Without a pid the limit is for every process.
    let is_for_us = env("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
    is_for_us.then_some(Duration::from_micros(limit / 2))
}

impl NotifyState {
    /// Creates the state of a primary whose workers boot, which may take as long as `boot_timeout`.
    pub(crate) fn new(
        watchdog_interval: Option<Duration>,
        now: Instant,
        boot_timeout: Duration,
    ) -> NotifyState {
        NotifyState {
            watchdog_interval,
            queue: VecDeque::new(),
            is_ready: false,
            is_reloading: false,
            is_stopping: false,
            extend_until: Some(now + boot_timeout),
            app: String::new(),
            remark: None,
            status: String::new(),
            next_status: now,
            next_watchdog: now,
        }
    }

    /// Creates the state of an upgraded primary: it was ready, and the workers of the previous image are being
    /// replaced.
    pub(crate) fn after_upgrade(watchdog_interval: Option<Duration>, now: Instant) -> NotifyState {
        let state = NotifyState::new(watchdog_interval, now, Duration::ZERO);
        NotifyState { is_ready: true, is_reloading: true, ..state }
    }

    /// Sets the name and version of the application.
    pub(crate) fn set_app(&mut self, app: String) {
        self.app = app;
    }

    /// Returns how old the heartbeat of a responsive worker may be.
    pub(crate) fn max_heartbeat_age(&self) -> Duration {
        self.watchdog_interval.unwrap_or(STATUS_INTERVAL).max(Duration::from_millis(500))
    }

    /// Queues READY, once for each start and reload: all wanted workers are ready.
    pub(crate) fn queue_ready(&mut self, summary: &ClusterSummary) {
        if self.is_stopping || (self.is_ready && !self.is_reloading) {
            return;
        }
        (self.is_ready, self.is_reloading, self.extend_until) = (true, false, None);
        self.status = self.status_line(summary);
        self.queue_message(format!("READY=1\nSTATUS={}", self.status));
    }

    /// Queues RELOADING with the time of the monotonic clock. The reload may take as long as `limit`.
    pub(crate) fn queue_reloading(&mut self, now: Instant, monotonic_usec: u64, limit: Duration) {
        // For the manager, a service that is not ready cannot reload.
        if self.is_ready && !self.is_stopping {
            (self.is_reloading, self.remark, self.extend_until) = (true, None, Some(now + limit));
            self.status = "reloading".to_string();
            self.queue_message(format!(
                "RELOADING=1\nMONOTONIC_USEC={monotonic_usec}\nSTATUS={}",
                self.status
            ));
        }
    }

    /// Queues READY at the end of a reload, even a failed one, as the old workers keep serving.
    pub(crate) fn queue_reloaded(&mut self, failed: Option<&str>, summary: &ClusterSummary) {
        self.remark = failed.map(|reason| format!("the last reload failed: {reason}"));
        if self.is_ready {
            self.is_reloading = true;
            self.queue_ready(summary);
        }
    }

    /// Adds a remark to the status line until the next reload.
    pub(crate) fn set_status_remark(&mut self, text: String) {
        self.remark = Some(text);
    }

    /// Queues STOPPING, once. The stop may take as long as `limit`.
    pub(crate) fn queue_stopping(&mut self, now: Instant, limit: Duration) {
        self.extend_until = Some(now + limit);
        if !std::mem::replace(&mut self.is_stopping, true) {
            self.is_reloading = false;
            // The next status follows at once and extends a timeout that may be nearly over.
            self.next_status = now;
            self.status = "stopping".to_string();
            self.queue_message("STOPPING=1\nSTATUS=stopping".to_string());
        }
    }

    /// Returns whether `queue_due_messages` has something to do.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next_deadline()
    }

    /// Returns when `queue_due_messages` has something to do.
    pub(crate) fn next_deadline(&self) -> Instant {
        match self.watchdog_interval {
            Some(_) => self.next_status.min(self.next_watchdog),
            None => self.next_status,
        }
    }

    /// Queues the watchdog message and the status when they are due.
    pub(crate) fn queue_due_messages(&mut self, now: Instant, summary: &ClusterSummary) {
        if let Some(interval) = self.watchdog_interval
            && now >= self.next_watchdog
        {
            // Before the first READY and during a stop there may be no worker that serves.
            let is_alive = summary.is_responsive || !self.is_ready || self.is_stopping;
            let is_sent = is_alive && self.queue.is_empty();
            let delay = if is_sent { interval } else { interval.min(WATCHDOG_RETRY_INTERVAL) };
            self.next_watchdog = now + delay;
            if is_sent {
                self.queue_message("WATCHDOG=1".to_string());
            }
        }
        if now < self.next_status {
            return;
        }
        self.next_status = now + STATUS_INTERVAL;
        let mut message = String::new();
        let status = self.status_line(summary);
        if status != self.status {
            let _ = write!(message, "STATUS={status}");
            self.status = status;
        }
        self.extend_until = self.extend_until.filter(|until| now < *until);
        if let Some(until) = self.extend_until {
            let extension = TIMEOUT_EXTENSION.min(until - now).as_micros();
            let newline = if message.is_empty() { "" } else { "\n" };
            let _ = write!(message, "{newline}EXTEND_TIMEOUT_USEC={extension}");
        }
        // A status that waits in the queue would be outdated when it is sent.
        if !message.is_empty() && self.queue.len() <= 1 {
            self.queue_message(message);
        }
    }

    /// Queues a message. Drops the oldest one if the queue is full.
    pub(crate) fn queue_message(&mut self, message: String) {
        if self.queue.len() >= MAX_QUEUED_MESSAGES {
            self.queue.pop_front();
        }
        self.queue.push_back(message);
    }

    /// Returns the oldest message.
    pub(crate) fn next_message(&self) -> Option<&str> {
        self.queue.front().map(String::as_str)
    }

    /// Removes the oldest message, which was sent.
    pub(crate) fn remove_sent_message(&mut self) {
        self.queue.pop_front();
    }

    fn status_line(&self, summary: &ClusterSummary) -> String {
        let ClusterSummary { ready, wanted, generation, requests, .. } = summary;
        let phase = match (self.is_stopping, self.is_reloading, self.is_ready) {
            (true, _, _) => "stopping: ",
            (_, true, _) => "reloading: ",
            (_, _, false) => "starting: ",
            (_, _, true) => "",
        };
        let app = if self.app.is_empty() { String::new() } else { format!("{}: ", self.app) };
        let mut text = format!(
            "{app}{phase}{ready} of {wanted} workers ready, generation {generation}, {requests} requests"
        );
        if let Some(remark) = &self.remark {
            let _ = write!(text, "; {}", printable(remark));
        }
        text
    }
}

#[cfg(test)]
mod tests;
