//! Network filters: who gets past, and the terminal filter that carries the bytes.

pub mod network;
pub mod rbac;
pub mod tcp_proxy;
