//! Measures isolated processes, from the worker of a cluster that has nothing else to do.

use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::getppid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::own_ways::{OTHER_JOB_TIME, join, measure_empty_jobs, print_line, sample};
use super::program_plan::{
    CRASH_LINE, CrashOutcome, DONE_LINE, Measure, ProgramCosts, ProgramPlan, TransferSamples,
};
use super::report::{ISOLATED_MAPPED, ISOLATED_VEC};
use prefork_os::signal::Signal;
use tokio_prefork::isolated::{MappedBuffer, MappedBytes};
use tokio_prefork::{BoxError, Cluster, Config, IsolatedPool, IsolatedPoolConfig, Worker};

type WayResult<T> = Result<T, BoxError>;

/// A job without data.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum SmallJob {
    Empty,
    Pause(Duration),
    Abort,
}

fn run_small_job(job: SmallJob) -> Result<(), String> {
    match job {
        SmallJob::Empty => {}
        SmallJob::Pause(time) => std::thread::sleep(time),
        SmallJob::Abort => std::process::abort(),
    }
    Ok(())
}

/// Reads the whole input and writes a new output.
fn copy_mapped(data: &MappedBytes) -> Result<MappedBytes, String> {
    let mut output =
        MappedBuffer::with_any_content(data.len()).map_err(|e| format!("no memory: {e}"))?;
    output.copy_from_slice(data);
    Ok(output.freeze())
}

type SmallJobs = IsolatedPool<SmallJob, (), String>;
type EchoJobs<T> = IsolatedPool<T, T, String>;

/// The pools, one for each type of data.
#[derive(Clone)]
struct Pools {
    small: SmallJobs,
    vec: EchoJobs<Vec<u8>>,
    mapped: EchoJobs<MappedBytes>,
}

/// Measures as the plan says, in the worker of a cluster, and stops the cluster.
pub(super) fn run(plan: &ProgramPlan) -> WayResult<()> {
    let config = Config::builder().listen("127.0.0.1:0")?.workers(1).build()?;
    let config_of = |name| IsolatedPoolConfig::new(name, plan.threads as u32).queue(plan.batch);
    let pools = Pools {
        small: IsolatedPool::new(config_of("small"), || Ok(()), |_, job| run_small_job(job)),
        vec: IsolatedPool::new(config_of("vec"), || Ok(()), |_, data| Ok(data)),
        mapped: IsolatedPool::new(config_of("mapped"), || Ok(()), |_, data| copy_mapped(&data)),
    };
    let plan = plan.clone();
    let cluster = Cluster::new(config)
        .isolated_pool(&pools.small)
        .isolated_pool(&pools.vec)
        .isolated_pool(&pools.mapped);
    cluster.serve_connections(move |_: Worker| {
        let (plan, pools) = (plan.clone(), pools.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = measure(&pools, &plan).await {
                eprintln!("Error: {error}");
            }
            let _ = kill(getppid(), Signal::SIGTERM);
        });
        async { Ok(|_| async {}) }
    })?;
    Ok(())
}

async fn measure(pools: &Pools, plan: &ProgramPlan) -> WayResult<()> {
    let small = |job: SmallJob| {
        let job = pools.small.job(job).start();
        async move { Ok(job.await?) }
    };
    match plan.measure {
        Measure::Costs => {
            let (one_by_one_us, bulk_us) =
                measure_empty_jobs(plan, || small(SmallJob::Empty)).await?;
            let samples_us = measure_echo(plan, &pools.vec, vec![b'x'; plan.bytes]).await?;
            let mut transfers = vec![TransferSamples { how: ISOLATED_VEC.to_string(), samples_us }];
            let data = MappedBytes::copy_from_slice(&vec![b'x'; plan.bytes])?;
            let samples_us = measure_echo(plan, &pools.mapped, data).await?;
            transfers.push(TransferSamples { how: ISOLATED_MAPPED.to_string(), samples_us });
            print_line(&serde_json::to_string(&ProgramCosts { one_by_one_us, bulk_us, transfers })?)
        }
        Measure::Crash => {
            let empty_jobs = |count| (0..count).map(|_| small(SmallJob::Empty)).collect();
            // Starts all processes.
            join(empty_jobs(plan.threads * 8)).await?;
            let running = small(SmallJob::Pause(OTHER_JOB_TIME));
            print_line(CRASH_LINE)?;
            let begun = Instant::now();
            let aborted = small(SmallJob::Abort);
            let waiting: Vec<_> = empty_jobs(plan.other_jobs - 1);
            let verdict = aborted.await;
            let verdict_us = begun.elapsed().as_secs_f64() * 1e6;
            if verdict.is_ok() {
                return Err("a job is done after an abort".into());
            }
            let mut results = Vec::new();
            let mut next_job_us = f64::NAN;
            for job in waiting {
                results.push(job.await);
                if results.len() == 1 {
                    next_job_us = begun.elapsed().as_secs_f64() * 1e6;
                }
            }
            results.push(running.await);
            let lost_jobs = results.iter().filter(|result| result.is_err()).count();
            let outcome = CrashOutcome { verdict_us, next_job_us, lost_jobs };
            print_line(&serde_json::to_string(&outcome)?)
        }
        Measure::Next => {
            small(SmallJob::Empty).await?;
            print_line(DONE_LINE)
        }
    }
}

/// Measures a job that returns its data. What it has returned is the next input.
async fn measure_echo<T>(plan: &ProgramPlan, pool: &EchoJobs<T>, data: T) -> WayResult<Vec<f64>>
where
    T: Serialize + DeserializeOwned + AsRef<[u8]> + Send + 'static,
{
    // Starts the processes, and makes the memory that is used again.
    let mut data = Some(pool.run(data).await?);
    sample(plan, async || {
        let sent = data.take().ok_or("data was lost")?;
        let back = pool.run(sent).await?;
        if back.as_ref().len() != plan.bytes {
            return Err("data was lost".into());
        }
        data = Some(back);
        Ok(())
    })
    .await
}
