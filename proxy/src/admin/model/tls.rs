//! TLS contexts, as Envoy's: with certificates, without keys.

use std::sync::Arc;

use serde_json::{Value, json};

use super::matcher::string;
use super::{extension, list, message, type_url};
use crate::model::listener::{ClientCertificate, TlsParams, TlsVersion};
use crate::model::secret::SanKind;
use crate::model::{DownstreamTls, Identity, Roots, Trust, UpstreamTls, Validation};

const PACKAGE: &str = "envoy.extensions.transport_sockets.tls.v3";

/// What stands where Envoy has a secret.
pub(in crate::admin) const REDACTED: &str = "[redacted]";

pub(super) fn downstream(tls: &DownstreamTls) -> Value {
    let (validation, required) = match &tls.client {
        ClientCertificate::None => (None, Value::Null),
        ClientCertificate::Optional(validation) => (Some(validation), json!(false)),
        ClientCertificate::Required(validation) => (Some(validation), json!(true)),
    };
    let context = message([
        (
            "common_tls_context",
            common(&tls.params, Some(&tls.identity), validation, &tls.alpn),
        ),
        ("require_client_certificate", required),
    ]);
    extension("tls", &format!("{PACKAGE}.DownstreamTlsContext"), context)
}

pub(super) fn upstream(tls: &UpstreamTls) -> Value {
    let context = message([
        (
            "common_tls_context",
            common(
                &tls.params,
                tls.identity.as_deref(),
                Some(&tls.validation),
                &tls.alpn,
            ),
        ),
        ("sni", json!(tls.sni.as_deref())),
    ]);
    extension("tls", &format!("{PACKAGE}.UpstreamTlsContext"), context)
}

fn common(
    params: &TlsParams,
    identity: Option<&Identity>,
    validation: Option<&Validation>,
    alpn: &[Arc<str>],
) -> Value {
    let version = |version| match version {
        TlsVersion::V1_2 => "TLSv1_2",
        TlsVersion::V1_3 => "TLSv1_3",
    };
    let suites = params.cipher_suites.iter().map(|suite| json!(suite)).collect();
    message([
        (
            "tls_params",
            message([
                ("tls_minimum_protocol_version", json!(version(params.min))),
                ("tls_maximum_protocol_version", json!(version(params.max))),
                ("cipher_suites", list(suites)),
            ]),
        ),
        (
            "tls_certificates",
            list(identity.iter().map(|identity| certificate(identity)).collect()),
        ),
        (
            "validation_context",
            validation.map_or(Value::Null, self::validation),
        ),
        (
            "alpn_protocols",
            list(alpn.iter().map(|name| json!(&**name)).collect()),
        ),
    ])
}

fn certificate(identity: &Identity) -> Value {
    let chain: String = identity.chain.iter().map(|der| pem(der)).collect();
    json!({
        "certificate_chain": source(identity.path.as_deref(), chain),
        "private_key": { "inline_string": REDACTED },
    })
}

fn source(path: Option<&str>, text: String) -> Value {
    match path {
        Some(path) => json!({ "filename": path }),
        None => json!({ "inline_string": text }),
    }
}

fn roots(roots: &Roots) -> Value {
    let text = roots.certificates.iter().map(|der| pem(der)).collect();
    source(roots.path.as_deref(), text)
}

fn validation(validation: &Validation) -> Value {
    let kind = |kind| match kind {
        SanKind::Uri => "URI",
        SanKind::Dns => "DNS",
        SanKind::Email => "EMAIL",
        SanKind::Ip => "IP_ADDRESS",
    };
    let names = validation.names.iter();
    let names = names.map(|name| json!({ "san_type": kind(name.kind), "matcher": string(&name.matcher) }));
    let (trusted_ca, custom) = match &validation.trust {
        Trust::Roots(trusted) => (roots(trusted), Value::Null),
        Trust::Spiffe(bundles) => {
            let domains: Vec<Value> = bundles
                .iter()
                .map(|bundle| json!({ "name": &*bundle.trust_domain, "trust_bundle": roots(&bundle.roots) }))
                .collect();
            let config = json!({
                "@type": type_url(&format!("{PACKAGE}.SPIFFECertValidatorConfig")),
                "trust_domains": domains,
            });
            (
                Value::Null,
                json!({ "name": "envoy.tls.cert_validator.spiffe", "typed_config": config }),
            )
        }
    };
    message([
        ("trusted_ca", trusted_ca),
        ("match_typed_subject_alt_names", list(names.collect())),
        ("custom_validator_config", custom),
    ])
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are 64 characters.
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three
                .iter()
                .chain(&[0, 0])
                .take(3)
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
                let index = (bits >> shift & 63) as usize;
                text.push(if place <= three.len() {
                    char::from(ALPHABET[index])
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    #[test]
    fn pem_is_read_back() {
        for length in [0_u8, 1, 2, 3, 47, 48, 49, 200] {
            let der: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let text = pem(&der);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            assert_eq!(
                *CertificateDer::from_pem_slice(text.as_bytes()).unwrap(),
                *der,
                "{text}"
            );
        }
    }
}
