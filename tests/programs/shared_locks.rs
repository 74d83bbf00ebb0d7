//! An application whose workers share locks by name.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, IsolatedPool, IsolatedPoolConfig, Result, SharedFlag, SharedGauge,
    SharedLocks, Worker, shared,
};

use super::ProgramArguments;

/// The locks that all workers contend for.
const CONTENDED: [&str; 3] = ["one", "two", "three"];
/// How many names `/hold-many` and `/wait-many` lock.
const MANY: usize = 300;

/// A number in a file, which is read and written back in two steps, and a journal of the numbers written.
struct Number {
    file: File,
    journal: File,
}

impl Number {
    fn open(name: &str) -> io::Result<Number> {
        let mut options = OpenOptions::new();
        let options = options.create(true).read(true).write(true).truncate(false);
        let file = options.open(format!("number-{name}"))?;
        let journal =
            OpenOptions::new().create(true).append(true).open(format!("journal-{name}"))?;
        Ok(Number { file, journal })
    }

    fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Adds one. If the process is killed between the two writes, the number is missing in the journal; it is there twice
    /// only if an addition was lost.
    async fn add_one(&mut self) -> io::Result<()> {
        let number = self.read()? + 1;
        tokio::task::yield_now().await;
        self.file.write_all_at(&number.to_le_bytes(), 0)?;
        // In one write, as the process may be killed between two.
        self.journal.write_all(format!("{number}\n").as_bytes())
    }
}

/// Adds to the numbers between the flags `go` and `stop`, each under its lock. Others that share the lock see no change.
async fn count_under_locks(
    locks: SharedLocks,
    go: SharedFlag,
    stop: SharedFlag,
) -> Result<(), BoxError> {
    let mut round = std::process::id() as usize;
    let mut looks = tokio::time::interval(Duration::from_millis(1));
    while !stop.is_set() {
        if !go.is_set() {
            looks.tick().await;
            continue;
        }
        round = round.wrapping_mul(31).wrapping_add(7);
        let name = CONTENDED[round % CONTENDED.len()];
        let mut number = Number::open(name)?;
        if round.is_multiple_of(4) {
            let _shared = locks.lock_shared(name).await?;
            let before = number.read()?;
            tokio::task::yield_now().await;
            if number.read()? != before {
                std::fs::write("changed-while-shared", name)?;
            }
        } else {
            let _guard = locks.lock(name).await?;
            number.add_one().await?;
        }
    }
    Ok(())
}

/// Holds the lock `chain` until the worker ends, and counts itself meanwhile.
async fn hold_chain(locks: SharedLocks, holding: SharedGauge) -> Result<(), BoxError> {
    std::mem::forget(locks.lock("chain").await?);
    holding.set(1);
    Ok(())
}

/// Performs `/COMMAND/NAME`.
async fn perform(
    locks: SharedLocks,
    pool: &IsolatedPool<String, bool>,
    path: &str,
) -> Result<String, BoxError> {
    let pid = std::process::id();
    let (command, name) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let many = || (0..MANY).map(|number| format!("many {number}"));
    Ok(match command {
        "hold" => {
            std::mem::forget(locks.lock(name).await?);
            pid.to_string()
        }
        "hold-until-released" => {
            let _guard = locks.lock(name).await?;
            let mut looks = tokio::time::interval(Duration::from_millis(1));
            while !Path::new("released").exists() {
                looks.tick().await;
            }
            pid.to_string()
        }
        "hold-many" => {
            for name in many() {
                std::mem::forget(locks.lock(&name).await?);
            }
            pid.to_string()
        }
        "wait-many" => {
            for name in many() {
                tokio::task::spawn_local(
                    async move { locks.lock(&name).await.map(std::mem::forget) },
                );
            }
            pid.to_string()
        }
        "pid" => pid.to_string(),
        "try" => locks.try_lock(name)?.is_some().to_string(),
        "try-shared" => locks.try_lock_shared(name)?.is_some().to_string(),
        "within" => {
            let guard = locks.lock_within(name, Duration::from_millis(20)).await?;
            guard.is_some().to_string()
        }
        "holder" => locks.holder_pid(name)?.map_or(String::new(), |pid| pid.to_string()),
        "isolated" => pool.run(name.to_string()).await?.to_string(),
        _ => serde_json::to_string(&shared::read_shared_metrics())?,
    })
}

/// `/go` and `/stop` start and end the work of all workers; see `perform` for other paths.
pub(super) fn shared_locks(arguments: ProgramArguments) -> Result<()> {
    let locks = SharedLocks::new("locks")?;
    let (go, stop) = (SharedFlag::new("go")?, SharedFlag::new("stop")?);
    let (busy, holding) = (SharedGauge::new("busy")?, SharedGauge::new("holding_chain")?);
    let try_lock = move |(): &mut (), name: String| {
        locks.try_lock(&name).map(|guard| guard.is_some()).map_err(|e| e.to_string())
    };
    let pool = IsolatedPool::new(IsolatedPoolConfig::new("checker", 1), || Ok(()), try_lock);
    let has_isolated_process = arguments.value("isolated").is_ok();
    let mut cluster = Cluster::new(arguments.config);
    if has_isolated_process {
        cluster = cluster.isolated_pool(&pool);
    }
    cluster.serve(move |_: Worker| {
        let pool = pool.clone();
        async move {
            {
                // The worker that checks an upgrade does that, too.
                let _guard = locks.lock("boot").await?;
                Number::open("boot")?.add_one().await?;
            }
            tokio::task::spawn_local(async move {
                let _busy = busy.add_scoped(1);
                if let Err(e) = count_under_locks(locks, go, stop).await {
                    log::error!("{e}");
                }
            });
            tokio::task::spawn_local(async move {
                if let Err(e) = hold_chain(locks, holding).await {
                    log::error!("{e}");
                }
            });
            Ok(service_fn(move |request: Request<Incoming>| {
                let pool = pool.clone();
                async move {
                    match request.uri().path() {
                        "/go" => drop(go.set()),
                        "/stop" => drop(stop.set()),
                        _ => {}
                    }
                    let text = perform(locks, &pool, request.uri().path()).await;
                    let text = text.unwrap_or_else(|e| e.to_string());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        }
    })
}
