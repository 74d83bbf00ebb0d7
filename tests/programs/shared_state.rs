//! Programs about state that all workers share. Each worker is busy with it beside answering `/stop`, which
//! ends that in all of them, and anything else, which gives a snapshot in JSON.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::{
    Cluster, Error, Leadership, RateLimiter, Result, SharedCache, SharedCounter, SharedFlag,
    SharedGauge, Worker, shared,
};

use super::Told;
use super::boot::text;

type Text = Response<Full<Bytes>>;

/// Sets the flag `go` at `/go` and `stop` at `/stop`; `ask` may answer other paths.
fn answers(
    go: SharedFlag,
    stop: SharedFlag,
    ask: impl Fn(&str) -> Option<String>,
) -> impl Service<Request<Incoming>, Response = Text, Error = Infallible> {
    service_fn(move |request: Request<Incoming>| {
        match request.uri().path() {
            "/go" => go.set(),
            "/stop" => stop.set(),
            _ => false,
        };
        let snapshot = || serde_json::to_string(&shared::snapshot()).unwrap_or_default();
        let text = ask(request.uri().path()).unwrap_or_else(snapshot);
        std::future::ready(Ok(Response::new(Full::new(Bytes::from(text)))))
    })
}

/// Does something again and again from the flag `go` until the flag `stop`, in between the requests. The gauge
/// `busy` tells how many workers are at it.
fn keep_busy(
    go: SharedFlag,
    stop: SharedFlag,
    busy: SharedGauge,
    mut work: impl FnMut() + 'static,
) {
    tokio::task::spawn_local(async move {
        let _busy = busy.hold(1);
        while !stop.is_set() {
            if go.is_set() {
                work();
            }
            tokio::task::yield_now().await;
        }
    });
}

fn flags() -> Result<(SharedFlag, SharedFlag, SharedGauge)> {
    Ok((SharedFlag::new("go")?, SharedFlag::new("stop")?, SharedGauge::new("busy")?))
}

/// Counts, and writes a byte to the file `acknowledged` after each addition.
pub(super) fn counter(told: Told) -> Result<ExitCode> {
    let (go, stop, busy) = flags()?;
    let counter = SharedCounter::new("count")?;
    Cluster::new(told.config).serve(move |_: Worker| async move {
        let file = OpenOptions::new().create(true).append(true).open("acknowledged");
        let mut file = file.map_err(|e| Error::application("open the file", e))?;
        keep_busy(go, stop, busy, move || {
            for _ in 0..20 {
                counter.add(1);
                // What could not be acknowledged fails the test by its sum.
                let _ = file.write_all(b".");
            }
        });
        Ok(answers(go, stop, |_| None))
    })
}

/// Takes from one limiter that gives 5000 and nothing more for a day, and from one of 2000 a second with a
/// burst of 1000.
pub(super) fn limiter(told: Told) -> Result<ExitCode> {
    let (go, stop, busy) = flags()?;
    let day = RateLimiter::new("day", 1, Duration::from_secs(86_400), 5000)?;
    let second = RateLimiter::new("second", 2000, Duration::from_secs(1), 1000)?;
    Cluster::new(told.config).serve(move |_: Worker| async move {
        keep_busy(go, stop, busy, move || {
            for _ in 0..20 {
                let _ = day.try_acquire(1);
                let _ = second.try_acquire(1);
            }
        });
        Ok(answers(go, stop, |_| None))
    })
}

/// A value that is of one piece if it repeats its first eight bytes to the end that they say.
fn value_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number >> 40) as usize % 4000)
}

fn is_whole(value: &[u8]) -> bool {
    let Some(first) = value.first_chunk::<8>() else { return false };
    value == value_of(u64::from_le_bytes(*first))
}

const KEYS: u8 = 16;

/// Writes values of all sizes up to 32 kB and reads those of others. `/mend` writes and reads all keys.
pub(super) fn cache(told: Told) -> Result<ExitCode> {
    let (go, stop, busy) = flags()?;
    let cache = SharedCache::new("cache", 16, 32_100)?;
    let torn = SharedCounter::new("torn")?;
    let whole = SharedCounter::new("whole")?;
    Cluster::new(told.config).serve(move |worker: Worker| async move {
        let mut dice = u64::from(worker.pid()) | 1;
        keep_busy(go, stop, busy, move || {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let key = [(dice >> 33) as u8 % KEYS];
            let _ = cache.insert(&key, &value_of(dice), None);
            if let Some(value) = cache.get(&[(dice >> 50) as u8 % KEYS]) {
                if is_whole(&value) { whole.add(1) } else { torn.add(1) }
            }
        });
        Ok(answers(go, stop, move |path| {
            let mended = |key: &u8| {
                cache.insert(&[*key], &[*key], None).is_ok()
                    && cache.get(&[*key]).as_deref() == Some(&[*key][..])
            };
            (path == "/mend").then(|| (0..KEYS).filter(mended).count().to_string())
        }))
    })
}

/// Between two looks at what others do.
const LOOK: Duration = Duration::from_millis(1);

/// Looks every millisecond whether anybody else leads too.
async fn look(leading: SharedGauge, alone: SharedCounter, together: SharedCounter) {
    let _leading = leading.hold(1);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        if leading.value() == 1 { alone.add(1) } else { together.add(1) }
    }
}

/// Looks until it holds; `false` if it does not within ten seconds.
async fn until(mut holds: impl FnMut() -> bool) -> bool {
    let mut looks = tokio::time::interval(LOOK);
    let held = async {
        while !holds() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), held).await.is_ok()
}

/// Each worker is ready to lead, until it drains. `file=PATH` shares the role with other clusters.
pub(super) fn roles(told: Told) -> Result<ExitCode> {
    let role = match told.value("file") {
        Ok(path) => Leadership::in_file("cron", path)?,
        Err(_) => Leadership::new("cron")?,
    };
    let leading = SharedGauge::new("leading")?;
    let alone = SharedCounter::new("alone")?;
    let together = SharedCounter::new("together")?;
    let (go, stop, _) = flags()?;
    Cluster::new(told.config).serve(move |worker: Worker| async move {
        let me = worker.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                led = role.run_once(look(leading, alone, together)) => if let Err(e) = led { log::error!("{e}") },
                () = me.draining() => {}
            }
        });
        Ok(answers(go, stop, |_| None))
    })
}

/// Two workers each lead one role and then wait for the other's.
pub(super) fn circle(told: Told) -> Result<ExitCode> {
    let roles = [Leadership::new("one")?, Leadership::new("two")?];
    let waiting = SharedGauge::new("waiting")?;
    let (go, stop, _) = flags()?;
    Cluster::new(told.config).serve(move |worker: Worker| async move {
        let slot = worker.slot().0 as usize % 2;
        // A replacement has nothing to do with it, or it could be the heir.
        let first_two = worker.id().0 <= 2;
        tokio::task::spawn_local(async move {
            if !first_two {
                return;
            }
            let first = roles[slot].lead().await;
            if !until(|| roles[1 - slot].leader().is_some()).await {
                return log::error!("nobody leads the other role");
            }
            let _waiting = waiting.hold(1);
            let second = roles[1 - slot].lead().await;
            std::future::pending::<()>().await;
            drop((first, second));
        });
        Ok(answers(go, stop, |_| None))
    })
}

/// Declares too late.
pub(super) fn too_late(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|_: Worker| async {
        let counter = SharedCounter::new("late")?;
        Ok::<_, Error>(text(move || counter.value().to_string()))
    })
}
