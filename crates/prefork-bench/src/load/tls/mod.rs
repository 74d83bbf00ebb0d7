//! TLS of the load generator, with rustls: options, verification, and one session per connection.

mod failures;
pub(crate) mod handshake_counters;
mod options;
mod session_store;
mod tls_stream;
mod verification;

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, SupportedProtocolVersion};

pub use options::{TlsOptions, TlsVersions};
pub use tls_stream::NegotiatedTls;
pub(crate) use tls_stream::{CompletedHandshake, TlsStream};

use session_store::SessionStore;
use tokio_prefork::{Error, Result};

/// What every connection needs to start TLS: configuration and the name of the server.
#[derive(Debug, Clone)]
pub(crate) struct TlsClient {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
    resumes_sessions: bool,
}

impl TlsClient {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// A file cannot be read or used, a name is unknown, or the host of the URL cannot be in a certificate.
    pub(crate) fn from_options(
        options: &TlsOptions,
        server_name: &str,
        is_http2: bool,
    ) -> Result<TlsClient> {
        let server_name = ServerName::try_from(server_name.to_string()).map_err(|_| {
            Error::config(format!(
                "{server_name:?} cannot be in a certificate: give a DNS name or an address"
            ))
        })?;
        let provider = Arc::new(build_provider(options).map_err(Error::config)?);
        let versions: &[&SupportedProtocolVersion] = match options.versions {
            TlsVersions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersions::Only12 => &[&rustls::version::TLS12],
            TlsVersions::Only13 => &[&rustls::version::TLS13],
        };
        let unusable = |e: rustls::Error| Error::config(format!("cannot set up TLS: {e}"));
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(versions).map_err(unusable)?;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(verification::build_verifier(options, provider)?);
        let mut config = match &options.client_certificate {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, private_key) = (read_certificates(cert)?, read_private_key(key)?);
                builder.with_client_auth_cert(chain, private_key).map_err(|e| {
                    let (cert, key) = (cert.display(), key.display());
                    Error::config(format!(
                        "--cert {cert} and --key {key} cannot be used together: {e}"
                    ))
                })?
            }
        };
        config.alpn_protocols = vec![if is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let config = Arc::new(config);
        Ok(TlsClient { config, server_name, resumes_sessions: options.resume })
    }

    /// Returns a client with sessions of its own, so that threads do not wait for each other.
    pub(crate) fn for_thread(&self) -> TlsClient {
        let mut config = (*self.config).clone();
        config.resumption = match self.resumes_sessions {
            true => Resumption::store(Arc::new(SessionStore::default())),
            false => Resumption::disabled(),
        };
        TlsClient { config: Arc::new(config), ..self.clone() }
    }
}

/// Starts TLS on a blocking stream, and accepts any certificate: for a client that asks its own machine.
///
/// # Errors
/// rustls cannot be set up.
pub fn unverified_stream<S: Read + Write>(
    stream: S,
) -> Result<rustls::StreamOwned<rustls::ClientConnection, S>> {
    let options = TlsOptions { insecure: true, ..TlsOptions::default() };
    let TlsClient { config, server_name, .. } =
        TlsClient::from_options(&options, "localhost", false)?;
    let session = rustls::ClientConnection::new(config, server_name)
        .map_err(|e| Error::config(format!("cannot set up TLS: {e}")))?;
    Ok(rustls::StreamOwned::new(session, stream))
}

/// Returns the algorithms of aws-lc-rs, or those of them that the options name.
fn build_provider(options: &TlsOptions) -> std::result::Result<CryptoProvider, String> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if !options.groups.is_empty() {
        provider.kx_groups =
            select_named("--tls-groups", &options.groups, &provider.kx_groups, |group| {
                format!("{:?}", group.name())
            })?;
    }
    if !options.cipher_suites.is_empty() {
        let named = &options.cipher_suites;
        provider.cipher_suites =
            select_named("--tls-ciphers", named, &provider.cipher_suites, |suite| {
                options::cipher_suite_name(suite.suite())
            })?;
    }
    Ok(provider)
}

/// Returns the elements of `known` with the given names, in that order.
fn select_named<T: Copy>(
    flag: &str,
    names: &[String],
    known: &[T],
    name_of: impl Fn(&T) -> String,
) -> std::result::Result<Vec<T>, String> {
    let find = |name: &String| {
        let found = known.iter().find(|one| name_of(one).eq_ignore_ascii_case(name)).copied();
        found.ok_or_else(|| {
            let known: Vec<String> = known.iter().map(&name_of).collect();
            format!("{flag} {name}: give one or more of {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// Reads all certificates of a PEM file.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let unreadable = |e: rustls::pki_types::pem::Error| {
        Error::config(format!("cannot read certificates from {shown}: {e}"))
    };
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let certificates = found.collect::<std::result::Result<Vec<_>, _>>().map_err(unreadable)?;
    match certificates.is_empty() {
        true => Err(Error::config(format!(
            "{shown} has no certificate: give a PEM file with -----BEGIN CERTIFICATE-----"
        ))),
        false => Ok(certificates),
    }
}

fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| {
        Error::config(format!(
            "cannot read a private key from {}: {e}; give a PEM file",
            path.display()
        ))
    })
}
