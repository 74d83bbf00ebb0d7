//! A private key: its bytes in locked pages, and the signing key that a worker makes of them.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use prefork_os::locked_memory::LockedBytes;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;

use super::pem::{PemBlock, parse_blocks};

/// How the bytes of a private key are encoded.
#[derive(Debug, Clone, Copy)]
enum KeyEncoding {
    Pkcs1,
    Pkcs8,
    Sec1,
}

/// A private key in DER, in locked pages. Not shown in debug output.
pub(super) struct PrivateKey {
    encoding: KeyEncoding,
    /// `None` in a worker that has made its signing key.
    der: Mutex<Option<LockedBytes>>,
}

impl PrivateKey {
    /// Finds and decodes the key in a file of PEM blocks.
    ///
    /// # Errors
    /// The file has none, several, or an encrypted one; the reason completes a sentence that begins with the file.
    pub(super) fn from_pem(file: &[u8]) -> Result<PrivateKey, String> {
        let blocks = parse_blocks(file)?;
        let mut keys = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY"));
        let (key, other) = (keys.next(), keys.next());
        let key = key.ok_or_else(|| no_key(&blocks))?;
        if other.is_some() {
            return Err(format!(
                "has {} private keys: give each certificate a file with its own",
                2 + keys.count()
            ));
        }
        if key.is_encrypted || key.label.starts_with("ENCRYPTED") {
            return Err("is encrypted with a passphrase, which nobody could type at a restart: decrypt it with openssl pkey, \
                        and protect the file by its mode and owner"
                .to_string());
        }
        let encoding = match key.label {
            "PRIVATE KEY" => KeyEncoding::Pkcs8,
            "RSA PRIVATE KEY" => KeyEncoding::Pkcs1,
            "EC PRIVATE KEY" => KeyEncoding::Sec1,
            label => {
                return Err(format!(
                    "has a block {label}, which TLS does not use: convert it with openssl pkey"
                ));
            }
        };
        Ok(PrivateKey { encoding, der: Mutex::new(Some(key.decode()?)) })
    }

    /// Makes the key with which handshakes are signed. Parsed numbers of it are in the heap as long as it lives.
    ///
    /// # Errors
    /// It is no key that TLS can use, or was discarded.
    pub(super) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, String> {
        let der = self.der.lock().unwrap_or_else(PoisonError::into_inner);
        let der = der.as_ref().ok_or("was discarded in this process")?.as_slice();
        let key = match self.encoding {
            KeyEncoding::Pkcs1 => PrivateKeyDer::from(PrivatePkcs1KeyDer::from(der)),
            KeyEncoding::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            KeyEncoding::Sec1 => PrivateSec1KeyDer::from(der).into(),
        };
        any_supported_type(&key).map_err(|_| {
            "has no key that TLS can use: give RSA with 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519"
                .to_string()
        })
    }

    /// Sets whether processes that are forked from now on get a copy of the key.
    pub(super) fn keep_over_fork(&self, is_kept: bool) -> io::Result<()> {
        let der = self.der.lock().unwrap_or_else(PoisonError::into_inner);
        der.as_ref().map_or(Ok(()), |bytes| bytes.keep_over_fork(is_kept))
    }

    /// Overwrites and frees the bytes in this process.
    pub(super) fn discard(&self) {
        self.der.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns why the kernel has refused to lock the pages of the key.
    pub(super) fn lock_error(&self) -> Option<String> {
        let der = self.der.lock().unwrap_or_else(PoisonError::into_inner);
        der.as_ref()?.lock_error().map(ToString::to_string)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Returns why there is no key among these blocks.
fn no_key(blocks: &[PemBlock<'_>]) -> String {
    match blocks.first() {
        None => "has no PEM block, as -----BEGIN PRIVATE KEY----- would begin one".to_string(),
        Some(block) if block.label.ends_with("CERTIFICATE") => {
            "has a certificate and no private key: give the key in tls-key".to_string()
        }
        Some(block) => format!("has no private key, but a block {}", block.label),
    }
}
