//! The keys of TLS: which addresses speak it, and the reading of its files.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use crate::error::{Error, Result};
use crate::listener::{BindAddr, ListenAddr};
#[cfg(feature = "tls")]
use crate::tls::{AlpnProtocols, SessionTickets, TlsOptions};
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

    /// Reads and checks the files of `tls_cert` and `tls_key`, also if they were read before. Returns warnings for the log.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or does not fit the others.
    pub(crate) fn load_tls_certificates(&mut self) -> Result<Vec<String>> {
        let (certificates, warnings) = TlsCertificates::load(&self.tls_cert, &self.tls_key)?;
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
        let tickets = tickets.map(|(keys, lifetime)| SessionTickets::new(keys, lifetime, b""));
        let options = TlsOptions { tickets: tickets.map(Arc::new), ..TlsOptions::new(alpn) };
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

fn missing_certificate_error(bind: &BindAddr) -> Error {
    Error::config(format!(
        "bind = {bind} speaks TLS, and there is no certificate: give tls-cert and tls-key"
    ))
}
