//! What an intention asks of requests: its permissions and its JWTs, decoded.
//!
//! Pure. What is not fully understood is kept as a reason, not as a permission: the rules then keep out
//! everybody whom the intention is about.

use super::json::{DecodeError, Node};
use super::request_match::{headers, methods, refuse_unknown, regex};
use crate::model::matcher::{StringMatcher, StringPattern};
use crate::model::rbac::{Action, Permission};

/// Everything that an intention asks of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestTerms {
    /// In order; the first that matches decides.
    pub permissions: Vec<RequestPermission>,
    /// Asked of every request; one of them is enough, none asks for nothing.
    pub jwt: Vec<JwtTerms>,
    /// Why it is not understood, by the field.
    pub unclear: Option<String>,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPermission {
    /// What happens to a request that it is about.
    pub action: Action,
    /// Which requests it is about, JWTs left aside.
    pub requests: Permission,
    /// As [`RequestTerms::jwt`], of its requests alone.
    pub jwt: Vec<JwtTerms>,
}

/// A token that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtTerms {
    /// The `jwt-provider` entry that says who issues it.
    pub provider: String,
    /// All of them must hold.
    pub claims: Vec<JwtClaim>,
}

/// A claim and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtClaim {
    /// Keys from the outside in.
    pub path: Vec<String>,
    /// Exactly.
    pub value: String,
}

impl RequestTerms {
    /// Every provider named, each once, in the order in which Consul takes them.
    pub(super) fn providers(&self) -> Vec<&str> {
        let of_permissions = self.permissions.iter().flat_map(|permission| &permission.jwt);
        let mut names: Vec<&str> = Vec::new();
        for terms in of_permissions.chain(&self.jwt) {
            if !names.contains(&terms.provider.as_str()) {
                names.push(&terms.provider);
            }
        }
        names
    }
}

/// The terms of the intention `node`.
pub(super) fn decode(node: &Node<'_>) -> RequestTerms {
    decode_all(node).unwrap_or_else(|error| {
        let text = error.to_string();
        // Where in the answer the intention stands says nothing, and changes with others.
        let at = node.path("");
        let unclear = text.strip_prefix(&at).unwrap_or(&text).to_owned();
        RequestTerms {
            unclear: Some(unclear),
            ..RequestTerms::default()
        }
    })
}

fn decode_all(node: &Node<'_>) -> Result<RequestTerms, DecodeError> {
    let permissions = node.objects("Permissions")?;
    Ok(RequestTerms {
        permissions: permissions.iter().map(permission).collect::<Result<_, _>>()?,
        jwt: jwt(node)?,
        unclear: None,
    })
}

fn permission(node: &Node<'_>) -> Result<RequestPermission, DecodeError> {
    refuse_unknown(node, &["Action", "HTTP", "JWT"])?;
    let action = match node.text("Action")? {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        other => return Err(node.error("Action", format!("{other:?} is not known"))),
    };
    Ok(RequestPermission {
        action,
        requests: match node.object("HTTP")? {
            Some(http) => requests(&http)?,
            None => Permission::Any,
        },
        jwt: jwt(node)?,
    })
}

fn requests(node: &Node<'_>) -> Result<Permission, DecodeError> {
    let known = ["PathExact", "PathPrefix", "PathRegex", "Header", "Methods"];
    refuse_unknown(node, &known)?;
    let path = match (node.text("PathExact")?, node.text("PathPrefix")?) {
        ("", "") => regex(node, "PathRegex")?.map(StringPattern::Regex),
        ("", prefix) => Some(StringPattern::Prefix(prefix.into())),
        (exact, _) => Some(StringPattern::Exact(exact.into())),
    };
    let mut parts = Vec::new();
    if let Some(pattern) = path {
        parts.push(Permission::UrlPath(StringMatcher {
            pattern,
            ignore_case: false,
        }));
    }
    parts.extend(headers(node)?.into_iter().map(Permission::Header));
    parts.extend(methods(node)?.map(Permission::Header));
    Ok(match parts.len() {
        // As Consul: `HTTP {}` is every request.
        0 => Permission::Any,
        1 => parts.remove(0),
        _ => Permission::All(parts),
    })
}

fn jwt(node: &Node<'_>) -> Result<Vec<JwtTerms>, DecodeError> {
    let Some(jwt) = node.object("JWT")? else {
        return Ok(Vec::new());
    };
    refuse_unknown(&jwt, &["Providers"])?;
    let mut all = Vec::new();
    for provider in jwt.objects("Providers")? {
        refuse_unknown(&provider, &["Name", "VerifyClaims"])?;
        let mut claims = Vec::new();
        for claim in provider.objects("VerifyClaims")? {
            refuse_unknown(&claim, &["Path", "Value"])?;
            claims.push(JwtClaim {
                path: claim.texts("Path")?,
                value: claim.text("Value")?.to_owned(),
            });
        }
        all.push(JwtTerms {
            provider: provider.need_text("Name")?.to_owned(),
            claims,
        });
    }
    Ok(all)
}
