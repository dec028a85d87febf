//! Tokens and keys that are made here.

mod keys;
