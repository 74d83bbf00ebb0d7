//! The certificate of the servers of a comparison over HTTPS, made for one run.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use tokio_prefork::{Error, Result};

/// A self-signed ECDSA P-256 certificate for `localhost` and `127.0.0.1`, in files of a directory.
#[derive(Debug)]
pub(crate) struct CompareCertificate {
    dir: PathBuf,
}

impl CompareCertificate {
    /// Makes a certificate and its key in a directory that only this user may read.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn generate(dir: &Path) -> Result<CompareCertificate> {
        let unmade = |e: rcgen::Error| Error::config(format!("cannot make a certificate: {e}"));
        let names = ["localhost", "127.0.0.1"].map(str::to_string);
        let key = KeyPair::generate().map_err(unmade)?;
        let params = CertificateParams::new(names).map_err(unmade)?;
        let certificate = params.self_signed(&key).map_err(unmade)?;
        let made = CompareCertificate::in_directory(dir);
        let write = |path: PathBuf, text: String| {
            let written = std::fs::write(&path, text);
            written.map_err(|e| Error::system(format!("write {}", path.display()), e))
        };
        write(made.certificate_file(), certificate.pem())?;
        write(made.key_file(), key.serialize_pem())?;
        Ok(made)
    }

    /// Returns the paths of the certificate and key in this directory. The files need not exist.
    pub(crate) fn in_directory(dir: &Path) -> CompareCertificate {
        CompareCertificate { dir: dir.to_path_buf() }
    }

    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.join("key.pem")
    }
}
