//! From the model's identity to a key that can sign.
//!
//! Holds no key of its own: the provider's parsed key lives as long as the TLS configuration.

use std::sync::Arc;

use rustls::sign::CertifiedKey;

use crate::model::Identity;

/// Why an identity cannot be presented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The provider does not know the key's type or its DER is broken.
    #[error("the private key is not of a type that can be used (ECDSA P-256, P-384, P-521, RSA, Ed25519)")]
    Key,
    /// The key signs, but not for this certificate.
    #[error("the private key does not belong to the leaf certificate")]
    Mismatch,
}

/// Parses the key and checks that it belongs to the leaf.
///
/// # Errors
/// [`IdentityError`]; such an identity must not be published.
pub fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = super::provider()
        .key_provider
        .load_private_key(identity.key.der().clone_key())
        .map_err(|_| IdentityError::Key)?;
    let certified = CertifiedKey::new(identity.chain.clone(), key);
    match certified.keys_match() {
        Ok(()) => Ok(Arc::new(certified)),
        Err(_) => Err(IdentityError::Mismatch),
    }
}
