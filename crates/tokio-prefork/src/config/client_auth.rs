//! Whether TLS clients must show a certificate.

use super::choice::impl_choice;

/// Whether TLS clients must show a certificate of an authority of `tls-client-ca`. One that cannot be verified ends the handshake in any
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ClientAuth {
    /// A client without a certificate is refused.
    #[default]
    Required,
    /// A client without a certificate is served; see [`TlsInfo::client_certificate`](crate::client::TlsInfo::client_certificate).
    Optional,
}

impl_choice!(ClientAuth, "a way to treat TLS clients without a certificate", { "required" => Required, "optional" => Optional });
