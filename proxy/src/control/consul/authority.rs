//! The mesh's authority as one proxy sees it: roots, its own leaf, TLS versions, the default policy.
//!
//! Pure decoding of `/v1/agent/connect/ca/roots`, `/v1/agent/connect/ca/leaf/:service`,
//! `/v1/config/mesh/mesh` and `/v1/agent/connect/authorize`. A leaf's key is never quoted in an error.

use zeroize::Zeroize;

use super::json::{self, DecodeError, Node};
use crate::model::http::{HeadersWithUnderscores, Normalization, PathWithEscapedSlashes};
use crate::model::listener::{TlsParams, TlsVersion};
use crate::model::rbac::Action;
use crate::model::{Identity, TrustBundle};

/// What the mesh entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mesh {
    pub(super) incoming: TlsParams,
    pub(super) outgoing: TlsParams,
    /// Takes away the `x-forwarded-client-cert` that comes and says nothing of the peer.
    pub(super) sanitize_client_cert: bool,
    /// Of requests that come in.
    pub(super) normalization: Normalization,
    /// A route to a cluster that does not exist refuses its table.
    pub(super) validate_clusters: bool,
    pub(super) notices: Vec<String>,
}

impl Default for Mesh {
    /// Without an entry.
    fn default() -> Self {
        Self {
            incoming: TlsParams::default(),
            outgoing: TlsParams::default(),
            sanitize_client_cert: false,
            normalization: Normalization {
                normalize_path: true,
                ..Normalization::default()
            },
            validate_clusters: false,
            notices: Vec::new(),
        }
    }
}

/// Decodes the roots. Their intermediates are no anchors: leaves bring their own.
pub(super) fn decode_roots(body: &[u8]) -> Result<TrustBundle, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    let trust_domain = root.need_text("TrustDomain")?;
    let roots = root.objects("Roots")?;
    let mut pems = Vec::new();
    for one in &roots {
        let pem = one.need_text("RootCert")?;
        // Each for itself, so that an error says which.
        TrustBundle::from_pem(trust_domain, [pem]).map_err(|e| one.error("RootCert", e.to_string()))?;
        pems.push(pem);
    }
    TrustBundle::from_pem(trust_domain, pems).map_err(|e| root.error("Roots", e.to_string()))
}

/// Decodes the leaf, which must be the one of `service`.
pub(super) fn decode_leaf(
    body: &[u8],
    service: &str,
    check: fn(&Identity) -> Result<(), String>,
) -> Result<Identity, DecodeError> {
    let mut value = json::parse(body)?;
    let decoded = leaf(&value, service, check);
    if let Some(serde_json::Value::String(key)) = value.get_mut("PrivateKeyPEM") {
        key.zeroize();
    }
    decoded
}

fn leaf(
    value: &serde_json::Value,
    service: &str,
    check: fn(&Identity) -> Result<(), String>,
) -> Result<Identity, DecodeError> {
    let root = Node::root(value)?;
    let key = root.need_text("PrivateKeyPEM")?;
    let (identity, id) = Identity::from_mesh_pem(root.need_text("CertPEM")?, key)
        .map_err(|e| root.error("CertPEM", e.to_string()))?;
    if id.service().map(|id| id.service.as_str()) != Some(service) {
        let why = format!("is for {id}, not for the service {service:?}");
        return Err(root.error("CertPEM", why));
    }
    check(&identity).map_err(|why| root.error("CertPEM", why))?;
    Ok(identity)
}

/// Decodes the mesh entry.
pub(super) fn decode_mesh(body: &[u8]) -> Result<Mesh, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    let mut found = Mesh {
        validate_clusters: root.flag("ValidateClusters")?,
        ..Mesh::default()
    };
    if let Some(http) = root.object("HTTP")? {
        decode_mesh_http(&http, &mut found)?;
    }
    if let Some(tls) = root.object("TLS")? {
        found.incoming = params(&tls, "Incoming", &mut found.notices)?;
        found.outgoing = params(&tls, "Outgoing", &mut found.notices)?;
    }
    Ok(found)
}

fn decode_mesh_http(http: &Node<'_>, found: &mut Mesh) -> Result<(), DecodeError> {
    for field in http.unknown(&["SanitizeXForwardedClientCert", "Incoming"]) {
        found.notices.push(format!("mesh entry: {field} is not honoured"));
    }
    found.sanitize_client_cert = http.flag("SanitizeXForwardedClientCert")?;
    let incoming = http.object("Incoming")?;
    let wanted = match &incoming {
        Some(incoming) => incoming.object("RequestNormalization")?,
        None => None,
    };
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let known = [
        "InsecureDisablePathNormalization",
        "MergeSlashes",
        "PathWithEscapedSlashesAction",
        "HeadersWithUnderscoresAction",
    ];
    for field in wanted.unknown(&known) {
        found.notices.push(format!("mesh entry: {field} is not honoured"));
    }
    let slashes = wanted.text("PathWithEscapedSlashesAction")?;
    let underscores = wanted.text("HeadersWithUnderscoresAction")?;
    // Rules about paths and headers rest on it: what is not known must not end up laxer.
    let strange = |key, text| wanted.error(key, format!("{text:?} is not known"));
    found.normalization = Normalization {
        normalize_path: !wanted.flag("InsecureDisablePathNormalization")?,
        merge_slashes: wanted.flag("MergeSlashes")?,
        path_with_escaped_slashes: match slashes {
            "" | "IMPLEMENTATION_SPECIFIC_DEFAULT" | "KEEP_UNCHANGED" => {
                PathWithEscapedSlashes::KeepUnchanged
            }
            "REJECT_REQUEST" => PathWithEscapedSlashes::RejectRequest,
            "UNESCAPE_AND_REDIRECT" => PathWithEscapedSlashes::UnescapeAndRedirect,
            "UNESCAPE_AND_FORWARD" => PathWithEscapedSlashes::UnescapeAndForward,
            other => return Err(strange("PathWithEscapedSlashesAction", other)),
        },
        headers_with_underscores: match underscores {
            "" | "ALLOW" => HeadersWithUnderscores::Allow,
            "REJECT_REQUEST" => HeadersWithUnderscores::RejectRequest,
            "DROP_HEADER" => HeadersWithUnderscores::DropHeader,
            other => return Err(strange("HeadersWithUnderscoresAction", other)),
        },
        ..Normalization::default()
    };
    Ok(())
}

fn params(tls: &Node<'_>, key: &str, notices: &mut Vec<String>) -> Result<TlsParams, DecodeError> {
    let mut params = TlsParams::default();
    let Some(node) = tls.object(key)? else {
        return Ok(params);
    };
    let path = node.path("TLSMinVersion");
    match node.text("TLSMinVersion")? {
        "" | "TLS_AUTO" | "TLSv1_2" => {}
        "TLSv1_3" => params.min = TlsVersion::V1_3,
        old @ ("TLSv1_0" | "TLSv1_1") => {
            notices.push(format!("mesh entry: {path} {old} is carried out as TLSv1_2"));
        }
        // A stricter wish than is known must not end up laxer.
        strange => return Err(node.error("TLSMinVersion", format!("{strange:?} is not known"))),
    }
    match node.text("TLSMaxVersion")? {
        "" | "TLS_AUTO" | "TLSv1_3" => {}
        "TLSv1_2" => params.max = TlsVersion::V1_2,
        strange => {
            let why = format!("{strange:?} is older than TLSv1_2 or not known");
            return Err(node.error("TLSMaxVersion", why));
        }
    }
    if params.min > params.max {
        return Err(node.error("TLSMinVersion", "is above TLSMaxVersion"));
    }
    params.cipher_suites = node.texts("CipherSuites")?;
    Ok(params)
}

/// What the answer for a caller that no intention names says of the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authorized {
    /// The default decided.
    Default(Action),
    /// An intention decided after all.
    Intention,
}

/// Decodes an answer of `/v1/agent/connect/authorize`.
pub(super) fn decode_authorize(body: &[u8]) -> Result<Authorized, DecodeError> {
    let value = json::parse(body)?;
    let root = Node::root(&value)?;
    if root.value("Authorized").is_none() {
        return Err(root.error("Authorized", "missing"));
    }
    let action = if root.flag("Authorized")? {
        Action::Allow
    } else {
        Action::Deny
    };
    let reason = root.text("Reason")?;
    let lower = reason.to_lowercase();
    if lower.starts_with("matched") {
        Ok(Authorized::Intention)
    } else if lower.contains("default") || action == Action::Deny {
        Ok(Authorized::Default(action))
    } else {
        // Only a reason that is known may open the door.
        Err(root.error("Reason", format!("{reason:?} is not known")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOTS: &[u8] = include_bytes!("recorded/roots.json");

    #[test]
    fn recorded_roots_and_which_one_is_broken() {
        let bundle = decode_roots(ROOTS).unwrap();
        assert_eq!(
            &*bundle.trust_domain,
            "17b1d5da-eec0-1b75-21ab-f4bbdf0e280a.consul"
        );
        assert_eq!(bundle.roots.certificates.len(), 1);
        let text = std::str::from_utf8(ROOTS).unwrap();
        let broken = text.replace("BEGIN CERTIFICATE", "BEGIN X");
        let error = decode_roots(broken.as_bytes()).unwrap_err();
        assert_eq!(error.field, "Roots[0].RootCert");
        let none = br#"{"TrustDomain":"a.consul","Roots":null}"#;
        assert_eq!(decode_roots(none).unwrap_err().field, "Roots");
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_leaf_must_be_ours_and_whole() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://td.consul/ns/default/dc/dc1/svc/web";
        let name = rcgen::SanType::URI(uri.try_into().unwrap());
        params.subject_alt_names.push(name);
        let cert = params.self_signed(&key).unwrap();
        let body = serde_json::json!({
            "CertPEM": cert.pem(), "PrivateKeyPEM": key.serialize_pem(),
        })
        .to_string();
        let leaf = |service, check| decode_leaf(body.as_bytes(), service, check);
        assert!(leaf("web", |_| Ok(())).is_ok());
        let error = leaf("api", |_| Ok(())).unwrap_err();
        assert!(
            error.to_string().ends_with("not for the service \"api\""),
            "{error}"
        );
        let error = leaf("web", |_| Err("the key does not fit".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "CertPEM: the key does not fit");
        let half = br#"{"CertPEM":"x"}"#;
        let error = decode_leaf(half, "web", |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "PrivateKeyPEM: missing");
    }

    #[test]
    fn tls_versions_of_the_mesh_entry() {
        let read = |text: &str| decode_mesh(format!(r#"{{"TLS":{{"Incoming":{{{text}}}}}}}"#).as_bytes());
        assert_eq!(read("").unwrap(), Mesh::default());
        let strict = read(r#""TLSMinVersion":"TLSv1_3""#).unwrap();
        assert_eq!(strict.incoming.min, TlsVersion::V1_3);
        assert_eq!(strict.outgoing, TlsParams::default());
        let old = read(r#""TLSMinVersion":"TLSv1_0","TLSMaxVersion":"TLSv1_2","CipherSuites":["A"]"#);
        let old = old.unwrap();
        assert_eq!(
            (old.incoming.min, old.incoming.max),
            (TlsVersion::V1_2, TlsVersion::V1_2)
        );
        assert_eq!((old.notices.len(), old.incoming.cipher_suites.len()), (1, 1));
        for bad in [
            r#""TLSMinVersion":"TLSv1_9""#,
            r#""TLSMaxVersion":"TLSv1_1""#,
            r#""TLSMinVersion":"TLSv1_3","TLSMaxVersion":"TLSv1_2""#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn normalization_of_the_mesh_entry() {
        let read = |text: &str| {
            let body = format!(r#"{{"HTTP":{{"Incoming":{{"RequestNormalization":{{{text}}}}}}}}}"#);
            decode_mesh(body.as_bytes())
        };
        assert_eq!(read("").unwrap(), Mesh::default());
        assert!(Mesh::default().normalization.normalize_path);
        let all = read(
            r#""InsecureDisablePathNormalization":true,"MergeSlashes":true,
            "PathWithEscapedSlashesAction":"UNESCAPE_AND_FORWARD",
            "HeadersWithUnderscoresAction":"REJECT_REQUEST""#,
        );
        let all = all.unwrap().normalization;
        assert!(!all.normalize_path && all.merge_slashes);
        assert_eq!(
            all.path_with_escaped_slashes,
            PathWithEscapedSlashes::UnescapeAndForward
        );
        assert_eq!(
            all.headers_with_underscores,
            HeadersWithUnderscores::RejectRequest
        );
        let error = read(r#""PathWithEscapedSlashesAction":"NEW""#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "HTTP.Incoming.RequestNormalization.PathWithEscapedSlashesAction: \"NEW\" is not known"
        );
        let sanitize = br#"{"ValidateClusters":true,"HTTP":{"SanitizeXForwardedClientCert":true}}"#;
        let mesh = decode_mesh(sanitize).unwrap();
        assert!(mesh.sanitize_client_cert && mesh.validate_clusters);
    }

    #[test]
    fn only_a_known_reason_is_the_default() {
        let read = |yes: bool, reason: &str| {
            let body = serde_json::json!({ "Authorized": yes, "Reason": reason }).to_string();
            decode_authorize(body.as_bytes())
        };
        let allow = Ok(Authorized::Default(Action::Allow));
        assert_eq!(read(true, "Default behavior configured by ACLs"), allow);
        assert_eq!(read(true, "Default intention policy"), allow);
        assert_eq!(read(true, "ACLs disabled, access is allowed by default"), allow);
        let matched = "Matched L4 intention: default/* => default/api (Precedence: 8, Action: ALLOW)";
        assert_eq!(read(true, matched), Ok(Authorized::Intention));
        assert!(read(true, "because").is_err());
        let deny = Ok(Authorized::Default(Action::Deny));
        assert_eq!(read(false, "because"), deny);
        assert!(decode_authorize(b"{}").is_err());
    }
}
