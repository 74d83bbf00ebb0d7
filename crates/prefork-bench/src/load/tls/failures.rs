//! Assigns errors of rustls to kinds of failure.

use rustls::{AlertDescription, CertificateError, Error};

use crate::load::request_failure::RequestFailure;

/// Returns the kind of failure that an error of rustls means.
pub(crate) fn classify_tls_error(error: &Error) -> RequestFailure {
    match error {
        Error::InvalidCertificate(why) => classify_certificate_error(why),
        Error::NoCertificatesPresented => RequestFailure::CertificateInvalid,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | Error::NoApplicationProtocol => RequestFailure::NoHttp2,
        Error::AlertReceived(_) => RequestFailure::HandshakeRefused,
        _ => RequestFailure::TlsError,
    }
}

fn classify_certificate_error(why: &CertificateError) -> RequestFailure {
    use CertificateError::*;
    match why {
        UnknownIssuer => RequestFailure::CertificateUntrusted,
        why if is_self_signed_authority(why) => RequestFailure::CertificateUntrusted,
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            RequestFailure::CertificateExpired
        }
        NotValidForName | NotValidForNameContext { .. } => RequestFailure::CertificateNameMismatch,
        _ => RequestFailure::CertificateInvalid,
    }
}

/// Returns whether the certificate is one that `openssl req -x509` makes: an authority of its own.
fn is_self_signed_authority(why: &CertificateError) -> bool {
    // The only public form of this error of webpki is its text.
    matches!(why, CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity"))
}

/// Describes an error for reports.
pub(crate) fn describe_tls_error(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) if is_self_signed_authority(why) => {
            "invalid peer certificate: self-signed".to_string()
        }
        error => error.to_string(),
    }
}
