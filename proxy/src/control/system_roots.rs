//! The authorities that the system trusts: for a server outside the mesh that is given none of its own.
//!
//! Envoy takes whoever answers there. Here its certificate is to chain to one of these and to have the name that
//! was dialled. Knows where they lie; reads nothing.

use std::net::IpAddr;

use crate::model::matcher::StringMatcher;
use crate::model::secret::{SanKind, SanMatcher};

/// Where distributions keep theirs, as one file of PEM; the first that is there counts.
pub(super) const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What to do where there is none.
pub(super) const NOT_FOUND: &str =
    "has no authority to verify it by, and the system has no bundle of them either: give one";

/// The name that a certificate of `host` must have.
pub(super) fn name(host: &str) -> SanMatcher {
    SanMatcher {
        kind: match host.parse::<IpAddr>() {
            Ok(_) => SanKind::Ip,
            Err(_) => SanKind::Dns,
        },
        matcher: StringMatcher::exact(host),
    }
}
