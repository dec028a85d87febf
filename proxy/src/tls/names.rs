//! Names of what a handshake agreed on, as Envoy (that is BoringSSL) spells them.

use rustls::{CipherSuite, CommonState, NamedGroup, ProtocolVersion};

use crate::telemetry::access_log::TlsSession;

/// X25519 with ML-KEM's share.
pub(super) const HYBRID: &str = "X25519MLKEM768";

/// What was agreed on; none before the handshake is far enough.
pub(super) fn agreed(connection: &CommonState) -> Option<TlsSession<'static>> {
    let version = match connection.protocol_version()? {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        other => other.as_str()?,
    };
    let cipher = cipher(connection.negotiated_cipher_suite()?.suite())?;
    Some(TlsSession { version, cipher })
}

/// The group of the key exchange.
pub(super) fn group(connection: &CommonState) -> Option<&'static str> {
    Some(match connection.negotiated_key_exchange_group()?.name() {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::secp521r1 => "P-521",
        NamedGroup::X25519MLKEM768 => HYBRID,
        other => other.as_str()?,
    })
}

/// The TLS 1.2 suites that are spoken here: OpenSSL's name, in which Envoy and Consul write them, and the
/// IANA name.
pub fn tls12_suites() -> Vec<(&'static str, &'static str)> {
    let provider = super::provider();
    let tls12 = provider
        .cipher_suites
        .iter()
        .filter(|suite| suite.tls13().is_none());
    let names = |suite: CipherSuite| Some((cipher(suite)?, suite.as_str()?));
    tls12.filter_map(|suite| names(suite.suite())).collect()
}

/// TLS 1.3's suites have their names of RFC 8446, those of TLS 1.2 OpenSSL's.
fn cipher(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        other => other.as_str()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_provider_has_a_name_of_envoys() {
        for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
            let name = cipher(suite.suite()).unwrap();
            assert!(!name.contains("WITH") && !name.starts_with("TLS13"), "{name}");
        }
    }
}
