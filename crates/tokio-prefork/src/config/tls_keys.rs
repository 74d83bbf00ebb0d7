//! The keys of TLS: which addresses speak it, and the reading of its files.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use crate::error::{Error, Result};
use crate::listener::{BindAddr, ListenAddr};
#[cfg(feature = "tls")]
use crate::tls::{AlpnProtocols, ClientAuthentication, SessionTickets, TlsOptions};
use crate::tls::{TicketKeyReader, TlsCertificates, WorkerTls};

impl Config {
    /// Returns whether connections of a listener at `addr`, as it was written, speak TLS. A descriptor (`fd://3`) does not tell by its
    /// address whether it is a Unix socket.
    pub fn speaks_tls_at(&self, addr: &ListenAddr, is_unix: bool) -> bool {
        let by_default = !self.tls_cert.is_empty() && !is_unix;
        self.bind_options_at(addr).tls.unwrap_or(by_default)
    }

    /// Returns whether connections of `bind` speak TLS. Counts `fd://` as TCP.
    pub(super) fn speaks_tls_by(&self, bind: &BindAddr) -> bool {
        bind.tls.unwrap_or(!self.tls_cert.is_empty() && !matches!(bind.addr, ListenAddr::Unix(_)))
    }

    /// Reads and checks the files of `tls_cert` and its siblings, also if they were read before. Returns warnings for the log.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit the others.
    pub(crate) fn load_tls_certificates(&mut self) -> Result<Vec<String>> {
        let (mut certificates, mut warnings) =
            TlsCertificates::load(&self.tls_cert, &self.tls_key)?;
        if let Some(ca) = &self.tls_client_ca {
            let (crl, mode) = (self.tls_client_crl.as_deref(), self.tls_client_auth);
            warnings.extend(certificates.load_client_authorities(
                ca,
                crl,
                mode.unwrap_or_default(),
            )?);
        }
        self.tls_certificates = certificates;
        Ok(warnings)
    }

    /// Replaces the certificates by the reason why there are none, so that no worker starts without them.
    pub(crate) fn set_tls_unavailable(&mut self, why: &Error) {
        self.tls_certificates = TlsCertificates::unavailable(why);
    }

    /// Returns how long a session can be resumed. `None` without TLS, or if sessions are not resumed.
    pub(crate) fn ticket_lifetime(&self) -> Option<Duration> {
        self.tls_ticket_lifetime.filter(|_| !self.tls_cert.is_empty())
    }

    /// Makes what a worker of this configuration speaks TLS with, after its fork. `is_raw` if it serves another protocol than HTTP.
    ///
    /// # Errors
    /// The certificates could not be read.
    #[cfg(feature = "tls")]
    pub(crate) fn make_worker_tls(
        &self,
        is_raw: bool,
        ticket_keys: Option<TicketKeyReader>,
    ) -> Result<WorkerTls> {
        let alpn = match self.http2 {
            _ if is_raw => AlpnProtocols::Ignored,
            true => AlpnProtocols::Http2,
            false => AlpnProtocols::Http1,
        };
        let tickets = ticket_keys.zip(self.ticket_lifetime());
        let clients = self.tls_certificates.client_authentication();
        let tickets = tickets
            .map(|(keys, lifetime)| SessionTickets::new(keys, lifetime, clients.cloned()))
            .map(Arc::new);
        let client_verifier = clients.map(ClientAuthentication::verifier);
        let options = TlsOptions { alpn, tickets, client_verifier };
        self.tls_certificates.make_worker_tls(options)
    }

    /// Returns no TLS, without the feature `tls`.
    #[cfg(not(feature = "tls"))]
    pub(crate) fn make_worker_tls(&self, _: bool, _: Option<TicketKeyReader>) -> Result<WorkerTls> {
        Ok(WorkerTls::default())
    }

    /// Checks the keys of TLS, as far as that is possible without their files.
    pub(super) fn check_tls_keys(&self) -> Result<()> {
        let (certs, keys) = (self.tls_cert.len(), self.tls_key.len());
        let https = self.bind_addrs().find(|bind| bind.tls == Some(true));
        if certs + keys > 0 && cfg!(not(feature = "tls")) {
            return Err(Error::config(
                "tls-cert and tls-key need the feature tls of tokio-prefork: add it in Cargo.toml, or leave them out",
            ));
        }
        self.check_client_keys()?;
        match https {
            Some(bind) if certs == 0 => Err(missing_certificate_error(&bind)),
            _ if keys != 0 && keys != certs => Err(Error::config(format!(
                "tls-cert and tls-key differ in length ({certs} and {keys}): give the key of each certificate at the same \
                 place, or no tls-key if each file of tls-cert holds its key"
            ))),
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Checks the keys about certificates of clients. One that has no effect is an error: its user believes that clients are checked.
    fn check_client_keys(&self) -> Result<()> {
        let given = [
            ("tls-client-ca", self.tls_client_ca.is_some()),
            ("tls-client-auth", self.tls_client_auth.is_some()),
            ("tls-client-crl", self.tls_client_crl.is_some()),
        ];
        let Some((key, _)) = given.into_iter().rfind(|(_, is_given)| *is_given) else {
            return Ok(());
        };
        if self.tls_cert.is_empty() {
            return Err(Error::config(format!(
                "{key} has no effect without TLS: give tls-cert, or leave it out"
            )));
        }
        if self.tls_client_ca.is_none() {
            return Err(Error::config(format!(
                "{key} has no effect without tls-client-ca: give the file with the authorities that issue the certificates of clients"
            )));
        }
        Ok(())
    }
}

fn missing_certificate_error(bind: &BindAddr) -> Error {
    Error::config(format!(
        "bind = {bind} speaks TLS, and there is no certificate: give tls-cert and tls-key"
    ))
}
