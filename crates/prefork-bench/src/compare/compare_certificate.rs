//! The certificate of the servers of a comparison over HTTPS, made for one run.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use tokio_prefork::{Error, Result};

/// A self-signed ECDSA P-256 certificate for `localhost` and `127.0.0.1`, in a directory that is removed with it.
#[derive(Debug)]
pub(crate) struct CompareCertificate {
    dir: tempfile::TempDir,
}

impl CompareCertificate {
    /// Makes a certificate and its key.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written.
    pub(crate) fn generate() -> Result<CompareCertificate> {
        let unmade = |e: rcgen::Error| Error::config(format!("cannot make a certificate: {e}"));
        let names = ["localhost", "127.0.0.1"].map(str::to_string);
        let key = KeyPair::generate().map_err(unmade)?;
        let params = CertificateParams::new(names).map_err(unmade)?;
        let certificate = params.self_signed(&key).map_err(unmade)?;
        // Only this user may read the directory.
        let dir = tempfile::tempdir();
        let dir = dir.map_err(|e| Error::system("create a directory for a certificate", e))?;
        let made = CompareCertificate { dir };
        let write = |path: PathBuf, text: String| {
            let written = std::fs::write(&path, text);
            written.map_err(|e| Error::system(format!("write {}", path.display()), e))
        };
        write(made.certificate_file(), certificate.pem())?;
        write(made.key_file(), key.serialize_pem())?;
        Ok(made)
    }

    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.path().join("cert.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.path().join("key.pem")
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}
