//! The variables of access log templates about TLS, with nginx's names.

use super::escape::ValueWriter;
use crate::client::{ClientCertificate, TlsInfo};
use crate::text::format_system_time;

/// A value of the TLS handshake of a logged request. Requests without TLS have none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsVariable {
    Protocol,
    Cipher,
    ServerName,
    AlpnProtocol,
    SessionReused,
    ClientVerify,
    ClientSubject,
    ClientIssuer,
    ClientSerial,
    ClientSha1Fingerprint,
    ClientSha256Fingerprint,
    ClientNotBefore,
    ClientNotAfter,
}

/// Writes a value of the handshake.
pub(super) fn write_tls_value(variable: TlsVariable, value: &mut ValueWriter<'_>, tls: &TlsInfo) {
    let client = tls.client_certificate();
    // What client and server have agreed on is one of the words of this server; all else may be from the client.
    match variable {
        TlsVariable::Protocol => value.own_text(tls.version()),
        TlsVariable::Cipher => value.own_text(tls.cipher_suite()),
        TlsVariable::ServerName => value.text(tls.server_name().unwrap_or_default().as_bytes()),
        TlsVariable::AlpnProtocol => {
            if let Some(protocol) = tls.alpn_protocol() {
                value.own_text(protocol);
            }
        }
        TlsVariable::SessionReused => value.own_text(if tls.is_resumed() { "r" } else { "." }),
        TlsVariable::ClientVerify => {
            value.own_text(if client.is_some() { "SUCCESS" } else { "NONE" });
        }
        _ => {
            if let Some(client) = client {
                write_client_value(variable, value, client);
            }
        }
    }
}

fn write_client_value(
    variable: TlsVariable,
    value: &mut ValueWriter<'_>,
    client: &ClientCertificate,
) {
    match variable {
        TlsVariable::ClientSubject => value.text(client.subject().as_bytes()),
        TlsVariable::ClientIssuer => value.text(client.issuer().as_bytes()),
        TlsVariable::ClientSerial => value.own_text(client.serial_number()),
        TlsVariable::ClientSha1Fingerprint => value.own_text(client.sha1_fingerprint()),
        TlsVariable::ClientSha256Fingerprint => value.own_text(client.sha256_fingerprint()),
        TlsVariable::ClientNotBefore => value.own_text(format_system_time(client.not_before())),
        TlsVariable::ClientNotAfter => value.own_text(format_system_time(client.not_after())),
        _ => {}
    }
}
