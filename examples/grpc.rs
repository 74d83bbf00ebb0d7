//! Serves gRPC with tonic, over HTTP/2 without TLS: each worker has a service of its own.
//!
//! A program usually has the messages and `GreeterServer` from tonic-build; here they are written by hand, so that no
//! `protoc` is needed. `tonic::service::Routes` combines several services, and is served in the same way.
//!
//! ```text
//! cargo run --example grpc -- 127.0.0.1:3000
//! grpcurl -plaintext -proto greeter.proto -d '{"name": "world"}' 127.0.0.1:3000 greeter.Greeter/Greet
//! ```

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use tokio_prefork::{Cluster, Config, Main, Worker};
use tonic::codegen::http;
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// `message GreetRequest { string name = 1; }`
#[derive(Clone, PartialEq, prost::Message)]
struct GreetRequest {
    #[prost(string, tag = "1")]
    name: String,
}

/// `message GreetReply { string text = 1; uint32 pid = 2; }`
#[derive(Clone, PartialEq, prost::Message)]
struct GreetReply {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    pid: u32,
}

/// The method `Greet` of the service `greeter.Greeter`.
#[derive(Clone)]
struct Greeter {
    worker: Worker,
}

impl UnaryService<GreetRequest> for Greeter {
    type Response = GreetReply;
    type Future = Ready<Result<Response<GreetReply>, Status>>;

    fn call(&mut self, request: Request<GreetRequest>) -> Self::Future {
        let name = request.into_inner().name;
        if name.is_empty() {
            return ready(Err(Status::invalid_argument("name is empty")));
        }
        let text = format!("hello {name}");
        ready(Ok(Response::new(GreetReply { text, pid: self.worker.pid() })))
    }
}

/// What tonic-build generates for the service.
#[derive(Clone)]
struct GreeterServer(Greeter);

impl NamedService for GreeterServer {
    const NAME: &'static str = "greeter.Greeter";
}

impl Service<http::Request<Incoming>> for GreeterServer {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let greeter = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/greeter.Greeter/Greet" => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
                    grpc.unary(greeter, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config)
        .serve(|worker: Worker| async move { Ok(GreeterServer(Greeter { worker })) })
}
