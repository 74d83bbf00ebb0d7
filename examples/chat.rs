//! A chat over all workers: what one is told goes to the listeners of all, as server-sent events.
//!
//! ```text
//! cargo run --example chat -- 127.0.0.1:3000
//! curl -N http://127.0.0.1:3000/events             # in several terminals: also of different workers
//! curl -d 'hello' http://127.0.0.1:3000/
//! ```

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::{Context, Poll};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use tokio::sync::mpsc;
use tokio_prefork::{BoxError, Cluster, Config, Worker};

/// Events that may wait for a listener; one that is slower is dropped, and connects again.
const WAITING: usize = 64;

/// Those who listen at this worker.
type Listeners = Rc<RefCell<Vec<mpsc::Sender<Bytes>>>>;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker: Worker| async move {
        let listeners = Listeners::default();
        tokio::task::spawn_local(hear(worker.clone(), Rc::clone(&listeners)));
        Ok(service_fn(move |request| answer(worker.clone(), Rc::clone(&listeners), request)))
    })
}

/// Passes on what other workers were told. The streams end when the worker drains; browsers connect again by themselves.
async fn hear(worker: Worker, listeners: Listeners) {
    let mut inbox = worker.recv("said");
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => tell(&listeners, message.bytes()),
                None => return,
            },
            () = worker.draining() => return listeners.borrow_mut().clear(),
        }
    }
}

fn tell(listeners: &Listeners, event: &Bytes) {
    listeners.borrow_mut().retain(|listener| listener.try_send(event.clone()).is_ok());
}

async fn answer(
    worker: Worker,
    listeners: Listeners,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, BoxError> {
    if request.uri().path() == "/events" {
        let (sender, receiver) = mpsc::channel(WAITING);
        sender.try_send(Bytes::from(format!(": worker {}\n\n", worker.pid())))?;
        if !worker.is_draining() {
            listeners.borrow_mut().push(sender);
        }
        let response = Response::builder().header("content-type", "text/event-stream");
        return Ok(response.body(Events(receiver).boxed())?);
    }
    if request.method() == Method::POST {
        let said = request.into_body().collect().await?.to_bytes();
        // A line of its own for each, as an event may not have an empty one in it.
        let lines = String::from_utf8_lossy(&said)
            .lines()
            .map(|l| format!("data: {l}\n"))
            .collect::<String>();
        let event = Bytes::from(lines + "\n");
        tell(&listeners, &event);
        worker.broadcast("said", event).await?;
    }
    Ok(Response::new(Full::from("listen at /events, POST what you say\n").boxed()))
}

/// The body of a response that goes on.
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
