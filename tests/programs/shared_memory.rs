//! An application whose workers share numbers and bytes, wait for each other's changes, and lock ranges.
//!
//! Between `/go` and `/stop`, all workers draw tickets and change records under locks.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::shared::SharedBytesGuard;
use tokio_prefork::{
    Cluster, ConcurrencyModel, Error, IsolatedPool, IsolatedPoolConfig, LockError, Result,
    SharedBytes, SharedCounter, SharedFlag, SharedGauge, SharedNumber, Worker, shared,
};

use super::ProgramArguments;
use super::shared_state::declare_flags;

const RECORD_COUNT: u64 = 16;
const RECORD_BYTES: usize = 200;
/// The number of workers that pass the relay on.
const RELAY_WORKERS: u64 = 4;
/// How long an isolated job waits.
const JOB_WAIT: Duration = Duration::from_secs(30);

/// All that is shared.
#[derive(Clone, Copy)]
struct Shared {
    go: SharedFlag,
    stop: SharedFlag,
    busy: SharedGauge,
    tickets: SharedNumber,
    version: SharedNumber,
    /// How many workers have noticed a version, and how many wait for the next.
    noticed: SharedCounter,
    gate: SharedFlag,
    passed: SharedCounter,
    records: SharedBytes,
    /// Records that were half written although nobody said so.
    torn: SharedCounter,
    /// Records that were announced as poisoned.
    told: SharedCounter,
    written: SharedCounter,
    frame: SharedBytes,
    holding: SharedGauge,
    release: SharedFlag,
    /// Its value modulo the number of workers is the slot of the worker that changes it next.
    relay: SharedNumber,
    start_relay: SharedFlag,
}

impl Shared {
    fn declare() -> Result<Shared> {
        let (go, stop, busy) = declare_flags()?;
        Ok(Shared {
            go,
            stop,
            busy,
            tickets: SharedNumber::new("tickets")?,
            version: SharedNumber::new("version")?,
            noticed: SharedCounter::new("noticed")?,
            gate: SharedFlag::new("gate")?,
            passed: SharedCounter::new("passed")?,
            records: SharedBytes::new("records", RECORD_COUNT as usize * RECORD_BYTES)?,
            torn: SharedCounter::new("torn")?,
            told: SharedCounter::new("told")?,
            written: SharedCounter::new("written")?,
            frame: SharedBytes::new("frame", 4096)?,
            holding: SharedGauge::new("holding")?,
            release: SharedFlag::new("release")?,
            relay: SharedNumber::new("relay")?,
            start_relay: SharedFlag::new("start_relay")?,
        })
    }

    /// Changes one record under its lock, byte by byte, after it has checked that it is whole.
    fn write_record(self, dice: u64) {
        let start = (dice >> 33) as usize % RECORD_COUNT as usize * RECORD_BYTES;
        let mut record = match self.records.try_lock(start..start + RECORD_BYTES) {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(LockError::Poisoned(mut record)) => {
                self.told.add(1);
                record.fill(0);
                record.clear_poison();
                record
            }
            Err(e) => return log::error!("{e}"),
        };
        let before = record.to_vec();
        if before.iter().any(|byte| *byte != before[0]) {
            self.torn.add(1);
        }
        for at in 0..RECORD_BYTES {
            record.write(at, &[dice as u8]);
        }
        self.written.add(1);
    }

    /// Increments the relay whenever it is the turn of this slot.
    async fn run_relay(self, slot: u64) {
        self.start_relay.wait().await;
        loop {
            let is_its_turn = |n: u64| n % RELAY_WORKERS == slot;
            self.relay.wait_and_update(|n| is_its_turn(n).then_some(n + 1)).await;
        }
    }

    /// Writes half of the frame under its lock, and keeps the lock until `/release`.
    async fn hold_frame(self) {
        match self.frame.lock(..).await {
            Ok(mut frame) => {
                let _holding = self.holding.add_scoped(1);
                frame.write(0, &[0xff; 2048]);
                self.release.wait().await;
            }
            Err(e) => log::error!("{e}"),
        }
    }
}

/// Repairs a poisoned range, and says what it was.
fn describe_lock(locked: Result<SharedBytesGuard, LockError<SharedBytesGuard>>) -> String {
    let described = match &locked {
        Ok(_) => "whole".to_string(),
        Err(LockError::Poisoned(frame)) => {
            format!("poisoned {:?} starting with {}", frame.poisoned_range(), frame.to_vec()[0])
        }
        Err(e) => e.to_string(),
    };
    if let Ok(mut frame) = locked.or_else(|e| e.into_guard().ok_or(())) {
        frame.fill(0);
        frame.clear_poison();
    }
    described
}

/// With one isolated process, unless `isolated=0`.
pub(super) fn shared_memory(arguments: ProgramArguments) -> Result<()> {
    let shared = Shared::declare()?;
    if shared.gate.wait_blocking(Duration::from_millis(1)) {
        return Err(Error::application("wait", "nobody has set the flag yet"));
    }
    let has_isolated = arguments.value("isolated").is_ok_and(|count| count != "0");
    let job = move |(): &mut (), name: String| match name.as_str() {
        "wait" => Ok(shared.gate.wait_blocking(JOB_WAIT).to_string()),
        "lock" => match shared.frame.lock_blocking(.., JOB_WAIT).transpose() {
            Some(locked) => Ok(describe_lock(locked)),
            None => Err("timed out".to_string()),
        },
        _ => Err(name),
    };
    let isolated = IsolatedPool::new(IsolatedPoolConfig::new("jobs", 1), || Ok(()), job);
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let mut cluster = Cluster::new(arguments.config);
    if has_isolated {
        cluster = cluster.isolated_pool(&isolated);
    }
    let boot = move |worker: Worker| {
        let isolated = isolated.clone();
        async move {
            start_background_work(shared, &worker)?;
            Ok(service_fn(move |request: Request<Incoming>| {
                let isolated = isolated.clone();
                async move {
                    let text = answer_path(shared, &isolated, request.uri().path()).await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        }
    };
    if is_threads { cluster.serve_threads(boot) } else { cluster.serve(boot) }
}

fn start_background_work(shared: Shared, worker: &Worker) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open("tickets");
    let mut file = file.map_err(|e| Error::application("open the file", e))?;
    let mut dice = u64::from(worker.pid()) | 1;
    tokio::spawn(async move {
        shared.go.wait().await;
        let _busy = shared.busy.add_scoped(1);
        while !shared.stop.is_set() {
            draw_tickets(shared, &mut file);
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            shared.write_record(dice);
            tokio::task::yield_now().await;
        }
    });
    tokio::spawn(shared.run_relay(worker.slot().0.into()));
    tokio::spawn(async move {
        let mut known = 0;
        loop {
            known = shared.version.wait_while(known).await;
            shared.noticed.add(1);
        }
    });
    Ok(())
}

fn draw_tickets(shared: Shared, file: &mut File) {
    for _ in 0..10 {
        let ticket = shared.tickets.fetch_add(1);
        // A missing ticket fails the test by its count.
        let _ = file.write_all(&ticket.to_le_bytes());
    }
}

async fn answer_path(
    shared: Shared,
    isolated: &IsolatedPool<String, String, String>,
    path: &str,
) -> String {
    match path {
        "/go" => shared.go.set().to_string(),
        "/stop" => shared.stop.set().to_string(),
        "/pid" => std::process::id().to_string(),
        "/new-version" => shared.version.fetch_add(1).to_string(),
        "/open" => shared.gate.set().to_string(),
        "/wait" => {
            shared.gate.wait().await;
            "open".to_string()
        }
        "/pass" => {
            shared.gate.wait_and_clear().await;
            shared.passed.add(1);
            "passed".to_string()
        }
        "/hold" => {
            tokio::spawn(shared.hold_frame());
            std::process::id().to_string()
        }
        "/start-relay" => shared.start_relay.set().to_string(),
        "/release" => shared.release.set().to_string(),
        "/lock" => describe_lock(shared.frame.lock(1000..3000).await),
        "/isolated/wait" | "/isolated/lock" => {
            let name = path.rsplit('/').next().unwrap_or_default();
            isolated.job(name.to_string()).await.unwrap_or_else(|e| format!("{e:?}"))
        }
        _ => serde_json::to_string(&shared::read_shared_metrics()).unwrap_or_default(),
    }
}
