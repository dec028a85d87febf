//! Certificates and keys as the model carries them: who we are, whom we trust, whom we expect.
//!
//! Owns DER bytes. A key's bytes are zeroed when the last holder drops them and are never printed;
//! whether a key fits its certificate is for `tls::identity` to check before a snapshot is published.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::matcher::StringMatcher;
use super::spiffe::SpiffeId;

/// A leaf certificate with its chain and key.
#[derive(Clone)]
pub struct Identity {
    /// The leaf first, then intermediates; never empty.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: Arc<PrivateKey>,
    /// The leaf's facts.
    pub leaf: CertificateFacts,
    /// The leaf's one URI; none for a certificate that is not of the mesh, such as that of the Prometheus
    /// listener.
    pub spiffe_id: Option<SpiffeId>,
    /// Where it was read from; none when it came inline.
    pub path: Option<Arc<str>>,
}

/// Authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Several during a rotation; never empty.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The facts of `certificates`, in the same order.
    pub facts: Vec<CertificateFacts>,
    /// Where they were read from; none when they came inline.
    pub path: Option<Arc<str>>,
}

/// The authorities of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// The host part of every SPIFFE ID that the authorities may vouch for.
    pub trust_domain: Arc<str>,
    /// They.
    pub roots: Arc<Roots>,
}

/// Envoy's `CertificateValidationContext`: which certificates of a peer are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    /// Whom they must chain to.
    pub trust: Trust,
    /// One of these must match one of its names; empty accepts any name.
    pub names: Vec<SanMatcher>,
}

/// Whom a certificate must chain to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// `trusted_ca`: one of these, whatever the certificate's names.
    Roots(Arc<Roots>),
    /// `SPIFFECertValidatorConfig`: the certificate has exactly one URI, a SPIFFE ID, and chains to the
    /// bundle of its trust domain. Never empty, each trust domain once.
    Spiffe(Vec<Arc<TrustBundle>>),
}

/// Envoy's `SubjectAltNameMatcher`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SanMatcher {
    /// Which names are looked at.
    pub kind: SanKind,
    /// What one of them must be.
    pub matcher: StringMatcher,
}

/// Kinds of subject alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// `uniformResourceIdentifier`.
    Uri,
    /// `dNSName`; a wildcard in the certificate covers one label of an exact matcher.
    Dns,
    /// `rfc822Name`.
    Email,
    /// `iPAddress`, in text form.
    Ip,
}

/// What `/certs` and the log tell of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Lower-case hexadecimal without separators, as Envoy's `/certs` has it.
    pub serial: String,
    /// `notBefore`.
    pub not_before: SystemTime,
    /// `notAfter`: from here on it is expired.
    pub not_after: SystemTime,
    /// URI subject alternative names, in order.
    pub uris: Vec<String>,
    /// DNS subject alternative names, in order.
    pub dns_names: Vec<String>,
}

/// A private key in PKCS#8, SEC 1 or PKCS#1 form; zeroed when dropped.
pub struct PrivateKey {
    der: Zeroizing<Vec<u8>>,
    kind: KeyKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Pkcs1,
    Pkcs8,
    Sec1,
}

/// Why PEM text is no identity or trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No `CERTIFICATE` block, or one that is not base64.
    #[error("no PEM certificate in it")]
    NoCertificate,
    /// The DER inside a block is no X.509 certificate.
    #[error("certificate {0} of it is not X.509")]
    BadCertificate(usize),
    /// No key block, or one that is not base64.
    #[error("no PEM private key in it")]
    NoKey,
    /// Consul's leaves have exactly one URI.
    #[error("the leaf has {0} URI names where exactly one is expected")]
    Uris(usize),
    /// The URI is no SPIFFE ID.
    #[error("the leaf's URI {uri:?} is no SPIFFE ID: {source}")]
    Spiffe {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        source: super::spiffe::SpiffeError,
    },
    /// A trust domain that no SPIFFE ID could have.
    #[error("the trust domain {0:?} is not valid")]
    TrustDomain(String),
}

impl Identity {
    /// From a PEM chain (leaf first) and a PEM key, whatever the leaf's names.
    ///
    /// # Errors
    /// Says which part is missing or malformed; never quotes the key.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, SecretError> {
        let (chain, facts) = certificates(chain_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| SecretError::NoKey)?;
        let key = Zeroizing::new(key);
        let leaf = facts.into_iter().next().ok_or(SecretError::NoCertificate)?;
        let spiffe_id = match leaf.uris.as_slice() {
            [uri] => SpiffeId::parse(uri).ok(),
            _ => None,
        };
        Ok(Self {
            chain,
            key: Arc::new(PrivateKey::from(&*key)),
            leaf,
            spiffe_id,
            path: None,
        })
    }

    /// From a PEM chain and key of the mesh.
    ///
    /// # Errors
    /// As [`Self::from_pem`], and when the leaf has not exactly one URI that is a SPIFFE ID.
    pub fn from_mesh_pem(chain_pem: &str, key_pem: &str) -> Result<(Self, SpiffeId), SecretError> {
        let identity = Self::from_pem(chain_pem, key_pem)?;
        let [uri] = identity.leaf.uris.as_slice() else {
            return Err(SecretError::Uris(identity.leaf.uris.len()));
        };
        let spiffe_id = SpiffeId::parse(uri).map_err(|source| SecretError::Spiffe {
            uri: uri.clone(),
            source,
        })?;
        Ok((identity, spiffe_id))
    }
}

impl Identity {
    /// The trust domain of the leaf's SPIFFE ID.
    pub fn trust_domain(&self) -> Option<&str> {
        self.spiffe_id.as_ref().map(SpiffeId::trust_domain)
    }
}

impl Roots {
    /// From PEM texts.
    ///
    /// # Errors
    /// Says which root is malformed; no root at all is an error, since it would trust nobody.
    pub fn from_pem<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, SecretError> {
        let mut roots = Self {
            certificates: Vec::new(),
            facts: Vec::new(),
            path: None,
        };
        for pem in texts {
            let (certificates, facts) = certificates(pem)?;
            roots.certificates.extend(certificates);
            roots.facts.extend(facts);
        }
        if roots.certificates.is_empty() {
            Err(SecretError::NoCertificate)
        } else {
            Ok(roots)
        }
    }
}

impl TrustBundle {
    /// From the PEM texts of the roots.
    ///
    /// # Errors
    /// Says which root is malformed; an empty bundle is an error, since it would trust nobody.
    pub fn from_pem<'a>(
        trust_domain: &str,
        roots: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SecretError> {
        let whole = |id: SpiffeId| id.trust_domain() == trust_domain;
        if !SpiffeId::parse(&format!("spiffe://{trust_domain}")).is_ok_and(whole) {
            return Err(SecretError::TrustDomain(trust_domain.to_owned()));
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            roots: Arc::new(Roots::from_pem(roots)?),
        })
    }
}

impl Validation {
    /// For the mesh's own peers: SPIFFE IDs of one trust domain, of which `expected` (any, when empty).
    pub fn mesh(bundle: &Arc<TrustBundle>, expected: &[SpiffeId]) -> Self {
        let uri = |id: &SpiffeId| SanMatcher {
            kind: SanKind::Uri,
            matcher: StringMatcher::exact(id.as_str()),
        };
        Self {
            trust: Trust::Spiffe(vec![Arc::clone(bundle)]),
            names: expected.iter().map(uri).collect(),
        }
    }
}

impl Trust {
    /// All authorities of it.
    pub fn roots(&self) -> impl Iterator<Item = &Arc<Roots>> {
        let (one, several) = match self {
            Self::Roots(roots) => (Some(roots), &[][..]),
            Self::Spiffe(bundles) => (None, bundles.as_slice()),
        };
        one.into_iter().chain(several.iter().map(|bundle| &bundle.roots))
    }
}

impl CertificateFacts {
    fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let time = |seconds: i64| {
            let after_epoch = u64::try_from(seconds).unwrap_or(0);
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(after_epoch)
        };
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        let names = certificate.subject_alternative_name().ok()?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                _ => {}
            }
        }
        Some(Self {
            serial: serial(certificate.raw_serial()),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            uris,
            dns_names,
        })
    }
}

/// Without the zero that DER puts before a first byte that would else read as a sign: as Envoy and
/// Consul write it.
fn serial(der: &[u8]) -> String {
    let bytes = match der {
        [0, rest @ ..] if !rest.is_empty() => rest,
        bytes => bytes,
    };
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn certificates(pem: &str) -> Result<(Vec<CertificateDer<'static>>, Vec<CertificateFacts>), SecretError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| SecretError::NoCertificate)?;
    if chain.is_empty() {
        return Err(SecretError::NoCertificate);
    }
    let facts = chain
        .iter()
        .enumerate()
        .map(|(i, der)| CertificateFacts::parse(der).ok_or(SecretError::BadCertificate(i + 1)))
        .collect::<Result<_, _>>()?;
    Ok((chain, facts))
}

impl PrivateKey {
    /// A borrowed view, for the TLS provider to parse.
    pub fn der(&self) -> PrivateKeyDer<'_> {
        match self.kind {
            KeyKind::Pkcs1 => PrivateKeyDer::Pkcs1(self.der.as_slice().into()),
            KeyKind::Pkcs8 => PrivateKeyDer::Pkcs8(self.der.as_slice().into()),
            KeyKind::Sec1 => PrivateKeyDer::Sec1(self.der.as_slice().into()),
        }
    }
}

impl From<&PrivateKeyDer<'_>> for PrivateKey {
    fn from(key: &PrivateKeyDer<'_>) -> Self {
        let kind = match key {
            PrivateKeyDer::Pkcs1(_) => KeyKind::Pkcs1,
            PrivateKeyDer::Sec1(_) => KeyKind::Sec1,
            _ => KeyKind::Pkcs8,
        };
        Self {
            der: Zeroizing::new(key.secret_der().to_vec()),
            kind,
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && *self.der == *other.der
    }
}

impl Eq for PrivateKey {}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id.as_ref().map(SpiffeId::as_str))
            .field("serial", &self.leaf.serial)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_domain_is_what_an_id_can_have() {
        for trust_domain in ["", "td/x", "td/", "TD", "td/ns/n/dc/d/svc/s"] {
            let refused = TrustBundle::from_pem(trust_domain, []);
            assert_eq!(refused, Err(SecretError::TrustDomain(trust_domain.to_owned())));
        }
        // The domain is sound; what is missing is a root.
        assert_eq!(TrustBundle::from_pem("td", []), Err(SecretError::NoCertificate));
    }

    #[test]
    fn a_serial_is_written_without_its_sign() {
        for (der, text) in [
            (&[7][..], "07"),
            (&[0], "00"),
            (&[0, 0x80], "80"),
            (&[1, 0], "0100"),
        ] {
            assert_eq!(serial(der), text);
        }
    }
}
