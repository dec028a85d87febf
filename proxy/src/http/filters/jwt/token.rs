//! One token: a JSON Web Signature in its compact form (RFC 7515) around claims (RFC 7519).
//!
//! Parsing checks nothing that needs a key or a clock: [`super::jwks`] looks at the signature,
//! [`Token::check_time`] at the times.

use std::fmt;

use serde_json::{Map, Value};

use super::json::{base64url, object};
use super::status::JwtError;

/// Bytes of a token; the largest header section that Envoy can be configured to take is 8 MiB.
pub const MAX_BYTES: usize = 1 << 20;

/// How a token is signed (RFC 7518, section 3.1; RFC 8037). `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA PKCS #1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    Rs512,
    /// RSA PSS with SHA-256.
    Ps256,
    /// RSA PSS with SHA-384.
    Ps384,
    /// RSA PSS with SHA-512.
    Ps512,
    /// Ed25519.
    EdDsa,
}

/// A token whose signature nobody has looked at yet.
#[derive(Clone, PartialEq)]
pub struct Token {
    /// The JOSE header.
    pub header: Map<String, Value>,
    /// The claims.
    pub payload: Map<String, Value>,
    /// How it says that it is signed.
    pub algorithm: Algorithm,
    /// Which key it says that it is signed with; empty is none.
    pub kid: String,
    /// Who issued it; empty is nobody.
    pub iss: String,
    /// Whom it is about; empty is nobody.
    pub sub: String,
    /// Whom it is for.
    pub aud: Vec<String>,
    /// From when on, in seconds since 1970; zero is ever.
    pub nbf: u64,
    /// Until when, in seconds since 1970; zero is for ever.
    pub exp: u64,
    pub(super) signature: Vec<u8>,
    /// Header and payload as they came, with one dot between them.
    signed: String,
    /// Where the payload begins in it.
    payload_at: usize,
}

/// What it claims is nobody's business but the app's.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("algorithm", &self.algorithm)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Algorithm {
    /// By its name in a header or key.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

impl Token {
    /// Reads a token. Empty parts do not count, as with Envoy: `a..b.c` has three.
    ///
    /// # Errors
    /// The first thing that is wrong with it, in Envoy's order.
    pub fn parse(text: &str) -> Result<Self, JwtError> {
        if text.len() > MAX_BYTES {
            return Err(JwtError::BadFormat);
        }
        let mut parts = text.split('.').filter(|part| !part.is_empty());
        let (Some(header64), Some(payload64), Some(signature64), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::BadFormat);
        };
        let header = base64url(header64).ok_or(JwtError::HeaderBadBase64)?;
        let header = object(&header).ok_or(JwtError::HeaderBadJson)?;
        let Some(Value::String(alg)) = header.get("alg") else {
            return Err(JwtError::HeaderBadAlg);
        };
        let algorithm = Algorithm::parse(alg).ok_or(JwtError::HeaderUnsupportedAlg)?;
        let kid = string(&header, "kid", JwtError::HeaderBadKid)?;
        let payload = base64url(payload64).ok_or(JwtError::PayloadBadBase64)?;
        let payload = object(&payload).ok_or(JwtError::PayloadBadJson)?;
        let iss = string(&payload, "iss", JwtError::IssNotString)?;
        let sub = string(&payload, "sub", JwtError::SubNotString)?;
        // Nothing asks when it was issued, but it must be a time.
        seconds(&payload, "iat", JwtError::IatNotInteger, JwtError::IatOutOfRange)?;
        let nbf = seconds(&payload, "nbf", JwtError::NbfNotInteger, JwtError::NbfOutOfRange)?;
        let exp = seconds(&payload, "exp", JwtError::ExpNotInteger, JwtError::ExpOutOfRange)?;
        string(&payload, "jti", JwtError::JtiNotString)?;
        let aud = audiences(&payload)?;
        let signature = base64url(signature64).ok_or(JwtError::SignatureBadBase64)?;
        Ok(Self {
            header,
            payload,
            algorithm,
            kid,
            iss,
            sub,
            aud,
            nbf,
            exp,
            signature,
            signed: format!("{header64}.{payload64}"),
            payload_at: header64.len() + 1,
        })
    }

    /// The bytes that are signed.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed.as_bytes()
    }

    /// The payload as it came, base64url.
    pub(super) fn payload_base64url(&self) -> &str {
        self.signed.get(self.payload_at..).unwrap_or_default()
    }

    /// Whether it is valid at `now`, by a clock that may differ by `skew`; both in seconds.
    ///
    /// # Errors
    /// [`JwtError::NotYetValid`] and [`JwtError::Expired`].
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), JwtError> {
        if now.saturating_add(skew) < self.nbf {
            Err(JwtError::NotYetValid)
        } else if self.exp != 0 && now > self.exp.saturating_add(skew) {
            Err(JwtError::Expired)
        } else {
            Ok(())
        }
    }
}

/// A missing string is an empty one.
fn string(map: &Map<String, Value>, key: &str, wrong: JwtError) -> Result<String, JwtError> {
    match map.get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong),
    }
}

/// A missing number is zero; a fraction is cut off.
fn seconds(
    map: &Map<String, Value>,
    key: &str,
    wrong: JwtError,
    out_of_range: JwtError,
) -> Result<u64, JwtError> {
    let Some(value) = map.get(key) else {
        return Ok(0);
    };
    if let Some(whole) = value.as_u64() {
        return Ok(whole);
    }
    // Whole numbers that fit have been taken above, so what is left is a fraction, negative or too large.
    match value.as_f64() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the bounds are checked"
        )]
        Some(number) if (0.0..18_446_744_073_709_551_616.0).contains(&number) => Ok(number as u64),
        Some(_) => Err(out_of_range),
        None => Err(wrong),
    }
}

fn audiences(payload: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    match payload.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(several)) => several
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or(JwtError::AudNotString))
            .collect(),
        Some(_) => Err(JwtError::AudNotString),
    }
}
