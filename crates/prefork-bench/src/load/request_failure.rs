//! The kinds of failure that a request can have, their names in reports, and what to do about them.

use super::http_response::ResponseError;

/// Why a request has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestFailure {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the response did.
    ClosedEarly,
    /// The response did not arrive in time.
    TimedOut,
    /// The response is not HTTP.
    Malformed,
    /// This machine had no port, file descriptor or memory for the connection.
    Local,
    /// The response has more header fields than the parser allows.
    TooManyFields,
    /// The head of the response is larger than the parser allows.
    HeadTooLarge,
    /// The size line of a chunk, or the trailers, are longer than the parser allows.
    ChunkLineTooLong,
    /// No trusted certificate authority has issued the certificate of the server.
    CertificateUntrusted,
    /// The certificate is not for the host of the URL.
    CertificateNameMismatch,
    /// The certificate has expired, or is not valid yet.
    CertificateExpired,
    /// The certificate is wrong for another reason.
    CertificateInvalid,
    /// The server sent plain HTTP where TLS was expected.
    PlainHttpAnswer,
    /// The server ended the TLS handshake with an alert.
    HandshakeRefused,
    /// The TLS handshake was not complete in time.
    HandshakeTimedOut,
    /// The server violated TLS, or has no version or cipher suite in common.
    TlsError,
    /// The server did not choose HTTP/2.
    NoHttp2,
    /// The server reset the HTTP/2 stream.
    StreamReset,
}

/// Number of kinds of [`RequestFailure`].
pub(crate) const REQUEST_FAILURE_KINDS: usize = RequestFailure::ALL.len();

use RequestFailure::*;

impl RequestFailure {
    /// All kinds, in the order of their discriminants.
    pub(crate) const ALL: [RequestFailure; 19] = [
        Refused,
        Reset,
        ClosedEarly,
        TimedOut,
        Malformed,
        Local,
        TooManyFields,
        HeadTooLarge,
        ChunkLineTooLong,
        CertificateUntrusted,
        CertificateNameMismatch,
        CertificateExpired,
        CertificateInvalid,
        PlainHttpAnswer,
        HandshakeRefused,
        HandshakeTimedOut,
        TlsError,
        NoHttp2,
        StreamReset,
    ];

    /// Returns the name in JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Refused => "refused",
            Reset => "reset",
            ClosedEarly => "closed_early",
            TimedOut => "timed_out",
            Malformed => "malformed",
            Local => "local",
            TooManyFields => "too_many_fields",
            HeadTooLarge => "head_too_large",
            ChunkLineTooLong => "chunk_line_too_long",
            CertificateUntrusted => "certificate_untrusted",
            CertificateNameMismatch => "certificate_name_mismatch",
            CertificateExpired => "certificate_expired",
            CertificateInvalid => "certificate_invalid",
            PlainHttpAnswer => "plain_http_answer",
            HandshakeRefused => "handshake_refused",
            HandshakeTimedOut => "handshake_timed_out",
            TlsError => "tls_error",
            NoHttp2 => "no_http2",
            StreamReset => "stream_reset",
        }
    }

    /// Returns the name in text reports.
    pub(crate) fn phrase(self) -> &'static str {
        match self {
            Refused => "refused",
            Reset => "reset",
            ClosedEarly => "closed early",
            TimedOut => "timed out",
            Malformed => "not HTTP",
            Local => "no port, file or route here",
            TooManyFields => "more than 4096 header fields",
            HeadTooLarge => "head larger than 1 MiB",
            ChunkLineTooLong => "chunk line or trailers longer than 64 KiB",
            CertificateUntrusted => "certificate not trusted",
            CertificateNameMismatch => "certificate for another name",
            CertificateExpired => "certificate expired or not yet valid",
            CertificateInvalid => "certificate invalid",
            PlainHttpAnswer => "plain HTTP instead of TLS",
            HandshakeRefused => "TLS refused by the server",
            HandshakeTimedOut => "TLS handshake timed out",
            TlsError => "TLS error",
            NoHttp2 => "no HTTP/2",
            StreamReset => "stream reset",
        }
    }

    /// Says what the user can do about it; `None` if the name says all.
    pub(crate) fn advice(self) -> Option<&'static str> {
        match self {
            CertificateUntrusted => {
                Some("give the certificate of its issuer with --ca FILE, or use --insecure")
            }
            CertificateNameMismatch => {
                Some("request a name that is in the certificate, or use --insecure")
            }
            CertificateExpired => {
                Some("renew the certificate, check the clock of this machine, or use --insecure")
            }
            CertificateInvalid => Some("replace the certificate, or use --insecure"),
            PlainHttpAnswer => Some("use http:// for this port"),
            HandshakeRefused => Some(
                "see the log of the server; if it requires a client certificate, give --cert and --key",
            ),
            HandshakeTimedOut => Some("check that the port speaks TLS, or give a longer --timeout"),
            NoHttp2 => Some("enable HTTP/2 in the server, or leave out --http2"),
            _ => None,
        }
    }

    /// Returns whether every further handshake fails in the same way.
    pub(crate) fn is_permanent(self) -> bool {
        matches!(
            self,
            CertificateUntrusted
                | CertificateNameMismatch
                | CertificateExpired
                | CertificateInvalid
                | PlainHttpAnswer
                | NoHttp2
        )
    }
}

/// Maps an unreadable response to its kind of failure.
pub(crate) fn response_error_kind(why: ResponseError) -> RequestFailure {
    match why {
        ResponseError::Malformed => RequestFailure::Malformed,
        ResponseError::TooManyFields => RequestFailure::TooManyFields,
        ResponseError::HeadTooLarge => RequestFailure::HeadTooLarge,
        ResponseError::ChunkLineTooLong => RequestFailure::ChunkLineTooLong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_in_the_order_of_their_discriminants() {
        for (at, kind) in RequestFailure::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
        let mut keys = RequestFailure::ALL.map(RequestFailure::key).to_vec();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), REQUEST_FAILURE_KINDS);
    }
}
