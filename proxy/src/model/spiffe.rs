//! SPIFFE IDs as Consul writes them, parsed once and compared as types.
//!
//! SPIFFE-ID specification, section 2; Consul's forms are
//! `spiffe://<trust domain>[/ap/<partition>]/ns/<namespace>/dc/<datacenter>/svc/<service>` for a
//! service, and others (`/agent/…`, `/gateway/…`) that are kept as they are.

use std::fmt;
use std::sync::Arc;

/// A longer URI is refused (SPIFFE-ID specification, section 2.3).
const MAX_BYTES: usize = 2048;

/// A parsed SPIFFE ID. Two are equal when their URIs are equal byte for byte.
#[derive(Clone, Debug)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: Arc<str>,
    service: Option<Arc<ServiceId>>,
}

/// The parts of a service's SPIFFE ID, percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceId {
    /// `default` when the URI names none.
    pub partition: String,
    /// `default` in Consul's community edition.
    pub namespace: String,
    /// The datacenter the service runs in.
    pub datacenter: String,
    /// The service's name.
    pub service: String,
}

/// Why a URI is no SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Another scheme, or none.
    #[error("not a spiffe:// URI")]
    Scheme,
    /// Over 2048 bytes.
    #[error("longer than 2048 bytes")]
    TooLong,
    /// Empty, or with characters other than `a-z 0-9 . - _`.
    #[error("the trust domain is empty or has characters other than a-z, 0-9, '.', '-', '_'")]
    TrustDomain,
    /// A query, a fragment, an empty or relative segment, or a bad percent escape.
    #[error("the path has an empty or relative segment, a query, a fragment or a bad escape")]
    Path,
}

impl SpiffeId {
    /// Parses a URI.
    ///
    /// # Errors
    /// Names the part that is wrong.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > MAX_BYTES {
            return Err(SpiffeError::TooLong);
        }
        let rest = uri.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) => (trust_domain, Some(path)),
            None => (rest, None),
        };
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if trust_domain.is_empty() || !trust_domain.bytes().all(plain) {
            return Err(SpiffeError::TrustDomain);
        }
        let segments = path.map(decode).transpose()?.unwrap_or_default();
        Ok(Self {
            uri: uri.into(),
            trust_domain: trust_domain.into(),
            service: ServiceId::from_segments(&segments).map(Arc::new),
        })
    }

    /// The ID that Consul gives a service. The partition is written only when it is not `default`.
    pub fn for_service(trust_domain: &str, id: &ServiceId) -> Result<Self, SpiffeError> {
        let partition = match id.partition.as_str() {
            "" | "default" => String::new(),
            other => format!("/ap/{}", escape(other)),
        };
        let (namespace, datacenter, service) =
            (escape(&id.namespace), escape(&id.datacenter), escape(&id.service));
        let id = Self::parse(&format!(
            "spiffe://{trust_domain}{partition}/ns/{namespace}/dc/{datacenter}/svc/{service}"
        ))?;
        // With a slash in it, the parts behind it would be others than `id` has.
        if id.trust_domain() == trust_domain {
            Ok(id)
        } else {
            Err(SpiffeError::TrustDomain)
        }
    }

    /// The URI as it was written.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The host part.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The parts, if it names a service.
    pub fn service(&self) -> Option<&ServiceId> {
        self.service.as_deref()
    }
}

impl ServiceId {
    fn from_segments(segments: &[String]) -> Option<Self> {
        let names: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (partition, rest) = match names.as_slice() {
            ["ap", partition, rest @ ..] => (*partition, rest),
            rest => ("default", rest),
        };
        let ["ns", namespace, "dc", datacenter, "svc", service] = *rest else {
            return None;
        };
        Some(Self {
            partition: partition.to_owned(),
            namespace: namespace.to_owned(),
            datacenter: datacenter.to_owned(),
            service: service.to_owned(),
        })
    }
}

fn decode(path: &str) -> Result<Vec<String>, SpiffeError> {
    path.split('/').map(decode_segment).collect()
}

fn decode_segment(segment: &str) -> Result<String, SpiffeError> {
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (
                    digit().ok_or(SpiffeError::Path)?,
                    digit().ok_or(SpiffeError::Path)?,
                );
                u8::try_from(high * 16 + low).map_err(|_| SpiffeError::Path)?
            }
            b'?' | b'#' => return Err(SpiffeError::Path),
            byte if byte.is_ascii_control() || byte == b' ' => return Err(SpiffeError::Path),
            byte => byte,
        });
    }
    // An escaped dot is a dot.
    match String::from_utf8(out) {
        Ok(name) if !matches!(name.as_str(), "" | "." | "..") => Ok(name),
        _ => Err(SpiffeError::Path),
    }
}

/// RFC 3986's unreserved characters stay; what else Consul leaves alone cannot be in a name.
fn escape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri
    }
}

impl Eq for SpiffeId {}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_with_and_without_partition() {
        let id = SpiffeId::parse("spiffe://1.consul/ap/p/ns/n/dc/d/svc/a%20b").unwrap();
        let service = id.service().unwrap();
        assert_eq!(
            (service.partition.as_str(), service.service.as_str()),
            ("p", "a b")
        );
        assert_eq!(SpiffeId::for_service("1.consul", service).unwrap(), id);
        let id = SpiffeId::parse("spiffe://1.consul/ns/default/dc/d/svc/web").unwrap();
        assert_eq!(id.service().unwrap().partition, "default");
        assert_eq!(
            SpiffeId::for_service("1.consul", id.service().unwrap()).unwrap(),
            id
        );
    }

    #[test]
    fn a_trust_domain_with_a_path_is_none() {
        let id = SpiffeId::parse("spiffe://td/ns/n/dc/d/svc/s").unwrap();
        let id = id.service().unwrap();
        for trust_domain in ["td/ap/p", "td/x", ""] {
            let refused = SpiffeId::for_service(trust_domain, id);
            assert_eq!(refused, Err(SpiffeError::TrustDomain), "{trust_domain}");
        }
    }

    #[test]
    fn other_paths_are_kept_without_parts() {
        for uri in [
            "spiffe://td",
            "spiffe://td/agent/client/dc/d/id/x",
            "spiffe://td/ns/a/dc/b/svc/c/d",
        ] {
            assert!(SpiffeId::parse(uri).unwrap().service().is_none(), "{uri}");
        }
    }

    #[test]
    fn bad_uris_are_refused() {
        for uri in [
            "https://td/x",
            "spiffe://",
            "spiffe:///ns/x",
            "spiffe://TD/x",
            "spiffe://a:1/x",
            "spiffe://u@h/x",
            "spiffe://td/a//b",
            "spiffe://td/a/../b",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td/%zz",
            "spiffe://td/%4",
            "spiffe://td/%ff",
            "spiffe://td/a/",
            "spiffe://td/",
            "spiffe://td/a/%2e",
            "spiffe://td/a/%2E%2e/b",
        ] {
            assert!(SpiffeId::parse(uri).is_err(), "{uri}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://td/{}", "a".repeat(2048))).is_err());
    }
}
