//! The text of distinguished names (RFC 4514), safe for logs and terminals whatever a client has put into its name.

use std::fmt::Write;

use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Encode, Tag, Tagged};
use x509_cert::name::Name;

/// The short names of attributes: those of RFC 4514, section 3, and those that OpenSSL prints.
const ATTRIBUTE_NAMES: [(&str, &str); 15] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// Returns a distinguished name as text, with its last part first.
pub(super) fn format_name(name: &Name) -> String {
    let mut text = String::new();
    for (index, part) in name.0.iter().rev().enumerate() {
        // OpenSSL and nginx reverse the order here as well.
        let attributes: Vec<_> = part.0.iter().collect();
        for (attribute_index, attribute) in attributes.into_iter().rev().enumerate() {
            match (index, attribute_index) {
                (0, 0) => {}
                (_, 0) => text.push(','),
                _ => text.push('+'),
            }
            push_attribute(&mut text, attribute);
        }
    }
    text
}

fn push_attribute(text: &mut String, attribute: &AttributeTypeAndValue) {
    match (short_name(&attribute.oid), decode_string(attribute)) {
        (Some(name), Some(value)) => {
            text.push_str(name);
            text.push('=');
            push_escaped(text, &value);
        }
        _ => {
            let _ = write!(text, "{}=#", attribute.oid);
            let der = attribute.value.to_der().unwrap_or_default();
            for byte in der {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
}

fn short_name(oid: &ObjectIdentifier) -> Option<&'static str> {
    let oid = oid.to_string();
    ATTRIBUTE_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name)
}

/// Returns the text of a value. `None` if it is no valid text.
fn decode_string(attribute: &AttributeTypeAndValue) -> Option<String> {
    let bytes = attribute.value.value();
    match attribute.value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString => std::str::from_utf8(bytes).ok().map(str::to_string),
        // T.61 in theory, Latin-1 in practice.
        Tag::TeletexString => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString => {
            let (units, rest) = bytes.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            let text = char::decode_utf16(units).collect::<Result<_, _>>().ok();
            text.filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

fn push_escaped(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => text.extend(['\\', c]),
            '#' if index == 0 => text.push_str("\\#"),
            ' ' if index == 0 || index == last => text.push_str("\\ "),
            c if is_invisible(c) => {
                let mut buffer = [0; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(text, "\\{byte:02X}");
                }
            }
            c => text.push(c),
        }
    }
}

/// Returns whether a character is none that is seen: a control character, a line break, or one that changes the direction or the width of
/// the text.
pub(super) fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};
    use x509_cert::Certificate;
    use x509_cert::der::Decode;

    fn text_of(parts: &[(DnType, DnValue)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate");
        let parsed = Certificate::from_der(certificate.der()).expect("parsed");
        format_name(&parsed.tbs_certificate.subject)
    }

    fn cn(value: &str) -> String {
        text_of(&[(DnType::CommonName, DnValue::Utf8String(value.to_string()))])
    }

    #[test]
    fn the_last_part_comes_first() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_string());
        let parts = [
            (DnType::CountryName, DnValue::PrintableString("DE".try_into().expect("country"))),
            (DnType::OrganizationName, utf8("Example, Inc.")),
            (DnType::CommonName, utf8("Ann")),
        ];
        assert_eq!(text_of(&parts), "CN=Ann,O=Example\\, Inc.,C=DE");
    }

    #[test]
    fn special_and_invisible_characters_are_escaped() {
        assert_eq!(cn("a\nb\0c\u{1b}[31m"), "CN=a\\0Ab\\00c\\1B[31m");
        assert_eq!(cn("a,b+c\"d\\e;f<g>"), "CN=a\\,b\\+c\\\"d\\\\e\\;f\\<g\\>");
        assert_eq!(cn("#x # "), "CN=\\#x #\\ ");
        assert_eq!(cn(" "), "CN=\\ ");
        assert_eq!(cn("x\u{202e}y\u{85}"), "CN=x\\E2\\80\\AEy\\C2\\85");
        assert_eq!(cn("Müller 日本"), "CN=Müller 日本");
        assert_ne!(cn("a,OU=admin"), "CN=a,OU=admin");
    }

    #[test]
    fn all_string_types_are_read_and_others_shown_as_der() {
        let text = |value: DnValue| text_of(&[(DnType::CommonName, value)]);
        assert_eq!(text(DnValue::BmpString("Zoë\n".try_into().expect("BMP"))), "CN=Zoë\\0A");
        assert_eq!(text(DnValue::TeletexString("Zoe".try_into().expect("T.61"))), "CN=Zoe");
        assert_eq!(text(DnValue::Ia5String("zoe".try_into().expect("ASCII"))), "CN=zoe");
        let unknown = DnType::CustomDnType(vec![1, 2, 3, 4]);
        assert_eq!(text_of(&[(unknown, DnValue::Utf8String("x".into()))]), "1.2.3.4=#0c0178");
    }

    #[test]
    fn parts_with_several_values_are_joined_with_a_plus() {
        let name: Name = "CN=Ann+UID=17,O=Example".parse().expect("a name");
        assert_eq!(format_name(&name), "UID=17+CN=Ann,O=Example");
    }
}
