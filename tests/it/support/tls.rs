//! Certificates for tests, and TLS clients that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData,
    SignatureAlgorithm,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// A certificate authority that exists for one test.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

/// A certificate chain and its private key in PEM.
#[derive(Debug, Clone)]
pub struct TestPair {
    /// The certificate alone: clients know the authority.
    pub certificate: String,
    pub key: String,
    pub der: CertificateDer<'static>,
}

/// The paths of the files of a pair.
#[derive(Debug, Clone)]
pub struct PairFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TestAuthority {
    pub fn new() -> TestAuthority {
        TestAuthority::named("authority of a test")
    }

    pub fn named(name: &str) -> TestAuthority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let (der, certificate_pem) = (certificate.der().clone(), certificate.pem());
        TestAuthority { issuer: Issuer::new(params, key), certificate: der, certificate_pem }
    }

    /// Returns the authority's own certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate with an ECDSA key for these names, the first of which is the common name.
    pub fn issue(&self, names: &[&str]) -> TestPair {
        self.issue_for(&rcgen::PKCS_ECDSA_P256_SHA256, names)
    }

    /// Issues a certificate with a key of this type.
    pub fn issue_for(&self, algorithm: &'static SignatureAlgorithm, names: &[&str]) -> TestPair {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        self.issue_with(&key, key.serialize_pem(), names, |_| ())
    }

    /// Issues a certificate with a new ECDSA key, after `change` has changed its parameters.
    pub fn issue_changed(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TestPair {
        let key = KeyPair::generate().expect("a key");
        self.issue_with(&key, key.serialize_pem(), names, change)
    }

    /// Issues a certificate for this public key, whose private key in PEM is `key_pem`.
    pub fn issue_with(
        &self,
        public_key: &impl PublicKeyData,
        key_pem: String,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TestPair {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        change(&mut params);
        let certificate = params.signed_by(public_key, &self.issuer).expect("a certificate");
        let der = certificate.der().clone();
        TestPair { certificate: certificate.pem(), key: key_pem, der }
    }

    /// Returns the settings of a client that trusts only this authority.
    pub fn client_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// Returns the settings of a client that makes a full handshake each time, in which it is shown the certificate.
    pub fn client_without_sessions(&self) -> Arc<ClientConfig> {
        let mut config = self.client_config();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// As [`TestAuthority::client_config`], shared.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::new(self.client_config())
    }
}

/// Returns the cryptography of clients.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl TestPair {
    /// Writes the pair to `NAME.crt` and `NAME.key` in a directory, the key with mode 0600.
    pub fn write(&self, dir: &Path, name: &str) -> PairFiles {
        let certificate = dir.join(format!("{name}.crt"));
        let key = dir.join(format!("{name}.key"));
        write_file(&certificate, &self.certificate, 0o644);
        write_file(&key, &self.key, 0o600);
        PairFiles { certificate, key }
    }
}

impl PairFiles {
    /// Returns the arguments of `prefork serve` for this pair.
    pub fn args(&self) -> [String; 4] {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
        ["--tls-cert".into(), path(&self.certificate), "--tls-key".into(), path(&self.key)]
    }
}

/// Replaces a file as careful programs do: no reader sees half of it.
pub fn write_file(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).expect("mode");
    std::fs::rename(&new, path).expect("renamed");
}

/// Accepts every certificate of a server, for tests of which one it sends.
#[derive(Debug)]
pub struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
