//! The thread that takes samples, so that a slow primary never delays a key.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::interactive::Message;
use super::sample::SampleSource;
use tokio_prefork::{Error, Result};

/// How long to wait at most before the next attempt when the primary does not answer.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A handle of the sampling thread.
pub(super) struct Sampler {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    settings: Mutex<Settings>,
    has_changed: Condvar,
}

struct Settings {
    interval: Duration,
    is_paused: bool,
    /// Whether a sample is wanted at once, even while paused.
    is_due: bool,
}

impl Sampler {
    /// Starts the thread, which sends samples until nobody receives them.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(super) fn start(
        source: SampleSource,
        interval: Duration,
        sender: SyncSender<Message>,
    ) -> Result<Sampler> {
        let settings = Mutex::new(Settings { interval, is_paused: false, is_due: false });
        let shared = Arc::new(Shared { settings, has_changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let run = move || run_sampler(source, &of_thread, &sender);
        let thread = thread::Builder::new().name("sampler".to_string()).spawn(run);
        let thread = thread.map_err(|e| Error::system("start a thread", e))?;
        Ok(Sampler { shared, thread })
    }

    /// Returns whether the thread has ended, which it does only by a panic.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Changes interval and pause, and takes a sample at once if `is_due`.
    pub(super) fn configure(&self, interval: Duration, is_paused: bool, is_due: bool) {
        let mut settings = self.shared.lock();
        (settings.interval, settings.is_paused) = (interval, is_paused);
        settings.is_due |= is_due;
        self.shared.has_changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next sample is due, `interval` or at most `limit` after the last one.
    fn wait_until_due(&self, last: Instant, limit: Duration) {
        let mut settings = self.lock();
        while !settings.is_due {
            if settings.is_paused {
                settings = self.has_changed.wait(settings).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = settings.interval.min(limit).saturating_sub(last.elapsed());
            if left.is_zero() {
                break;
            }
            let waited = self.has_changed.wait_timeout(settings, left);
            settings = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        settings.is_due = false;
    }
}

/// Takes samples until nobody receives them.
fn run_sampler(mut source: SampleSource, shared: &Shared, sender: &SyncSender<Message>) {
    let (mut last, mut limit) = (Instant::now(), Duration::MAX);
    loop {
        shared.wait_until_due(last, limit);
        last = Instant::now();
        let sample = source.take_sample().map(Box::new).map_err(|error| error.to_string());
        limit = if sample.is_ok() { Duration::MAX } else { MAX_RETRY_INTERVAL };
        if sender.send(Message::Sample(sample)).is_err() {
            return;
        }
    }
}
