//! What the TLS handshake of a connection has agreed on.

use std::sync::Arc;

use super::ClientCertificate;

/// What the TLS handshake of a connection has agreed on. Cheap to clone.
///
/// See [`ConnectionInfo::tls`](crate::ConnectionInfo::tls). Names are those of the registries of IANA.
#[derive(Debug, Clone)]
pub struct TlsInfo(Arc<TlsFacts>);

#[derive(Debug)]
pub(crate) struct TlsFacts {
    pub(crate) version: &'static str,
    pub(crate) cipher_suite: &'static str,
    pub(crate) alpn: Option<&'static str>,
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) is_resumed: bool,
    pub(crate) client_certificate: Option<Box<ClientCertificate>>,
}

impl TlsInfo {
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "no connection uses TLS"))]
    pub(crate) fn new(facts: TlsFacts) -> TlsInfo {
        TlsInfo(Arc::new(facts))
    }

    /// Returns the version of the protocol: `TLSv1.3` or `TLSv1.2`.
    pub fn version(&self) -> &'static str {
        self.0.version
    }

    /// Returns the cipher suite, such as `TLS_AES_128_GCM_SHA256`.
    pub fn cipher_suite(&self) -> &'static str {
        self.0.cipher_suite
    }

    /// Returns the protocol that client and server have agreed on by ALPN, `h2` or `http/1.1`. `None` if the client has offered
    /// none; it gets HTTP/1.1.
    pub fn alpn_protocol(&self) -> Option<&'static str> {
        self.0.alpn
    }

    /// Returns the host name that the client has sent in its handshake (SNI). Clients that connect to an IP address send none.
    pub fn server_name(&self) -> Option<&str> {
        self.0.server_name.as_deref()
    }

    /// Returns the certificate that the client has shown, which the server has verified. `None` if it has shown none, which only
    /// `tls-client-auth = optional` allows, or was not asked (no `tls-client-ca`).
    ///
    /// A client that resumes a session shows none again. It has the certificate with which it began the session, if that would
    /// still be accepted.
    ///
    /// ```
    /// use tokio_prefork::ConnectionInfo;
    ///
    /// fn is_support(connection: &ConnectionInfo) -> bool {
    ///     let certificate = connection.tls().and_then(|tls| tls.client_certificate());
    ///     certificate.is_some_and(|one| one.uris().iter().any(|uri| uri == "spiffe://example.org/support"))
    /// }
    /// # drop(is_support);
    /// ```
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.0.client_certificate.as_deref()
    }

    /// Returns whether the client has resumed an earlier session, which costs no signature.
    pub fn is_resumed(&self) -> bool {
        self.0.is_resumed
    }
}
