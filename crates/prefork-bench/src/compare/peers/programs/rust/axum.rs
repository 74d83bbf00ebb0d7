//! axum, started as in its documentation: one listener, tokio's multi-thread runtime.

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::routing::get;
use axum::serve::ListenerExt;

fn main() -> std::io::Result<()> {
    let threads = peers::thread_count();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let socket = peers::listen(peers::address(), false)?;
        let addr = socket.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(socket)?;
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let answer: &'static str = peers::pid_answer().leak();
        let router = Router::new()
            .route("/", get(move || async move { answer }))
            .route("/bytes/{n}", get(|Path(n): Path<usize>| async move { vec![0u8; n.min(1 << 24)] }))
            .route("/fib/{n}", get(fib));
        peers::report_ready(addr);
        axum::serve(listener, router).await
    })
}

async fn fib(Path(n): Path<u64>, RawQuery(query): RawQuery) -> String {
    let n = n.min(50);
    let value = match query.as_deref() {
        Some("on=loop") => peers::fib(n),
        _ => tokio::task::spawn_blocking(move || peers::fib(n)).await.unwrap_or_default(),
    };
    format!("fib({n}) = {value}\n")
}
