//! A certificate chain with its private key, as the primary has read and checked them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::{CertifiedKey, SigningKey};

use super::certificate_chain::CertificateChain;
use super::private_key::PrivateKey;
use super::secret_file::SecretFile;
use crate::error::{Error, Result};
use crate::status::{CertificateStatus, MAX_JSON_INTEGER};

/// A certificate chain with its private key.
#[derive(Debug)]
pub(super) struct CertificatePair {
    /// The file of the chain, as it was configured.
    pub(super) file: PathBuf,
    pub(super) chain: CertificateChain,
    key: PrivateKey,
    key_file: PathBuf,
    pub(super) key_type: KeyType,
}

/// The kind of a key: the types of keys that a client accepts decide which one is used, if several have the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyType {
    Ecdsa,
    Ed25519,
    Rsa,
    Other,
}

impl KeyType {
    fn name(self) -> &'static str {
        match self {
            KeyType::Ecdsa => "ECDSA",
            KeyType::Ed25519 => "Ed25519",
            KeyType::Rsa => "RSA",
            KeyType::Other => "other",
        }
    }

    fn of(key: &dyn SigningKey) -> KeyType {
        match key.algorithm() {
            rustls::SignatureAlgorithm::ECDSA => KeyType::Ecdsa,
            rustls::SignatureAlgorithm::ED25519 => KeyType::Ed25519,
            rustls::SignatureAlgorithm::RSA => KeyType::Rsa,
            _ => KeyType::Other,
        }
    }
}

impl CertificatePair {
    /// Reads and checks a chain and its key. Adds to `warnings` what is not wrong enough for an error.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit the other.
    pub(super) fn load(
        file: &Path,
        key_file: &Path,
        now: SystemTime,
        warnings: &mut Vec<String>,
    ) -> Result<CertificatePair> {
        let in_file = |key: &str, path: &Path, why: &str| {
            format!("{key} = {} {why}", crate::text::printable(&path.display().to_string()))
        };
        let of_chain = |why: String| Error::config(in_file("tls-cert", file, &why));
        let of_key = |why: String| Error::config(in_file("tls-key", key_file, &why));
        let text = SecretFile::read(file).map_err(of_chain)?;
        let chain = CertificateChain::from_pem(text.bytes.as_slice(), now).map_err(of_chain)?;
        drop(text);
        let text = SecretFile::read(key_file).map_err(of_key)?;
        let key = PrivateKey::from_pem(text.bytes.as_slice()).map_err(of_key)?;
        let access = text.access_warning();
        drop(text);
        let signing_key = key.signing_key().map_err(of_key)?;
        let public_key = signing_key.public_key();
        let public_key = public_key.ok_or_else(|| of_key("has an unknown type of key".into()))?;
        chain.check_fits(public_key.as_ref()).map_err(|why| {
            Error::config(format!(
                "{} (tls-key = {})",
                in_file("tls-cert", file, &why),
                crate::text::printable(&key_file.display().to_string())
            ))
        })?;
        warnings.extend(chain.warnings.iter().map(|why| in_file("tls-cert", file, why)));
        warnings.extend(access.map(|why| in_file("tls-key", key_file, &why)));
        let key_type = KeyType::of(&*signing_key);
        Ok(CertificatePair { file: file.into(), chain, key, key_file: key_file.into(), key_type })
    }

    /// Makes what handshakes use.
    pub(super) fn certified_key(&self) -> Result<CertifiedKey> {
        let key = self.key.signing_key().map_err(|why| {
            Error::internal(format!("tls-key = {} {why}", self.key_file.display()))
        })?;
        Ok(CertifiedKey::new(self.chain.der.clone(), key))
    }

    /// Describes the certificate, without the days that are left.
    pub(super) fn status(&self) -> CertificateStatus {
        let leaf = &self.chain.leaf;
        let text = |text: &str| crate::text::printable(text).into_owned();
        let ms = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(MAX_JSON_INTEGER).min(MAX_JSON_INTEGER)
        };
        CertificateStatus {
            file: text(&self.file.display().to_string()),
            subject: text(&leaf.subject),
            issuer: text(&leaf.issuer),
            serial: leaf.serial.clone(),
            names: leaf
                .names
                .iter()
                .take(CertificateStatus::MAX_NAMES)
                .map(|name| text(name))
                .collect(),
            key_type: self.key_type.name().to_string(),
            not_before_ms: ms(leaf.not_before),
            not_after_ms: ms(leaf.not_after),
            days_left: 0,
        }
    }

    pub(super) fn private_key(&self) -> &PrivateKey {
        &self.key
    }
}

/// Certificates that are shared with the configuration of a worker.
pub(super) type CertificatePairs = Arc<[CertificatePair]>;
