//! The TLS options of a load.

use std::path::PathBuf;

use rustls::CipherSuite;

/// TLS versions to offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.3 and 1.2; the server chooses.
    #[default]
    Both,
    /// TLS 1.2.
    Only12,
    /// TLS 1.3.
    Only13,
}

impl TlsVersions {
    /// Parses `1.2` or `1.3`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str) -> Result<TlsVersions, String> {
        match text {
            "1.2" => Ok(TlsVersions::Only12),
            "1.3" => Ok(TlsVersions::Only13),
            _ => Err(format!("{text:?} is not supported: give 1.2 or 1.3")),
        }
    }
}

/// How connections to an `https://` URL use TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file with the trusted certificates. `None`, the default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether to accept any certificate. Default `false`.
    pub insecure: bool,
    /// PEM files with the client's certificate chain and its private key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Whether new connections resume earlier sessions; each TLS 1.3 ticket is used once. Default `false`:
    /// every handshake is a full one.
    pub resume: bool,
    /// TLS versions to offer. Default both.
    pub versions: TlsVersions,
    /// Key exchange groups to offer, such as `X25519`. Default: those of rustls.
    pub groups: Vec<String>,
    /// Cipher suites to offer, such as `TLS_AES_128_GCM_SHA256`. Default: those of rustls.
    pub cipher_suites: Vec<String>,
}

impl TlsOptions {
    /// Describes how certificates are checked, for reports.
    pub(crate) fn describe_verification(&self) -> String {
        match &self.ca_file {
            _ if self.insecure => "certificate not verified (--insecure)".to_string(),
            Some(path) => format!("certificate verified with {}", path.display()),
            None => "certificate verified with the roots of the system".to_string(),
        }
    }
}

/// Returns the name of a cipher suite in the registry of IANA.
pub(crate) fn cipher_suite_name(suite: CipherSuite) -> String {
    // rustls spells the suites of TLS 1.3 `TLS13_AES_...`.
    format!("{suite:?}").replacen("TLS13_", "TLS_", 1)
}
