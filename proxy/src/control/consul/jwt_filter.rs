//! The filter that looks at the JWTs that intentions ask for.
//!
//! Pure. It refuses nobody, as Consul has it: a missing or bad token only leaves no payload behind, and the
//! rules decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::Parts;
use super::intentions::Intention;
use super::request_rules::Providers;
use super::state::Want;
use crate::model::Name;
use crate::model::http::HttpFilter;
use crate::model::jwt::{JwtAuthn, JwtRequirement, JwtRule};
use crate::model::route::{PathMatch, RouteMatch};

/// The providers that `intentions` name, each once, in Consul's order.
fn names(intentions: &[Intention]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let all = intentions
        .iter()
        .flat_map(|intention| intention.terms.providers());
    all.filter(|name| seen.insert(*name)).collect()
}

/// The filter, with the clusters of its providers; none where no token is asked for.
pub(super) fn filter(intentions: &[Intention], known: &Providers, parts: &mut Parts) -> Option<HttpFilter> {
    let mut providers = BTreeMap::new();
    let mut requirements = Vec::new();
    for name in names(intentions) {
        parts.wants.insert(Want::Provider(name.to_owned()));
        let Some(Some(provider)) = known.get(name) else {
            continue;
        };
        parts.notices.extend(provider.notices.iter().cloned());
        if let Some((cluster, assignment)) = &provider.cluster {
            let cluster_name = Arc::clone(&cluster.name);
            parts
                .endpoints
                .insert(Arc::clone(&cluster_name), assignment.clone());
            parts.clusters.insert(cluster_name, cluster.clone());
        }
        let name: Name = name.into();
        providers.insert(Arc::clone(&name), Arc::clone(&provider.config));
        requirements.push(JwtRequirement::Any(vec![
            JwtRequirement::Provider {
                name,
                audiences: None,
            },
            JwtRequirement::AllowMissingOrFailed,
        ]));
    }
    let requires = match requirements.len() {
        0 => return None,
        1 => requirements.remove(0),
        _ => JwtRequirement::All(requirements),
    };
    Some(HttpFilter::JwtAuthn(Arc::new(JwtAuthn {
        providers,
        rules: vec![JwtRule {
            matches: RouteMatch::path(PathMatch::Prefix("/".into())),
            requires: Some(requires),
        }],
        bypass_cors_preflight: false,
        strip_failure_response: false,
        stat_prefix: "".into(),
    })))
}
