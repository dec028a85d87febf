//! The mesh's certificate check: a chain to the trust bundle and a SPIFFE URI, no host name.
//!
//! SPIFFE X.509-SVID, section 5. Both ends demand exactly one URI in the peer's trust domain; the
//! connecting end also demands that it is one of those expected. Revocation is not checked: Consul
//! has none, its leaves are short-lived.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use crate::model::{SpiffeId, TrustBundle};

/// Verifies the certificates of one trust domain, as a client or as a server.
#[derive(Debug)]
pub struct SpiffeVerifier {
    provider: Arc<CryptoProvider>,
    trust: Arc<TrustBundle>,
    /// In the order of `trust.roots`.
    anchors: Vec<TrustAnchor<'static>>,
    /// Empty accepts every SPIFFE ID of the trust domain (the accepting end).
    expected: Vec<SpiffeId>,
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
    /// Another trust domain.
    #[error("{id} is not of the trust domain {trust_domain}")]
    TrustDomain {
        /// The peer's.
        id: SpiffeId,
        /// Ours.
        trust_domain: Arc<str>,
    },
    /// Not whom we dialled.
    #[error("the endpoint is {found}, expected {expected}")]
    Unexpected {
        /// The peer's.
        found: SpiffeId,
        /// Ours, comma-separated.
        expected: String,
    },
}

impl SpiffeVerifier {
    /// A verifier for `trust`; `expected` is empty on the accepting end.
    ///
    /// # Errors
    /// When no root of the bundle can be used.
    pub fn new(trust: Arc<TrustBundle>, expected: Vec<SpiffeId>) -> Result<Self, Error> {
        let anchors = trust
            .roots
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self {
            provider: super::provider(),
            trust,
            anchors,
            expected,
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
        // webpki does not look at an anchor's own validity; BoringSSL, and so Envoy, does.
        let anchor_is_valid = |path: &webpki::VerifiedPath<'_>| {
            let valid = self.anchors.iter().zip(&self.trust.facts).any(|(anchor, facts)| {
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
                &self.anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&anchor_is_valid),
            )
            .map_err(chain_error)?;
        let id = spiffe_id(&certificate).map_err(mismatch)?;
        if id.trust_domain() != &*self.trust.trust_domain {
            let trust_domain = Arc::clone(&self.trust.trust_domain);
            return Err(mismatch(SpiffeMismatch::TrustDomain { id, trust_domain }));
        }
        if !self.expected.is_empty() && !self.expected.contains(&id) {
            let names: Vec<&str> = self.expected.iter().map(SpiffeId::as_str).collect();
            return Err(mismatch(SpiffeMismatch::Unexpected {
                found: id,
                expected: names.join(", "),
            }));
        }
        Ok(())
    }
}

/// The SPIFFE ID of a certificate whose chain was verified.
///
/// # Errors
/// When it has not exactly one URI, or that is no SPIFFE ID.
pub fn peer_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, SpiffeMismatch> {
    EndEntityCert::try_from(leaf)
        .map_err(|_| SpiffeMismatch::Uris(0))
        .and_then(|c| spiffe_id(&c))
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

impl ServerCertVerifier for SpiffeVerifier {
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

impl ClientCertVerifier for SpiffeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every sidecar has one identity, so a hint would choose nothing and cost bytes.
        &[]
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
