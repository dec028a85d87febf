//! JWT authentication (Envoy's `jwt_authn`): tokens are found, checked against the keys of who issues them, and
//! taken out of the request; what they claim goes into its headers and metadata.
//!
//! [`token`] and [`jwks`] read what comes from others, `locations` finds tokens, `filter` decides, `store` keeps
//! keys. Who may do what with which claims is RBAC's business, not this filter's. Keys are fetched by whoever
//! makes the store.

mod cache;
mod claims;
mod filter;
mod json;
pub mod jwks;
mod locations;
mod metrics;
mod status;
mod store;
pub mod token;

#[cfg(test)]
mod tests;

pub use filter::{JwtFilter, JwtRequest, METADATA_NAMESPACE, Outcome, Refusal};
pub use status::JwtError;
pub use store::{Fetch, FetchError, Fetching, JwksStore};
