//! TLS: certificates and keys, which the primary reads and workers use.
//!
//! The primary reads and checks the files at the start, at each reload and at each upgrade, and keeps the keys in locked pages. A
//! worker gets a copy of these pages at its fork, makes the signing keys of them, and discards its copy. Only workers speak TLS.

#[cfg(feature = "tls")]
mod certificate_chain;
#[cfg(feature = "tls")]
mod certificate_pair;
#[cfg(feature = "tls")]
mod certificate_resolver;
mod certificates;
#[cfg(feature = "tls")]
mod client_authentication;
#[cfg(feature = "tls")]
mod client_certificate;
#[cfg(feature = "tls")]
mod distinguished_name;
#[cfg(all(test, feature = "tls"))]
mod handshake_tests;
#[cfg(feature = "tls")]
mod pem;
#[cfg(feature = "tls")]
mod private_key;
#[cfg(feature = "tls")]
mod secret_file;
#[cfg(feature = "tls")]
mod server_config;
#[cfg(feature = "tls")]
mod session_certificates;
#[cfg(feature = "tls")]
mod session_tickets;
#[cfg(feature = "tls")]
mod ticket_keys;

pub(crate) use certificates::TlsCertificates;
#[cfg(feature = "tls")]
pub(crate) use client_authentication::ClientAuthentication;
#[cfg(feature = "tls")]
pub(crate) use client_certificate::read_client_certificate;
#[cfg(feature = "tls")]
pub(crate) use server_config::{AlpnProtocols, TlsOptions};
#[cfg(feature = "tls")]
pub(crate) use session_tickets::SessionTickets;
#[cfg(feature = "tls")]
pub(crate) use ticket_keys::{TicketKeyMemory, TicketKeyReader};

/// Stands for the reader of the keys of session tickets, which there is not without the feature `tls`.
#[cfg(not(feature = "tls"))]
pub(crate) type TicketKeyReader = std::convert::Infallible;

/// How a worker speaks TLS with the clients of its TLS listeners.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkerTls {
    /// `None` without certificates.
    #[cfg(feature = "tls")]
    pub(crate) server_config: Option<std::sync::Arc<rustls::ServerConfig>>,
    /// `None` if sessions are not resumed.
    #[cfg(feature = "tls")]
    pub(crate) session_tickets: Option<std::sync::Arc<SessionTickets>>,
}
