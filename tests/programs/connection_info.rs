//! Applications that tell a client its address and the listener that it came by.

use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_prefork::{
    AcceptedStream, Cluster, ClusterEvent, ConcurrencyModel, ConnectionInfo, Error, ListenAddr,
    PeerAddr, Result, Worker,
};

use super::ProgramArguments;

/// Describes a connection: `PID peer local listener`.
fn describe(info: &ConnectionInfo) -> String {
    let pid = std::process::id();
    format!("{pid} {} {} {}\n", info.peer(), info.local(), info.listener())
}

async fn respond(
    request: Request<Incoming>,
    addresses: Vec<ListenAddr>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let text = match (request.uri().path(), request.extensions().get::<ConnectionInfo>()) {
        ("/addresses", _) => addresses.iter().map(|addr| format!("{addr}\n")).collect(),
        (_, Some(info)) => describe(info),
        (_, None) => "none\n".to_string(),
    };
    Ok(Response::new(Full::from(text)))
}

/// Answers each request with its connection, and `/addresses` with those of the worker, in any model.
///
/// A reload reads the addresses from the file `bind`, one a line. Listening events are written to the file `listening`.
pub(super) fn http_connections(arguments: ProgramArguments) -> Result<()> {
    let mut log = fs::File::create("listening").map_err(|e| Error::application("listening", e))?;
    let config = arguments.config.clone();
    let cluster = Cluster::new(arguments.config.clone())
        .reload_with(move || match fs::read_to_string("bind") {
            Ok(text) => {
                let addresses: Result<Vec<ListenAddr>> = text.lines().map(str::parse).collect();
                config.clone().into_builder().bind(addresses?).build()
            }
            Err(_) => Ok(config.clone()),
        })
        .on_event(move |_, event| {
            if let ClusterEvent::Listening { worker, addresses, .. } = event {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                // One write, as a test reads the file while it grows.
                let line = format!("{} {}\n", worker.id, addresses.join(" "));
                let _ = log.write_all(line.as_bytes());
            }
        });
    match arguments.config.model() {
        ConcurrencyModel::Threads => cluster.serve_threads(|worker| async move {
            let addresses = worker.addresses().to_vec();
            Ok(service_fn(move |request| respond(request, addresses.clone())))
        }),
        _ => cluster.serve(|worker: Worker| async move {
            let addresses = worker.addresses().to_vec();
            Ok(service_fn(move |request| respond(request, addresses.clone())))
        }),
    }
}

/// Answers each line with the connection.
pub(super) fn raw_connections(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve_connections(|_: Worker| async {
        Ok(|stream: AcceptedStream| async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while let Ok(1..) = stream.read_line(&mut line).await {
                let text = describe(stream.get_ref().connection_info());
                if stream.get_mut().write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
    })
}

/// Answers each line of a connection on the bare socket, with what its PROXY header says.
pub(super) fn proxied_connections(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve_connections(|_: Worker| async {
        Ok(|stream: AcceptedStream| async move {
            let header = stream.connection_info().proxy_header().copied();
            let addrs = header.map(|header| (header.source(), header.destination()));
            let (source, destination) = addrs.unzip();
            let shown = |addr: Option<SocketAddr>| addr.map_or("none".into(), |a| a.to_string());
            let unread = stream.unread_bytes().len();
            let Ok(socket) = stream.into_tcp() else { return };
            let mut lines = BufReader::new(socket);
            let mut line = String::new();
            while let Ok(1..) = lines.read_line(&mut line).await {
                let (source, destination) = (shown(source), shown(destination));
                let text = format!("{source} {destination} unread={unread} {line}");
                if lines.get_mut().write_all(text.as_bytes()).await.is_err() {
                    return;
                }
                line.clear();
            }
        })
    })
}

/// Serves what axum's extractors find: `/addr`, `/peer` and `/info`.
pub(super) fn axum_extractors(arguments: ProgramArguments) -> Result<()> {
    use axum::routing::get;
    Cluster::new(arguments.config).serve(|_: Worker| async move {
        let router = axum::Router::new()
            .route(
                "/addr",
                get(|ConnectInfo(addr): ConnectInfo<SocketAddr>| async move { addr.to_string() }),
            )
            .route(
                "/peer",
                get(|ConnectInfo(peer): ConnectInfo<PeerAddr>| async move { peer.to_string() }),
            )
            .route("/info", get(|info: ConnectionInfo| async move { describe(&info) }));
        Ok(router)
    })
}
