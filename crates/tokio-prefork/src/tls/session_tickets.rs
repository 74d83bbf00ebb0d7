//! Session tickets: what a client shows to resume its TLS session with any worker.
//!
//! A ticket is the name of its key (16 bytes), a nonce (12), and the time of issue and the session, encrypted with
//! AES-256-GCM-SIV. Nonces are random: with this cipher the number of tickets for one key needs no count, which the workers could
//! not keep together, and even a repeated nonce only shows whether two tickets are the same (RFC 8452, sections 1 and 9).
//!
//! A ticket is good for several uses, as the server keeps nothing. That is safe without early data, which is off: a copied
//! ticket is worth nothing without the session's secret.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use prefork_os::system::seconds_since_boot;
use rustls::server::ProducesTickets;

use super::client_authentication::ClientAuthentication;
use super::ticket_keys::{TicketKey, TicketKeyReader};

/// Begins the authenticated data of a ticket: its format.
const FORMAT: &[u8] = b"tokio-prefork session ticket 1";

/// Is added to it if clients may show a certificate.
const WITH_CLIENT_CERTIFICATES: &[u8] = b", client certificates";

const KEY_NAME_LEN: usize = 16;
const TIME_LEN: usize = 8;

/// The largest session in a ticket. Sessions contain the client's certificates. A larger ticket could make a ClientHello that
/// some server or middlebox refuses, so such a client makes full handshakes.
const MAX_SESSION_BYTES: usize = 8 * 1024;

/// Encrypts and decrypts session tickets with the keys that all workers share.
///
/// Without state of its own but the keys, so that every worker of every generation, and of the next image, accepts the tickets
/// of the others.
pub(crate) struct SessionTickets {
    keys: TicketKeyReader,
    lifetime: Duration,
    /// `None`: clients are not asked for a certificate.
    clients: Option<ClientAuthentication>,
    /// The authenticated data of each ticket.
    aad: Vec<u8>,
    /// The keys that were read last, ready to use.
    opened: RwLock<Option<Arc<OpenedKeys>>>,
}

/// The keys of one rotation, ready to use.
struct OpenedKeys {
    sequence: u64,
    current: OpenedKey,
    previous: Option<OpenedKey>,
}

struct OpenedKey {
    name: [u8; KEY_NAME_LEN],
    created_at: u64,
    cipher: LessSafeKey,
}

impl SessionTickets {
    /// Creates the tickets of one TLS configuration.
    ///
    /// A ticket lives over reloads that change certificates of the server: its session was begun with this server, by the name that
    /// the client then asked for, and rustls resumes it for that name only. What a client is let in for is checked again with
    /// `clients`.
    pub(crate) fn new(
        keys: TicketKeyReader,
        lifetime: Duration,
        clients: Option<ClientAuthentication>,
    ) -> SessionTickets {
        let context = if clients.is_some() { WITH_CLIENT_CERTIFICATES } else { b"" };
        let aad = [FORMAT, context].concat();
        SessionTickets { keys, lifetime, clients, aad, opened: RwLock::new(None) }
    }

    /// Reads the keys if they have rotated, and drops older ones. Also happens with each ticket.
    pub(crate) fn refresh(&self) {
        if self.opened_keys().is_none() {
            *self.opened.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn opened_keys(&self) -> Option<Arc<OpenedKeys>> {
        let sequence = self.keys.sequence();
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(opened) = opened.filter(|opened| opened.sequence == sequence) {
            return Some(opened);
        }
        let keys = self.keys.read()?;
        let opened = Arc::new(OpenedKeys {
            sequence: keys.sequence,
            current: OpenedKey::open(&keys.current)?,
            previous: keys.previous.as_ref().and_then(OpenedKey::open),
        });
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opened));
        Some(opened)
    }

    fn encrypt_at(&self, now: u64, session: &[u8]) -> Option<Vec<u8>> {
        let keys = self.opened_keys()?;
        let age = now.checked_sub(keys.current.created_at)?;
        // The primary is late by a whole period: it is stopped, and this key must not be used for ever.
        if age >= self.lifetime.as_secs().saturating_mul(2) || session.len() > MAX_SESSION_BYTES {
            return None;
        }
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let clear = KEY_NAME_LEN + NONCE_LEN;
        let mut ticket =
            Vec::with_capacity(clear + TIME_LEN + session.len() + AES_256_GCM_SIV.tag_len());
        ticket.extend_from_slice(&keys.current.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&now.to_be_bytes());
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (aad, content) = (Aad::from(&self.aad), &mut ticket[clear..]);
        let tag = keys.current.cipher.seal_in_place_separate_tag(nonce, aad, content).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt_at(&self, now: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<KEY_NAME_LEN>()?;
        let (nonce, encrypted) = rest.split_first_chunk::<NONCE_LEN>()?;
        if encrypted.len() > TIME_LEN + MAX_SESSION_BYTES + AES_256_GCM_SIV.tag_len() {
            return None;
        }
        let keys = self.opened_keys()?;
        let key = [Some(&keys.current), keys.previous.as_ref()].into_iter().flatten();
        let key = key.into_iter().find(|key| key.name == *name)?;
        let mut content = encrypted.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.cipher.open_in_place(nonce, Aad::from(&self.aad), &mut content).ok()?;
        let (issued_at, session) = opened.split_first_chunk::<TIME_LEN>()?;
        let age = now.checked_sub(u64::from_be_bytes(*issued_at))?;
        let is_client_let_in = || match &self.clients {
            Some(clients) => clients.accepts_session(session),
            None => true,
        };
        (age <= self.lifetime.as_secs() && is_client_let_in()).then(|| session.to_vec())
    }
}

impl ProducesTickets for SessionTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(seconds_since_boot(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(seconds_since_boot(), cipher)
    }
}

impl OpenedKey {
    fn open(key: &TicketKey) -> Option<OpenedKey> {
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &*key.secret).ok()?);
        Some(OpenedKey { name: key.name, created_at: key.created_at, cipher })
    }
}

impl fmt::Debug for SessionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ticket_keys::TicketKeyMemory;
    use proptest::prelude::*;

    const HOUR: u64 = 3600;

    fn tickets(memory: &TicketKeyMemory) -> SessionTickets {
        tickets_of(memory, 12 * HOUR)
    }

    fn tickets_of(memory: &TicketKeyMemory, lifetime_s: u64) -> SessionTickets {
        let passed = memory.fd().try_clone_to_owned().expect("descriptor");
        let reader = TicketKeyMemory::inherit(passed).and_then(TicketKeyMemory::into_reader);
        SessionTickets::new(reader.expect("reader"), Duration::from_secs(lifetime_s), None)
    }

    fn keys() -> TicketKeyMemory {
        TicketKeyMemory::create().expect("keys")
    }

    #[test]
    fn every_worker_and_the_next_image_decrypt_a_ticket() {
        let memory = keys();
        let ticket = tickets(&memory).encrypt(b"session").expect("ticket");
        assert_eq!(tickets(&memory).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let passed = memory.fd().try_clone_to_owned().expect("descriptor");
        let next = TicketKeyMemory::inherit(passed).expect("inherited");
        assert_eq!(tickets(&next).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets(&keys()).decrypt(&ticket), None, "another cluster");
    }

    #[test]
    fn a_ticket_can_be_used_again() {
        let tickets = tickets(&keys());
        let ticket = tickets.encrypt(b"session").expect("ticket");
        for _ in 0..3 {
            assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        }
    }

    #[test]
    fn no_two_tickets_are_the_same() {
        let tickets = tickets(&keys());
        let mut made: Vec<_> = (0..100).map(|_| tickets.encrypt(b"session")).collect();
        made.sort();
        made.dedup();
        assert_eq!(made.len(), 100);
    }

    #[test]
    fn a_ticket_lives_over_one_rotation_and_not_over_two() {
        let memory = keys();
        let (one, other) = (tickets(&memory), tickets(&memory));
        let ticket = one.encrypt(b"session").expect("ticket");
        memory.rotate().expect("rotate");
        assert!(one.decrypt(&ticket).is_some() && other.decrypt(&ticket).is_some());
        let newer = one.encrypt(b"session").expect("ticket");
        assert_ne!(newer[..KEY_NAME_LEN], ticket[..KEY_NAME_LEN]);
        memory.rotate().expect("rotate");
        assert!(one.decrypt(&ticket).is_none() && other.decrypt(&ticket).is_none());
        assert!(other.decrypt(&newer).is_some());
    }

    #[test]
    fn a_ticket_lives_its_whole_lifetime_and_no_second_longer() {
        let tickets = tickets(&keys());
        let now = seconds_since_boot();
        let ticket = tickets.encrypt_at(now, b"session").expect("ticket");
        assert!(tickets.decrypt_at(now + 12 * HOUR, &ticket).is_some());
        assert!(tickets.decrypt_at(now + 12 * HOUR + 1, &ticket).is_none());
        // Ages are those of this machine: a ticket from the future is from another run of it.
        assert!(now == 0 || tickets.decrypt_at(now - 1, &ticket).is_none());
        assert_eq!(tickets.lifetime(), 12 * 3600);
    }

    #[test]
    fn a_shorter_lifetime_of_a_reload_holds_for_earlier_tickets() {
        let memory = keys();
        let now = seconds_since_boot();
        let ticket = tickets(&memory).encrypt_at(now, b"session").expect("ticket");
        let shorter = tickets_of(&memory, 60);
        assert!(shorter.decrypt_at(now + 60, &ticket).is_some());
        assert!(shorter.decrypt_at(now + 61, &ticket).is_none());
    }

    #[test]
    fn no_tickets_are_issued_with_a_key_whose_rotation_is_overdue() {
        let memory = keys();
        let tickets = tickets(&memory);
        let now = seconds_since_boot();
        let late = tickets.encrypt_at(now + 23 * HOUR, b"session").expect("a late ticket");
        assert!(tickets.decrypt_at(now + 30 * HOUR, &late).is_some());
        assert!(tickets.encrypt_at(now + 24 * HOUR + 1, b"session").is_none());
    }

    #[test]
    fn a_session_that_is_too_large_has_no_ticket() {
        let tickets = tickets(&keys());
        let largest = vec![7; MAX_SESSION_BYTES];
        let ticket = tickets.encrypt(&largest).expect("ticket");
        assert_eq!(tickets.decrypt(&ticket), Some(largest));
        assert!(tickets.encrypt(&vec![7; MAX_SESSION_BYTES + 1]).is_none());
        assert!(tickets.encrypt(b"").is_some_and(|ticket| tickets.decrypt(&ticket).is_some()));
    }

    #[test]
    fn an_idle_worker_drops_keys_that_have_rotated() {
        let memory = keys();
        let tickets = tickets(&memory);
        tickets.encrypt(b"session").expect("ticket");
        memory.rotate().expect("rotate");
        tickets.refresh();
        let opened = tickets.opened.read().expect("lock").clone().expect("keys");
        assert_eq!(opened.sequence, 2);
    }

    #[test]
    fn debug_output_has_no_key() {
        let text = format!("{:?}", tickets(&keys()));
        assert_eq!(text, "SessionTickets { lifetime: 43200s, .. }");
    }

    proptest! {
        #[test]
        fn a_changed_ticket_is_refused(
            session: Vec<u8>, at: proptest::sample::Index, bit in 0..8_u32,
        ) {
            let tickets = tickets(&keys());
            let mut ticket = tickets.encrypt(&session).expect("ticket");
            let at = at.index(ticket.len());
            ticket[at] ^= 1 << bit;
            prop_assert_eq!(tickets.decrypt(&ticket), None);
        }

        #[test]
        fn a_truncated_or_prolonged_ticket_is_refused(
            session: Vec<u8>, at: proptest::sample::Index, more in 1..40_usize,
        ) {
            let tickets = tickets(&keys());
            let mut ticket = tickets.encrypt(&session).expect("ticket");
            prop_assert_eq!(tickets.decrypt(&ticket[..at.index(ticket.len())]), None);
            ticket.resize(ticket.len() + more, 0);
            prop_assert_eq!(tickets.decrypt(&ticket), None);
        }

        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>) {
            prop_assert_eq!(tickets(&keys()).decrypt(&bytes), None);
        }

        #[test]
        fn forged_bytes_after_the_name_of_a_key_are_refused(bytes: Vec<u8>) {
            let memory = keys();
            let tickets = tickets(&memory);
            let mut ticket = tickets.encrypt(b"session").expect("ticket");
            ticket.truncate(KEY_NAME_LEN);
            ticket.extend_from_slice(&bytes);
            prop_assert_eq!(tickets.decrypt(&ticket), None);
        }
    }
}
