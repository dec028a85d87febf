//! A certificate's subject as text, the way Envoy (that is BoringSSL) writes it: RFC 2253.

use std::fmt::Write as _;

use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::prelude::{AttributeTypeAndValue, X509Name};

/// The last part first; empty for an empty name.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<Vec<_>> = name.iter().map(|part| part.iter().collect()).collect();
    for part in parts.iter().rev() {
        for (index, attribute) in part.iter().rev().enumerate() {
            let separator = if index > 0 { "+" } else { "," };
            if !out.is_empty() {
                out.push_str(separator);
            }
            write_attribute(&mut out, attribute);
        }
    }
    out
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type().to_id_string();
    let text = short_name(&oid).zip(text(attribute.attr_value()));
    // Writing to a String cannot fail.
    match text {
        Some((name, text)) => {
            let _ = write!(out, "{name}=");
            write_escaped(out, &text);
        }
        None => {
            let name = short_name(&oid).unwrap_or(&oid);
            let _ = write!(out, "{name}=#");
            write_der(out, attribute.attr_value());
        }
    }
}

/// BoringSSL's short names of what subjects are made of.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.46" => "dnQualifier",
        "2.5.4.65" => "pseudonym",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        _ => return None,
    })
}

/// UTF-8; none for what is no text.
fn text(value: &Any<'_>) -> Option<Vec<u8>> {
    let utf8 = |text: Vec<char>| text.into_iter().collect::<String>().into_bytes();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            Some(value.data.to_vec())
        }
        Tag::T61String => Some(utf8(value.data.iter().copied().map(char::from).collect())),
        Tag::BmpString => {
            let units = value.data.chunks(2).map(|unit| match unit {
                [high, low] => u16::from_be_bytes([*high, *low]),
                _ => 0,
            });
            char::decode_utf16(units).collect::<Result<_, _>>().ok().map(utf8)
        }
        _ => None,
    }
}

/// Every byte that is not printable ASCII as its hexadecimal digits, the special ones after a backslash.
fn write_escaped(out: &mut String, text: &[u8]) {
    for (index, byte) in text.iter().copied().enumerate() {
        let special = match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => true,
            b'#' => index == 0,
            b' ' => index == 0 || index + 1 == text.len(),
            _ => false,
        };
        if special {
            out.push('\\');
        }
        if byte == b' ' || byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:02X}");
        }
    }
}

/// The value's DER in hexadecimal digits.
fn write_der(out: &mut String, value: &Any<'_>) {
    let tag = value.tag().0;
    let length = value.data.len();
    let _ = match length {
        0..0x80 => write!(out, "{tag:02X}{length:02X}"),
        0x80..0x100 => write!(out, "{tag:02X}81{length:02X}"),
        _ => write!(out, "{tag:02X}82{length:04X}"),
    };
    for byte in value.data {
        let _ = write!(out, "{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer;

    use super::*;

    /// An OID's content bytes, a tag and a value.
    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    /// The text of a name of these parts.
    fn name(parts: &[&[Attribute<'_>]]) -> String {
        let element = |tag: u8, content: Vec<u8>| {
            let mut out = vec![tag, u8::try_from(content.len()).unwrap()];
            out.extend(content);
            out
        };
        let attribute = |(oid, tag, value): &Attribute<'_>| {
            let parts = [element(6, oid.to_vec()), element(*tag, value.to_vec())];
            element(0x30, parts.concat())
        };
        let part = |part: &&[Attribute<'_>]| element(0x31, part.iter().flat_map(attribute).collect());
        let der = element(0x30, parts.iter().flat_map(part).collect());
        rfc2253(&X509Name::from_der(&der).unwrap().1)
    }

    const CN: &[u8] = &[0x55, 4, 3];
    const OU: &[u8] = &[0x55, 4, 11];
    const O: &[u8] = &[0x55, 4, 10];

    /// Measured on Envoy 1.40.0 (`Subject` of XFCC and `%DOWNSTREAM_PEER_SUBJECT%`).
    #[test]
    fn a_subject_is_written_as_by_envoy() {
        assert_eq!(name(&[]), "");
        assert_eq!(name(&[&[(CN, 12, b"none")]]), "CN=none");
        assert_eq!(name(&[&[(CN, 12, b"#a")]]), "CN=\\#a");
        let odd = " lead#;<>\\\\ ü ".as_bytes();
        let parts: &[&[Attribute<'_>]] = &[
            &[(O, 19, b"A, B \"C\"")],
            &[(CN, 12, b"y"), (OU, 12, b"x")],
            &[(CN, 12, odd)],
        ];
        assert_eq!(
            name(parts),
            r#"CN=\ lead#\;\<\>\\\\ \C3\BC\ ,OU=x+CN=y,O=A\, B \"C\""#
        );
    }

    /// By the documentation of `X509_NAME_print_ex`.
    #[test]
    fn other_kinds_of_text_and_what_is_none() {
        assert_eq!(name(&[&[(CN, 20, b"\xfc")]]), "CN=\\C3\\BC");
        assert_eq!(name(&[&[(CN, 30, &[0, b'a', 0x20, 0xac])]]), "CN=a\\E2\\82\\AC");
        assert_eq!(name(&[&[(CN, 12, b"\x01\x7f")]]), "CN=\\01\\7F");
        assert_eq!(name(&[&[(&[0x2a, 3], 12, b"ab")]]), "1.2.3=#0C026162");
        assert_eq!(name(&[&[(CN, 2, &[5])]]), "CN=#020105");
    }
}
