//! The certificates in `prefork status`.

use std::fmt::Write;

use tokio_prefork::status::{CertificateStatus, ClusterStatus};
use tokio_prefork::text::{format_utc, printable};

/// Maximum number of certificates that are shown.
const MAX_CERTIFICATE_LINES: usize = 20;
/// Maximum number of names that are shown of each.
const MAX_NAMES: usize = 4;

/// Formats a line for each certificate. Empty without TLS.
pub(super) fn format_certificates(status: &ClusterStatus) -> String {
    let mut text = String::new();
    for certificate in status.certificates.iter().take(MAX_CERTIFICATE_LINES) {
        text.push_str(&certificate_line(certificate));
    }
    let others = status.certificates.len().saturating_sub(MAX_CERTIFICATE_LINES);
    if others > 0 {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "and {others} more certificates");
    }
    text
}

fn certificate_line(certificate: &CertificateStatus) -> String {
    let (names, more) = certificate.names.split_at(certificate.names.len().min(MAX_NAMES));
    let mut of = match names {
        [] => certificate.subject.clone(),
        names => names.join(", "),
    };
    if !more.is_empty() {
        let _ = write!(of, " and {} more", more.len());
    }
    let end = format_utc(certificate.not_after_ms);
    let end = end.split('T').next().unwrap_or_default();
    let left = match certificate.days_left {
        ..=-1 => format!("EXPIRED on {end}"),
        1 => format!("1 day left, until {end}"),
        days => format!("{days} days left, until {end}"),
    };
    format!("certificate of {}: {left} ({})\n", printable(&of), printable(&certificate.file))
}
