//! An application that runs isolated jobs with large inputs and outputs.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio_prefork::isolated::{MappedBuffer, MappedBytes};
use tokio_prefork::{
    BoxError, Cluster, IsolatedJobError, IsolatedPool, IsolatedPoolConfig, Result, Worker,
};

use super::ProgramArguments;

/// The byte that inputs are filled with. The first bytes say what the job does.
const FILL: u8 = 7;

/// The largest value of the pools.
const MAX_PAYLOAD_BYTES: usize = 200 << 20;

/// What a job does with its input.
#[derive(Clone, Copy)]
enum Action {
    /// Returns it, with `1` in place of the action.
    Return = 0,
    Abort = 1,
    /// Waits for the file `go` first.
    WaitForFile = 2,
    /// Makes its process unable to open descriptors from now on.
    ForbidDescriptors = 3,
}

/// Mapped bytes among other values.
#[derive(Serialize, Deserialize)]
struct Image {
    name: String,
    pixels: MappedBytes,
    scale: u32,
}

#[derive(Clone)]
struct Pools {
    vec: IsolatedPool<Vec<u8>, Vec<u8>>,
    mapped: IsolatedPool<MappedBytes, MappedBuffer>,
    image: IsolatedPool<Image, Image>,
    numbers: IsolatedPool<Vec<u32>, Vec<u32>>,
}

/// Takes no arguments but those of the cluster. Each pool has one process.
pub(super) fn large_payloads(arguments: ProgramArguments) -> Result<()> {
    let config = |name| {
        let config = IsolatedPoolConfig::new(name, 1).max_payload_bytes(MAX_PAYLOAD_BYTES);
        config.deadline(Duration::from_secs(60))
    };
    let pools = Pools {
        vec: IsolatedPool::new(
            config("vec"),
            || Ok(()),
            |(), mut input: Vec<u8>| {
                act(&input)?;
                input[0] = 1;
                Ok(input)
            },
        ),
        mapped: IsolatedPool::new(
            config("mapped"),
            || Ok(()),
            |(), input: MappedBytes| {
                act(&input)?;
                let output = MappedBuffer::with_any_content(input.len());
                let mut output = output.map_err(|e| e.to_string())?;
                output.copy_from_slice(&input);
                output[0] = 1;
                Ok(output)
            },
        ),
        image: IsolatedPool::new(
            config("image"),
            || Ok(()),
            |(), image: Image| {
                let scale = image.scale + u32::from(image.pixels[0]);
                Ok(Image { scale, ..image })
            },
        ),
        numbers: IsolatedPool::new(
            config("numbers"),
            || Ok(()),
            |(), numbers: Vec<u32>| Ok(numbers.iter().map(|number| number + 1).collect()),
        ),
    };
    let cluster = Cluster::new(arguments.config)
        .isolated_pool(&pools.vec)
        .isolated_pool(&pools.mapped)
        .isolated_pool(&pools.image)
        .isolated_pool(&pools.numbers);
    cluster.serve(move |_: Worker| {
        let pools = pools.clone();
        async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let pools = pools.clone();
                async move {
                    let answer = run_jobs(&pools, request.uri().path()).await;
                    let text = answer.unwrap_or_else(|e| e.to_string());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        }
    })
}

fn act(input: &[u8]) -> std::result::Result<(), String> {
    match input[0] {
        action if action == Action::Abort as u8 => std::process::abort(),
        action if action == Action::WaitForFile as u8 => {
            while std::fs::metadata("go").is_err() {
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
        action if action == Action::ForbidDescriptors as u8 => {
            setrlimit(Resource::RLIMIT_NOFILE, 0, 0).map_err(|e| e.to_string())?;
        }
        _ => {}
    }
    Ok(())
}

fn new_input(action: Action, length: usize) -> Vec<u8> {
    let mut input = vec![FILL; length];
    input[0] = action as u8;
    input
}

/// Describes an output: `ok`, or what is wrong with it.
fn describe(length: usize, output: std::result::Result<&[u8], IsolatedJobError>) -> String {
    match output {
        Ok(bytes) if bytes.len() != length => format!("{} bytes", bytes.len()),
        Ok(bytes) if bytes[0] != 1 || bytes[1..] != vec![FILL; length - 1] => "torn".to_string(),
        Ok(_) => "ok".to_string(),
        Err(error) => format!("begun={} {error:?}", error.has_begun()),
    }
}

/// Runs the jobs of the path `/WHAT/BYTES` or `/WHAT/BYTES/COUNT`.
async fn run_jobs(pools: &Pools, path: &str) -> std::result::Result<String, BoxError> {
    let mut words = path.trim_start_matches('/').split('/');
    let what = words.next().unwrap_or_default();
    let length = words.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let count = words.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    let run_vec = async |action| {
        let output = pools.vec.run(new_input(action, length)).await;
        describe(length, output.as_deref().map_err(Clone::clone))
    };
    let run_mapped = async |action| {
        let input = MappedBytes::copy_from_slice(&new_input(action, length))?;
        let output = pools.mapped.run(input).await;
        let output = output.as_ref().map(|output| &output[..]).map_err(Clone::clone);
        Ok::<_, BoxError>(describe(length, output))
    };
    Ok(match what {
        "vec" => run_vec(Action::Return).await,
        "mapped" => run_mapped(Action::Return).await?,
        "abort-vec" => run_vec(Action::Abort).await,
        "abort-mapped" => run_mapped(Action::Abort).await?,
        "wait-vec" => run_vec(Action::WaitForFile).await,
        "forbid-descriptors" => run_vec(Action::ForbidDescriptors).await,
        "image" => {
            let pixels = MappedBytes::copy_from_slice(&new_input(Action::WaitForFile, length))?;
            let image = Image { name: "a".to_string(), pixels: pixels.clone(), scale: 40 };
            let image = pools.image.run(image).await?;
            assert!(image.pixels == pixels && image.name == "a");
            image.scale.to_string()
        }
        "numbers" => {
            let numbers = pools.numbers.run(vec![70_000; length / 4]).await?;
            assert_eq!(numbers, vec![70_001; length / 4]);
            "ok".to_string()
        }
        // The same input for all jobs.
        "shared" => {
            let input = MappedBytes::copy_from_slice(&new_input(Action::Return, length))?;
            let jobs: Vec<_> =
                (0..count).map(|_| pools.mapped.job(input.clone()).start()).collect();
            let mut results = String::new();
            for job in jobs {
                let output = job.await;
                let output = output.as_ref().map(|output| &output[..]).map_err(Clone::clone);
                results += &describe(length, output);
            }
            results
        }
        "starved" => {
            let _all = take_all_descriptors()?;
            run_vec(Action::Return).await
        }
        other => format!("what is {other:?}?"),
    })
}

/// Opens descriptors until none is left.
fn take_all_descriptors() -> std::result::Result<Vec<OwnedFd>, BoxError> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(200), most)?;
    let opened =
        std::iter::repeat_with(|| std::fs::File::open("/dev/null")).map_while(|one| one.ok());
    Ok(opened.map(OwnedFd::from).collect())
}
