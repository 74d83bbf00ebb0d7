//! An application whose shared state continues after an upgrade in place.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    Cluster, KeyedRateLimiter, Leadership, RateLimiter, Result, SharedBytes, SharedCache,
    SharedCounter, SharedFlag, SharedGauge, SharedHistogram, SharedNumber, Worker, shared,
};

use super::ProgramArguments;

/// One piece of each type.
#[derive(Clone, Copy)]
struct Pieces {
    counter: SharedCounter,
    boots: SharedCounter,
    gauge: SharedGauge,
    histogram: SharedHistogram,
    flag: SharedFlag,
    number: SharedNumber,
    bytes: SharedBytes,
    limiter: RateLimiter,
    keyed: KeyedRateLimiter,
    cache: SharedCache,
    role: Leadership,
}

const DAY: Duration = Duration::from_secs(86_400);

/// Declares the pieces, in another order if the file `reordered` exists, and with another layout if `changed` does.
fn declare() -> Result<Pieces> {
    let changed = Path::new("changed").exists();
    let (bounds, bytes): (&[u64], _) = if changed { (&[2, 10], 200) } else { (&[1, 10], 100) };
    let flag = || SharedFlag::new("flag");
    let early_flag = Path::new("reordered").exists().then(flag).transpose()?;
    let role = Leadership::new("role")?;
    let cache = SharedCache::new("cache", 1000, bytes)?;
    let counter = SharedCounter::new("counter")?;
    Ok(Pieces {
        counter,
        boots: SharedCounter::new("boots")?,
        gauge: SharedGauge::new("gauge")?,
        histogram: SharedHistogram::new("histogram", bounds)?,
        number: SharedNumber::new("number")?,
        bytes: SharedBytes::new("bytes", 1 << 20)?,
        limiter: RateLimiter::new("limiter", 1, DAY, 3)?,
        keyed: KeyedRateLimiter::new("keyed", 1, DAY, 3, 1000)?,
        cache,
        role,
        flag: early_flag.map_or_else(flag, Ok)?,
    })
}

impl Pieces {
    /// Changes every piece.
    fn change_all(&self) -> String {
        self.counter.add(5);
        self.histogram.observe(3);
        self.flag.set();
        self.number.fetch_add(7);
        self.bytes.atomics()[1000].fetch_add(9, SeqCst);
        let taken = self.limiter.try_acquire(3).and(self.keyed.try_acquire("client", 3));
        let stored = self.cache.insert(b"key", b"value", None);
        format!("{} {}", taken.is_ok(), stored.is_ok())
    }

    /// Returns what the status does not show.
    fn read_hidden(&self) -> String {
        let cached = self.cache.get(b"key").unwrap_or_default();
        let limited = [self.limiter.try_acquire(1), self.keyed.try_acquire("client", 1)];
        let [one, other] = limited.map(|taken| taken.is_err());
        let word = self.bytes.atomics()[1000].load(SeqCst);
        format!("{} {one} {other} {word}", String::from_utf8_lossy(&cached))
    }
}

/// Writes its pid to the file `leaders` and leads until it is dropped.
async fn lead() {
    let file = OpenOptions::new().create(true).append(true).open("leaders");
    // A missing line fails the test.
    let _ = file.and_then(|mut file| writeln!(file, "{}", std::process::id()));
    std::future::pending().await
}

/// `/change` changes all pieces, `/hidden` shows the limits and the cache, other paths the rest in JSON.
pub(super) fn shared_upgrade(arguments: ProgramArguments) -> Result<()> {
    let pieces = declare()?;
    Cluster::new(arguments.config).serve(move |worker: Worker| async move {
        pieces.boots.add(1);
        if Path::new("broken").exists() {
            pieces.change_all();
            let _ = pieces.cache.insert(b"key", b"damaged", None);
            pieces.flag.clear();
            return Err("the settings are broken".into());
        }
        let me = worker.clone();
        tokio::task::spawn_local(async move {
            let _open = pieces.gauge.add_scoped(1);
            tokio::select! {
                led = pieces.role.run_as_leader(lead()) => if let Err(e) = led { log::error!("{e}") },
                () = me.draining() => {}
            }
        });
        Ok(service_fn(move |request: Request<Incoming>| {
            let text = match request.uri().path() {
                "/change" => pieces.change_all(),
                "/hidden" => pieces.read_hidden(),
                _ => serde_json::to_string(&shared::read_shared_metrics()).unwrap_or_default(),
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))))
        }))
    })
}
