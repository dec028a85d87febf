//! The count dashboard over two Attaché sidecars.
pub mod client;
pub mod standin;
