//! The certificates of a cluster.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Seconds of a day.
#[cfg(any(feature = "tls", feature = "admin"))]
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// A certificate that new connections are served with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CertificateStatus {
    /// The file that it was read from, as `tls-cert` names it.
    pub file: String,
    /// The distinguished name of its owner: `CN=example.org`. Empty if it has none.
    pub subject: String,
    /// The distinguished name of the authority that has issued it.
    pub issuer: String,
    /// The serial number in hexadecimal digits.
    pub serial: String,
    /// The DNS names and IP addresses that it is for; the first 32 of them.
    pub names: Vec<String>,
    /// The type of its key: `ECDSA`, `Ed25519`, `RSA` or `other`.
    pub key_type: String,
    /// From when on it is valid, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// Until when it is valid, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// How many whole days it is valid still; negative if it has expired.
    pub days_left: i64,
}

impl CertificateStatus {
    /// The most names that are listed.
    #[cfg(feature = "tls")]
    pub(crate) const MAX_NAMES: usize = 32;

    /// Returns until when the certificate is valid.
    pub(crate) fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.not_after_ms)
    }

    /// Returns the certificate with the days that are left at `now`.
    #[cfg(any(feature = "tls", feature = "admin"))]
    pub(crate) fn at(mut self, now: SystemTime) -> CertificateStatus {
        let days = |span: Duration| (span.as_secs() / SECONDS_PER_DAY) as i64;
        self.days_left = match self.not_after().duration_since(now) {
            Ok(left) => days(left),
            Err(expired) => -1 - days(expired.duration()),
        };
        self
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(SECONDS_PER_DAY);

    #[test]
    fn whole_days_are_counted_and_an_expired_certificate_has_less_than_none() {
        let end = UNIX_EPOCH + 1000 * DAY;
        let status = CertificateStatus {
            not_after_ms: end.duration_since(UNIX_EPOCH).expect("later").as_millis() as u64,
            ..CertificateStatus::default()
        };
        for (now, days) in [
            (end - 14 * DAY, 14),
            (end - 14 * DAY + Duration::from_secs(1), 13),
            (end - Duration::from_secs(1), 0),
            (end + Duration::from_secs(1), -1),
            (end + DAY, -2),
        ] {
            assert_eq!(status.clone().at(now).days_left, days);
        }
    }
}
