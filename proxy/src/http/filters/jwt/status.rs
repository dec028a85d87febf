//! Why a token or a key set is not accepted, in Envoy's words and numbers.

/// Why a request has no good token. The number is Envoy's (`code` in `failed_status_in_metadata`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// There is no token.
    #[error("Jwt is missing")]
    Missing = 1,
    /// `nbf` is to come.
    #[error("Jwt not yet valid")]
    NotYetValid = 2,
    /// `exp` is over.
    #[error("Jwt is expired")]
    Expired = 3,
    /// There are not three parts, or it is longer than any token may be.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    BadFormat = 4,
    /// The header is no base64url.
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderBadBase64 = 5,
    /// The header is no JSON object.
    #[error("Jwt header is an invalid JSON")]
    HeaderBadJson = 6,
    /// `alg` is missing or no string.
    #[error("Jwt header [alg] field is required and must be a string")]
    HeaderBadAlg = 7,
    /// `alg` is not known; `none` is not.
    #[error("Jwt header [alg] is not supported")]
    HeaderUnsupportedAlg = 8,
    /// `kid` is no string.
    #[error("Jwt header [kid] field is not a string")]
    HeaderBadKid = 9,
    /// The payload is no base64url.
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadBadBase64 = 10,
    /// The payload is no JSON object.
    #[error("Jwt payload is an invalid JSON")]
    PayloadBadJson = 11,
    /// `iss` is no string.
    #[error("Jwt payload [iss] field is not a string")]
    IssNotString = 12,
    /// `sub` is no string.
    #[error("Jwt payload [sub] field is not a string")]
    SubNotString = 13,
    /// `iat` is no number.
    #[error("Jwt payload [iat] field is not an integer")]
    IatNotInteger = 14,
    /// `iat` does not fit.
    #[error("Jwt payload [iat] field is not a positive 64 bit integer")]
    IatOutOfRange = 15,
    /// `nbf` is no number.
    #[error("Jwt payload [nbf] field is not an integer")]
    NbfNotInteger = 16,
    /// `nbf` does not fit.
    #[error("Jwt payload [nbf] field is not a positive 64 bit integer")]
    NbfOutOfRange = 17,
    /// `exp` is no number.
    #[error("Jwt payload [exp] field is not an integer")]
    ExpNotInteger = 18,
    /// `exp` does not fit.
    #[error("Jwt payload [exp] field is not a positive 64 bit integer")]
    ExpOutOfRange = 19,
    /// `jti` is no string.
    #[error("Jwt payload [jti] field is not a string")]
    JtiNotString = 20,
    /// `aud` is neither a string nor a list of strings.
    #[error("Jwt payload [aud] field is not a string or string list")]
    AudNotString = 21,
    /// The signature is no base64url.
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureBadBase64 = 22,
    /// A key is Ed25519's and the signature is not.
    #[error("Jwt ED25519 signature is wrong length")]
    Ed25519WrongLength = 23,
    /// No provider is for the issuer, or for the place where its token was.
    #[error("Jwt issuer is not configured")]
    UnknownIssuer = 24,
    /// None of the token's audiences is asked for.
    #[error("Audiences in Jwt are not allowed")]
    AudienceNotAllowed = 25,
    /// No key made the signature; or its subject or lifetime is not allowed.
    #[error("Jwt verification fails")]
    VerificationFails = 26,
    /// The provider has no keys.
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys = 31,
    /// No key has the token's `kid` and `alg`.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoMatchingKey = 32,
    /// The keys could not be fetched.
    #[error("Jwks remote fetch is failed")]
    FetchFailed = 40,
}

impl JwtError {
    /// Envoy's number.
    pub fn code(self) -> u32 {
        self as u32
    }
}
