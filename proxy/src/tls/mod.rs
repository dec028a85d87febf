//! Mutual TLS of the mesh: whom we trust, who we are, and the encrypted stream.
//!
//! Owns the provider's choice, the SPIFFE verification and [`TlsStream`]. Decides who a peer *is*;
//! whether it may connect is the RBAC filter's business.

pub mod client_hello;
pub mod config;
pub mod error;
pub mod identity;
mod names;
pub mod sessions;
pub mod stream;
mod subject;
pub mod verifier;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup};

pub use client_hello::ClientHello;
pub use config::{ClientTls, ConfigCache, ServerTls};
pub use error::{HandshakeError, VerifyFailure};
pub use names::tls12_suites;
pub use sessions::Sessions;
pub use stream::{Greeting, TlsStream};

/// One provider a process: aws-lc-rs, with AES-128 before AES-256 as Envoy and linkerd order them
/// (less work a byte, no weaker in practice), and the hybrid X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider
            .cipher_suites
            .sort_by_key(|suite| preference(suite.suite()));
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// A provider that begins without the hybrid key exchange: of a session that is resumed, whose secret has ML-KEM's
/// share already (RFC 8446 section 2.2 mixes it with the new exchange). Saves a tenth of such a connection. A server
/// that insists can ask for it (HelloRetryRequest).
fn for_resuming(provider: &CryptoProvider) -> Arc<CryptoProvider> {
    let mut provider = provider.clone();
    (provider.kx_groups).sort_by_key(|group| group.name() == NamedGroup::X25519MLKEM768);
    Arc::new(provider)
}

/// Has the provider gather its entropy, on a thread of its own. That takes 30 ms once a process, which
/// the first handshake would otherwise wait for.
pub fn warm_up() {
    // Without a thread the first handshake pays, as it would have.
    let _ = std::thread::Builder::new().name("entropy".to_owned()).spawn(|| {
        let _ = provider().secure_random.fill(&mut [0; 1]);
    });
}

fn preference(suite: CipherSuite) -> u8 {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
