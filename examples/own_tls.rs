//! HTTPS with a TLS acceptor of the program's own, here tokio-rustls: `serve_http_from` serves HTTP on any stream.
//!
//! For a TLS library or a policy that `tls-cert` does not have. Certificates, handshakes and tickets are the program's then: a session
//! resumes only with the worker that has issued its ticket.
//!
//! ```text
//! prefork dev-cert
//! cargo run --example own_tls -- 127.0.0.1:8443 dev-cert.pem dev-key.pem
//! curl --cacert dev-cert.pem https://localhost:8443/
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{AcceptedStream, BoxError, Cluster, Config, ConnectionInfo, Main, Worker};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::ServerConfig;

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let mut args = std::env::args().skip(1);
    let mut next = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let (address, certificate, key) =
        (next("127.0.0.1:8443"), next("dev-cert.pem"), next("dev-key.pem"));
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve_connections(move |worker: Worker| {
        // Each worker reads the files, so a reload takes new ones, and fails if they are wrong.
        let acceptor = make_acceptor(&certificate, &key);
        async move {
            let acceptor = acceptor?;
            Ok(move |stream: AcceptedStream| serve(worker.clone(), acceptor.clone(), stream))
        }
    })
}

fn make_acceptor(certificate: &str, key: &str) -> Result<TlsAcceptor, BoxError> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // The worker tells HTTP/2 by its first bytes.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

async fn serve(worker: Worker, acceptor: TlsAcceptor, stream: AcceptedStream) {
    let info = stream.connection_info().clone();
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => worker.serve_http_from(info, tls, service_fn(greet)).await,
        Ok(Err(e)) => log::debug!("{} failed the handshake: {e}", info.peer()),
        Err(_) => log::debug!("{} is too slow for a handshake", info.peer()),
    }
}

async fn greet(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let peer = request.extensions().get::<ConnectionInfo>().map(|info| info.peer().to_string());
    let pid = std::process::id();
    let peer = peer.unwrap_or_default();
    Ok(Response::new(format!(
        "{} {:?} of {peer} by pid {pid}\n",
        request.uri().path(),
        request.version()
    )))
}
