//! `config.rbac.v3.RBAC`, as the network filter and the HTTP filter share it.
//!
//! Policies become rules in the order of their names: Envoy's are a map, and whichever of them matches,
//! the outcome is the same. What cannot be decided here is refused, never taken as "matches nothing":
//! under a NOT or a DENY that would let somebody in.

use std::sync::Arc;

use attache_proto::envoy::config::core::v3::CidrRange;
use attache_proto::envoy::config::rbac::v3::{
    self as wire, permission::Rule as PermissionRule, principal::Identifier, rbac as action,
};
use prost::Message;

use super::address::cidr;
use super::common::{enumeration, port, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::matcher;
use crate::model::Action;
use crate::model::rbac::{Permission, Principal, Rbac, Rule};

/// Why a network filter refuses a rule about headers, as Envoy does: it would match nobody, which lets them
/// in under DENY and NOT.
const OF_REQUESTS: &str = "is of requests, and a network filter sees none";

/// What the rules are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Connections: whoever connected is the remote address.
    Network,
    /// Requests: Envoy takes the remote address from x-forwarded-for, which is not done here.
    Http,
}

/// The rules of an HTTP filter.
///
/// # Errors
/// Names the policy and the part of it that is invalid or not supported.
pub fn rules(rbac: &wire::Rbac, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Arc<Rbac>, DecodeError> {
    scoped(rbac, Scope::Http, at, ctx)
}

/// The rules of a filter.
///
/// # Errors
/// As [`rules`].
pub fn scoped(
    rbac: &wire::Rbac,
    scope: Scope,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<Rbac>, DecodeError> {
    let (action, default_action) = match enumeration(rbac.action, &at.field("action"))? {
        action::Action::Allow => (Action::Allow, Action::Deny),
        action::Action::Deny => (Action::Deny, Action::Allow),
        action::Action::Log => return Err(at.field("action").refuse("LOG is not supported")),
    };
    without_effect(
        at,
        ctx,
        &[(rbac.audit_logging_options.is_some(), "audit_logging_options")],
    );
    let policies = at.field("policies");
    let rule = |(name, policy): (&String, &wire::Policy)| {
        let at = policies.key(name);
        Ok(Rule {
            name: name.as_str().into(),
            action,
            principal: principals(policy, scope, &at)?,
            permission: permissions(policy, scope, &at)?,
        })
    };
    let rules = rbac.policies.iter().map(rule).collect::<Result<_, _>>()?;
    let rules = Rbac {
        rules,
        default_action,
        default_name: format!("no policy matches: {default_action}").into(),
        spiffe_only: false,
    };
    Ok(ctx.shared.rules(&rbac.encode_to_vec(), rules))
}

fn principals(policy: &wire::Policy, scope: Scope, at: &At<'_>) -> Result<Principal, DecodeError> {
    let all = several(&policy.principals, &at.field("principals"), |principal, at| {
        self::principal(principal, scope, at)
    })?;
    Ok(one_of(all, Principal::AnyOf))
}

fn permissions(policy: &wire::Policy, scope: Scope, at: &At<'_>) -> Result<Permission, DecodeError> {
    unsupported(
        at,
        &[
            (policy.condition.is_some(), "condition"),
            (policy.checked_condition.is_some(), "checked_condition"),
            (policy.cel_config.is_some(), "cel_config"),
        ],
    )?;
    let all = several(&policy.permissions, &at.field("permissions"), |permission, at| {
        self::permission(permission, scope, at)
    })?;
    Ok(one_of(all, Permission::AnyOf))
}

/// Every element of a list that must have one.
fn several<W, M>(
    list: &[W],
    at: &At<'_>,
    one: impl Fn(&W, &At<'_>) -> Result<M, DecodeError>,
) -> Result<Vec<M>, DecodeError> {
    if list.is_empty() {
        return Err(at.refuse("is empty"));
    }
    list.iter()
        .enumerate()
        .map(|(index, element)| one(element, &at.index(index)))
        .collect()
}

/// The only one, or any of them.
fn one_of<M>(mut all: Vec<M>, any_of: impl Fn(Vec<M>) -> M) -> M {
    match all.pop() {
        Some(only) if all.is_empty() => only,
        last => {
            all.extend(last);
            any_of(all)
        }
    }
}

fn principal(principal: &wire::Principal, scope: Scope, at: &At<'_>) -> Result<Principal, DecodeError> {
    let Some(identifier) = &principal.identifier else {
        return Err(at.refuse("names nobody"));
    };
    let refuse = |field: &str| Err(at.field(field).refuse("is not supported"));
    let set = |set: &wire::principal::Set, field: &str| {
        several(&set.ids, &at.field(field).field("ids"), |one, at| {
            self::principal(one, scope, at)
        })
    };
    let remote = |range: &CidrRange, field: &str| match scope {
        Scope::Network => cidr(range, &at.field(field)).map(Principal::SourceIp),
        Scope::Http => Err(at.field(field).refuse(
            "is not supported for requests: it depends on x-forwarded-for; direct_remote_ip does not",
        )),
    };
    Ok(match identifier {
        Identifier::AndIds(ids) => Principal::All(set(ids, "and_ids")?),
        Identifier::OrIds(ids) => Principal::AnyOf(set(ids, "or_ids")?),
        Identifier::NotId(id) => Principal::Not(Box::new(self::principal(id, scope, &at.field("not_id"))?)),
        Identifier::Any(any) => {
            must_be_true(*any, at)?;
            Principal::Any
        }
        Identifier::Authenticated(peer) => {
            let at = at.field("authenticated.principal_name");
            let name = peer.principal_name.as_ref();
            Principal::Authenticated(name.map(|name| matcher::string(name, &at)).transpose()?)
        }
        Identifier::SourceIp(range) => remote(range, "source_ip")?,
        Identifier::RemoteIp(range) => remote(range, "remote_ip")?,
        Identifier::DirectRemoteIp(range) => {
            Principal::DirectRemoteIp(cidr(range, &at.field("direct_remote_ip"))?)
        }
        Identifier::Header(_) if scope == Scope::Network => {
            return Err(at.field("header").refuse(OF_REQUESTS));
        }
        Identifier::Header(header) => Principal::Header(matcher::header(header, &at.field("header"))?),
        Identifier::UrlPath(path) => Principal::UrlPath(matcher::path(path, &at.field("url_path"))?),
        Identifier::Metadata(metadata) => {
            Principal::Metadata(matcher::metadata(metadata, &at.field("metadata"))?)
        }
        Identifier::FilterState(_) => return refuse("filter_state"),
        Identifier::SourcedMetadata(_) => return refuse("sourced_metadata"),
        Identifier::Custom(_) => return refuse("custom"),
    })
}

fn permission(permission: &wire::Permission, scope: Scope, at: &At<'_>) -> Result<Permission, DecodeError> {
    let Some(rule) = &permission.rule else {
        return Err(at.refuse("permits nothing"));
    };
    let refuse = |field: &str| Err(at.field(field).refuse("is not supported"));
    let set = |set: &wire::permission::Set, field: &str| {
        several(&set.rules, &at.field(field).field("rules"), |one, at| {
            self::permission(one, scope, at)
        })
    };
    Ok(match rule {
        PermissionRule::AndRules(rules) => Permission::All(set(rules, "and_rules")?),
        PermissionRule::OrRules(rules) => Permission::AnyOf(set(rules, "or_rules")?),
        PermissionRule::NotRule(rule) => {
            Permission::Not(Box::new(self::permission(rule, scope, &at.field("not_rule"))?))
        }
        PermissionRule::Any(any) => {
            must_be_true(*any, at)?;
            Permission::Any
        }
        PermissionRule::Header(_) if scope == Scope::Network => {
            return Err(at.field("header").refuse(OF_REQUESTS));
        }
        PermissionRule::Header(header) => Permission::Header(matcher::header(header, &at.field("header"))?),
        PermissionRule::UrlPath(path) => Permission::UrlPath(matcher::path(path, &at.field("url_path"))?),
        PermissionRule::DestinationIp(range) => {
            Permission::DestinationIp(cidr(range, &at.field("destination_ip"))?)
        }
        PermissionRule::DestinationPort(number) => {
            let port = u32::from(port(*number, &at.field("destination_port"))?);
            Permission::DestinationPorts(port, port + 1)
        }
        PermissionRule::DestinationPortRange(range) => {
            match (u32::try_from(range.start), u32::try_from(range.end)) {
                (Ok(start), Ok(end)) if start < end && end <= 65536 => {
                    Permission::DestinationPorts(start, end)
                }
                _ => {
                    let why = "is no range of ports, whose end is excluded";
                    return Err(at.field("destination_port_range").refuse(why));
                }
            }
        }
        PermissionRule::Metadata(metadata) => {
            Permission::Metadata(matcher::metadata(metadata, &at.field("metadata"))?)
        }
        PermissionRule::RequestedServerName(name) => {
            Permission::RequestedServerName(matcher::string(name, &at.field("requested_server_name"))?)
        }
        PermissionRule::Matcher(_) => return refuse("matcher"),
        PermissionRule::UriTemplate(_) => return refuse("uri_template"),
        PermissionRule::SourcedMetadata(_) => return refuse("sourced_metadata"),
    })
}

/// Envoy takes `any` for true only.
fn must_be_true(any: bool, at: &At<'_>) -> Result<(), DecodeError> {
    if any {
        Ok(())
    } else {
        Err(at.field("any").refuse("is not true"))
    }
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
