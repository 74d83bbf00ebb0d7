//! Applications whose workers share counters, limiters, caches or leadership.
//!
//! `/go` starts the work of all workers, `/stop` ends it, and other paths return a snapshot in JSON.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::{
    Cluster, Error, Leadership, RateLimiter, Result, SharedCache, SharedCounter, SharedFlag,
    SharedGauge, Worker, shared,
};

use super::ProgramArguments;
use super::boot::text_service;

type Text = Response<Full<Bytes>>;

/// Returns a service that sets the flags at `/go` and `/stop`; `handle_path` may answer other paths.
fn control_service(
    go: SharedFlag,
    stop: SharedFlag,
    handle_path: impl Fn(&str) -> Option<String>,
) -> impl Service<Request<Incoming>, Response = Text, Error = Infallible> {
    service_fn(move |request: Request<Incoming>| {
        match request.uri().path() {
            "/go" => go.set(),
            "/stop" => stop.set(),
            _ => false,
        };
        let snapshot = || serde_json::to_string(&shared::read_shared_metrics()).unwrap_or_default();
        let text = handle_path(request.uri().path()).unwrap_or_else(snapshot);
        std::future::ready(Ok(Response::new(Full::new(Bytes::from(text)))))
    })
}

/// Repeats `work` between the flags `go` and `stop`. The gauge `busy` counts the workers that do so.
fn repeat_work(
    go: SharedFlag,
    stop: SharedFlag,
    busy: SharedGauge,
    mut work: impl FnMut() + 'static,
) {
    tokio::task::spawn_local(async move {
        let _busy = busy.add_scoped(1);
        while !stop.is_set() {
            if go.is_set() {
                work();
            }
            tokio::task::yield_now().await;
        }
    });
}

pub(super) fn declare_flags() -> Result<(SharedFlag, SharedFlag, SharedGauge)> {
    Ok((SharedFlag::new("go")?, SharedFlag::new("stop")?, SharedGauge::new("busy")?))
}

/// Increments a counter, and writes a byte to the file `acknowledged` after each addition.
pub(super) fn shared_counter(arguments: ProgramArguments) -> Result<()> {
    let (go, stop, busy) = declare_flags()?;
    let counter = SharedCounter::new("count")?;
    Cluster::new(arguments.config).serve(move |_: Worker| async move {
        let file = OpenOptions::new().create(true).append(true).open("acknowledged");
        let mut file = file.map_err(|e| Error::application("open the file", e))?;
        repeat_work(go, stop, busy, move || {
            for _ in 0..20 {
                counter.add(1);
                // A missing byte fails the test by its sum.
                let _ = file.write_all(b".");
            }
        });
        Ok(control_service(go, stop, |_| None))
    })
}

/// Takes tokens from a limiter of 5000 a day, and from one of 2000 a second with a burst of 1000.
pub(super) fn shared_limiter(arguments: ProgramArguments) -> Result<()> {
    let (go, stop, busy) = declare_flags()?;
    let day = RateLimiter::new("day", 1, Duration::from_secs(86_400), 5000)?;
    let second = RateLimiter::new("second", 2000, Duration::from_secs(1), 1000)?;
    Cluster::new(arguments.config).serve(move |_: Worker| async move {
        repeat_work(go, stop, busy, move || {
            for _ in 0..20 {
                let _ = day.try_acquire(1);
                let _ = second.try_acquire(1);
            }
        });
        Ok(control_service(go, stop, |_| None))
    })
}

/// Returns a value that repeats eight bytes, which also determine its length.
fn cache_value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number >> 40) as usize % 4000)
}

fn is_intact(value: &[u8]) -> bool {
    let Some(first) = value.first_chunk::<8>() else { return false };
    value == cache_value(u64::from_le_bytes(*first))
}

const KEY_COUNT: u8 = 16;

/// Writes values of up to 32 kB and reads those of other workers. `/mend` writes and reads all keys.
pub(super) fn shared_cache(arguments: ProgramArguments) -> Result<()> {
    let (go, stop, busy) = declare_flags()?;
    let cache = SharedCache::new("cache", 16, 32_100)?;
    let torn = SharedCounter::new("torn")?;
    let whole = SharedCounter::new("whole")?;
    Cluster::new(arguments.config).serve(move |worker: Worker| async move {
        let mut dice = u64::from(worker.pid()) | 1;
        repeat_work(go, stop, busy, move || {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let key = [(dice >> 33) as u8 % KEY_COUNT];
            let _ = cache.insert(&key, &cache_value(dice), None);
            if let Some(value) = cache.get(&[(dice >> 50) as u8 % KEY_COUNT]) {
                if is_intact(&value) { whole.add(1) } else { torn.add(1) }
            }
        });
        Ok(control_service(go, stop, move |path| {
            let mended = |key: &u8| {
                cache.insert(&[*key], &[*key], None).is_ok()
                    && cache.get(&[*key]).as_deref() == Some(&[*key][..])
            };
            (path == "/mend").then(|| (0..KEY_COUNT).filter(mended).count().to_string())
        }))
    })
}

/// Time between two checks of shared state.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// Counts every millisecond whether this worker is the only leader.
async fn count_leaders(leading: SharedGauge, alone: SharedCounter, together: SharedCounter) {
    let _leading = leading.add_scoped(1);
    let mut looks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        looks.tick().await;
        if leading.value() == 1 { alone.add(1) } else { together.add(1) }
    }
}

/// Polls until the condition holds; returns `false` after 10 s.
async fn wait_until(mut holds: impl FnMut() -> bool) -> bool {
    let mut looks = tokio::time::interval(CHECK_INTERVAL);
    let held = async {
        while !holds() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), held).await.is_ok()
}

/// Every worker is a candidate for one role until it drains. `file=PATH` shares the role with other clusters.
pub(super) fn leadership(arguments: ProgramArguments) -> Result<()> {
    let role = match arguments.value("file") {
        Ok(path) => Leadership::with_lock_file("cron", path)?,
        Err(_) => Leadership::new("cron")?,
    };
    let leading = SharedGauge::new("leading")?;
    let alone = SharedCounter::new("alone")?;
    let together = SharedCounter::new("together")?;
    let (go, stop, _) = declare_flags()?;
    Cluster::new(arguments.config).serve(move |worker: Worker| async move {
        let me = worker.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                led = role.run_as_leader(count_leaders(leading, alone, together)) => if let Err(e) = led { log::error!("{e}") },
                () = me.draining() => {}
            }
        });
        Ok(control_service(go, stop, |_| None))
    })
}

/// Two workers each lead one role and then wait for the role of the other.
pub(super) fn leadership_cycle(arguments: ProgramArguments) -> Result<()> {
    let roles = [Leadership::new("one")?, Leadership::new("two")?];
    let waiting = SharedGauge::new("waiting")?;
    let (go, stop, _) = declare_flags()?;
    Cluster::new(arguments.config).serve(move |worker: Worker| async move {
        let slot = worker.slot().0 as usize % 2;
        // A replacement does not take part, as it could become the successor.
        let first_two = worker.id().0 <= 2;
        tokio::task::spawn_local(async move {
            if !first_two {
                return;
            }
            let first = roles[slot].acquire().await;
            if !wait_until(|| roles[1 - slot].leader_pid().is_some()).await {
                return log::error!("the other role has no leader");
            }
            let _waiting = waiting.add_scoped(1);
            let second = roles[1 - slot].acquire().await;
            std::future::pending::<()>().await;
            drop((first, second));
        });
        Ok(control_service(go, stop, |_| None))
    })
}

/// Declares a counter in a worker, which is too late.
pub(super) fn shared_state_declared_in_worker(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        let counter = SharedCounter::new("late")?;
        Ok(text_service(move || counter.value().to_string()))
    })
}
