//! The xDS source: Envoy's resources, from a bootstrap file or from a control plane, into the model.
//!
//! Owns how a resource is read ([`decode`]).

pub mod decode;
