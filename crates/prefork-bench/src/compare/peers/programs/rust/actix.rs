//! actix-web: an acceptor and a current-thread runtime per worker.

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let threads = peers::thread_count();
    let socket = peers::listen(peers::address(), false)?;
    let addr = socket.local_addr()?;
    let answer: &'static str = peers::pid_answer().leak();
    let server = HttpServer::new(move || {
        App::new()
            .route("/", web::get().to(move || async move { plain().body(answer) }))
            .route("/bytes/{n}", web::get().to(bytes))
            .route("/fib/{n}", web::get().to(fib))
    });
    // SIGTERM ends it at once.
    let server = server.workers(threads).disable_signals().listen(socket)?.run();
    peers::report_ready(addr);
    server.await
}

fn plain() -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.content_type("text/plain; charset=utf-8");
    response
}

async fn bytes(n: web::Path<usize>) -> HttpResponse {
    plain().body(vec![0u8; n.into_inner().min(1 << 24)])
}

async fn fib(request: HttpRequest, n: web::Path<u64>) -> HttpResponse {
    let n = n.into_inner().min(50);
    let value = match request.query_string() {
        "on=loop" => peers::fib(n),
        _ => web::block(move || peers::fib(n)).await.unwrap_or_default(),
    };
    plain().body(format!("fib({n}) = {value}\n"))
}
