//! The check of a peer's certificate: a chain to the trusted roots and the names asked for, no host name.
//!
//! SPIFFE X.509-SVID, section 5, where the trust is by SPIFFE bundles: exactly one URI, in a trust domain
//! that has a bundle. With plain roots any name will do that the matchers take. Revocation is not
//! checked: Consul has none, its leaves are short-lived.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::matcher::StringPattern;
use crate::model::secret::{SanKind, SanMatcher};
use crate::model::{Peer, Roots, SpiffeId, Trust, Validation};

/// Verifies certificates, as a client or as a server.
#[derive(Debug)]
pub struct PeerVerifier {
    provider: Arc<CryptoProvider>,
    validation: Validation,
    /// Of each of the trust's roots, in its order, the anchors in the order of the certificates.
    anchors: Vec<Vec<TrustAnchor<'static>>>,
    /// As a server: whether a client without a certificate is sent away.
    mandatory: bool,
}

/// What is wrong with a chain that is otherwise sound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeMismatch {
    /// Not exactly one URI.
    #[error("the certificate has {0} URI names where exactly one is expected")]
    Uris(usize),
    /// The URI is no SPIFFE ID.
    #[error("the certificate's URI is no SPIFFE ID: {0}")]
    Malformed(crate::model::spiffe::SpiffeError),
    /// A trust domain without a bundle.
    #[error("{id} is not of the trust domain {trust_domains}")]
    TrustDomain {
        /// The peer's.
        id: SpiffeId,
        /// Those that are trusted, comma-separated.
        trust_domains: String,
    },
    /// Not whom we dialled.
    #[error("the endpoint is {found}, expected {expected}")]
    Unexpected {
        /// The peer's names of the kinds asked for, comma-separated.
        found: String,
        /// The matchers, comma-separated.
        expected: String,
    },
}

impl PeerVerifier {
    /// A verifier; `mandatory` says whether a client must present a certificate.
    ///
    /// # Errors
    /// When a root cannot be used.
    pub fn new(validation: Validation, mandatory: bool) -> Result<Self, Error> {
        let anchors = validation
            .trust
            .roots()
            .map(|roots| anchors(roots))
            .collect::<Result<_, _>>()
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self {
            provider: super::provider(),
            validation,
            anchors,
            mandatory,
        })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(chain_error)?;
        let (anchors, roots) = match &self.validation.trust {
            Trust::Roots(roots) => (self.anchors.first(), Some(roots)),
            Trust::Spiffe(bundles) => {
                // A stranger's certificate is told as such, not by its names.
                let id = spiffe_id(&certificate);
                let domain = id.as_ref().ok().map(SpiffeId::trust_domain);
                let at = bundles.iter().position(|b| Some(&*b.trust_domain) == domain);
                let at = at.or((bundles.len() == 1).then_some(0));
                let chosen = at.and_then(|at| Some((self.anchors.get(at), Some(&bundles.get(at)?.roots))));
                match (chosen, id) {
                    (Some(chosen), _) => chosen,
                    (None, Err(error)) => return Err(mismatch(error)),
                    (None, Ok(id)) => return Err(mismatch(foreign(id, &self.validation))),
                }
            }
        };
        let (Some(anchors), Some(roots)) = (anchors, roots) else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        self.verify_chain(&certificate, intermediates, now, usage, anchors, roots)?;
        if let Trust::Spiffe(bundles) = &self.validation.trust {
            let id = spiffe_id(&certificate).map_err(mismatch)?;
            if !bundles.iter().any(|b| *b.trust_domain == *id.trust_domain()) {
                return Err(mismatch(foreign(id, &self.validation)));
            }
        }
        self.verify_names(leaf)
    }

    fn verify_chain(
        &self,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        anchors: &[TrustAnchor<'static>],
        roots: &Roots,
    ) -> Result<(), Error> {
        // webpki does not look at an anchor's own validity; BoringSSL, and so Envoy, does.
        let anchor_is_valid = |path: &webpki::VerifiedPath<'_>| {
            let valid = anchors.iter().zip(&roots.facts).any(|(anchor, facts)| {
                anchor == path.anchor() && unix(facts.not_before) <= now && now <= unix(facts.not_after)
            });
            if valid {
                Ok(())
            } else {
                Err(webpki::Error::UnknownIssuer)
            }
        };
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&anchor_is_valid),
            )
            .map(|_| ())
            .map_err(chain_error)
    }

    fn verify_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let wanted = &self.validation.names;
        if wanted.is_empty() {
            return Ok(());
        }
        let names = names(leaf).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if wanted
            .iter()
            .any(|matcher| names.iter().any(|name| matches(matcher, name)))
        {
            return Ok(());
        }
        let asked = |(kind, _): &&(SanKind, String)| wanted.iter().any(|matcher| matcher.kind == *kind);
        let found: Vec<&str> = names
            .iter()
            .filter(asked)
            .map(|(_, name)| name.as_str())
            .collect();
        let expected: Vec<&str> = wanted.iter().map(|m| pattern(&m.matcher.pattern)).collect();
        Err(mismatch(SpiffeMismatch::Unexpected {
            found: match found.as_slice() {
                [] => "without such a name".to_owned(),
                found => found.join(", "),
            },
            expected: expected.join(", "),
        }))
    }
}

fn anchors(roots: &Roots) -> Result<Vec<TrustAnchor<'static>>, webpki::Error> {
    let anchor = |root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
    roots.certificates.iter().map(anchor).collect()
}

fn foreign(id: SpiffeId, validation: &Validation) -> SpiffeMismatch {
    let bundles = match &validation.trust {
        Trust::Spiffe(bundles) => bundles.as_slice(),
        Trust::Roots(_) => &[],
    };
    let names: Vec<&str> = bundles.iter().map(|bundle| &*bundle.trust_domain).collect();
    SpiffeMismatch::TrustDomain {
        id,
        trust_domains: names.join(", "),
    }
}

fn pattern(pattern: &StringPattern) -> &str {
    match pattern {
        StringPattern::Exact(text)
        | StringPattern::Prefix(text)
        | StringPattern::Suffix(text)
        | StringPattern::Contains(text) => text,
        StringPattern::Regex(regex) => regex.as_str(),
    }
}

/// A wildcard stands in a certificate's DNS name, and for one label (RFC 6125, section 6.4.3).
fn matches(matcher: &SanMatcher, (kind, name): &(SanKind, String)) -> bool {
    if matcher.kind != *kind {
        return false;
    }
    if let (SanKind::Dns, Some(suffix), StringPattern::Exact(wanted)) =
        (kind, name.strip_prefix("*."), &matcher.matcher.pattern)
    {
        return wanted
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(suffix));
    }
    matcher.matcher.matches(name)
}

fn names(leaf: &CertificateDer<'_>) -> Option<Vec<(SanKind, String)>> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    let named = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((SanKind::Uri, (*uri).to_owned())),
        GeneralName::DNSName(name) => Some((SanKind::Dns, (*name).to_owned())),
        GeneralName::RFC822Name(name) => Some((SanKind::Email, (*name).to_owned())),
        GeneralName::IPAddress(bytes) => Some((SanKind::Ip, ip(bytes)?.to_string())),
        _ => None,
    };
    let all = names.map(|names| names.value.general_names.iter().filter_map(named).collect());
    Some(all.unwrap_or_default())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The names of a certificate whose chain was verified.
///
/// # Errors
/// When it is no X.509 certificate, which a verified one always is.
pub fn peer(leaf: &CertificateDer<'_>) -> Result<Peer, Error> {
    let broken = Error::InvalidCertificate(CertificateError::BadEncoding);
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return Err(broken);
    };
    let names = names(leaf).ok_or(broken)?;
    let of = |wanted| {
        let those = names.iter().filter(move |(kind, _)| *kind == wanted);
        those.map(|(_, name)| name.clone()).collect::<Vec<_>>()
    };
    let uris = of(SanKind::Uri);
    Ok(Peer {
        spiffe_id: match uris.as_slice() {
            [uri] => SpiffeId::parse(uri).ok(),
            _ => None,
        },
        uris,
        dns_names: of(SanKind::Dns),
        subject: super::subject::rfc2253(certificate.subject()),
    })
}

fn spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, SpiffeMismatch> {
    let uris: Vec<&str> = certificate.valid_uri_names().collect();
    let [uri] = uris.as_slice() else {
        return Err(SpiffeMismatch::Uris(uris.len()));
    };
    SpiffeId::parse(uri).map_err(SpiffeMismatch::Malformed)
}

fn unix(time: std::time::SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
}

fn mismatch(error: SpiffeMismatch) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn chain_error(error: webpki::Error) -> Error {
    Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every sidecar has one identity, so a hint would choose nothing and cost bytes.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
