//! A chat: each posted text reaches the listeners of all workers as a server-sent event.
//!
//! ```text
//! cargo run --example chat -- 127.0.0.1:3000
//! curl -N http://127.0.0.1:3000/events             # in several terminals, so at different workers
//! curl -d 'hello' http://127.0.0.1:3000/
//! ```

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use tokio::sync::mpsc;
use tokio_prefork::{BoxError, Cluster, Config, Main, Worker};

/// How many events are queued for one listener. A slower listener is disconnected.
const LISTENER_QUEUE_LENGTH: usize = 64;

/// The listeners of this worker.
type Listeners = Rc<RefCell<Vec<mpsc::Sender<Bytes>>>>;

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker: Worker| async move {
        let listeners = Listeners::default();
        tokio::task::spawn_local(forward_broadcasts(worker.clone(), Rc::clone(&listeners)));
        Ok(service_fn(move |request| handle(worker.clone(), Rc::clone(&listeners), request)))
    })
}

/// Sends the events of other workers to the listeners of this one. All streams end when the worker drains; browsers
/// reconnect by themselves.
async fn forward_broadcasts(worker: Worker, listeners: Listeners) {
    let mut inbox = worker.open_inbox("chat");
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => send_to_all(&listeners, message.bytes()),
                None => return,
            },
            () = worker.draining() => return listeners.borrow_mut().clear(),
        }
    }
}

/// Sends an event to every listener of this worker, and drops those whose queue is full.
fn send_to_all(listeners: &Listeners, event: &Bytes) {
    listeners.borrow_mut().retain(|listener| listener.try_send(event.clone()).is_ok());
}

async fn handle(
    worker: Worker,
    listeners: Listeners,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, BoxError> {
    if request.uri().path() == "/events" {
        let (sender, receiver) = mpsc::channel(LISTENER_QUEUE_LENGTH);
        sender.try_send(Bytes::from(format!(": worker {}\n\n", worker.pid())))?;
        if !worker.is_draining() {
            listeners.borrow_mut().push(sender);
        }
        let response = Response::builder().header("content-type", "text/event-stream");
        return Ok(response.body(EventStream(receiver).boxed())?);
    }
    if request.method() == Method::POST {
        let text = request.into_body().collect().await?.to_bytes();
        // One data line for each line of text: an empty line would end the event.
        let lines = String::from_utf8_lossy(&text)
            .lines()
            .map(|l| format!("data: {l}\n"))
            .collect::<String>();
        let event = Bytes::from(lines + "\n");
        // A broadcast reaches the other workers only.
        send_to_all(&listeners, &event);
        worker.broadcast("chat", event).await?;
    }
    Ok(Response::new(Full::from("GET /events to listen, POST / to send\n").boxed()))
}

/// A response body that streams events.
struct EventStream(mpsc::Receiver<Bytes>);

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
