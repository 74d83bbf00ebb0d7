//! What the service manager is told, and when: pure, with the time and the figures given.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::text::printable;
use prefork_supervisor::Generation;

/// The status is written anew at most this often.
const STATUS: Duration = Duration::from_secs(1);
/// While something takes its time, the manager is asked for so much more, each second: a primary that hangs is not
/// waited for any longer than this.
const MORE: Duration = Duration::from_secs(5);
/// When workers do not serve, they are looked at again so soon.
const AGAIN: Duration = Duration::from_millis(200);
/// So many messages wait for a manager that does not read.
const MOST: usize = 64;

/// The cluster, as the status tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) ready: u32,
    pub(crate) wanted: u32,
    pub(crate) generation: Generation,
    pub(crate) requests: u64,
    /// A worker serves, and its loop has turned a moment ago.
    pub(crate) serves: bool,
}

/// What was said, and what is to be said next.
#[derive(Debug)]
pub(crate) struct Herald {
    /// Half of what the manager waits for a sign of life.
    watchdog: Option<Duration>,
    /// Not sent yet, oldest first.
    outbox: VecDeque<String>,
    ready: bool,
    reloading: bool,
    stopping: bool,
    /// What is under way may take until then.
    patience: Option<Instant>,
    /// How the last reload or upgrade ended, if not well.
    remark: Option<String>,
    /// What the manager shows.
    status: String,
    next_status: Instant,
    next_beat: Instant,
}

/// How often the manager wants to hear from process `pid`: half of its limit.
pub(super) fn watchdog(env: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let limit = env("WATCHDOG_USEC")?.parse::<u64>().ok().filter(|usec| *usec > 0)?;
    // Without a pid it is whoever is asked.
    let ours = env("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
    ours.then_some(Duration::from_micros(limit / 2))
}

impl Herald {
    /// Nothing serves yet, and that may take as long as `boot`.
    pub(crate) fn new(watchdog: Option<Duration>, now: Instant, boot: Duration) -> Herald {
        Herald {
            watchdog,
            outbox: VecDeque::new(),
            ready: false,
            reloading: false,
            stopping: false,
            patience: Some(now + boot),
            remark: None,
            status: String::new(),
            next_status: now,
            next_beat: now,
        }
    }

    /// Workers of the image before this one serve, and are being replaced. The manager knows that we are ready.
    pub(crate) fn upgraded(watchdog: Option<Duration>, now: Instant) -> Herald {
        let fresh = Herald::new(watchdog, now, Duration::ZERO);
        Herald { ready: true, reloading: true, ..fresh }
    }

    /// How old a beat may be: what is older is of a loop that stands still.
    pub(crate) fn freshness(&self) -> Duration {
        self.watchdog.unwrap_or(STATUS).max(Duration::from_millis(500))
    }

    /// All workers that are wanted are ready.
    pub(crate) fn ready(&mut self, figures: &Figures) {
        if self.stopping || (self.ready && !self.reloading) {
            return;
        }
        (self.ready, self.reloading, self.patience) = (true, false, None);
        self.status = self.describe(figures);
        self.say(format!("READY=1\nSTATUS={}", self.status));
    }

    /// A reload has begun, at this time of the monotonic clock, and may take as long as `limit`.
    pub(crate) fn reloading(&mut self, now: Instant, usec: u64, limit: Duration) {
        // Who is not ready yet cannot reload, in the manager's view.
        if self.ready && !self.stopping {
            (self.reloading, self.remark, self.patience) = (true, None, Some(now + limit));
            self.status = "reloading".to_string();
            self.say(format!("RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS={}", self.status));
        }
    }

    /// It is over. The manager is ready again also where it failed, as the workers of before serve.
    pub(crate) fn reloaded(&mut self, failed: Option<&str>, figures: &Figures) {
        self.remark = failed.map(|why| format!("the last reload failed: {why}"));
        if self.ready {
            self.reloading = true;
            self.ready(figures);
        }
    }

    /// Said with the status from now on.
    pub(crate) fn remark(&mut self, text: String) {
        self.remark = Some(text);
    }

    /// The end has begun and may take as long as `limit`.
    pub(crate) fn stopping(&mut self, now: Instant, limit: Duration) {
        self.patience = Some(now + limit);
        if !std::mem::replace(&mut self.stopping, true) {
            self.reloading = false;
            // Now, and with the next status at once, so that it is not cut short by a timeout that is nearly over.
            self.next_status = now;
            self.status = "stopping".to_string();
            self.say("STOPPING=1\nSTATUS=stopping".to_string());
        }
    }

    /// Whether `look` would have something to do.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.deadline()
    }

    /// When it has.
    pub(crate) fn deadline(&self) -> Instant {
        match self.watchdog {
            Some(_) => self.next_status.min(self.next_beat),
            None => self.next_status,
        }
    }

    /// What is to be said from time to time.
    pub(crate) fn look(&mut self, now: Instant, figures: &Figures) {
        if let Some(half) = self.watchdog
            && now >= self.next_beat
        {
            // Before the first READY there is nobody who could serve, and in a stop soon nobody is left.
            let alive = figures.serves || !self.ready || self.stopping;
            let says = alive && self.outbox.is_empty();
            self.next_beat = now + if says { half } else { half.min(AGAIN) };
            if says {
                self.say("WATCHDOG=1".to_string());
            }
        }
        if now < self.next_status {
            return;
        }
        self.next_status = now + STATUS;
        let mut message = String::new();
        let status = self.describe(figures);
        if status != self.status {
            let _ = write!(message, "STATUS={status}");
            self.status = status;
        }
        self.patience = self.patience.filter(|until| now < *until);
        if let Some(until) = self.patience {
            let more = MORE.min(until - now).as_micros();
            let newline = if message.is_empty() { "" } else { "\n" };
            let _ = write!(message, "{newline}EXTEND_TIMEOUT_USEC={more}");
        }
        // One that cannot be sent now will be old when it can.
        if !message.is_empty() && self.outbox.len() <= 1 {
            self.say(message);
        }
    }

    /// Puts a message behind the others.
    pub(crate) fn say(&mut self, message: String) {
        if self.outbox.len() >= MOST {
            self.outbox.pop_front();
        }
        self.outbox.push_back(message);
    }

    /// The next message.
    pub(crate) fn next(&self) -> Option<&str> {
        self.outbox.front().map(String::as_str)
    }

    /// It was sent.
    pub(crate) fn said(&mut self) {
        self.outbox.pop_front();
    }

    fn describe(&self, figures: &Figures) -> String {
        let Figures { ready, wanted, generation, requests, .. } = figures;
        let doing = match (self.stopping, self.reloading, self.ready) {
            (true, _, _) => "stopping: ",
            (_, true, _) => "reloading: ",
            (_, _, false) => "starting: ",
            (_, _, true) => "",
        };
        let mut text = format!(
            "{doing}{ready} of {wanted} workers ready, generation {generation}, {requests} requests"
        );
        if let Some(remark) = &self.remark {
            let _ = write!(text, "; {}", printable(remark));
        }
        text
    }
}

#[cfg(test)]
mod tests;
