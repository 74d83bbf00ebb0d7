//! A certificate chain: its PEM blocks, and what is read from the server's own certificate, which is the first.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use super::pem::{PemBlock, parse_blocks};

/// The shortest RSA key that clients accept.
const MIN_RSA_BITS: usize = 2048;

/// A certificate chain as it is sent to clients, with what its first certificate says.
#[derive(Debug)]
pub(super) struct CertificateChain {
    /// The certificates in DER, the server's own first.
    pub(super) der: Vec<CertificateDer<'static>>,
    pub(super) leaf: CertificateFacts,
    /// The public keys of all certificates in DER (SubjectPublicKeyInfo).
    public_keys: Vec<Vec<u8>>,
    /// What is not wrong enough to refuse the chain; each completes a sentence that begins with the file.
    pub(super) warnings: Vec<String>,
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CertificateFacts {
    /// The distinguished name, as in RFC 4514: `CN=example.org,O=Example`.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// The serial number in hexadecimal digits.
    pub(super) serial: String,
    /// The DNS names and IP addresses that it is for, in lower case; without any, the common name of the subject.
    pub(super) names: Vec<String>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl CertificateChain {
    /// Decodes the chain of a file of PEM blocks, and checks it at the time `now`.
    ///
    /// # Errors
    /// The file has no certificate, or the chain is not valid; the reason completes a sentence that begins with the file.
    pub(super) fn from_pem(file: &[u8], now: SystemTime) -> Result<CertificateChain, String> {
        let blocks = parse_blocks(file)?;
        let is_certificate =
            |block: &&PemBlock<'_>| matches!(block.label, "CERTIFICATE" | "X509 CERTIFICATE");
        let (mut der, mut parsed) = (Vec::new(), Vec::new());
        for (index, block) in blocks.iter().filter(is_certificate).enumerate() {
            let bytes = block.decode()?.as_slice().to_vec();
            let certificate = Certificate::from_der(&bytes)
                .map_err(|e| format!("has no valid certificate in its block {}: {e}", index + 1))?;
            der.push(CertificateDer::from(bytes));
            parsed.push(certificate);
        }
        let leaf = parsed.first().ok_or_else(|| no_certificate(&blocks))?;
        let leaf = CertificateFacts::new(leaf)?;
        check_order(&parsed)?;
        check_validity(&leaf, now)?;
        check_rsa_size(&parsed[0])?;
        let public_keys = parsed.iter().map(public_key).collect::<Result<_, _>>()?;
        let warnings = intermediate_warnings(&parsed[1..], now);
        Ok(CertificateChain { der, leaf, public_keys, warnings })
    }

    /// Checks that a public key (SubjectPublicKeyInfo in DER) is that of the server's own certificate.
    ///
    /// # Errors
    /// It is that of another certificate, or of none; the reason completes a sentence that begins with the file.
    pub(super) fn check_fits(&self, public_key: &[u8]) -> Result<(), String> {
        match self.public_keys.iter().position(|one| one == public_key) {
            Some(0) => Ok(()),
            Some(other) => Err(format!(
                "is in the wrong order: its certificate {} fits the private key; put that one first, then the one that issued it",
                other + 1
            )),
            None => Err("does not fit the private key: they are not of one pair".to_string()),
        }
    }
}

impl CertificateFacts {
    fn new(certificate: &Certificate) -> Result<CertificateFacts, String> {
        let certificate = &certificate.tbs_certificate;
        let time = |time: &x509_cert::time::Time| {
            SystemTime::UNIX_EPOCH.checked_add(time.to_unix_duration()).ok_or("has an invalid date")
        };
        let validity = &certificate.validity;
        Ok(CertificateFacts {
            subject: certificate.subject.to_string(),
            issuer: certificate.issuer.to_string(),
            serial: hex(certificate.serial_number.as_bytes()),
            names: names_of(certificate)?,
            not_before: time(&validity.not_before)?,
            not_after: time(&validity.not_after)?,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the names that a certificate is for.
fn names_of(certificate: &x509_cert::TbsCertificate) -> Result<Vec<String>, String> {
    let alternatives = certificate.get::<SubjectAltName>();
    let alternatives = alternatives.map_err(|e| format!("has invalid alternative names: {e}"))?;
    let mut names = Vec::new();
    for name in alternatives.map(|(_, names)| names.0).unwrap_or_default() {
        match name {
            GeneralName::DnsName(name) => names.push(name.as_str().to_ascii_lowercase()),
            GeneralName::IpAddress(ip) => names.extend(ip_text(ip.as_bytes())),
            _ => {}
        }
    }
    if names.is_empty() {
        names.extend(common_name(&certificate.subject).map(|name| name.to_ascii_lowercase()));
    }
    Ok(names)
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| std::net::IpAddr::from(octets).to_string());
    let v6 = <[u8; 16]>::try_from(bytes).map(|octets| std::net::IpAddr::from(octets).to_string());
    v4.or(v6).ok()
}

/// Returns the common name of a subject.
fn common_name(subject: &Name) -> Option<String> {
    const COMMON_NAME: &str = "CN=";
    let attributes = subject.0.iter().flat_map(|set| set.0.iter());
    let texts = attributes.map(ToString::to_string);
    texts.filter_map(|text| text.strip_prefix(COMMON_NAME).map(str::to_string)).next()
}

/// Returns why there is no certificate among these blocks.
fn no_certificate(blocks: &[PemBlock<'_>]) -> String {
    match blocks.first() {
        None => "has no PEM block, as -----BEGIN CERTIFICATE----- would begin one".to_string(),
        Some(block) if block.label.ends_with("PRIVATE KEY") => {
            "has a private key and no certificate: are tls-cert and tls-key swapped?".to_string()
        }
        Some(block) => format!("has no certificate, but a block {}", block.label),
    }
}

/// Checks that each certificate is followed by that of its issuer.
fn check_order(chain: &[Certificate]) -> Result<(), String> {
    for (index, pair) in chain.windows(2).enumerate() {
        let (issuer, next) = (&pair[0].tbs_certificate.issuer, &pair[1].tbs_certificate.subject);
        if issuer != next {
            return Err(format!(
                "is in the wrong order: its certificate {} was issued by {issuer}, and certificate {} is that of {next}; begin \
                 with the server's own, and let each be followed by that of its issuer",
                index + 1,
                index + 2
            ));
        }
    }
    Ok(())
}

fn check_validity(leaf: &CertificateFacts, now: SystemTime) -> Result<(), String> {
    let time = |time: SystemTime| crate::text::format_system_time(time);
    if leaf.not_after < now {
        return Err(format!("has expired at {}: renew it", time(leaf.not_after)));
    }
    if now < leaf.not_before {
        return Err(format!(
            "is not valid before {}: check the clock of this machine",
            time(leaf.not_before)
        ));
    }
    Ok(())
}

/// Checks the size of an RSA key, for an error that tells more than that of the parser.
fn check_rsa_size(leaf: &Certificate) -> Result<(), String> {
    let key = &leaf.tbs_certificate.subject_public_key_info;
    if key.algorithm.oid != x509_cert::der::oid::db::rfc5912::RSA_ENCRYPTION {
        return Ok(());
    }
    let modulus_bits = key.subject_public_key.as_bytes().and_then(|der| {
        let mut reader = SliceReader::new(der).ok()?;
        let modulus: UintRef<'_> = reader
            .sequence(|fields| {
                let n = fields.decode()?;
                let _: UintRef<'_> = fields.decode()?;
                Ok(n)
            })
            .ok()?;
        let bytes = modulus.as_bytes();
        Some(bytes.len() * 8 - bytes.first()?.leading_zeros() as usize)
    });
    match modulus_bits {
        Some(bits) if bits < MIN_RSA_BITS => Err(format!(
            "has an RSA key of {bits} bits, which clients refuse: make one of {MIN_RSA_BITS} bits or more, or an ECDSA key"
        )),
        Some(_) => Ok(()),
        None => Err("has an invalid RSA key".to_string()),
    }
}

fn public_key(certificate: &Certificate) -> Result<Vec<u8>, String> {
    let key = &certificate.tbs_certificate.subject_public_key_info;
    key.to_der().map_err(|e| format!("has an invalid public key: {e}"))
}

/// Returns warnings about the certificates of issuers. Some clients find another path around an expired one.
fn intermediate_warnings(issuers: &[Certificate], now: SystemTime) -> Vec<String> {
    let facts = issuers.iter().filter_map(|one| CertificateFacts::new(one).ok());
    let expired = facts.filter(|facts| check_validity(facts, now).is_err());
    let text = |facts: CertificateFacts| {
        let time = crate::text::format_system_time(facts.not_after);
        format!(
            "contains the certificate of {}, valid until {time}: most clients refuse it",
            facts.subject
        )
    };
    expired.map(text).collect()
}
