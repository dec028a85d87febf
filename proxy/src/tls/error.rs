//! Why a handshake failed, in words that an operator can act on.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::verifier::SpiffeMismatch;

/// Why a TLS handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed or ended.
    #[error("the connection ended during the TLS handshake: {0}")]
    Socket(#[from] io::Error),
    /// The peer connected and left without a byte: a health check or a port scan.
    #[error("nothing was sent")]
    Silent,
    /// The peer broke TLS, refused us, or was refused by us.
    #[error("{}", explain(.0))]
    Tls(#[from] Error),
    /// It took too long.
    #[error("the TLS handshake took longer than {0:?}")]
    Timeout(std::time::Duration),
}

/// What was wrong with a peer's certificate, as Envoy's statistics tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyFailure {
    /// `fail_verify_no_cert`: there was none.
    NoCertificate,
    /// `fail_verify_error`: it does not chain to the trusted ones, is not valid now, or is none of theirs.
    Chain,
    /// `fail_verify_san`: it names nobody it may.
    Names,
}

impl HandshakeError {
    /// What was wrong with the peer's certificate, if that is why.
    pub fn verify_failure(&self) -> Option<VerifyFailure> {
        match self {
            Self::Tls(Error::NoCertificatesPresented) => Some(VerifyFailure::NoCertificate),
            Self::Tls(Error::InvalidCertificate(CertificateError::Other(other)))
                if matches!(other.0.downcast_ref(), Some(SpiffeMismatch::Unexpected { .. })) =>
            {
                Some(VerifyFailure::Names)
            }
            Self::Tls(Error::InvalidCertificate(_)) => Some(VerifyFailure::Chain),
            Self::Tls(_) | Self::Socket(_) | Self::Silent | Self::Timeout(_) => None,
        }
    }
}

/// Whether the peer's bytes were no TLS records at all: it would not know what to do with an alert.
pub(super) fn is_not_tls(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::MessageTooLarge)
    )
}

fn explain(error: &Error) -> String {
    match error {
        error if is_not_tls(error) => "not TLS: plaintext, or another protocol".to_owned(),
        Error::NoCertificatesPresented => "no client certificate was presented".to_owned(),
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => {
                "the certificate is of another authority: it chains to no root of the trust bundle".to_owned()
            }
            CertificateError::BadSignature => {
                "the certificate is of another authority: the root that it names did not sign it".to_owned()
            }
            CertificateError::Expired => "the certificate has expired".to_owned(),
            CertificateError::NotValidYet => "the certificate is not valid yet".to_owned(),
            CertificateError::Other(other) => other.to_string(),
            other => format!("the certificate is not acceptable: {other}"),
        },
        Error::PeerIncompatible(reason) => incompatible(reason),
        Error::AlertReceived(alert) => format!("the peer refused: {}", alert_name(*alert)),
        other => other.to_string(),
    }
}

fn incompatible(reason: &PeerIncompatible) -> String {
    match reason {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            "no common TLS version: the peer's are not among those allowed here".to_owned()
        }
        PeerIncompatible::NoCipherSuitesInCommon => "no common cipher suite".to_owned(),
        PeerIncompatible::NoKxGroupsInCommon => "no common key exchange group".to_owned(),
        PeerIncompatible::NoSignatureSchemesInCommon => "no common signature scheme".to_owned(),
        other => format!("the peer's TLS does not fit: {other:?}"),
    }
}

fn alert_name(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::BadCertificate | AlertDescription::UnknownCA => {
            " (it does not trust our certificate's authority)"
        }
        AlertDescription::CertificateRequired => " (it wants a client certificate)",
        AlertDescription::CertificateExpired => " (our certificate has expired by its clock)",
        AlertDescription::ProtocolVersion => " (no common TLS version)",
        _ => "",
    };
    format!("TLS alert {alert:?}{hint}")
}
