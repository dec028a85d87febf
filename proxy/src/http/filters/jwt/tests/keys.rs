//! Keys of every kind, made here: what they sign is taken, and nothing else.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::http::filters::jwt::JwtError;
use crate::http::filters::jwt::jwks::{Jwks, JwksError, MAX_BYTES};
use crate::http::filters::jwt::token::Token;

pub(super) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key of its owner.
pub(super) enum Private {
    Rsa(RsaKeyPair),
    Ec(&'static str, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Oct(Vec<u8>),
}

impl Private {
    pub(super) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(super) fn ec(crv: &'static str, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(crv, EcdsaKeyPair::generate(algorithm).unwrap())
    }

    pub(super) fn p256() -> Self {
        Self::ec("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    /// As a set shows it.
    pub(super) fn jwk(&self) -> Value {
        match self {
            Self::Rsa(pair) => {
                // A sequence of two integers: 2048 bits, with a zero before them, and 65537.
                let der = pair.public_key().as_ref();
                json!({ "kty": "RSA", "n": base64url(&der[9..265]), "e": "AQAB" })
            }
            Self::Ec(crv, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "crv": crv, "x": base64url(x), "y": base64url(y) })
            }
            Self::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref()) })
            }
            Self::Oct(secret) => json!({ "kty": "oct", "k": base64url(secret) }),
        }
    }

    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match alg {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(_, pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Oct(secret) => {
                let algorithm = match alg {
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::sign(&hmac::Key::new(algorithm, secret), message)
                    .as_ref()
                    .to_vec()
            }
        }
    }

    /// A token with this header and payload; `alg` is said by the header.
    pub(super) fn token(&self, header: &Value, payload: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64url(header.to_string()),
            base64url(payload.to_string())
        );
        let alg = header["alg"].as_str().unwrap_or_default();
        let signature = self.sign(alg, signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }
}

/// A set of these keys.
pub(super) fn set(keys: impl IntoIterator<Item = Value>) -> String {
    json!({ "keys": keys.into_iter().collect::<Vec<_>>() }).to_string()
}

fn verify(set: &str, token: &str) -> Result<(), JwtError> {
    Jwks::parse(set.as_bytes()).unwrap().verify(&Token::parse(token)?)
}

/// One of each kind, with what it signs.
fn all() -> Vec<(Private, &'static [&'static str])> {
    vec![
        (
            Private::rsa(),
            &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
        ),
        (Private::p256(), &["ES256"]),
        (Private::ec("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING), &["ES384"]),
        (Private::ec("P-521", &ECDSA_P521_SHA512_FIXED_SIGNING), &["ES512"]),
        (Private::Ed25519(Ed25519KeyPair::generate().unwrap()), &["EdDSA"]),
        (Private::Oct(vec![7; 64]), &["HS256", "HS384", "HS512"]),
    ]
}

#[test]
fn every_algorithm() {
    let algorithms = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256",
        "HS384", "HS512",
    ];
    let payload = json!({ "sub": "alice" });
    for (private, own) in all() {
        let set = set([private.jwk()]);
        for alg in algorithms {
            let token = private.token(&json!({ "alg": alg }), &payload);
            let expected = if own.contains(&alg) {
                Ok(())
            } else {
                Err(JwtError::VerificationFails)
            };
            assert_eq!(
                verify(&set, &token),
                expected,
                "{alg} with {}",
                private.jwk()["kty"]
            );
        }
    }
}

#[test]
fn not_a_bit_may_differ() {
    for (private, own) in all() {
        let set = set([private.jwk()]);
        let token = private.token(&json!({ "alg": own[0] }), &json!({ "sub": "alice" }));
        let parts: Vec<&str> = token.split('.').collect();
        let mut signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        let middle = signature.len() / 2;
        signature[middle] ^= 1;
        let other = base64url(json!({ "sub": "root" }).to_string());
        for forged in [
            format!("{}.{}.{}", parts[0], parts[1], base64url(&signature)),
            format!("{}.{other}.{}", parts[0], parts[2]),
        ] {
            let failed = Err(JwtError::VerificationFails);
            assert_eq!(verify(&set, &forged), failed, "{}", own[0]);
        }
    }
}

#[test]
fn a_key_is_chosen_by_kid_and_alg() {
    let (one, two) = (Private::p256(), Private::p256());
    let mut named = [one.jwk(), two.jwk()];
    named[0]["kid"] = "one".into();
    named[1]["kid"] = "two".into();
    named[1]["alg"] = "ES256".into();
    let set = set(named);
    let token = |private: &Private, header: Value| private.token(&header, &json!({}));
    assert_eq!(verify(&set, &token(&two, json!({ "alg": "ES256" }))), Ok(()));
    assert_eq!(
        verify(&set, &token(&two, json!({ "alg": "ES256", "kid": "two" }))),
        Ok(())
    );
    assert_eq!(
        verify(&set, &token(&two, json!({ "alg": "ES256", "kid": "one" }))),
        Err(JwtError::VerificationFails)
    );
    assert_eq!(
        verify(&set, &token(&one, json!({ "alg": "ES256", "kid": "three" }))),
        Err(JwtError::NoMatchingKey)
    );
    assert_eq!(
        verify(&set, &token(&two, json!({ "alg": "RS256", "kid": "two" }))),
        Err(JwtError::NoMatchingKey)
    );
}

#[test]
fn a_public_key_is_no_secret() {
    let Private::Rsa(pair) = Private::rsa() else {
        unreachable!()
    };
    let public: &[u8] = pair.public_key().as_ref();
    let forger = Private::Oct(public.to_vec());
    let token = forger.token(&json!({ "alg": "HS256" }), &json!({}));
    let set = set([Private::Rsa(pair).jwk()]);
    assert_eq!(verify(&set, &token), Err(JwtError::VerificationFails));
}

#[test]
fn nobody_signs_with_none() {
    for alg in ["none", "None", "", "HS1", "ES256K"] {
        let header = base64url(json!({ "alg": alg }).to_string());
        let token = format!("{header}.e30.AA");
        assert_eq!(
            Token::parse(&token).unwrap_err(),
            JwtError::HeaderUnsupportedAlg,
            "{alg}"
        );
    }
}

#[test]
fn what_is_no_set() {
    for (text, error) in [
        ("", JwksError::Parse),
        ("[]", JwksError::Parse),
        ("{\"keys\":[],\"keys\":[]}", JwksError::Parse),
        ("{}", JwksError::NoKeys),
        ("{\"a\":\"-----BEGIN CERTIFICATE-----\\n\"}", JwksError::NoKeys),
        (
            "{\"a\":\"-----BEGIN CERTIFICATE-----\\nAA\\n-----END CERTIFICATE-----\\n\"}",
            JwksError::X509,
        ),
        ("{\"keys\":{}}", JwksError::BadKeys),
        ("{\"keys\":[]}", JwksError::NoValidKeys),
        ("{\"keys\":[1,\"x\",{},{\"kty\":1}]}", JwksError::NoValidKeys),
    ] {
        assert_eq!(Jwks::parse(text.as_bytes()).unwrap_err(), error, "{text}");
    }
    let long = format!("{}{}", set([Private::p256().jwk()]), " ".repeat(MAX_BYTES));
    assert_eq!(Jwks::parse(long.as_bytes()).unwrap_err(), JwksError::Parse);
}

#[test]
fn keys_that_cannot_be_used_are_skipped() {
    let good = Private::p256();
    let with = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    let rsa = Private::rsa().jwk();
    let even = {
        let mut n = URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap();
        *n.last_mut().unwrap() &= 0xfe;
        base64url(n)
    };
    let unusable = [
        with(good.jwk(), "alg", "ES384".into()),
        with(good.jwk(), "alg", "RS256".into()),
        with(good.jwk(), "crv", "P-384".into()),
        with(good.jwk(), "crv", "secp256k1".into()),
        with(good.jwk(), "crv", 1.into()),
        with(good.jwk(), "x", "AA".into()),
        with(good.jwk(), "y", good.jwk()["x"].clone()),
        with(good.jwk(), "x", "*".into()),
        with(good.jwk(), "x", base64url([1; 33]).into()),
        with(rsa.clone(), "e", "Aw8".into()),
        with(rsa.clone(), "e", "".into()),
        with(rsa.clone(), "n", "".into()),
        with(rsa.clone(), "n", base64url([0xff; 64]).into()),
        with(rsa.clone(), "n", base64url([0xff; 1025]).into()),
        with(rsa.clone(), "n", even.into()),
        with(rsa, "alg", "ES256".into()),
        json!({ "kty": "oct", "k": "" }),
        json!({ "kty": "oct", "k": "AA", "alg": "RS256" }),
        json!({ "kty": "OKP", "crv": "X25519", "x": base64url([1; 32]) }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url([1; 31]) }),
        json!({ "kty": "other" }),
    ];
    for key in &unusable {
        let alone = Jwks::parse(set([key.clone()]).as_bytes());
        assert_eq!(alone.unwrap_err(), JwksError::NoValidKeys, "{key}");
    }
    let mixed = set(unusable.into_iter().chain([good.jwk()]));
    assert_eq!(Jwks::parse(mixed.as_bytes()).unwrap().count(), 1);
    let token = good.token(&json!({ "alg": "ES256" }), &json!({}));
    assert_eq!(verify(&mixed, &token), Ok(()));
}

#[test]
fn leading_zeros_of_a_coordinate_may_be_missing_or_too_many() {
    // A coordinate begins with a zero once in 256 keys.
    let short = (0..10_000).map(|_| Private::p256()).find(|private| {
        let Private::Ec(_, pair) = private else {
            return false;
        };
        pair.public_key().as_ref()[1] == 0
    });
    let private = short.unwrap();
    let token = private.token(&json!({ "alg": "ES256" }), &json!({}));
    let x = URL_SAFE_NO_PAD
        .decode(private.jwk()["x"].as_str().unwrap())
        .unwrap();
    for other in [&x[1..], &[&[0, 0][..], &x].concat()] {
        let mut jwk = private.jwk();
        jwk["x"] = base64url(other).into();
        assert_eq!(verify(&set([jwk]), &token), Ok(()));
    }
}

#[test]
fn certificates_by_kid() {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = aws_lc_rs::encoding::AsDer::as_der(&pair).unwrap();
    let key = rcgen::KeyPair::try_from(der.as_ref()).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["issuer".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let pem = certificate.pem().replace("\r\n", "\n");
    let set = json!({ "one": pem }).to_string();
    let private = Private::Rsa(pair);
    let token = |kid: &str| private.token(&json!({ "alg": "RS256", "kid": kid }), &json!({}));
    assert_eq!(verify(&set, &token("one")), Ok(()));
    assert_eq!(verify(&set, &token("two")), Err(JwtError::NoMatchingKey));
    let mixed = json!({ "one": pem, "two": 1 }).to_string();
    assert_eq!(Jwks::parse(mixed.as_bytes()).unwrap_err(), JwksError::NoKeys);
}

#[test]
fn nothing_secret_is_shown() {
    let secret = b"do not show".repeat(4);
    let private = Private::Oct(secret.clone());
    let jwks = Jwks::parse(set([private.jwk()]).as_bytes()).unwrap();
    let token = private.token(&json!({ "alg": "HS256", "kid": "k" }), &json!({ "sub": "alice" }));
    let shown = format!("{jwks:?} {:?}", Token::parse(&token).unwrap());
    assert!(shown.contains("oct") && shown.contains("Hs256"), "{shown}");
    for hidden in ["alice", "do not", &base64url(&secret), "100"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

#[test]
fn times_at_their_edges() {
    let token = |nbf: u64, exp: u64| {
        let payload = base64url(json!({ "nbf": nbf, "exp": exp }).to_string());
        Token::parse(&format!("{}.{payload}.AA", base64url("{\"alg\":\"HS256\"}"))).unwrap()
    };
    let edges = token(1000, 2000);
    for (now, skew, result) in [
        (940, 60, Ok(())),
        (939, 60, Err(JwtError::NotYetValid)),
        (2060, 60, Ok(())),
        (2061, 60, Err(JwtError::Expired)),
        (1000, 0, Ok(())),
        (2001, 0, Err(JwtError::Expired)),
        (u64::MAX, u64::MAX, Ok(())),
    ] {
        assert_eq!(edges.check_time(now, skew), result, "{now} {skew}");
    }
    assert_eq!(token(0, 0).check_time(u64::MAX, 0), Ok(()));
}

#[test]
fn a_token_has_a_bound() {
    let long = format!(
        "e30.{}.AA",
        "A".repeat(crate::http::filters::jwt::token::MAX_BYTES)
    );
    assert_eq!(Token::parse(&long).unwrap_err(), JwtError::BadFormat);
}
