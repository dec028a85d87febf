//! JSON Web Key Sets (RFC 7517), and the check of a signature against one.
//!
//! What Envoy takes: RSA, EC on P-256, P-384 and P-521, Ed25519, symmetric keys, and the map from `kid` to
//! certificate that Google's issuers publish. Keys that cannot be used are skipped. As by Envoy, `use` and
//! `key_ops` are not looked at. Unlike Envoy, a key is used with its own algorithms only (RFC 7518, section
//! 3.1): Envoy also takes an EC key for `RS256`, or P-256 for `ES384`.

use std::fmt;

use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    EcdsaVerificationAlgorithm, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use aws_lc_rs::{constant_time, hmac};
use serde_json::{Map, Value};
use x509_parser::pem::parse_x509_pem;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

use super::json::{base64url, object};
use super::status::JwtError;
use super::token::{Algorithm, Token};

/// Bytes of a key set, which are some thousand keys.
pub const MAX_BYTES: usize = 1 << 20;
/// A token without `kid` is tried with each key, so there are not too many of them.
const MAX_KEYS: usize = 256;
/// Bits of an RSA modulus. What is shorter has been factored.
const RSA_BITS: std::ops::RangeInclusive<usize> = 1024..=8192;
/// Bytes of an Ed25519 public key and of its signatures.
const ED25519_KEY: usize = 32;
const ED25519_SIGNATURE: usize = 64;

const CERTIFICATE_BEGINS: &str = "-----BEGIN CERTIFICATE-----\n";
const CERTIFICATE_ENDS: &str = "\n-----END CERTIFICATE-----\n";

/// Keys, in the order of the set.
#[derive(Debug)]
pub struct Jwks(Vec<Key>);

/// Why a set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// It is no JSON object, or larger than any set may be.
    #[error("Jwks is an invalid JSON")]
    Parse,
    /// There is no `keys`.
    #[error("Jwks does not have [keys] field")]
    NoKeys,
    /// `keys` is no list.
    #[error("[keys] in Jwks is not an array")]
    BadKeys,
    /// None of the keys can be used.
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys,
    /// One of the certificates cannot be used.
    #[error("X509 parse pubkey fails")]
    X509,
}

#[derive(Debug)]
struct Key {
    /// Empty is any.
    kid: String,
    /// Empty is any.
    alg: String,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Ec(Curve, Box<ParsedPublicKey>),
    Ed25519([u8; ED25519_KEY]),
    Oct(Zeroizing<Vec<u8>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

/// Without the keys, of which one kind is secret.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "RSA",
            Self::Ec(..) => "EC",
            Self::Ed25519(_) => "OKP",
            Self::Oct(_) => "oct",
        })
    }
}

impl Jwks {
    /// Reads a set. Of more than 256 keys the first count.
    ///
    /// # Errors
    /// When there is no key that can be used.
    pub fn parse(text: &[u8]) -> Result<Self, JwksError> {
        if text.len() > MAX_BYTES {
            return Err(JwksError::Parse);
        }
        let set = object(text).ok_or(JwksError::Parse)?;
        let keys = match set.get("keys") {
            None => return certificates(&set).map(Self),
            Some(Value::Array(keys)) => keys,
            Some(_) => return Err(JwksError::BadKeys),
        };
        let usable = keys.iter().filter_map(Value::as_object).filter_map(Key::new);
        let keys: Vec<Key> = usable.take(MAX_KEYS).collect();
        if keys.is_empty() {
            Err(JwksError::NoValidKeys)
        } else {
            Ok(Self(keys))
        }
    }

    /// How many keys can be used; at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether one of the keys made the token's signature. Of keys and tokens that have a `kid` or `alg`,
    /// those go together that have the same.
    ///
    /// # Errors
    /// [`JwtError::NoMatchingKey`], [`JwtError::VerificationFails`] or [`JwtError::Ed25519WrongLength`].
    pub fn verify(&self, token: &Token) -> Result<(), JwtError> {
        let alg = token.header.get("alg").and_then(Value::as_str);
        let mut failed = JwtError::NoMatchingKey;
        for key in &self.0 {
            let other_kid = !token.kid.is_empty() && !key.kid.is_empty() && key.kid != token.kid;
            if other_kid || (!key.alg.is_empty() && Some(key.alg.as_str()) != alg) {
                continue;
            }
            // The other keys are not tried then, whatever the token's algorithm is, as by Envoy.
            if matches!(key.material, Material::Ed25519(_)) && token.signature.len() != ED25519_SIGNATURE {
                return Err(JwtError::Ed25519WrongLength);
            }
            if key.material.verify(token) {
                return Ok(());
            }
            failed = JwtError::VerificationFails;
        }
        Err(failed)
    }
}

impl Key {
    /// `None` if it cannot be used.
    fn new(jwk: &Map<String, Value>) -> Option<Self> {
        // Anything but a string is as good as none.
        let text = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
        let alg = text("alg");
        let material = match text("kty") {
            "RSA" if alg.is_empty() || alg.starts_with("RS") || alg.starts_with("PS") => rsa(jwk)?,
            "EC" => ec(jwk, alg)?,
            "OKP" if ["", "EdDSA"].contains(&alg) && text("crv") == "Ed25519" => {
                Material::Ed25519(bytes(jwk, "x")?.try_into().ok()?)
            }
            "oct" if ["", "HS256", "HS384", "HS512"].contains(&alg) => {
                let secret = Zeroizing::new(bytes(jwk, "k")?);
                (!secret.is_empty()).then_some(Material::Oct(secret))?
            }
            _ => return None,
        };
        Some(Self {
            kid: text("kid").to_owned(),
            alg: alg.to_owned(),
            material,
        })
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    base64url(jwk.get(name)?.as_str()?)
}

/// A number's bytes without zeros before it.
fn number(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    bytes(jwk, name).map(without_zeros)
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

/// Of a number that does not begin with a zero byte.
fn bits(number: &[u8]) -> usize {
    let zeros = number.first().map_or(0, |first| first.leading_zeros() as usize);
    number.len() * 8 - zeros
}

fn rsa(jwk: &Map<String, Value>) -> Option<Material> {
    rsa_of(number(jwk, "n")?, number(jwk, "e")?)
}

fn rsa_of(n: Vec<u8>, e: Vec<u8>) -> Option<Material> {
    let odd = n.last()? % 2 == 1;
    // Envoy takes these two exponents only.
    let known = [&[3][..], &[1, 0, 1]].contains(&e.as_slice());
    (RSA_BITS.contains(&bits(&n)) && odd && known).then(|| Material::Rsa(RsaPublicKeyComponents { n, e }))
}

fn ec(jwk: &Map<String, Value>, alg: &str) -> Option<Material> {
    let crv = match jwk.get("crv") {
        None => "",
        Some(crv) => crv.as_str()?,
    };
    let curve = match (alg, crv) {
        ("" | "ES256", "P-256") | ("ES256" | "", "") => Curve::P256,
        ("" | "ES384", "P-384") | ("ES384", "") => Curve::P384,
        ("" | "ES512", "P-521") | ("ES512", "") => Curve::P521,
        _ => return None,
    };
    // The uncompressed form of a point (SEC 1, section 2.3.3).
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = number(jwk, name)?;
        point.resize(point.len() + curve.bytes().checked_sub(coordinate.len())?, 0);
        point.extend(coordinate);
    }
    let parsed = ParsedPublicKey::new(curve.algorithm(), point).ok()?;
    Some(Material::Ec(curve, Box::new(parsed)))
}

/// Keys of a map from `kid` to certificate, as Google's issuers publish it.
fn certificates(set: &Map<String, Value>) -> Result<Vec<Key>, JwksError> {
    let certificate = |(kid, value): (&String, &Value)| {
        let pem = value.as_str()?;
        let whole = pem.starts_with(CERTIFICATE_BEGINS) && pem.ends_with(CERTIFICATE_ENDS);
        (whole && !kid.is_empty()).then(|| (kid.clone(), pem.to_owned()))
    };
    let pems: Option<Vec<_>> = set.iter().map(certificate).collect();
    let pems = pems.filter(|pems| !pems.is_empty()).ok_or(JwksError::NoKeys)?;
    let key = |(kid, pem): (String, String)| {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let PublicKey::RSA(key) = certificate.public_key().parsed().ok()? else {
            return None;
        };
        let material = rsa_of(
            without_zeros(key.modulus.to_vec()),
            without_zeros(key.exponent.to_vec()),
        )?;
        Some(Key {
            kid,
            alg: String::new(),
            material,
        })
    };
    pems.into_iter()
        .take(MAX_KEYS)
        .map(key)
        .collect::<Option<_>>()
        .ok_or(JwksError::X509)
}

impl Curve {
    /// Of a coordinate.
    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn algorithm(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }

    fn signs(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }
}

impl Material {
    fn verify(&self, token: &Token) -> bool {
        let (message, signature) = (token.signed(), token.signature.as_slice());
        match self {
            Self::Rsa(key) => rsa_parameters(token.algorithm, bits(&key.n))
                .is_some_and(|parameters| key.verify(parameters, message, signature).is_ok()),
            Self::Ec(curve, key) => {
                curve.signs() == token.algorithm && key.verify_sig(message, signature).is_ok()
            }
            Self::Ed25519(key) => {
                token.algorithm == Algorithm::EdDsa
                    && UnparsedPublicKey::new(&ED25519, key)
                        .verify(message, signature)
                        .is_ok()
            }
            Self::Oct(secret) => hmac_algorithm(token.algorithm).is_some_and(|algorithm| {
                let tag = hmac::sign(&hmac::Key::new(algorithm, secret), message);
                constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok()
            }),
        }
    }
}

/// How a modulus of so many bits verifies. Those under 2048 bits do it with the two hashes that the library
/// still has for them.
fn rsa_parameters(algorithm: Algorithm, modulus: usize) -> Option<&'static RsaParameters> {
    let short = modulus < 2048;
    Some(match algorithm {
        Algorithm::Rs256 if short => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        Algorithm::Rs512 if short => &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn hmac_algorithm(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        Algorithm::Hs256 => hmac::HMAC_SHA256,
        Algorithm::Hs384 => hmac::HMAC_SHA384,
        Algorithm::Hs512 => hmac::HMAC_SHA512,
        _ => return None,
    })
}
