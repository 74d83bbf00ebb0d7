//! Applications that serve HTTP on streams of their own: raw connections, an own listener, passed connections, pipes.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_prefork::{
    AcceptedStream, BoxError, ClientInfo, Cluster, ConcurrencyModel, ConnectionInfo,
    PassedConnection, Result, Slot, Worker,
};

use super::ProgramArguments;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Serves through the door that `door=` names: `raw`, `passed` (as raw, through a [`PassedConnection`]), or else `serve` and `serve_threads` with a listener of its own, whose
/// port is in the file `port`.
pub(super) fn serve_http(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let is_raw = arguments.value("door").is_ok();
    let is_passed = arguments.value("door").is_ok_and(|door| door == "passed");
    let cluster = Cluster::new(arguments.config);
    let boot = |worker: Worker| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        std::fs::write("port", listener.local_addr()?.port().to_string())?;
        worker.spawn("own listener", accept_own(worker.clone(), listener));
        Ok(service(worker))
    };
    match (is_raw, is_threads) {
        (true, _) => cluster.serve_connections(move |worker: Worker| async move {
            // Before the first connection: other workers may send already.
            let mut greetings = worker.open_inbox("greet");
            let replying = worker.clone();
            tokio::task::spawn_local(async move {
                while let Some(greeting) = greetings.recv().await {
                    if let Some(to) = greeting.reply_to() {
                        let _ = replying.reply(&to, format!("slot {}", replying.slot()));
                    }
                }
            });
            Ok(move |stream: AcceptedStream| {
                let worker = worker.clone();
                async move {
                    let stream = match is_passed {
                        true => {
                            PassedConnection::try_from(stream).and_then(AcceptedStream::try_from)
                        }
                        false => Ok(stream),
                    };
                    let Ok(stream) = stream else { return };
                    worker.serve_http(stream, service(worker.clone())).await;
                }
            })
        }),
        (false, true) => cluster.serve_threads(boot),
        (false, false) => cluster.serve(boot),
    }
}

/// Serves the application's own listener until the worker drains.
async fn accept_own(worker: Worker, listener: TcpListener) {
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                worker.spawn("own connection", worker.serve_http(stream, service(worker.clone())));
            }
            () = worker.draining() => return,
        }
    }
}

type Text = Response<Full<Bytes>>;

fn service(
    worker: Worker,
) -> impl Service<
    Request<Incoming>,
    Response = Text,
    Error = Infallible,
    Future = impl Future<Output = std::result::Result<Text, Infallible>> + Send,
> + Send
+ Sync {
    service_fn(move |request: Request<Incoming>| {
        let worker = worker.clone();
        async move {
            let text = run_path(worker, &request).await.unwrap_or_else(|e| e.to_string());
            Ok(Response::new(Full::new(Bytes::from(text))))
        }
    })
}

async fn run_path(
    worker: Worker,
    request: &Request<Incoming>,
) -> std::result::Result<String, BoxError> {
    Ok(match request.uri().path() {
        "/wait" => {
            let mut checks = tokio::time::interval(Duration::from_millis(10));
            while !Path::new("release").exists() {
                checks.tick().await;
            }
            "released".to_string()
        }
        "/peer" => match request.extensions().get::<ConnectionInfo>() {
            Some(info) => info.peer().to_string(),
            None => "unknown".to_string(),
        },
        "/client" => ClientInfo::of(request).client().to_string(),
        "/ask-other" => {
            let other = Slot(1 - worker.slot().0);
            worker.request_to(other, "greet", &(), TIMEOUT).await?.decode()?
        }
        "/in-memory" => {
            let (mut client, server) = tokio::io::duplex(1 << 10);
            worker.spawn("in memory", worker.serve_http(server, service(worker.clone())));
            let head = "GET / HTTP/1.1\r\nHost: memory\r\nConnection: close\r\n\r\n";
            client.write_all(head.as_bytes()).await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await?;
            answer.lines().last().unwrap_or_default().to_string()
        }
        "/passed" => {
            let (client, server) = UnixStream::pair()?;
            let stream = AcceptedStream::try_from(PassedConnection::from(server))?;
            worker.spawn("passed", worker.serve_http(stream, service(worker.clone())));
            std::thread::spawn(move || record_answer(client));
            "sent".to_string()
        }
        "/disconnect" => {
            worker.disconnect();
            "done".to_string()
        }
        _ => format!("pid {}", worker.pid()),
    })
}

/// Requests `/wait` over `client`, and writes the answer into the file `answer`.
fn record_answer(mut client: UnixStream) {
    let mut answer = String::new();
    let asked = client.write_all(b"GET /wait HTTP/1.1\r\nHost: passed\r\n\r\n");
    let _ = asked.and_then(|()| client.read_to_string(&mut answer));
    let _ =
        std::fs::write("answer.new", answer).and_then(|()| std::fs::rename("answer.new", "answer"));
}
