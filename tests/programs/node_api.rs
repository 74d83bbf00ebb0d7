//! The lines of code in the table of Node's cluster API (`docs/src/node.md`), for the compiler.
//! `tests/it/documentation.rs` searches for each of them here. The cluster can be run, but most of it waits for a
//! message that is never sent.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    AcceptedStream, BoxError, Cluster, ClusterEvent, Config, ConfigBuilder, ConnectionInfo,
    ControlSocket, Dispatch, inherit_socket,
};
use tokio_prefork::{
    Message, MessageError, OutputStream, PassedConnection, PrimaryHandle, RestartDecision, Result,
    Slot, WhenFull, Worker, WorkerExit, WorkerExitReason, WorkerId, WorkerStdio, WorkerTag,
};

use super::ProgramArguments;

const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn node_api(arguments: ProgramArguments) -> Result<()> {
    let dns = inherit_socket("dns", || UdpSocket::bind("127.0.0.1:0"))?;
    log::info!("{:?}", dns.local_addr());
    Cluster::new(arguments.config)
        .slot_env(0, [("ROLE", "mail")])?
        .worker_stdio(WorkerStdio::Lines)
        .worker_current_dir("/")
        .on_output(|_, worker, stream, line| print_line(worker, stream, line))
        .reload_with(|| settings(Config::builder()))
        .on_start(set_timers)
        .on_event(record_event)
        .on_restart(|_| RestartDecision::After(TIMEOUT))
        .on_restart(|exit| {
            if exit.code == Some(2) {
                RestartDecision::LeaveEmpty
            } else {
                RestartDecision::Restart
            }
        })
        .on_message("kind", |primary, from, message| handle_message(primary, from, &message))
        .serve(|worker| async move {
            Ok(service_fn(move |request| handle_request(worker.clone(), request)))
        })
}

#[rustfmt::skip]
fn settings(config: ConfigBuilder) -> Result<Config> {
    let config = config.workers(4);
    let config = config.listen("127.0.0.1:0")?;
    let config = config.listen("unix:/run/app.sock")?;
    let config = config.listen("fd://3")?;
    let web = inherit_socket("web", || TcpListener::bind("127.0.0.1:0"))?;
    let config = config.listener(web)?;
    let config = config.dispatch(Dispatch::Shared);
    let config = config.dispatch(Dispatch::RoundRobin);
    let config = config.dispatch(Dispatch::Reuseport);
    let config = config.backlog(4096);
    let config = config.worker_connections(1000);
    let config = config.when_full(WhenFull::Close);
    let config = config.graceful_timeout(TIMEOUT);
    let config = config.hand_over(true);
    let config = config.user("www-data");
    let config = config.control(ControlSocket::Auto);
    config.app_settings("settings of your own").build()
}

#[rustfmt::skip]
fn set_timers(primary: &mut PrimaryHandle<'_>) -> std::result::Result<(), BoxError> {
    primary.after(TIMEOUT, |primary| primary.reload());
    let tick = primary.every(TIMEOUT, |_| log::info!("tick"));
    let admin = UnixListener::bind("admin.sock")?;
    primary.on_readable(admin, answer_admin)?;
    primary.cancel_timer(tick);
    Ok(())
}

fn answer_admin(primary: &mut PrimaryHandle<'_>, admin: &mut UnixListener) {
    while let Ok((client, _)) = admin.accept() {
        if client.peer_addr().is_err() {
            primary.stop_with("the disk is full");
        } else {
            primary.cancel_current();
        }
    }
}

#[rustfmt::skip]
fn record_event(primary: &mut PrimaryHandle<'_>, event: &ClusterEvent) {
    match event {
        ClusterEvent::Fork { worker, .. } => log_worker_event(worker, "fork"),
        ClusterEvent::Online { worker, .. } => log_worker_event(worker, "online"),
        ClusterEvent::Listening { worker, addresses, .. } => log_worker_event(worker, &addresses[0].to_string()),
        ClusterEvent::Disconnect { worker, .. } => log_worker_event(worker, "disconnect"),
        ClusterEvent::Refused { command, reason, .. } => log::warn!("{command}: {reason} {:?}", primary.config().graceful_timeout()),
        ClusterEvent::Exit(WorkerExit { worker, code, signal, .. }) => {
            log_worker_event(worker, &format!("exit {code:?} {signal:?}"));
            if let ClusterEvent::Exit(exit) = event && exit.exited_after_disconnect && exit.reason == WorkerExitReason::Crashed {
                primary.stop();
            }
        }
        ClusterEvent::Empty => log::warn!("no worker is left"),
        other => log::info!("{other}"),
    }
}

fn print_line(worker: WorkerTag, stream: OutputStream, line: &[u8]) {
    log::info!("{worker} {stream}: {}", line.escape_ascii());
}

fn log_worker_event(worker: &WorkerTag, what: &str) {
    log::info!("{worker}: {what}");
}

fn handle_message(primary: &mut PrimaryHandle<'_>, from: WorkerTag, message: &Message) {
    if let Err(e) = call_primary_api(primary, from.id, message) {
        log::error!("{e}");
    }
}

#[rustfmt::skip]
fn call_primary_api(primary: &mut PrimaryHandle<'_>, id: WorkerId, message: &Message) -> std::result::Result<(), BoxError> {
    let forked = primary.fork_with([("ROLE", "mail")])?;
    let alive = primary.workers().iter().any(|w| w.worker.id == forked);
    primary.disconnect(id);
    primary.kill(id, 15)?;
    primary.stop();
    primary.reload();
    primary.scale(8);
    primary.send(id, "kind", &alive)?;
    primary.broadcast("kind", &1)?;
    if let Some(to) = message.reply_to() {
        primary.reply(&to, &2)?;
    }
    primary.request(id, "kind", &(), TIMEOUT, |_, answer| log::info!("{answer:?}"))?;
    let (socket, _) = UnixStream::pair()?;
    primary.send_connection(id, "kind", &(), socket)?;
    Ok(())
}

#[rustfmt::skip]
async fn handle_request(worker: Worker, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    if let Some(connection) = request.extensions().get::<ConnectionInfo>() {
        log::info!("{connection:?}");
    }
    if worker.slot() == Slot(u32::MAX) {
        call_worker_api(&worker).await?;
        let request = &mut request;
        let socket = PassedConnection::try_from(hyper::upgrade::on(request).await?)?;
        worker.send_connection("kind", &worker.cluster_status().totals.over_limit, socket).await?;
        let (socket, _) = UnixStream::pair()?;
        let socket = PassedConnection::from(socket);
        let service = service_fn(|_: Request<Incoming>| async { Ok::<_, BoxError>(Response::new(String::new())) });
        worker.serve_http(AcceptedStream::try_from(socket)?, service).await;
    }
    Ok(Response::new(Full::default()))
}

#[rustfmt::skip]
async fn call_worker_api(worker: &Worker) -> std::result::Result<(), BoxError> {
    let is_worker = tokio_prefork::is_worker();
    let current = Worker::current();
    let me = (worker.id(), worker.slot(), worker.generation(), worker.pid());
    let role = std::env::var("ROLE");
    log::info!("{is_worker} {current:?} {me:?} {role:?} {:?}", worker.config());
    worker.send("kind", &1).await?;
    log::info!("{:?}", worker.addresses());
    let full = worker.try_send("kind", &1) == Err(MessageError::Full);
    let mut inbox = worker.open_inbox("kind");
    let number: Option<u32> = inbox.recv().await.map(|message| message.decode()).transpose()?;
    worker.send_to(Slot(1), "kind", &number).await?;
    worker.broadcast("kind", &full).await?;
    let answer = worker.request("kind", &(), TIMEOUT).await?;
    let (socket, _) = UnixStream::pair()?;
    worker.send_connection("kind", answer.bytes().clone(), socket).await?;
    let busy = worker.hold("mail");
    worker.spawn("mail", save_state());
    worker.on_stop(save_state());
    worker.flush(TIMEOUT).await?;
    if worker.is_connected() {
        worker.retire();
    }
    drop(busy);
    worker.disconnect();
    worker.draining().await;
    Ok(())
}

async fn save_state() {
    log::info!("saved");
}
