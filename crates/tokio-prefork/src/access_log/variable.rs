//! The variables of access log templates. Where nginx has one, it has nginx's name and meaning.

use super::tls_variable::TlsVariable;

/// A value of a logged request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variable {
    RemoteAddr,
    RemotePort,
    Peer,
    RemoteUser,
    TimeLocal,
    TimeIso8601,
    TimeIso8601Ms,
    Msec,
    TimeEpochMs,
    Request,
    RequestMethod,
    RequestUri,
    Uri,
    Args,
    ServerProtocol,
    Host,
    Scheme,
    Status,
    BodyBytesSent,
    RequestCompletion,
    RequestTime,
    DurationMs,
    DurationUs,
    QueueWaitUs,
    Pid,
    Worker,
    Slot,
    Generation,
    RequestId,
    TraceId,
    /// A header of the request, by its index among those that the format wants.
    RequestHeader(usize),
    /// A header of the response, by its index among those that the format wants.
    ResponseHeader(usize),
    Tls(TlsVariable),
}

/// The prefix of the variables for request headers: `$http_user_agent`.
pub(super) const REQUEST_HEADER_PREFIX: &str = "http_";

/// The prefix of the variables for response headers: `$sent_http_content_type`.
pub(super) const RESPONSE_HEADER_PREFIX: &str = "sent_http_";

/// The variables with fixed names.
pub(super) const VARIABLES: [(&str, Variable); 43] = [
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("peer", Variable::Peer),
    ("remote_user", Variable::RemoteUser),
    ("time_local", Variable::TimeLocal),
    ("time_iso8601", Variable::TimeIso8601),
    ("time_iso8601_ms", Variable::TimeIso8601Ms),
    ("msec", Variable::Msec),
    ("time_epoch_ms", Variable::TimeEpochMs),
    ("request", Variable::Request),
    ("request_method", Variable::RequestMethod),
    ("request_uri", Variable::RequestUri),
    ("uri", Variable::Uri),
    ("args", Variable::Args),
    ("server_protocol", Variable::ServerProtocol),
    ("host", Variable::Host),
    ("scheme", Variable::Scheme),
    ("status", Variable::Status),
    ("body_bytes_sent", Variable::BodyBytesSent),
    ("request_completion", Variable::RequestCompletion),
    ("request_time", Variable::RequestTime),
    ("duration_ms", Variable::DurationMs),
    ("duration_us", Variable::DurationUs),
    ("queue_wait_us", Variable::QueueWaitUs),
    ("pid", Variable::Pid),
    ("worker", Variable::Worker),
    ("slot", Variable::Slot),
    ("generation", Variable::Generation),
    ("request_id", Variable::RequestId),
    ("trace_id", Variable::TraceId),
    ("ssl_protocol", Variable::Tls(TlsVariable::Protocol)),
    ("ssl_cipher", Variable::Tls(TlsVariable::Cipher)),
    ("ssl_server_name", Variable::Tls(TlsVariable::ServerName)),
    ("ssl_alpn_protocol", Variable::Tls(TlsVariable::AlpnProtocol)),
    ("ssl_session_reused", Variable::Tls(TlsVariable::SessionReused)),
    ("ssl_client_verify", Variable::Tls(TlsVariable::ClientVerify)),
    ("ssl_client_s_dn", Variable::Tls(TlsVariable::ClientSubject)),
    ("ssl_client_i_dn", Variable::Tls(TlsVariable::ClientIssuer)),
    ("ssl_client_serial", Variable::Tls(TlsVariable::ClientSerial)),
    ("ssl_client_fingerprint", Variable::Tls(TlsVariable::ClientSha1Fingerprint)),
    ("ssl_client_fingerprint_sha256", Variable::Tls(TlsVariable::ClientSha256Fingerprint)),
    ("ssl_client_v_start", Variable::Tls(TlsVariable::ClientNotBefore)),
    ("ssl_client_v_end", Variable::Tls(TlsVariable::ClientNotAfter)),
];

impl Variable {
    /// Returns whether the value is known when the request has ended, and not before. Headers of the response are a case of their own.
    pub(super) fn is_known_at_end(self) -> bool {
        self.needs_duration()
            || self.is_time_text()
            || matches!(
                self,
                Variable::Status
                    | Variable::BodyBytesSent
                    | Variable::RequestCompletion
                    | Variable::Msec
                    | Variable::TimeEpochMs
            )
    }

    /// Returns whether the value is a time that is not a number.
    pub(super) fn is_time_text(self) -> bool {
        matches!(self, Variable::TimeLocal | Variable::TimeIso8601 | Variable::TimeIso8601Ms)
    }

    /// Returns whether the value needs the exact start of the request.
    pub(super) fn needs_duration(self) -> bool {
        matches!(self, Variable::RequestTime | Variable::DurationMs | Variable::DurationUs)
    }
}
