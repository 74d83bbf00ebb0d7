//! Finds the client's certificates in a session, as rustls saves it in tickets.
//!
//! rustls resumes a session without a look at them, and has no function to read its format (`ServerSessionValue`), which this module
//! repeats. Should another version of rustls change it, the sessions of clients with certificates are not resumed, and a test fails.

use rustls::pki_types::CertificateDer;

/// Returns the certificates of the client, its own first; none if it has shown none. `None` if the format is not the expected one.
pub(super) fn certificates_of_session(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut fields = Fields(session);
    if fields.flag()? {
        let _server_name = fields.with_length(1)?;
    }
    let _version_and_cipher_suite = fields.take(4)?;
    let _master_secret = fields.with_length(1)?;
    let _extended_master_secret = fields.flag()?;
    let mut certificates = Vec::new();
    if fields.flag()? {
        let mut list = Fields(fields.with_length(3)?);
        while !list.0.is_empty() {
            certificates.push(CertificateDer::from(list.with_length(3)?));
        }
        if certificates.is_empty() {
            return None;
        }
    }
    if fields.flag()? {
        let _alpn_protocol = fields.with_length(1)?;
    }
    let _application_data = fields.with_length(2)?;
    let _creation_time_and_age_offset = fields.take(8 + 4)?;
    fields.0.is_empty().then_some(certificates)
}

/// The rest of a session.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    /// Takes a field that begins with its length, of `length_bytes` bytes.
    fn with_length(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.take(length_bytes)?;
        let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        self.take(length)
    }
}
