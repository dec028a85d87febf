//! What real Envoy 1.40 did with 500 requests (`envoy.json`, from a static bootstrap with `local_jwks`):
//! status, body, details and metadata of each, and what its upstream got.
//!
//! `{n}` stands for the n-th token. Where Attaché does something else on purpose, [`deviation`] says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Asked;
use crate::http::filters::jwt::{Fetch, JwksStore, METADATA_NAMESPACE, Outcome, Refusal};
use crate::model::jwt::{
    Jwks, JwtAuthn, JwtCache, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRule,
};
use crate::model::matcher::{StringMatcher, StringPattern};
use crate::model::metadata::Metadata;
use crate::model::route::{PathMatch, RouteMatch};

/// Every key under which a filter of the table writes metadata.
const KEYS: [&str; 10] = [
    "payload",
    "header",
    "failed",
    "failed2",
    "pa",
    "pb",
    "fa",
    "fb",
    "jwt_payload_okta",
    "jwt_payload_auth0",
];

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> Option<Arc<str>> {
    value.as_str().filter(|text| !text.is_empty()).map(Arc::from)
}

fn texts(value: &Value) -> Vec<Arc<str>> {
    list(value).iter().filter_map(text).collect()
}

fn lower(value: &Value) -> Arc<str> {
    value.as_str().unwrap().to_ascii_lowercase().into()
}

fn provider(wire: &Value) -> JwtProvider {
    let headers = list(&wire["from_headers"]);
    let claims = list(&wire["claim_to_headers"]);
    let yes = |name: &str| wire[name].as_bool().unwrap_or_default();
    let seconds =
        |text: &Value| Duration::from_secs(text.as_str().unwrap().trim_end_matches('s').parse().unwrap());
    JwtProvider {
        issuer: text(&wire["issuer"]),
        audiences: texts(&wire["audiences"]),
        subjects: wire["subjects"].as_object().map(|subjects| StringMatcher {
            pattern: match subjects.iter().next().unwrap() {
                (kind, value) if kind == "prefix" => StringPattern::Prefix(text(value).unwrap()),
                (_, value) => StringPattern::Exact(text(value).unwrap()),
            },
            ignore_case: false,
        }),
        require_expiration: yes("require_expiration"),
        max_lifetime: wire.get("max_lifetime").map(seconds),
        clock_skew: Duration::from_secs(wire["clock_skew_seconds"].as_u64().unwrap_or(60)),
        jwks: Jwks::Local(text(&wire["local_jwks"]["inline_string"]).unwrap()),
        from_headers: headers
            .iter()
            .map(|header| JwtHeader {
                name: lower(&header["name"]),
                value_prefix: header["value_prefix"].as_str().unwrap_or_default().into(),
            })
            .collect(),
        from_params: texts(&wire["from_params"]),
        from_cookies: texts(&wire["from_cookies"]),
        forward: yes("forward"),
        forward_payload_header: wire.get("forward_payload_header").map(lower),
        pad_forward_payload_header: yes("pad_forward_payload_header"),
        claim_to_headers: claims
            .iter()
            .map(|claim| JwtClaimToHeader {
                header: lower(&claim["header_name"]),
                claim: claim["claim_name"]
                    .as_str()
                    .unwrap()
                    .split('.')
                    .map(Arc::from)
                    .collect(),
            })
            .collect(),
        payload_in_metadata: text(&wire["payload_in_metadata"]),
        space_delimited_claims: texts(&wire["normalize_payload_in_metadata"]["space_delimited_claims"]),
        header_in_metadata: text(&wire["header_in_metadata"]),
        failed_status_in_metadata: text(&wire["failed_status_in_metadata"]),
        clear_route_cache: false,
        cache: wire.get("jwt_cache_config").map(|_| JwtCache {
            size: 100,
            max_token_size: 4096,
        }),
    }
}

fn requirement(wire: &Value) -> JwtRequirement {
    let (kind, value) = wire.as_object().unwrap().iter().next().unwrap();
    let several = || list(&value["requirements"]).iter().map(requirement).collect();
    match kind.as_str() {
        "provider_name" => JwtRequirement::Provider {
            name: value.as_str().unwrap().into(),
            audiences: None,
        },
        "provider_and_audiences" => JwtRequirement::Provider {
            name: value["provider_name"].as_str().unwrap().into(),
            audiences: Some(texts(&value["audiences"])),
        },
        "requires_any" => JwtRequirement::Any(several()),
        "requires_all" => JwtRequirement::All(several()),
        "allow_missing" => JwtRequirement::AllowMissing,
        "allow_missing_or_failed" => JwtRequirement::AllowMissingOrFailed,
        other => panic!("{other}"),
    }
}

fn filter(wire: &Value) -> Arc<JwtAuthn> {
    let providers = wire["providers"].as_object().unwrap().iter();
    let rules = list(&wire["rules"]);
    Arc::new(JwtAuthn {
        providers: providers
            .map(|(name, wire)| (name.as_str().into(), Arc::new(provider(wire))))
            .collect(),
        rules: rules
            .iter()
            .map(|rule| JwtRule {
                matches: RouteMatch::path(PathMatch::Prefix(text(&rule["match"]["prefix"]).unwrap())),
                requires: rule.get("requires").map(requirement),
            })
            .collect(),
        bypass_cors_preflight: wire["bypass_cors_preflight"].as_bool().unwrap_or_default(),
        strip_failure_response: wire["strip_failure_response"].as_bool().unwrap_or_default(),
        stat_prefix: "".into(),
    })
}

/// What is expected instead of what Envoy did, with the reason; `with` puts tokens into a path.
fn deviation(name: &str, with: impl Fn(&str) -> String) -> Option<Value> {
    let refused = |body: &str| Some(json!({ "status": 401, "body": body }));
    let forwarded = |path: &str| Some(json!({ "status": 200, "to": with(path) }));
    match name {
        // No JSON (RFC 8259): no issuer writes it.
        "payload trailing comma" | "payload single quotes" | "payload control character" => {
            refused("Jwt payload is an invalid JSON")
        }
        // Another algorithm than the key's (RFC 7518, sections 3.1 and 3.4).
        "ES384 signed by P-256"
        | "ES256 signed by P-384"
        | "RS256 header over ES256 signature"
        | "ES256 header over HS256 signature"
        | "ES256 wide signature" => refused("Jwt verification fails"),
        // The library has these for 2048 bits and more, as RFC 7518, section 3.3, asks.
        "RSA 1024 RS384" | "RSA 1024 PS256" => refused("Jwt verification fails"),
        // Envoy sorts what stays of a query and leaves it decoded, so that it is another one, or none.
        "good param among others" => forwarded("/p/plain/x?z=1%202&b&a=%26x+y&z=3"),
        "param only fragmentless" => forwarded("/p/param/x?q=a%2Fb%3D%26%25&e=&s=a+b&u=%C3%A9"),
        "param with fragment sign" => forwarded("/p/param/?x=%23"),
        "param encoded newline" => forwarded("/p/param/?b=1%0d%0a"),
        "param empty pairs" => forwarded("/p/param/?&&&b=1&"),
        _ => None,
    }
}

/// A header's value for comparing: members of an object have no order.
fn comparable(value: &str) -> Value {
    STANDARD
        .decode(value)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .filter(Value::is_object)
        .map_or_else(|| value.into(), sorted)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            members.into_iter().collect()
        }
        other => other,
    }
}

/// As a server that takes bytes for Latin-1 shows them.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn asked(case: &Value, with: impl Fn(&str) -> String) -> Asked {
    let mut request = Asked::get(&with(case["path"].as_str().unwrap()));
    request.method = case["method"].as_str().unwrap_or("GET").to_owned();
    list(&case["headers"]).iter().fold(request, |request, header| {
        request.with(header[0].as_str().unwrap(), &with(header[1].as_str().unwrap()))
    })
}

fn sent(request: &Asked) -> Vec<(String, String)> {
    let mut sent: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| *name != "x-forwarded-proto")
        .map(|(name, value)| {
            (
                name.to_string(),
                comparable(&latin1(value.as_bytes())).to_string(),
            )
        })
        .collect();
    sent.sort();
    sent
}

fn expected_headers(case: &Value, with: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let mut expected: Vec<_> = list(&case["upstream"])
        .iter()
        .map(|header| {
            let value = comparable(&with(header[1].as_str().unwrap()));
            (header[0].as_str().unwrap().to_owned(), value.to_string())
        })
        .collect();
    expected.sort();
    expected
}

/// What is to be compared: what it is, how it is, how it should be.
type Compared = (&'static str, Value, Value);

fn answered(
    case: &Value,
    request: &Asked,
    result: &Result<Outcome, Refusal>,
    with: impl Fn(&str) -> String,
) -> Vec<Compared> {
    let status = result
        .as_ref()
        .map_or_else(|refusal| refusal.status.as_u16(), |_| 200);
    let mut compared = vec![("status", status.into(), case["status"].clone())];
    match result {
        Ok(_) => {
            if let Some(to) = case["to"].as_str() {
                compared.push(("path", request.target.as_str().into(), with(to).into()));
            }
            if case.get("upstream").is_some() {
                let expected = expected_headers(case, with);
                compared.push(("headers", json!(sent(request)), json!(expected)));
            }
        }
        Err(refusal) => {
            let www = refusal
                .www_authenticate
                .as_ref()
                .map(|value| value.to_str().unwrap());
            let answer = [
                ("body", json!(refusal.body)),
                ("details", json!(refusal.details)),
                ("www", json!(www)),
            ];
            for (what, is) in answer {
                // A response to HEAD has its body as a length alone.
                let shown = what != "body" || case["method"] != "HEAD";
                if let Some(should) = case.get(what).filter(|_| shown) {
                    compared.push((what, is, should.clone()));
                }
            }
        }
    }
    compared
}

fn written(case: &Value, metadata: &Metadata) -> Vec<Compared> {
    let compared = KEYS.map(|key| {
        let is = metadata.get(METADATA_NAMESPACE, &[key]);
        (key, json!(is), json!(case["metadata"].get(key)))
    });
    compared.into()
}

#[tokio::test]
async fn each_request_ends_as_with_envoy() {
    let table: Value = serde_json::from_str(include_str!("envoy.json")).unwrap();
    let tokens = texts(&table["tokens"]);
    let with = |text: &str| {
        let filled =
            |text: String, (index, token): (usize, &Arc<str>)| text.replace(&format!("{{{index}}}"), token);
        tokens.iter().enumerate().fold(text.to_owned(), filled)
    };
    let now = UNIX_EPOCH + Duration::from_secs(table["now"].as_u64().unwrap());
    let fetch: Fetch = std::rc::Rc::new(|_| panic!("all keys are local"));
    let store = JwksStore::new(fetch);
    let filters: BTreeMap<&str, Arc<JwtAuthn>> = table["filters"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, wire)| (name.as_str(), filter(wire)))
        .collect();
    let cases = list(&table["cases"]);
    assert!(cases.len() > 500);
    let mut wrong = Vec::new();
    let mut deviations = 0;
    for mut case in cases {
        let name = case["name"].as_str().unwrap().to_owned();
        if let Some(Value::Object(other)) = deviation(&name, with) {
            deviations += 1;
            for key in ["body", "details", "www"] {
                case.as_object_mut().unwrap().remove(key);
            }
            case.as_object_mut().unwrap().extend(other);
        }
        let running = store.filter(&filters[case["filter"].as_str().unwrap()], "http.t.");
        let mut request = asked(&case, with);
        let mut metadata = Metadata::default();
        let result = running.authenticate(&mut request, &mut metadata, now).await;
        for (what, is, should) in answered(&case, &request, &result, with)
            .into_iter()
            .chain(written(&case, &metadata))
            .filter(|(_, is, should)| is != should)
        {
            wrong.push(format!("{name}: {what} is {is}, Envoy's {should}"));
        }
    }
    assert_eq!(deviations, 15, "each is in the table");
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}
