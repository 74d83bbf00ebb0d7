//! An application whose handlers use the worker's handle on other threads than the worker's event loop.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::{
    BoxError, Cluster, ConcurrencyModel, IsolatedPool, IsolatedPoolConfig, Result, Worker,
    is_worker,
};

use super::ProgramArguments;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Serves under the model of the configuration.
pub(super) fn worker_handle(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let doubles =
        IsolatedPool::new(IsolatedPoolConfig::new("doubles", 1), || Ok(()), |(), n: u32| Ok(2 * n));
    let cluster = Cluster::new(arguments.config)
        .isolated_pool(&doubles)
        .on_message("echo", |primary, _, message| {
            if let Some(to) = message.reply_to() {
                let _ = primary.reply(&to, message.decode::<String>().unwrap_or_default());
            }
        })
        .on_message("ask", |primary, from, _| {
            let _ = primary.send(from.id, "answer", "the answer");
        });
    let boot = move |worker: Worker| {
        let doubles = doubles.clone();
        async move { Ok(service(worker, doubles)) }
    };
    if is_threads { cluster.serve_threads(boot) } else { cluster.serve(boot) }
}

type Text = Response<Full<Bytes>>;
type Doubles = IsolatedPool<u32, u32>;

fn service(
    worker: Worker,
    doubles: Doubles,
) -> impl Service<
    Request<Incoming>,
    Response = Text,
    Error = Infallible,
    Future = impl Future<Output = std::result::Result<Text, Infallible>> + Send,
> + Send
+ Sync {
    service_fn(move |request: Request<Incoming>| {
        let (worker, doubles) = (worker.clone(), doubles.clone());
        async move {
            let answer = run_path(worker, doubles, request.uri().path()).await;
            let text = answer.unwrap_or_else(|e| e.to_string());
            Ok(Response::new(Full::new(Bytes::from(text))))
        }
    })
}

/// Runs a future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Runs a future on a new thread with a runtime of its own, and returns its result.
async fn on_another_thread<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(block_on(future)));
    result.await.expect("the thread ends with a result")
}

/// Describes the worker that the calling code runs in.
fn current() -> String {
    let id = Worker::current().map(|worker| worker.id().0);
    format!("{} {id:?}", is_worker())
}

async fn run_path(
    worker: Worker,
    doubles: Doubles,
    path: &str,
) -> std::result::Result<String, BoxError> {
    match path {
        "/current" => {
            let in_handler = current();
            let in_pool = worker.pool().run(current).await?;
            let in_blocking = tokio::task::spawn_blocking(current).await?;
            let on_thread = on_another_thread(async { current() }).await;
            Ok([in_handler, in_pool, in_blocking, on_thread].join(", "))
        }
        "/disconnect" | "/retire" => {
            let should_disconnect = path == "/disconnect";
            let order = move || {
                if should_disconnect {
                    worker.disconnect()
                } else {
                    worker.retire()
                }
                format!("{} {}", worker.is_draining(), worker.is_ready())
            };
            Ok(tokio::task::spawn_blocking(order).await?)
        }
        "/echo" => {
            let request = async move { worker.request("echo", "ping", TIMEOUT).await };
            Ok(on_another_thread(request).await?.decode()?)
        }
        "/inbox" => {
            let mut inbox = worker.open_inbox("answer");
            let received = on_another_thread(async move {
                worker.send("ask", &()).await?;
                match tokio::time::timeout(TIMEOUT, inbox.recv()).await {
                    Ok(Some(message)) => message.decode::<String>(),
                    _ => Ok("nothing".to_string()),
                }
            });
            Ok(received.await?)
        }
        "/isolated" => {
            let (here, threads) = (doubles.clone(), doubles.clone());
            let in_handler = here.run(21).await?;
            let in_pool = worker.pool().run(move || doubles.job(21).wait()).await??;
            let on_thread = on_another_thread(async move { threads.run(21).await }).await?;
            Ok(format!("{in_handler} {in_pool} {on_thread}"))
        }
        "/draining" => {
            on_another_thread(async move { worker.draining().await }).await;
            Ok("drained".to_string())
        }
        "/cluster-status" => {
            let count = move || worker.cluster_status().workers.len().to_string();
            Ok(tokio::task::spawn_blocking(count).await?)
        }
        _ => Ok(worker.pid().to_string()),
    }
}
