//! Sessions for resumption. A ticket of TLS 1.3 is used once (RFC 8446, C.4).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Most TLS 1.3 tickets of one load thread. A server sends two or more per handshake.
const MAX_TICKETS: usize = 1024;

/// Sessions of one load thread with one server.
///
/// The cache of rustls keeps 8 tickets, too few for many handshakes at the same time.
#[derive(Debug, Default)]
pub(crate) struct SessionStore(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    /// Unused tickets of TLS 1.3, oldest first.
    tickets: VecDeque<Tls13ClientSessionValue>,
    /// The latest session of TLS 1.2, which may be resumed several times.
    tls12: Option<Tls12ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl SessionStore {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for SessionStore {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.sessions().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions().tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'_>) {
        self.sessions().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let tickets = &mut self.sessions().tickets;
        if tickets.len() >= MAX_TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'_>) -> Option<Tls13ClientSessionValue> {
        self.sessions().tickets.pop_front()
    }
}
