//! A string that must not be seen: Consul tokens, login results, texts that may hold one.
//!
//! Owns its bytes and zeroes them when dropped; `Debug` and `Display` never show them.

use std::fmt;

use zeroize::Zeroizing;

/// A secret string. Equality is for noticing a change, not for authentication, so it need not be
/// constant in time.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `value`; white space around it (a file's last newline) is not part of it.
    pub fn new(value: impl Into<String>) -> Self {
        let value = Zeroizing::new(value.into());
        Self(Zeroizing::new(value.trim().to_owned()))
    }

    /// Takes ownership of `value` as it is: a text in which blanks mean something.
    pub fn verbatim(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is left after trimming: such a token counts as not given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
