//! The settings of TLS on the server's side: Mozilla's intermediate profile.
//!
//! <https://wiki.mozilla.org/Security/Server_Side_TLS>: TLS 1.3 and 1.2, ciphers with forward secrecy and authentication. Its DHE
//! ciphers, for clients older than Android 4.4 and Java 8, are left out. It leaves the order to the client; here it is the server's,
//! as scanners such as testssl.sh report a server without one.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use super::SessionTickets;
use crate::error::{Error, Result};

/// The cipher suites, the preferred first.
const CIPHER_SUITES: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The versions of the protocol, the newest first.
static VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS13, &rustls::version::TLS12];

/// The protocols over TLS that a worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AlpnProtocols {
    /// HTTP/1.1 and HTTP/2, which is preferred.
    Http2,
    /// HTTP/1.1 only.
    Http1,
    /// Any other protocol: names of protocols are ignored.
    Ignored,
}

/// What the parts of a worker add to its TLS.
#[derive(Debug)]
pub(crate) struct TlsOptions {
    pub(crate) alpn: AlpnProtocols,
    /// `None`: sessions are not resumed.
    pub(crate) tickets: Option<Arc<SessionTickets>>,
    /// `None`: clients are not asked for a certificate.
    pub(crate) client_verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Returns the cryptography of this program, which does not depend on a default of the process.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..default_provider()
    })
}

pub(super) fn build_server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    options: TlsOptions,
) -> Result<Arc<ServerConfig>> {
    let TlsOptions { alpn, tickets, client_verifier } = options;
    let builder = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&VERSIONS)
        .map_err(|e| Error::internal(format!("cannot set up TLS: {e}")))?;
    let builder = match client_verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.ignore_client_order = true;
    config.alpn_protocols = match alpn {
        AlpnProtocols::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        AlpnProtocols::Http1 => vec![b"http/1.1".to_vec()],
        AlpnProtocols::Ignored => Vec::new(),
    };
    // A cache of one process would miss the sessions of all others.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match tickets {
        Some(ticketer) => config.ticketer = ticketer,
        None => config.send_tls13_tickets = 0,
    }
    // A replayed request would be served twice.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
