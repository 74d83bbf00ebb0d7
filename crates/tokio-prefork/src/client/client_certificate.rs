//! The certificate that a TLS client has shown.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

/// The certificate of a TLS client, which the server has verified: it was issued by an authority of `tls-client-ca` and is valid, and
/// the client has its private key.
///
/// See [`TlsInfo::client_certificate`](crate::client::TlsInfo::client_certificate). Texts contain no control characters.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub(crate) der: Vec<u8>,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial_number: String,
    pub(crate) sha1_fingerprint: String,
    pub(crate) sha256_fingerprint: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) dns_names: Vec<String>,
    pub(crate) email_addresses: Vec<String>,
    pub(crate) uris: Vec<String>,
    pub(crate) ip_addresses: Vec<IpAddr>,
}

impl ClientCertificate {
    /// Returns the distinguished name of the client as in RFC 4514, with the last part first: `CN=Ann,OU=Support,O=Example`.
    ///
    /// Special characters in values are escaped with a backslash. Control characters, and those that would change the direction of the
    /// text, are escaped as two hexadecimal digits for each byte. A value that is no text, or of an attribute without a common
    /// short name, is `#` and its DER in hexadecimal digits. So different names have different texts.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns the distinguished name of the authority that issued the certificate, in the form of [`ClientCertificate::subject`].
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the serial number in upper-case hexadecimal digits. It is unique among the certificates of the issuer.
    pub fn serial_number(&self) -> &str {
        &self.serial_number
    }

    /// Returns the SHA-256 digest of the certificate in lower-case hexadecimal digits.
    pub fn sha256_fingerprint(&self) -> &str {
        &self.sha256_fingerprint
    }

    /// Returns the SHA-1 digest of the certificate in lower-case hexadecimal digits, as older programs name certificates.
    pub(crate) fn sha1_fingerprint(&self) -> &str {
        &self.sha1_fingerprint
    }

    /// Returns when the certificate begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Returns when the certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Returns the host names among the alternative names. Names with control characters are left out.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// Returns the e-mail addresses among the alternative names.
    pub fn email_addresses(&self) -> &[String] {
        &self.email_addresses
    }

    /// Returns the URIs among the alternative names, such as SPIFFE ids.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// Returns the IP addresses among the alternative names.
    pub fn ip_addresses(&self) -> &[IpAddr] {
        &self.ip_addresses
    }

    /// Returns the certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("subject", &self.subject)
            .field("issuer", &self.issuer)
            .field("serial_number", &self.serial_number)
            .field("sha256_fingerprint", &self.sha256_fingerprint)
            .finish_non_exhaustive()
    }
}
