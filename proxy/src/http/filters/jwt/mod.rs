//! JWT authentication (Envoy's `jwt_authn`): tokens, and the keys that they are checked against.

mod json;
pub mod jwks;
mod status;
pub mod token;

#[cfg(test)]
mod tests;

pub use status::JwtError;
