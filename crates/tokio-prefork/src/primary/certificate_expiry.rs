//! Warnings about certificates that expire soon: when they are loaded, and once a day.

use std::time::{Duration, Instant, SystemTime};

use super::Primary;
use crate::status::CertificateStatus;

/// How long before the end of a certificate the warnings begin. Renewed certificates have at least this long left: those of
/// authorities for 90 days are renewed 30 days before their end, those for 45 days 15 days before.
const WARNING_PERIOD: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// When to warn next.
#[derive(Debug, Default)]
pub(super) struct CertificateExpiry {
    /// `None` without certificates.
    next_check: Option<Instant>,
}

impl CertificateExpiry {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_check
    }
}

impl Primary {
    /// Warns about certificates of the current configuration that expire soon: call it when they are loaded.
    pub(super) fn warn_of_expiring_certificates(&mut self) {
        let Some(config) = self.current_config() else { return };
        let certificates = config.tls_certificates.status();
        let now = SystemTime::now();
        for certificate in &certificates {
            match remaining(certificate, now) {
                Remaining::Long => {}
                Remaining::Short => self.event_log.log_certificate_expires(certificate),
                Remaining::Expired => self.event_log.log_certificate_expired(certificate),
            }
        }
        let until = next_check_in(&certificates, now);
        self.certificate_expiry.next_check = until.map(|until| Instant::now() + until);
    }

    /// Warns again if it is time.
    pub(super) fn attend_certificate_expiry(&mut self) {
        if self.certificate_expiry.next_check.is_some_and(|at| at <= Instant::now()) {
            self.warn_of_expiring_certificates();
        }
    }
}

/// What is left of the time in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remaining {
    Long,
    Short,
    Expired,
}

fn remaining(certificate: &CertificateStatus, now: SystemTime) -> Remaining {
    match certificate.not_after().duration_since(now) {
        Ok(left) if left > WARNING_PERIOD => Remaining::Long,
        Ok(_) => Remaining::Short,
        Err(_) => Remaining::Expired,
    }
}

/// Returns when to look again: after a day, or when the next certificate expires. `None` without certificates.
fn next_check_in(certificates: &[CertificateStatus], now: SystemTime) -> Option<Duration> {
    let left = |one: &CertificateStatus| one.not_after().duration_since(now).ok();
    // The end is the last moment in which it is valid.
    let ends = certificates.iter().filter_map(left).map(|left| left + Duration::from_millis(1));
    (!certificates.is_empty()).then(|| ends.chain([WARNING_INTERVAL]).min().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn valid_for(left: Duration, now: SystemTime) -> CertificateStatus {
        let end = (now + left).duration_since(UNIX_EPOCH).expect("after 1970");
        CertificateStatus { not_after_ms: end.as_millis() as u64, ..CertificateStatus::default() }
    }

    #[test]
    fn warnings_begin_14_days_before_the_end() {
        let now = UNIX_EPOCH + 1_000_000 * HOUR;
        for (left, expected) in [
            (15 * 24 * HOUR, Remaining::Long),
            (WARNING_PERIOD, Remaining::Short),
            (HOUR, Remaining::Short),
        ] {
            assert_eq!(remaining(&valid_for(left, now), now), expected);
        }
        assert_eq!(remaining(&valid_for(HOUR, now), now + 2 * HOUR), Remaining::Expired);
    }

    #[test]
    fn certificates_are_looked_at_each_day_and_when_one_expires() {
        let now = UNIX_EPOCH + 1_000_000 * HOUR;
        let next = |left: &[u32]| {
            let certificates: Vec<_> =
                left.iter().map(|hours| valid_for(*hours * HOUR, now)).collect();
            next_check_in(&certificates, now)
        };
        assert_eq!(next(&[]), None);
        assert_eq!(next(&[1000, 30]), Some(WARNING_INTERVAL));
        assert_eq!(next(&[1000, 3]), Some(3 * HOUR + Duration::from_millis(1)));
        let expired = [valid_for(HOUR, now)];
        assert_eq!(next_check_in(&expired, now + 2 * HOUR), Some(WARNING_INTERVAL));
    }
}
