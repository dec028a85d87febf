//! HTTP filters, one folder each. What runs them, in which order, is the connection manager's.

pub mod jwt;
