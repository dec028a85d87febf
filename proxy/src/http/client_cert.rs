//! `x-forwarded-client-cert` (XFCC): what a request's next hop is told of the peer's certificate, as Envoy
//! 1.40 writes it.
//!
//! Written once a connection, put into each request. Whether the certificate is good was the handshake's
//! business.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

use super::forwarding::joined;
use crate::model::Peer;
use crate::model::http::{ForwardClientCert, ForwardClientCertMode};

/// `x-forwarded-client-cert`.
pub(super) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Characters in a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// What is known of a peer that presented a certificate, which was verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerCertificate<'a> {
    /// Its names.
    pub(super) peer: &'a Peer,
    /// What it presented, its own certificate first.
    pub(super) chain: &'a [CertificateDer<'static>],
    /// The URIs of the certificate that we presented.
    pub(super) own_uris: &'a [String],
}

/// What becomes of the header in the requests of one connection.
#[derive(Clone, Debug)]
pub(super) enum ClientCert {
    /// It is taken away.
    Remove,
    /// It stays.
    Keep,
    /// This is appended.
    Append(HeaderValue),
    /// It becomes this.
    Set(HeaderValue),
}

impl ClientCert {
    /// For a connection whose peer is `certificate`; none without TLS or where none was presented.
    pub(super) fn new(options: &ForwardClientCert, certificate: Option<PeerCertificate<'_>>) -> Self {
        use ForwardClientCertMode as Mode;
        let element = |certificate: PeerCertificate<'_>| {
            // Names in certificates are bytes: those that no header can hold are not passed on.
            HeaderValue::from_bytes(element(options, certificate).as_bytes()).ok()
        };
        match (options.mode, certificate) {
            (Mode::AlwaysForwardOnly, _) | (Mode::ForwardOnly, Some(_)) => Self::Keep,
            (Mode::Sanitize, _) | (_, None) => Self::Remove,
            (Mode::AppendForward, Some(certificate)) => {
                element(certificate).map_or(Self::Remove, Self::Append)
            }
            (Mode::SanitizeSet, Some(certificate)) => element(certificate).map_or(Self::Remove, Self::Set),
        }
    }

    /// Puts it into a request.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Keep => {}
            Self::Remove => drop(headers.remove(XFCC)),
            Self::Set(element) => drop(headers.insert(XFCC, element.clone())),
            Self::Append(element) => match joined(headers, &XFCC).filter(|came| !came.is_empty()) {
                None => drop(headers.insert(XFCC, element.clone())),
                Some(mut all) => {
                    all.push(b',');
                    all.extend_from_slice(element.as_bytes());
                    if let Ok(all) = HeaderValue::from_bytes(&all) {
                        headers.insert(XFCC, all);
                    }
                }
            },
        }
    }
}

/// One hop's element. In Envoy's order, and nothing in it is escaped but by its own form.
fn element(options: &ForwardClientCert, certificate: PeerCertificate<'_>) -> String {
    let PeerCertificate {
        peer,
        chain,
        own_uris,
    } = certificate;
    let set = options.set_current;
    let mut out = String::new();
    let mut pair = |key: &str, value: &str| {
        let separator = if out.is_empty() { "" } else { ";" };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}{key}={value}");
    };
    for uri in own_uris {
        pair("By", uri);
    }
    if let Some(leaf) = chain.first() {
        pair("Hash", &fingerprint(leaf));
        if set.cert {
            pair("Cert", &quoted_pem(&chain[..1]));
        }
        if set.chain {
            pair("Chain", &quoted_pem(chain));
        }
    }
    if set.subject {
        pair("Subject", &format!("\"{}\"", peer.subject));
    }
    if set.uri {
        for uri in &peer.uris {
            pair("URI", uri);
        }
        if peer.uris.is_empty() {
            pair("URI", "");
        }
    }
    if set.dns {
        for name in &peer.dns_names {
            pair("DNS", name);
        }
    }
    out
}

/// SHA-256 in lower-case hexadecimal digits.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let mut out = String::with_capacity(64);
    for byte in digest(&SHA256, certificate).as_ref() {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// URL-encoded PEM blocks in quotes.
fn quoted_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::from("\"");
    for certificate in certificates {
        out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        let base64 = STANDARD.encode(certificate);
        for (index, c) in base64.chars().enumerate() {
            match c {
                '+' => out.push_str("%2B"),
                '/' => out.push_str("%2F"),
                '=' => out.push_str("%3D"),
                c => out.push(c),
            }
            if (index + 1) % PEM_LINE == 0 || index + 1 == base64.len() {
                out.push_str("%0A");
            }
        }
        out.push_str("-----END%20CERTIFICATE-----%0A");
    }
    out.push('"');
    out
}

#[cfg(test)]
#[path = "client_cert_tests.rs"]
mod tests;
