//! `TlsCertificates`: the certificates and keys of one configuration.

use std::fmt;
use std::path::{Path, PathBuf};
#[cfg(feature = "tls")]
use std::{sync::Arc, time::SystemTime};

#[cfg(feature = "tls")]
use super::WorkerTls;
#[cfg(feature = "tls")]
use super::certificate_pair::{CertificatePair, CertificatePairs};
#[cfg(feature = "tls")]
use super::certificate_resolver::CertificateResolver;
#[cfg(feature = "tls")]
use super::client_authentication::ClientAuthentication;
#[cfg(feature = "tls")]
use super::server_config::{TlsOptions, build_server_config};
use crate::config::ClientAuth;
use crate::error::{Error, Result};
use crate::status::CertificateStatus;

/// The certificates and keys of one configuration. The keys are not shown in debug output.
#[derive(Clone, Default)]
pub(crate) struct TlsCertificates {
    /// `None` without certificates. `Err`: they were configured and could not be read, by an image that cannot go back.
    #[cfg(feature = "tls")]
    pairs: Option<std::result::Result<CertificatePairs, String>>,
    /// `None` if clients are not asked for certificates.
    #[cfg(feature = "tls")]
    clients: Option<ClientAuthentication>,
}

/// Keeps copies of the keys over forks, until it is dropped in the process that forks.
pub(crate) struct KeptOverFork<'a>(&'a TlsCertificates);

#[cfg(feature = "tls")]
impl TlsCertificates {
    /// Reads and checks pairs of files: an empty list of keys means that they are in the files of the certificates. Returns warnings
    /// for the log as well.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit the others.
    pub(crate) fn load(
        certs: &[PathBuf],
        keys: &[PathBuf],
    ) -> Result<(TlsCertificates, Vec<String>)> {
        if certs.is_empty() {
            return Ok((TlsCertificates::default(), Vec::new()));
        }
        let (now, mut warnings) = (SystemTime::now(), Vec::new());
        let key_of = |index: usize| keys.get(index).unwrap_or(&certs[index]);
        let load = |(index, cert): (usize, &PathBuf)| {
            CertificatePair::load(cert, key_of(index), now, &mut warnings)
        };
        let pairs: CertificatePairs = certs.iter().enumerate().map(load).collect::<Result<_>>()?;
        super::certificate_resolver::check_names(&pairs, &mut warnings)?;
        if let Some(why) = pairs.iter().find_map(|pair| pair.private_key().lock_error()) {
            warnings.push(format!(
                "private keys cannot be locked in memory and may be swapped out: {why}; raise the limit (LimitMEMLOCK=, ulimit -l)"
            ));
        }
        Ok((TlsCertificates { pairs: Some(Ok(pairs)), clients: None }, warnings))
    }

    /// Reads and checks the file of the authorities of clients, and that of their revocation lists. Returns warnings for the log.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub(crate) fn load_client_authorities(
        &mut self,
        ca: &Path,
        crl: Option<&Path>,
        mode: ClientAuth,
    ) -> Result<Vec<String>> {
        let (clients, warnings) = ClientAuthentication::load(ca, crl, mode)?;
        self.clients = Some(clients);
        Ok(warnings)
    }

    /// Returns how clients are authenticated. `None` if they are not asked for certificates.
    pub(crate) fn client_authentication(&self) -> Option<&ClientAuthentication> {
        self.clients.as_ref()
    }

    /// Stands for certificates that could not be read. No worker can start with them.
    pub(crate) fn unavailable(why: &Error) -> TlsCertificates {
        TlsCertificates { pairs: Some(Err(why.to_string())), clients: None }
    }

    /// Describes the certificates, the default one first.
    pub(crate) fn status(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        self.pairs().iter().map(|pair| pair.status().at(now)).collect()
    }

    /// Returns whether no certificates were configured.
    pub(crate) fn are_none(&self) -> bool {
        self.pairs.is_none()
    }

    fn pairs(&self) -> &[CertificatePair] {
        match &self.pairs {
            Some(Ok(pairs)) => pairs,
            Some(Err(_)) | None => &[],
        }
    }

    /// Makes what a worker speaks TLS with, and discards the worker's copy of the keys: call it after the fork, once.
    ///
    /// # Errors
    /// The certificates could not be read.
    pub(crate) fn make_worker_tls(&self, options: TlsOptions) -> Result<WorkerTls> {
        let pairs = match &self.pairs {
            None => return Ok(WorkerTls::default()),
            Some(Ok(pairs)) => pairs,
            Some(Err(why)) => return Err(Error::config(why)),
        };
        // The first use in a process seeds the generator of AWS-LC, for up to 40 ms if it was built with CPU jitter entropy. A worker
        // does it before it is ready, so that its event loop does not stand still in the first handshake.
        let mut unused = [0; 32];
        let _ = aws_lc_rs::rand::fill(&mut unused);
        let resolver = CertificateResolver::new(pairs)?;
        pairs.iter().for_each(|pair| pair.private_key().discard());
        let session_tickets = options.tickets.clone();
        let server_config = build_server_config(Arc::new(resolver), options)?;
        Ok(WorkerTls { server_config: Some(server_config), session_tickets })
    }

    /// Keeps copies of the keys in processes that are forked as long as the returned value lives. All others see zeros.
    pub(crate) fn keep_over_fork(&self) -> Result<KeptOverFork<'_>> {
        self.set_kept_over_fork(true)
            .map_err(|e| Error::system("keep private keys over a fork", e))?;
        Ok(KeptOverFork(self))
    }

    fn set_kept_over_fork(&self, is_kept: bool) -> std::io::Result<()> {
        self.pairs().iter().try_for_each(|pair| pair.private_key().keep_over_fork(is_kept))
    }
}

#[cfg(not(feature = "tls"))]
impl TlsCertificates {
    pub(crate) fn status(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }

    pub(crate) fn are_none(&self) -> bool {
        true
    }

    /// Without the feature `tls` there are none: the configuration has refused them.
    pub(crate) fn load(_: &[PathBuf], _: &[PathBuf]) -> Result<(TlsCertificates, Vec<String>)> {
        Ok((TlsCertificates::default(), Vec::new()))
    }

    pub(crate) fn load_client_authorities(
        &mut self,
        _: &Path,
        _: Option<&Path>,
        _: ClientAuth,
    ) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    pub(crate) fn unavailable(_: &Error) -> TlsCertificates {
        TlsCertificates::default()
    }

    pub(crate) fn keep_over_fork(&self) -> Result<KeptOverFork<'_>> {
        Ok(KeptOverFork(self))
    }

    fn set_kept_over_fork(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for KeptOverFork<'_> {
    fn drop(&mut self) {
        // Fails for no mapping that the advice before it was accepted for.
        let _ = self.0.set_kept_over_fork(false);
    }
}

impl fmt::Debug for TlsCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsCertificates(..)")
    }
}
