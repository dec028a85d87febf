//! RBAC rules, as Envoy's: policies of one action.
//!
//! Envoy has no order among policies. Here as in Consul, a policy says whom the rules before it have decided
//! on already: `and not`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::matcher::{cidr, header, metadata, string};
use super::message;
use crate::model::rbac::{Action, Permission, Principal, Rbac, Rule};

pub(super) fn rules(rbac: &Rbac) -> Value {
    // Policies name those whom the default does not cover.
    let action = match rbac.default_action {
        Action::Deny => Action::Allow,
        Action::Allow => Action::Deny,
    };
    let mut policies: BTreeMap<String, Value> = BTreeMap::new();
    for (at, rule) in rbac.rules.iter().enumerate() {
        if rule.action == action {
            policies.insert(rule.name.to_string(), policy(rule, &rbac.rules[..at]));
        }
    }
    if rbac.spiffe_only && action == Action::Deny {
        let named = json!({ "authenticated": { "principal_name": { "prefix": "spiffe://" } } });
        let nameless = json!({ "permissions": [{ "any": true }], "principals": [{ "not_id": named }] });
        policies.insert("no SPIFFE ID".to_owned(), nameless);
    }
    message([
        ("action", json!(action.to_string().to_uppercase())),
        (
            "policies",
            if policies.is_empty() {
                Value::Null
            } else {
                json!(policies)
            },
        ),
    ])
}

/// Rules that share a snapshot with others of another action are Consul's intentions, which have principals
/// only: it is these that `and not` is about.
fn policy(rule: &Rule, before: &[Rule]) -> Value {
    let others = before.iter().filter(|earlier| earlier.action != rule.action);
    let mut principals = vec![principal(&rule.principal)];
    principals.extend(others.map(|earlier| json!({ "not_id": principal(&earlier.principal) })));
    let whole = match principals.len() {
        1 => principals.remove(0),
        _ => json!({ "and_ids": { "ids": principals } }),
    };
    json!({ "permissions": [permission(&rule.permission)], "principals": [whole] })
}

fn principal(it: &Principal) -> Value {
    let all = |ids: &[Principal]| json!({ "ids": ids.iter().map(principal).collect::<Vec<_>>() });
    match it {
        Principal::Any => json!({ "any": true }),
        Principal::Service {
            trust_domain,
            partition,
            namespace,
            service,
        } => {
            let any = |part: &Option<_>| part.as_deref().map_or("[^/]+".to_owned(), regex::escape);
            let partition = match partition.as_deref() {
                Some("default") => String::new(),
                Some(partition) => format!("/ap/{}", regex::escape(partition)),
                None => "(?:/ap/[^/]+)?".to_owned(),
            };
            let pattern = format!(
                "^spiffe://{}{partition}/ns/{}/dc/[^/]+/svc/{}$",
                any(trust_domain),
                any(namespace),
                any(service)
            );
            json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": pattern } } } })
        }
        Principal::Authenticated(None) => json!({ "authenticated": {} }),
        Principal::Authenticated(Some(name)) => {
            json!({ "authenticated": { "principal_name": string(name) } })
        }
        Principal::SourceIp(range) => json!({ "remote_ip": cidr(range) }),
        Principal::DirectRemoteIp(range) => json!({ "direct_remote_ip": cidr(range) }),
        Principal::Header(matcher) => json!({ "header": header(matcher) }),
        Principal::UrlPath(path) => json!({ "url_path": { "path": string(path) } }),
        Principal::Metadata(matcher) => json!({ "metadata": metadata(matcher) }),
        Principal::All(ids) => json!({ "and_ids": all(ids) }),
        Principal::AnyOf(ids) => json!({ "or_ids": all(ids) }),
        Principal::Not(id) => json!({ "not_id": principal(id) }),
    }
}

fn permission(it: &Permission) -> Value {
    let all = |rules: &[Permission]| json!({ "rules": rules.iter().map(permission).collect::<Vec<_>>() });
    match it {
        Permission::Any => json!({ "any": true }),
        Permission::DestinationIp(range) => json!({ "destination_ip": cidr(range) }),
        Permission::DestinationPorts(start, end) => {
            json!({ "destination_port_range": { "start": start, "end": end } })
        }
        Permission::RequestedServerName(name) => json!({ "requested_server_name": string(name) }),
        Permission::Header(matcher) => json!({ "header": header(matcher) }),
        Permission::UrlPath(path) => json!({ "url_path": { "path": string(path) } }),
        Permission::Metadata(matcher) => json!({ "metadata": metadata(matcher) }),
        Permission::All(rules) => json!({ "and_rules": all(rules) }),
        Permission::AnyOf(rules) => json!({ "or_rules": all(rules) }),
        Permission::Not(rule) => json!({ "not_rule": permission(rule) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intention(name: &str, action: Action, service: Option<&str>) -> Rule {
        Rule {
            name: name.into(),
            action,
            principal: Principal::Service {
                trust_domain: Some("td.consul".into()),
                partition: Some("default".into()),
                namespace: Some("default".into()),
                service: service.map(Into::into),
            },
            permission: Permission::Any,
        }
    }

    #[test]
    fn precedence_becomes_and_not() {
        let rbac = Rbac {
            rules: vec![
                intention("web -> api: deny", Action::Deny, Some("web")),
                intention("* -> api: allow", Action::Allow, None),
            ],
            default_action: Action::Deny,
            default_name: "default policy: deny".into(),
            spiffe_only: true,
        };
        let regex = |service: &str| {
            let regex = format!("^spiffe://td\\.consul/ns/default/dc/[^/]+/svc/{service}$");
            json!({ "authenticated": { "principal_name": { "safe_regex": { "regex": regex } } } })
        };
        assert_eq!(
            rules(&rbac),
            json!({ "action": "ALLOW", "policies": { "* -> api: allow": {
                "permissions": [{ "any": true }],
                "principals": [{ "and_ids": { "ids": [regex("[^/]+"), { "not_id": regex("web") }] } }],
            } } })
        );
        let open = Rbac {
            rules: vec![],
            default_action: Action::Allow,
            spiffe_only: true,
            ..rbac
        };
        let shown = rules(&open);
        assert_eq!(shown["action"], "DENY");
        assert!(shown["policies"]["no SPIFFE ID"].is_object(), "{shown}");
    }
}
