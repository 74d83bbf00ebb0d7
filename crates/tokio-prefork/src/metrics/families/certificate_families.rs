//! The metrics of certificates.

use super::super::family::{MetricFamily, MetricUnit, labels};
use crate::status::{CertificateStatus, ClusterStatus};

pub(super) fn families_of(status: &ClusterStatus) -> Vec<MetricFamily> {
    let series = |time: fn(&CertificateStatus) -> u64| {
        let one = |certificate: &CertificateStatus| {
            let labels = labels([
                ("file", &certificate.file),
                ("subject", &certificate.subject),
                ("serial", &certificate.serial),
            ]);
            (labels, time(certificate) as f64 / 1000.0)
        };
        status.certificates.iter().map(one).collect()
    };
    vec![
        MetricFamily::gauges(
            "prefork_tls_certificate_not_after_timestamp",
            "Until when the certificate is valid, in seconds since 1970.",
            series(|certificate| certificate.not_after_ms),
        )
        .in_unit(MetricUnit::Seconds),
        MetricFamily::gauges(
            "prefork_tls_certificate_not_before_timestamp",
            "From when on the certificate is valid, in seconds since 1970.",
            series(|certificate| certificate.not_before_ms),
        )
        .in_unit(MetricUnit::Seconds),
    ]
}
