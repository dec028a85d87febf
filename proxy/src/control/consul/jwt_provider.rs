//! `jwt-provider` entries: who issues tokens, and the cluster that its keys are fetched from.
//!
//! Decoding of `/v1/config/jwt-provider/:name` to what Consul's xDS server makes of it (its `jwt_authn.go`
//! and `clusters.go`). Reads the files that an entry names, through the function that is handed in, once an
//! answer. What cannot be carried out is an error: without its provider an intention lets nobody in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::json::{self, DecodeError, Node};
use super::request_match::refuse_unknown;
use super::request_rules::payload_key;
use crate::control::system_roots;
use crate::model::cluster::{Dns, DnsFamily};
use crate::model::jwt::{Jwks, JwksAsyncFetch, JwksRetry, JwtHeader, JwtProvider, RemoteJwks};
use crate::model::listener::{Address, TlsParams};
use crate::model::secret::{Roots, Trust};
use crate::model::{Cluster, ClusterKind, ClusterLoadAssignment, Endpoint, Target, UpstreamTls, Validation};

/// Envoy's default: Consul does not hand `ClockSkewSeconds` on.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Envoy's default of `cache_duration`.
const CACHE_DURATION: Duration = Duration::from_secs(600);
/// Envoy's defaults of fetching again, of a retry's pause and of looking a name up again.
const FAILED_REFETCH: Duration = Duration::from_secs(1);
const RETRY_BASE: Duration = Duration::from_secs(1);
const DNS_REFRESH: Duration = Duration::from_secs(5);

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Provider {
    /// What a token's `iss` must be.
    pub(super) issuer: String,
    pub(super) config: Arc<JwtProvider>,
    /// Where its keys are fetched from; none for keys that are at hand.
    pub(super) cluster: Option<(Cluster, ClusterLoadAssignment)>,
    /// What has no effect.
    pub(super) notices: Vec<String>,
}

/// Reads a small file; says why not.
pub(super) type ReadFile<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Decodes the entry `name`.
///
/// # Errors
/// Names the field that is not what Consul documents or cannot be carried out.
pub(super) fn decode(body: &[u8], name: &str, read: ReadFile<'_>) -> Result<Provider, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    if root.need_text("Name")? != name {
        return Err(root.error("Name", format!("is not {name:?}")));
    }
    let keys = root
        .object("JSONWebKeySet")?
        .ok_or_else(|| root.error("JSONWebKeySet", "missing"))?;
    refuse_unknown(&keys, &["Local", "Remote"])?;
    let (jwks, cluster) = match (keys.object("Local")?, keys.object("Remote")?) {
        (Some(local), _) => (Jwks::Local(local_keys(&local, read)?.into()), None),
        (None, Some(remote)) => {
            let (keys, cluster) = remote_keys(&remote, name, read)?;
            (Jwks::Remote(keys), Some(cluster))
        }
        (None, None) => return Err(root.error("JSONWebKeySet", "has neither Local nor Remote")),
    };
    let issuer = root.text("Issuer")?;
    let mut config = provider(name, issuer, jwks);
    config.audiences = texts(root.texts("Audiences")?);
    if let Some(forwarding) = root.object("Forwarding")? {
        let header = forwarding.need_text("HeaderName")?.to_ascii_lowercase();
        config.forward_payload_header = Some(header.into());
        config.pad_forward_payload_header = forwarding.flag("PadForwardPayloadHeader")?;
    }
    for location in root.objects("Locations")? {
        self::location(&location, &mut config)?;
    }
    Ok(Provider {
        issuer: issuer.to_owned(),
        config: Arc::new(config),
        cluster,
        notices: notices(&root, name)?,
    })
}

/// With Envoy's defaults, as Consul leaves them.
fn provider(name: &str, issuer: &str, jwks: Jwks) -> JwtProvider {
    JwtProvider {
        issuer: (!issuer.is_empty()).then(|| issuer.into()),
        audiences: Vec::new(),
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        clock_skew: CLOCK_SKEW,
        jwks,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward: false,
        forward_payload_header: None,
        pad_forward_payload_header: false,
        claim_to_headers: Vec::new(),
        payload_in_metadata: Some(payload_key(name).into()),
        space_delimited_claims: Vec::new(),
        header_in_metadata: None,
        failed_status_in_metadata: None,
        clear_route_cache: false,
        cache: None,
    }
}

fn texts(texts: Vec<String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Arc::from).collect()
}

/// What Consul takes and its xDS server leaves out.
fn notices(root: &Node<'_>, name: &str) -> Result<Vec<String>, DecodeError> {
    let mut notices = Vec::new();
    // 30 is what Consul fills in, so nobody asked for it.
    if !matches!(root.number("ClockSkewSeconds")?, 0 | 30) {
        notices.push(format!(
            "jwt-provider {name}: ClockSkewSeconds has no effect, as in Consul: it is 60 s"
        ));
    }
    if let Some(cache) = root.object("CacheConfig")?
        && cache.number("Size")? != 0
    {
        notices.push(format!(
            "jwt-provider {name}: CacheConfig has no effect, as in Consul"
        ));
    }
    Ok(notices)
}

fn location(node: &Node<'_>, config: &mut JwtProvider) -> Result<(), DecodeError> {
    refuse_unknown(node, &["Header", "QueryParam", "Cookie"])?;
    if let Some(header) = node.object("Header")? {
        // One flag for all headers, the last one's: as Consul writes it.
        config.forward = header.flag("Forward")?;
        config.from_headers.push(JwtHeader {
            name: header.need_text("Name")?.to_ascii_lowercase().into(),
            value_prefix: header.text("ValuePrefix")?.into(),
        });
    } else if let Some(parameter) = node.object("QueryParam")? {
        config.from_params.push(parameter.need_text("Name")?.into());
    } else if let Some(cookie) = node.object("Cookie")? {
        config.from_cookies.push(cookie.need_text("Name")?.into());
    }
    Ok(())
}

fn local_keys(node: &Node<'_>, read: ReadFile<'_>) -> Result<String, DecodeError> {
    match (node.text("JWKS")?, node.text("Filename")?) {
        ("", "") => Err(node.error("JWKS", "missing")),
        ("", file) => read(file).map_err(|why| node.error("Filename", why)),
        (encoded, _) => {
            let bytes = STANDARD.decode(encoded).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| node.error("JWKS", "is no base64 of a text"))
        }
    }
}

type Fetched = (RemoteJwks, (Cluster, ClusterLoadAssignment));

fn remote_keys(node: &Node<'_>, name: &str, read: ReadFile<'_>) -> Result<Fetched, DecodeError> {
    let known = [
        "URI",
        "RequestTimeoutMs",
        "CacheDuration",
        "FetchAsynchronously",
        "UseSNI",
        "RetryPolicy",
        "JWKSCluster",
    ];
    refuse_unknown(node, &known)?;
    let uri = node.need_text("URI")?;
    let cluster = cluster(node, uri, name, read)?;
    let keys = RemoteJwks {
        uri: uri.into(),
        cluster: Arc::clone(&cluster.0.name),
        // Whole seconds, cut off as Consul does.
        timeout: Duration::from_secs(u64::from(node.count("RequestTimeoutMs")?) / 1000),
        // Consul writes its nanoseconds where seconds belong; this is what was meant.
        cache_duration: node.duration("CacheDuration")?.unwrap_or(CACHE_DURATION),
        async_fetch: Some(JwksAsyncFetch {
            fast_listener: node.flag("FetchAsynchronously")?,
            failed_refetch: FAILED_REFETCH,
        }),
        retry: retry(node)?,
    };
    Ok((keys, cluster))
}

fn retry(node: &Node<'_>) -> Result<Option<JwksRetry>, DecodeError> {
    let Some(policy) = node.object("RetryPolicy")? else {
        return Ok(None);
    };
    let (mut base, mut max) = (None, None);
    if let Some(back_off) = policy.object("RetryPolicyBackOff")? {
        base = back_off.duration("BaseInterval")?;
        max = back_off.duration("MaxInterval")?;
    }
    let base = base.unwrap_or(RETRY_BASE);
    Ok(Some(JwksRetry {
        num_retries: policy.count("NumRetries")?,
        base_interval: base,
        max_interval: max.unwrap_or(base.saturating_mul(10)),
    }))
}

/// Where a URI leads to.
struct Place {
    host: String,
    port: u16,
    https: bool,
}

fn place(node: &Node<'_>, uri: &str) -> Result<Place, DecodeError> {
    let wrong = || node.error("URI", format!("{uri:?} is no http or https URI"));
    let parsed: hyper::Uri = uri.parse().map_err(|_| wrong())?;
    let https = match parsed.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    let host = parsed.host().ok_or_else(wrong)?;
    Ok(Place {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: parsed.port_u16().unwrap_or(if https { 443 } else { 80 }),
        https,
    })
}

fn cluster(
    node: &Node<'_>,
    uri: &str,
    name: &str,
    read: ReadFile<'_>,
) -> Result<(Cluster, ClusterLoadAssignment), DecodeError> {
    let place = place(node, uri)?;
    let options = node.object("JWKSCluster")?;
    let mut cluster = Cluster {
        name: format!("jwks_cluster_{name}").into(),
        ..Cluster::default()
    };
    let ip = place.host.parse().ok();
    cluster.kind = kind(options.as_ref(), ip.is_some())?;
    if let Some(options) = &options {
        refuse_unknown(options, &["DiscoveryType", "TLSCertificates", "ConnectTimeout"])?;
        let whole = options.duration("ConnectTimeout")?.map(|time| time.as_secs());
        if let Some(seconds @ 1..) = whole {
            cluster.connect_timeout = Duration::from_secs(seconds);
        }
    }
    if place.https {
        let sni = node.flag("UseSNI")?.then(|| place.host.as_str().into());
        cluster.transport = Some(Arc::new(UpstreamTls {
            identity: None,
            validation: validation(node, options.as_ref(), &place.host, read)?,
            sni,
            alpn: Vec::new(),
            params: TlsParams::default(),
        }));
    }
    let endpoint = Endpoint {
        address: match ip {
            Some(ip) => Target::Address(Address::Socket(SocketAddr::new(ip, place.port))),
            None => Target::Host {
                host: place.host.into(),
                port: place.port,
            },
        },
        weight: 1,
        healthy: true,
        priority: 0,
        hostname: None,
    };
    let assignment = ClusterLoadAssignment {
        endpoints: vec![endpoint],
        ..ClusterLoadAssignment::default()
    };
    Ok((cluster, assignment))
}

fn kind(options: Option<&Node<'_>>, is_ip: bool) -> Result<ClusterKind, DecodeError> {
    let dns = |strict, family| {
        ClusterKind::Dns(Dns {
            strict,
            refresh: DNS_REFRESH,
            family,
        })
    };
    let by_type = match options {
        None => "STATIC",
        Some(options) => options.text("DiscoveryType")?,
    };
    Ok(match (by_type, options) {
        ("STATIC", _) if is_ip => ClusterKind::Endpoints,
        // Envoy refuses a host name there; Consul writes one if it is told nothing else.
        ("STATIC", _) => dns(true, DnsFamily::Auto),
        ("" | "STRICT_DNS", _) => dns(true, DnsFamily::V4Preferred),
        ("LOGICAL_DNS", _) => dns(false, DnsFamily::All),
        (other, Some(options)) => {
            return Err(options.error("DiscoveryType", format!("{other:?} is not supported")));
        }
        (_, None) => dns(true, DnsFamily::Auto),
    })
}

/// By the authority that is given, else by the system's and the host's name.
fn validation(
    node: &Node<'_>,
    options: Option<&Node<'_>>,
    host: &str,
    read: ReadFile<'_>,
) -> Result<Validation, DecodeError> {
    let certificates = match options {
        Some(options) => options.object("TLSCertificates")?,
        None => None,
    };
    let authority = match &certificates {
        Some(certificates) => {
            refuse_unknown(certificates, &["TrustedCA"])?;
            certificates.object("TrustedCA")?
        }
        None => None,
    };
    if let Some(authority) = authority {
        return Ok(Validation {
            trust: Trust::Roots(Arc::new(given_roots(&authority, read)?)),
            names: Vec::new(),
        });
    }
    let found = system_roots::BUNDLES
        .iter()
        .find_map(|file| Roots::from_pem([read(file).ok()?.as_str()]).ok());
    let roots =
        found.ok_or_else(|| node.error("JWKSCluster.TLSCertificates.TrustedCA", system_roots::NOT_FOUND))?;
    Ok(Validation {
        trust: Trust::Roots(Arc::new(roots)),
        names: vec![system_roots::name(host)],
    })
}

fn given_roots(authority: &Node<'_>, read: ReadFile<'_>) -> Result<Roots, DecodeError> {
    refuse_unknown(authority, &["Filename", "InlineString", "InlineBytes"])?;
    let inline = authority.text("InlineString")?;
    let bytes = authority.text("InlineBytes")?;
    let (field, pem) = if !inline.is_empty() {
        ("InlineString", inline.to_owned())
    } else if !bytes.is_empty() {
        let text = STANDARD
            .decode(bytes)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        let wrong = || authority.error("InlineBytes", "is no base64 of PEM");
        ("InlineBytes", text.ok_or_else(wrong)?)
    } else {
        let file = authority.need_text("Filename")?;
        let text = read(file).map_err(|why| authority.error("Filename", why))?;
        ("Filename", text)
    };
    Roots::from_pem([pem.as_str()]).map_err(|error| authority.error(field, error.to_string()))
}

#[cfg(test)]
#[path = "jwt_provider_tests.rs"]
mod tests;
