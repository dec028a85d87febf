//! JSON Web Tokens and key sets in any shape: reading them returns, a token says what it was written as, and
//! only who has the key makes a signature.
//!
//! The first line is a key set. Then either one line, a token, or three: a token's header and payload as
//! JSON, and its signature in base64url.

#![no_main]

use attache::http::filters::jwt::JwtError;
use attache::http::filters::jwt::jwks::Jwks;
use attache::http::filters::jwt::token::{Algorithm, Token};
use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Long enough that nobody signs with it by chance.
const SECRET: &[u8] = b"s3cr3t-7f1d6c0b-never-printed-and-never-guessed";

/// Of a set not more are used.
const MAX_KEYS: usize = 256;

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let set = read_set(lines.next().unwrap_or_default());
    let parts: Vec<&str> = lines.collect();
    match parts[..] {
        [token] => read_token(token, set.as_ref()),
        [header, payload, signature] => {
            let signed = format!(
                "{}.{}",
                BASE64URL_NOPAD.encode(header.as_bytes()),
                BASE64URL_NOPAD.encode(payload.as_bytes())
            );
            read_token(&format!("{signed}.{signature}"), set.as_ref());
            sign(&signed, header, payload);
        }
        _ => {}
    }
});

fn read_set(text: &str) -> Option<Jwks> {
    match Jwks::parse(text.as_bytes()) {
        Ok(set) => {
            assert!((1..=MAX_KEYS).contains(&set.count()));
            sum_of_its_keys(text, &set);
            Some(set)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Each key counts as if it stood alone: one that cannot be used takes none with it.
fn sum_of_its_keys(text: &str, set: &Jwks) {
    let Ok(Value::Object(members)) = serde_json::from_str(text) else {
        return;
    };
    let Some(Value::Array(keys)) = members.get("keys") else {
        return;
    };
    let usable =
        |key: &&Value| Jwks::parse(serde_json::json!({"keys": [key]}).to_string().as_bytes()).is_ok();
    assert_eq!(set.count(), keys.iter().filter(usable).count().min(MAX_KEYS));
}

fn own_set() -> Jwks {
    let set = format!(
        r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#,
        BASE64URL_NOPAD.encode(SECRET)
    );
    Jwks::parse(set.as_bytes()).expect("it is a set")
}

fn read_token(text: &str, set: Option<&Jwks>) {
    let token = match Token::parse(text) {
        Ok(token) => token,
        Err(error) => {
            assert!((4..=22).contains(&error.code()), "{error} is nothing to be read");
            return;
        }
    };
    assert_eq!(Token::parse(text).as_ref(), Ok(&token));
    let alg = token.header.get("alg").and_then(Value::as_str);
    assert_eq!(alg.and_then(Algorithm::parse), Some(token.algorithm));
    assert_eq!(text.split('.').filter(|part| !part.is_empty()).count(), 3);
    times(&token);
    // It was not made with the secret.
    assert!(own_set().verify(&token).is_err());
    if let Some(set) = set {
        assert_eq!(set.verify(&token), set.verify(&token));
    }
}

/// A token that is valid stays valid with a clock that may differ by more, and once it has ended it has.
fn times(token: &Token) {
    for now in [0, token.nbf, token.exp, u64::MAX] {
        if token.check_time(now, 0).is_ok() {
            assert_eq!(token.check_time(now, 60), Ok(()));
        }
        if token.check_time(now, 60) == Err(JwtError::Expired) {
            assert!(token.exp != 0 && token.exp < now);
        }
    }
}

/// What is signed with the secret is taken, and nothing else that is like it.
fn sign(signed: &str, header: &str, payload: &str) {
    let key = |algorithm| hmac::Key::new(algorithm, SECRET);
    let algorithms = [hmac::HMAC_SHA256, hmac::HMAC_SHA384, hmac::HMAC_SHA512];
    for (index, algorithm) in algorithms.into_iter().enumerate() {
        let tag = hmac::sign(&key(algorithm), signed.as_bytes());
        let text = format!("{signed}.{}", BASE64URL_NOPAD.encode(tag.as_ref()));
        let Ok(token) = Token::parse(&text) else {
            return;
        };
        let own = [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512][index];
        assert_eq!(own_set().verify(&token).is_ok(), token.algorithm == own);
        if token.algorithm == own {
            // The same JSON, written otherwise, is not what was signed.
            let other = format!(
                "{}.{}.{}",
                BASE64URL_NOPAD.encode(header.as_bytes()),
                BASE64URL_NOPAD.encode(format!("{payload} ").as_bytes()),
                BASE64URL_NOPAD.encode(tag.as_ref())
            );
            let other = Token::parse(&other).expect("white space changes nothing");
            assert_eq!(other.payload, token.payload);
            assert_eq!(own_set().verify(&other), Err(JwtError::VerificationFails));
        }
    }
}
