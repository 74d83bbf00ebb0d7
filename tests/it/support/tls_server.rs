//! A server that speaks TLS, with a certificate of an authority of its own.

use std::ops::Deref;
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;

use super::command::ProcessBuilder;
use super::tls::TestAuthority;
use super::{Client, Failure, Server, wait};

/// The name in the certificate.
pub const SERVER_NAME: &str = "localhost";

/// The protocols of a client that prefers HTTP/2, and of one that knows HTTP/1.1 only.
pub const HTTP2: &[&str] = &["h2", "http/1.1"];
pub const HTTP1: &[&str] = &["http/1.1"];

/// A server that speaks TLS on its addresses.
pub struct TlsServer {
    server: Server,
    pub authority: TestAuthority,
    /// A client without ALPN.
    pub client: Arc<ClientConfig>,
}

impl TlsServer {
    /// Starts `prefork serve` with more arguments, and waits until `workers` workers serve.
    #[track_caller]
    pub fn with(workers: usize, args: &[&str]) -> TlsServer {
        TlsServer::start(Server::builder().workers(workers).args(args))
    }

    /// Starts a server with a certificate.
    #[track_caller]
    pub fn start(builder: ProcessBuilder) -> TlsServer {
        let authority = TestAuthority::new();
        let pair = authority.issue(&[SERVER_NAME]).write(builder.dir(), "server");
        let server = builder.args(pair.args()).start();
        let client = authority.client();
        TlsServer { server, authority, client }
    }

    /// Starts a program of `tests/programs` with a certificate.
    #[track_caller]
    pub fn start_program(builder: ProcessBuilder) -> TlsServer {
        let authority = TestAuthority::new();
        authority.issue(&[SERVER_NAME]).write(builder.dir(), "server");
        let args = ["tls-cert=server.crt", "tls-key=server.key"];
        let server = builder.args(args).start();
        let client = authority.client();
        TlsServer { server, authority, client }
    }

    /// Returns the settings of a client that offers these protocols, with sessions of its own.
    pub fn client_config(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut config = self.authority.client_config();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Connects with TLS, as a client that knows these protocols.
    #[track_caller]
    pub fn connect_with(&self, protocols: &[&str]) -> Client {
        self.try_connect(&self.client_config(protocols))
            .unwrap_or_else(|e| panic!("no TLS connection: {e:?}"))
    }

    /// Connects with TLS, without ALPN.
    #[track_caller]
    pub fn connect_tls(&self) -> Client {
        self.try_connect(&self.client).unwrap_or_else(|e| panic!("no TLS connection: {e:?}"))
    }

    pub fn try_connect(&self, config: &Arc<ClientConfig>) -> Result<Client, Failure> {
        Client::connect_tls(self.server.address(), config, SERVER_NAME)
    }

    /// Connects without TLS.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.server.address()).expect("connect")
    }

    /// Returns the counts of handshakes in the status.
    pub fn handshakes(&self) -> Value {
        self.server.status()["tls_handshakes"].clone()
    }

    /// Waits until so many handshakes have failed for this reason.
    #[track_caller]
    pub fn wait_failed(&self, reason: &str, count: u64) {
        wait::wait_until(&format!("{count} failed handshakes: {reason}"), || {
            self.handshakes()["failed"][reason].as_u64().unwrap_or(0) >= count
        });
    }

    /// Stops the server, and returns its log.
    #[track_caller]
    pub fn stop(self) -> String {
        self.server.stop()
    }
}

impl Deref for TlsServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
