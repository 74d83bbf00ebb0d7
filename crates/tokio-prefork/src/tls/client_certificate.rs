//! Reads the certificate of a client.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::time::Time;

use super::distinguished_name::{format_name, is_invisible};
use crate::client::ClientCertificate;

/// Reads a certificate in DER.
///
/// # Errors
/// It is no valid certificate, or one whose names cannot be read.
pub(crate) fn read_client_certificate(der: &[u8]) -> Result<ClientCertificate, String> {
    let parsed = Certificate::from_der(der).map_err(|e| e.to_string())?.tbs_certificate;
    let time = |time: &Time| {
        SystemTime::UNIX_EPOCH.checked_add(time.to_unix_duration()).ok_or("its dates are invalid")
    };
    let names = parsed.get::<SubjectAltName>();
    let names = names.map_err(|e| format!("its alternative names are invalid: {e}"))?;
    let fingerprint = |algorithm| format_hex(digest(algorithm, der).as_ref());
    let mut certificate = ClientCertificate {
        der: der.to_vec(),
        subject: format_name(&parsed.subject),
        issuer: format_name(&parsed.issuer),
        serial_number: format_serial(parsed.serial_number.as_bytes()),
        sha1_fingerprint: fingerprint(&SHA1_FOR_LEGACY_USE_ONLY),
        sha256_fingerprint: fingerprint(&SHA256),
        not_before: time(&parsed.validity.not_before)?,
        not_after: time(&parsed.validity.not_after)?,
        dns_names: Vec::new(),
        email_addresses: Vec::new(),
        uris: Vec::new(),
        ip_addresses: Vec::new(),
    };
    for name in names.map(|(_, names)| names.0).unwrap_or_default() {
        match name {
            GeneralName::DnsName(name) => push_name(&mut certificate.dns_names, name.as_str()),
            GeneralName::Rfc822Name(name) => {
                push_name(&mut certificate.email_addresses, name.as_str());
            }
            GeneralName::UniformResourceIdentifier(name) => {
                push_name(&mut certificate.uris, name.as_str());
            }
            GeneralName::IpAddress(ip) => {
                certificate.ip_addresses.extend(read_ip(ip.as_bytes()));
            }
            _ => {}
        }
    }
    Ok(certificate)
}

/// Adds a name, unless it has characters that could make it look like another one.
fn push_name(names: &mut Vec<String>, name: &str) {
    if !name.chars().any(is_invisible) {
        names.push(name.to_string());
    }
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn format_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn format_serial(bytes: &[u8]) -> String {
    let leading = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[leading.min(bytes.len().saturating_sub(1))..];
    format_hex(digits).to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType, SerialNumber};

    fn read(params: &CertificateParams) -> Result<ClientCertificate, String> {
        let key = KeyPair::generate().expect("key");
        read_client_certificate(params.self_signed(&key).expect("certificate").der())
    }

    #[test]
    fn a_certificate_is_read() {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(vec![0, 0xab, 1]));
        params.subject_alt_names = vec![
            SanType::DnsName("ann.example.org".try_into().expect("name")),
            SanType::Rfc822Name("ann@example.org".try_into().expect("name")),
            SanType::URI("spiffe://example.org/ann".try_into().expect("name")),
            SanType::IpAddress("192.0.2.1".parse().expect("IP")),
            SanType::IpAddress("2001:db8::1".parse().expect("IP")),
        ];
        let certificate = read(&params).expect("certificate");
        assert_eq!(certificate.serial_number(), "AB01");
        assert_eq!(certificate.dns_names(), ["ann.example.org"]);
        assert_eq!(certificate.email_addresses(), ["ann@example.org"]);
        assert_eq!(certificate.uris(), ["spiffe://example.org/ann"]);
        let ips: Vec<_> = certificate.ip_addresses().iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(certificate.sha256_fingerprint().len(), 64);
        assert_eq!(certificate.subject(), certificate.issuer());
        assert!(certificate.not_before() < certificate.not_after());
    }

    #[test]
    fn names_with_invisible_characters_are_left_out() {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName("good.example\0.evil.example".try_into().expect("ASCII")),
            SanType::URI("spiffe://example.org/a\nb".try_into().expect("ASCII")),
            SanType::DnsName("ann.example".try_into().expect("name")),
        ];
        let certificate = read(&params).expect("certificate");
        assert_eq!(certificate.dns_names(), ["ann.example"]);
        assert!(certificate.uris().is_empty());
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        for der in [&b""[..], b"0", &[0x30, 0x80, 1], &[0; 100]] {
            read_client_certificate(der).expect_err("no certificate");
        }
        assert_eq!([&[0][..], &[], &[0, 0, 10]].map(format_serial), ["00", "", "0A"]);
    }
}
