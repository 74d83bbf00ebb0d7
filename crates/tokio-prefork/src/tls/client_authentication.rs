//! Client certificates: which authorities are trusted, and the check of what a client shows.
//!
//! A resumed session has no certificate exchange, so [`ClientAuthentication::accepts_session`] checks the certificates in its ticket
//! again. So a certificate that has expired, that a reload has revoked or whose authority it has removed, is worth as much as in a full
//! handshake: nothing.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::BasicConstraints;

use super::client_certificate::read_client_certificate;
use super::distinguished_name::format_name;
use super::pem::{PemBlock, parse_blocks};
use super::secret_file::SecretFile;
use super::server_config::crypto_provider;
use super::session_certificates::certificates_of_session;
use crate::config::ClientAuth;
use crate::error::{Error, Result};

/// How clients are authenticated. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ClientAuthentication {
    verifier: Arc<ClientVerifier>,
}

impl ClientAuthentication {
    /// Reads and checks the file of authorities, and the file of revocation lists. Returns warnings for the log as well.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub(crate) fn load(
        ca: &Path,
        crl: Option<&Path>,
        mode: ClientAuth,
    ) -> Result<(ClientAuthentication, Vec<String>)> {
        let in_file = |key: &str, path: &Path, why: &str| {
            format!("{key} = {} {why}", crate::text::printable(&path.display().to_string()))
        };
        let of_ca = |why: String| in_file("tls-client-ca", ca, &why);
        let of_crl = |why: String| in_file("tls-client-crl", crl.unwrap_or(Path::new("")), &why);
        let now = SystemTime::now();
        let (roots, warnings) =
            load_authorities(ca, now).map_err(|why| Error::config(of_ca(why)))?;
        let mut warnings: Vec<_> = warnings.into_iter().map(of_ca).collect();
        let mut lists = Vec::new();
        if let Some(crl) = crl {
            let loaded = load_revocation_lists(crl, now);
            let (loaded, of_lists) = loaded.map_err(|why| Error::config(of_crl(why)))?;
            warnings.extend(of_lists.into_iter().map(of_crl));
            lists = loaded;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
                .with_crls(lists)
                .enforce_revocation_expiration();
        let builder = match mode {
            ClientAuth::Required => builder,
            ClientAuth::Optional => builder.allow_unauthenticated(),
        };
        let inner = builder.build().map_err(|e| {
            let why = format!("cannot be used: {e}");
            Error::config(if crl.is_some() { of_crl(why) } else { of_ca(why) })
        })?;
        Ok((ClientAuthentication { verifier: Arc::new(ClientVerifier { inner }) }, warnings))
    }

    /// Returns what checks certificates in full handshakes.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::<ClientVerifier>::clone(&self.verifier)
    }

    /// Returns whether a client with this session, as rustls saves it, would pass a full handshake now.
    pub(super) fn accepts_session(&self, session: &[u8]) -> bool {
        let certificates = certificates_of_session(session);
        let Some(certificates) = certificates else { return false };
        match certificates.split_first() {
            None => !self.verifier.client_auth_mandatory(),
            Some((leaf, issuers)) => {
                self.verifier.verify_client_cert(leaf, issuers, UnixTime::now()).is_ok()
            }
        }
    }
}

impl fmt::Debug for ClientAuthentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthentication(..)")
    }
}

/// Decodes the blocks with one of `labels`.
fn decode_blocks(
    blocks: &[PemBlock<'_>],
    labels: &[&str],
) -> std::result::Result<Vec<Vec<u8>>, String> {
    let wanted = blocks.iter().filter(|block| labels.contains(&block.label));
    wanted.map(|block| Ok(block.decode()?.as_slice().to_vec())).collect()
}

/// Reads the certificates of authorities; expired ones are left out.
fn load_authorities(
    path: &Path,
    now: SystemTime,
) -> std::result::Result<(RootCertStore, Vec<String>), String> {
    let file = SecretFile::read(path)?;
    let blocks = parse_blocks(file.bytes.as_slice())?;
    let certificates = decode_blocks(&blocks, &["CERTIFICATE", "X509 CERTIFICATE"])?;
    if certificates.is_empty() {
        let found = blocks.first().map(|block| format!(", but a block {}", block.label));
        return Err(format!("has no certificate{}", found.unwrap_or_default()));
    }
    let (mut roots, mut warnings) = (RootCertStore::empty(), Vec::new());
    for (index, der) in certificates.into_iter().enumerate() {
        let invalid = |e: &dyn fmt::Display| {
            format!("has no valid certificate in its block {}: {e}", index + 1)
        };
        let parsed = Certificate::from_der(&der).map_err(|e| invalid(&e))?.tbs_certificate;
        let subject = format_name(&parsed.subject);
        let constraints = parsed.get::<BasicConstraints>().map_err(|e| invalid(&e))?;
        if constraints.is_some_and(|(_, constraints)| !constraints.ca) {
            return Err(format!(
                "contains the certificate of {subject}, which is no certification authority: give the certificate that issued those of \
                 the clients"
            ));
        }
        let not_after = SystemTime::UNIX_EPOCH + parsed.validity.not_after.to_unix_duration();
        if not_after < now {
            let time = crate::text::format_system_time(not_after);
            warnings.push(format!(
                "contains the certificate of {subject}, which has expired at {time}: its clients are refused"
            ));
            continue;
        }
        roots.add(CertificateDer::from(der)).map_err(|e| invalid(&e))?;
    }
    match roots.is_empty() {
        true => Err("has expired certificates only: renew them".to_string()),
        false => Ok((roots, warnings)),
    }
}

/// Reads certificate revocation lists. One that has expired refuses all clients of its authority, so that is a warning.
fn load_revocation_lists(
    path: &Path,
    now: SystemTime,
) -> std::result::Result<(Vec<CertificateRevocationListDer<'static>>, Vec<String>), String> {
    let file = SecretFile::read(path)?;
    let blocks = parse_blocks(file.bytes.as_slice())?;
    let lists = decode_blocks(&blocks, &["X509 CRL"])?;
    if lists.is_empty() {
        return Err(
            "has no revocation list, as -----BEGIN X509 CRL----- would begin one".to_string()
        );
    }
    let mut warnings = Vec::new();
    for (index, der) in lists.iter().enumerate() {
        let parsed = CertificateList::from_der(der)
            .map_err(|e| format!("has no valid revocation list in its block {}: {e}", index + 1))?;
        let next_update = parsed.tbs_cert_list.next_update;
        let next_update = next_update.map(|time| SystemTime::UNIX_EPOCH + time.to_unix_duration());
        if let Some(expired) = next_update.filter(|time| *time < now) {
            warnings.push(format!(
                "contains the list of {}, which has expired at {}: all clients of this authority are refused",
                format_name(&parsed.tbs_cert_list.issuer),
                crate::text::format_system_time(expired)
            ));
        }
    }
    Ok((lists.into_iter().map(CertificateRevocationListDer::from).collect(), warnings))
}

/// Checks certificates of clients as webpki does, and that their names can be read.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        // Otherwise the application would get a client that is verified and has no name.
        read_client_certificate(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
